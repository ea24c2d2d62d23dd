"""What runs rely on in every task (`tasks/base.py`): how predictions are written, problems, and setups."""

import jax
import numpy as np
import pytest

from gafreeze_jax.engine.network import Dataset, parameters
from gafreeze_jax.metrics import PERPLEXITY
from gafreeze_jax.models import plain
from gafreeze_jax.options import Options
from gafreeze_jax.tasks import images, language_model, text
from gafreeze_jax.tasks.base import classification, language_modelling, make_problem, make_source

pytestmark = pytest.mark.usefixtures("quick_compilation")

LOGITS = np.array([[0.0, np.log(3.0)], [50.0, -50.0]], np.float32)


def size(tree):
    return sum(np.size(leaf) for leaf in jax.tree.leaves(tree))


def equal(tree, other):
    return jax.tree.all(jax.tree.map(np.array_equal, tree, other))


# Tasks


def test_classes_are_written_with_their_probability():
    task = classification(("no", "yes"))
    table = task.write(np.asarray(task.predict(LOGITS, None)))
    assert table["label"] == ["yes", "no"]
    np.testing.assert_allclose(table["probability"], [0.75, 1.0], rtol=1e-6)
    np.testing.assert_allclose(task.loss(LOGITS, np.array([1, 0])), [-np.log(0.75), 0.0], atol=1e-6)
    assert classification(("no", "yes"), PERPLEXITY).metric is PERPLEXITY


@pytest.mark.parametrize(("losses", "perplexity"), [([0.0, np.log(4.0)], 2.0), ([1000.0], np.inf)])
def test_a_text_is_written_as_one_row(losses, perplexity):
    task = language_modelling()
    table = task.write(np.array(losses, np.float32))
    assert table["tokens"] == [len(losses)]
    assert table["perplexity"] == pytest.approx([perplexity])
    np.testing.assert_array_equal(task.predict(LOGITS, np.array([1, 0])), task.loss(LOGITS, np.array([1, 0])))


# Problems on arrays


def make_arrays(num_train=10, num_targets=None, **options):
    network, shapes = plain.make_dense([5, 4, 3, 2])
    params = plain.init_params(jax.random.key(0), shapes)
    train, validation = (
        Dataset(np.zeros((num, 5), np.float32), np.zeros(num_targets or num, np.int32)) for num in (num_train, 5)
    )
    return make_problem(network, params, train, validation, Options(batch_size=4, epochs=3), **options)


def test_rows_and_targets_differ():
    with pytest.raises(ValueError, match="train: expected a row of inputs for each of 9 targets, got 10"):
        make_arrays(num_targets=9)


def test_a_genome_leaves_the_head_and_its_ones_out():
    problem = make_arrays()
    sizes = {name: size(tree) for name, tree in problem.params.items()}
    first, second = problem.network.names
    assert problem.count_trainable((1, 1)) == sizes["head"]
    assert problem.count_trainable((0, 1)) == sizes["head"] + sizes[first]
    assert problem.count_trainable((0, 0)) == sizes["head"] + sizes[first] + sizes[second]


def test_by_default_every_seed_has_the_same_head():
    problem = make_arrays()
    assert equal(problem.replicate(1).head, problem.params["head"])
    fresh = make_arrays(make_head=lambda key: jax.random.normal(key, (2,)))
    assert not equal(fresh.replicate(1).head, fresh.replicate(2).head)


@pytest.mark.parametrize("num", [1, 99, 100, 101])
def test_a_source_has_all_rows_in_their_order(num):
    source = make_source(Dataset(np.arange(num)))
    assert source.num_examples == num
    examples = np.asarray(source.batches.examples)
    assert examples[examples >= 0].tolist() == list(range(num))
    assert examples.shape[1] <= 100


# The three tasks


@pytest.fixture(scope="module")
def folders(small_bert, small_gpt2, small_resnet, tmp_path_factory):
    corpus = tmp_path_factory.mktemp("corpus") / "corpus.txt"
    corpus.write_text("A text of some length, with words and words. " * 60)
    return {"text": small_bert, "language_model": small_gpt2, "images": small_resnet, "corpus": corpus}


@pytest.fixture(scope="module", params=["text", "language_model", "images"])
def setup(request, folders):
    usual = {
        "model": str(folders[request.param]),
        "train_examples": 20,
        "validation_examples": 20,
        "epochs": 2,
        "batch_size": 8,
    }
    module, options = {
        "text": (text, {"data": "reviews"}),
        "language_model": (language_model, {"data": str(folders["corpus"]), "max_tokens": 16}),
        "images": (images, {"data": "digits"}),
    }[request.param]
    return module.prepare(module.Options(**usual, **options))


def test_genes_are_the_blocks_of_the_network(setup):
    problem = setup.problem
    assert tuple(problem.genes.names) == tuple(problem.network.names)
    assert problem.params.keys() >= set(problem.network.names)


def test_a_seed_decides_all_and_no_shape(setup):
    """Other seeds need no other program."""
    first, again, other = (setup.problem.replicate(seed) for seed in (1, 1, 2))
    assert equal((first.head, first.batches), (again.head, again.batches))
    assert np.array_equal(jax.random.key_data(first.key), jax.random.key_data(again.key))
    assert not np.array_equal(jax.random.key_data(first.key), jax.random.key_data(other.key))
    assert not equal(first.batches, other.batches)
    shapes = lambda tree: jax.tree.map(np.shape, tree)  # noqa: E731
    assert shapes((first.head, first.batches)) == shapes((other.head, other.batches))
    if jax.tree.leaves(first.head):  # a language model's is the word vectors
        assert not equal(first.head, other.head)


def test_an_epoch_has_every_example_once(setup):
    examples = np.asarray(setup.problem.replicate(0).batches.examples)
    counts = np.bincount(examples[examples >= 0])
    assert counts.tolist() == [2] * setup.problem.train.num_examples


@pytest.mark.parametrize("split", ["train", "validation", "test"])
def test_scoring_has_every_example_once(split, setup):
    source = setup.test if split == "test" else getattr(setup.problem, split)
    examples = np.asarray(source.batches.examples)
    assert sorted(examples[examples >= 0]) == list(range(len(source.data.targets)))


def test_examples_of_the_test_belong_to_its_rows(setup):
    if setup.test.rows is None:
        assert setup.num_test == setup.test.num_examples
    else:
        assert len(setup.test.rows) == setup.test.num_examples
        assert np.unique(setup.test.rows).tolist() == list(range(setup.num_test))


def test_frozen_genes_are_not_counted(setup):
    problem, names = setup.problem, setup.problem.network.names
    none, everything = problem.count_trainable((1,) * len(names)), problem.count_trainable((0,) * len(names))
    restored = setup.restore(problem.params)
    assert everything <= sum(size(parameters(tree)) for tree in restored.values())
    for place in range(len(names)):
        genome = tuple(int(other != place) for other in range(len(names)))
        assert none < problem.count_trainable(genome) <= everything
    assert (
        none
        + sum(
            problem.count_trainable(tuple(int(other != place) for other in range(len(names)))) - none
            for place in range(len(names))
        )
        == everything
    )


def test_what_is_restored_is_saved(setup, tmp_path):
    setup.save(tmp_path, setup.restore(setup.problem.params))
    assert (tmp_path / "model.safetensors").is_file()
