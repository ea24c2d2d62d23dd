"""Tables as people have them: dialects, spellings of labels, missing values, and splits without labels."""

import csv
import gzip
import io
import json
import re
from collections import Counter

import pytest

from gafreeze_jax.data.text import load_text, load_unlabelled

TEXTS = ("fine, really", 'they said "no", twice', "plain", "two; halves", "it's a\\b")
ROWS = [(text, label) for label in ("ham", "spam") for text in TEXTS]


def written(rows, **style):
    buffer = io.StringIO()
    csv.writer(buffer, lineterminator="\n", **style).writerows(rows)
    return buffer.getvalue()


def examples(data):
    splits = (data.train, data.validation, data.test)
    return Counter((*text, data.label_names[label]) for split in splits for text, label in zip(*split, strict=True))


def load(tmp_path, content, name="set.csv", **options):
    (tmp_path / name).write_text(content, newline="")
    return load_text(str(tmp_path / name), **options)


def note_of(data, pattern):
    """The one note with a pattern."""
    (note,) = [note for note in data.notes if re.search(pattern, note)]
    return note


# Dialects

HEADER = ("text", "label")
ALL = [HEADER, *ROWS]
QUOTED = [HEADER, *((text.replace("; ", ";\n"), label) for text, label in ROWS)]  # with newlines
DIALECTS = {
    "semicolons": ("set.csv", written(ALL, delimiter=";"), "recognized separated by semicolons"),
    "tabs in .csv": ("set.csv", written(ALL, delimiter="\t"), "recognized separated by tabs"),
    "tabs in .csv, bare quotes": (
        "set.csv",
        "".join(f"{text}\t{label}\n" for text, label in ALL),
        "recognized separated by tabs.",
    ),
    "vertical bars": ("set.csv", written(ALL, delimiter="|"), "recognized separated by vertical bars"),
    "commas in .tsv": ("set.tsv", written(ALL), "recognized separated by commas"),
    "sep=;": ("set.csv", "sep=;\n" + written(ALL, delimiter=";"), "recognized separated by semicolons"),
    "sep=;, as programs write it": (
        "set.csv",
        "\ufeffsep=;\r\n" + written(ALL, delimiter=";").replace("\n", "\r\n"),
        "recognized separated by semicolons",
    ),
    "SEP=;, saved again": ("set.csv", "SEP=;,\n" + written(ALL, delimiter=";"), "recognized separated by semicolons"),
    "sep=,": ("set.csv", "sep=,\n" + written(ALL), None),
    "blanks after commas": (
        "set.csv",
        written(ALL, quoting=csv.QUOTE_ALL).replace('","', '", "'),
        "recognized blanks after separators",
    ),
    "blanks after semicolons": (
        "set.csv",
        written(ALL, quoting=csv.QUOTE_ALL, delimiter=";").replace('";"', '"; "'),
        "recognized separated by semicolons, blanks after separators",
    ),
    "backslashes": (
        "set.csv",
        written(ALL, quoting=csv.QUOTE_ALL, doublequote=False, escapechar="\\"),
        "recognized backslashes before quotation marks",
    ),
    "quoted .tsv": ("set.tsv", written(ALL, delimiter="\t"), "recognized fields in quotation marks"),
    "quoted .tsv, all fields": (
        "set.tsv",
        written(ALL, delimiter="\t", quoting=csv.QUOTE_ALL),
        "recognized fields in quotation marks",
    ),
    "quoted .tsv with newlines": ("set.tsv", written(QUOTED, delimiter="\t"), "recognized fields in quotation marks"),
    "old line ends": ("set.csv", written(ALL).replace("\n", "\r"), None),
    "a separator at the end of rows": (
        "set.csv",
        "".join(line + ("" if line == "text,label\n" else ",\n") for line in written(ALL).split("\n")[:-1]).replace(
            "text,label,\n", "text,label\n"
        ),
        "1 column without a name ignored",
    ),
    "row numbers as in R": (
        "set.csv",
        written([HEADER, *((i, *row) for i, row in enumerate(ROWS, start=1))]),
        "1 column without a name ignored",
    ),
}


