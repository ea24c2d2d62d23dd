"""Baselines: ways to fine-tune that need no search, which a found mask has to beat.

A baseline is one entry of `BASELINES` or of `FURTHER`. It is a set of genomes, of which the search names the fittest; or a
search of its own; or a schedule, a function that trains a member in a way that no single genome describes. Where several rates
are searched for, each is compared at the best of them. A genome freezes or slows whole genes, which are layers or sublayers:
parameters within one, such as norms alone, need genes of their own.
"""

import itertools
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple, Protocol

import jax
import numpy as np

from gafreeze_jax.engine.cohort import Member, Replicate, untrained
from gafreeze_jax.engine.population import Population
from gafreeze_jax.space import Genome, Space, as_genome

PHASES = 4  # of gradual unfreezing
MEASURED_STEPS = 5  # for relative gradient norms; of each epoch, for Auto-RGN
DECAYS = (0.95, 0.85, 0.75, 0.65)  # of learning rates from layer to layer: those of ELECTRA and BEiT lie in this range
NO_SHARE = 1e-30  # too little to move a parameter; at a rate of 0 a block would count as frozen, and lose what it has learned
SHARES = (1 / 4, 1 / 2)  # of the genes, that a ranking trains
SUBLAYER = re.compile("/(attention|mlp)$")  # the end of a gene's name, with `--granularity sublayer`


class Schedule(Protocol):
    """Trains a member through all steps of a replicate."""

    def __call__(self, population: Population, replicate: Replicate, num_epochs: int, rate: float, /) -> Member:
        """
        Args:
          rate: by which the learning rates of all genes are multiplied.
        """
        ...


class Baseline(NamedTuple):
    """A way to fine-tune that needs no search.

    Attributes:
      name: in tables, such as "train all".
      reference: where it comes from; "" for what needs none.
      genomes: `genomes(space)` returns [N, K]; of several the search names the fittest. None = `schedules` say it all.
      initial: `initial(space)` returns those of its genomes that a search evaluates first. None = all.
      search: `search(trials)` returns the genome that a search of its own ends with.
      schedules: by the names of their variants; "" where there is one. The best on validation data is compared.
      cost: `cost(space, flops, num_steps, num_epochs)` returns the FLOPs of such a run, where `flops(genome)` are those of
        training with a genome. None = those of training everything.
      learning_rate_factor: of all blocks, where it trains everything at another rate; a report may advise it.
      trains_head: whether it makes no sense for a network without a head of its own.
    """

    name: str
    reference: str = ""
    genomes: Callable[[Space], np.ndarray] | None = None
    initial: Callable[[Space], np.ndarray] | None = None
    search: "Callable[[Trials], Genome] | None" = None
    schedules: Mapping[str, Schedule] | None = None
    cost: Callable[[Space, Callable[[Genome], float], int, int], float] | None = None
    learning_rate_factor: float = 1.0
    trains_head: bool = False

    def fits(self, space: Space) -> bool:
        """Whether it makes sense for a network: where a search covers several rates, none of them is a baseline."""
        return not (self.trains_head and space.head == "none") and (self.learning_rate_factor == 1 or not space.has_rate)

    def flops(self, space: Space, flops: Callable[[Genome], float], num_steps: int, num_epochs: int) -> float:
        """FLOPs of a run, for a schedule."""
        return flops(space.all_trained) if self.cost is None else self.cost(space, flops, num_steps, num_epochs)


# Genomes


def all_trained(space: Space) -> np.ndarray:
    return space.stack([space.all_trained])


def all_frozen(space: Space) -> np.ndarray:
    return space.stack([space.all_frozen])


def head_only(space: Space) -> np.ndarray:
    """All genes frozen; where the head is a gene, all but that."""
    return {"fresh": all_frozen(space), "kept": space.prefixes()[-2:-1], "none": space.stack([])}[space.head]


def nothing(space: Space) -> np.ndarray:
    """The model as it is, unless it has a fresh head."""
    return space.stack([] if space.head == "fresh" else [space.all_frozen])


def inner_prefixes(space: Space) -> np.ndarray:
    """Prefix masks that freeze something, and train something."""
    return space.prefixes()[1:-1]


