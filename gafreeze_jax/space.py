"""The alphabet of genomes: a genome has one level for each gene, and a level is a multiplier of the gene's learning rate.

With the rates (1, 0), level 0 trains a gene and level 1 freezes it. A genome is a tuple of levels; many genomes are an array
[N, G] of int8. Only this module knows how many levels there are, and how genomes are written.
"""

import dataclasses
import itertools
import math
from collections.abc import Iterable, Sequence
from typing import TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from gafreeze_jax.listing import listed

Genome = tuple[int, ...]  # the level of each gene
Array = TypeVar("Array", np.ndarray, jax.Array)

MAX_LEVELS = 10  # a level is written as one digit


def as_genome(levels: Iterable[int]) -> Genome:
    """The hashable form of a genome [G]."""
    return tuple(map(int, levels))


@dataclasses.dataclass(frozen=True)
class Space:
    """All genomes of some genes. Hashable, so it can be a static argument.

    Attributes:
      names: of the G genes.
      levels: the L rates by which updates are multiplied; 0 = frozen, 1 = trained as usual. Both must be among them.

    Raises:
      ValueError: for arguments out of range.

    >>> space = Space(["embeddings", "layer_0", "layer_1"])
    >>> space.describe(space.parse("110"))
    'freeze embeddings, layer_0; train layer_1'
    """

    names: Sequence[str]
    levels: Sequence[float] = (1.0, 0.0)

    def __post_init__(self):
        object.__setattr__(self, "names", tuple(self.names))
        object.__setattr__(self, "levels", tuple(map(float, self.levels)))
        if not self.names or len(set(self.names)) < len(self.names):
            raise ValueError(f"expected names of at least one gene, all different, got {self.names}")
        if not all(0 <= rate < math.inf for rate in self.levels) or len(set(self.levels)) < len(self.levels):
            raise ValueError(f"levels must be different rates of at least 0, got {self.levels}")
        if not {0.0, 1.0} <= set(self.levels) or len(self.levels) > MAX_LEVELS:
            raise ValueError(f"levels must be at most {MAX_LEVELS} rates, 0 and 1 among them, got {self.levels}")

    @property
    def num_genes(self) -> int:
        return len(self.names)

    @property
    def size(self) -> int:
        """Number of genomes."""
        return len(self.levels) ** len(self.names)

    @property
    def all_trained(self) -> Genome:
        return (self.levels.index(1.0),) * len(self.names)

    @property
    def all_frozen(self) -> Genome:
        return (self.levels.index(0.0),) * len(self.names)

    # Text

    @staticmethod
    def text(genome: Iterable[int]) -> str:
        """A genome [G] of any space as files and people have it: a digit for each gene."""
        return "".join(map(str, as_genome(genome)))

    def parse(self, text: str) -> Genome:
        """The reverse of `text`.

        Raises:
          ValueError: for text of another length or with other characters.
        """
        digits = "".join(map(str, range(len(self.levels))))
        if len(text) != len(self.names) or set(text) - set(digits):
            genes = f"{len(self.names)} genes ({listed(self.names)})"
            raise ValueError(f"expected a genome of {genes}, each of {', '.join(digits)}; got {text!r}")
        return tuple(map(int, text))

    def describe(self, genome: Sequence[int]) -> str:
        """A genome in words, such as "freeze embeddings to layer_1; train layer_2"."""
        if as_genome(genome) == self.all_frozen:
            return "train the head only"
        phrases = []
        for rate in sorted(self.levels, key=lambda rate: (rate != 0, rate != 1, -rate)):
            genes = self._ranges(genome, self.levels.index(rate))
            if genes:
                verb, suffix = "train" if rate else "freeze", "" if rate in (0, 1) else f" at {rate:g} times the learning rate"
                phrases.append((verb, genes, suffix))
        if len(phrases) == 1:
            return f"train everything{phrases[0][2]}"
        return "; ".join(f"{verb} {genes}{suffix}" for verb, genes, suffix in phrases)

    def _ranges(self, genome: Sequence[int], level: int) -> str:
        """Names of the genes at a level; more than two neighbours become a range."""
        parts = []
        for at_level, group in itertools.groupby(zip(self.names, genome, strict=True), key=lambda gene: gene[1] == level):
            names = [name for name, _ in group] if at_level else []
            parts += [f"{names[0]} to {names[-1]}"] if len(names) > 2 else names
        return ", ".join(parts)

    # Levels

    def frozen(self, genomes: Array | Sequence) -> Array:
        """Which genes are frozen: bools in the shape of `genomes`, [G] or [N, G], traced or not."""
        levels = genomes if isinstance(genomes, jax.Array) else np.asarray(genomes)
        return levels == self.levels.index(0.0)  # pyright: ignore[reportReturnType]

    def frozen_names(self, genome: Sequence[int]) -> list[str]:
        return list(itertools.compress(self.names, self.frozen(genome)))

    # Sets of genomes

    def stack(self, genomes: Iterable[Sequence[int]]) -> np.ndarray:
        """Genomes as an array [N, G] int8, also if there are none."""
        return np.array(list(genomes), np.int8).reshape(-1, len(self.names))

    def all_genomes(self) -> np.ndarray:
        """All of them, [L^G, G] int8, counting up as their texts do."""
        return self.stack(itertools.product(range(len(self.levels)), repeat=len(self.names)))

    def index(self, genomes: Sequence | np.ndarray) -> np.ndarray:
        """Places of genomes [..., G] in `all_genomes`."""
        return np.asarray(genomes, int) @ len(self.levels) ** np.arange(len(self.names))[::-1]

    def prefixes(self) -> np.ndarray:
        """The masks that people pick by hand, [G+1, G] int8: freeze the lowest k genes, from 0 (train all) to G (head only)."""
        lowest = np.tri(len(self.names) + 1, len(self.names), -1, dtype=bool)
        return np.where(lowest, np.int8(self.levels.index(0.0)), np.int8(self.levels.index(1.0)))

    def neighbours(self, genome: Sequence[int]) -> np.ndarray:
        """All genomes that differ from a genome in one gene: [G (L - 1), G] int8."""
        steps = np.kron(np.eye(len(self.names), dtype=int), np.arange(1, len(self.levels))[:, None])
        return ((np.asarray(genome) + steps) % len(self.levels)).astype(np.int8)

    # Chance

    def sample(self, rng: np.random.Generator, num: int) -> np.ndarray:
        """Random genomes [num, G] int8, all equally likely."""
        return self._from_uniform(rng.random((num, len(self.names)))).astype(np.int8)

    def draw(self, key: jax.Array, num: int) -> jax.Array:
        """As `sample`, for JAX."""
        return self._from_uniform(jax.random.uniform(key, (num, len(self.names)))).astype(jnp.int8)

    def _from_uniform(self, uniform):
        """Levels from numbers of [0, 1), the last level from the lowest: of two levels, `jax.random.bernoulli`."""
        num = len(self.levels)
        return num - 1 - (uniform * num).astype(int)

    def mutate(self, key: jax.Array, genome: jax.Array, rate: float) -> jax.Array:
        """Gives each gene [G] another level with probability `rate`; all others are equally likely."""
        num = len(self.levels)
        uniform = jax.random.uniform(key, genome.shape)
        step = 1 + jnp.minimum(uniform / rate * (num - 1), num - 2).astype(genome.dtype)
        return jnp.where(uniform < rate, (genome + step) % num, genome)

    def distance(self, first: np.ndarray, second: np.ndarray) -> np.ndarray:
        """How unlike genomes [A, G] and [B, G] are, from 0 to 1: [A, B].

        Levels are ordered by their rates and each is a step from the next, also the lowest from frozen. The distance is the
        mean over genes of the steps between their levels, divided by L - 1: of two levels, the share of unlike genes.
        """
        # Each level becomes L - 1 signs, of which the first differ by rank, so that a product counts steps exactly.
        ranks = np.argsort(np.argsort(self.levels))
        signs = np.where(ranks[:, None] > np.arange(len(ranks) - 1), 1.0, -1.0)
        num_signs = len(self.names) * (len(ranks) - 1)
        codes = [signs[np.asarray(genomes, int)].reshape(len(genomes), num_signs) for genomes in (first, second)]
        return (1 - codes[0] @ codes[1].T / num_signs) / 2