@pytest.mark.parametrize("case", DIALECTS)
def test_dialects(tmp_path, case):
    name, content, note = DIALECTS[case]
    data = load(tmp_path, content, name)
    expected = Counter((text.replace("; ", ";\n") if "newlines" in case else text, label) for text, label in ROWS)
    assert examples(data) == expected
    noted = [text for text in data.notes if "recognized" in text or "ignored" in text]
    assert len(noted) == (note is not None)
    assert all(text.startswith(f"{tmp_path / name}: {note}") for text in noted)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (' "so" they said', ' "so" they said'),  # a blank, then a word in quotation marks
        ('"""a"" and b"', '"a" and b'),
        (r"C:\new", r"C:\new"),
        ('5" screen', '5" screen'),
    ],
)
def test_usual_csv_stays_as_it_is(tmp_path, text, expected):
    data = load(tmp_path, "text,label\n" + f"{text},ham\nb,spam\n" * 5)
    assert examples(data) == {(expected, "ham"): 5, ("b", "spam"): 5}
    assert not any("recognized" in note for note in data.notes)


def test_one_column_of_texts_is_a_table(tmp_path):
    (tmp_path / "new.csv").write_text('text\n"a; b, c"\nd\n')
    assert load_unlabelled(tmp_path / "new.csv").texts == [("a; b, c",), ("d",)]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("text;label\na;b\nc; d;b\n", "line 3 has 3 fields, the header has 2; is the first line the header, and are "
         "fields with semicolons quoted?"),
        ('sep=;\ntext;label\na;b\n"c";d;b\n', "line 4 has 3 fields"),
        ("text:label\na:b\n", "The columns are text:label; they can be separated by commas, semicolons, tabs, vertical bars"),
        ("sep=;\n", "no header in it"),
        ("0,1467810369,so sad\n4,1467810672,so glad\n", "1467810369, so sad; the first line must be a header"),
    ],
)  # fmt: skip
def test_tables_that_cannot_be_read(tmp_path, content, message):
    with pytest.raises(ValueError, match=re.escape(message)) as error:
        load(tmp_path, content)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + bytes(99),
            "it is a spreadsheet or an archive under another name; save it as CSV",
        ),
        (gzip.compress(b"text,label", mtime=0), "it is a gzip file under another name; call it .gz"),
        (b"PAR1" + bytes(99), "it is a Parquet file under another name; call it .parquet"),
        (b"version https://git-lfs.github.com/spec/v1\noid", "it is a pointer of Git LFS, to be replaced by git lfs pull"),
    ],
)
@pytest.mark.parametrize("name", ["a.csv", "a.jsonl"])
def test_other_files_called_tables(name, content, message, tmp_path):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=re.escape(f"{tmp_path / name}: {message}")):
        load_text(str(tmp_path / name))


# Columns


def test_columns_without_a_name_are_ignored(tmp_path):
    rows = "".join(f'ham,"see you, {i}",,\nspam,win {i},"they said",\n' for i in range(5))
    data = load(tmp_path, "v1,v2,,\n" + rows, text_columns=("v2",), label_column="v1")
    assert examples(data) == {
        (text, label): 1 for i in range(5) for text, label in ((f"see you, {i}", "ham"), (f"win {i}", "spam"))
    }
    assert note_of(data, "without a name").endswith("set.csv: 2 columns without a name ignored.")


def test_an_index_without_a_name_is_ignored(tmp_path):
    data = load(tmp_path, written([("", *HEADER), *((i, *row) for i, row in enumerate(ROWS))]))
    assert examples(data) == Counter(ROWS)
    assert note_of(data, "1 column without a name ignored")


# Labels


def labelled(*labels):
    """Rows of JSON, five for each label."""
    return "".join(json.dumps({"text": f"text {i} {label!r}", "label": label}) + "\n" for label in labels for i in range(5))


