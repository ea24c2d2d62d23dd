"""Metrics of one label for each example.

Each equals the function of scikit-learn that its docstring names. Values are the predicted class and the right one, [2, E], or
for two classes a score and the right class.
"""

import jax.numpy as jnp
import numpy as np
from jax import Array

from gafreeze_jax.metrics.base import Estimate, from_estimate


def answers(logits: Array, labels: Array) -> Array:
    """The predicted class and the right one, [2, B], of logits [B, C] and labels [B]."""
    return jnp.stack([logits.argmax(-1), labels]).astype(jnp.float32)


def margins(logits: Array, labels: Array) -> Array:
    """By how much the logit of class 1 is above that of class 0, and the right class, [2, B]."""
    return jnp.stack([logits[:, 1] - logits[:, 0], labels.astype(logits.dtype)])


def _counts(*classes: np.ndarray) -> list[np.ndarray]:
    """How often each class [E] occurs in each of the arrays."""
    num = int(max(array.max(initial=0) for array in classes)) + 1
    return [np.bincount(array, minlength=num) for array in classes]


def _balanced_accuracy(predicted: np.ndarray, truth: np.ndarray) -> Estimate:
    """`balanced_accuracy_score`: the mean over the classes that occur of the share found of each."""
    predicted, truth = predicted.astype(int), truth.astype(int)
    right = predicted == truth
    hits, sizes = _counts(truth[right], truth)
    recalls, num = hits / np.maximum(sizes, 1), np.count_nonzero(sizes)
    return recalls.sum() / num, len(truth) / num * (right - recalls[truth]) / sizes[truth]


def _macro_f1(predicted: np.ndarray, truth: np.ndarray) -> Estimate:
    """`f1_score(average="macro")`: the mean F1 of the classes that occur or are predicted."""
    predicted, truth = predicted.astype(int), truth.astype(int)
    right = predicted == truth
    hits, of_predicted, of_truth = _counts(truth[right], predicted, truth)
    sizes = of_predicted + of_truth
    f1, num = 2 * hits / np.maximum(sizes, 1), np.count_nonzero(sizes)
    moves = (2 * right - f1[truth]) / sizes[truth] - f1[predicted] / sizes[predicted]
    return f1.sum() / num, len(truth) / num * moves


def _micro_f1(predicted: np.ndarray, truth: np.ndarray) -> Estimate:
    """`f1_score(average="micro")`, which is the accuracy where each example has one label."""
    right = (predicted == truth).astype(float)
    return right.mean(), right - right.mean()


def _mcc(predicted: np.ndarray, truth: np.ndarray) -> Estimate:
    """`matthews_corrcoef` (Gorodkin 2004); 0 if all predictions, or all classes, are the same."""
    predicted, truth, num = predicted.astype(int), truth.astype(int), len(truth)
    right = predicted == truth
    of_predicted, of_truth = _counts(predicted, truth)
    covariance = right.sum() * num - of_predicted @ of_truth
    spread_predicted, spread_truth = num**2 - of_predicted @ of_predicted, num**2 - of_truth @ of_truth
    if not spread_predicted or not spread_truth:
        return 0.0, np.zeros(num)
    scale = np.sqrt(float(spread_predicted) * float(spread_truth))
    value = covariance / scale
    moves = (right * num + right.sum() - of_truth[predicted] - of_predicted[truth]) / scale
    moves -= value * ((num - of_predicted[predicted]) / spread_predicted + (num - of_truth[truth]) / spread_truth)
    return value, num * moves


def roc_auc(scores: np.ndarray, truth: np.ndarray) -> Estimate:
    """`roc_auc_score`: how often a positive example scores higher than a negative one; 0.5 if one kind is missing.

    The influence is that of DeLong et al. (1988).
    """
    positive, num = truth > 0, len(truth)
    num_positive = np.count_nonzero(positive)
    if num_positive in (0, num):
        return 0.5, np.zeros(num)
    beaten = _share_below(scores, scores[~positive])  # by each score
    beating = 1 - _share_below(scores, scores[positive])
    value = beaten[positive].mean()
    return value, np.where(positive, num / num_positive * (beaten - value), num / (num - num_positive) * (beating - value))


def _share_below(scores: np.ndarray, others: np.ndarray) -> np.ndarray:
    """The share of other scores that are below each score, ties by half."""
    others = np.sort(others)
    return (np.searchsorted(others, scores, "left") + np.searchsorted(others, scores, "right")) / (2 * len(others))


def average_precision(scores: np.ndarray, truth: np.ndarray) -> Estimate:
    """`average_precision_score`: the mean over positive examples of the precision at their score; 0 if there are none."""
    positive, num = (truth > 0).astype(float), len(truth)
    if not positive.any():
        return 0.0, np.zeros(num)
    _, group = np.unique(-scores, return_inverse=True)  # equal scores, the highest first
    above, hits = (np.cumsum(np.bincount(group, weights)) for weights in (None, positive))  # at or above each score
    precision = hits / above
    value = positive @ precision[group] / positive.sum()
    hits_of_group = np.bincount(group, positive)

    def at_or_below(terms: np.ndarray) -> np.ndarray:
        return np.cumsum((hits_of_group * terms)[::-1])[::-1][group]

    of_others = positive * at_or_below(1 / above) - at_or_below(precision / above)  # whose precision an example changes
    return value, num / positive.sum() * (positive * (precision[group] - value) + of_others)


BALANCED_ACCURACY = from_estimate("balanced accuracy", answers, _balanced_accuracy, is_share=True)
MACRO_F1 = from_estimate("macro-F1", answers, _macro_f1, is_share=True)
MICRO_F1 = from_estimate("micro-F1", answers, _micro_f1, is_share=True)
MCC = from_estimate("MCC", answers, _mcc)
ROC_AUC = from_estimate("ROC-AUC", margins, roc_auc)
AVERAGE_PRECISION = from_estimate("average precision", margins, average_precision)
