"""Finalists: candidates and baselines are trained again with fresh seeds, and validation names the best of the candidates.

The best of many noisy validation scores is too good by construction. So training with seeds that the search has not used, the
same for all finalists, has the last word: on the validation split it names the winner, and on the test split, which is opened
then, it says what the winner is worth. Finalists that are clearly worse drop out before that (see `racing`).
"""

import functools
import itertools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from gafreeze_jax.engine import costs
from gafreeze_jax.engine.cohort import Member, Replicate, side_by_side, untrained
from gafreeze_jax.engine.population import Population
from gafreeze_jax.intervals import Interval
from gafreeze_jax.runs import racing
from gafreeze_jax.runs.baselines import TRAIN_ALL, Baseline, ablations
from gafreeze_jax.runs.finalist_store import FinalistStore
from gafreeze_jax.search.history import Evaluation
from gafreeze_jax.space import Genome, Space

Record = Callable[[Sequence[Member], int], None]
FOUND = "found"


class Variant(NamedTuple):
    """One of a baseline's schedules, at a rate of all genes."""

    baseline: Baseline
    name: str
    rate: float


class Finalist(NamedTuple):
    """A mask, or another way to fine-tune, trained with fresh seeds.

    Attributes:
      name: such as "train all".
      genome: for a schedule, that of its end.
      flops: of a training run.
      members: one for each seed so far.
      schedule: how it is trained; None = as the genome says.
      is_ablation: whether it is the found mask without something, and no baseline.
      rate: of all genes, that was chosen for it.
      behind: by how much its validation score is lower than the found mask's, if it clearly is and so dropped out.
      is_needed: whether the verdict depends on it; if not, it dropped out, too.
    """

    name: str
    genome: Genome
    flops: float
    members: tuple[Member, ...] = ()
    schedule: Variant | None = None
    is_ablation: bool = False
    rate: float = 1.0
    behind: Interval | None = None
    is_needed: bool = True

    @property
    def is_in(self) -> bool:
        """Whether it has not dropped out."""
        return self.is_needed and self.behind is None

    @property
    def is_mask(self) -> bool:
        """Whether the genome alone says how it is trained."""
        return self.schedule is None

    @property
    def learning_rate_factor(self) -> float:
        """Of all blocks."""
        return 1.0 if self.schedule is None else self.schedule.baseline.learning_rate_factor

    @property
    def validation(self) -> tuple[float, float]:
        """Mean score and mean loss on the validation split; those of a diverged member are the worst."""
        score, loss = np.mean(list(map(_validation_of, self.members)), axis=0).tolist()
        return score, loss

    @property
    def best(self) -> Member:
        """The member with the highest validation score; ties go to the lower loss."""
        return max(self.members, key=_rank)


def _validation_of(member: Member) -> tuple[float, float]:
    diverged = math.isnan(member.score) or not math.isfinite(member.loss)
    return (-math.inf, math.inf) if diverged else (member.score, member.loss)


def _rank(member: Member) -> tuple[float, float]:
    score, loss = _validation_of(member)
    return score, -loss


class Result(NamedTuple):
    """What a search has found, trained with fresh seeds.

    Attributes:
      found: the winner among the search's leaders and its fittest prefix mask, suffix mask and so on.
      baselines: in the order of `baselines.BASELINES`, with the best random mask after the other masks.
      evaluations: all, in order.
      facts: about the search and how members were trained, for `result.json`.
      space: of the genomes.
      dropped: those that dropped out.
    """

    found: Finalist
    baselines: list[Finalist]
    evaluations: Sequence[Evaluation]
    facts: dict[str, Any]
    space: Space
    dropped: Sequence[Finalist] = ()

    @property
    def members(self) -> list[Member]:
        """Those of the finalists that have not dropped out."""
        return [member for finalist in (self.found, *self.baselines) for member in finalist.members]