@pytest.mark.parametrize(
    ("labels", "names", "note"),
    [
        ((True, False), ("false", "true"), None),
        ((1.0, 0.0), ("0.0", "1.0"), None),
        ((1, 1.0, 0), ("0", "1"), "1 = 1.0"),
        (("True", "true", "FALSE"), ("FALSE", "True"), "True = true"),
        ((True, "1", 0, "False", False), ("0", "1"), "0 = False = false, 1 = true"),
        (("10.0", 9, "9."), ("9", "10.0"), "9 = 9."),
        (("caf\u00e9", "cafe\u0301", "bar"), ("bar", "caf\u00e9"), None),
        (("ham ", " ham", "spam"), ("ham", "spam"), None),
        (("ham\u200b", "\ufeffham", "\u00a0ham", "spam"), ("ham", "spam"), None),  # with blanks that are not seen
        (("ham", "spam", "Spam"), ("Spam", "ham", "spam"), "look alike and are different classes: Spam, spam"),
        (("not  so", "not so", "so"), ("not  so", "not so", "so"), "look alike and are different classes: not so, not so"),
        (("1", "\uff11", "2"), ("1", "\uff11", "2"), "look alike and are different classes: 1, \uff11"),  # one is a wide 1
        (("true", "false", "unknown"), ("false", "true", "unknown"), None),
        (("01", "1", "none"), ("01", "1", "none"), "look alike and are different classes: 01, 1"),
        (("0", "00", "10"), ("0", "00", "10"), "look alike and are different classes: 0, 00"),
        (("01a", "1a", "0.5"), ("0.5", "01a", "1a"), None),
    ],
)
def test_a_class_is_one_whatever_its_spelling(tmp_path, labels, names, note):
    data = load(tmp_path, labelled(*labels), "set.jsonl")
    noted = [text for text in data.notes if text.startswith(("Labels that are spelled", "These labels"))]
    assert len(noted) == (note is not None)
    assert all(note in text for text in noted)
    assert data.label_names == names


def test_splits_may_spell_labels_differently(tmp_path):
    (tmp_path / "train.csv").write_text("text,label\n" + "a,1.0\nb,0.0\n" * 5)
    (tmp_path / "test.csv").write_text("text,label\nc,1\nd,0\n")
    data = load_text(str(tmp_path))
    assert data.label_names == ("0.0", "1.0")
    assert data.test.labels.tolist() == [1, 0]
    assert note_of(data, "spelled in several ways").endswith("0 = 0.0, 1 = 1.0.")


# Rows


@pytest.mark.parametrize("word", ["nan", "NaN", "NaT", "#NV", "N/A", "n/a", "NA", "null", "<NA>", "", " "])
def test_rows_without_a_label_are_left_out(tmp_path, word):
    data = load(tmp_path, written([HEADER, ("lost", word), *ROWS, ("lost", word)]))
    assert examples(data) == Counter(ROWS)
    assert note_of(data, "a label").endswith("set.csv: 2 rows without a label left out, the first at line 2.")


@pytest.mark.parametrize(
    "row", [{"text": "lost"}, {"text": "lost", "label": None}, {"label": "ham"}, {"text": None, "label": "ham"}]
)
def test_so_are_rows_of_json(tmp_path, row):
    rows = [row, *({"text": text, "label": label} for text, label in ROWS)]
    data = load(tmp_path, "\n".join(map(json.dumps, rows)), "set.jsonl")
    assert examples(data) == Counter(ROWS)
    assert note_of(data, "left out").endswith("left out, at line 1.")


def test_words_that_may_be_classes_stay(tmp_path):
    data = load(tmp_path, "text,label\n" + "a,none\nb,None\nc,na\n" * 5)
    assert data.label_names == ("None", "na", "none")


