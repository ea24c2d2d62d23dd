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


class TextSplit(NamedTuple):
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
      text_columns: of the training texts; none of the embedded reviews.
    """

    train: TextSplit
    validation: TextSplit
    test: TextSplit
    label_names: tuple[str, ...]
    notes: tuple[str, ...]
    text_columns: tuple[str, ...] = ()


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
      max_train, max_validation: use at most this many examples of a split, drawn stratified by label.

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
    train, validation, test = (TextSplit(part.examples, part.labels) for part in (whole.train, whole.validation, whole.test))
    columns = () if source == "reviews" else raw["train"].columns
    return TextData(train, validation, test, whole.label_names, tuple(notes), columns)


describe = splits.describe


class UnlabelledTexts(NamedTuple):
    """Texts without labels.

    Attributes:
      texts: N tuples of one text, or two for sentence pairs.
      columns: what tells them apart, {title: [N]}: "row", their numbers in the file, from 1, and the text columns.
      notes: what was decided on the way and should be told, a sentence each.
    """

    texts: list[tuple[str, ...]]
    columns: dict[str, Sequence[Any]]
    notes: tuple[str, ...]


def load_unlabelled(path: Path, text_columns: Sequence[str] = ()) -> UnlabelledTexts:
    """Loads the texts of a .csv, .tsv or .jsonl file (or .gz); labels in it are not read.

    Args:
      text_columns: as for `load_text`.

    Raises:
      ValueError, FileNotFoundError: if the file cannot be used, with the row and what to do.
    """
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such file; expected a {', '.join(SUFFIXES)} file, plain or .gz")
    if not files.kind(path, SUFFIXES):
        raise ValueError(f"{path}: unknown kind of file; expected {', '.join(SUFFIXES)}, plain or .gz")
    titles: tuple[str, ...] = ()
    texts = []
    for place, record in _parse(path):
        titles = titles or find_text_columns(str(path), list(record), text_columns)
        texts.append(_texts_of(str(path), place, record, titles))
    rows = [row for row, values in enumerate(texts) if all(value.strip() for value in values)]
    if not rows:
        raise ValueError(f"{path}: no rows with text")
    notes = (f"{path}: {len(texts) - len(rows)} rows without text left out.",) if len(rows) < len(texts) else ()
    texts = [texts[row] for row in rows]
    columns = dict(zip(titles, zip(*texts, strict=True), strict=True))
    return UnlabelledTexts(texts, {"row": [row + 1 for row in rows], **columns}, notes)


def _read_path(path: Path, text_columns: Sequence[str], label_column: str | None, notes: list[str]) -> dict[str, TextRows]:
    if not path.exists():
        raise FileNotFoundError(
            f"{path}: no such file or folder; expected a .csv, .tsv or .jsonl file (or .gz), a folder with a train file, "
            "tfds:NAME, or the word reviews"
        )
    if path.is_dir():
        paths = files.find_splits(path, SUFFIXES)
    elif files.kind(path, SUFFIXES):
        paths = {"train": path}
    else:
        raise ValueError(f"{path}: unknown kind of file; expected {', '.join(SUFFIXES)}, plain or .gz, or a folder of them")
    return {
        split: rows_from_records(str(file), _parse(file), text_columns, label_column, notes) for split, file in paths.items()
    }


def _parse(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """The records of a file, with their places for errors."""
    return READERS[files.kind(path, SUFFIXES) or SUFFIXES[0]](path)


def _read_csv(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    return _read_delimited(path, delimiter=",", strict=True)


def _read_tsv(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    return _read_delimited(path, delimiter="\t", quoting=csv.QUOTE_NONE)  # such sets hold bare quotation marks


def _read_delimited(path: Path, **style: Any) -> Iterator[tuple[str, dict[str, Any]]]:
    csv.field_size_limit(2**31 - 1)
    reader = csv.reader(io.StringIO(files.read_utf8(path), newline=""), **style)
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


def _read_jsonl(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    for number, line in enumerate(files.read_utf8(path).split("\n"), start=1):
        if not line.strip():
            continue
        try:
            record = files.parse_json(line)
        except ValueError as error:
            raise ValueError(f"{path}: line {number} is not JSON: {error}") from None
        if not isinstance(record, dict):
            raise ValueError(f'{path}: line {number}: expected a JSON object, such as {{"text": ..., "label": ...}}')
        yield f"line {number}", record


READERS = {".csv": _read_csv, ".tsv": _read_tsv, ".jsonl": _read_jsonl}  # from a file to (place, record) pairs
SUFFIXES = tuple(READERS)


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
        values = _texts_of(where, place, record, texts)
        if record.get(label) is None:
            raise ValueError(f"{where}: {place}: no value for column {label!r}")
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
    return rows._replace(columns=columns[0] if columns else ())


def _texts_of(where: str, place: str, record: Mapping[str, Any], names: Sequence[str]) -> tuple[str, ...]:
    """The text columns of a record."""
    for name in names:
        if (value := record.get(name)) is None:
            raise ValueError(f"{where}: {place}: no value for column {name!r}")
        if not isinstance(value, str):
            raise ValueError(f"{where}: {place}: column {name!r} must hold text, got {value!r}")
        try:
            value.encode()
        except UnicodeEncodeError:  # JSON can escape it, tokenizers cannot read it
            raise ValueError(f"{where}: {place}: column {name!r} has half a surrogate pair; complete it") from None
    return tuple(record[name] for name in names)


def find_columns(
    where: str, columns: Sequence[str], text_columns: Sequence[str], label_column: str | None
) -> tuple[tuple[str, ...], str]:
    """Names of the text column(s) and of the label column: the ones asked for, or the first convention that fits."""
    texts = find_text_columns(where, columns, text_columns)
    listed = splits.listed(columns)
    if label_column is not None:
        label = _named(where, columns, label_column, "--label-column")
    else:
        by_lower = _by_lower(columns)
        label = next((by_lower[name] for name in LABEL_COLUMNS if name in by_lower), None)
        if label is None:
            raise ValueError(f"{where}: no label column found; name it with --label-column. The columns are {listed}")
    if label in texts:
        raise ValueError(f"{where}: text and label columns must differ, got {splits.listed((*texts, label))}")
    return texts, label


def find_text_columns(where: str, columns: Sequence[str], text_columns: Sequence[str]) -> tuple[str, ...]:
    """Names of the text column(s): the ones asked for, or the first convention that fits."""
    if len(text_columns) > 2:
        raise ValueError(f"expected one text column, or two for sentence pairs; got {splits.listed(text_columns)}")
    if text_columns:
        texts = tuple(_named(where, columns, name, "--text-columns") for name in text_columns)
    else:
        by_lower = _by_lower(columns)
        conventions = (*PAIR_COLUMNS, *((name,) for name in TEXT_COLUMNS))
        convention = next((names for names in conventions if all(name in by_lower for name in names)), None)
        if convention is None:
            listed = splits.listed(columns)
            raise ValueError(f"{where}: no text column found; name it with --text-columns. The columns are {listed}")
        texts = tuple(by_lower[name] for name in convention)
    if len(set(texts)) < len(texts):
        raise ValueError(f"{where}: text columns must differ, got {splits.listed(texts)}")
    return texts


def _named(where: str, columns: Sequence[str], name: str, option: str) -> str:
    """The column that is called so, or else so in lower case."""
    column = name if name in columns else _by_lower(columns).get(name.lower())
    if column is None:
        raise ValueError(f"{where}: no column {name!r}; the columns are {splits.listed(columns)}; choose by {option}")
    return column


def _by_lower(columns: Sequence[str]) -> dict[str, str]:
    return {column.strip().lower(): column for column in columns}
