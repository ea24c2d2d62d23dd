"""Text sets of TensorFlow Datasets, read without TensorFlow."""

import socket
from collections.abc import Iterator
from typing import Any

_HOST = "storage.googleapis.com"


def read_tfds(name: str) -> dict[str, Iterator[tuple[str, dict[str, Any]]]]:
    """Records of a TFDS text set by split name, each with its place for errors. Class labels come as their names.

    Downloads and prepares the set if that has not been done on this machine.

    Raises:
      ValueError: if there is no such set.
      FileNotFoundError: if it has to be downloaded and there is no network.
    """
    try:
        import tensorflow_datasets as tfds
        import tensorflow_datasets.text  # noqa: F401, registers the sets, which needs no TensorFlow
    except ImportError as error:
        raise ValueError(f"tfds:{name}: needs tensorflow-datasets and importlib_resources: {error}") from None

    try:
        builder = tfds.builder(name, try_gcs=False)
    except tfds.core.DatasetNotFoundError:
        raise ValueError(f"tfds:{name}: TFDS has no such data set; its names are at www.tensorflow.org/datasets") from None
    except ValueError as error:
        raise ValueError(f"tfds:{name}: {' '.join(str(error).split())}") from None
    if not builder.is_prepared():
        _check_network(name)
        builder.download_and_prepare(file_format="array_record")

    def records(split: str) -> Iterator[tuple[str, dict[str, Any]]]:
        for number, record in enumerate(builder.as_data_source(split=split)):
            yield f"{split} record {number}", {key: _plain(value, builder.info.features[key]) for key, value in record.items()}

    return {split: records(split) for split in builder.info.splits}


def _plain(value: Any, feature: Any) -> Any:
    """Bytes as str, labels as names, numpy scalars as Python's."""
    value = value.item() if hasattr(value, "item") and getattr(value, "ndim", 0) == 0 else value
    if isinstance(value, bytes):
        return value.decode("utf-8")
    if getattr(feature, "num_classes", None) and isinstance(value, int) and 0 <= value < feature.num_classes:
        return feature.int2str(value)
    return value


def _check_network(name: str) -> None:
    try:
        socket.create_connection((_HOST, 443), timeout=5).close()
    except OSError as error:
        raise FileNotFoundError(
            f"tfds:{name}: not prepared on this machine, and {_HOST} cannot be reached ({error}); prepare it where there is a "
            "network and copy ~/tensorflow_datasets, or give --data a file or folder"
        ) from None
