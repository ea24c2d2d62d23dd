"""CoNLL files: a word and its tag in each line, and an empty line between sentences."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from gafreeze_jax.data import files


def read_conll(path: Path, notes: list[str]) -> Iterator[tuple[str, dict[str, Any]]]:
    """The sentences of a file, with the line where each begins: words from the first field, tags from the last.

    Fields are separated by tabs, or by blanks if the first word's line has no tab; all lines have the same number. Without a
    second field there are no tags. Lines of -DOCSTART- and comments are skipped.

    Raises:
      ValueError: for a line with another number of fields, or without a word or a tag.
    """
    separator, width, shape = None, 0, ""
    words, tags, place = [], [], ""
    for number, line in enumerate([*files.read_utf8(path).split("\n"), ""], start=1):  # an empty line ends the last one
        line = line.rstrip("\r")
        fields = line.split(separator)
        if not line.strip() or fields[0] == "-DOCSTART-":
            if words:
                yield place, {"tokens": words} | ({"tags": tags} if width > 1 else {})
            words, tags = [], []
            continue
        if line.startswith("# ") and len(fields) != width:
            continue  # a comment, as in CoNLL-U
        if not width:
            separator = "\t" if "\t" in line else None
            fields = line.split(separator)
            width, shape = len(fields), f"line {number} has {len(fields)}"
        if len(fields) != width:
            raise ValueError(
                f"{path}: line {number} has {_fields(len(fields))}, {shape}; expected a word and its tag in each line"
            )
        if not fields[0].strip() or not fields[-1].strip():
            raise ValueError(f"{path}: line {number} has no {'word' if not fields[0].strip() else 'tag'}")
        place = place if words else f"line {number}"
        words.append(fields[0])
        tags.append(fields[-1])


def _fields(num: int) -> str:
    return "1 field" if num == 1 else f"{num} fields"
