"""Labelled texts with fixed train, validation and test splits, from files, folders, hubs or the embedded reviews."""

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from gafreeze_jax.data import files, hub, layout, splits, tables, targets
from gafreeze_jax.data.tables import SEPARATORS, SUFFIXES, Record, is_missing, left_out
from gafreeze_jax.listing import listed

# Column names are compared in lower case; earlier ones win.
PAIR_COLUMNS = (
    ("sentence1", "sentence2"),
    ("premise", "hypothesis"),
    ("question1", "question2"),
    ("question", "sentence"),
    ("text1", "text2"),
    ("text_a", "text_b"),
    ("sentence_a", "sentence_b"),
    ("text", "text_pair"),
    ("query", "passage"),
)
TEXT_COLUMNS = (
    "sentence", "text", "review", "content", "comment", "document", "utterance", "question", "title", "message", "tweet",
    "body", "description", "abstract", "headline", "sms", "comment_text", "review_text", *targets.WORD_COLUMNS,
)  # fmt: skip
INDEX_COLUMN = re.compile(r"(unnamed: \d+.*|id|idx|index|__index_level_\d+__|)")  # numbers of rows, as programs write them
SAVE_AS_CSV = "it is a spreadsheet, save it as CSV (UTF-8)"
HINTS = {
    **dict.fromkeys((".xlsx", ".xls", ".ods", ".numbers"), SAVE_AS_CSV),
    ".json": "write a JSON object for each row on a line of its own, as .jsonl",
    ".arrow": "save it as Parquet",
    ".feather": "save it as Parquet",
}  # what to do about other kinds of files, by suffix


class TextSplit(NamedTuple):
    """One split.

    Attributes:
      texts: N tuples of one text, or two for sentence pairs; for tags, of a text's words.
      labels: [N] int32, indices into the data set's `label_names`. For several labels [N, C] float32 of 0 and 1, for numbers
        [N] float64, for tags N arrays of int32.
    """

    texts: list[tuple[str, ...]]
    labels: Any


class TextData(NamedTuple):
    """A labelled text set.

    Attributes:
      label_names: the C classes, labels or tags; of numbers, the name of their column.
      notes: what was decided on the way and is reported (splits cut, rows left out), a sentence each.
      text_columns: of the training texts; none of the embedded reviews.
      kind: what the labels are.
    """

    train: TextSplit
    validation: TextSplit
    test: TextSplit
    label_names: tuple[str, ...]
    notes: tuple[str, ...]
    text_columns: tuple[str, ...] = ()
    kind: targets.Kind = "label"


TextRows = splits.Rows[tuple[str, ...]]


def load_text(
    source: str,
    *,
    text_columns: Sequence[str] = (),
    label_column: str | None = None,
    max_train: int | None = None,
    max_validation: int | None = None,
    kind: targets.Kind | None = None,
    known: splits.Known = tuple,
) -> TextData:
    """Loads labelled texts, with splits that are always the same for the same source.

    Args:
      source: "reviews" (embedded), "tfds:NAME", "hub:NAME" (`hub.find_splits`), a file of `tables.READERS` (or .gz), or a
        folder with a train file and, where there are any, validation and test files of these kinds
        (`layout.find_splits`). Splits that are missing are cut from the training rows, stratified by label.
      text_columns: one name, or two for sentence pairs; found by convention if empty.
      label_column: found by convention if None; for columns of 0 and 1 that are a label each, their names with commas.
      max_train, max_validation: use at most this many examples of a split, drawn stratified by label.
      kind: what the labels are; recognised from the training rows if None.
      known: gives the classes that the model tells apart already, as for `splits.complete`.

    Raises:
      ValueError, FileNotFoundError: if the source cannot be used, with the file, the row and what to do.
    """
    notes: list[str] = []
    if source == "reviews":
        text_columns, label_column = ("text",), "label"
    records = _records_of_splits(source, notes)
    raw, label = _rows_of_splits(records, text_columns, label_column, notes)
    columns = () if source == "reviews" else raw["train"].columns
    kind = kind or ("tags" if _has_words(raw["train"]) else targets.recognise(raw["train"], label))
    if kind == "tags":
        raw = {split: rows._replace(examples=[words_of(text) for text in rows.examples]) for split, rows in raw.items()}
    elif _has_words(raw["train"]):
        raise ValueError(f"{source}: its texts are lists of words, which get a tag each: give --task tags, or leave it out")
    if kind == "label":
        for rows in raw.values():
            targets.check_classes(rows, label)
        whole = splits.complete(source, raw, notes, known=known)
    else:
        read = targets.load(source, kind, raw, label, notes, max_train=max_train, max_validation=max_validation)
        of_splits = {name: splits.Labelled(read.examples[name], read.values[name]) for name in read.examples}
        whole = splits.Splits(of_splits["train"], of_splits["validation"], of_splits["test"], read.label_names)
    in_train = set(whole.train.examples)
    if shared := sum(text in in_train for text in (*whole.validation.examples, *whole.test.examples)):
        notes.append(f"{shared} validation or test texts also occur in train.")
    if kind == "label":
        whole = splits.limit(source, whole, notes, max_train, max_validation, known=known)
    train, validation, test = (TextSplit(part.examples, part.labels) for part in (whole.train, whole.validation, whole.test))
    return TextData(train, validation, test, whole.label_names, tuple(notes), columns, kind)


