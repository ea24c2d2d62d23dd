"""What a search ends with: its leaders and the baselines are trained again with fresh seeds, a winner is named, and compared.

The best of many noisy validation scores is too good by construction. So the last word has training with seeds that the search
has not used, the same for all: on the validation split they name the winner among the leaders, and on the test split, which is
opened then, they say what it is worth.
"""

import functools
import itertools
import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
import optax

from gafreeze_jax.engine import costs
from gafreeze_jax.engine.cohort import Member, Replicate, side_by_side, untrained
from gafreeze_jax.engine.population import Population
from gafreeze_jax.runs.finalist_store import FinalistStore
from gafreeze_jax.search.history import Journal
from gafreeze_jax.space import Genome, as_genome

PHASES = 4  # of gradual unfreezing
MEASURED = 5  # batches, for relative gradient norms
GRADUAL, AUTO_RGN = "gradual unfreezing", "auto-RGN"
LOWER_RATES = {"train all, half rate": 1 / 2, "train all, quarter rate": 1 / 4}  # of the blocks; the head keeps its own
NO_MASKS = (GRADUAL, AUTO_RGN, *LOWER_RATES)
M = TypeVar("M", bound="Member | Recalled")


class Recalled(NamedTuple):
    """What the journal says of a member."""

    genome: Genome
    train_loss: float
    score: float
    loss: float
    steps: int
    seconds: float


class Trainer:
    """Trains and scores members of a population, as `search.Search` asks for it.

    What the journal knows is not trained again: of a search that was interrupted, or of an earlier one. If a member is to go
    on of which nothing but the scores is left, it is first trained again as it was, and in the same company: rounding goes by
    that.

    Args:
      make_run: what a seed decides.
    """

    def __init__(self, population: Population, make_run: Callable[[int], Replicate], journal: Journal | None = None):
        self.population, self.run = population, make_run
        self.journal = Journal() if journal is None else journal

    def evaluate(self, genomes: np.ndarray, seed: int, until: int) -> Iterator[Sequence[Member | Recalled]]:
        known, unknown = self._split(untrained(genomes), seed, until)
        return itertools.chain([known] if known else [], self.population.advance(unknown, self.run(seed), until))

    def resume(self, members: Sequence[Member | Recalled], seed: int, until: int) -> Iterator[Sequence[Member | Recalled]]:
        known, unknown = self._split(members, seed, until)
        lost = [as_genome(member.genome) for member in unknown if isinstance(member, Recalled)]
        trained = [member for member in unknown if isinstance(member, Member)]
        again = self._again(lost, seed, members[0].steps)
        trained += [again[genome] for genome in lost]
        return itertools.chain([known] if known else [], self.population.advance(trained, self.run(seed), until))

    def _split(self, members: Sequence[M], seed: int, until: int) -> tuple[list[Recalled], list[M]]:
        """Members whose scores after a step are known, and the others."""
        known, unknown = [], []
        for member in members:
            if (one := self.journal.recall(as_genome(member.genome), seed, until)) is None:
                unknown.append(member)
            else:
                known.append(Recalled(member.genome, one.train_loss, one.score, one.loss, until, one.seconds))
        return known, unknown

    def _again(self, genomes: Sequence[Genome], seed: int, steps: int) -> dict[Genome, Member]:
        """Members as they were after so many steps, by genome; those that were trained with them, too."""
        members: dict[Genome, Member] = {}
        for genome in genomes:
            if genome in members:
                continue
            together = self.journal.together(genome, seed, steps)
            if before := self.journal.before(genome, seed, steps):
                earlier = self._again(together, seed, before)
                start = [earlier[one] for one in together]
            else:
                start = untrained(together)
            for call in self.population.advance(start, self.run(seed), steps):
                members |= {as_genome(member.genome): member for member in call}
        return members


