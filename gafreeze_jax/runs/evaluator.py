"""Trains and scores the members that a search asks for, and recalls those that the journal has already."""

import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

import numpy as np

from gafreeze_jax.engine.cohort import Member, Replicate, untrained
from gafreeze_jax.engine.population import Population
from gafreeze_jax.search.history import Evaluation, Journal, Ledger
from gafreeze_jax.search.loop import Evaluator, evaluation_of
from gafreeze_jax.space import Genome, as_genome

M = TypeVar("M", bound=Member | Evaluation)


def train_and_name_fittest(
    evaluator: Evaluator[Any], ledger: Ledger, seed: int, count_trainable: Callable[[Genome], int], genomes: np.ndarray
) -> Genome:
    """Trains the genomes [N, K] that a ledger has not, to the end, and names the fittest of all given."""
    number = 1 + max((evaluation.generation for evaluation in ledger), default=0)
    for members in evaluator.evaluate(ledger.unseen(genomes), seed, ledger.num_steps):
        ledger.add(*(evaluation_of(member, seed, ledger.num_steps, number, count_trainable) for member in members))
    return max(map(as_genome, genomes), key=ledger.fitness)


class JournaledEvaluator:
    """Trains and scores members of a population, as `search.loop.Search` asks for it.

    Evaluations in the journal, of an interrupted search or an earlier one, are not trained again, and take the members' place.
    One that is to train on is first trained again, in the same cohort as before, as rounding depends on that.

    Args:
      make_replicate: what a seed decides.
    """

    def __init__(self, population: Population, make_replicate: Callable[[int], Replicate], journal: Journal):
        self.population, self.make_replicate, self.journal = population, make_replicate, journal

    def evaluate(self, genomes: np.ndarray, seed: int, until: int) -> Iterator[Sequence[Member | Evaluation]]:
        known, unknown = self._split(untrained(genomes), seed, until)
        return itertools.chain([known] if known else [], self.population.advance(unknown, self.make_replicate(seed), until))

    def resume(self, members: Sequence[Member | Evaluation], seed: int, until: int) -> Iterator[Sequence[Member | Evaluation]]:
        known, unknown = self._split(members, seed, until)
        lost = [member.genome for member in unknown if isinstance(member, Evaluation)]
        trained = [member for member in unknown if isinstance(member, Member)]
        again = self._train_again(lost, seed, members[0].steps)
        trained += [again[genome] for genome in lost]
        return itertools.chain([known] if known else [], self.population.advance(trained, self.make_replicate(seed), until))

    def _split(self, members: Sequence[M], seed: int, until: int) -> tuple[list[Evaluation], list[M]]:
        """What is known of members after a step, and the members of which nothing is."""
        recorded = [self.journal.recall(member.genome, seed, until) for member in members]
        known = [evaluation for evaluation in recorded if evaluation is not None]
        return known, [member for member, evaluation in zip(members, recorded, strict=True) if evaluation is None]

    def _train_again(self, genomes: Sequence[Genome], seed: int, steps: int) -> dict[Genome, Member]:
        """Members as they were after so many steps, by genome, with those that were trained in the same cohorts."""
        members: dict[Genome, Member] = {}
        for genome in genomes:
            if genome in members:
                continue
            together = self.journal.together(genome, seed, steps)
            if before := self.journal.before(genome, seed, steps):
                earlier = self._train_again(together, seed, before)
                start = [earlier[other] for other in together]
            else:
                start = untrained(together)
            for cohort in self.population.advance(start, self.make_replicate(seed), steps):
                members |= {member.genome: member for member in cohort}
        return members
