"""Labelled texts with fixed train, validation and test splits, from files, folders, TFDS or the embedded reviews."""

import csv
import gzip
import io
import json
import textwrap
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

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
SPLIT_NAMES = {"train": ("train",), "validation": ("validation", "valid", "val", "dev"), "test": ("test",)}
SUFFIXES = (".csv", ".tsv", ".jsonl")
HELD_OUT_SHARE = 0.2  # of the training rows, for each split that is missing


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


class Rows(NamedTuple):
    """Raw rows of one split: texts and labels as they came (an int, or a string)."""

    texts: list[tuple[str, ...]]
    labels: list[Any]


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
        splits = {split: rows_from_records(source, rows, ("text",), "label", notes) for split, rows in records.items()}
    elif source.startswith("tfds:"):
        from gafreeze_jax.data.tfds import read_tfds

        records = read_tfds(source.removeprefix("tfds:"))
        wanted = _choose_splits(source, list(records))
        splits = {
            split: rows_from_records(f"{source} ({name})", records[name], text_columns, label_column, notes)
            for split, name in wanted.items()
        }
    else:
        splits = _read_path(Path(source), text_columns, label_column, notes)
    return _assemble(source, splits, notes, max_train, max_validation)


def describe(source: str, data: TextData) -> list[str]:
    """What was loaded, for people: a line each."""
    sizes = f"{len(data.train.texts):,} training, {len(data.validation.texts):,} validation, {len(data.test.texts):,} test"
    names = ", ".join(data.label_names[:8]) + (", ..." if len(data.label_names) > 8 else "")
    return [f"Data: {source}, {sizes} examples, {len(data.label_names)} classes ({names})", *data.notes]


def _listed(names: Iterable[str]) -> str:
    """Names for an error message: on one line, and not too long if they are really texts."""
    return textwrap.shorten(", ".join(names), 200)


def _choose_splits(source: str, names: Sequence[str]) -> dict[str, str]:
    found = {split: next((name for name in names if name in aliases), None) for split, aliases in SPLIT_NAMES.items()}
    if found["train"] is None:
        raise ValueError(f"{source}: no train split; it has {_listed(names)}")
    return {split: name for split, name in found.items() if name}


def _read_path(path: Path, text_columns: Sequence[str], label_column: str | None, notes: list[str]) -> dict[str, Rows]:
    if not path.exists():
        raise FileNotFoundError(
            f"{path}: no such file or folder; expected a .csv, .tsv or .jsonl file (or .gz), a folder with a train file, "
            "tfds:NAME, or the word reviews"
        )
    if path.is_dir():
        files = {}
        for split, names in SPLIT_NAMES.items():
            found = [f for f in sorted(path.iterdir()) if f.name.split(".")[0].lower() in names and _kind(f)]
            if len(found) > 1:
                raise ValueError(f"{path}: more than one {split} file: {', '.join(f.name for f in found)}; keep one")
            if found:
                files[split] = found[0]
        if "train" not in files:
            raise FileNotFoundError(f"{path}: no train file; expected one of train{{{','.join(SUFFIXES)}}}, plain or .gz")
    elif _kind(path):
        files = {"train": path}
    else:
        raise ValueError(f"{path}: unknown kind of file; expected {', '.join(SUFFIXES)}, plain or .gz, or a folder of them")
    return {split: _read_table(file, text_columns, label_column, notes) for split, file in files.items()}


def _kind(path: Path) -> str | None:
    name = path.name.lower().removesuffix(".gz")
    return next((suffix for suffix in SUFFIXES if name.endswith(suffix)), None)


def _read_table(path: Path, text_columns: Sequence[str], label_column: str | None, notes: list[str]) -> Rows:
    if not path.is_file():
        raise ValueError(f"{path}: expected a file, got a folder")
    data = path.read_bytes()
    if path.name.lower().endswith(".gz"):
        try:
            data = gzip.decompress(data)
        except (OSError, EOFError, zlib.error) as error:
            raise ValueError(f"{path}: not a whole gzip file: {error}") from None
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        before, byte = error.object[: error.start], error.object[error.start]  # without the byte order mark
        line = before.count(b"\n") + 1
        raise ValueError(f"{path}: line {line} is not UTF-8 (byte {byte:#04x}); convert the file to UTF-8") from None
    if not text.strip():
        raise ValueError(f"{path}: the file is empty")
    parse = _parse_jsonl if _kind(path) == ".jsonl" else _parse_delimited
    return rows_from_records(str(path), parse(path, text), text_columns, label_column, notes)


def _parse_delimited(path: Path, text: str) -> Iterator[tuple[str, dict[str, Any]]]:
    csv.field_size_limit(2**31 - 1)
    # Tab-separated sets hold bare quotation marks; commas need quoting.
    style: dict[str, Any] = (
        {"delimiter": "\t", "quoting": csv.QUOTE_NONE} if _kind(path) == ".tsv" else {"delimiter": ",", "strict": True}
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
            record = json.loads(line)
        except (ValueError, RecursionError) as error:
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
) -> Rows:
    """Picks the text and label columns of records, which come with a name of their place for errors."""
    rows = Rows([], [])
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
        rows.texts.append(values)
        rows.labels.append(value.strip() if isinstance(value, str) else value)
    if num_empty:
        notes.append(f"{where}: {num_empty} rows without text left out.")
    if not rows.texts:
        raise ValueError(f"{where}: no rows with text")
    return rows


