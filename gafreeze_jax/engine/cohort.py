"""Members of a population, and how they are grouped into cohorts that train in one call."""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Literal, NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import Array

from gafreeze_jax.engine import devices
from gafreeze_jax.engine.network import Axis, Batch, PyTree, lowest_trainable
from gafreeze_jax.space import Genome, Space, as_genome

Genomes = Sequence[Genome] | np.ndarray  # [P, K]


class Replicate(NamedTuple):
    """What a seed decides, the same for all members.

    Attributes:
      head: initial parameters of the head.
      batches: the training steps, with a leading axis.
      key: for dropout.
    """

    head: PyTree
    batches: Batch
    key: Array

    @property
    def num_steps(self) -> int:
        return len(self.batches.examples)


class Member(NamedTuple):
    """A genome, trained and scored.

    Attributes:
      params: the network's parameters; frozen ones are the pretrained arrays themselves. With several devices it is a mapping
        that fetches a tree when asked for it (`devices.Slot`).
      train_loss: mean over the training steps.
      score: the metric on the validation split; higher is better.
      loss: on the validation split, mean over examples; not finite if the member diverged.
      steps: trained so far.
      seconds: of training since the last score, and of scoring; a share of them where cohorts ran at the same time.
      state: of the optimizers of what it trains, {block name: ...}; None once all steps are done.
      rates: by what the updates of each of the G genes are multiplied, 0 = frozen; None = as the genome says.
      values: [E] or [K, E] of the metric, of the validation examples; empty before the first score.
    """

    genome: Genome
    params: Mapping[str, PyTree]
    train_loss: float
    score: float
    loss: float
    steps: int
    seconds: float = 0.0
    state: PyTree | None = None
    rates: tuple[float, ...] | None = None
    values: np.ndarray = np.empty(0)


def untrained(genomes: Genomes) -> list[Member]:
    """Members with genomes [P, K] before their first step."""
    return [Member(as_genome(genome), {}, train_loss=0.0, score=0.0, loss=0.0, steps=0) for genome in genomes]


class Plan(NamedTuple):
    """How the work is cut. All plans train alike.

    Attributes:
      members: stacked in one cohort, over all devices; the same number on each, filled up with copies if need be.
      steps: of one compiled program, scanned; 0 = every block is a program of its own, which serves all masks.
      freezing: "static": blocks that all members of a cohort freeze are left out, and programs of whole steps are compiled for
        every mask. "traced": one program serves all masks; it does the work of training everything.
      calls: cohorts that run at the same time, each in a thread of its own. On a CPU, one uses the cores that
        another leaves idle between its operations.
      remat: whether each block is recomputed in the backward pass, so that of a step only the inputs of blocks are kept.
    """

    members: int = 1
    steps: int = 0
    freezing: Literal["static", "traced"] = "static"
    calls: int = 1
    remat: bool = False


BLOCK_BY_BLOCK = Plan()


class Cohort(NamedTuple):
    """Members that are trained together.

    Attributes:
      members: N of them, that stopped after the same step.
      size: number of members that are trained; those beyond N are copies, so that all cohorts have one shape, and all devices
        a share.
      masks: of each member, {block name: is it frozen?}.
      frozen: for each block, as in `backprop.value_and_grad`.
      trained: names of the blocks that are not frozen.
      gates: for blocks of which `frozen` is None: [size] bool, or scalars where there is no member axis.
      rates: for the trained blocks: by what updates are multiplied, [size] float32, or scalars; 0 where frozen. Empty where a
        space knows no rates but 0 and 1: not multiplying by 1 may round differently.
      remat: as in the plan.
    """

    members: Sequence[Member]
    size: int
    masks: Sequence[dict[str, bool]]
    frozen: tuple[bool | None, ...]
    trained: tuple[str, ...]
    gates: dict[str, Array]
    rates: dict[str, Array]
    remat: bool

    @property
    def axis(self) -> Axis:
        return None if self.size == 1 else 0

    @property
    def depth(self) -> int:
        """Of the lowest block that any member trains."""
        return lowest_trainable(self.frozen)

    @property
    def num_shards(self) -> int:
        """Number of devices that have members of their own."""
        return 1 if self.axis is None else devices.num_shards()


def sorted_members(members: Sequence[Member], space: Space) -> list[Member]:
    """Members by genome: deepest first, as they cost least, and then so that neighbours agree in many genes."""
    masks = rates_of(members, space) == 0
    return [members[i] for i in np.lexsort(masks.T[::-1])[::-1]] if members else []


def rates_of(members: Sequence[Member], space: Space) -> np.ndarray:
    """By what the updates of each gene are multiplied: [N, G] float32."""
    rates = [space.multipliers(member.genome) if member.rates is None else member.rates for member in members]
    return np.array(rates, np.float32).reshape(-1, space.num_genes)


def make_cohorts(plan: Plan, space: Space, members: Sequence[Member]) -> list[Cohort]:
    """Cuts members, in their order, into cohorts."""
    shards = devices.num_shards()
    size = 1 if plan.members == 1 else -(-plan.members // shards) * shards
    return [_make_cohort(plan, space, members[first : first + size], size) for first in range(0, len(members), size)]


def _make_cohort(plan: Plan, space: Space, members: Sequence[Member], size: int) -> Cohort:
    rates = rates_of(members, space)
    masks = rates == 0
    frozen: list[bool | None] = [True if gene.all() else None if gene.any() else False for gene in masks.T]
    if plan.freezing == "traced":
        frozen = [None] * len(frozen)
    trained = tuple(name for name, decided in zip(space.names, frozen, strict=True) if decided is not True)

    def of_blocks(values: np.ndarray, blocks: Collection[str]) -> dict[str, Array]:
        """Values [N, G] of some blocks."""
        filled = values[np.minimum(np.arange(size), len(values) - 1)]
        by_name = zip(space.names, filled.T, strict=True)
        return {name: jnp.asarray(gene if size > 1 else gene[0]) for name, gene in by_name if name in blocks}

    has_rates = set(space.levels) > {0.0, 1.0} or space.has_rate or any(member.rates is not None for member in members)
    gated = [name for name, decided in zip(space.names, frozen, strict=True) if decided is None]
    return Cohort(
        members=members,
        size=size if trained else 1,  # all members that train nothing but the head are the same
        masks=[dict(zip(space.names, mask.tolist(), strict=True)) for mask in masks],
        frozen=tuple(frozen),
        trained=trained,
        gates=of_blocks(masks, gated),
        rates=of_blocks(rates, trained if has_rates else ()),
        remat=plan.remat,
    )


def side_by_side(function: Callable[[Any], Any], items: Sequence[Any], num: int) -> Iterator[Any]:
    """What `function` gives for each item, in order; `num` at a time.

    Raises:
      ValueError: with several devices, unless `num` is 1.
    """
    if num > 1 and devices.are_many():
        raise ValueError(
            f"with several devices cohorts run one after the other, in the order of all processes; got calls={num}"
        )
    if num == 1:
        yield from map(function, items)
    else:
        with ThreadPoolExecutor(num) as pool:
            yield from pool.map(function, items)
