"""Finalists: leaders and baselines are trained again with fresh seeds, and validation names the winner among the leaders.

The best of many noisy validation scores is too good by construction. So training with seeds that the search has not used, the
same for all finalists, has the last word: on the validation split it names the winner, and on the test split, which is opened
then, it says what the winner is worth.
"""

import functools
import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from gafreeze_jax.engine import costs
from gafreeze_jax.engine.cohort import Member, Replicate, side_by_side, untrained
from gafreeze_jax.engine.population import Population
from gafreeze_jax.runs.baselines import Baseline
from gafreeze_jax.runs.finalist_store import FinalistStore
from gafreeze_jax.search.history import Evaluation
from gafreeze_jax.space import Genome, Space

Record = Callable[[Sequence[Member], int], None]


class Finalist(NamedTuple):
    """A mask, or another way to fine-tune, trained with S fresh seeds.

    Attributes:
      name: such as "train all".
      genome: for a schedule, that of its end.
      members: S of them.
      flops: of a training run.
      is_mask: whether the genome alone says how it was trained.
      learning_rate_factor: of all blocks.
      rate: of all genes, that was chosen for it.
    """

    name: str
    genome: Genome
    members: tuple[Member, ...]
    flops: float
    is_mask: bool = True
    learning_rate_factor: float = 1.0
    rate: float = 1.0

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
    return (member.score, member.loss) if math.isfinite(member.loss) else (-math.inf, math.inf)


def _rank(member: Member) -> tuple[float, float]:
    score, loss = _validation_of(member)
    return score, -loss


class Result(NamedTuple):
    """What a search has found, trained with fresh seeds.

    Attributes:
      found: the winner among the search's leaders.
      baselines: in the order of `baselines.BASELINES`, with the best random mask after the other masks.
      evaluations: all, in order.
      facts: about the search and how members were trained, for `result.json`.
      space: of the genomes.
    """

    found: Finalist
    baselines: list[Finalist]
    evaluations: Sequence[Evaluation]
    facts: dict[str, Any]
    space: Space


class Retraining:
    """Trains genomes and schedules with fresh seeds, or finds them in a store.

    Args:
      make_replicate: what a seed decides.
      seeds: fresh ones.
      tuning_seed: of the search, with which variants of a schedule are compared on validation data.
      store: members that were trained before an interruption, and then all.
      record: called with members that were trained together, and their seed.
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
    ):
        self.population, self.make_replicate, self.seeds, self.tuning_seed = population, make_replicate, seeds, tuning_seed
        self.num_epochs, self.store, self.record = num_epochs, store, record
        replicate = make_replicate(seeds[0])
        self.num_steps = replicate.num_steps
        self.flops = functools.cache(lambda genome: self.num_steps * costs.flops_per_step(population, genome, replicate))

    def train_genomes(self, genomes: Sequence[Genome]) -> dict[Genome, tuple[Member, ...]]:
        """A member for each seed of each genome."""
        by_seed = [self._train_genomes(genomes, seed) for seed in self.seeds]
        return {genome: tuple(members[genome] for members in by_seed) for genome in genomes}

    def _train_genomes(self, genomes: Sequence[Genome], seed: int) -> dict[Genome, Member]:
        stored = {genome: self._find("mask", seed, genome) for genome in genomes}
        members = {genome: member for genome, member in stored.items() if member is not None}
        self.record(list(members.values()), seed)
        missing = [genome for genome in genomes if genome not in members]
        for cohort in self.population.advance(untrained(missing), self.make_replicate(seed)):
            ready = self._keep("mask", seed, cohort)
            self.record(ready, seed)
            members |= {member.genome: member for member in ready}
        return members

    def train_schedule(self, baseline: Baseline) -> Finalist:
        """A baseline that is no genome, in the variant and at the rate that do best on validation data."""
        space = self.population.space
        variants = list(itertools.product(baseline.schedules or {}, space.rates))
        chosen = variants[0] if len(variants) == 1 else max(variants, key=functools.partial(self._try, baseline))
        return Finalist(
            name=f"{baseline.name} {chosen[0]}".strip(),
            genome=space.all_trained,
            members=tuple(self._train_variant(baseline, chosen, self.seeds)),
            flops=baseline.flops(space, self.flops, self.num_steps, self.num_epochs),
            is_mask=False,
            learning_rate_factor=baseline.learning_rate_factor,
            rate=chosen[1],
        )

    def _try(self, baseline: Baseline, variant: tuple[str, float]) -> tuple[float, float]:
        (member,) = self._train_variant(baseline, variant, [self.tuning_seed])
        return _rank(member)

    def _train_variant(self, baseline: Baseline, variant: tuple[str, float], seeds: Sequence[int]) -> list[Member]:
        """A member for each seed."""
        (name, rate), space = variant, self.population.space
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


def retrain(
    retraining: Retraining, leaders: Sequence[Genome], masks: Mapping[str, Genome], schedules: Sequence[Baseline]
) -> tuple[Finalist, list[Finalist]]:
    """Trains leaders and baselines with fresh seeds, and names the leader that is fittest on the validation split.

    Args:
      leaders: the most promising genomes, the best first.
      masks: name and genome of each baseline that is a genome.
      schedules: the other baselines.

    Returns:
      The winner, named "found", and the baselines.
    """
    members = retraining.train_genomes(list(dict.fromkeys([*leaders, *masks.values()])))
    others = [retraining.train_schedule(baseline) for baseline in schedules]
    retraining.store.close()

    def finalist(name: str, genome: Genome) -> Finalist:
        rate = retraining.population.space.rate(genome)
        return Finalist(name, genome, members[genome], retraining.flops(genome), rate=rate)

    found = max((finalist("found", genome) for genome in leaders), key=_rank_of_finalist)
    return found, [*(finalist(name, genome) for name, genome in masks.items()), *others]


def _rank_of_finalist(finalist: Finalist) -> tuple[float, float]:
    score, loss = finalist.validation
    return score, -loss


def _on_host(member: Member) -> Member:
    """Its parameters in the host's memory; JAX keeps one copy there of the frozen ones, which all members share."""
    return member._replace(params={name: jax.device_get(member.params[name]) for name in member.params})
