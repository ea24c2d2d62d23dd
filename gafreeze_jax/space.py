"""The alphabet of genomes: a genome has one level for each gene, and a level is a multiplier of the gene's learning rate.

With the levels (1, 0), level 0 trains a gene and level 1 freezes it. Where the rate of all genes is searched for as well, its
index is one more number in the genome. So a genome is a tuple of K ints, K = G or G + 1; many genomes are an array [N, K] of
int8. Only this module knows how many levels and rates there are, and how genomes are written.
"""

import dataclasses
import itertools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from gafreeze_jax.listing import listed

Genome = tuple[int, ...]  # the level of each gene, and the index of the rate of all genes if there are several
Array = TypeVar("Array", np.ndarray, jax.Array)

MAX_LEVELS = 10  # a level is written as one digit
WEIGHT_OF_RATE = 0.5  # distance between the lowest and the highest rate; opposite masks are 1 apart


def as_genome(levels: Iterable[int]) -> Genome:
    """The hashable form of a genome [G]."""
    return tuple(map(int, levels))


def digits(levels: Iterable[int]) -> str:
    """Levels [G] as text, a digit for each."""
    return "".join(map(str, as_genome(levels)))


@dataclasses.dataclass(frozen=True)
class Space:
    """All genomes of some genes. Hashable, so it can be a static argument.

    Attributes:
      names: of the G genes.
      levels: the L rates by which a gene's updates are multiplied; 0 = frozen, 1 = trained as usual. Both must be among them.
      rates: the R rates by which the updates of all genes are multiplied, in ascending order, 1 among them.
      head: "fresh": a head that is no gene trains beside the genes; "kept": the last gene is the head; "none": there is no head
        with parameters of its own.

    Raises:
      ValueError: for arguments out of range.

    >>> space = Space(["embeddings", "layer_0", "layer_1"], rates=[0.5, 1, 2])
    >>> space.describe(space.parse("110@2"))
    'freeze embeddings, layer_0; train layer_1; all at 2 times the learning rate'
    """

    names: Sequence[str]
    levels: Sequence[float] = (1.0, 0.0)
    rates: Sequence[float] = (1.0,)
    head: Literal["fresh", "kept", "none"] = "fresh"

    def __post_init__(self):
        object.__setattr__(self, "names", tuple(self.names))
        for name in ("levels", "rates"):
            values = tuple(map(float, getattr(self, name)))
            object.__setattr__(self, name, values)
            if not all(0 <= rate < math.inf for rate in values) or len(set(values)) < len(values):
                raise ValueError(f"{name} must be different rates of at least 0, got {values}")
        if not self.names or len(set(self.names)) < len(self.names):
            raise ValueError(f"expected names of at least one gene, all different, got {self.names}")
        if not {0.0, 1.0} <= set(self.levels) or len(self.levels) > MAX_LEVELS:
            raise ValueError(f"levels must be at most {MAX_LEVELS} rates, 0 and 1 among them, got {self.levels}")
        texts = [f"{rate:g}" for rate in self.rates]
        if len(set(texts)) < len(texts):
            raise ValueError(f"rates must differ where they are written, got {', '.join(texts)}")
        if 1.0 not in self.rates or list(self.rates) != sorted(self.rates) or 0 in self.rates or len(self.rates) > MAX_LEVELS:
            raise ValueError(
                f"rates must be at most {MAX_LEVELS} numbers above 0 in ascending order, 1 among them, got {self.rates}"
            )

    def facts(self) -> dict[str, Any]:
        """What a run's files say of it."""
        return {"stages": self.names, "levels": self.levels, "rates": self.rates, "head": self.head}

    @classmethod
    def from_facts(cls, facts: Mapping[str, Any]) -> "Space":
        """The reverse of `facts`; files of old runs have the names only."""
        given = {name: facts[name] for name in ("levels", "rates", "head") if name in facts}
        return cls([str(name) for name in facts["stages"]], **given)

    @property
    def num_genes(self) -> int:
        return len(self.names)

    @property
    def choices(self) -> tuple[int, ...]:
        """How many values each number of a genome has: [K]."""
        return (len(self.levels),) * len(self.names) + (len(self.rates),) * self.has_rate

    @property
    def has_rate(self) -> bool:
        """Whether a genome says at which rate all genes train."""
        return len(self.rates) > 1

    @property
    def size(self) -> int:
        """Number of genomes."""
        return math.prod(self.choices)

    @property
    def num_different(self) -> int:
        """Number of genomes that train differently: where all genes are frozen no rate counts."""
        return self.size - len(self.rates) + 1

    @property
    def all_trained(self) -> Genome:
        return self._at_rate_1((self.levels.index(1.0),) * len(self.names))

    @property
    def all_frozen(self) -> Genome:
        return self._at_rate_1((self.levels.index(0.0),) * len(self.names))

    def _at_rate_1(self, levels: Iterable[int]) -> Genome:
        return (*levels, *[self.rates.index(1.0)] * self.has_rate)

    # Text

    def text(self, genome: Iterable[int]) -> str:
        """A genome as files and people have it: a digit for each gene, and "@" and the rate if there are several."""
        levels = as_genome(genome)
        return digits(levels[: len(self.names)]) + (f"@{self.rate(levels):g}" if self.has_rate else "")

    def parse(self, text: str) -> Genome:
        """The reverse of `text`; without a rate it is 1.

        Raises:
          ValueError: for text of another length, or with other characters or another rate.
        """
        levels, at, rate = text.partition("@")
        allowed = digits(range(len(self.levels)))
        if len(levels) != len(self.names) or set(levels) - set(allowed):
            genes = f"{len(self.names)} genes ({listed(self.names)})"
            raise ValueError(f"expected a genome of {genes}, each of {', '.join(allowed)}; got {text!r}")
        if not at:
            return self._at_rate_1(map(int, levels))
        places = {f"{rate:g}": place for place, rate in enumerate(self.rates)}
        if rate not in places or not self.has_rate:
            raise ValueError(f"expected a genome at a rate of {', '.join(places)}; got {text!r}")
        return (*map(int, levels), places[rate])

    def describe(self, genome: Sequence[int]) -> str:
        """A genome in words, such as "freeze embeddings to layer_1; train layer_2"."""
        if np.all(self.frozen(genome)):
            return "train the head only" if self.head == "fresh" else "train nothing"
        phrases = []
        for rate in sorted(self.levels, key=lambda rate: (rate != 0, rate != 1, -rate)):
            genes = self._ranges(genome, self.levels.index(rate))
            if genes:
                verb, suffix = "train" if rate else "freeze", "" if rate in (0, 1) else f" at {rate:g} times the learning rate"
                phrases.append((verb, genes, suffix))
        rate = self.rate(genome)
        of_all = "" if rate == 1 else f"{'; all' if len(phrases) > 1 else ''} at {rate:g} times the learning rate"
        if len(phrases) == 1:
            return f"train everything{phrases[0][2]}{of_all}"
        return "; ".join(f"{verb} {genes}{suffix}" for verb, genes, suffix in phrases) + of_all

    def _ranges(self, genome: Sequence[int], level: int) -> str:
        """Names of the genes at a level; more than two neighbours become a range."""
        parts = []
        levels = genome[: len(self.names)]
        for at_level, group in itertools.groupby(zip(self.names, levels, strict=True), key=lambda gene: gene[1] == level):
            names = [name for name, _ in group] if at_level else []
            parts += [f"{names[0]} to {names[-1]}"] if len(names) > 2 else names
        return ", ".join(parts)

    # Levels and rates

    def frozen(self, genomes: Array | Sequence) -> Array:
        """Which genes are frozen: bools [..., G] of genomes [..., K], traced or not."""
        return self._levels_of(genomes) == self.levels.index(0.0)  # pyright: ignore[reportReturnType]

    def frozen_names(self, genome: Sequence[int]) -> list[str]:
        return list(itertools.compress(self.names, np.asarray(self.frozen(genome)).tolist()))

    def multipliers(self, genomes: Array | Sequence) -> np.ndarray:
        """By what the updates of each gene are multiplied: [..., G] of genomes [..., K]."""
        values = np.asarray(genomes)
        of_all = np.asarray(self.rates)[values[..., -1]] if self.has_rate else np.ones(values.shape[:-1])
        return np.asarray(self.levels)[self._levels_of(values)] * of_all[..., None]

    def rate(self, genome: Sequence[int]) -> float:
        """The rate of all genes."""
        return self.rates[genome[-1]] if self.has_rate else 1.0

    def _levels_of(self, genomes: Array | Sequence) -> Array:
        levels = genomes if isinstance(genomes, jax.Array) else np.asarray(genomes)
        return levels[..., : len(self.names)]  # pyright: ignore[reportReturnType]

    # Sets of genomes

    def stack(self, genomes: Iterable[Sequence[int]]) -> np.ndarray:
        """Genomes as an array [N, K] int8, also if there are none."""
        return np.array(list(genomes), np.int8).reshape(-1, len(self.choices))

    def contains(self, genomes: np.ndarray) -> bool:
        """Whether all genomes [..., K] are of this space."""
        return bool((np.isin(genomes, range(max(self.choices))) & (genomes < np.asarray(self.choices))).all())

    def unique(self, genomes: Iterable[Sequence[int]]) -> np.ndarray:
        """Different genomes, [N, K] int8, in their order. Where all genes are frozen no rate counts, and it becomes 1."""
        rows = self.stack(genomes)
        rows[np.asarray(self.frozen(rows)).all(-1)] = self.all_frozen
        return self.stack(dict.fromkeys(map(as_genome, rows)))

    def all_genomes(self) -> np.ndarray:
        """All of them, [size, K] int8, counting up as their texts do."""
        return self.stack(itertools.product(*map(range, self.choices)))

    def index(self, genomes: Sequence | np.ndarray) -> np.ndarray:
        """Places of genomes [..., K] in `all_genomes`."""
        weights = np.cumprod([1, *self.choices[:0:-1]])[::-1]
        return np.asarray(genomes, int) @ weights

    def prefixes(self) -> np.ndarray:
        """The masks that people pick by hand, [G+1, K] int8: freeze the lowest k genes, from 0 (train all) to G (head only)."""
        return self.masks(np.tri(len(self.names) + 1, len(self.names), -1, dtype=bool))

    def suffixes(self) -> np.ndarray:
        """Freeze the highest k genes, from 0 to G: [G+1, K] int8."""
        return self.masks(np.tri(len(self.names) + 1, len(self.names), -1, dtype=bool)[:, ::-1])

    def thirds(self) -> np.ndarray:
        """Train the lowest, the middle, or the highest third alone (Lee et al. 2023): [3, K] int8, or fewer for fewer genes."""
        third = np.arange(len(self.names)) * 3 // len(self.names)
        return self.masks(np.array([third != part for part in sorted(set(third.tolist()))]))

    def masks(self, frozen: np.ndarray) -> np.ndarray:
        """Genomes [N, K] that freeze genes [N, G], and train the others as usual."""
        levels = np.where(frozen, self.levels.index(0.0), self.levels.index(1.0))
        return self.stack(map(self._at_rate_1, levels.tolist()))

    def at_rates(self, genomes: Iterable[Sequence[int]]) -> np.ndarray:
        """Each genome at each of the rates of all genes: [N * R, K] int8, or fewer where no rate counts."""
        given = self.stack(genomes)
        if not self.has_rate:
            return given
        several = given.repeat(len(self.rates), 0)
        several[:, -1] = np.tile(np.arange(len(self.rates)), len(given))
        return self.unique(several.tolist())

    def at_rate_of(self, other: Sequence[int], genomes: Iterable[Sequence[int]]) -> np.ndarray:
        """Different genomes, all at the rate of another: [N, K] int8."""
        given = self.stack(genomes)
        if self.has_rate:
            given[:, -1] = other[-1]
        return self.unique(given.tolist())

    def at_higher_rate(self, genome: Sequence[int]) -> Genome:
        """A genome at the next higher rate of all genes, if there is one."""
        return as_genome((*genome[:-1], min(genome[-1] + 1, len(self.rates) - 1)) if self.has_rate else genome)

    def neighbours(self, genome: Sequence[int]) -> np.ndarray:
        """All genomes that differ from a genome in one number: [N, K] int8."""
        return self.stack(
            (*genome[:place], (genome[place] + step) % num, *genome[place + 1 :])
            for place, num in enumerate(self.choices)
            for step in range(1, num)
        )

    # Chance

    def sample(self, rng: np.random.Generator, num: int) -> np.ndarray:
        """Random genomes [num, K] int8, all equally likely."""
        return self._from_uniform(rng.random((num, len(self.choices)))).astype(np.int8)

    def freeze_until(self, is_allowed: Callable[[Genome], bool], rng: np.random.Generator, genome: Sequence[int]) -> Genome:
        """A genome of which genes are frozen, one by one in random order, until it is allowed or all are frozen."""
        values = as_genome(genome)
        for gene in [] if is_allowed(values) else rng.permutation(self.num_genes):
            values = (*values[:gene], self.all_frozen[gene], *values[gene + 1 :])
            if is_allowed(values):
                break
        return values

    def draw(self, key: jax.Array, num: int) -> jax.Array:
        """As `sample`, for JAX."""
        return self._from_uniform(jax.random.uniform(key, (num, len(self.choices)))).astype(jnp.int8)

    def _from_uniform(self, uniform: Any) -> Any:
        """Levels from numbers of [0, 1), the last level from the lowest: of two levels, `jax.random.bernoulli`."""
        num = np.asarray(self.choices)[None]
        return num - 1 - (uniform * num).astype(int)

    def mutate(self, key: jax.Array, genome: jax.Array, rate: float) -> jax.Array:
        """Gives each number [K] a neighbouring value with probability `rate`: the next higher or lower level, or rate."""
        uniform = jax.random.uniform(key, genome.shape)
        ranks, in_order, num = self._ranks(), self._in_order(), np.asarray(self.choices)
        places = np.arange(len(num))
        rank = jnp.asarray(ranks)[places, genome]
        step = jnp.where(uniform < rate / 2, 1, -1)
        step = jnp.where((rank + step < 0) | (rank + step >= num), -step, step)
        return jnp.where(uniform < rate, jnp.asarray(in_order)[places, rank + step].astype(genome.dtype), genome)

    def _ranks(self) -> np.ndarray:
        """The rank of each value among those of its place in a genome, by its rate: [K, most values]."""
        return np.argsort(self._in_order(), axis=1, kind="stable")

    def _in_order(self) -> np.ndarray:
        """The values at each place in the order of their rates: [K, most values]; what is beyond their number is not used."""
        most = max(self.choices)
        of_level = [*np.argsort(self.levels).tolist(), *range(len(self.levels), most)]
        return np.array([of_level] * len(self.names) + [list(range(most))] * self.has_rate)

    def distance(self, first: np.ndarray, second: np.ndarray) -> np.ndarray:
        """How unlike genomes [A, K] and [B, K] are: [A, B], from 0 to 1, or to 1.5 if the rate of all genes differs as well.

        Levels are ordered by their rates and each is a step from the next, also the lowest from frozen. The distance is the
        mean over genes of the steps between their levels, divided by L - 1: of two levels, the share of unlike genes. To this
        comes half of the steps between the rates of all genes, divided by R - 1.
        """
        first, second = (np.asarray(genomes, int) for genomes in (first, second))
        levels = self._levels_of(first), self._levels_of(second)
        unlike = _share_of_steps(np.argsort(np.argsort(self.levels)), *levels)
        if not self.has_rate:
            return unlike
        return unlike + WEIGHT_OF_RATE * _share_of_steps(np.arange(len(self.rates)), first[:, -1:], second[:, -1:])


def _share_of_steps(ranks: np.ndarray, first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Mean over M places of the steps between the ranks of values [A, M] and [B, M], divided by the most steps: [A, B]."""
    # Each value becomes signs, of which the first differ by rank, so that a product counts steps exactly.
    signs = np.where(ranks[:, None] > np.arange(len(ranks) - 1), 1.0, -1.0)
    num_signs = first.shape[1] * (len(ranks) - 1)
    codes = [signs[values].reshape(len(values), num_signs) for values in (first, second)]
    return (1 - codes[0] @ codes[1].T / num_signs) / 2
