"""What a reader should know about a run: what the majority class reaches, and when a search could not tell masks apart."""

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from gafreeze_jax.metrics import ACCURACY, Metric
from gafreeze_jax.report.metric_format import MetricFormat
from gafreeze_jax.search.history import Evaluation
from gafreeze_jax.tasks.base import Problem
from gafreeze_jax.tasks.kinds import OF_TWO_CLASSES

ROUNDING = 1e-6  # of float32 accuracies


def class_members(problem: Problem, targets: Any) -> dict[str, np.ndarray]:
    """For each class, the most frequent in training first, which of N targets belong to it, [N] bool.

    That is which answers of a model are right that gives the class to every example. Empty unless targets are classes and the
    metric is the accuracy.
    """
    targets = np.asarray(targets)
    if problem.task.metric != ACCURACY:
        return {}
    return {name: targets == label for label, name in _classes(problem)}


def _classes(problem: Problem) -> list[tuple[int, str]]:
    """Numbers and names of the classes, the most frequent in training first; none if targets are no classes."""
    names = problem.task.label_names
    if names is None:
        return []
    classes, counts = np.unique(np.asarray(problem.train.data.targets), return_counts=True)
    in_order = classes[np.argsort(-counts, kind="stable")].tolist()
    return [(label, str(names[label] if len(names) else label)) for label in in_order]


def majority(problem: Problem, **splits: Any) -> dict[str, Any]:
    """The entry "majority" of a run's files: the class that is the most frequent in training, and its metric in each split.

    That is what a model reaches that gives every example this class. Only for the metrics of one label for each example.

    Args:
      splits: targets by the split's name.
    """
    metric, classes = problem.task.metric, _classes(problem)
    if metric not in OF_TWO_CLASSES.values() or not classes:
        return {}
    label, name = classes[0]
    values = {
        f"{split}_{metric.key}": metric.shown(float(metric.score(_constant_answers(metric, label, np.asarray(targets)))))
        for split, targets in splits.items()
    }
    return {"majority": {"label": name, **values}}


def _constant_answers(metric: Metric, label: int, targets: np.ndarray) -> np.ndarray:
    """What the metric keeps of a model that gives all examples a label."""
    logits = np.zeros((len(targets), 1 + max(1, label, *targets.tolist())), np.float32)
    logits[:, label] = 1
    return np.asarray(metric.per_example(jnp.asarray(logits), jnp.asarray(targets)))


def remarks_on_search(
    evaluations: Sequence[Evaluation],
    *,
    num_steps: int,
    num_validation: int,
    num_leaders: int,
    metric: MetricFormat,
    learning_rate: float,
) -> list[str]:
    """What makes the outcome of a search doubtful, a sentence each.

    Args:
      num_steps: of a full evaluation.
      num_validation: number of validation examples.
      num_leaders: number of masks that the search chooses.
      learning_rate: of the run.
    """
    masks = {evaluation.genome: evaluation for evaluation in evaluations}  # the longest of each
    num_diverged = sum(evaluation.diverged for evaluation in masks.values())
    remarks = []
    if num_diverged > len(masks) / 2:
        diverged = f"{num_diverged} of {len(masks)} masks diverged"
        remarks.append(f"{diverged}: --learning-rate {learning_rate:g} is too high for them.")
    scores = [row.score for row in masks.values() if row.steps == num_steps and not row.diverged]
    if len(scores) > 1 and min(scores) == max(scores):
        same = f"the same validation {metric.name}, {metric.write_score(scores[0])}"
        remarks.append(f"All {len(scores)} masks that were trained to the end have {same}, so only the loss tells them apart.")
    elif metric.name == ACCURACY.name:
        num_close = sum(score >= max(scores) - 1 / num_validation - ROUNDING for score in scores)
        if num_close > num_leaders:
            remarks.append(
                f"{num_close} masks are within one of the {num_validation:,} validation examples of the fittest: a larger "
                "validation split would tell more of them apart."
            )
    return remarks
