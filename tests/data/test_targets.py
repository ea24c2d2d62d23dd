"""Labels that are no classes: how they are recognised and read, and what is wrong with some."""

import json

import numpy as np
import pytest

from gafreeze_jax.data.targets import describe_splits
from gafreeze_jax.data.text import load_text, load_unlabelled
from gafreeze_jax.tasks.kinds import make_scale

NUM = 40


def write(path, rows):
    """JSON lines, or a table of strings."""
    if path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    else:
        path.write_text("\n".join("\t".join(map(str, row)) for row in rows) + "\n")
    return str(path)


def table(tmp_path, column, labels):
    rows = [("text", column), *((f"text {i}", labels[i % len(labels)]) for i in range(NUM))]
    return write(tmp_path / "set.tsv", rows)


def jsonl(tmp_path, labels, column="labels"):
    rows = [{"text": f"text {i}", column: labels[i % len(labels)]} for i in range(NUM)]
    return write(tmp_path / "set.jsonl", rows)


CONLL = "EU B-org\nrejects O\n\nPeter B-per\nBlack I-per\n. O\n\n"


def conll(tmp_path, text=CONLL * 20, name="set.conll"):
    (tmp_path / name).write_text(text)
    return str(tmp_path / name)


RECOGNISED = {
    "classes": (table, "label", ["a", "b"], "label"),
    "whole numbers are classes": (table, "stars", ["1", "2.0", "5"], "label"),
    "fractions": (table, "score", ["1.5", "2", "3.25"], "number"),
    "fractions by another name": (table, "label", ["-1e-1", "2", "3.25"], "number"),
    "several labels": (table, "labels", ["joy", "anger,joy", "anger"], "labels"),
    "by semicolons": (table, "tags", ["joy", "anger; joy", "anger"], "labels"),
    "one label with commas": (table, "label", ["joy", "anger,joy", "anger"], "label"),
    "names that hold commas": (table, "labels", ["Sports, Games", "News"], "label"),
    "JSON lists in a table": (table, "labels", ['["a", "b"]', '["a"]', "[]"], "labels"),
}


@pytest.mark.parametrize("case", RECOGNISED)
def test_what_labels_are(case, tmp_path):
    make, column, labels, kind = RECOGNISED[case]
    assert load_text(make(tmp_path, column, labels)).kind == kind


def test_lists_are_several_labels(tmp_path):
    data = load_text(jsonl(tmp_path, [["b", "a"], ["a", ""], [" "], ["a", "a"]]))
    assert data.kind == "labels"
    assert data.label_names == ("a", "b")
    for split in data[:3]:
        by_text = {int(text.split()[1]) % 4: row.tolist() for (text,), row in zip(split.texts, split.labels, strict=True)}
        assert by_text.items() <= {0: [1, 1], 1: [1, 0], 2: [0, 0], 3: [1, 0]}.items()
    assert "2 labels (a, b)" in describe_splits("set", data)[0]
    assert load_text(jsonl(tmp_path, [[10, 9], [2]])).label_names == ("2", "9", "10")


@pytest.mark.parametrize("label_column", [None, "toxic, rude"])
def test_columns_of_0_and_1_are_several_labels(label_column, tmp_path):
    rows = [("comment_text", "toxic", "rude"), *((f"text {i}", i % 2, int(i % 4 == 0)) for i in range(NUM))]
    data = load_text(write(tmp_path / "set.tsv", rows), label_column=label_column)
    assert (data.kind, data.label_names) == ("labels", ("rude", "toxic"))
    by_text = {int(text.split()[1]): row.tolist() for (text,), row in zip(*data.train[:2], strict=True)}
    assert by_text == {i: [i % 4 == 0, i % 2] for i in by_text}


def test_numbers(tmp_path):
    data = load_text(table(tmp_path, "score", ["0.5", "", "2", "4.75"]))
    assert (data.kind, data.label_names) == ("number", ("score",))
    assert {0.5, 2.0, 4.75} == {float(number) for split in data[:3] for number in split.labels}
    lines = describe_splits("set", data)
    assert "numbers from 0.5 to 4.75" in lines[0]
    assert any("10 rows without a label left out" in line for line in lines)


def test_large_numbers_that_lie_close_together_stay_different(tmp_path):
    data = load_text(table(tmp_path, "score", [1_700_000_000 + i / 4 for i in range(NUM)]))
    scale = make_scale(data.kind, data.train.labels, head_is_kept=False, has_bias=True)
    standardised = scale.apply(data.train.labels)
    assert standardised.dtype == np.float32
    assert len(np.unique(standardised)) == len(data.train.texts)
    np.testing.assert_allclose((standardised.mean(), standardised.std()), (0, 1), atol=1e-6)


