"""Labelled texts with fixed train, validation and test splits, from files, folders, TFDS or the embedded reviews."""

import csv
import io
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from gafreeze_jax.data import files, splits

# Column names are compared in lower case; earlier ones win.
PAIR_COLUMNS = (
    ("sentence1", "sentence2"),
    ("premise", "hypothesis"),
    ("question1", "question2"),
    ("question", "sentence"),
    ("text1", "text2"),
    ("text_a", "text_b"),
)
TEXT_COLUMNS = ("sentence", "text", "review", "content", "comment", "document", "utterance", "question", "title")
LABEL_COLUMNS = ("label", "labels", "class", "category", "sentiment", "target")
SUFFIXES = (".csv", ".tsv", ".jsonl")


class Split(NamedTuple):
    """One split.

    Attributes:
      texts: N tuples of one text, or two for sentence pairs.
      labels: [N] int32, indices into the data set's `label_names`.
    """

    texts: list[tuple[str, ...]]
    labels: np.ndarray


class TextData(NamedTuple):
    """A labelled text set.

    Attributes:
      label_names: the C classes.
      notes: what was decided on the way and should be told (splits cut, rows left out), a sentence each.
    """

    train: Split
    validation: Split
    test: Split
    label_names: tuple[str, ...]
    notes: tuple[str, ...]


TextRows = splits.Rows[tuple[str, ...]]


def load_text(
    source: str,
    *,
    text_columns: Sequence[str] = (),
    label_column: str | None = None,
    max_train: int | None = None,
    max_validation: int | None = None,
) -> TextData:
    """Loads a text classification set, with splits that are always the same for the same source.

    Args:
      source: "reviews" (embedded), "tfds:NAME", a .csv, .tsv or .jsonl file (or one of them .gz), or a folder with a
        train file and, where there are any, validation and test files of these kinds. Splits that are missing are cut
        from the training rows, stratified by label.
      text_columns: one name, or two for sentence pairs; found by convention if empty.
      label_column: found by convention if None.
      max_train, max_validation: use at most so many examples of a split, drawn stratified by label.

    Raises:
      ValueError, FileNotFoundError: if the source cannot be used, with the file, the row and what to do.
    """
    notes: list[str] = []
    if source == "reviews":
        from gafreeze_jax.data.reviews import read_reviews

        records = {split: ((f"review {i}", row) for i, row in enumerate(rows)) for split, rows in read_reviews().items()}
        raw = {split: rows_from_records(source, rows, ("text",), "label", notes) for split, rows in records.items()}
    elif source.startswith("tfds:"):
        from gafreeze_jax.data.tfds import read_tfds

        records = read_tfds(source.removeprefix("tfds:"))
        wanted = splits.choose_splits(source, list(records))
        raw = {
            split: rows_from_records(f"{source} ({name})", records[name], text_columns, label_column, notes)
            for split, name in wanted.items()
        }
    else:
        raw = _read_path(Path(source), text_columns, label_column, notes)
    whole = splits.complete(source, raw, notes)
    in_train = set(whole.train.examples)
    if shared := sum(text in in_train for text in (*whole.validation.examples, *whole.test.examples)):
        notes.append(f"{shared} validation or test texts also occur in train.")
    whole = splits.limit(source, whole, notes, max_train, max_validation)
    train, validation, test = (Split(part.examples, part.labels) for part in (whole.train, whole.validation, whole.test))
    return TextData(train, validation, test, whole.label_names, tuple(notes))


describe = splits.describe


def _read_path(path: Path, text_columns: Sequence[str], label_column: str | None, notes: list[str]) -> dict[str, TextRows]:
    if not path.exists():
        raise FileNotFoundError(
            f"{path}: no such file or folder; expected a .csv, .tsv or .jsonl file (or .gz), a folder with a train file, "
            "tfds:NAME, or the word reviews"
        )
    if path.is_dir():
        found = files.find_splits(path, SUFFIXES)
    elif files.kind(path, SUFFIXES):
        found = {"train": path}
    else:
        raise ValueError(f"{path}: unknown kind of file; expected {', '.join(SUFFIXES)}, plain or .gz, or a folder of them")
    return {split: _read_table(file, text_columns, label_column, notes) for split, file in found.items()}


def _read_table(path: Path, text_columns: Sequence[str], label_column: str | None, notes: list[str]) -> TextRows:
    text = files.read_utf8(path)
    parse = _parse_jsonl if files.kind(path, SUFFIXES) == ".jsonl" else _parse_delimited
    return rows_from_records(str(path), parse(path, text), text_columns, label_column, notes)


