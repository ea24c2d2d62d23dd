"""What the saved model predicts for each test example, beside the truth: `test_predictions.csv`."""

import csv
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from gafreeze_jax.engine.network import PyTree, Source
from gafreeze_jax.engine.scoring import each_batch
from gafreeze_jax.report.folder_format import PREDICTIONS
from gafreeze_jax.tasks.base import Setup


def in_order(batches: Iterable[tuple[np.ndarray, np.ndarray]]) -> np.ndarray:
    """Predictions [N, ...] of batches with their rows, in the order of the examples."""
    rows, predictions = zip(*batches, strict=True)
    return np.concatenate(predictions)[np.argsort(np.concatenate(rows))]


def write_predictions(setup: Setup, test: Source, params: PyTree, folder: Path) -> None:
    """Writes the file, if an example has one of several classes.

    Args:
      test: the test split, which has been opened.
      params: of the saved model.
    """
    task, targets = setup.problem.task, np.asarray(test.data.targets)
    if task.label_names is None or targets.ndim != 1:
        return
    probabilities = in_order(each_batch(setup.network, params, test, task.predict))
    names = task.label_names or range(probabilities.shape[1])
    columns = {
        **(setup.test_columns or {"example": range(1, len(targets) + 1)}),
        "truth": [names[target] for target in targets],
        "label": [names[place] for place in probabilities.argmax(1)],
        "probability": [f"{probability:.6g}" for probability in probabilities.max(1)],
    }
    with open(folder / PREDICTIONS, "w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(columns)
        writer.writerows(zip(*columns.values(), strict=True))