def inner_suffixes(space: Space) -> np.ndarray:
    """Suffix masks that freeze something, and train something."""
    return space.suffixes()[1:-1]


def initial_suffixes(space: Space) -> np.ndarray:
    """All inner ones; with a fresh head one, as its best masks are prefixes as a rule."""
    return space.thirds()[:1] if space.head == "fresh" else inner_suffixes(space)


def initial_genomes(space: Space, baselines: Iterable[Baseline]) -> np.ndarray:
    """Genomes [N, K] that a search evaluates first: prefix masks, from all to nothing, and those of baselines. Those come first
    that freeze most of the bottom, as they take the least time.
    """
    of_baselines = [(baseline.initial or baseline.genomes)(space) for baseline in baselines if baseline.genomes]
    genomes = space.unique(np.concatenate([space.prefixes()[1:], *of_baselines, all_trained(space)]).tolist())
    depths = np.cumprod(space.frozen(genomes), axis=-1).sum(-1)
    return genomes[np.argsort(-depths, kind="stable")]


def ablations(space: Space, genome: Genome) -> dict[str, Genome]:
    """A genome without what it freezes, and without its rates, by name; where a search covers no rates, none of them.

    What is no longer frozen trains as usual, but for the rate of all genes.
    """
    if not space.has_rate and len(space.levels) == 2:
        return {}
    frozen, num = space.frozen(genome), space.num_genes
    thawed = np.where(frozen, space.levels.index(1.0), genome[:num])
    (usual,) = space.masks(frozen[None])
    given = {"found, nothing frozen": (*thawed, *genome[num:]), "found, usual rates": usual}
    return {name: as_genome(other) for name, other in given.items() if as_genome(other) != genome}


# Schedules


def set_rates(member: Member, space: Space, genome: Sequence[int], rate: float) -> Member:
    """The member with another genome, at a multiple of its rates."""
    return member._replace(genome=as_genome(genome), rates=tuple((space.multipliers(genome) * rate).tolist()))


class Phases(NamedTuple):
    """Trains with one genome after the other, for equal numbers of steps."""

    genomes: Callable[[Space], np.ndarray]

    def __call__(self, population: Population, replicate: Replicate, num_epochs: int = 0, rate: float = 1.0, /) -> Member:
        genomes = self.genomes(population.space)
        ends = phase_ends(replicate.num_steps, len(genomes))
        (member,) = untrained([population.space.all_frozen])
        for genome, until in zip(genomes[-len(ends) :], ends, strict=True):
            (member,) = population.resume([set_rates(member, population.space, genome, rate)], replicate, until)
        return member

    def cost(self, space: Space, flops: Callable[[Genome], float], num_steps: int, num_epochs: int) -> float:
        return float(np.mean([flops(as_genome(genome)) for genome in self.genomes(space)]))


def thaw(space: Space) -> np.ndarray:
    """Genomes of gradual unfreezing [4, K]: the head only, the upper third of the blocks as well, two thirds, everything.

    Without a fresh head, the highest gene trains from the beginning.
    """
    num_frozen = np.round(space.num_genes * np.arange(PHASES - 1, -1, -1) / (PHASES - 1)).astype(int)
    return space.prefixes()[np.minimum(num_frozen, space.num_genes - (space.head != "fresh"))]


def probe(space: Space) -> np.ndarray:
    """Genomes of linear probing, then fine-tuning: [2, K]."""
    return np.concatenate([head_only(space), all_trained(space)])


def auto_rgn(population: Population, replicate: Replicate, num_epochs: int, rate: float = 1.0, /) -> Member:
    """Auto-RGN (Lee et al. 2023): a block's learning rate is multiplied by its share of the largest relative gradient norm.

    That is ||gradients|| / ||parameters||, measured before each epoch, on its first five batches. As in the paper, except that
    - a block has one learning rate, not a tensor;
    - a fresh head has its own learning rate, unscaled, and does not count for the largest norm. The paper's head had been
      trained before; a fresh head is small, its relative norm by far the largest, and nothing else would learn;
    - the optimizer's state and schedule continue over epochs, as for all other finalists; the authors' program restarts Adam.
    """
    member = population.begin(replicate)
    for until in phase_ends(replicate.num_steps, num_epochs):
        norms = population.relative_gradient_norms(member, replicate, min(member.steps + MEASURED_STEPS, until))
        shares = shares_of_largest(norms)
        rates = tuple(max(shares[name], NO_SHARE) * rate for name in population.space.names)
        (member,) = population.resume([member._replace(rates=rates)], replicate, until)
    return member


