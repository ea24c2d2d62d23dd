"""Tables in Parquet files."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from gafreeze_jax.data import files
from gafreeze_jax.extras import needs
from gafreeze_jax.listing import listed, reason

BYTES_OF_VALUE = 8  # in memory, at least
Decoder = Callable[[Any], Any]


def read_parquet(path: Path, notes: list[str]) -> Iterator[tuple[str, dict[str, Any]]]:
    """The records of a file, with their places; numbers of classes become names where the file has these.

    Raises:
      ValueError: if it is damaged, would fill the memory, or has two columns of a name.
    """
    if not path.is_file():
        raise ValueError(f"{path}: expected a file, got a {'folder' if path.is_dir() else 'device or pipe'}")
    with needs("text"):
        from pyarrow.parquet import ParquetFile

    number, problem = 0, None
    try:
        with ParquetFile(path) as file:
            problem, decoders = _problem(path, file), _decoders(file.schema_arrow.metadata)
            for batch in file.iter_batches() if problem is None else ():
                columns = batch.to_pydict()
                columns |= {name: list(map(decode, columns[name])) for name, decode in decoders.items() if name in columns}
                for row in zip(*columns.values(), strict=True):
                    number += 1
                    yield f"row {number}", dict(zip(columns, row, strict=True))
    except Exception as error:  # whatever damaged bytes make pyarrow raise
        raise ValueError(f"{path}: not a whole Parquet file: {reason(error)}{files.hint_at_pointer(path)}") from None
    if problem is not None:
        raise ValueError(f"{path}: {problem}")


def _problem(path: Path, file: Any) -> str | None:
    """Why a whole file is not read."""
    metadata, names = file.metadata, file.schema_arrow.names
    num_bytes = sum(metadata.row_group(group).total_byte_size for group in range(metadata.num_row_groups))
    num_values = metadata.num_rows * metadata.num_columns  # a value that is repeated takes no bytes
    if max(num_bytes, BYTES_OF_VALUE * num_values) > files.most_unpacked(path.stat().st_size):
        return files.BOMB
    repeated = [name for name in names if names.count(name) > 1]
    return f"column {listed(repeated[:1])!r} occurs more than once" if repeated else None


def _decoders(metadata: dict[bytes, bytes] | None) -> dict[str, Decoder]:
    """What makes names of the numbers of classes, by column, as the hub's library describes columns in a file's metadata."""
    try:
        features = files.parse_json((metadata or {})[b"huggingface"].decode())["info"]["features"]
        decoders = {name: _decoder(feature) for name, feature in features.items()}
    except (KeyError, TypeError, AttributeError, ValueError):
        return {}
    return {name: decode for name, decode in decoders.items() if decode}


def _decoder(feature: Any) -> Decoder | None:
    match feature:
        case {"_type": "ClassLabel", "names": list(names)}:
            return lambda value: str(names[value]) if isinstance(value, int) and 0 <= value < len(names) else value
        case {"_type": "Sequence" | "LargeList" | "List", "feature": of_items} if decode := _decoder(of_items):
            return lambda values: list(map(decode, values)) if isinstance(values, list) else values
    return None
