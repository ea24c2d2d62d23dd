"""Baselines: ways to fine-tune that need no search, which a found mask has to beat.

A baseline is one entry of `BASELINES`. It is a set of genomes, of which the search names the fittest; or a schedule, a function
that trains a member in a way that no single genome describes.
"""

import math
from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
import optax

from gafreeze_jax.engine.cohort import Member, Replicate
from gafreeze_jax.engine.population import Population
from gafreeze_jax.space import Genome, Space, as_genome

PHASES = 4  # of gradual unfreezing
MEASURED_STEPS = 5  # of each epoch, for relative gradient norms


class Baseline(NamedTuple):
    """A way to fine-tune that needs no search.

    Attributes:
      name: in tables, such as "train all".
      reference: where it comes from; "" for what needs none.
      genomes: `genomes(space)` returns [N, G]; of several the search names the fittest. None = `train` says it all.
      train: `train(population, replicate, num_epochs)` returns a member that has done all steps.
      cost: `cost(space, flops, num_steps, num_epochs)` returns the FLOPs of such a run, where `flops(genome)` are those of
        training with a genome. None = those of training everything.
      learning_rate_factor: of all blocks, where it trains everything at another rate; a report may advise it.
    """

    name: str
    reference: str = ""
    genomes: Callable[[Space], np.ndarray] | None = None
    train: Callable[[Population, Replicate, int], Member] | None = None
    cost: Callable[[Space, Callable[[Genome], float], int, int], float] | None = None
    learning_rate_factor: float = 1.0

    def flops(self, space: Space, flops: Callable[[Genome], float], num_steps: int, num_epochs: int) -> float:
        """FLOPs of a run, for a schedule."""
        return flops(space.all_trained) if self.cost is None else self.cost(space, flops, num_steps, num_epochs)


def all_trained(space: Space) -> np.ndarray:
    return space.stack([space.all_trained])


def all_frozen(space: Space) -> np.ndarray:
    return space.stack([space.all_frozen])


def inner_prefixes(space: Space) -> np.ndarray:
    """Prefix masks that freeze something, and train something."""
    return space.prefixes()[1:-1]


def phases(space: Space) -> np.ndarray:
    """Genomes of gradual unfreezing [4, G]: the head only, the upper third of the blocks as well, two thirds, everything."""
    num_frozen = np.round(space.num_genes * np.arange(PHASES - 1, -1, -1) / (PHASES - 1)).astype(int)
    return space.prefixes()[num_frozen]


def unfreeze_gradually(population: Population, replicate: Replicate, num_epochs: int = 0) -> Member:
    """Gradual unfreezing (Howard & Ruder 2018), from the head down, in four phases of equal length."""
    ends = phase_ends(replicate.num_steps, PHASES)
    first, *others = map(as_genome, phases(population.space)[-len(ends) :])
    (member,) = population.evaluate([first], replicate, ends[0])
    for genome, until in zip(others, ends[1:], strict=True):
        (member,) = population.resume([member._replace(genome=genome)], replicate, until)
    return member


def _cost_of_unfreezing(space: Space, flops: Callable[[Genome], float], num_steps: int, num_epochs: int) -> float:
    return float(np.mean([flops(as_genome(genome)) for genome in phases(space)]))


def auto_rgn(population: Population, replicate: Replicate, num_epochs: int) -> Member:
    """Auto-RGN (Lee et al. 2023): a block's learning rate is multiplied by its share of the largest relative gradient norm.

    That is ||gradients|| / ||parameters||, measured before each epoch, on its first five batches. As in the paper, except that
    - a block has one learning rate, not a tensor;
    - the head has its own learning rate, unscaled, and does not count for the largest norm. The paper's head had been trained
      before; a fresh head is small, its relative norm by far the largest, and nothing else would learn;
    - the optimizer's state and schedule continue over epochs, as for all other finalists; the authors' program restarts Adam.
    """
    population = population.with_recipe(population.recipe.scalable())
    member = population.begin(replicate)
    for until in phase_ends(replicate.num_steps, num_epochs):
        norms = population.relative_gradient_norms(member, replicate, min(member.steps + MEASURED_STEPS, until))
        (member,) = population.resume([scale_learning_rates(member, shares_of_largest(norms))], replicate, until)
    return member


def _cost_of_auto_rgn(space: Space, flops: Callable[[Genome], float], num_steps: int, num_epochs: int) -> float:
    lengths = np.diff([0, *phase_ends(num_steps, num_epochs)])
    return flops(space.all_trained) * (1 + np.minimum(lengths, MEASURED_STEPS).sum() / num_steps)


def shares_of_largest(norms: Mapping[str, float]) -> dict[str, float]:
    """Each norm as a share of the largest finite norm; infinite norms count as 1."""
    largest = max((norm for norm in norms.values() if 0 < norm < math.inf), default=1.0)
    return {name: min(1.0, norm / largest) for name, norm in norms.items()}


class TrainAll(NamedTuple):
    """Trains everything, the blocks at their learning rate times a factor, the head at its own rate.

    A mask may win only because it holds back what too high a learning rate would spoil. This shows it.
    """

    factor: float

    def __call__(self, population: Population, replicate: Replicate, num_epochs: int = 0) -> Member:
        population = population.with_recipe(population.recipe.scalable())
        member = population.begin(replicate)
        factors = dict.fromkeys(population.network.names, self.factor)
        (member,) = population.resume([scale_learning_rates(member, factors)], replicate)
        return member


def scale_learning_rates(member: Member, factors: Mapping[str, float]) -> Member:
    """The member with the learning rates of blocks, by name, multiplied; its recipe is from `Recipe.scalable`."""
    state = dict(member.state or {})
    for name, factor in factors.items():
        state[name] = optax.tree.set(state[name], step_size=jnp.float32(factor))
    return member._replace(state=state)


def phase_ends(num_steps: int, num_phases: int) -> list[int]:
    """The steps after which phases of equal length end; fewer phases, if there are fewer steps."""
    ends = np.unique(np.round(num_steps * np.arange(1, num_phases + 1) / num_phases).astype(int)).tolist()
    return [end for end in ends if end > 0]


TRAIN_ALL = Baseline("train all", genomes=all_trained)
HEAD_ONLY = Baseline("head only", genomes=all_frozen)
LOWER_RATES = tuple(
    Baseline(f"train all, {name} rate", train=TrainAll(factor), learning_rate_factor=factor)
    for name, factor in (("half", 1 / 2), ("quarter", 1 / 4))
)
BASELINES = (
    TRAIN_ALL,
    HEAD_ONLY,
    Baseline("best prefix mask", genomes=inner_prefixes),
    Baseline("gradual unfreezing", "Howard & Ruder 2018, arXiv:1801.06146", train=unfreeze_gradually, cost=_cost_of_unfreezing),
    Baseline("auto-RGN", "Lee et al. 2023, arXiv:2210.11466", train=auto_rgn, cost=_cost_of_auto_rgn),
    *LOWER_RATES,
)
