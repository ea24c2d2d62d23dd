import csv
import gzip
import io
import json
import re
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gafreeze_jax.data import tables
from gafreeze_jax.data.targets import describe_splits
from gafreeze_jax.data.text import TextData, find_columns, load_text, load_unlabelled

SHARED = Path(__file__).parents[2] / "../shared/data/text"
SPLITS = ("train", "validation", "test")


def write(path: Path, rows: list[dict]) -> Path:
    """Writes rows as the file's name asks."""
    name = path.name.removesuffix(".gz")
    if name.endswith(".jsonl"):
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    elif name.endswith(".tsv"):
        text = "".join("\t".join(map(str, row)) + "\n" for row in (rows[0], *(row.values() for row in rows)))
    else:
        buffer = io.StringIO()
        csv.writer(buffer).writerows([list(rows[0]), *(row.values() for row in rows)])
        text = buffer.getvalue()
    data = text.encode()
    path.write_bytes(gzip.compress(data) if path.name.endswith(".gz") else data)
    return path


def make_rows(num: int, prefix: str = "text", labels=("0", "1")) -> list[dict]:
    return [{"text": f"{prefix} {i}", "label": labels[i % len(labels)]} for i in range(num)]


def examples(data: TextData, *splits: str) -> list[tuple]:
    """(text, ..., label name) of some splits, or of all of them."""
    chosen = [getattr(data, split) for split in splits or SPLITS]
    return [(*texts, data.label_names[label]) for split in chosen for texts, label in zip(*split, strict=True)]


# Formats


@pytest.mark.parametrize("compression", ["", ".gz"])
@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".jsonl", ".CSV"])
def test_reads_every_kind_of_file(tmp_path, suffix, compression):
    rows = [{"text": f"«{i}», très bien 😭", "label": "ja" if i % 2 else "nein"} for i in range(10)]
    data = load_text(str(write(tmp_path / f"set{suffix}{compression}", rows)))
    assert data.label_names == ("ja", "nein")
    assert sorted(examples(data)) == sorted((row["text"], row["label"]) for row in rows)
    assert data.train.labels.dtype == np.int32


SPECIAL = st.sampled_from("\"',\\\v\x85\u2028\ufeff")  # quotes, and what splitlines takes for the end of a line
ANY_TEXT = st.text(SPECIAL | st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1, max_size=20)
CELL = st.text(SPECIAL | st.characters(exclude_categories=["Cs"], exclude_characters="\0\t\r\n"), min_size=1, max_size=20)
CELL = CELL.filter(lambda text: not tables.looks_quoted(text))


@pytest.mark.parametrize(("suffix", "texts"), [(".csv", ANY_TEXT), (".jsonl", ANY_TEXT), (".tsv", CELL)])
def test_any_text_comes_back(tmp_path_factory, suffix, texts):
    path = tmp_path_factory.mktemp("round") / f"set{suffix}"

    @settings(max_examples=50, deadline=None)
    @given(st.lists(texts.filter(lambda text: not tables.is_missing(text)), min_size=10, max_size=14))
    def check(texts):
        rows = [{"text": text, "label": "ab"[i % 2]} for i, text in enumerate(texts)]
        data = load_text(str(write(path, rows)))
        assert Counter(examples(data)) == Counter((row["text"], row["label"]) for row in rows)

    check()


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("bom.csv", "\ufeffTEXT,LABEL\r\n" + "one,a\r\ntwo,b\r\n" * 5),
        ("bom.jsonl", "\ufeff" + '{"text": "one", "label": "a"}\r\n{"text": "two", "label": "b"}\r\n\r\n' * 5),
        ("crlf.tsv", "text\tlabel\r\n" + "one\ta\r\ntwo\tb\r\n" * 5),
        ("blank_lines.csv", "\ntext,label\n\n" + "one,a\n\ntwo,b\n" * 5),
        ("spaces.csv", "text , label\n" + "one, a\ntwo,b \n" * 5),
        ("no_newline_at_end.csv", "text,label\n" + "one,a\ntwo,b\n" * 4 + "one,a\ntwo,b"),
    ],
)
def test_reads_files_as_programs_write_them(tmp_path, name, content):
    (tmp_path / name).write_bytes(content.encode())
    assert Counter(examples(load_text(str(tmp_path / name)))) == {("one", "a"): 5, ("two", "b"): 5}


