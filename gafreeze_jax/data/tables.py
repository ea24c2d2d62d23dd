"""Tables in files: JSON lines, Parquet, and values with separators in the dialects that programs write.

Each reader yields the records of a file with their places, and adds to `notes` what it recognized on the way, a sentence each.
"""

import csv
import io
import itertools
import math
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from gafreeze_jax.data import files
from gafreeze_jax.data.conll import read_conll
from gafreeze_jax.data.parquet import read_parquet
from gafreeze_jax.listing import listed, shorten

SEPARATORS = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "vertical bars"}
SEPARATOR_LINE = re.compile(r'"?sep=([,;\t|])"?,*\r?\n', re.I)  # for spreadsheet programs, above the header
# What programs write for no value, in any case.
MISSING = ("nan", "-nan", "nat", "n/a", "#n/a", "#n/a n/a", "#na", "#nv", "<na>", "null")
NUM_FOR_COLUMNS = 100  # records whose names are taken for all columns; JSON may lack some of them
Record = tuple[str, dict[str, Any]]  # with its place in front


def is_missing(value: Any) -> bool:
    """Whether a cell is empty, NaN, or holds a word for that. "None" and "na" may be classes, R's "NA" is not.

    >>> [is_missing(value) for value in ("", " ", None, float("nan"), "N/A", "NaN", "NA", "na", "none", 0)]
    [True, True, True, True, True, True, True, False, False, False]
    """
    if isinstance(value, str):
        word = value.strip()
        return word in ("", "NA") or word.lower() in MISSING
    return value is None or (isinstance(value, float) and math.isnan(value))


def left_out(where: str, places: list[str], why: str) -> list[str]:
    """The note on rows that are left out, if there are any.

    >>> left_out("a.csv", ["line 3", "line 7"], "without text")
    ['a.csv: 2 rows without text left out, the first at line 3.']
    """
    rows = "1 row" if len(places) == 1 else f"{len(places):,} rows"
    return [f"{where}: {rows} {why} left out, {'the first ' if len(places) > 1 else ''}at {places[0]}."] if places else []


def named_column(where: str, columns: Sequence[str], name: str, option: str) -> str:
    """The column of that name, or else the one that differs only in case."""
    column = name if name in columns else by_lower(columns).get(name.lower())
    if column is None:
        raise ValueError(f"{where}: no column {name!r}; the columns are {listed(columns)}; choose by {option}")
    return column


def by_lower(columns: Sequence[str]) -> dict[str, str]:
    """Columns by their names in lower case; of several, the one that is written so, or else the first.

    >>> by_lower(["Text", "label", "Label", "TEXT"])
    {'text': 'Text', 'label': 'label'}
    """
    found = {column.strip().lower(): column for column in reversed(columns)}
    return found | {name: name for name in found if name in columns}


class Dialect(NamedTuple):
    r"""How a table is written.

    Attributes:
      quoted: fields may be in quotation marks, which are doubled within a field.
      escaped: quotation marks within a field have a backslash.
      padded: blanks may follow a separator.
    """

    separator: str
    quoted: bool = True
    escaped: bool = False
    padded: bool = False

    @property
    def style(self) -> dict[str, Any]:
        """Options of `csv.reader`."""
        return {
            "delimiter": self.separator,
            "quoting": csv.QUOTE_MINIMAL if self.quoted else csv.QUOTE_NONE,
            "escapechar": "\\" if self.escaped else None,
            "skipinitialspace": self.padded,
            "strict": self.quoted,
        }

    def describe(self, usual: "Dialect") -> list[str]:
        """In which points it is not the usual dialect of its kind of file."""
        points = [f"separated by {SEPARATORS[self.separator]}"] if self.separator != usual.separator else []
        points += ["fields in quotation marks"] if self.quoted and self.separator == "\t" else []
        points += ["backslashes before quotation marks"] if self.escaped else []
        return points + (["blanks after separators"] if self.padded else [])


CSV, TSV = Dialect(","), Dialect("\t", quoted=False)


class Parsed(NamedTuple):
    """A table in some dialect.

    Attributes:
      rows: with the lines at which they begin; the first is the header.
      problem: why the rest cannot be read.
      num_odd: number of fields that still have quotation marks of another dialect.
    """

    dialect: Dialect
    rows: list[tuple[int, list[str]]]
    problem: str | None
    num_odd: int


def read_csv(path: Path, notes: list[str]) -> Iterator[Record]:
    return _read_delimited(path, CSV, notes)


def read_tsv(path: Path, notes: list[str]) -> Iterator[Record]:
    return _read_delimited(path, TSV, notes)  # such sets hold bare quotation marks


def read_jsonl(path: Path, notes: list[str]) -> Iterator[Record]:
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


READERS = {  # from a file to records
    ".csv": read_csv,
    ".tsv": read_tsv,
    ".jsonl": read_jsonl,
    ".parquet": read_parquet,
    ".conll": read_conll,
}
SUFFIXES = tuple(READERS)
EXPECTED = f"a {', '.join(SUFFIXES[:-1])} or {SUFFIXES[-1]} file"


def read(path: Path, notes: list[str]) -> Iterator[Record]:
    """The records of a file, with their places for errors."""
    return READERS[files.kind(path, SUFFIXES) or SUFFIXES[0]](path, notes)


def peek(records: Iterable[Record]) -> tuple[list[Record], list[str], Iterator[Record]]:
    """The first records, the columns that they have, and all records."""
    records = iter(records)
    first = list(itertools.islice(records, NUM_FOR_COLUMNS))
    return first, list(dict.fromkeys(name for _, record in first for name in record)), itertools.chain(first, records)