def test_texts_that_are_missing_are_left_out(tmp_path):
    data = load(tmp_path, written([*ALL, ("NaN", "ham"), ("N/A", "spam")]))
    assert examples(data) == Counter(ROWS)
    assert note_of(data, "without text").endswith("set.csv: 2 rows without text left out, the first at line 12.")
    (tmp_path / "new.csv").write_text("text\na\nnan\nb\n")
    assert load_unlabelled(tmp_path / "new.csv").columns == {"row": [1, 3], "text": ("a", "b")}


@pytest.mark.parametrize("mark", ["", "\ufeff"])
def test_a_header_that_is_repeated_is_left_out(tmp_path, mark):
    data = load(tmp_path, 2 * (mark + written(ALL)))
    assert examples(data) == Counter(ROWS + ROWS)
    assert note_of(data, "header").endswith("set.csv: 1 row like the header left out, at line 12.")


def test_so_is_one_that_is_written_otherwise(tmp_path):
    data = load(tmp_path, written([*ALL, ("Text", " LABEL "), *ROWS]))
    assert examples(data) == Counter(ROWS + ROWS)


# Splits without labels


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("test.csv", "id,text\n7,new\n"),
        ("test.csv", "text,label\nnew,\nnewer,\n"),
        ("test.tsv", "text\nnew\n"),
        ("test.jsonl", '{"text": "new"}\n'),
        ("test.jsonl", '{"text": "new", "label": null}\n'),
        ("validation.csv", "text,label\nnew,N/A\n"),
    ],
)
def test_a_split_without_labels_is_not_used(tmp_path, name, content):
    (tmp_path / "train.csv").write_text(written([("id", *HEADER), *((i, *row) for i, row in enumerate(ROWS))]))
    (tmp_path / name).write_text(content)
    data = load_text(str(tmp_path))
    assert examples(data) == Counter(ROWS)
    note = note_of(data, "no labels")
    assert note == f"{tmp_path / name} has no labels and is not used; gafreeze predict can label it when the run has ended."
    assert load_unlabelled(tmp_path / name).texts[0] == ("new",)


@pytest.mark.parametrize(("titles", "labels"), [("text,label", "ab"), ("text,score", ("0.5", "1.25"))])
@pytest.mark.parametrize("word", ["-1", "-1.0"])
def test_a_split_whose_labels_are_all_minus_one_is_not_used(tmp_path, titles, labels, word):
    """As hubs publish test splits, those of numbers, too."""
    (tmp_path / "train.csv").write_text(f"{titles}\n" + "".join(f"text {i},{labels[i % 2]}\n" for i in range(20)))
    (tmp_path / "test.csv").write_text(f"{titles}\n" + f"new,{word}\n" * 4)
    data = load_text(str(tmp_path))
    assert [len(split.texts) for split in data[:3]] == [12, 4, 4]
    assert note_of(data, "-1") == "The test split has no labels (all are -1) and is not used."


@pytest.mark.parametrize(("column", "labels"), [("label", (-1, 1)), ("score", (-1, 0.5))])
def test_minus_one_may_be_a_class_or_a_number(tmp_path, column, labels):
    (tmp_path / "train.csv").write_text(f"text,{column}\n" + "".join(f"text {i},{labels[i % 2]}\n" for i in range(20)))
    (tmp_path / "test.csv").write_text(f"text,{column}\n" + "new,-1\n" * 5)
    data = load_text(str(tmp_path))
    assert [len(split.texts) for split in data[:3]] == [16, 4, 5]


def test_labels_under_another_name_are_an_error(tmp_path):
    (tmp_path / "train.csv").write_text(written(ALL))
    (tmp_path / "test.csv").write_text("text,gold\nnew,ham\n")
    with pytest.raises(ValueError, match=r"test.csv: no label column found; name it with --label-column"):
        load_text(str(tmp_path))


def test_training_rows_without_labels_are_an_error(tmp_path):
    with pytest.raises(ValueError, match=r"set.csv: no rows with text and a label in column 'label'"):
        load(tmp_path, "text,label\na,\nb,nan\n")