def test_escapes_in_json_are_text(tmp_path):
    row = r'{"text": "caf\u00e9 \ud83d\ude2d \u2028 \"x\"", "label": %d}'
    (tmp_path / "set.jsonl").write_text("\n".join(row % (i % 2) for i in range(10)))
    assert {text for text, _ in examples(load_text(str(tmp_path / "set.jsonl")))} == {'café 😭 \u2028 "x"'}


def test_quotation_marks_in_tsv_are_text(tmp_path):
    texts = ['He said "no', '"quoted"', 'a ""b"" c', "it's", "plain"]
    data = load_text(str(write(tmp_path / "set.tsv", [{"text": t, "label": x} for t in texts for x in "ab"])))
    assert {text for text, _ in examples(data)} == set(texts)


def test_quoted_fields_in_csv_may_hold_newlines_commas_and_quotes(tmp_path):
    (tmp_path / "set.csv").write_text("text,label\n" + '"two\nlines, and ""quotes""",a\nplain,b\n' * 5)
    data = load_text(str(tmp_path / "set.csv"))
    assert {text for text, _ in examples(data)} == {'two\nlines, and "quotes"', "plain"}


# Splits


@pytest.mark.parametrize(
    "names",
    [
        ("train.csv", "validation.csv", "test.csv"),
        ("train.tsv.gz", "val.jsonl", "test.csv"),
        ("train.jsonl", "dev.tsv", "test.jsonl.gz"),
        ("TRAIN.CSV", "valid.csv.gz", "Test.tsv"),
        ("train.en.csv", "validation.en.csv", "test.en.csv"),
    ],
)
def test_folder_of_splits(tmp_path, names):
    rows = {split: make_rows(6, prefix=split) for split in SPLITS}
    for split, name in zip(SPLITS, names, strict=True):
        write(tmp_path / name, rows[split])
    (tmp_path / "README.md").write_text("not data")
    data = load_text(str(tmp_path))
    for split in SPLITS:
        assert examples(data, split) == [(row["text"], row["label"]) for row in rows[split]]
    assert data.notes == ()


@pytest.mark.parametrize(
    ("present", "note"),
    [
        ([], "No validation and no test split: 20 of the 100 training rows were cut for each, stratified by label"),
        (["validation"], "No test split: 20 of the 100 training rows were cut for it, stratified by label"),
        (["test"], "No validation split: 20 of the 100 training rows were cut for it, stratified by label"),
    ],
)
def test_missing_splits_are_cut_from_train(tmp_path, present, note):
    train = make_rows(100, labels="aaaab")
    write(tmp_path / "train.csv", train)
    for split in present:
        write(tmp_path / f"{split}.csv", make_rows(10, prefix=split, labels="ab"))
    data = load_text(str(tmp_path))
    cut = [split for split in SPLITS if split not in present]
    assert sorted(examples(data, *cut)) == sorted((row["text"], row["label"]) for row in train)
    for split in set(cut) - {"train"}:
        assert Counter(label for _, label in examples(data, split)) == {"a": 16, "b": 4}
    assert [n.startswith(note) for n in data.notes] == [True]
    assert examples(load_text(str(tmp_path))) == examples(data)


def test_unlabelled_test_split_is_not_used(tmp_path):
    for split in ("train", "validation"):
        write(tmp_path / f"{split}.jsonl", make_rows(20, prefix=split, labels=(0, 1)))
    write(tmp_path / "test.jsonl", make_rows(20, prefix="test", labels=(-1,)))
    data = load_text(str(tmp_path))
    assert "The test split has no labels (all are -1) and is not used." in data.notes
    assert sorted(examples(data, "train", "test")) == sorted((f"train {i}", str(i % 2)) for i in range(20))