def test_numbers_with_a_decimal_comma(tmp_path):
    data = load_text(table(tmp_path, "score", ["1,5", "2", "-3,25"]))
    assert data.kind == "number"
    assert {1.5, 2.0, -3.25} == {float(number) for split in data[:3] for number in split.labels}
    assert "Column 'score' has numbers with a decimal comma" in data.notes
    assert load_text(table(tmp_path, "labels", ["1,5", "2", "3,5"])).kind != "number"


@pytest.mark.parametrize("other", ["2,5", "0,105", "2105,000"])
def test_commas_are_decimal_ones_where_one_cannot_separate_thousands(other, tmp_path):
    data = load_text(table(tmp_path, "score", ["1,101", other, "900"]))
    assert {1.101, float(other.replace(",", ".")), 900} == {float(number) for split in data[:3] for number in split.labels}


def test_whole_numbers_on_request(tmp_path):
    data = load_text(table(tmp_path, "stars", ["1", "2", "5"]), kind="number", max_train=6)
    assert sorted(data.train.labels.tolist()) == [1, 1, 2, 2, 5, 5]  # stratified


def test_tags_of_a_conll_file(tmp_path):
    data = load_text(conll(tmp_path))
    assert (data.kind, data.label_names) == ("tags", ("O", "B-org", "B-per", "I-per"))
    assert data.train.texts[:2] in ([("EU", "rejects"), ("Peter", "Black", ".")], [("Peter", "Black", "."), ("EU", "rejects")])
    for text, tags in zip(*data.train[:2], strict=True):
        assert tags.tolist() == ([1, 0] if len(text) == 2 else [2, 3, 0])
    assert load_unlabelled(tmp_path / "set.conll").columns["tokens"][:2] == ("EU rejects", "Peter Black .")


@pytest.mark.parametrize(
    "text",
    [
        "-DOCSTART- -X- O\n\nEU NNP B-org\nrejects VB O\n\nPeter NNP B-per\nBlack NNP I-per\n. . O\n",
        "# id = 7 of 9\r\nEU\tB-org\r\nrejects\tO\r\n \r\n\r\nPeter\tB-per\r\nBlack\tI-per\r\n.\tO",
        "#\tO\n\nEU\tB-org\nrejects\tO\n\nPeter\tB-per\nBlack\tI-per\n.\tO",
    ],
)
def test_forms_of_conll_files(tmp_path, text):
    conll(tmp_path, text)
    sentences = load_unlabelled(tmp_path / "set.conll").columns["tokens"]
    assert sentences[-2:] == ("EU rejects", "Peter Black .")


def test_json_lists_of_words(tmp_path):
    rows = [{"tokens": ["EU", "rejects"], "ner_tags": [1, 0]}, {"tokens": ["Peter"], "ner_tags": [2]}] * 20
    data = load_text(write(tmp_path / "set.jsonl", rows))
    assert (data.kind, data.label_names) == ("tags", ("0", "1", "2"))


def test_blanks_separate_words_and_tags_on_request(tmp_path):
    data = load_text(table(tmp_path, "tags", ["NOUN NUM", "X NUM"]), kind="tags")
    assert data.label_names == ("NOUN", "NUM", "X")
    assert data.train.texts[0][0] == "text"


def test_tags_that_begin_no_entity_are_repaired(tmp_path):
    data = load_text(conll(tmp_path, "EU I-org\nrejects O\n\n" * 10 + CONLL * 10))
    assert "10 tags I- that begin an entity count as B-, as for the CoNLL scorer." in data.notes
    assert data.label_names == ("O", "B-org", "B-per", "I-per")


def test_labels_that_train_lacks_are_kept(tmp_path):
    conll(tmp_path, name="train.conll")
    conll(tmp_path, "Rome B-loc\n", name="test.conll")
    data = load_text(str(tmp_path))
    assert "B-loc" in data.label_names
    assert "Labels that do not occur in train, and cannot be learned: B-loc." in data.notes