class Retraining:
    """Trains genomes and schedules with fresh seeds, or finds them in a store.

    Args:
      make_replicate: what a seed decides.
      seeds: fresh ones.
      tuning_seed: of the search, with which variants of a schedule are compared on validation data.
      store: members that were trained before an interruption, and then all.
      record: called with members that were trained together, and their seed.
      rows: that validation examples belong to, as in `Source`.
      is_thorough: whether finalists that the verdict does not need are trained with all seeds, too.
      on_race: called with the finalists after the first seeds.
    """

    def __init__(
        self,
        population: Population,
        make_replicate: Callable[[int], Replicate],
        seeds: Sequence[int],
        *,
        tuning_seed: int,
        num_epochs: int,
        store: FinalistStore,
        record: Record = lambda members, seed: None,
        rows: np.ndarray | None = None,
        is_thorough: bool = False,
        on_race: Callable[[Sequence[Finalist]], None] = lambda finalists: None,
    ):
        self.population, self.make_replicate, self.seeds, self.tuning_seed = population, make_replicate, seeds, tuning_seed
        self.num_epochs, self.store, self.record = num_epochs, store, record
        self.rows, self.is_thorough, self.on_race = rows, is_thorough, on_race
        self._trained: dict[tuple[int, Genome], Member] = {}
        replicate = make_replicate(seeds[0])
        self.num_steps = replicate.num_steps
        self.flops = functools.cache(lambda genome: self.num_steps * costs.flops_per_step(population, genome, replicate))

    def mask(self, name: str, genome: Genome, *, is_ablation: bool = False) -> Finalist:
        """A genome, before training."""
        rate = self.population.space.rate(genome)
        return Finalist(name, genome, self.flops(genome), is_ablation=is_ablation, rate=rate)

    def schedule(self, baseline: Baseline) -> Finalist:
        """A baseline that is no genome, before training, in the variant and at the rate that do best on validation data."""
        space = self.population.space
        variants = [Variant(baseline, *chosen) for chosen in itertools.product(baseline.schedules or {}, space.rates)]
        chosen = variants[0] if len(variants) == 1 else max(variants, key=self._try)
        return Finalist(
            name=f"{baseline.name} {chosen.name}".strip(),
            genome=space.all_trained,
            flops=baseline.flops(space, self.flops, self.num_steps, self.num_epochs),
            schedule=chosen,
            rate=chosen.rate,
        )

    def train(self, finalists: Sequence[Finalist], num_seeds: int) -> list[Finalist]:
        """The finalists, of which those still in have been trained with the first `num_seeds` seeds."""
        waiting = [finalist for finalist in finalists if finalist.is_in and len(finalist.members) < num_seeds]
        if not waiting:
            return list(finalists)
        seeds = self.seeds[len(waiting[0].members) : num_seeds]
        genomes = list(dict.fromkeys(finalist.genome for finalist in waiting if finalist.schedule is None))
        by_seed = [self._train_genomes(genomes, seed) for seed in seeds] if genomes else []

        def with_members(finalist: Finalist) -> Finalist:
            if not any(finalist is other for other in waiting):
                return finalist
            if finalist.schedule is None:
                members = [of_seed[finalist.genome] for of_seed in by_seed]
            else:
                members = self._train_variant(finalist.schedule, seeds)
            return finalist._replace(members=(*finalist.members, *members))

        return list(map(with_members, finalists))

    def _train_genomes(self, genomes: Sequence[Genome], seed: int) -> dict[Genome, Member]:
        members = {genome: self._trained[seed, genome] for genome in genomes if (seed, genome) in self._trained}
        found = {genome: self._find("mask", seed, genome) for genome in genomes if genome not in members}
        stored = {genome: member for genome, member in found.items() if member is not None}
        self.record(list(stored.values()), seed)
        members |= stored
        missing = [genome for genome in genomes if genome not in members]
        for cohort in self.population.advance(untrained(missing), self.make_replicate(seed)):
            ready = self._keep("mask", seed, cohort)
            self.record(ready, seed)
            members |= {member.genome: member for member in ready}
        self._trained |= {(seed, genome): member for genome, member in members.items()}
        return members

    def _try(self, variant: Variant) -> tuple[float, float]:
        (member,) = self._train_variant(variant, [self.tuning_seed])
        return _rank(member)

    def _train_variant(self, variant: Variant, seeds: Sequence[int]) -> list[Member]:
        """A member for each seed."""
        (baseline, name, rate), space = variant, self.population.space
        kind = " ".join(filter(None, [baseline.name, name, f"{rate:g}" if space.has_rate else ""]))
        stored = {seed: self._find(kind, seed, space.all_trained) for seed in seeds}
        members = {seed: member for seed, member in stored.items() if member is not None}
        missing = [seed for seed in seeds if seed not in members]
        schedule, population = (baseline.schedules or {})[name], self.population.one_by_one()

        def train_with(seed: int) -> Member:
            member = schedule(population, self.make_replicate(seed), self.num_epochs, rate)
            return member._replace(genome=space.all_trained, rates=None)

        trained = side_by_side(train_with, missing, self.population.plan.calls)  # a single one would leave cores idle
        for seed, member in zip(missing, trained, strict=True):
            (members[seed],) = self._keep(kind, seed, [member])
        return [members[seed] for seed in seeds]

    def _find(self, kind: str, seed: int, genome: Genome) -> Member | None:
        initial = self.population.params | {"head": self.make_replicate(seed).head}
        return self.store.find(f"{kind}-{seed}", genome, initial)

    def _keep(self, kind: str, seed: int, members: Sequence[Member]) -> list[Member]:
        ready = [_on_host(member) for member in members]
        self.store.keep(f"{kind}-{seed}", ready)
        return ready


