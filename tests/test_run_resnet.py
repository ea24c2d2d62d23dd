"""The real script, run for real with tiny options, and with every kind of bad input."""

import csv
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
import pytest
import run_resnet
from PIL import Image
from safetensors.numpy import load_file, save_file

from gafreeze_jax.activations import Source, score
from gafreeze_jax.data.batches import in_order, make_batches
from gafreeze_jax.data.images import Frame, load_images
from gafreeze_jax.models import resnet
from gafreeze_jax.stages import Dataset, parameters
from gafreeze_jax.tasks import resnet as resnet_task

BASELINES = {"found", "train all", "head only", "best prefix mask", "best random mask", "gradual unfreezing", "auto-RGN"}
SCRIPT = Path(run_resnet.__file__)
SHARED = Path(__file__).parents[1] / "../shared/data/images"
TINY = {
    "gens": 2,
    "population": 2,
    "train_examples": 20,
    "validation_examples": 16,
    "epochs": 1,
    "batch_size": 8,
    "finalist_seeds": 1,
}
CONFIG = resnet.ResNetConfig(3, 4, (4, 8), (1, 1), "basic", stem="cifar")
GENES = ["stem", "layer1_0", "layer2_0"]


@pytest.fixture(scope="module")
def small_model(tmp_path_factory):
    """A random ResNet of three genes for images of 8 x 8 pixels, with PyTorch's names."""
    folder = tmp_path_factory.mktemp("model")
    resnet.write_new(folder, CONFIG, 8, resnet.init_params(jax.random.key(0), CONFIG, 4))
    return folder


@pytest.fixture
def photos(tmp_path):
    """A folder of class folders: dark and bright pictures of 12 x 10 pixels."""
    rng = np.random.default_rng(0)
    for name, low in (("bright", 100), ("dark", 0)):
        (tmp_path / "photos" / name).mkdir(parents=True)
        for i in range(30):
            pixels = rng.integers(low, low + 156, (12, 10, 3), np.uint8)
            Image.fromarray(pixels).save(tmp_path / "photos" / name / f"{i}.jpg")
    return tmp_path / "photos"


def options(model, data, out, **changes):
    return run_resnet.Options(**TINY | {"model": str(model), "data": str(data), "out": out, "plan": "members=1"} | changes)


