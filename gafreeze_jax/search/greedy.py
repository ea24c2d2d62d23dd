"""Greedy selection of the layers to train: SubTuning (Kaplun et al. 2023, arXiv:2302.06354)."""

from collections.abc import Callable
from typing import Any

import numpy as np

from gafreeze_jax.search.history import Ledger
from gafreeze_jax.search.loop import Evaluator, evaluation_of
from gafreeze_jax.space import Genome, Space, as_genome


def select(
    space: Space, evaluator: Evaluator[Any], ledger: Ledger, *, seed: int, count_trainable: Callable[[Genome], int]
) -> Genome:
    """The mask that greedy selection ends with, at the best of its rates.

    From all frozen, it trains one gene more at a time, the one that makes the fittest mask, until none makes a fitter one.

    Args:
      ledger: where evaluations are recorded; empty. The steps before the end count as generations.
      seed: of all evaluations.
      count_trainable: number of parameters that a genome leaves trainable.
    """

    def fittest(genomes: np.ndarray, number: int) -> Genome:
        for members in evaluator.evaluate(ledger.unseen(genomes), seed, ledger.num_steps):
            ledger.add(*(evaluation_of(member, seed, ledger.num_steps, number, count_trainable) for member in members))
        return max(map(as_genome, genomes), key=ledger.fitness)

    best, number, fitter = fittest(space.stack([space.all_frozen]), 1), 1, True
    while fitter and (frozen := np.asarray(space.frozen(best))).any():
        number += 1
        freed = frozen[None] & ~np.eye(space.num_genes, dtype=bool)[frozen]
        chosen = fittest(np.concatenate([space.stack([best]), space.masks(freed)]), number)
        best, fitter = chosen, chosen != best
    return fittest(space.at_rates([best]), number + 1)