def test_limits_are_stratified_and_noted(tmp_path):
    path = str(write(tmp_path / "set.csv", make_rows(1000, labels="aaab")))
    whole, data = load_text(path), load_text(path, max_train=40, max_validation=20)
    assert Counter(data.train.labels.tolist()) == {0: 30, 1: 10}
    assert Counter(data.validation.labels.tolist()) == {0: 15, 1: 5}
    assert set(data.train.texts) < set(whole.train.texts)
    assert set(data.validation.texts) < set(whole.validation.texts)
    assert data.test.texts == whole.test.texts
    assert data.notes[1:] == (
        "Uses 40 of 600 training examples (--train-examples).",
        "Uses 20 of 200 validation examples (--validation-examples).",
    )
    assert examples(load_text(path, max_train=40, max_validation=20)) == examples(data)
    assert load_text(path, max_train=600, max_validation=5000).notes == whole.notes


def test_limits_keep_rare_classes(tmp_path):
    rows = [*make_rows(98, labels="ab"), {"text": "rare", "label": "c"}, {"text": "scarce", "label": "d"}]
    data = load_text(str(write(tmp_path / "set.csv", rows)), max_train=4)
    assert sorted(data.train.labels) == [0, 1, 2, 3]
    with pytest.raises(ValueError, match=r"3 training examples leave none of class '.'; use more"):
        load_text(str(tmp_path / "set.csv"), max_train=3)


def test_texts_that_occur_in_train_too_are_noted(tmp_path):
    for split in SPLITS:
        write(tmp_path / f"{split}.csv", make_rows(6) if split != "validation" else make_rows(6, prefix="new"))
    assert load_text(str(tmp_path)).notes == ("6 validation or test texts also occur in train.",)


def test_rows_without_text_are_left_out_and_noted(tmp_path):
    path = write(tmp_path / "set.csv", [*make_rows(20), {"text": " ", "label": "0"}, {"text": "", "label": ""}])
    data = load_text(str(path))
    assert len(examples(data)) == 20
    assert data.notes[0] == f"{path}: 2 rows without text left out, the first at line 22."


def test_texts_without_labels(tmp_path):
    path = tmp_path / "pairs.jsonl"
    rows = [{"Sentence1": "a", "sentence2": "b"}, {"Sentence1": " ", "sentence2": "c"}, {"Sentence1": "d", "sentence2": "e"}]
    path.write_text("\n".join(map(json.dumps, rows)))
    loaded = load_unlabelled(path)
    assert loaded.texts == [("a", "b"), ("d", "e")]
    assert loaded.columns == {"row": [1, 3], "Sentence1": ("a", "d"), "sentence2": ("b", "e")}
    assert loaded.notes == (f"{path}: 1 row without text left out, at line 2.",)
    assert load_unlabelled(path, ["sentence2"]).texts == [("b",), ("c",), ("e",)]


def test_the_first_of_texts_without_labels_may_lack_its_text(tmp_path):
    path = tmp_path / "new.jsonl"
    path.write_text("\n".join(map(json.dumps, [{"id": 1}, {"id": 2, "text": "b"}])))
    assert load_unlabelled(path).columns == {"row": [2], "text": ("b",)}
    assert load_unlabelled(path, ["Text"]).texts == [("b",)]
    path = write(tmp_path / "new.csv", make_rows(1))
    path.write_text("text,label\n")
    with pytest.raises(ValueError, match="no rows with text"):
        load_unlabelled(path)


def test_description(tmp_path):
    data = load_text(str(write(tmp_path / "set.csv", make_rows(5000, labels=[str(i) for i in range(10)]))))
    assert describe_splits("set.csv", data) == [
        "Data: set.csv, 3,000 training, 1,000 validation, 1,000 test examples, 10 classes (0, 1, 2, 3, 4, 5, 6, 7, ...)",
        *data.notes,
    ]


# Columns and labels