def test_the_script_with_the_embedded_model_and_data(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    tiny = TINY | {"gens": 1, "plan": "members=1", "out": tmp_path / "run"}
    arguments = [word for name, value in tiny.items() for word in (f"--{name.replace('_', '-')}", str(value))]
    done = subprocess.run([sys.executable, SCRIPT, *arguments], capture_output=True, text=True, cwd=tmp_path, check=False)
    assert done.returncode == 0, done.stderr
    assert "Pretraining a ResNet" in done.stdout
    assert "=== Generation 1 ===\nFittest chromosome: [" in done.stdout
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert result["stages"] == ["stem", *(f"layer{stage}_{number}" for stage in (1, 2, 3) for number in (0, 1))]
    assert result["label_names"] == list("56789")
    assert set(result["results"]) == BASELINES
    names = ["SHA256SUMS", "evaluations.csv", "mask.json", "model", "plots", "report.html", "result.json", "run.json"]
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == names

    checkpoint = resnet.load_resnet(resnet_task.find_model("digits"))  # from the cache
    assert not capsys.readouterr().out
    assert (checkpoint.config, checkpoint.preprocessing.size) == (resnet.cifar_config(14, num_channels=1), 8)


def test_what_is_left_on_disk(small_model, photos, tmp_path, capsys):
    out = tmp_path / "run"
    run_resnet.main(options(small_model, photos, out))
    printed = capsys.readouterr().out
    assert "No validation and no test split: 12 of the 60 training images were cut for each" in printed
    assert "Images are 8 x 8 pixels, in colours" in printed
    with open(out / "evaluations.csv", encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    result = json.loads((out / "result.json").read_text())
    assert {"000", "100", "110", "111"} <= {row["genome"] for row in rows}
    assert result["stages"] == GENES
    params = resnet.init_params(jax.random.key(0), CONFIG, 2)
    everything = sum(leaf.size for name in (*GENES, "head") for leaf in jax.tree.leaves(parameters(params[name])))
    assert result["results"]["train all"]["trainable_parameters"] == everything  # without running statistics
    mask = json.loads((out / "mask.json").read_text())
    assert list(mask["frozen"]) == GENES
    assert "layer2.0.downsample.1.weight" in mask["tensors"]["frozen"] + mask["tensors"]["trainable"]

    # The saved model scores on the test set what the table says, and what is frozen is what was loaded.
    checkpoint = resnet.load_resnet(out / "model")
    saved, pretrained = resnet.make_params(checkpoint), resnet.make_params(resnet.load_resnet(small_model))
    test = load_images(str(photos), Frame(8)).test
    source = Source(Dataset(*test), make_batches(in_order(len(test.labels), 4)))
    accuracy, _ = score(resnet.make_resnet(checkpoint.config), saved, source)
    assert accuracy == pytest.approx(result["model"]["test_accuracy"])
    for name, frozen in mask["frozen"].items():
        same = [np.array_equal(*pair) for pair in zip(*map(jax.tree.leaves, (saved[name], pretrained[name])), strict=True)]
        assert all(same) if frozen else not any(same)


def test_same_seed_same_result_with_augmentation(small_model, photos, tmp_path):
    results = []
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        run_resnet.main(options(small_model, photos, tmp_path / name, gens=1, augment=True, seed=seed))
        results.append(json.loads((tmp_path / name / "result.json").read_text())["results"])
    assert results[0] == results[1]
    assert results[0] != results[2]


def test_a_model_from_hugging_face_and_photos(tmp_path):
    pytest.importorskip("torch")
    from transformers import AutoModelForImageClassification, ResNetConfig, ResNetForImageClassification

    if not SHARED.exists():
        pytest.skip(f"no {SHARED}")
    config = ResNetConfig(embedding_size=4, hidden_sizes=[4, 8], depths=[1, 1], layer_type="basic", num_labels=5)
    ResNetForImageClassification(config).save_pretrained(tmp_path / "model")
    run_resnet.main(options(tmp_path / "model", SHARED / "ants_bees", tmp_path / "run", gens=1, image_size=32))
    saved = AutoModelForImageClassification.from_pretrained(tmp_path / "run/model")
    assert saved.config.id2label == {0: "ants", 1: "bees"}


def truncate(folder):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def rename(folder):
    path = folder / "model.safetensors"
    save_file({f"encoder.{name}": tensor for name, tensor in load_file(path).items()}, path)


BAD_MODELS = {
    "truncated weights": (truncate, "not a whole safetensors file"),
    "another architecture": (rename, "not a ResNet with PyTorch's names"),
    "another config": (
        lambda folder: (folder / "config.json").write_text('{"model_type": "vit"}'), "expected a ResNet (model_type 'resnet')"
    ),
    "no weights": (lambda folder: (folder / "model.safetensors").unlink(), "no model.safetensors"),
    "preprocessor": (lambda folder: (folder / "preprocessor_config.json").write_text("{"), "not the config of an image"),
}  # fmt: skip
BAD_OPTIONS = {
    "image size": ({"image_size": 0}, "--image-size must be at least 1, got 0"),
    "gens": ({"gens": 0}, "--gens must be at least 1, got 0"),
    "hub name offline": ({"model": "microsoft/resnet-18"}, "--model digits"),
    "pickle": ({"model": __file__}, "expected a .safetensors file or a folder with one"),
    "no such data": ({"data": "/no/such/folder"}, "no such file or folder"),
    "out": ({"out": Path("/proc/run")}, "cannot be written"),
}


def fails(capsys, options):
    """The message of a run that must end with exit code 2 before any training, on one line."""
    with pytest.raises(SystemExit) as stopped:
        run_resnet.main(options)
    printed = capsys.readouterr()
    assert stopped.value.code == 2
    assert "Generation" not in printed.out
    assert printed.err.startswith("error: ")
    assert printed.err.count("\n") == 1
    return printed.err


@pytest.mark.parametrize(("damage", "message"), BAD_MODELS.values(), ids=BAD_MODELS)
def test_bad_models(damage, message, small_model, tmp_path, capsys):
    folder = tmp_path / "model"
    folder.mkdir()
    for path in small_model.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    damage(folder)
    assert message in fails(capsys, options(folder, "digits", tmp_path / "run"))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(("changes", "message"), BAD_OPTIONS.values(), ids=BAD_OPTIONS)
def test_bad_options(changes, message, small_model, tmp_path, capsys):
    assert message in fails(capsys, replace(options(small_model, "digits", tmp_path / "run"), **changes))


def test_a_broken_photo_is_named_or_left_out(small_model, photos, tmp_path, capsys):
    (photos / "dark" / "7.jpg").write_bytes(b"\xff\xd8 no photo")
    broken = options(small_model, photos, tmp_path / "run", gens=1)
    whole = replace(broken, train_examples=60, validation_examples=60)
    assert "7.jpg" in fails(capsys, whole)
    run_resnet.main(replace(whole, skip_broken=True))
    assert "no whole images, and left out: 7.jpg" in capsys.readouterr().out
