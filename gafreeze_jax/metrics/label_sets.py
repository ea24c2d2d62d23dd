"""Metrics of several labels for each example: a probability of each of C classes, by a sigmoid.

Each equals the function of scikit-learn that its docstring names. Values are C probabilities and C times 0 or 1, [2 C, E]. A
label is predicted where its probability reaches a threshold, the same for all classes. On the validation split that is the best
one; `settle` keeps it for other splits.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from gafreeze_jax.metrics import classes
from gafreeze_jax.metrics.base import Estimate, Metric, from_estimate, ratio

THRESHOLDS = (0.01, 0.02, 0.05, *(step / 20 for step in range(2, 20)))
OfSets = Callable[[np.ndarray, np.ndarray], Estimate]  # of [C, E] predicted labels, or probabilities, and right ones


def probabilities(logits: Array, labels: Array) -> Array:
    """Probabilities and right labels, [2 C, B], of logits and labels [B, C]."""
    return jnp.concatenate([jax.nn.sigmoid(logits).T, labels.T.astype(logits.dtype)])


def macro_f1(predicted: np.ndarray, truth: np.ndarray) -> Estimate:
    """`f1_score(average="macro")`: the mean F1 of all classes; that of a class which neither occurs nor is predicted is 0."""
    values, moves = zip(*(ratio(2.0 * (p & t), 1.0 * p + t) for p, t in zip(predicted, truth, strict=True)), strict=True)
    return float(np.mean(values)), np.mean(moves, axis=0)


def micro_f1(predicted: np.ndarray, truth: np.ndarray) -> Estimate:
    """`f1_score(average="micro")`: the F1 of all decisions together."""
    return ratio(2.0 * (predicted & truth).sum(0), 1.0 * predicted.sum(0) + truth.sum(0))


def accuracy(predicted: np.ndarray, truth: np.ndarray) -> Estimate:
    """`accuracy_score`: the share of examples all of whose labels are right."""
    right = (predicted == truth).all(0).astype(float)
    return right.mean(), right - right.mean()


def roc_auc(scores: np.ndarray, truth: np.ndarray) -> Estimate:
    """`roc_auc_score(average="macro")`, over the classes that some examples have and others have not; 0.5 without any."""
    decided = truth.any(1) & ~truth.all(1)
    return _mean([classes.roc_auc(*pair) for pair in zip(scores[decided], truth[decided], strict=True)], 0.5, truth)


def average_precision(scores: np.ndarray, truth: np.ndarray) -> Estimate:
    """`average_precision_score(average="macro")`; that of a class which does not occur is 0."""
    return _mean([classes.average_precision(*pair) for pair in zip(scores, truth, strict=True)], 0.0, truth)


def _mean(estimates: list[Estimate], otherwise: float, truth: np.ndarray) -> Estimate:
    if not estimates:
        return otherwise, np.zeros(truth.shape[1])
    values, moves = zip(*estimates, strict=True)
    return float(np.mean(values)), np.mean(moves, axis=0)


def _split(columns: tuple[np.ndarray, ...]) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities [C, E] and right labels [C, E] of 2 C columns."""
    num = len(columns) // 2
    return np.array(columns[:num], np.float64), np.array(columns[num:]) > 0


def _best_threshold(estimate: OfSets, columns: tuple[np.ndarray, ...]) -> float:
    scores, truth = _split(columns)
    return max(THRESHOLDS, key=lambda threshold: (estimate(scores >= threshold, truth)[0], -abs(threshold - 0.5)))


def of_decisions(name: str, estimate: OfSets, threshold: float | None = None) -> Metric:
    """A metric of the labels that are predicted at a threshold; without one, at the best of `THRESHOLDS`."""

    def at_threshold(*columns: np.ndarray) -> Estimate:
        scores, truth = _split(columns)
        return estimate(scores >= (_best_threshold(estimate, columns) if threshold is None else threshold), truth)

    def settle(values: np.ndarray) -> Metric:
        return of_decisions(name, estimate, _best_threshold(estimate, tuple(values)))

    return from_estimate(name, probabilities, at_threshold, is_share=True, threshold=threshold, settle=settle)


def of_scores(name: str, estimate: OfSets, threshold: float | None = None) -> Metric:
    """A metric of the probabilities; the threshold, which only predictions need, is the best one for macro-F1."""

    def of_columns(*columns: np.ndarray) -> Estimate:
        return estimate(*_split(columns))

    def settle(values: np.ndarray) -> Metric:
        return of_scores(name, estimate, _best_threshold(macro_f1, tuple(values)))

    return from_estimate(name, probabilities, of_columns, threshold=threshold, settle=settle)


MACRO_F1 = of_decisions("macro-F1", macro_f1)
MICRO_F1 = of_decisions("micro-F1", micro_f1)
ACCURACY = of_decisions("accuracy", accuracy)
ROC_AUC = of_scores("ROC-AUC", roc_auc)
AVERAGE_PRECISION = of_scores("average precision", average_precision)
