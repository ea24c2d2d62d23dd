"""What the labels of texts and images are: one of a few, several, a number, or a tag for each word."""

import functools
import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np

from gafreeze_jax.data import files, splits, tables
from gafreeze_jax.data.splits import Labelled, Rows
from gafreeze_jax.data.tables import Record
from gafreeze_jax.listing import listed
from gafreeze_jax.metrics import tags

Kind = Literal["label", "labels", "number", "tags"]
IN_WORDS: dict[Kind, str] = {
    "label": "one label for each text",
    "labels": "several labels for each text",
    "number": "a number for each text",
    "tags": "a tag for each word",
}
# Column names in lower case; earlier ones win.
LABEL_COLUMNS = (
    "label", "labels", "class", "category", "sentiment", "target", "y", "ner_tags", "tags", "pos_tags", "score", "similarity",
    "similarity_score", "rating", "stars", "emotions", "genres", "topics", "categories",
    "intent", "emotion", "topic",
)  # fmt: skip
PLURAL = ("labels", "tags", "emotions", "genres", "topics", "categories")  # whose strings may hold several labels
WORD_COLUMNS = ("tokens", "words")
LIST_SEPARATORS = {",": "commas", ";": "semicolons", "|": "vertical bars"}
THOUSANDS = re.compile(r"[+-]?[1-9]\d{0,2},\d{3}")  # or a number with a decimal comma
FLAGS = {"0": False, "1": True, "false": False, "true": True, "0.0": False, "1.0": True}
MOSTLY = 0.9  # of the labels, that decides what they are
NUM_STRATA = 10  # of numbers

Texts = tuple[str, ...]


class Targets(NamedTuple):
    """Texts or images of three splits, and what a model learns to predict of them.

    Attributes:
      examples: {split: N texts or images}; for tags, the words of each text.
      values: {split: values}: [N] float64 numbers, not standardised yet, [N, C] float32 of 0 and 1, or N arrays of tags, int32.
      label_names: of the C labels or tags; of numbers, the name of their column.
    """

    examples: dict[str, list[Any]]
    values: dict[str, Any]
    label_names: tuple[str, ...]


def recognise(rows: Rows[Any], column: str) -> Kind:
    """What the labels of the training rows are."""
    values = rows.labels
    if _are_lists(values):
        return "labels"
    is_plural = column.strip().lower() in PLURAL
    if _have_decimal_commas(values) and not is_plural:
        return "number"
    numbers = [number for value in values if (number := _as_float(value)) is not None]
    if len(numbers) >= MOSTLY * len(values):
        return "number" if any(math.isfinite(number) and not number.is_integer() for number in numbers) else "label"
    separator = _separator(values) if is_plural else ""
    pieces = {piece for value in values for piece in _pieces(value, separator)}
    return "labels" if separator and len(pieces) <= len(set(map(str, values))) else "label"


def find_label_column(where: str, columns: Sequence[str], label_column: str | None) -> str:
    """The column that is asked for, or the first with a usual name for labels."""
    if label_column is not None:
        return tables.named_column(where, columns, label_column, "--label-column")
    by_lower = tables.by_lower(columns)
    label = next((by_lower[name] for name in LABEL_COLUMNS if name in by_lower), None)
    if label is None:
        raise ValueError(f"{where}: no label column found; name it with --label-column. The columns are {listed(columns)}")
    return label


def check_classes(rows: Rows[Any], label: str) -> None:
    """Raises a ValueError if a label cannot be that of a class."""
    for place, value in zip(rows.places, rows.labels, strict=True):
        if not isinstance(value, int | str) and not (isinstance(value, float) and value.is_integer()):
            got = f"got {listed([repr(value)])} in column {label!r}"
            raise ValueError(f"{place}: labels must be strings or integers (classes), {got}")


def load(
    source: str,
    kind: Kind,
    raw: Mapping[str, Rows[Any]],
    column: str,
    notes: list[str],
    *,
    max_train: int | None,
    max_validation: int | None,
) -> Targets:
    """Reads labels other than those of one class, cuts splits that are missing, and takes at most some examples.

    Args:
      kind: "labels", "number" or "tags".
      column: of the labels.
      notes: what was decided is added, a sentence each.

    Raises:
      ValueError: for a label of another kind, with its place.
    """
    raw = splits.without_unlabelled(raw, notes)
    if kind == "number" and _have_decimal_commas(raw["train"].labels):
        raw = _with_decimal_points(source, raw, column, notes)
    parsers = {"number": _parse_number, "labels": _label_parser(raw["train"].labels), "tags": _parse_tags}
    if kind == "labels":
        _check_several(source, raw["train"].labels, column)
    values = {
        split: [
            parsers[kind](place, column, label, text)
            for place, label, text in zip(rows.places, rows.labels, rows.examples, strict=True)
        ]
        for split, rows in raw.items()
    }
    if kind == "tags":
        values = _repair(values, notes)
    names = (column,) if kind == "number" else _names(source, values, notes)
    strata = _strata(kind, values["train"])
    pairs = {
        split: Labelled(list(zip(rows.examples, values[split], strict=True)), strata(values[split]))
        for split, rows in raw.items()
    }
    whole = splits.cut_missing(source, pairs, notes)
    given = splits.Splits(whole["train"], whole["validation"], whole["test"], ())
    used = splits.limit(source, given, notes, max_train, max_validation)
    kept = {name: getattr(used, name).examples for name in splits.SPLIT_NAMES}
    if kind == "number":
        _check_spread(source, [value for _, value in kept["train"]], column)
    encode = functools.partial(_encode, kind, {name: place for place, name in enumerate(names)})
    return Targets(
        {name: [text for text, _ in examples] for name, examples in kept.items()},
        {name: encode([value for _, value in examples]) for name, examples in kept.items()},
        names,
    )