def _has_words(rows: TextRows) -> bool:
    return any(isinstance(text, Words) for text in rows.examples)


def words_of(text: tuple[str, ...]) -> tuple[str, ...]:
    """The words of a text; one that is not cut into words is cut at blanks."""
    return text if isinstance(text, Words) else tuple(" ".join(text).split())


class UnlabelledTexts(NamedTuple):
    """Texts without labels.

    Attributes:
      texts: N tuples of one text, or two for sentence pairs.
      columns: what tells them apart, {title: [N]}: "row", their numbers in the file, from 1, and the text columns.
      notes: what was decided on the way and is reported, a sentence each.
    """

    texts: list[tuple[str, ...]]
    columns: dict[str, Sequence[Any]]
    notes: tuple[str, ...]


def load_unlabelled(path: Path, text_columns: Sequence[str] = ()) -> UnlabelledTexts:
    """Loads the texts of a file of `tables.READERS` (or .gz); labels in it are not read.

    Args:
      text_columns: as for `load_text`.

    Raises:
      ValueError, FileNotFoundError: if the file cannot be used, with the row and what to do.
    """
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such file; expected {tables.EXPECTED}, plain or .gz")
    if not files.kind(path, SUFFIXES):
        raise ValueError(f"{path}: {_refusal(path)}")
    where, notes = str(path), []
    texts, empty = {}, []
    first, names, records = tables.peek(tables.read(path, notes))
    titles = find_text_columns(where, names, text_columns) if first else ()
    for row, (place, record) in enumerate(records, start=1):
        if (values := _texts_of(where, place, record, titles)) is None:
            empty.append(place)
        else:
            texts[row] = values
    if not texts:
        raise ValueError(f"{path}: no rows with text")
    written = [(" ".join(text),) if isinstance(text, Words) else text for text in texts.values()]
    columns = dict(zip(titles, zip(*written, strict=True), strict=True))
    notes += left_out(where, empty, "without text")
    return UnlabelledTexts(list(texts.values()), {"row": list(texts), **columns}, tuple(notes))


def _records_of_splits(source: str, notes: list[str]) -> dict[str, tuple[str, Iterable[Record]]]:
    """For each split of a source a name for messages, and the records."""
    if source == "reviews":
        from gafreeze_jax.data.reviews import read_reviews

        reviews = read_reviews().items()
        return {split: (source, ((f"review {i}", row) for i, row in enumerate(rows))) for split, rows in reviews}
    if source.startswith("tfds:"):
        from gafreeze_jax.data.tfds import read_tfds

        found = read_tfds(source.removeprefix("tfds:"))
        wanted = splits.choose_splits(source, list(found))
        return {split: (f"{source} ({name})", found[name]) for split, name in wanted.items()}
    paths = hub.find_splits(source) if source.startswith("hub:") else _find_files(Path(source))
    return {split: tables.read_shards(of_split, notes) for split, of_split in paths.items()}


def _find_files(path: Path) -> dict[str, list[Path]]:
    """The files of each split."""
    if not path.exists():
        raise FileNotFoundError(
            f"{path}: no such file or folder; expected {tables.EXPECTED}, a folder with a train file, "
            "hub:NAME, tfds:NAME, or the word reviews"
        )
    if path.is_dir():
        return layout.find_splits(path, SUFFIXES)
    if files.kind(path, SUFFIXES):
        return {"train": [path]}
    raise ValueError(f"{path}: {_refusal(path)}, or a folder of them")


def _refusal(path: Path) -> str:
    """Why a file of another kind cannot be read, and what can."""
    hint = f"; {HINTS[suffix]}" if (suffix := path.suffix.lower()) in HINTS else ""
    return f"unknown kind of file{hint}; expected {', '.join(SUFFIXES)}, plain or .gz"


