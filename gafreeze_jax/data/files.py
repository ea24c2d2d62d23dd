"""Text files, plain or gzipped, and folders of them with one for each split."""

import gzip
import zlib
from collections.abc import Sequence
from pathlib import Path

from gafreeze_jax.data.splits import SPLIT_NAMES


def kind(path: Path, suffixes: Sequence[str]) -> str | None:
    """Which of the suffixes a file has, apart from .gz."""
    name = path.name.lower().removesuffix(".gz")
    return next((suffix for suffix in suffixes if name.endswith(suffix)), None)


def find_splits(folder: Path, suffixes: Sequence[str]) -> dict[str, Path]:
    """The files of a folder by split; there is one for train.

    Raises:
      ValueError, FileNotFoundError: if a split has several files, or train none.
    """
    files = {}
    for split, names in SPLIT_NAMES.items():
        found = [f for f in sorted(folder.iterdir()) if f.name.split(".")[0].lower() in names and kind(f, suffixes)]
        if len(found) > 1:
            raise ValueError(f"{folder}: more than one {split} file: {', '.join(f.name for f in found)}; keep one")
        if found:
            files[split] = found[0]
    if "train" not in files:
        expected = f"one of train{{{','.join(suffixes)}}}" if len(suffixes) > 1 else f"train{suffixes[0]}"
        raise FileNotFoundError(f"{folder}: no train file; expected {expected}, plain or .gz")
    return files


def read_utf8(path: Path) -> str:
    """The text of a file.

    Raises:
      ValueError: if it is empty, damaged or not UTF-8, with the line.
    """
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
    return text