def _cost_of_auto_rgn(space: Space, flops: Callable[[Genome], float], num_steps: int, num_epochs: int) -> float:
    lengths = np.diff([0, *phase_ends(num_steps, num_epochs)])
    return flops(space.all_trained) * (1 + np.minimum(lengths, MEASURED_STEPS).sum() / num_steps)


def shares_of_largest(norms: Mapping[str, float]) -> dict[str, float]:
    """Each norm as a share of the largest finite norm; infinite norms count as 1."""
    largest = max((norm for norm in norms.values() if 0 < norm < math.inf), default=1.0)
    return {name: min(1.0, norm / largest) for name, norm in norms.items()}


class TrainAll(NamedTuple):
    """Trains everything, each block at a rate of `decay` to the power of its distance from the top, times a factor.

    Without decay it shows whether a mask wins only because it holds back what too high a learning rate would spoil.
    """

    factor: float = 1.0
    decay: float = 1.0

    def __call__(self, population: Population, replicate: Replicate, num_epochs: int = 0, rate: float = 1.0, /) -> Member:
        space = population.space
        (member,) = untrained([space.all_trained])
        rates = tuple((rate * self.factor * self.decay ** distances_from_top(space)).tolist())
        (member,) = population.resume([member._replace(rates=rates)], replicate)
        return member


def distances_from_top(space: Space) -> np.ndarray:
    """How many layers [G] a gene is below a fresh head or, without one, below the highest gene.

    Sublayers, such as `layer_0/attention`, belong to the same layer.
    """
    layers = [SUBLAYER.sub("", name) for name in space.names]
    numbers = np.cumsum([0, *(first != second for first, second in itertools.pairwise(layers))])
    return numbers[-1] - numbers + (space.head == "fresh")


def phase_ends(num_steps: int, num_phases: int) -> list[int]:
    """The steps after which phases of equal length end; fewer phases, if there are fewer steps."""
    ends = np.unique(np.round(num_steps * np.arange(1, num_phases + 1) / num_phases).astype(int)).tolist()
    return [end for end in ends if end > 0]


# Searches


class Trials(NamedTuple):
    """What a baseline can try to choose a mask by.

    Attributes:
      fittest: trains genomes [N, K] with the search's seed and names the fittest.
    """

    population: Population
    replicate: Replicate
    fittest: Callable[[np.ndarray], Genome]


def select_greedily(trials: Trials) -> Genome:
    """From all frozen, trains one gene more at a time, the one that makes the fittest mask, until none makes a fitter one."""
    space = trials.population.space
    best, fitter = space.all_frozen, True
    while fitter and (frozen := np.asarray(space.frozen(best))).any():
        freed = frozen[None] & ~np.eye(space.num_genes, dtype=bool)[frozen]
        chosen = trials.fittest(np.concatenate([space.stack([best]), space.masks(freed)]))
        best, fitter = chosen, chosen != best
    return trials.fittest(space.at_rates([best]))


class TrainHighest(NamedTuple):
    """Trains the genes with the highest scores before training, a quarter of them or half, whichever is fitter.

    Attributes:
      scores: `scores(population, replicate)` returns {gene: score}.
    """

    scores: Callable[[Population, Replicate], Mapping[str, float]]

    def __call__(self, trials: Trials) -> Genome:
        space, scores = trials.population.space, self.scores(trials.population, trials.replicate)
        order = np.argsort([-scores[name] for name in space.names], kind="stable")
        places = np.argsort(order)
        counts = [max(1, round(share * space.num_genes)) for share in SHARES]
        return trials.fittest(space.at_rates(space.masks(np.array([places >= count for count in counts]))))


def relative_gradients(population: Population, replicate: Replicate) -> Mapping[str, float]:
    return population.relative_gradient_norms(population.begin(replicate), replicate, MEASURED_STEPS)