class Finalist(NamedTuple):
    """A mask, or another way to fine-tune, that was trained with S fresh seeds.

    Attributes:
      name: such as "train all".
      genome: the level of each gene; for what is no mask, that of the end.
      members: S of them.
      flops: of a training run.
    """

    name: str
    genome: Genome
    members: tuple[Member, ...]
    flops: float

    @property
    def validation(self) -> tuple[float, float]:
        """Mean accuracy and mean loss on the validation split; those of a diverged member are the worst."""
        scores = [(one.score, one.loss) if math.isfinite(one.loss) else (-math.inf, math.inf) for one in self.members]
        accuracy, loss = np.mean(scores, axis=0).tolist()
        return accuracy, loss

    @property
    def best(self) -> Member:
        """The member with the highest validation accuracy; ties go to the lower loss."""
        return max(self.members, key=lambda one: (one.score, -one.loss) if math.isfinite(one.loss) else (-math.inf, 0.0))


def retrain(
    population: Population,
    make_run: Callable[[int], Replicate],
    leaders: Sequence[Genome],
    baselines: Mapping[str, Genome],
    seeds: Sequence[int],
    num_epochs: int,
    kept: FinalistStore,
    record: Callable[[Sequence[Member], int], None] = lambda members, seed: None,
    no_masks: Collection[str] = NO_MASKS,
) -> tuple[Finalist, list[Finalist]]:
    """Trains leaders and baselines with fresh seeds, and names the leader that is fittest on the validation split.

    Args:
      make_run: what a seed decides.
      leaders: genomes, the most promising first.
      baselines: name and genome of each.
      num_epochs: for Auto-RGN.
      kept: those that were trained before, and then all.
      record: called with members that were trained together and their seed.
      no_masks: which of `NO_MASKS` are baselines, too.

    Returns:
      The winner, named "found", and the baselines; the last of these are no masks.
    """
    texts = list(dict.fromkeys([*leaders, *baselines.values()]))
    genomes = np.array(texts, bool)
    everything = np.zeros(genomes.shape[1], bool)

    def keep(kind: str, seed: int, members: Sequence[Member]) -> list[Member]:
        ready = [_on_host(member) for member in members]
        kept.keep(f"{kind}-{seed}", ready)
        return ready

    def find(kind: str, seed: int, genome: np.ndarray) -> Member | None:
        return kept.find(f"{kind}-{seed}", as_genome(genome), population.params | {"head": make_run(seed).head})

    trained: dict[Genome, list[Member]] = {text: [] for text in texts}
    for seed in seeds:
        there = {text: find("mask", seed, genome) for text, genome in zip(texts, genomes, strict=True)}
        members = {text: member for text, member in there.items() if member is not None}
        record(list(members.values()), seed)
        missing = [genome for text, genome in zip(texts, genomes, strict=True) if text not in members]
        for call in population.advance(untrained(np.array(missing)), make_run(seed)):
            ready = keep("mask", seed, call)
            record(ready, seed)
            members |= {as_genome(member.genome): member for member in ready}
        for text in texts:
            trained[text].append(members[text])

    def train_without_mask(name: str, train: Callable[[Replicate], Member]) -> tuple[Member, ...]:
        there = {seed: find(name, seed, everything) for seed in seeds}
        members = {seed: member for seed, member in there.items() if member is not None}
        missing = [seed for seed in seeds if seed not in members]
        done = side_by_side(lambda seed: train(make_run(seed)), missing, population.plan.calls)  # one would leave cores idle
        for seed, member in zip(missing, done, strict=True):
            (members[seed],) = keep(name, seed, [member])
        return tuple(members[seed] for seed in seeds)

    run = make_run(seeds[0])
    num_steps = run.num_steps
    num_measured = int(np.minimum(np.diff([0, *_ends(num_steps, num_epochs)]), MEASURED).sum())
    flops = functools.cache(lambda text: num_steps * costs.flops_per_step(population, text, run))
    of_all = functools.partial(flops, as_genome(everything))
    scaled = population.with_recipe(population.recipe.scalable())
    ways: dict[str, tuple[Callable[[Replicate], Member], Callable[[], float]]] = {  # how each trains, and what that costs
        GRADUAL: (
            functools.partial(unfreeze_gradually, population),
            lambda: float(np.mean([flops(as_genome(genome)) for genome in phases(genomes.shape[1])])),
        ),
        AUTO_RGN: (
            functools.partial(auto_rgn, scaled, num_epochs=num_epochs),
            lambda: of_all() * (1 + num_measured / num_steps),
        ),
        **{name: (functools.partial(train_all, scaled, factor=factor), of_all) for name, factor in LOWER_RATES.items()},
    }
    others = []
    for name in no_masks:
        train, cost = ways[name]
        others.append(Finalist(name, as_genome(everything), train_without_mask(name, train), cost()))
    kept.close()

    masks = [Finalist("found", text, tuple(trained[text]), flops(text)) for text in leaders]
    found = max(masks, key=lambda one: (one.validation[0], -one.validation[1]))
    rivals = [Finalist(name, text, tuple(trained[text]), flops(text)) for name, text in baselines.items()]
    return found, [*rivals, *others]