@pytest.mark.parametrize(
    ("columns", "text_columns", "label_column", "expected"),
    [
        ("id sentence label", (), None, "sentence label"),
        ("Text Sentiment", (), None, "Text Sentiment"),
        ("REVIEW Class", (), None, "REVIEW Class"),
        ("title text category", (), None, "text category"),
        ("label coarse question", (), None, "question label"),
        ("sentence1 sentence2 label", (), None, "sentence1 sentence2 label"),
        ("Premise Hypothesis Label idx", (), None, "Premise Hypothesis Label"),
        ("question sentence label", (), None, "question sentence label"),
        ("sentence2 text target", (), None, "text target"),
        ("a b c", ("b",), "C", "b c"),
        ("a b c", ("B", "a"), "c", "b a c"),
        ("text other label stars", (), "stars", "text stars"),
        ("text other label stars", ("other",), None, "other label"),
        ("text Text label", ("Text",), None, "Text label"),
        ("id Message Category", (), None, "Message Category"),
        ("tweet stars", (), None, "tweet stars"),
        ("score text y", (), None, "text y"),
        ("score text category", (), None, "text category"),
        ("text text_pair rating", (), None, "text text_pair rating"),
        ("Text text Label label LABEL", (), None, "text label"),
        ("Text TEXT Label LABEL", (), None, "Text Label"),
        ("Text TEXT Label LABEL", ("text",), "label", "Text Label"),
    ],
)
def test_columns(columns, text_columns, label_column, expected):
    *texts, label = expected.split()
    assert find_columns("here", columns.split(), text_columns, label_column) == (tuple(texts), label)


@pytest.mark.parametrize("index", ["id", "Unnamed: 0", "idx", "__index_level_0__", "INDEX"])
def test_numbers_of_rows_do_not_matter(tmp_path, index):
    """Train may lack them, where a test file without labels has them."""
    (tmp_path / "train.csv").write_text(CSV)
    (tmp_path / "test.csv").write_text(f"{index},text\n1,a\n2,b\n")
    assert f"{tmp_path / 'test.csv'} has no labels and is not used" in " ".join(load_text(str(tmp_path)).notes)


def test_named_columns_and_pairs_are_read(tmp_path):
    rows = [{"n": i, "Left": f"left {i}", "Right": f"right {i}", "Kind": "xy"[i % 2], "label": "?"} for i in range(10)]
    path = str(write(tmp_path / "set.tsv", rows))
    data = load_text(path, text_columns=("right", "left"), label_column="kind")
    assert sorted(examples(data)) == sorted((f"right {i}", f"left {i}", "xy"[i % 2]) for i in range(10))
    data = load_text(path, text_columns=("Left",), label_column="Kind")
    assert sorted(examples(data)) == sorted((f"left {i}", "xy"[i % 2]) for i in range(10))


@pytest.mark.parametrize(
    ("labels", "names"),
    [
        (("pos", "neg"), ("neg", "pos")),
        (("10", "9", "2"), ("2", "9", "10")),
        ((10, 9, 2), ("2", "9", "10")),
        ((1, -1, 0), ("-1", "0", "1")),
        (("10", "9", "two"), ("10", "9", "two")),
        (("1", "01", "0"), ("0", "01", "1")),
        ((1, "1", 0), ("0", "1")),
    ],
)
def test_label_names(tmp_path, labels, names):
    rows = make_rows(30, labels=labels)
    data = load_text(str(write(tmp_path / "set.jsonl", rows)))
    assert data.label_names == names
    assert sorted(examples(data)) == sorted((row["text"], str(row["label"])) for row in rows)


# Public sets


@pytest.mark.parametrize(
    ("name", "sizes", "num_texts", "label_names"),
    [
        ("sst2", (67349, 872, 1821), 1, "0 1"),
        ("trec", (4362, 1090, 500), 1, "ABBR DESC ENTY HUM LOC NUM"),  # 5,452 training rows in all
        ("cola", (6841, 1043, 1710), 1, "0 1"),  # 8,551
        ("rte", (1992, 277, 498), 2, "entailment not_entailment"),  # 2,490
        ("mrpc", (3668, 408, 1725), 2, "0 1"),
    ],
)
def test_public_sets(name, sizes, num_texts, label_names):
    if not (SHARED / name).is_dir():
        pytest.skip(f"the public sets are not at {SHARED.resolve()}")
    data = load_text(str(SHARED / name))
    assert tuple(len(getattr(data, split).texts) for split in SPLITS) == sizes
    assert data.label_names == tuple(label_names.split())
    assert {len(texts) for split in SPLITS for texts in getattr(data, split).texts} == {num_texts}


