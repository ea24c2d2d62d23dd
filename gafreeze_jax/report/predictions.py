"""What a run's model predicts for the test examples, as read from `test_predictions.csv`."""

import csv
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from gafreeze_jax.listing import shorten
from gafreeze_jax.report.summary import printable

MOST_CLASSES = 20  # that a table of confusions has
LONGEST_NAME = 60  # characters of a class's name there


class Prediction(NamedTuple):
    """One test example.

    Attributes:
      inputs: what tells it apart, by title, such as its texts.
      probability: of the label.
    """

    inputs: Mapping[str, str]
    truth: str
    label: str
    probability: float


class Confusions(NamedTuple):
    """How often each class is taken for which.

    Attributes:
      names: of the C classes that occur, as they are shown.
      counts: [C, C], a row for each true class, a column for each predicted one.
    """

    names: Sequence[str]
    counts: np.ndarray


def read_predictions(path: Path) -> list[Prediction]:
    """The predictions in a file; none if there is no such file."""
    if not path.is_file():
        return []
    with open(path, encoding="utf-8", newline="") as file:
        csv.field_size_limit(2**31 - 1)
        rows = list(csv.DictReader(file))
    return [Prediction(row, row.pop("truth"), row.pop("label"), float(row.pop("probability"))) for row in rows]


def count_confusions(predictions: Sequence[Prediction], label_names: Sequence[str]) -> Confusions | None:
    """Confusions, unless there are too many classes to show.

    Args:
      label_names: of all classes, in their order; others are sorted.
    """
    counts = Counter((prediction.truth, prediction.label) for prediction in predictions)
    occurring = {name for pair in counts for name in pair}
    if not 1 < len(occurring) <= MOST_CLASSES:
        return None
    names = [name for name in label_names if name in occurring] or sorted(occurring, key=lambda name: (len(name), name))
    shown = [shorten(printable(name), LONGEST_NAME) for name in names]
    return Confusions(shown, np.array([[counts[truth, label] for label in names] for truth in names]))


def most_confidently_wrong(predictions: Sequence[Prediction], num: int) -> list[Prediction]:
    """The wrong predictions of the highest probabilities, the highest first."""
    wrong = [prediction for prediction in predictions if prediction.truth != prediction.label]
    return sorted(wrong, key=lambda prediction: -prediction.probability)[:num]
