import shutil
import socket

import numpy as np
import pytest
import tensorflow_datasets as tfds
from absl import logging

import gafreeze_jax.data.tfds
from gafreeze_jax.data.text import load_text
from gafreeze_jax.data.tfds import read_tfds

TEXTS = [f"«{i}», très bien 😭\n" for i in range(20)]


class GafreezeJaxTexts(tfds.core.GeneratorBasedBuilder):
    """A text set as TFDS has them: bytes, class labels, and -1 for labels that are kept secret."""

    VERSION = tfds.core.Version("1.0.0")
    BUILDER_CONFIGS = [  # noqa: RUF012, TFDS wants a list
        tfds.core.BuilderConfig(name="labelled", description="all"),
        tfds.core.BuilderConfig(name="unlabelled", description="no test labels"),
        tfds.core.BuilderConfig(name="broken", description="cannot be prepared"),
    ]

    def _info(self):
        features = {"idx": tfds.features.Scalar(np.int32), "label": tfds.features.ClassLabel(names=["ugly", "good"])}
        return tfds.core.DatasetInfo(
            builder=self, features=tfds.features.FeaturesDict(features | {"text": tfds.features.Text()})
        )

    def _split_generators(self, dl_manager):
        if self.builder_config.name == "broken":
            raise AssertionError("Download it by hand\nand put it there.")
        sizes = {"train": range(10), "validation": range(10, 14), "test": range(14, 20)}
        return {split: self._generate_examples(split, numbers) for split, numbers in sizes.items()}

    def _generate_examples(self, split, numbers):
        secret = split == "test" and self.builder_config.name == "unlabelled"
        for i in numbers:
            yield i, {"idx": i, "text": TEXTS[i], "label": -1 if secret else i % 2}


def no_network(*args, **kwargs):
    raise OSError("no network here")


@pytest.fixture(autouse=True, scope="module")
def folder(tmp_path_factory):
    """Sets are looked for and prepared here, without a network (and without TensorFlow, which is no dependency)."""
    path = tmp_path_factory.mktemp("tensorflow_datasets")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HOME", str(path))
        patch.setenv("TFDS_DATA_DIR", str(path))
        patch.setattr("tensorflow_datasets.core.constants.DATA_DIR", str(path))  # read from the environment on import
        patch.setattr(socket, "create_connection", no_network)
        yield path


@pytest.fixture(scope="module")
def prepared(folder):
    for config in ("labelled", "unlabelled"):
        GafreezeJaxTexts(config=config).download_and_prepare(file_format="array_record")
    return folder / "gafreeze_jax_texts"


def examples(data, split):
    texts, labels = getattr(data, split)
    return sorted((text, data.label_names[label]) for (text,), label in zip(texts, labels, strict=True))


def expected(numbers):
    return sorted((TEXTS[i], ("ugly", "good")[i % 2]) for i in numbers)


@pytest.mark.parametrize("name", ["gafreeze_jax_texts", "gafreeze_jax_texts/labelled", "gafreeze_jax_texts/labelled:1.0.0"])
def test_texts_and_labels(prepared, name):
    data = load_text(f"tfds:{name}")
    assert data.label_names == ("good", "ugly")
    assert examples(data, "train") == expected(range(10))
    assert examples(data, "validation") == expected(range(10, 14))
    assert examples(data, "test") == expected(range(14, 20))
    assert data.notes == ()


def test_unlabelled_test_split_is_not_used(prepared):
    data = load_text("tfds:gafreeze_jax_texts/unlabelled")
    assert sorted(examples(data, "train") + examples(data, "test")) == expected(range(10))
    assert data.notes == (
        "The test split has no labels (all are -1) and is not used.",
        "No test split: 2 of the 10 training rows were cut for it, stratified by label, always the same ones.",
    )


def test_records_are_plain_values(prepared):
    place, record = next(read_tfds("gafreeze_jax_texts/labelled")["validation"])
    assert place == "validation record 0"
    assert {name: type(value) for name, value in record.items()} == {"idx": int, "label": str, "text": str}


def test_columns_can_be_named(prepared):
    with pytest.raises(ValueError, match=r"\(train\): no column 'body'; the columns are idx, label, text"):
        load_text("tfds:gafreeze_jax_texts", text_columns=("body",))


def test_sets_are_prepared_where_there_is_a_network(tmp_path, monkeypatch):
    monkeypatch.setattr("tensorflow_datasets.core.constants.DATA_DIR", str(tmp_path))
    monkeypatch.setattr(gafreeze_jax.data.tfds, "_check_network", lambda name: None)
    assert examples(load_text("tfds:gafreeze_jax_texts"), "train") == expected(range(10))
    assert (tmp_path / "gafreeze_jax_texts/labelled/1.0.0/dataset_info.json").exists()
    assert_fails("gafreeze_jax_texts/broken", "cannot be prepared: Download it by hand and put it there.")


def assert_fails(name, message, kind=ValueError):
    with pytest.raises(kind) as error:
        load_text(f"tfds:{name}")
    assert error.type is kind
    assert str(error.value).startswith(f"tfds:{name}: ")
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_no_network(caplog):
    logging.set_verbosity(logging.WARNING)  # as it is at first
    message = (
        "not prepared on this machine, and storage.googleapis.com cannot be reached (no network here); prepare it where there "
        "is a network and copy ~/tensorflow_datasets, or give --data a file or folder, or leave it out, which needs no network"
    )
    assert_fails("glue/sst2", message, FileNotFoundError)
    assert caplog.records == []  # no "Variant folder ... has no dataset_info.json"
    assert logging.get_verbosity() == logging.WARNING


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("gluee", "TFDS has no such data set; did you mean glue?"),
        ("qqqqq/sst2", "TFDS has no such data set; its names are at www.tensorflow.org/datasets"),
        ("glue/nope", "glue has no configuration 'nope'; its configurations are cola, sst2, mrpc, qqp, stsb, mnli, "),
        ("ag_news_subset/nope", "ag_news_subset has no configuration 'nope'; it has none"),
        ("glue/sst2:9.9.9", "cannot be loaded at version 9.9.9, only: "),
        ("", "expected tfds:NAME, tfds:NAME/CONFIG or one of them with :VERSION"),
        ("glue/", "expected tfds:NAME, tfds:NAME/CONFIG"),
        ("huggingface:glue", "expected tfds:NAME, tfds:NAME/CONFIG"),
    ],
)
def test_unknown_names(name, message):
    assert_fails(name, message)


def test_set_that_was_prepared_for_tensorflow(prepared, tmp_path, monkeypatch):
    shutil.copytree(prepared, tmp_path / "gafreeze_jax_texts")
    monkeypatch.setattr("tensorflow_datasets.core.constants.DATA_DIR", str(tmp_path))
    info = tmp_path / "gafreeze_jax_texts/labelled/1.0.0/dataset_info.json"
    info.write_text(info.read_text().replace("array_record", "tfrecord"))
    assert_fails(
        "gafreeze_jax_texts", f"{info.parent} is not in the array_record format, and cannot be read without TensorFlow"
    )
