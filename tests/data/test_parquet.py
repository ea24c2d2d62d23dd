"""Parquet files, and the folders in which people and the Hugging Face hub lay them out."""

import json
import re
from collections import Counter

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from gafreeze_jax.data.text import load_text, load_unlabelled

TEXTS = [f"«{i}», très bien 😭\n" for i in range(24)]
LABELS = [i % 2 for i in range(24)]
NAMES = ["ugly", "good"]
FEATURES = {"text": {"dtype": "string", "_type": "Value"}, "label": {"names": NAMES, "_type": "ClassLabel"}}


def table(features=None, **columns):
    made = pa.table(columns or {"idx": list(range(24)), "text": TEXTS, "label": LABELS})
    given = {"huggingface": json.dumps({"info": {"features": features}})} if features is not None else None
    return made.replace_schema_metadata(given)


def write(path, written=None):
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table() if written is None else written, path)
    return path


def examples(data):
    return Counter((*text, data.label_names[label]) for split in data[:3] for text, label in zip(*split, strict=True))


def expected(names=("0", "1")):
    return Counter((text, names[label]) for text, label in zip(TEXTS, LABELS, strict=True))


def sizes(data):
    return [len(split.texts) for split in data[:3]]


def test_a_file(tmp_path):
    path = write(tmp_path / "set.parquet")
    assert examples(load_text(str(path))) == expected()
    assert load_unlabelled(path).texts == [(text,) for text in TEXTS]


@pytest.mark.parametrize(
    ("labels", "names"),
    [
        (pa.array(LABELS, pa.uint8()), ("0", "1")),
        (pa.array([bool(label) for label in LABELS]), ("false", "true")),
        (pa.array([float(label) for label in LABELS]), ("0.0", "1.0")),
        (pa.array([NAMES[label] for label in LABELS]).dictionary_encode(), NAMES),
    ],
    ids=["bytes", "truth", "floats", "categories"],
)
def test_types_of_labels(tmp_path, labels, names):
    path = write(tmp_path / "set.parquet", table(text=TEXTS, label=labels))
    assert examples(load_text(str(path))) == expected(names)


def test_names_of_classes(tmp_path):
    path = write(tmp_path / "set.parquet", table(FEATURES))
    assert examples(load_text(str(path))) == expected(NAMES)
    split = write(tmp_path / "set" / "train.parquet", table(FEATURES)).parent
    write(split / "test.parquet", table(FEATURES, text=["a", "b"], label=[-1, -1]))  # kept secret
    assert "The test split has no labels (all are -1) and is not used." in load_text(str(split)).notes


@pytest.mark.parametrize("features", [{"label": {"_type": "ClassLabel"}}, {"label": None}, [], 3])
def test_descriptions_that_name_no_classes(tmp_path, features):
    assert examples(load_text(str(write(tmp_path / "set.parquet", table(features))))) == expected()


@pytest.mark.parametrize("missing", [None, float("nan")])
def test_rows_without_text_or_label(missing, tmp_path):
    labels = [missing, *map(float, LABELS[1:])]
    path = write(tmp_path / "set.parquet", table(text=[*TEXTS[:-1], None], label=labels))
    notes = " ".join(load_text(str(path)).notes)
    assert f"{path}: 1 row without text left out, at row 24." in notes
    assert f"{path}: 1 row without a label left out, at row 1." in notes


# Folders

SHARDS = ["train-00000-of-00002.parquet", "train-00001-of-00002.parquet"]


@pytest.mark.parametrize(
    ("train", "validation", "test"),
    [
        (SHARDS, "validation-00000-of-00001.parquet", "test-00000-of-00001.parquet"),
        ([f"data/{name}" for name in SHARDS], "data/validation-00000-of-00001.parquet", "data/test.parquet"),
        (["train-00000-of-00002-0a1b2c.parquet", "train-00001-of-00002-d3e4f5.parquet"], "valid.parquet", "test.parquet"),
        (["train/0000.parquet", "train/0001.parquet"], "validation/0000.parquet", "test/0000.parquet"),
        (["data/training/a-0-xy.snappy.parquet", "data/training/b.parquet"], "data/dev/a.parquet", "data/test/0.parquet"),
    ],
    ids=["shards", "in data", "with hashes", "folders", "folders in data"],
)  # fmt: skip
def test_splits_and_shards(tmp_path, train, validation, test):
    whole = table()
    for name, rows in zip((*train, validation, test), ((0, 10), (10, 6), (16, 4), (20, 4)), strict=True):
        write(tmp_path / name, whole.slice(*rows))
    (tmp_path / "README.md").touch()
    write(tmp_path / "old" / "train.parquet")  # of another set
    data = load_text(str(tmp_path))
    assert sizes(data) == [16, 4, 4]
    assert [text for (text,) in data.train.texts] == TEXTS[:16]  # in the order of the shards


def test_shards_of_other_kinds(tmp_path):
    for number in range(2):
        lines = [json.dumps({"text": text, "label": label}) for text, label in zip(TEXTS, LABELS, strict=True)]
        (tmp_path / f"train-{number}-of-2.jsonl").write_text("\n".join(lines[12 * number :][:12]))
    assert examples(load_text(str(tmp_path))) == expected()


def test_places_in_shards(tmp_path):
    write(tmp_path / SHARDS[0])
    write(tmp_path / SHARDS[1], table(text=["", "b"], label=[0, 1]))
    assert f"{tmp_path}: 1 row without text left out, at {SHARDS[1]} row 1." in load_text(str(tmp_path)).notes


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (SHARDS[:1], "the train shards train-00000-of-00002 to train-00001-of-00002, got train-00000-of-00002.parquet"),
        (["train-0-of-999999999999.parquet"], "the train shards train-0-of-999999999999 to train-999999999998-of-999999999999"),
        (["train-00003-of-00002.parquet"], "expected the train shards train-00000-of-00002 to train-00001-of-00002, got"),
        ([*SHARDS, "train-00000-of-00001.parquet"], "more than one train file: train-00000-of-00001.parquet, train-00000-of-"),
        (["train_1.parquet", "train_2.parquet"], "train_1.parquet, train_2.parquet; keep one, or all shards of one"),
        ([*SHARDS, "train.csv"], "more than one train file"),
        (["cola/train.parquet", "sst2/train.parquet"], "give one of the folders in it: cola, sst2"),
        (["a.parquet"], "no train file"),
    ],
)  # fmt: skip
def test_shards_that_are_none(tmp_path, names, message):
    for name in names:
        write(tmp_path / name)
    with pytest.raises((ValueError, FileNotFoundError), match=re.escape(message)):
        load_text(str(tmp_path))
