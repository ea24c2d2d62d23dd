"""Text files, plain or gzipped, and JSON."""

import codecs
import gzip
import io
import json
import math
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

LARGE_UNPACKED = 2**26  # bytes; what gives more, and more than 100 times its size, is taken for a decompression bomb
SPREADSHEET = "it is a spreadsheet or an archive under another name; save it as CSV (UTF-8)"
POINTER = b"version https://git-lfs"  # begins a file that Git LFS has put in place of a large one
OTHER_KINDS = {  # by how they begin
    b"PK\x03\x04": SPREADSHEET,  # zip, as all new ones are
    b"\xd0\xcf\x11\xe0": SPREADSHEET,
    b"\x1f\x8b": "it is a gzip file under another name; call it .gz",
    b"PAR1": "it is a Parquet file under another name; call it .parquet",
    POINTER: "it is a pointer of Git LFS, to be replaced by git lfs pull",
}
BOMB = "it would unpack to more than 100 times its size; if you trust it, store it uncompressed"


def kind(path: Path, suffixes: Sequence[str]) -> str | None:
    """Which of the suffixes a file has, apart from .gz."""
    name = path.name.lower().removesuffix(".gz")
    return next((suffix for suffix in suffixes if name.endswith(suffix)), None)


def read_utf8(path: Path) -> str:
    """The text of a file.

    Raises:
      ValueError: if it is empty, damaged, not UTF-8 or no text, with the line.
    """
    if not path.is_file():
        raise ValueError(f"{path}: expected a file, got a {'folder' if path.is_dir() else 'device or pipe'}")
    data = path.read_bytes()
    if path.name.lower().endswith(".gz"):
        try:
            with gzip.open(io.BytesIO(data)) as file:
                unpacked = file.read(most_unpacked(len(data)) + 1)
        except (OSError, EOFError, zlib.error) as error:
            raise ValueError(f"{path}: not a whole gzip file: {error}") from None
        if len(unpacked) > most_unpacked(len(data)):
            raise ValueError(f"{path}: {BOMB}")
        data = unpacked
    if reason := next((reason for start, reason in OTHER_KINDS.items() if data.startswith(start)), None):
        raise ValueError(f"{path}: {reason}")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        before, byte = error.object[: error.start], error.object[error.start]  # without the byte order mark
        line = before.count(b"\n") + 1
        likely = "UTF-16" if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) else "WINDOWS-1252"
        raise ValueError(
            f"{path}: line {line} is not UTF-8 (byte {byte:#04x}); convert the file to UTF-8, as by iconv -f {likely} -t UTF-8"
        ) from None
    if not text.strip():
        raise ValueError(f"{path}: the file is empty")
    if (place := text.find("\0")) >= 0:
        line = text.count("\n", 0, place) + 1
        raise ValueError(f"{path}: line {line} has a NUL byte; expected text in UTF-8, not UTF-16 or a binary file")
    return text


def hint_at_pointer(path: Path) -> str:
    """What to do about a file that Git LFS has put in place of a large one; "" if it is none."""
    with path.open("rb") as file:
        is_pointer = file.read(len(POINTER)) == POINTER
    return f"; {OTHER_KINDS[POINTER]}" if is_pointer else ""


def most_unpacked(size: int) -> int:
    """How many bytes an archive of some size may give."""
    return max(LARGE_UNPACKED, 100 * size)


def parse_json(text: str) -> Any:
    """JSON as RFC 8259 has it; Python's own parser lets more pass.

    Raises:
      ValueError: also for NaN, numbers that a float cannot hold, names that occur twice in an object, and deep nesting.
    """
    try:
        return json.loads(text, object_pairs_hook=_object, parse_float=_finite, parse_constant=_finite)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    entries = dict(pairs)
    if len(entries) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"{next(name for name in names if names.count(name) > 1)!r} occurs twice in an object")
    return entries


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"{text} is not a finite number")
    return number
