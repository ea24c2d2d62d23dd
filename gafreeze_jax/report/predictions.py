"""What a run's model predicts for the test examples, as read from `test_predictions.csv`."""

import contextlib
import csv
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from gafreeze_jax.listing import shorten
from gafreeze_jax.metrics import tags
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


class Numbers(NamedTuple):
    """Numbers of N test examples."""

    truth: np.ndarray
    predicted: np.ndarray


class TypeCounts(NamedTuple):
    """A type of entities, or one of several labels: how many there are, are predicted, and are both."""

    name: str
    true: int
    predicted: int
    right: int

    @property
    def precision(self) -> float | None:
        return self.right / self.predicted if self.predicted else None

    @property
    def recall(self) -> float | None:
        return self.right / self.true if self.true else None

    @property
    def f1(self) -> float:
        return 2 * self.right / (self.true + self.predicted)


def read_rows(path: Path) -> list[dict[str, str]]:
    """The rows of a file of predictions; none if there is no such file."""
    if not path.is_file():
        return []
    with open(path, encoding="utf-8", newline="") as file:
        csv.field_size_limit(2**31 - 1)
        return list(csv.DictReader(file))


def _answers(rows: Sequence[Mapping[str, str]]) -> list[str]:
    """Titles of the columns from the truth on, by which the kinds of files differ; those before are the inputs'."""
    titles = list(rows[0]) if rows else []
    return titles[titles.index("truth") :] if "truth" in titles else []


def of_classes(rows: Sequence[Mapping[str, str]]) -> list[Prediction]:
    """Predictions of one of several classes; none if the rows are of another kind."""
    if (answers := _answers(rows)) != ["truth", "label", "probability"]:
        return []
    return [
        Prediction(
            {title: text for title, text in row.items() if title not in answers},
            row["truth"],
            row["label"],
            float(row["probability"]),
        )
        for row in rows
    ]


def of_numbers(rows: Sequence[Mapping[str, str]]) -> Numbers | None:
    """Predicted numbers, unless the rows are of another kind."""
    if _answers(rows) != ["truth", "predicted"]:
        return None
    return Numbers(*(np.array([float(row[title]) for row in rows]) for title in ("truth", "predicted")))


def write_names(names: Sequence[str], separator: str, known: Sequence[str]) -> str:
    """Names of one example, with a separator between them; as a JSON list where one of those known has it inside.

    >>> write_names(["a", "b"], ",", ["a", "b"]), write_names(["a"], ",", ["a", "b, c"])
    ('a,b', '["a"]')
    """
    is_ambiguous = any(separator in name or name.startswith("[") for name in known)
    return json.dumps(list(names), ensure_ascii=False) if is_ambiguous else separator.join(names)


def read_names(text: str, separator: str) -> list[str]:
    """The reverse of `write_names`; earlier versions wrote no lists."""
    if text.startswith("["):
        with contextlib.suppress(ValueError):
            return json.loads(text)
    return list(filter(None, text.split(separator)))


def count_types(rows: Sequence[Mapping[str, str]]) -> list[TypeCounts]:
    """Counts of entities by their types, or of labels, the most frequent first; none if the rows are of another kind."""
    match _answers(rows):
        case ["truth", "labels"]:
            pairs = [[set(read_names(row[title], ",")) for title in ("truth", "labels")] for row in rows]
        case ["truth", "tags"]:
            pairs = [[_entities(read_names(row[title], " ")) for title in ("truth", "tags")] for row in rows]
        case _:
            return []
    counted = [Counter(_type_of(item) for pair in pairs for item in pair[side]) for side in (0, 1)]
    right = Counter(_type_of(item) for true, predicted in pairs for item in true & predicted)
    names = sorted(counted[0] | counted[1], key=lambda name: (-counted[0][name], name))
    return [TypeCounts(name, counted[0][name], counted[1][name], right[name]) for name in names]


def _type_of(item: str | tuple[int, int, str]) -> str:
    return item if isinstance(item, str) else item[2]


def _entities(names: list[str]) -> set[tuple[int, int, str]]:
    """First word, word after the last, and type of each; none where tags mark no entities."""
    scheme = tuple(sorted(set(names)))
    return set(tags.spans(scheme, np.array([scheme.index(name) for name in names]))) if tags.is_scheme(scheme) else set()


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
