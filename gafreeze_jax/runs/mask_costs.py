"""What masks cost, and searches that weigh it: the constraint on FLOPs, the objectives of NSGA-II and its front."""

import functools
import math
from typing import Any

import numpy as np

from gafreeze_jax.engine import costs
from gafreeze_jax.engine.cohort import Replicate
from gafreeze_jax.engine.population import Population
from gafreeze_jax.metrics import Metric
from gafreeze_jax.search import nsga2
from gafreeze_jax.search.costs import StepFlops
from gafreeze_jax.search.history import Ledger
from gafreeze_jax.space import Genome


class MaskCosts:
    """What masks cost, counted when first asked for.

    Args:
      replicate: whose steps are counted.
    """

    def __init__(self, population: Population, replicate: Replicate):
        self.space, self._trained = population.space, (population, replicate)

    @functools.cached_property
    def step_flops(self) -> StepFlops:
        return costs.step_flops(*self._trained)

    @functools.cached_property
    def _optimizer_bytes(self) -> dict[str, int]:
        return costs.optimizer_bytes(*self._trained)

    def share(self, genome: Genome) -> float:
        """FLOPs of a genome's training step, as a share of those of training everything."""
        return self.step_flops(self.space.frozen(genome)) / self.step_flops.above[0]

    def optimizer_bytes(self, genome: Genome) -> int:
        """Of the optimizers' states of what a genome trains."""
        sizes, frozen = self._optimizer_bytes, self.space.frozen(genome)
        return sizes["head"] + sum(sizes[name] for name, held in zip(self.space.names, frozen, strict=True) if not held)


def pareto_fitness(ledger: Ledger, mask_costs: MaskCosts, genome: Genome) -> tuple[float, float, float]:
    """The objectives of a genome for NSGA-II: its score, or NaN, which is worst, if it diverged; and its costs, negative."""
    score = ledger.fitness(genome)[1]
    return score if math.isfinite(score) else math.nan, -mask_costs.share(genome), -mask_costs.optimizer_bytes(genome)


def find_front(ledger: Ledger, mask_costs: MaskCosts, metric: Metric, seed: int) -> dict[str, list[dict[str, Any]]]:
    """Full evaluations with their scores and costs; "masks" are those that no other beats in all of these at once.

    The best in the metric comes first.
    """
    full = [evaluation for evaluation in ledger.at(ledger.num_steps, seed) if not evaluation.diverged]
    evaluated = [
        {
            "genome": mask_costs.space.text(evaluation.genome),
            f"validation_{metric.key}": metric.shown(evaluation.score),
            "flops": mask_costs.share(evaluation.genome),
            "optimizer_bytes": mask_costs.optimizer_bytes(evaluation.genome),
            "trainable_parameters": evaluation.trainable_parameters,
        }
        for evaluation in full
    ]
    objectives = [
        (evaluation.score, -entry["flops"], -entry["optimizer_bytes"])
        for evaluation, entry in zip(full, evaluated, strict=True)
    ]
    chosen = nsga2.front(np.array(objectives))
    return {"masks": [evaluated[i] for i in chosen], "evaluated": evaluated}
