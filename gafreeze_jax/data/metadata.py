"""Images whose labels are in a table beside them, as in image folders of the Hugging Face hub: a row for each file."""

from collections.abc import Iterable
from pathlib import Path

from gafreeze_jax.data import files, folders, splits, tables, targets
from gafreeze_jax.data.splits import Rows
from gafreeze_jax.data.tables import Record, is_missing, left_out
from gafreeze_jax.listing import listed

METADATA, LABELS = "metadata", "labels"  # what such a table is called, without its suffix
FILE_COLUMNS = ("file_name", "filename", "file", "image", "image_path", "path")  # in lower case; earlier ones win
EXPECTED = "metadata.csv with columns file_name and label, beside the images"


def find_tables(path: Path) -> dict[str, Path]:
    """The table of a folder, as that of "train", or those of its folders with names of splits; {} if there are none."""
    if (table := _table(path)) is not None:
        return {"train": table}
    by_folder = {entry.name: table for entry in folders.visible(path) if entry.is_dir() and (table := _table(entry))}
    chosen = splits.choose_splits(str(path), list(by_folder)) if by_folder else {}
    return {split: by_folder[name] for split, name in chosen.items()}


def _table(folder: Path) -> Path | None:
    """A file called `metadata`, or, where there are no folders of classes, `labels`."""
    entries = folders.visible(folder)
    found = {
        entry.name.lower().partition(".")[0]: entry
        for entry in entries
        if entry.is_file() and files.kind(entry, tables.SUFFIXES)
    }
    has_classes = sum(entry.is_dir() for entry in entries) > 1
    return found.get(METADATA) or (None if has_classes else found.get(LABELS))


def read_tables(by_split: dict[str, Path], label_column: str | None, notes: list[str]) -> tuple[dict[str, Rows[Path]], str]:
    """The images of each split and their labels, and the column of these.

    Args:
      label_column: found by convention if None; for columns of 0 and 1 that are a label each, their names with commas.
      notes: what was decided is added, a sentence each.

    Raises:
      ValueError: if a table has no such columns, or names a file that is not there, with its place.
    """
    raw, column = {}, ""
    for split, table in by_split.items():
        first, columns, records = tables.peek(tables.read(table, notes))
        file_column = _file_column(table, columns)
        columns.remove(file_column)
        named = label_column
        if flags := targets.flag_columns(first, columns, label_column):
            records, columns, named = targets.merge_flags(str(table), flags, records), ["labels"], "labels"
        column = column or targets.find_label_column(str(table), columns, named)
        rows = _read_rows(table, records, file_column, column, notes)
        if rows.examples:
            raw[split] = rows
        elif split == "train":
            raise ValueError(f"{table}: no rows with a label in column {column!r}")
        else:
            notes.append(
                f"{table} has no labels and is not used; gafreeze predict can label its images when the run has ended."
            )
    return raw, column


def _file_column(table: Path, columns: list[str]) -> str:
    by_lower = tables.by_lower(columns)
    found = next((by_lower[name] for name in FILE_COLUMNS if name in by_lower), None)
    if found is None:
        raise ValueError(f"{table}: no column of image files, such as {FILE_COLUMNS[0]}; the columns are {listed(columns)}")
    return found


def _read_rows(table: Path, records: Iterable[Record], file_column: str, column: str, notes: list[str]) -> Rows[Path]:
    rows, places, without = Rows([], []), [], []
    for place, record in records:
        name = str(record.get(file_column) or "")
        picture = table.parent / name
        if not name or not picture.resolve().is_relative_to(table.parent.resolve()) or not picture.is_file():
            raise ValueError(
                f"{table}: {place}: column {file_column!r} must name a file in the table's folder, got {listed([repr(name)])}"
            )
        if is_missing(record.get(column)):
            without.append(place)
        else:
            rows.examples.append(picture)
            rows.labels.append(record[column])
            places.append(f"{table}: {place}")
    notes += left_out(str(table), without, "without a label") if rows.examples else []
    return rows._replace(columns=(file_column,), places=places)
