"""What a model predicts for the test examples, in numbers."""

import csv

import numpy as np
import pytest

from gafreeze_jax.report.predictions import (
    Prediction,
    TypeCounts,
    count_confusions,
    count_types,
    most_confidently_wrong,
    of_classes,
    of_numbers,
    read_names,
    read_rows,
    write_names,
)
from gafreeze_jax.runs.predictions import beside

ROWS = [("a, b", "yes", "yes", 0.9), ("c\nd", "yes", "no", 0.7), ("", "no", "yes", 0.8), ("e", "no", "yes", 0.95)]
PREDICTIONS = [Prediction({"text": text}, *rest) for text, *rest in ROWS]


def test_a_file_is_read(tmp_path):
    assert read_rows(tmp_path / "none.csv") == []
    with open(tmp_path / "a.csv", "w", newline="") as file:
        csv.writer(file).writerows([("text", "truth", "label", "probability"), *ROWS])
    rows = read_rows(tmp_path / "a.csv")
    assert of_classes(rows) == PREDICTIONS
    assert of_numbers(rows) is None
    assert count_types(rows) == []


def test_numbers():
    truth, predicted = of_numbers([{"truth": "1", "predicted": "1.5"}, {"truth": "-2", "predicted": "0"}])
    np.testing.assert_array_equal([truth, predicted], [[1, -2], [1.5, 0]])


def test_entities_are_counted_by_type():
    rows = [
        {"truth": "B-city I-city O B-club", "tags": "B-city I-city B-club O"},
        {"truth": "O B-club I-club", "tags": "I-club I-club I-club"},
        {"truth": "B-city B-city O", "tags": "B-city B-city O"},
        {"truth": "O O", "tags": "O B-river"},
        {"truth": "", "tags": ""},
    ]
    found = count_types(rows)
    assert found == [TypeCounts("city", 3, 3, 3), TypeCounts("club", 2, 2, 0), TypeCounts("river", 0, 1, 0)]
    assert [(of_type.precision, of_type.recall, of_type.f1) for of_type in found] == [(1, 1, 1), (0, 0, 0), (0, None, 0)]


def test_labels_are_counted():
    rows = [{"truth": "joy,fear", "labels": "joy"}, {"truth": "", "labels": "joy,anger"}]
    assert count_types(rows) == [TypeCounts("fear", 1, 0, 0), TypeCounts("joy", 1, 2, 1), TypeCounts("anger", 0, 1, 0)]


@pytest.mark.parametrize(
    ("separator", "known"), [(",", ["Arts, Culture", "Sports"]), (" ", ["B-new york", "O"]), (",", ["[x", "y"])]
)
def test_names_may_have_what_separates_them(separator, known):
    for names in (known, known[:1], known[1:], []):
        assert read_names(write_names(names, separator, known), separator) == names


def test_names_of_earlier_versions_may_begin_like_a_list():
    assert read_names("[x,y", ",") == ["[x", "y"]


def test_labels_with_commas_are_counted():
    known = ["Arts, Culture", "Sports"]
    rows = [{"truth": write_names(known, ",", known), "labels": write_names(known[:1], ",", known)}]
    assert count_types(rows) == [("Arts, Culture", 1, 1, 1), ("Sports", 1, 0, 0)]


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


def test_an_input_called_like_an_answer_keeps_its_column():
    columns = beside({"label": ["a text"], "other": ["b"]}, {"truth": ["yes"], "label": ["no"], "probability": [0.9]})
    assert list(columns) == ["input label", "other", "truth", "label", "probability"]
    assert columns["input label"] == ["a text"]
    (row,) = of_classes([{title: str(column[0]) for title, column in columns.items()}])
    assert (row.inputs, row.truth, row.label) == ({"input label": "a text", "other": "b"}, "yes", "no")