# Errors

CSV = "text,label\n" + "".join(f"text {i},{i % 2}\n" for i in range(10))
GZIP = gzip.compress(CSV.encode())
JSONL = '{"text": "a", "label": 0}\n'
HEADERLESS = '"A long\nreview, ' + "and more " * 100 + '",1\nshort,0\n'
SCORES = "text,label\n" + "".join(f"text {i},{7 * i}\n" for i in range(20))


def assert_fails(source: Path, message: str, kind: type = ValueError, **options):
    with pytest.raises(kind, match=re.escape(message)) as error:
        load_text(str(source), **options)
    assert error.type is kind  # not a subclass that prints otherwise
    assert "\n" not in str(error.value)
    assert len(str(error.value).replace(str(source), "")) < 350


BAD_FILES = {
    "unknown suffix": ("set.txt", CSV, "unknown kind of file; expected .csv, .tsv, .jsonl, .parquet, .conll, plain or .gz"),
    "unknown suffix in gzip": ("set.gz", GZIP, "unknown kind of file"),
    "empty": ("set.csv", "", "set.csv: the file is empty"),
    "only blank lines": ("set.jsonl", "\n \n", "the file is empty"),
    "empty gzip": ("set.csv.gz", b"", "the file is empty"),
    "cut gzip": ("set.csv.gz", GZIP[:-9], "set.csv.gz: not a whole gzip file: Compressed file ended before"),
    "damaged gzip": ("set.csv.gz", GZIP[:20] + bytes(40), "not a whole gzip file: "),
    "not gzip": ("set.csv.gz", CSV, "not a whole gzip file: Not a gzipped file"),
    "latin-1": ("set.csv", CSV.encode() + b"caf\xe9,1\n", "line 12 is not UTF-8 (byte 0xe9); convert the file to UTF-8"),
    "latin-1 after a BOM": ("set.csv", b"\xef\xbb\xbftext,label\na,0\n\xe9\n\n\n", "line 3 is not UTF-8 (byte 0xe9)"),
    "utf-16": ("set.csv", CSV.encode("utf-16"), "line 1 is not UTF-8 (byte 0xff)"),
    "header only": ("set.csv", "text,label\n", "no rows with text"),
    "all rows without text": ("set.csv", "text,label\n,1\n  ,0\n", "no rows with text"),
    "no text column": ("set.csv", "phrases,label\na,0\n", "found; name it with --text-columns. The columns are phrases, label"),
    "no label column": ("set.csv", "text,kind\na,0\n", "found; name it with --label-column. The columns are text, kind"),
    "no header": ("set.csv", HEADERLESS, "name it with --text-columns. The columns are A long review, and more"),
    "repeated column": ("set.csv", "text,label,text\na,0,b\n", "column 'text' occurs more than once in the header"),
    "too many fields": ("set.csv", CSV + "well, well,1\n", "line 12 has 3 fields, the header has 2; is the first line"),
    "too few fields": ("set.tsv", "text\tlabel\na\t0\nb\n", "line 3 has 1 fields, the header has 2; is the first"),
    "open quotation": ("set.csv", CSV + '"open,1\n', "line 12: unexpected end of data"),
    "text after a quotation": ("set.csv", CSV + '"so" they say,1\n', "line 12: ',' expected after '\"'"),
    "one class": ("set.csv", "text,label\n" + "a,1\nb,1\n" * 9, "have only one class, '1'; at least two are needed"),
    "scores": ("set.csv", SCORES, "20 different labels in 20 training rows; are the labels those of classes?"),
    "too few rows": (
        "set.csv",
        "text,label\n" + "a,0\nb,1\nc,0\n" * 3,
        "9 training rows are too few to cut a validation split of two or more from; give 10 or more, or files for validation",
    ),
    "invalid JSON": ("set.jsonl", JSONL + "{'text': 'a'}", "line 2 is not JSON: Expecting property name"),
    "JSON over many lines": ("set.jsonl", '{\n"text": "a"}', "line 1 is not JSON: Expecting property name"),
    "NaN in JSON": ("set.jsonl", JSONL + '{"text": "a", "label": NaN}', "line 2 is not JSON: NaN is not a finite number"),
    "deep JSON": ("set.jsonl", JSONL + "[" * 10**5, "line 2 is not JSON: "),
    "JSON list": ("set.jsonl", JSONL + '["a", 1]', 'line 2: expected a JSON object, such as {"text": ..., "label": ...}'),
    "text is a number": ("set.jsonl", '{"text": 5, "label": 1}', "line 1: column 'text' must hold text, got 5"),
    "second text is a list": ("set.jsonl", '{"text1": "a", "text2": [], "label": 1}', "column 'text2' must hold text, got []"),
    "half a surrogate pair": ("set.jsonl", r'{"text": "\ud83d", "label": 1}', "'text' has half a surrogate pair; complete it"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD_FILES)
def test_bad_file(tmp_path, case):
    name, content, message = BAD_FILES[case]
    (tmp_path / name).write_bytes(content.encode() if isinstance(content, str) else content)
    assert_fails(tmp_path / name, message)


@pytest.mark.parametrize("label", ["[1]", '{"a": 1}'])
def test_labels_that_are_no_classes(tmp_path, label):
    (tmp_path / "set.jsonl").write_text(JSONL + f'{{"text": "a", "label": {label}}}')
    assert_fails(tmp_path / "set.jsonl", "line 2: labels must be strings or integers (classes), got ")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"text_columns": ("body",)}, "no column 'body'; the columns are text, label"),
        ({"label_column": "stars"}, "no column 'stars'; the columns are text, label"),
        ({"text_columns": ("a", "b", "c")}, "expected one text column, or two for sentence pairs; got a, b, c"),
        ({"label_column": "text"}, "text and label columns must differ, got text, text"),
        ({"text_columns": ("text", "Text")}, "text columns must differ, got text, text"),
    ],
)
def test_bad_columns(tmp_path, options, message):
    (tmp_path / "set.csv").write_text(CSV)
    assert_fails(tmp_path / "set.csv", message, **options)