def find_columns(
    where: str, columns: Sequence[str], text_columns: Sequence[str], label_column: str | None
) -> tuple[tuple[str, ...], str]:
    """Names of the text column(s) and of the label column: the ones asked for, or the first convention that fits."""
    by_lower = {column.strip().lower(): column for column in columns}
    listed = _listed(columns)

    def named(name: str) -> str:
        if name not in columns and name.lower() not in by_lower:
            raise ValueError(f"{where}: no column {name!r}; the columns are {listed}")
        return name if name in columns else by_lower[name.lower()]

    if len(text_columns) > 2:
        raise ValueError(f"expected one text column, or two for sentence pairs; got {_listed(text_columns)}")
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
        raise ValueError(f"{where}: text and label columns must differ, got {_listed((*texts, label))}")
    return texts, label


def _assemble(
    source: str, splits: dict[str, Rows], notes: list[str], max_train: int | None, max_validation: int | None
) -> TextData:
    for name in ("validation", "test"):
        if name in splits and all(str(label) == "-1" for label in splits[name].labels):
            notes.append(f"The {name} split has no labels (all are -1) and is not used.")
            del splits[name]
    all_labels = {str(label) for label in splits["train"].labels}
    numeric = all(label.removeprefix("-").isdecimal() for label in all_labels)
    label_names = tuple(sorted(all_labels, key=lambda label: (int(label) if numeric else 0, label)))
    num_train = len(splits["train"].texts)
    if len(all_labels) < 2:
        raise ValueError(f"{source}: the training rows have only one class, {label_names[0]!r}; at least two are needed")
    if len(label_names) > num_train / 2:
        raise ValueError(
            f"{source}: {len(label_names)} different labels in {num_train} training rows; is the label column one of classes?"
        )
    index = {name: i for i, name in enumerate(label_names)}
    encoded = {}
    for name, rows in splits.items():
        unseen = sorted({str(label) for label in rows.labels} - all_labels)
        if unseen:
            raise ValueError(
                f"{source}: the {name} split has labels that are not in train: {_listed(unseen[:5])}; train has "
                f"{_listed(label_names)}"
            )
        encoded[name] = Split(rows.texts, np.array([index[str(label)] for label in rows.labels], np.int32))

    missing = [name for name in ("validation", "test") if name not in encoded]
    train = encoded["train"]
    num_held_out = int(HELD_OUT_SHARE * len(train.texts))
    for salt, name in enumerate(missing, start=1):
        train, encoded[name] = stratified_cut(train, num_held_out, seed=salt)
        if not encoded[name].texts:
            raise ValueError(f"{source}: {num_train} training rows are too few to cut a {name} split from them")
    if missing:
        notes.append(
            f"No {' and no '.join(missing)} split: {num_held_out} of the {num_train} training rows were cut for "
            f"{'each' if len(missing) > 1 else 'it'}, stratified by label, always the same ones."
        )
    test = encoded["test"]
    shared = sum(text in seen for seen in [set(train.texts)] for text in (*encoded["validation"].texts, *test.texts))
    if shared:
        notes.append(f"{shared} validation or test texts also occur in train.")
    for limit, name, split in ((max_train, "training", train), (max_validation, "validation", encoded["validation"])):
        if limit is not None and limit < len(split.texts):
            notes.append(f"Uses {limit:,} of {len(split.texts):,} {name} examples (--{name.removesuffix('ing')}-examples).")
    train = _at_most(train, max_train)
    validation = _at_most(encoded["validation"], max_validation)
    absent = [label_names[i] for i in range(len(label_names)) if i not in train.labels]
    if absent:
        raise ValueError(f"{source}: {len(train.texts)} training examples leave none of class {absent[0]!r}; use more")
    return TextData(train, validation, test, label_names, tuple(notes))


def _at_most(split: Split, limit: int | None) -> Split:
    if limit is None or limit >= len(split.texts):
        return split
    return stratified_cut(split, len(split.texts) - limit, seed=0)[0]


def stratified_cut(split: Split, num: int, seed: int) -> tuple[Split, Split]:
    """Cuts `num` examples off, of every label its share (largest remainders), and leaves the order as it was.

    Returns:
      The examples that remain and those that were cut. If there is room, some of every label remain.
    """
    rng = np.random.default_rng(seed)
    classes, counts = np.unique(split.labels, return_counts=True)
    quota = num * counts / counts.sum()
    most = counts - 1 if num <= counts.sum() - len(counts) else counts
    take = np.minimum(quota.astype(int), most)
    while take.sum() < num:
        take[np.argmax(np.where(take < most, quota - take, -np.inf))] += 1
    cut = np.zeros(len(split.texts), bool)
    for label, count, size in zip(classes, counts, take, strict=True):
        cut[rng.permutation(np.flatnonzero(split.labels == label))[count - size :]] = True
    pick = lambda mask: Split([split.texts[i] for i in np.flatnonzero(mask)], split.labels[mask])  # noqa: E731
    return pick(~cut), pick(cut)
