"""FreezeBench's tables, which freezebench.py makes and search_quality.py replays searches on."""

import json
import os
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from gafreeze_jax.space import Space

TABLES = Path(__file__).parent / "tables"
ARRAYS = ("validation", "test", "flops", "trainable")


class Table(NamedTuple):
    """What became of all N genomes of a space, in the order of `Space.all_genomes`.

    Attributes:
      stops: R steps after which members were scored; the last one is the end.
      validation: [N, S, R, 2] accuracy and mean loss, for S seeds.
      test: [N, S, 2] after the last stop.
      flops: [N] of a training step from kept activations, as XLA counts them on a CPU; NaN until that was done.
      trainable: [N] trainable parameters, a fresh head's included.
      about: options, versions and hardware.
    """

    space: Space
    stops: tuple[int, ...]
    validation: np.ndarray
    test: np.ndarray
    flops: np.ndarray
    trainable: np.ndarray
    about: dict[str, Any]

    @property
    def done(self) -> np.ndarray:
        """[N, S], which genomes have been trained."""
        return ~np.isnan(self.test[:, :, 0])

    @property
    def num_seeds(self) -> int:
        return self.test.shape[1]

    def rows(self, space: Space, genomes: np.ndarray) -> np.ndarray:
        """Where genomes [..., K] of a space stand in the table, which may have further levels and rates: [...]."""
        values = np.asarray(genomes, int)
        levels = np.array([self.space.levels.index(level) for level in space.levels])[values[..., : space.num_genes]]
        if not self.space.has_rate:
            return self.space.index(levels)
        places = np.array([self.space.rates.index(rate) for rate in space.rates])
        rates = places[values[..., -1]] if space.has_rate else np.broadcast_to(places[0], levels.shape[:-1])
        return self.space.index(np.concatenate([levels, rates[..., None]], -1))

    def with_seeds(self, num: int) -> "Table":
        """With room for as many seeds, if there are fewer."""
        missing = max(0, num - self.num_seeds)

        def widen(scores: np.ndarray) -> np.ndarray:
            margins = [(0, missing if axis == 1 else 0) for axis in range(scores.ndim)]
            return np.pad(scores, margins, constant_values=np.nan)

        return self._replace(validation=widen(self.validation), test=widen(self.test))


def load_table(path: Path) -> Table:
    """Reads a table; old ones have masks only, and the names of their genes at "genes"."""
    with np.load(path) as file:
        facts = json.loads(str(file["about"]))
        arrays = {name: file[name] for name in ARRAYS}
    space = Space.from_facts(facts.pop("space")) if "space" in facts else Space(facts.pop("genes"))
    return Table(space, tuple(facts.pop("stops")), **arrays, about=facts)


def save_table(path: Path, table: Table) -> None:
    """Writes a table, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    about = json.dumps({"space": table.space.facts(), "stops": table.stops, **table.about}, sort_keys=True)
    partial = path.with_suffix(".partial.npz")
    np.savez_compressed(partial, about=np.array(about), **{name: getattr(table, name) for name in ARRAYS})
    os.replace(partial, path)
