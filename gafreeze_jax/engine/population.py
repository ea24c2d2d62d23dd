"""Trains and scores the members of a population: one fine-tuning run per genome.

Every member starts from the same pretrained parameters and sees the same batches, the same initial head and the same
dropout (common random numbers), so members differ by their genomes alone. Up to its depth, its lowest trainable block, a
member computes what every other member computes there: these activations are kept, and a member starts at its depth. A
`Plan` says how many members are stacked in a cohort and mapped by `jax.vmap`, whether Python dispatches the work block by
block or many steps at a time, and how many cohorts run side by side. With several devices (`devices.over_all_devices`) each
has its share of a cohort's members, or, where there are more devices than members, of their batches.
"""

import copy
import functools
import itertools
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Sequence

import jax
import numpy as np

from gafreeze_jax.engine import devices
from gafreeze_jax.engine.cache import Activations, Budget, default_budget
from gafreeze_jax.engine.cohort import (
    BLOCK_BY_BLOCK,
    Cohort,
    Genomes,
    Member,
    Plan,
    Replicate,
    make_cohorts,
    side_by_side,
    sorted_members,
    untrained,
)
from gafreeze_jax.engine.network import Loss, Network, PyTree, Source
from gafreeze_jax.engine.optimizer import Recipe
from gafreeze_jax.engine.scoring import MemberParams, Scores, score_members
from gafreeze_jax.engine.trainer import CohortTrainer, member_trees
from gafreeze_jax.metrics import Metric
from gafreeze_jax.space import Space


def ran_out_of_memory(error: Exception) -> bool:
    """Whether XLA reports that memory ran out."""
    return "RESOURCE_EXHAUSTED" in str(error)


