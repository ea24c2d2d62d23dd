"""Genomes and parameter trees as other libraries and files hand them over: taken for what they are, or refused in one line."""

import re
from collections import OrderedDict

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax.core import FrozenDict

from gafreeze_jax import Space, make_ga, masking
from gafreeze_jax.search.nsga2 import make_nsga2

pytestmark = pytest.mark.usefixtures("quick_compilation")

PARAMS = {"a": jnp.ones(2), "b": jnp.ones(2), "c": jnp.ones(2)}
GENES = masking.make_genes(PARAMS, {"(.*)": r"\1"})


@pytest.mark.parametrize(
    ("genome", "said"),
    [
        ([0.2, 0.8, 0.0], "'a' is 0.2"),
        ([-1, 2, 0], "'a' is -1"),
        ([0, 1, 2], "'c' is 2"),
        ([np.nan, 0, 0], "'a' is nan"),
        (jnp.array([0.0, 0.5, 1.0]), "'b' is 0.5"),
        (["0", "1", "0"], "'a' is '0'. Convert text"),
        (["False", "True", "False"], "'a' is 'False'. Convert text"),
        ([True, None, False], "'b' is None"),
        ("010", r"shape \(3,\), one gene for each of a, b, c; got \(\)"),
        ([[1], [0, 1], [1]], r"got \(\)"),
        ({"a": True, "b": False, "c": True}, r"pass list\(mask.values\(\)\)"),
    ],
    ids=str,
)
def test_values_that_are_no_genes(genome, said):
    for use in (
        lambda: masking.freeze(optax.sgd(0.1), GENES, genome),
        lambda: masking.freezable(optax.sgd(0.1), GENES).update(PARAMS, optax.sgd(0.1).init(PARAMS), PARAMS, genome=genome),
        lambda: masking.write_mask("never_written.json", GENES, genome),
    ):
        with pytest.raises(ValueError, match=said) as error:
            use()
        assert "\n" not in str(error.value)
        assert len(str(error.value)) < 600


def test_a_traced_genome_of_floats_is_refused():
    with pytest.raises(ValueError, match="must have bools or integers"):
        jax.jit(lambda genome: masking.frozen_tree(genome, GENES))(jnp.ones(3))


@pytest.mark.parametrize(
    "genome",
    [[0, 1, 0], np.array([0.0, 1.0, 0.0]), (False, True, False), np.array([False, True, False], object), jnp.array([0, 1, 0])],
    ids=str,
)
def test_values_that_are_genes(genome):
    assert masking.frozen_labels(genome, GENES) == {"a": "trainable", "b": "frozen", "c": "trainable"}


def test_a_long_list_of_genes_is_cut_in_messages():
    names = [f"encoder_layer_number_{i}" for i in range(200)]
    genes = masking.make_genes({name: np.ones(1) for name in names}, {".*": r"\g<0>"})
    with pytest.raises(ValueError, match="and 192 more") as error:
        masking.frozen_tree([1], genes)
    assert len(str(error.value)) < 600


# Containers


def ordered(tree):
    return OrderedDict((name, tree[name]) for name in reversed(tree))


CONTAINERS = {"dict": dict, "FrozenDict": FrozenDict, "OrderedDict": ordered}


@pytest.mark.parametrize("of_gradients", CONTAINERS)
@pytest.mark.parametrize("of_params", CONTAINERS)
@pytest.mark.parametrize("of_genes", CONTAINERS)
def test_containers_may_differ(of_genes, of_params, of_gradients):
    tree = {"head": jnp.array([1.0, 2.0]), "body": jnp.array([3.0])}
    genes = masking.make_genes(CONTAINERS[of_genes](tree), {"body": "body", "head": None})
    params, gradients = CONTAINERS[of_params](tree), CONTAINERS[of_gradients](tree)
    for tx, extra in (
        (masking.freeze(optax.adamw(0.1), genes, [1]), {}),
        (masking.freezable(optax.adamw(0.1), genes), {"genome": [1]}),
    ):
        updates, state = tx.update(gradients, tx.init(params), params, **extra)
        tx.update(gradients, state, params, **extra)
        moved = optax.apply_updates(params, updates)
        assert moved["body"] == 3
        assert (moved["head"] < tree["head"]).all()
    assert masking.count_trainable(params, genes, [1]) == 2
    assert masking.split_genes(params, genes)[0] == {"body": {"body": tree["body"]}}


@pytest.mark.parametrize("wrapper", [masking.freeze, masking.freezable])
def test_the_first_path_that_differs_is_named(wrapper):
    tx = wrapper(optax.sgd(0.1), GENES, *([[1, 0, 0]] if wrapper is masking.freeze else []))
    extra = {} if wrapper is masking.freeze else {"genome": [1, 0, 0]}
    for tree, said in (({**PARAMS, "d": jnp.ones(1)}, "the leaf 'd', which was not in"), ({"a": jnp.ones(2)}, "no leaf 'b'")):
        with pytest.raises(ValueError, match=said) as error:
            tx.update(tree, optax.sgd(0.1).init(tree), tree, **extra)
        assert "\n" not in str(error.value)


def test_two_leaves_of_one_path_are_refused():
    with pytest.raises(ValueError, match="Two leaves have the path 'a/b': rename one"):
        masking.make_genes({"a": {"b": jnp.ones(1)}, "a/b": jnp.ones(2)}, {".*": "a"})


# Stacks


class Block(nn.Module):
    @nn.compact
    def __call__(self, x, _):
        return nn.tanh(nn.Dense(8, name="dense")(x)), None