def _rows_of_splits(
    records: Mapping[str, tuple[str, Iterable[Record]]],
    text_columns: Sequence[str],
    label_column: str | None,
    notes: list[str],
) -> tuple[dict[str, TextRows], str]:
    """The rows of each split, and the label column; a validation or test split without labels is left out and noted.

    Args:
      records: by split, training first: a name of the source for messages, and the records.
    """
    raw: dict[str, TextRows] = {}
    in_train, label, flags = set(), "", ()
    for split, (where, given) in records.items():
        first, columns, given = tables.peek(given)
        flags = flags or (targets.flag_columns(first, columns, label_column) if split == "train" else ())
        if flags and set(flags) <= set(columns):
            given, columns = targets.merge_flags(where, flags, given), [*columns, "labels"]
            label_column = "labels"
        names = {name for name in tables.by_lower(columns) if not INDEX_COLUMN.fullmatch(name)}
        if not names <= in_train or label.strip().lower() in names:
            texts, label = find_columns(where, columns, text_columns, label_column)
            rows = rows_from_records(where, given, texts, label, notes)
            if rows.examples:
                raw[split], in_train = rows, in_train or names
                continue
        if split == "train":
            raise ValueError(f"{where}: no rows with text" + (f" and a label in column {label!r}" if first else ""))
        notes.append(f"{where} has no labels and is not used; gafreeze predict can label it when the run has ended.")
    return raw, label


def rows_from_records(where: str, records: Iterable[Record], texts: Sequence[str], label: str, notes: list[str]) -> TextRows:
    """Picks the text and label columns of records; rows that lack any of them are left out and noted.

    Raises:
      ValueError: if a text is of another type, or all texts are missing.
    """
    rows, places = TextRows([], []), []
    without: dict[str, list[str]] = {"text": [], "a label": []}
    for place, record in records:
        values, value = _texts_of(where, place, record, texts), record.get(label)
        if values is None:
            without["text"].append(place)
        elif is_missing(value):
            without["a label"].append(place)
        else:
            _check_encodable(where, place, label, "".join(map(str, value)) if isinstance(value, list) else value)
            rows.examples.append(values)
            rows.labels.append(value)
            places.append(f"{where}: {place}")
    if not rows.examples and not without["a label"]:
        raise ValueError(f"{where}: no rows with text")
    if rows.examples:
        notes += [
            note for what, places_without in without.items() for note in left_out(where, places_without, f"without {what}")
        ]
    return rows._replace(columns=tuple(texts), places=places)


class Words(tuple[str, ...]):
    """The words of a text that came as a list."""


def _texts_of(where: str, place: str, record: Mapping[str, Any], names: Sequence[str]) -> tuple[str, ...] | None:
    """The text columns of a record; None if a text is missing."""
    values: tuple[Any, ...] = tuple(record.get(name) for name in names)
    if len(values) == 1 and isinstance(values[0], list) and values[0] and all(isinstance(word, str) for word in values[0]):
        _check_encodable(where, place, names[0], "".join(values[0]))
        return Words(values[0])
    for name, value in zip(names, values, strict=True):
        if not is_missing(value) and not isinstance(value, str):
            raise ValueError(f"{where}: {place}: column {name!r} must hold text, got {listed([repr(value)])}")
        _check_encodable(where, place, name, value)
    return None if any(map(is_missing, values)) else values


def _check_encodable(where: str, place: str, name: str, value: Any) -> None:
    try:
        str(value).encode()
    except UnicodeEncodeError:  # JSON can escape it, tokenizers cannot read it
        raise ValueError(f"{where}: {place}: column {name!r} has half a surrogate pair; complete it") from None


def find_columns(
    where: str, columns: Sequence[str], text_columns: Sequence[str], label_column: str | None
) -> tuple[tuple[str, ...], str]:
    """Names of the text column(s) and of the label column: the ones asked for, or the first convention that fits."""
    texts = find_text_columns(where, columns, text_columns)
    label = targets.find_label_column(where, columns, label_column)
    if label in texts:
        raise ValueError(f"{where}: text and label columns must differ, got {listed((*texts, label))}")
    return texts, label


def find_text_columns(where: str, columns: Sequence[str], text_columns: Sequence[str]) -> tuple[str, ...]:
    """Names of the text column(s): the ones asked for, or the first convention that fits."""
    if len(text_columns) > 2:
        raise ValueError(f"expected one text column, or two for sentence pairs; got {listed(text_columns)}")
    if text_columns:
        texts = tuple(tables.named_column(where, columns, name, "--text-columns") for name in text_columns)
    else:
        by_lower = tables.by_lower(columns)
        conventions = (*PAIR_COLUMNS, *((name,) for name in TEXT_COLUMNS))
        convention = next((names for names in conventions if all(name in by_lower for name in names)), None)
        if convention is None:
            hint = f"; they can be separated by {', '.join(SEPARATORS.values())}" if len(columns) == 1 else ""
            hint += "; the first line must be a header" if any(name.strip().isdigit() for name in columns) else ""
            raise ValueError(
                f"{where}: no text column found; name it with --text-columns. The columns are {listed(columns)}{hint}"
            )
        texts = tuple(by_lower[name] for name in convention)
    if len(set(texts)) < len(texts):
        raise ValueError(f"{where}: text columns must differ, got {listed(texts)}")
    return texts
