"""The real script, run for real with tiny options."""

import csv
import json
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
import run_resnet
from command_line import words
from compared import MASKS
from PIL import Image

from gafreeze_jax.data.batches import in_order, make_batches
from gafreeze_jax.data.images import Frame, load_images
from gafreeze_jax.engine.network import Dataset, Source, parameters
from gafreeze_jax.engine.scoring import score
from gafreeze_jax.metrics import ACCURACY, cross_entropy
from gafreeze_jax.models import base, pretrained, resnet
from gafreeze_jax.tasks import images as resnet_task

pytestmark = pytest.mark.usefixtures("quick_compilation")

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
GENES = ["stem", "layer1_0", "layer2_0"]


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
    return run_resnet.Options(
        **TINY | {"model": str(model), "data": str(data), "out": out, "rates": (1.0,), "plan": "members=1"} | changes
    )


def test_the_script_with_the_embedded_model_and_data(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    as_pretraining = {"train_examples": 32, "batch_size": 32, "epochs": 2}  # whose programs serve again
    tiny = TINY | as_pretraining | {"gens": 1, "plan": "members=1", "out": tmp_path / "run"}
    done = subprocess.run([sys.executable, SCRIPT, *words(**tiny)], capture_output=True, text=True, cwd=tmp_path, check=False)
    assert done.returncode == 0, done.stderr
    assert "Pretraining a ResNet" in done.stdout
    assert "=== Generation 1 ===\nFittest chromosome: [" in done.stdout
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert result["stages"] == ["stem", *(f"layer{block}_{number}" for block in (1, 2, 3) for number in (0, 1)), "classifier"]
    assert result["label_names"] == list("0123456789")
    without_ablations = {name for name in result["results"] if not name.startswith("found, ")}
    assert without_ablations == {"head only", "train nothing", *MASKS}
    names = ["SHA256SUMS", "evaluations.csv", "mask.json", "model", "plots", "report.html", "result.json", "run.json"]
    names += ["test_predictions.csv"]
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == names

    model = pretrained.load(resnet_task.find_model("digits", "digits:inverted")).model  # from the cache
    assert not capsys.readouterr().out
    assert (model.config, model.pixels.size) == (resnet.cifar_config(14, num_channels=1), 8)


def test_what_is_left_on_disk(small_resnet, photos, tmp_path, capsys):
    out = tmp_path / "run"
    run_resnet.main(options(small_resnet, photos, out))
    printed = capsys.readouterr().out
    assert "No validation and no test split: 12 of the 60 training images were cut for each" in printed
    assert "Images are 8 x 8 pixels, in colours" in printed
    with open(out / "evaluations.csv", encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    result = json.loads((out / "result.json").read_text())
    assert {"000", "100", "110", "111"} <= {row["genome"] for row in rows}
    assert result["stages"] == GENES
    config = pretrained.read(small_resnet).model.config
    params = base.Model(resnet.FAMILY, config, num_classes=2).init_params(jax.random.key(0))
    everything = sum(leaf.size for name in (*GENES, "head") for leaf in jax.tree.leaves(parameters(params[name])))
    assert result["results"]["train all"]["trainable_parameters"] == everything  # without running statistics
    mask = json.loads((out / "mask.json").read_text())
    assert list(mask["frozen"]) == GENES
    assert "layer2.0.downsample.1.weight" in mask["tensors"]["frozen"] + mask["tensors"]["trainable"]

    # The saved model scores on the test set what the table says, and what is frozen is what was loaded.
    loaded = pretrained.load(out / "model")
    saved, start = loaded.params, pretrained.load(small_resnet).params
    data = load_images(str(photos), Frame(8))
    test = data.test
    source = Source(Dataset(*test), make_batches(in_order(len(test.labels), 4)))
    scores = score(loaded.model.make_network(), saved, source, loss=cross_entropy, metric=ACCURACY)
    assert scores.values.mean() == pytest.approx(result["model"]["test_accuracy"])
    with open(out / "test_predictions.csv", encoding="utf-8", newline="") as file:
        predicted = list(csv.DictReader(file))
    assert [row["file"] for row in predicted] == list(data.test_files)
    assert [row["truth"] for row in predicted] == [Path(file).parent.name for file in data.test_files]
    assert np.mean([row["truth"] == row["label"] for row in predicted]) == pytest.approx(result["model"]["test_accuracy"])
    for name, frozen in mask["frozen"].items():
        same = [np.array_equal(*pair) for pair in zip(*map(jax.tree.leaves, (saved[name], start[name])), strict=True)]
        assert all(same) if frozen else not any(same)


def test_same_seed_same_result_with_augmentation_and_a_broken_photo_is_left_out(small_resnet, photos, tmp_path, capsys):
    (photos / "dark" / "7.jpg").write_bytes(b"\xff\xd8 no photo")
    everything = {"train_examples": 60, "validation_examples": 60, "skip_broken": True}
    results = []
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        run_resnet.main(options(small_resnet, photos, tmp_path / name, gens=1, augment=True, seed=seed, **everything))
        assert "skipped 1 unreadable image: dark/7.jpg" in capsys.readouterr().out
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