def signal_to_noise(population: Population, replicate: Replicate) -> Mapping[str, float]:
    """By gene, the mean signal-to-noise ratio of its weights, as Spectrum ranks layers (Hartford et al. 2024).

    Singular values of a matrix count as noise below the largest that noise of their spread would have (Marchenko & Pastur
    1967), where the spread is their interquartile range / 1.349. The ratio is the sum of those above by the sum of the others,
    divided by the largest. As in the paper, except that a gene has one score, the mean over its matrices, and that noise counts
    as 1 where there is none, as in many small matrices; their ratio would be infinite, and decide alone.
    """
    matrices = {name: [leaf for leaf in jax.tree.leaves(tree) if leaf.ndim > 1] for name, tree in population.params.items()}
    return {name: float(np.mean([_ratio(np.asarray(leaf)) for leaf in of_gene] or [0.0])) for name, of_gene in matrices.items()}


def _ratio(weights: np.ndarray) -> float:
    matrix = weights.reshape(-1, weights.shape[-1]).astype(np.float64)
    matrix = matrix.T if matrix.shape[0] < matrix.shape[1] else matrix
    values = np.sqrt(np.maximum(np.linalg.eigvalsh(matrix.T @ matrix), 0))
    spread = np.subtract(*np.percentile(values, [75, 25])) / 1.349
    is_signal = values > spread * (1 + np.sqrt(matrix.shape[1] / matrix.shape[0]))
    noise = values[~is_signal].sum()
    return values[is_signal].sum() / (noise if noise else 1.0) / max(values.max(), np.finfo(float).tiny)


TRAIN_ALL = Baseline("train all", genomes=all_trained)
HEAD_ONLY = Baseline("head only", genomes=head_only)
LOWER = {1 / 2: "half rate", 1 / 4: "quarter rate"}


def train_all_at(rates: Iterable[float]) -> tuple[Baseline, ...]:
    """Training everything at half and a quarter of the learning rate, and at other multiples of it."""
    names = LOWER | {rate: f"{rate:g} times the rate" for rate in rates if rate not in (1, *LOWER)}
    return tuple(
        Baseline(f"train all, {name}", schedules={"": TrainAll(factor)}, learning_rate_factor=factor)
        for factor, name in names.items()
    )


LOWER_RATES = train_all_at(())
BASELINES = (
    TRAIN_ALL,
    HEAD_ONLY,
    Baseline("train nothing", genomes=nothing),
    Baseline("best prefix mask", genomes=inner_prefixes),
    Baseline("best suffix mask", "Lee et al. 2023, arXiv:2210.11466", genomes=inner_suffixes, initial=initial_suffixes),
    *LOWER_RATES,
)
FURTHER = (  # compared with `--baselines all`; every search begins with their genomes, too
    Baseline("best third", "Lee et al. 2023, arXiv:2210.11466", genomes=Space.thirds),
    Baseline(
        "gradual unfreezing",
        "Howard & Ruder 2018, arXiv:1801.06146",
        schedules={"": Phases(thaw)},
        cost=Phases(thaw).cost,
    ),
    Baseline("auto-RGN", "Lee et al. 2023, arXiv:2210.11466", schedules={"": auto_rgn}, cost=_cost_of_auto_rgn),
    Baseline(
        "layer-wise decay",
        "Howard & Ruder 2018, arXiv:1801.06146; Clark et al. 2020, arXiv:2003.10555",
        schedules={f"{decay:g}": TrainAll(decay=decay) for decay in DECAYS},
    ),
    Baseline(
        "LP-FT",
        "Kumar et al. 2022, arXiv:2202.10054",
        schedules={"": Phases(probe)},
        cost=Phases(probe).cost,
        trains_head=True,
    ),
    Baseline("greedy selection", "SubTuning; Kaplun et al. 2023, arXiv:2302.06354", search=select_greedily),
    Baseline("largest gradients", "Lee et al. 2023, arXiv:2210.11466", search=TrainHighest(relative_gradients)),
    Baseline("signal-to-noise", "Spectrum; Hartford et al. 2024, arXiv:2406.06623", search=TrainHighest(signal_to_noise)),
)