def phases(num_genes: int) -> np.ndarray:
    """Genomes of gradual unfreezing [4, G]: the head only, its upper third too, two thirds, everything."""
    num_frozen = np.round(num_genes * np.arange(PHASES - 1, -1, -1) / (PHASES - 1)).astype(int)
    return np.arange(num_genes)[None] < num_frozen[:, None]


def unfreeze_gradually(population: Population, run: Replicate) -> Member:
    """Gradual unfreezing (Howard & Ruder 2018), from the head down, in four phases of as many steps."""
    genomes = phases(len(population.network.blocks))
    ends = _ends(len(run.batches.examples), PHASES)
    (member,) = population.evaluate(genomes[-len(ends)][None], run, ends[0])
    for genome, until in zip(genomes[-len(ends) + 1 :] if len(ends) > 1 else [], ends[1:], strict=True):
        (member,) = population.resume([member._replace(genome=as_genome(genome))], run, until)
    return member


def auto_rgn(population: Population, run: Replicate, num_epochs: int) -> Member:
    """Auto-RGN (Lee et al. 2023): a block's learning rate is multiplied by its share of the largest relative gradient norm.

    That is ||gradients|| / ||parameters||, measured before each epoch, on its first five batches. As in the paper, but that
    - what has one learning rate is a block, not a tensor;
    - the head has its own learning rate, unscaled, and does not count for the largest norm. The paper's had been trained
      before; a fresh one is small, its relative norm by far the largest, and nothing else would learn;
    - the optimizer's state and schedule go on over epochs, as for all other finalists; the authors' program restarts Adam.

    Args:
      population: with a recipe from `Recipe.scalable`.
    """
    member = population.begin(run)
    for until in _ends(len(run.batches.examples), num_epochs):
        norms = population.relative_gradient_norms(member, run, min(member.steps + MEASURED, until))
        (member,) = population.resume([scale_learning_rates(member, shares_of_largest(norms))], run, until)
    return member


def shares_of_largest(norms: Mapping[str, float]) -> dict[str, float]:
    """Each as a share of the largest finite one; infinite ones count as 1."""
    largest = max((norm for norm in norms.values() if 0 < norm < math.inf), default=1.0)
    return {name: min(1.0, norm / largest) for name, norm in norms.items()}


def train_all(population: Population, run: Replicate, factor: float) -> Member:
    """Trains everything, blocks with their learning rate times `factor`; the population has a recipe from `Recipe.scalable`.

    A mask may win by nothing but that it holds back what too high a learning rate would spoil. This shows it.
    """
    member = population.begin(run)
    (member,) = population.resume([scale_learning_rates(member, dict.fromkeys(population.network.names, factor))], run)
    return member


def scale_learning_rates(member: Member, factors: Mapping[str, float]) -> Member:
    """The member with the learning rates of blocks, by name, multiplied."""
    state = dict(member.state or {})
    for name, factor in factors.items():
        state[name] = optax.tree.set(state[name], step_size=jnp.float32(factor))
    return member._replace(state=state)


def _ends(num_steps: int, num_phases: int) -> list[int]:
    """The steps after which phases of equal length end; fewer phases, if there are fewer steps."""
    ends = np.unique(np.round(num_steps * np.arange(1, num_phases + 1) / num_phases).astype(int)).tolist()
    return [end for end in ends if end > 0]


def _on_host(member: Member) -> Member:
    """Its parameters in the host's memory; JAX keeps one copy there of the frozen ones, which all members share."""
    return member._replace(params={name: jax.device_get(member.params[name]) for name in member.params})
