"""What a person should know about a run's numbers: the majority class's share, and when a search could not tell masks apart."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from gafreeze_jax.metrics import ACCURACY
from gafreeze_jax.report.metric_format import MetricFormat
from gafreeze_jax.search.history import Evaluation
from gafreeze_jax.tasks.base import Problem

ROUNDING = 1e-6  # of float32 accuracies


def class_members(problem: Problem, targets: Any) -> dict[str, np.ndarray]:
    """For each class, the most frequent in training first, which of N targets belong to it, [N] bool.

    That is which answers of a model are right that gives the class to every example. Empty unless targets are classes and the
    metric is the accuracy.
    """
    names, targets = problem.task.label_names, np.asarray(targets)
    if names is None or problem.task.metric != ACCURACY:
        return {}
    classes, counts = np.unique(np.asarray(problem.train.data.targets), return_counts=True)
    in_order = classes[np.argsort(-counts, kind="stable")].tolist()
    return {str(names[label] if len(names) else label): targets == label for label in in_order}


def majority(problem: Problem, **splits: Any) -> dict[str, Any]:
    """The entry "majority" of a run's files: the class that is the most frequent in training, and its share in each split.

    Args:
      splits: targets by the split's name.
    """
    shares: dict[str, Any] = {}
    for split, targets in splits.items():
        for label, members in list(class_members(problem, targets).items())[:1]:
            shares |= {"label": label, f"{split}_accuracy": float(members.mean())}
    return {"majority": shares} if shares else {}


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