def describe_splits(source: str, data: Any) -> list[str]:
    """What was loaded, for people, a line each; of anything that has three splits with `labels`, `label_names`, `kind` and
    `notes`."""
    train, validation, test = (f"{len(split.labels):,}" for split in data[:3])
    opening = f"Data: {source}, {train} training, {validation} validation, {test} test examples"
    frequencies = splits.describe_frequencies(data) if data.kind == "label" else []
    return [f"{opening}, {_describe(data.kind, data.train.labels, data.label_names)}", *frequencies, *data.notes]


def _describe(kind: Kind, targets: Any, label_names: Sequence[str]) -> str:
    if kind == "number":
        return f"numbers from {targets.min():.4g} to {targets.max():.4g}"
    shown = ", ".join(label_names[:8]) + (", ..." if len(label_names) > 8 else "")
    return f"{len(label_names)} {'classes' if kind == 'label' else kind} ({shown})"


# Numbers


def _have_decimal_commas(values: Sequence[Any]) -> bool:
    are_numbers = all(isinstance(value, str) and re.fullmatch(r"[+-]?\d+(,\d+)?", value.strip()) for value in values)
    return are_numbers and any("," in value for value in values)


def _with_decimal_points(source: str, raw: Mapping[str, Rows[Any]], column: str, notes: list[str]) -> dict[str, Rows[Any]]:
    """Rows whose numbers have points for decimal commas; raises a ValueError if all commas may separate thousands."""
    with_comma = [label for label in raw["train"].labels if "," in label]
    if all(THOUSANDS.fullmatch(label.strip()) for label in with_comma):
        raise ValueError(
            f"{source}: column {column!r} has numbers such as {with_comma[0]!r}, whose comma may be a decimal one or separate "
            "thousands; write them without separators, or with a decimal point"
        )
    notes.append(f"Column {column!r} has numbers with a decimal comma")
    return {split: rows._replace(labels=[str(label).replace(",", ".") for label in rows.labels]) for split, rows in raw.items()}


def _as_float(value: Any) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        return float(value)
    except (ValueError, OverflowError):
        return None


def _parse_number(where: str, column: str, value: Any, text: Texts) -> float:
    number = _as_float(value)
    if number is None or not math.isfinite(number) or abs(number) > float(np.finfo(np.float32).max):
        raise ValueError(f"{where}: column {column!r} must hold finite numbers, got {listed([repr(value)])}")
    return number


def _check_spread(source: str, values: Sequence[float], column: str) -> None:
    if len(set(values)) < 2:
        raise ValueError(f"{source}: all training examples have the same number in column {column!r}, {values[0]:g}")


# Several labels


def _is_json_list(value: Any) -> bool:
    return isinstance(value, str) and value.strip().startswith("[") and value.strip().endswith("]")


def _are_lists(values: Sequence[Any]) -> bool:
    """Whether most values are lists, or JSON of such."""
    return sum(isinstance(value, list) or _is_json_list(value) for value in values) >= MOSTLY * len(values) > 0


def _separator(values: Iterable[Any]) -> str:
    """That occurs most often in strings; "" = none does."""
    counts = {mark: sum(mark in value for value in values if isinstance(value, str)) for mark in LIST_SEPARATORS}
    return max(counts, key=counts.__getitem__) if any(counts.values()) else ""


def _pieces(value: Any, separator: str) -> list[str]:
    pieces = str(value).split(separator) if separator else [str(value)]
    return [piece.strip() for piece in pieces if piece.strip()]


def _check_several(source: str, values: Sequence[Any], column: str) -> None:
    """Raises a ValueError if no row has several labels."""
    if not _separator(values) and not _are_lists(values):
        raise ValueError(
            f"{source}: no row has several labels in column {column!r}, such as {listed([repr(values[0])])}; expected lists, "
            f"or labels separated by {', '.join(LIST_SEPARATORS.values())}; for one label give --task label"
        )