def _parse_delimited(path: Path, text: str) -> Iterator[tuple[str, dict[str, Any]]]:
    csv.field_size_limit(2**31 - 1)
    # Tab-separated sets hold bare quotation marks; commas need quoting.
    style: dict[str, Any] = (
        {"delimiter": "\t", "quoting": csv.QUOTE_NONE}
        if files.kind(path, SUFFIXES) == ".tsv"
        else {"delimiter": ",", "strict": True}
    )
    reader = csv.reader(io.StringIO(text, newline=""), **style)
    try:
        header = next(row for row in reader if row)
        repeated = [name for name, count in Counter(header).items() if count > 1]
        if repeated:
            raise ValueError(f"{path}: column {repeated[0]!r} occurs more than once in the header")
        for row in reader:
            if not row:
                continue
            if len(row) != len(header):
                raise ValueError(
                    f"{path}: line {reader.line_num} has {len(row)} fields, the header has {len(header)}; "
                    "is the first line the header, and are fields with separators quoted?"
                )
            yield f"line {reader.line_num}", dict(zip(header, row, strict=True))
    except csv.Error as error:
        raise ValueError(f"{path}: line {reader.line_num}: {error}") from None


def _parse_jsonl(path: Path, text: str) -> Iterator[tuple[str, dict[str, Any]]]:
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            record = files.parse_json(line)
        except ValueError as error:
            raise ValueError(f"{path}: line {number} is not JSON: {error}") from None
        if not isinstance(record, dict):
            raise ValueError(f'{path}: line {number}: expected a JSON object, such as {{"text": ..., "label": ...}}')
        yield f"line {number}", record


def rows_from_records(
    where: str,
    records: Iterable[tuple[str, Mapping[str, Any]]],
    text_columns: Sequence[str],
    label_column: str | None,
    notes: list[str],
) -> TextRows:
    """Picks the text and label columns of records, which come with a name of their place for errors."""
    rows = TextRows([], [])
    columns: tuple[tuple[str, ...], str] | None = None
    num_empty = 0
    for place, record in records:
        if columns is None:
            columns = find_columns(where, list(record), text_columns, label_column)
        texts, label = columns
        for name in (*texts, label):
            if record.get(name) is None:
                raise ValueError(f"{where}: {place}: no value for column {name!r}")
        values = tuple(record[name] for name in texts)
        for name, value in zip(texts, values, strict=True):
            if not isinstance(value, str):
                raise ValueError(f"{where}: {place}: column {name!r} must hold text, got {value!r}")
            try:
                value.encode()
            except UnicodeEncodeError:  # JSON can escape it, tokenizers cannot read it
                raise ValueError(f"{where}: {place}: column {name!r} has half a surrogate pair; complete it") from None
        if not all(value.strip() for value in values):
            num_empty += 1
            continue
        value = record[label]
        if isinstance(value, bool) or not isinstance(value, int | str):
            raise ValueError(
                f"{where}: {place}: labels must be strings or integers (classes), got {value!r} in column {label!r}"
            )
        if isinstance(value, str) and not value.strip():
            raise ValueError(f"{where}: {place}: no value for column {label!r}")
        rows.examples.append(values)
        rows.labels.append(value.strip() if isinstance(value, str) else value)
    if num_empty:
        notes.append(f"{where}: {num_empty} rows without text left out.")
    if not rows.examples:
        raise ValueError(f"{where}: no rows with text")
    return rows


def find_columns(
    where: str, columns: Sequence[str], text_columns: Sequence[str], label_column: str | None
) -> tuple[tuple[str, ...], str]:
    """Names of the text column(s) and of the label column: the ones asked for, or the first convention that fits."""
    by_lower = {column.strip().lower(): column for column in columns}
    listed = splits.listed(columns)

    def named(name: str) -> str:
        if name not in columns and name.lower() not in by_lower:
            raise ValueError(f"{where}: no column {name!r}; the columns are {listed}")
        return name if name in columns else by_lower[name.lower()]

    if len(text_columns) > 2:
        raise ValueError(f"expected one text column, or two for sentence pairs; got {splits.listed(text_columns)}")
    if text_columns:
        texts = tuple(named(name) for name in text_columns)
    else:
        conventions = (*PAIR_COLUMNS, *((name,) for name in TEXT_COLUMNS))
        found = next((names for names in conventions if all(name in by_lower for name in names)), None)
        if found is None:
            raise ValueError(f"{where}: no text column found; name it with --text-columns. The columns are {listed}")
        texts = tuple(by_lower[name] for name in found)
    if label_column is not None:
        label = named(label_column)
    else:
        label = next((by_lower[name] for name in LABEL_COLUMNS if name in by_lower), None)
        if label is None:
            raise ValueError(f"{where}: no label column found; name it with --label-column. The columns are {listed}")
    if label in texts or len(set(texts)) < len(texts):
        raise ValueError(f"{where}: text and label columns must differ, got {splits.listed((*texts, label))}")
    return texts, label