def read_shards(paths: Sequence[Path], notes: list[str]) -> tuple[str, Iterator[Record]]:
    """A name for messages and the records of one file, or of several that are read as one."""
    if len(paths) == 1:
        return str(paths[0]), read(paths[0], notes)
    records = ((f"{path.name} {place}", record) for path in paths for place, record in read(path, notes))
    return str(paths[0].parent), records


def _read_delimited(path: Path, usual: Dialect, notes: list[str]) -> Iterator[Record]:
    parsed = _recognize(files.read_utf8(path), usual)
    if parsed.problem is not None:
        raise ValueError(f"{path}: {parsed.problem}")
    if points := parsed.dialect.describe(usual):
        notes.append(f"{path}: recognized {', '.join(points)}.")
    (_, header), *rows = parsed.rows
    names = {place: name for place, name in enumerate(header) if name.strip()}
    repeated = [name for name, count in Counter(names.values()).items() if count > 1]
    if repeated:
        raise ValueError(f"{path}: column {shorten(repeated[0], 100)!r} occurs more than once in the header")
    if num_nameless := len(header) - len(names):
        columns = "1 column" if num_nameless == 1 else f"{num_nameless} columns"
        notes.append(f"{path}: {columns} without a name ignored.")
    repetitions, plain_header = [], [_plain(name) for name in header]
    for line, row in rows:
        if [_plain(field) for field in row] == plain_header:
            repetitions.append(f"line {line}")
        else:
            yield f"line {line}", {name: row[place] for place, name in names.items()}
    notes += left_out(str(path), repetitions, "like the header")


def _plain(name: str) -> str:
    """A column's name as headers are compared."""
    return name.removeprefix("\ufeff").strip().lower()


def _recognize(text: str, usual: Dialect) -> Parsed:
    """Parses a table in its dialect: the usual one, if all rows have as many fields as the header then, or another.

    Only separators that the header contains are tried. If no dialect fits, the one that reads the most rows is returned.
    """
    first = 1
    if directive := SEPARATOR_LINE.match(text):
        text, first = text[directive.end() :], 2
    marks = [directive[1]] if directive else [usual.separator, *(mark for mark in SEPARATORS if mark != usual.separator)]
    header = text.lstrip().partition("\n")[0]
    tried: list[Parsed] = []
    for separator in [mark for mark in marks if mark in header] or marks[:1]:
        for group in _dialects(separator):
            parsed = []
            for dialect in group:
                parsed.append(_parse(text, dialect, first))
                if parsed[-1].problem is None and not parsed[-1].num_odd:
                    return parsed[-1]
            if fitting := [table for table in parsed if table.problem is None]:
                return min(fitting, key=lambda table: table.num_odd)
            tried += parsed
    return max(tried, key=lambda table: len(table.rows))


def _dialects(separator: str) -> list[list[Dialect]]:
    """Dialects with a separator. A later group is for tables that no earlier one fits."""
    plain = Dialect(separator)
    others = [plain._replace(quoted=False), plain] if separator == "\t" else [plain, plain._replace(padded=True)]
    return [others, [dialect._replace(escaped=True) for dialect in others if dialect.quoted]]


def _parse(text: str, dialect: Dialect, first: int) -> Parsed:
    """Parses a table up to the first row that does not fit the header.

    Args:
      first: number of the text's first line.
    """
    csv.field_size_limit(2**31 - 1)
    reader = csv.reader(io.StringIO(text, newline=""), **dialect.style)
    rows: list[tuple[int, list[str]]] = []
    line, num_odd, problem = first, 0, None
    try:
        for row in reader:
            is_blank = not row or (len(row) == 1 and not row[0].strip() and not (rows and len(rows[0][1]) == 1))
            if not is_blank:
                num_odd += sum('"' in field and _is_odd(field, is_name=not rows) for field in row)
                rows.append((line, row))
            line = first + reader.line_num
    except csv.Error as error:
        problem = f"line {line}: {error}"
    if not rows:
        return Parsed(dialect, rows, problem or "no header in it", num_odd)
    rows[0] = (rows[0][0], _complete_header(*(row for _, row in rows)))
    width = len(rows[0][1])
    wrong = next((place for place, (_, row) in enumerate(rows) if len(row) != width), None)
    if wrong is not None:
        line, row = rows[wrong]
        problem = (
            f"line {line} has {len(row)} fields, the header has {width}; is the first line the header, and are fields with "
            f"{SEPARATORS[dialect.separator]} quoted?"
        )
    return Parsed(dialect, rows[:wrong], problem, num_odd)


def _complete_header(header: list[str], *rows: list[str]) -> list[str]:
    """The header, with an empty name for what all rows have more than it: a separator at the end, or row numbers as in R."""
    if rows and all(len(row) == len(header) + 1 for row in rows):
        if not any(row[-1] for row in rows):
            return [*header, ""]
        if len({row[0] for row in rows}) == len(rows) and all(row[0].isdigit() for row in rows):
            return ["", *header]
    return header


def _is_odd(field: str, *, is_name: bool) -> bool:
    """Whether a field has quotation marks that another dialect would remove."""
    if field[0].isspace():
        return field.lstrip().startswith('"')
    return looks_quoted(field) or (is_name and field[0] == field[-1] == '"')


def looks_quoted(field: str) -> bool:
    """Whether a field is in quotation marks and has marks within, all of them doubled."""
    inner = field[1:-1]
    return field[0] == field[-1] == '"' in inner and '"' not in inner.replace('""', "")