BAD_FOLDERS = {
    "two train files": ({"train.csv": CSV, "train.tsv.gz": ""}, "more than one train file: train.csv, train.tsv.gz; keep one"),
    "two validation files": (
        {"train.csv": CSV, "val.csv": CSV, "dev.csv": CSV},
        "more than one validation file: dev.csv, val.csv",
    ),
    "folder as a file": ({"train.csv": CSV, "test.csv/a.csv": CSV}, "test.csv: expected a file, got a folder"),
    "other columns": ({"train.csv": CSV, "test.csv": "text,kind\na,0\n"}, "test.csv: no label column found; name it with"),
    "unseen in validation": (
        {"train.csv": CSV, "val.csv": "text,label\na,0\nb,maybe\n"},
        "the validation split has labels that are not in train: maybe; train has 0, 1",
    ),
    "unseen in test": (
        {"train.csv": CSV, "test.csv": 'text,label\na,"two\nlines"\n'},
        "the test split has labels that are not in train: two lines; train has 0, 1",
    ),
}


@pytest.mark.parametrize("case", BAD_FOLDERS)
def test_bad_folder(tmp_path, case):
    files, message = BAD_FOLDERS[case]
    for name, content in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(content)
    assert_fails(tmp_path, message)


def test_missing_files(tmp_path):
    message = (
        "no such file or folder; expected a .csv, .tsv, .jsonl, .parquet or .conll file, a folder with a train file, hub:NAME, "
    )
    assert_fails(tmp_path / "none.csv", message, FileNotFoundError)
    (tmp_path / "test.csv").write_text(CSV)
    message = "no train file; expected one of train{.csv,.tsv,.jsonl,.parquet,.conll}, plain or .gz"
    assert_fails(tmp_path, message, FileNotFoundError)
