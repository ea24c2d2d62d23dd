"""Sets of texts and of images from TensorFlow Datasets, read without TensorFlow."""

import contextlib
import difflib
import re
from collections.abc import Iterator
from typing import Any, Literal

from gafreeze_jax.data import hub
from gafreeze_jax.extras import needs
from gafreeze_jax.listing import listed, reason

_HOST = "storage.googleapis.com"
_NAME = re.compile(r"(?P<set>\w+)(/(?P<config>[\w.-]+))?(:[\d.*]+)?")


def read_tfds(name: str, kind: Literal["text", "images"] = "text") -> dict[str, Iterator[tuple[str, dict[str, Any]]]]:
    """Records of a TFDS set by split name, each with its place for errors. Class labels come as their names.

    Downloads and prepares the set if that has not been done on this machine.

    Raises:
      ValueError: if there is no such set, or it cannot be prepared or read without TensorFlow.
      FileNotFoundError: if it has to be downloaded and there is no network.
    """
    match = _NAME.fullmatch(name)
    if match is None:
        raise ValueError(f"tfds:{name}: expected tfds:NAME, tfds:NAME/CONFIG or one of them with :VERSION")
    with needs("tfds"):  # registers the sets of a kind, which needs no TensorFlow
        if kind == "text":
            import tensorflow_datasets.text
        else:
            import tensorflow_datasets.image_classification  # noqa: F401

    with _quiet():
        builder = _make_builder(name, match["set"], match["config"])
        if not builder.is_prepared():
            _check_network(name)
            try:
                builder.download_and_prepare(file_format="array_record")
            except ImportError:
                raise ValueError(
                    f"tfds:{name}: preparing this set needs TensorFlow, reading it does not: where that is installed, run tfds "
                    f"build {name} --file_format=array_record, and copy ~/tensorflow_datasets"
                ) from None
            except Exception as error:  # whatever a set's code and its downloads raise
                raise ValueError(f"tfds:{name}: cannot be prepared: {reason(error)}") from None
        try:
            sources = builder.as_data_source()
        except NotImplementedError:
            raise ValueError(
                f"tfds:{name}: {builder.data_path} is not in the array_record format, and cannot be read without TensorFlow; "
                "delete it, or set TFDS_DATA_DIR to another folder, to have it prepared anew"
            ) from None

    def records(split: str) -> Iterator[tuple[str, dict[str, Any]]]:
        for number, record in enumerate(sources[split]):
            yield f"{split} record {number}", {key: _plain(value, builder.info.features[key]) for key, value in record.items()}

    return {split: records(split) for split in sources}


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keeps TFDS from warning about each set that is not prepared yet."""
    from absl import logging

    verbosity = logging.get_verbosity()
    logging.set_verbosity(logging.ERROR)
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)


def _make_builder(name: str, set_name: str, config: str | None) -> Any:
    with needs("tfds"):
        import tensorflow_datasets as tfds

    try:
        return tfds.builder(name, try_gcs=False)
    except tfds.core.DatasetNotFoundError:
        close = difflib.get_close_matches(set_name, tfds.list_builders(with_community_datasets=False))
        hint = f"did you mean {' or '.join(close)}?" if close else "its names are at www.tensorflow.org/datasets"
        raise ValueError(f"tfds:{name}: TFDS has no such data set; {hint}") from None
    except (ValueError, AssertionError) as error:
        configs = tfds.builder_cls(set_name).builder_configs
        if config is None or config in configs:
            raise ValueError(f"tfds:{name}: {reason(error)}") from None
        # TFDS lists the ones that are spelt alike, often none.
        known = f"its configurations are {listed(configs)}" if configs else "it has none"
        raise ValueError(f"tfds:{name}: {set_name} has no configuration {config!r}; {known}") from None
    except Exception as error:  # some sets' code needs TensorFlow
        raise ValueError(f"tfds:{name}: cannot be used: {reason(error)}") from None


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
        hub.connect(_HOST)
    except OSError as error:
        raise FileNotFoundError(
            f"tfds:{name}: not prepared on this machine, and {_HOST} cannot be reached ({error}); prepare it where there is a "
            "network and copy ~/tensorflow_datasets, or give --data a file or folder, or leave it out, which needs no network"
        ) from None
