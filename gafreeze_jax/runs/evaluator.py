"""Trains and scores the members that a search asks for, and recalls those that the journal has already."""

import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, TypeVar

import numpy as np

from gafreeze_jax.engine.cohort import Member, Replicate, untrained
from gafreeze_jax.engine.population import Population
from gafreeze_jax.search.history import Journal, Ledger
from gafreeze_jax.search.loop import Evaluator, evaluation_of
from gafreeze_jax.space import Genome, as_genome

M = TypeVar("M", bound="Member | Recalled")


class Recalled(NamedTuple):
    """A member as the journal has it: its scores, without parameters."""

    genome: Genome
    train_loss: float
    score: float
    loss: float
    steps: int
    seconds: float


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

    Evaluations in the journal, of an interrupted search or an earlier one, are not trained again. If a member of which only
    the scores are left is to train on, it is first trained again as it was, and in the same cohort, as rounding depends on
    that.

    Args:
      make_replicate: what a seed decides.
    """

    def __init__(self, population: Population, make_replicate: Callable[[int], Replicate], journal: Journal | None = None):
        self.population, self.make_replicate = population, make_replicate
        self.journal = Journal() if journal is None else journal

    def evaluate(self, genomes: np.ndarray, seed: int, until: int) -> Iterator[Sequence[Member | Recalled]]:
        known, unknown = self._split(untrained(genomes), seed, until)
        return itertools.chain([known] if known else [], self.population.advance(unknown, self.make_replicate(seed), until))

    def resume(self, members: Sequence[Member | Recalled], seed: int, until: int) -> Iterator[Sequence[Member | Recalled]]:
        known, unknown = self._split(members, seed, until)
        lost = [member.genome for member in unknown if isinstance(member, Recalled)]
        trained = [member for member in unknown if isinstance(member, Member)]
        again = self._train_again(lost, seed, members[0].steps)
        trained += [again[genome] for genome in lost]
        return itertools.chain([known] if known else [], self.population.advance(trained, self.make_replicate(seed), until))

    def _split(self, members: Sequence[M], seed: int, until: int) -> tuple[list[Recalled], list[M]]:
        """Members whose scores after a step are known, and the others."""
        known, unknown = [], []
        for member in members:
            recorded = self.journal.recall(member.genome, seed, until)
            if recorded is None:
                unknown.append(member)
            else:
                known.append(
                    Recalled(
                        genome=member.genome,
                        train_loss=recorded.train_loss,
                        score=recorded.score,
                        loss=recorded.loss,
                        steps=until,
                        seconds=recorded.seconds,
                    )
                )
        return known, unknown

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