class Net(nn.Module):
    axis: int

    @nn.compact
    def __call__(self, x):
        axes = {"params": self.axis}
        x, _ = nn.scan(Block, variable_axes=axes, split_rngs={"params": True}, length=3)(name="layers")(x, None)
        return nn.Dense(2, name="head")(x)


@pytest.mark.parametrize("axis", [0, 1])
def test_layers_along_any_axis(axis, tmp_path):
    params = jax.eval_shape(Net(axis).init, jax.random.key(0), jnp.ones((1, 8)))["params"]
    params = jax.tree.map(lambda leaf: jnp.ones(leaf.shape), params)
    genes = masking.make_genes(params, {"layers/.*": masking.Stacked("layer_{}", axis=axis), "head/.*": None})
    assert genes.names == ("layer_0", "layer_1", "layer_2")
    genome = [True, False, False]
    for tx, extra in (
        (masking.freeze(optax.sgd(1.0), genes, genome), {}),
        (masking.freezable(optax.sgd(1.0), genes), {"genome": jnp.array(genome)}),
    ):
        updates, _ = tx.update(params, tx.init(params), params, **extra)
        by_layer = np.moveaxis(np.asarray(updates["layers"]["dense"]["kernel"]), axis, 0)
        assert [set(layer.ravel().tolist()) for layer in by_layer] == [{0.0}, {-1.0}, {-1.0}]
    assert masking.count_trainable(params, genes, genome) == 2 * (64 + 8) + 18
    joined = masking.join_genes(*masking.split_genes(params, genes), genes)
    assert jax.tree.map(jnp.shape, joined) == jax.tree.map(jnp.shape, params)
    masking.write_mask(tmp_path / "mask.json", genes, genome)
    assert ("kernel[:, 0]" in (tmp_path / "mask.json").read_text()) == (axis == 1)


def test_axes_from_the_end():
    genes = masking.make_genes({"w": np.ones((4, 3))}, {"w": masking.Stacked("layer_{}", axis=-1)})
    assert len(genes) == 3
    with pytest.raises(ValueError, match=r"has shape \(4, 3\), without axis 2,"):
        masking.make_genes({"w": np.ones((4, 3))}, {"w": masking.Stacked("layer_{}", axis=2)})


def test_leaves_of_a_stack_have_one_length():
    mixed = {"layers": {"kernel": np.ones((3, 4, 4)), "scale": np.ones(4)}}
    with pytest.raises(ValueError, match="different numbers of layers: 'layers/kernel' has 3, 'layers/scale' has 4") as error:
        masking.make_genes(mixed, {"layers/.*": masking.Stacked("layer_{}")})
    assert "\n" not in str(error.value)
    two = {"decoder": np.ones((2, 3)), "encoder": np.ones((3, 3))}  # two stacks of one rule
    assert len(masking.make_genes(two, {"(.*)": masking.Stacked(r"\1_{}")})) == 5


@pytest.mark.parametrize("name", ["layer", "layer_{", "layer_{i}", "layer_{1}", "{{}}"])
def test_names_of_stacks_have_a_place_for_the_index(name):
    with pytest.raises(ValueError, match=re.escape(f"must have {{}} where the index goes, as layer_{{}} has, got {name!r}.")):
        masking.Stacked(name)


@pytest.mark.parametrize(("pattern", "target"), [("(", "a"), ("(.*)", r"\2"), ("(.*)", masking.Stacked(r"\2_{}"))])
def test_rules_that_are_no_regular_expressions(pattern, target):
    with pytest.raises(ValueError, match=r"The rule or target .* cannot be used: ") as error:
        masking.make_genes(PARAMS, {pattern: target})
    assert "\n" not in str(error.value)


def test_a_stack_that_has_grown_is_refused():
    genes = masking.make_genes({"w": np.ones((3, 2))}, {"w": masking.Stacked("layer_{}")})
    with pytest.raises(ValueError, match=r"'w' has shape \(4, 2\), but make_genes\(\) was called with 3 layers"):
        masking.freeze(optax.sgd(0.1), genes, [1, 0, 0]).init({"w": jnp.ones((4, 2))})


# The genetic algorithm


def test_the_genetic_algorithm_takes_lists():
    ga = make_ga(Space(["a", "b", "c"]), 4, initial=[[1, 1, 0], [1, 0, 0]])
    state = ga.init(jax.random.key(0))
    asked = ga.ask(jax.random.key(1), state)
    genomes, fitness = np.asarray(asked).tolist(), [0.1, 0.4, 0.2, 0.3]
    (by_list, info), (by_array, _) = ga.tell(state, genomes, fitness), ga.tell(state, asked, jnp.array(fitness))
    np.testing.assert_array_equal(by_list.population, by_array.population)
    assert info.best.tolist() == genomes[1]


@pytest.mark.parametrize("bad", [0.5, 2, -1, float("nan")])
def test_the_genetic_algorithm_refuses_other_values(bad):
    ga = make_ga(Space(["a", "b"]), 2)
    with pytest.raises(ValueError, match="levels from 0 to 1"):
        ga.tell(ga.init(jax.random.key(0)), [[0, 1], [bad, 0]], [0.1, 0.2])
    nsga2 = make_nsga2(Space(["a", "b"]), 2)
    with pytest.raises(ValueError, match="levels from 0 to 1"):
        nsga2.tell(nsga2.init(jax.random.key(0)), [[0, 1], [bad, 0]], [[0.1, 1], [0.2, 0]])
    with pytest.raises(ValueError, match="levels from 0 to 1"):
        make_ga(Space(["a", "b"]), 2, initial=[[bad, 0]])
