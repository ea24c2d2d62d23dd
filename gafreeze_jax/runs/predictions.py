"""What the saved model predicts for each test example, beside the truth: `test_predictions.csv`."""

import csv
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from gafreeze_jax.engine.network import PyTree, Source
from gafreeze_jax.engine.scoring import each_batch
from gafreeze_jax.report.folder_format import PREDICTIONS
from gafreeze_jax.tasks.base import Columns, Setup


def in_order(batches: Iterable[tuple[np.ndarray, np.ndarray]]) -> np.ndarray:
    """Predictions [N, ...] of batches with their rows, in the order of the examples."""
    rows, predictions = zip(*batches, strict=True)
    return np.concatenate(predictions)[np.argsort(np.concatenate(rows))]


def beside(inputs: Columns, answers: Columns) -> dict[str, Sequence[Any]]:
    """Columns of inputs, then of answers. An input's whose title an answer has gets another one."""
    return {**{f"input {title}" if title in answers else title: column for title, column in inputs.items()}, **answers}


def write_predictions(setup: Setup, test: Source, params: PyTree, folder: Path, threshold: float | None = None) -> None:
    """Writes the file, if the task has one.

    Args:
      test: the test split, which has been opened.
      params: of the saved model.
      threshold: that its metric has chosen, if it has one.
    """
    task, targets = setup.problem.task, np.asarray(test.data.targets)
    if task.compare is None:
        return
    columns = task.compare(in_order(each_batch(setup.network, params, test, task.predict)), targets, threshold)
    rows = range(1, len(columns["truth"]) + 1)
    columns = beside(setup.test_columns or {"example": rows}, columns)
    with open(folder / PREDICTIONS, "w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(columns)
        writer.writerows(zip(*columns.values(), strict=True))
