"""The loops of benchmarks/small_networks.py train what we do; the benchmark runs."""

import functools
import json
import re
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from gafreeze_jax.engine.cohort import Replicate
from gafreeze_jax.engine.population import Population

torch = pytest.importorskip("torch")

import small_networks  # noqa: E402

from gafreeze_jax.metrics import ACCURACY, cross_entropy  # noqa: E402

IMAGES = {"train_images": 70, "validation_images": 30}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """100 random images, with one bright column that tells the class."""
    folder = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(0)
    labels = rng.integers(10, size=100)
    images = rng.integers(100, size=(100, 28, 28))
    images[np.arange(100), :, 2 * labels] += 150
    np.savez(folder / "train.npz", images=images.astype(np.uint8), labels=labels)
    return folder


@pytest.fixture(scope="module", params=["dense", "cnn"])
def task(request, folder):
    if request.param == "dense":
        return small_networks.make_dense_task(0, num_train=100, num_validation=50)
    return small_networks.make_cnn_task(folder, 0, *IMAGES.values())


@pytest.mark.parametrize("genome", ["000", "101", "110"])
def test_pytorch_trains_the_same_parameters(task, genome):
    genome = np.array([gene == "1" for gene in genome])
    learning_rate = small_networks.LEARNING_RATE
    sources = (small_networks.make_source(data) for data in (task.train, task.validation))
    run = Replicate(task.params["head"], small_networks.make_batches(task.batches), jax.random.key(0))
    population = Population(task.network, task.params, small_networks.RECIPE, *sources, loss=cross_entropy, metric=ACCURACY)
    (member,) = population.evaluate(genome[None], run)

    loop = small_networks.PyTorchLoop(task)
    accuracy = loop(genome)
    assert accuracy == pytest.approx(member.score, abs=0.04)  # two examples, whose logits are nearly equal
    initial = small_networks.make_pytorch_model(task.params).state_dict()
    expected = small_networks.make_pytorch_model(jax.tree.map(np.array, member.params)).state_dict()
    frozen = dict(zip(task.network.names, genome, strict=True)) | {"head": False}
    for name, trained in loop.model.state_dict().items():
        if frozen[name.split(".")[0]]:
            np.testing.assert_array_equal(trained, initial[name])
        else:
            assert not np.array_equal(trained, initial[name])
            difference = (trained - expected[name]).abs().numpy()
            assert np.quantile(difference, 0.99) < 0.1 * learning_rate
            # Adam's first steps have full length however small a gradient is, so rounding decides the sign of some.
            assert difference.max() < 2 * learning_rate


def test_pytorch_starts_anew_each_time(task):
    loop = small_networks.PyTorchLoop(task)
    genomes = np.array([[0, 0, 0], [1, 0, 1], [0, 0, 0]], bool)
    first, _, again = (loop(genome) for genome in genomes)
    assert first == again
    assert [evaluation.genome for evaluation in loop.evaluations] == ["000", "101", "000"]


def test_genetic_algorithm():
    counted = []
    evaluate = lambda genome: counted.append(genome) or genome.sum()  # noqa: E731
    generations = list(small_networks.run_ga(np.random.default_rng(0), evaluate, 12, 20, generations=10))
    assert len(generations) == 10
    np.testing.assert_array_equal(np.concatenate(generations), counted)
    assert generations[-1].mean() > 0.75 > 0.6 > generations[0].mean()


def test_an_image_set_that_is_too_small_is_refused(folder):
    with pytest.raises(ValueError, match="has 100 images, fewer than the 120 asked for"):
        small_networks.make_cnn_task(folder, 0, 90, 30)


def test_benchmark(folder, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(small_networks, "has_keras", lambda: False)
    few = functools.partial(small_networks.make_dense_task, num_train=100, num_validation=50)
    monkeypatch.setattr(small_networks, "make_dense_task", few)
    options = small_networks.Options(images=folder, generations=3, population=4, out=tmp_path / "result.json", **IMAGES)
    small_networks.main(options)
    result = json.loads((tmp_path / "result.json").read_text())
    printed = capsys.readouterr().out
    assert result["tasks"].keys() == {"dense", "cnn"}
    for task in result["tasks"].values():
        every, first, ours, compiled = task["arms"].values()
        assert every["evaluations"] == 12
        assert first["evaluations"] == ours["evaluations"] == compiled["evaluations"] <= 8
        assert every["seconds"] > first["seconds"]
        assert ours["seconds"] > compiled["seconds"]
        genomes = {name: {e["genome"] for e in evaluations} for name, evaluations in task["evaluations"].items()}
        assert genomes["PyTorch"] == genomes["gafreeze_jax"]
        for name, arm in task["arms"].items():
            assert re.search(rf"^{name} +{arm['seconds']:.2f} +{arm['evaluations']} .* {arm['accuracy']:.4f}$", printed, re.M)


def test_keras_starts_from_the_same_weights(task, monkeypatch):
    if not small_networks.has_keras():
        pytest.skip("needs keras and tensorflow")
    monkeypatch.setattr(small_networks, "LEARNING_RATE", 0.0)
    evaluations, versions = small_networks.run_keras(task, ["000", "101"], Path(sys.executable))
    accuracy = small_networks.PyTorchLoop(task).score()
    assert [evaluation.genome for evaluation in evaluations] == ["000", "101"]
    assert [evaluation.accuracy for evaluation in evaluations] == pytest.approx([accuracy] * 2)
    assert versions.keys() == {"keras", "tensorflow"}
