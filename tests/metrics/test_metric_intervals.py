"""In simulations, the two-way intervals of metrics that are no means hold the truth."""

import functools

import numpy as np
import pytest

from gafreeze_jax.intervals import difference, interval
from gafreeze_jax.metrics import classes, numbers

NUM_EXPERIMENTS, NUM_SEEDS, NUM_EXAMPLES = 400, 5, 200
SKILLS = (1.0, 0.8)  # of two finalists


def simulate(rng, num_experiments, num_examples):
    """Values [experiments, finalists, S, 2, N]: a hidden quantity, and guesses of it.

    Examples' difficulty is common to finalists; seeds change a finalist's skill and its guesses.
    """

    def normal(num_finalists, num_seeds, size=num_examples):
        return rng.standard_normal((num_experiments, num_finalists, num_seeds, size), dtype=np.float32)

    truth = normal(1, 1)
    skill = np.array(SKILLS, np.float32)[:, None, None] + 0.1 * normal(2, NUM_SEEDS, 1)
    guess = skill * truth + 0.6 * normal(1, 1) + 0.3 * normal(2, 1) + 0.4 * normal(2, NUM_SEEDS)
    return np.stack([guess, np.broadcast_to(truth, guess.shape)], axis=3)


def as_classes(values, thresholds):
    return np.digitize(values, thresholds).astype(np.float64)


TWO = functools.partial(as_classes, thresholds=[0.8])  # a fifth of examples
THREE = functools.partial(as_classes, thresholds=[-0.3, 1.0])


@pytest.mark.parametrize(
    ("metric", "convert"),
    [(classes.MCC, TWO), (classes.MACRO_F1, TWO), (classes.MACRO_F1, THREE), (numbers.SPEARMAN, np.float64)],
    ids=["MCC", "F1", "macro-F1", "Spearman"],
)
def test_intervals_hold_the_truth(metric, convert):
    rng = np.random.default_rng(0)
    whole = convert(simulate(rng, 40, 20_000))
    truth = metric.score(whole).mean((0, 2))
    contributions = metric.contributions(convert(simulate(rng, NUM_EXPERIMENTS, NUM_EXAMPLES)))
    held = np.mean([low <= truth[0] <= high for _, low, high in map(interval, contributions[:, 0])])
    held_difference = np.mean(
        [low <= truth[0] - truth[1] <= high for first, second in contributions for _, low, high in [difference(first, second)]]
    )
    assert 0.92 < held < 0.99
    assert 0.92 < held_difference < 0.99