BAD = {
    "an infinite number": (table, ("score", ["1.5", "inf"]), {}, "line 3: column 'score' must hold finite numbers, got 'inf'"),
    "a number beyond floats": (table, ("score", ["1.5", "1e99"]), {}, "must hold finite numbers, got '1e99'"),
    "a word among numbers": (table, ("score", ["1.5"] * 39 + ["good"]), {}, "line 41: column 'score' must hold finite numbers"),
    "a decimal comma": (table, ("score", ["1.5"] * 39 + ["1,5"]), {}, "must hold finite numbers, got '1,5'"),
    "commas of either kind": (
        table,
        ("score", ["1,101", "2,105", "900"]),
        {},
        "column 'score' has numbers such as '1,101', whose comma may be a decimal one or separate thousands; write them "
        "without separators, or with a decimal point",
    ),
    "true among numbers": (
        jsonl,
        ([1.5] * 39 + [True], "score"),
        {},
        "line 40: column 'score' must hold finite numbers, got True",
    ),
    "words as numbers": (table, ("label", ["a", "b"]), {"kind": "number"}, "line 2: column 'label' must hold finite numbers"),
    "the same number": (table, ("score", ["1.5"]), {}, "all training examples have the same number in column 'score', 1.5"),
    "an unknown separator": (
        table,
        ("labels", ["joy/anger", "joy"]),
        {"kind": "labels"},
        "no row has several labels in column 'labels', such as 'joy/anger'; expected lists, or labels separated by commas",
    ),
    "a list that is no JSON": (
        table,
        ("labels", ["['a', 'b']"]),
        {},
        "line 2: column 'labels' must hold JSON lists such as [\"a\", \"b\"], got \"['a', 'b']\"",
    ),
    "a list within a list": (
        jsonl,
        ([["a"], ["b"]] * 19 + [["a"], [["b"]]],),
        {},
        "must hold lists of names or integers, got [['b']]",
    ),
    "an object in a list": (jsonl, ([["a"]] * 39 + [[{"a": 1}]],), {}, "must hold lists of names or integers, got [{'a': 1}]"),
    "a string among lists": (
        jsonl,
        ([["a"], ["b"]] * 19 + [["a"], "b"],),
        {},
        "line 40: column 'labels' must hold lists of names",
    ),
    "a list among strings": (jsonl, (["a", "b"] * 19 + ["a", ["b"]],), {}, "line 40: labels must be strings or integers"),
    "a single label": (jsonl, ([["a"], []],), {}, "expected two labels or more, got 'a'"),
    "a flag that is 2": (
        table,
        ("spam\tham", ["0\t1"] * 39 + ["1\t2"]),
        {"label_column": "spam,ham"},
        "line 41: column 'ham' must hold 0 or 1, got '2'",
    ),
    "a word without a tag": (
        conll,
        (CONLL * 20 + "EU\n",),
        {},
        "line 141 has 1 field, line 1 has 2; expected a word and its tag",
    ),
    "too many fields": (
        conll,
        ("EU B-org\nrejects a O\n",),
        {},
        "line 2 has 3 fields, line 1 has 2; expected a word and its tag",
    ),
    "no tag after a tab": (conll, ("EU\tB-org\nrejects\t\n",), {}, "line 2 has no tag"),
    "no word before a tab": (conll, ("EU\tB-org\n\tO\n",), {}, "line 2 has no word"),
    "words without tags": (conll, ("EU\nrejects\n",), {}, "no label column found; name it with --label-column"),
    "one tag": (conll, ("EU O\n\n" * 20,), {}, "expected two labels or more, got 'O'"),
    "words as one label": (
        conll,
        (),
        {"kind": "label"},
        "its texts are lists of words, which get a tag each: give --task tags",
    ),
    "no words for tags": (table, ("label", ["a", "b"]), {"kind": "tags"}, "line 2: 1 tags for 2 words; every word needs one"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_labels_get_one_line(case, tmp_path):
    make, given, options, message = BAD[case]
    with pytest.raises(ValueError, match="set") as error:
        load_text(make(tmp_path, *given), **options)
    assert message in str(error.value)
    assert "\n" not in str(error.value)
    assert len(str(error.value)) - len(str(tmp_path)) < 400


TAGS = {
    "fewer tags than words": ([["EU", "rejects"], ["O"]], "line 1: 1 tags for 2 words; every word needs one"),
    "tags that are a number": ([["EU"], 3], "line 1: column 'tags' must hold a list of tags, got 3"),
    "a tag that is a list": ([["EU"], [["O"]]], "line 1: column 'tags' must hold a list of tags, got [['O']]"),
    "an empty tag": ([["EU"], [" "]], "must hold a list of tags, got [' ']"),
    "a word that is a number": ([["EU", 3], ["O", "O"]], "column 'tokens' must hold text, got ['EU', 3]"),
}


@pytest.mark.parametrize("case", TAGS)
def test_bad_tags_get_one_line(case, tmp_path):
    (words, tags), message = TAGS[case]
    rows = [{"tokens": words, "tags": tags}, *[{"tokens": ["EU", "said"], "tags": ["B-org", "O"]}] * 20]
    with pytest.raises(ValueError, match="set") as error:
        load_text(write(tmp_path / "set.jsonl", rows))
    assert message in str(error.value)
