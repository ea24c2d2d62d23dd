"""What a model predicts for the test examples, in numbers."""

import csv

import numpy as np
import pytest

from gafreeze_jax.report.predictions import Prediction, count_confusions, most_confidently_wrong, read_predictions

ROWS = [("a, b", "yes", "yes", 0.9), ("c\nd", "yes", "no", 0.7), ("", "no", "yes", 0.8), ("e", "no", "yes", 0.95)]
PREDICTIONS = [Prediction({"text": text}, *rest) for text, *rest in ROWS]


def test_a_file_is_read_predictions(tmp_path):
    assert read_predictions(tmp_path / "none.csv") == []
    with open(tmp_path / "a.csv", "w", newline="") as file:
        csv.writer(file).writerows([("text", "truth", "label", "probability"), *ROWS])
    assert read_predictions(tmp_path / "a.csv") == PREDICTIONS


@pytest.mark.parametrize("label_names", [("no", "other", "yes"), ()])
def test_confusions(label_names):
    names, counts = count_confusions(PREDICTIONS, label_names)
    assert names == ["no", "yes"]
    np.testing.assert_array_equal(counts, [[0, 2], [1, 1]])


def test_numbers_are_in_their_order():
    predictions = [Prediction({}, str(i), str(i), 1.0) for i in (10, 9, 2)]
    assert count_confusions(predictions, ())[0] == ["2", "9", "10"]


@pytest.mark.parametrize("num", [0, 1, 21])
def test_too_few_or_too_many_classes_to_show(num):
    assert count_confusions([Prediction({}, str(i), str(i), 1.0) for i in range(num)], ()) is None


def test_the_most_confident_errors_come_first():
    assert most_confidently_wrong(PREDICTIONS, 2) == [PREDICTIONS[3], PREDICTIONS[2]]
