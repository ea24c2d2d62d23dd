"""Metrics of a number for each example. Values are the predicted number and the right one, [2, E]."""

import functools

import jax.numpy as jnp
import numpy as np
from jax import Array

from gafreeze_jax.metrics.base import Estimate, Metric, from_estimate


def squared_error(outputs: Array, targets: Array) -> Array:
    """Squared errors [B] of outputs [B, 1] and targets [B]."""
    return (outputs[:, 0] - targets) ** 2


def pairs(outputs: Array, targets: Array) -> Array:
    """The predicted number and the right one, [2, B], of outputs [B, 1] and targets [B]."""
    return jnp.stack([outputs[:, 0], targets.astype(outputs.dtype)])


def _pearson(predicted: np.ndarray, truth: np.ndarray) -> Estimate:
    """`scipy.stats.pearsonr`; 0 if all predictions, or all right numbers, are the same, or a prediction is not finite."""
    if _is_constant(predicted) or _is_constant(truth):
        return 0.0, np.zeros(len(truth))
    x, y = ((column - column.mean()) / column.std() for column in (predicted, truth))
    value = float(np.clip(np.mean(x * y), -1, 1))
    return value, x * y - value * (x**2 + y**2) / 2


def _spearman(predicted: np.ndarray, truth: np.ndarray) -> Estimate:
    """`scipy.stats.spearmanr`; 0 where `_pearson` is. An example moves the ranks of others, too (Croux & Dehon 2010)."""
    if _is_constant(predicted) or _is_constant(truth):
        return 0.0, np.zeros(len(truth))
    from scipy import stats  # takes half a second

    num = len(truth)
    x, y = ((stats.rankdata(column) - 0.5) / num for column in (predicted, truth))  # the share below, ties by half: mean 1/2
    covariance, of_x, of_y = np.mean(x * y) - 1 / 4, np.mean(x * x) - 1 / 4, np.mean(y * y) - 1 / 4
    scale = np.sqrt(of_x * of_y)
    value = float(covariance / scale)

    def moves(first: tuple[np.ndarray, np.ndarray], second: tuple[np.ndarray, np.ndarray]) -> np.ndarray:
        """Of the mean product of two columns' ranks; each is given with its ranks."""
        (column, ranks), (other, other_ranks) = first, second
        return ranks * other_ranks + _mean_above(column, other_ranks) + _mean_above(other, ranks)

    first, second = (predicted, x), (truth, y)
    both, of_first, of_second = moves(first, second), moves(first, first), moves(second, second)
    moves_of_all = both / scale - value * (of_first / of_x + of_second / of_y) / 2
    return value, moves_of_all - moves_of_all.mean()


def _mean_above(column: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """The sum of weights of the examples above each in `column`, and of half of those at its height, over their number."""
    _, group = np.unique(column, return_inverse=True)
    of_group = np.bincount(group, weights)
    return (of_group[::-1].cumsum()[::-1] - of_group / 2)[group] / len(column)


def _rmse(scale: float, predicted: np.ndarray, truth: np.ndarray) -> Estimate:
    """`root_mean_squared_error`, of numbers that were divided by a scale; infinite if one is not finite."""
    squares = (scale * (predicted - truth)) ** 2
    value = float(np.sqrt(squares.mean()))
    if not np.isfinite(value):
        return np.inf, np.zeros(len(truth))
    return value, (squares - squares.mean()) / (2 * value) if value else np.zeros(len(truth))


def _r2(predicted: np.ndarray, truth: np.ndarray) -> Estimate:
    """`r2_score`; 1 or 0 if all right numbers are the same, as predictions are right or not; -inf if one is not finite."""
    errors, spread = (predicted - truth) ** 2, (truth - truth.mean()) ** 2
    if not np.isfinite(errors).all():
        return -np.inf, np.zeros(len(truth))
    if not spread.any():
        return 0.0 if errors.any() else 1.0, np.zeros(len(truth))
    share = errors.sum() / spread.sum()
    return float(1 - share), -(errors - share * spread) / spread.mean()


def _is_constant(column: np.ndarray) -> bool:
    """Whether it has no ranks that mean anything."""
    return not np.isfinite(column).all() or np.ptp(column) <= 1e-7 * np.abs(column).max()


@functools.cache
def rmse(scale: float = 1.0) -> Metric:
    """The root of the mean squared error, of outputs and targets that were divided by a scale."""
    return from_estimate("RMSE", pairs, functools.partial(_rmse, scale), higher_is_better=False)


PEARSON = from_estimate("Pearson", pairs, _pearson)
SPEARMAN = from_estimate("Spearman", pairs, _spearman)
R2 = from_estimate("R2", pairs, _r2)