def candidates(space: Space, leaders: Iterable[Genome], kinds: Iterable[Genome]) -> list[Genome]:
    """A search's leaders, and the fittest of each kind of mask: a single seed does not decide between them.

    Args:
      kinds: of which those count that freeze something, and train something.
    """
    mixed = (genome for genome in kinds if 0 < sum(space.frozen(genome)) < space.num_genes)
    return list(dict.fromkeys([*leaders, *mixed]))


def retrain(
    retraining: Retraining, genomes: Sequence[Genome], masks: Mapping[str, Genome], schedules: Sequence[Baseline]
) -> tuple[Finalist, list[Finalist]]:
    """Trains genomes and baselines with fresh seeds, and names the genome that is fittest on the validation split.

    All train with the first seeds. The two fittest genomes then train with the others as well, unless one is clearly worse, and
    the fitter one with all seeds wins. Of the rest those train with all seeds that are not clearly worse than the winner.

    Args:
      genomes: the candidates, the most promising first; baselines may be among them.
      masks: name and genome of each baseline that is a genome.
      schedules: the other baselines.

    Returns:
      The winner, named "found", the baselines, and what the winner is without its rates or without what it freezes.
    """
    first = min(racing.FIRST_SEEDS, len(retraining.seeds))
    contenders = [retraining.mask(FOUND, genome) for genome in genomes]
    baselines = [retraining.mask(name, genome) for name, genome in masks.items()]
    started = retraining.train([*contenders, *baselines, *map(retraining.schedule, schedules)], first)
    contenders, rivals = started[: len(contenders)], started[len(contenders) :]
    found = _winner(retraining, contenders, rivals)
    without = ablations(retraining.population.space, found.genome)
    parts = [retraining.mask(name, genome, is_ablation=True) for name, genome in without.items()]
    finalists = [found, *rivals, *retraining.train(parts, first)]
    if len(retraining.seeds) > first:
        finalists = _race(retraining, finalists)
        retraining.on_race(finalists)
    found, *others = retraining.train(finalists, len(retraining.seeds))
    retraining.store.close()
    return found, others


def _winner(retraining: Retraining, contenders: Sequence[Finalist], rivals: Sequence[Finalist]) -> Finalist:
    """The contender that is fittest with all seeds, of the two that are with the first seeds, if they are not clearly apart."""
    ranked = sorted(contenders, key=_rank_of_finalist, reverse=True)
    behind = _behind_first(retraining, [*ranked, *rivals])
    first_two = [contender for contender, gap in zip(ranked[:2], behind, strict=False) if gap is None]
    return max(retraining.train(first_two, len(retraining.seeds)), key=_rank_of_finalist)


def _behind_first(retraining: Retraining, finalists: Sequence[Finalist]) -> list[Interval | None]:
    """As `racing.race`, of the first seeds."""
    members = [finalist.members[: racing.FIRST_SEEDS] for finalist in finalists]
    return racing.race(members, retraining.population.metric, retraining.rows)


def _race(retraining: Retraining, finalists: Sequence[Finalist]) -> list[Finalist]:
    """Finalists, "found" first, after the first seeds: which of them drop out.

    Training everything never does, and not at another rate either where that is the better one, as a report's main number
    compares with it.
    """
    found = finalists[0]
    everything = max(filter(_trains_everything, finalists), key=_rank_of_finalist, default=None)

    def is_found(other: Finalist) -> bool:
        return other.is_mask and other.genome == found.genome

    is_known = any(map(is_found, finalists[1:]))  # the verdict: "the same mask"

    def decide(finalist: Finalist, behind: Interval | None) -> Finalist:
        if finalist.name == TRAIN_ALL.name or finalist is everything or is_found(finalist):
            return finalist
        is_needed = finalist.is_ablation or retraining.is_thorough or not is_known
        return finalist._replace(behind=behind, is_needed=is_needed)

    return list(map(decide, finalists, _behind_first(retraining, finalists)))


def _trains_everything(finalist: Finalist) -> bool:
    """Whether it is training everything, at any rate."""
    return finalist.name == TRAIN_ALL.name or finalist.learning_rate_factor != 1


def _rank_of_finalist(finalist: Finalist) -> tuple[float, float]:
    score, loss = finalist.validation
    return score, -loss


def _on_host(member: Member) -> Member:
    """Its parameters in the host's memory; JAX keeps one copy there of the frozen ones, which all members share."""
    return member._replace(params={name: jax.device_get(member.params[name]) for name in member.params})