def _label_parser(values: Sequence[Any]) -> Callable[..., tuple[str, ...]]:
    """A function that reads the labels of a row, written as in these values."""
    separator = _separator(values)
    has_lists = _are_lists(values)

    def parse(where: str, column: str, value: Any, text: Texts) -> tuple[str, ...]:
        if _is_json_list(value):
            try:
                value = files.parse_json(value)
            except ValueError:
                raise ValueError(
                    f'{where}: column {column!r} must hold JSON lists such as ["a", "b"], got {listed([repr(value)])}'
                ) from None
        given = value if isinstance(value, list) else _pieces(value, "" if has_lists else separator)
        if has_lists != isinstance(value, list) or not all(isinstance(name, str | int) for name in given):
            kinds = (
                "lists of names or integers" if has_lists else f"names separated by {LIST_SEPARATORS.get(separator, 'commas')}"
            )
            raise ValueError(f"{where}: column {column!r} must hold {kinds}, got {listed([repr(value)])}")
        return tuple(dict.fromkeys(stripped for name in given if (stripped := str(name).strip())))

    return parse


def flag_columns(records: Sequence[Record], columns: Sequence[str], label_column: str | None) -> tuple[str, ...]:
    """Columns of 0 and 1 that are a label each: those asked for by names with commas, or, where no column is named as labels
    are, all that hold nothing else and are several."""
    if label_column is not None:
        names = tuple(name.strip() for name in label_column.split(","))
        return names if len(names) > 1 and label_column not in columns and set(names) <= set(columns) else ()
    if {column.strip().lower() for column in columns} & set(LABEL_COLUMNS):
        return ()
    found = tuple(name for name in columns if all(_flag(record.get(name)) is not None for _, record in records))
    return found if len(found) > 1 else ()


def merge_flags(where: str, flags: Sequence[str], records: Iterable[Record]) -> Iterator[Record]:
    """Records with a list "labels" of the flags that are 1."""
    for place, record in records:
        values = {name: _flag(record.get(name)) for name in flags}
        if wrong := [name for name, value in values.items() if value is None]:
            got = listed([repr(record.get(wrong[0]))])
            raise ValueError(f"{where}: {place}: column {wrong[0]!r} must hold 0 or 1, got {got}")
        yield place, record | {"labels": [name for name, value in values.items() if value]}


def _flag(value: Any) -> bool | None:
    return FLAGS.get(str(value).strip().lower())


def _names(source: str, values: Mapping[str, Sequence[Sequence[str]]], notes: list[str]) -> tuple[str, ...]:
    """All labels or tags, sorted; tags of entities by their types, numbers by their size."""
    by_split = {split: {name for row in rows for name in row} for split, rows in values.items()}
    names = set().union(*by_split.values())
    if len(names) < 2:
        raise ValueError(f"{source}: expected two labels or more, got {listed(map(repr, names)) or 'none'}")
    if unseen := sorted(names - by_split["train"]):
        notes.append(f"Labels that do not occur in train, and cannot be learned: {listed(unseen)}.")
    if all(name.isdecimal() for name in names):
        return tuple(sorted(names, key=int))
    if tags.is_scheme(tuple(sorted(names))):
        return tuple(sorted(names, key=lambda name: (name[2:], name)))  # by type
    return tuple(sorted(names))


# Tags


def _parse_tags(where: str, column: str, value: Any, text: Texts) -> list[str]:
    given = value.split() if isinstance(value, str) else value
    if not isinstance(given, list) or not all(isinstance(tag, str | int) and str(tag).strip() for tag in given):
        raise ValueError(f"{where}: column {column!r} must hold a list of tags, got {listed([repr(value)])}")
    if len(given) != len(text):
        raise ValueError(f"{where}: {len(given)} tags for {len(text)} words; every word needs one")
    return [str(tag).strip() for tag in given]


def _repair(values: Mapping[str, list[list[str]]], notes: list[str]) -> dict[str, list[list[str]]]:
    """Has every entity begin with B-, where tags mark entities, and counts those that did not."""
    names = {tag for rows in values.values() for row in rows for tag in row}
    if not tags.is_scheme(tuple(sorted(names))):
        return dict(values)
    changed = {split: [tags.repaired(row) for row in rows] for split, rows in values.items()}
    num = sum(
        old != new
        for split, rows in values.items()
        for before, after in zip(rows, changed[split], strict=True)
        for old, new in zip(before, after, strict=True)
    )
    if num:
        notes.append(f"{num:,} tags I- that begin an entity count as B-, as for the CoNLL scorer.")
    return changed


# All kinds


def _strata(kind: Kind, train: Sequence[Any]) -> Callable[[Sequence[Any]], np.ndarray]:
    """By what examples are cut: classes, which are tenths of the numbers, or all labels or tags of an example, [N, C] bool."""
    if kind == "number":
        limits = np.unique(np.quantile(train, np.arange(1, NUM_STRATA) / NUM_STRATA))
        return lambda values: np.digitize(values, limits)
    names = sorted({name for row in train for name in row})
    return lambda values: np.array([[name in row for name in names] for row in values], bool)


def _encode(kind: Kind, places: Mapping[str, int], values: Sequence[Any]) -> Any:
    if kind == "number":
        return np.array(values, np.float64)  # as float32, large ones that lie close together would become the same
    rows = [np.array([places[name] for name in row], np.int32) for row in values]
    if kind == "tags":
        return rows
    matrix = np.zeros((len(rows), len(places)), np.float32)
    for row, of_row in zip(matrix, rows, strict=True):
        row[of_row] = 1
    return matrix