class Population:
    """Trains and scores genomes of one network on one task.

    Args:
      network: G blocks and a head.
      params: pretrained parameters {block name: ...} (a head in it is not used).
      recipe: how to train.
      train: the training set; its batches serve to compute activations.
      validation: the set that scores members.
      loss: of each example; members minimize its mean.
      metric: the members' score on the validation set.
      plan: how the work is cut; `planning.choose` finds a good one.
      budget: for the data sets and their activations, half of it for each.
      space: of the genomes; default: the blocks are frozen or not.
      on_steps: called with the number of member-steps trained since the last call; by one thread at a time.
    """

    def __init__(
        self,
        network: Network,
        params: PyTree,
        recipe: Recipe,
        train: Source,
        validation: Source,
        *,
        loss: Loss,
        metric: Metric,
        plan: Plan = BLOCK_BY_BLOCK,
        budget: Budget | None = None,
        space: Space | None = None,
        on_steps: Callable[[int], None] = lambda member_steps: None,
    ):
        self.network, self.metric, self.plan, self.space = network, metric, plan, space or Space(network.names)
        self._on_steps, self._counting = on_steps, threading.Lock()
        pretrained = devices.spread({block.name: params[block.name] for block in network.blocks})
        budget = Budget(*(num_bytes // 2 for num_bytes in budget or default_budget()))
        self.trainer = CohortTrainer(
            network, recipe, loss, pretrained=pretrained, activations=Activations(network, pretrained, train, budget)
        )
        self._validation = Activations(network, pretrained, validation, budget)

    @property
    def params(self) -> PyTree:
        """Pretrained parameters of the blocks, in their order, on the device."""
        return {name: self.trainer.pretrained[name] for name in self.network.names}

    @property
    def recipe(self) -> Recipe:
        return self.trainer.recipe

    def evaluate(self, genomes: Genomes, replicate: Replicate, until: int | None = None) -> Iterator[Member]:
        """Trains and scores genomes [P, K]; members come as they are ready, in an order of their own.

        A cohort that runs out of memory is halved and tried again, with a warning; `plan` then has fewer members, and at last
        `remat`.

        Args:
          until: the step to stop after, where `resume` continues; None = all steps of the replicate.

        Raises:
          ValueError: if no step is left.
          MemoryError: if a single member does not fit, not even with its blocks recomputed in the backward pass.
        """
        return itertools.chain.from_iterable(self.advance(untrained(genomes), replicate, until))

    def resume(self, members: Sequence[Member], replicate: Replicate, until: int | None = None) -> Iterator[Member]:
        """Trains members further that `evaluate` or `resume` stopped after the same step of the same replicate; see there.

        A member ends as if it had not been stopped. A member that was given another genome, or rates, continues with these:
        blocks that it did not train before start as they were pretrained.

        Raises:
          ValueError: if the members did not stop after the same step, or if no step is left.
        """
        return itertools.chain.from_iterable(self.advance(members, replicate, until))

    def one_by_one(self) -> "Population":
        """The same for members that are trained alone; data and activations are shared."""
        other = copy.copy(self)
        other.plan = self.plan._replace(members=1)
        return other

    def begin(self, replicate: Replicate) -> Member:
        """A member that trains everything, before its first step; `resume` trains it."""
        (member,) = untrained([self.space.all_trained])
        params, state = self.trainer.start(self._alone(member), replicate)
        return member._replace(params=params, state=state)

    def relative_gradient_norms(self, member: Member, replicate: Replicate, until: int) -> dict[str, float]:
        """||gradients|| / ||parameters|| of each block that a member trains; see `CohortTrainer.relative_gradient_norms`."""
        return self.trainer.relative_gradient_norms(self._alone(member), replicate, until)

    def _alone(self, member: Member) -> Cohort:
        (cohort,) = make_cohorts(Plan(remat=self.plan.remat), self.space, [member])
        return cohort

    def advance(self, members: Sequence[Member], replicate: Replicate, until: int | None = None) -> Iterator[Sequence[Member]]:
        """What `evaluate` does with untrained members, and `resume` with others; members of a cohort come together."""
        until = replicate.num_steps if until is None else min(until, replicate.num_steps)
        ended = [member for member in members if member.steps >= until or (member.steps and member.state is None)]
        if ended or len({member.steps for member in members}) > 1:
            steps = ", ".join(str(member.steps) for member in members)
            raise ValueError(f"expected members that stopped after the same step, before step {until}; got {steps} steps")
        return self._advance(sorted_members(members, self.space), replicate, until)

    def _advance(self, waiting: Sequence[Member], replicate: Replicate, until: int) -> Iterator[Sequence[Member]]:
        train_and_score = functools.partial(self._train_and_score, replicate=replicate, until=until)
        while waiting:
            cohorts = make_cohorts(self.plan, self.space, waiting)
            for activations in (self.trainer.activations, self._validation):
                activations.expect(cohort.depth for cohort in cohorts)
            try:
                for done in side_by_side(train_and_score, cohorts, self.plan.calls):
                    yield done
                    waiting = waiting[len(done) :]
            except jax.errors.JaxRuntimeError as error:
                if not ran_out_of_memory(error):
                    raise
                self._take_fewer_members(error)

    def _train_and_score(self, cohort: Cohort, replicate: Replicate, until: int) -> list[Member]:
        clock = time.perf_counter()
        trained, losses = self.trainer.fit(
            cohort,
            replicate,
            self.trainer.start(cohort, replicate, self.plan.steps),
            until=until,
            steps=self.plan.steps,
            on_steps=self._count,
        )
        train_losses = devices.gather(losses).astype(np.float64).reshape(-1)
        values, validation_losses = self._score(cohort, trained.params)
        of_members = np.stack(
            np.broadcast_arrays(train_losses, self.metric.score(values), validation_losses.mean(-1, dtype=np.float64))
        )
        num = max(cohort.size, len(cohort.members))
        scores = np.broadcast_to(of_members, (3, num))  # alike, if nothing is trained
        values = np.broadcast_to(values, (num, *values.shape[1:]))
        seconds = (time.perf_counter() - clock) / (len(cohort.members) * self.plan.calls)
        pick = functools.partial(member_trees, cohort, all_at_once=self.plan.steps > 0)
        return [
            member._replace(
                params=pick(i, trained.params, self.params),
                train_loss=float(member.train_loss * member.steps + train_loss) / until,
                score=float(score),
                loss=float(loss),
                steps=until,
                seconds=seconds,
                state=pick(i, trained.state, {}) if until < replicate.num_steps else None,
                values=values[i],
            )
            for i, (member, (train_loss, score, loss)) in enumerate(zip(cohort.members, scores.T, strict=False))
        ]

    def _score(self, cohort: Cohort, params: PyTree) -> Scores:
        """Of a cohort's members on the validation set."""
        stacked = frozenset() if cohort.axis is None else frozenset(params)
        members = MemberParams(self.trainer.pretrained | params, stacked, cohort.depth)
        return score_members(
            self.network,
            members,
            self._validation,
            loss=self.trainer.loss,
            metric=self.metric,
            scan=self.plan.steps > 0,
        )

    def _count(self, member_steps: int) -> None:
        with self._counting:
            self._on_steps(member_steps)

    def _take_fewer_members(self, error: Exception) -> None:
        self.trainer.activations.clear()
        self._validation.clear()
        members, calls = self.plan.members, self.plan.calls
        fewest = members <= devices.num_shards() and calls == 1
        if fewest and self.plan.remat:
            raise MemoryError(
                "A single member does not fit the device's memory: give smaller batches, or slices of them by --micro-batch, "
                "shorter inputs or a smaller model"
            ) from error
        if jax.process_count() > 1:  # another process may not have run out of memory
            advice = "give --remat" if fewest else "give fewer by --plan"
            raise MemoryError(f"{members} members at a time do not fit the devices' memory: {advice}") from error
        if fewest:
            self.plan = self.plan._replace(remat=True)
        else:
            self.plan = self.plan._replace(calls=1, members=max(1, members // 2) if calls == 1 else members)
        again = ", recomputing blocks in the backward pass" if self.plan.remat else ""
        warnings.warn(f"Out of memory: continuing with {self.plan.members} members at a time{again}", stacklevel=3)
