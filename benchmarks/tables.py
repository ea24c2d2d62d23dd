"""FreezeBench's tables, which freezebench.py makes and search_quality.py replays searches on."""

import json
import os
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

TABLES = Path(__file__).parent / "tables"


class Table(NamedTuple):
    """What became of all 2^G masks; mask m freezes gene g if bit G - 1 - g of m is set, so that m counts up as text does.

    Attributes:
      genes: G names.
      stops: R steps after which members were scored; the last one is the end.
      validation: [2^G, S, R, 2] accuracy and mean loss, for S seeds.
      test: [2^G, S, 2] after the last stop.
      flops: [2^G] of a training step from kept activations, as XLA counts them on a CPU; NaN until that was done.
      trainable: [2^G] trainable parameters, the head's included.
      about: options, versions and hardware.
    """

    genes: tuple[str, ...]
    stops: tuple[int, ...]
    validation: np.ndarray
    test: np.ndarray
    flops: np.ndarray
    trainable: np.ndarray
    about: dict[str, Any]

    @property
    def done(self) -> np.ndarray:
        """[2^G, S], which masks have been trained."""
        return ~np.isnan(self.test[:, :, 0])


def load_table(path: Path) -> Table:
    with np.load(path) as file:
        facts = json.loads(str(file["about"]))
        arrays = {name: file[name] for name in ("validation", "test", "flops", "trainable")}
    return Table(tuple(facts.pop("genes")), tuple(facts.pop("stops")), **arrays, about=facts)


def save_table(path: Path, table: Table) -> None:
    """Writes a table, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    about = json.dumps({"genes": table.genes, "stops": table.stops, **table.about}, sort_keys=True)
    arrays = {name: getattr(table, name) for name in ("validation", "test", "flops", "trainable")}
    partial = path.with_suffix(".partial.npz")
    np.savez_compressed(partial, about=np.array(about), **arrays)
    os.replace(partial, path)
