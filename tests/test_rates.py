"""Rates: what updates are multiplied by, in optimizers, trees, labels and mask files.

The reference is optax itself, with an optimizer of its own for each level.
"""

import functools
import json

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import test_masking
from hypothesis import given, settings
from hypothesis import strategies as st
from test_masking import GENES, NAMES, NET, PARAMS, gradient, net_and_genes, stack, train, unstack

from gafreeze_jax import masking

few = settings(max_examples=20, deadline=None)
LEVELS = (0.0, 0.3, 0.5, 1.0, 2.0)
rates_of_net = st.lists(st.sampled_from(LEVELS), min_size=len(NAMES), max_size=len(NAMES))
rates_of_example = st.lists(st.sampled_from(LEVELS), min_size=4, max_size=4)

OPTIMIZERS = {
    "adamw": lambda rate: optax.adamw(0.01 * rate, weight_decay=0.1),
    "momentum": lambda rate: optax.sgd(0.05 * rate, momentum=0.9),
    "lion": lambda rate: optax.lion(0.01 * rate, weight_decay=0.1),
}
every_optimizer = pytest.mark.parametrize("optimizer", OPTIMIZERS)
either_form = pytest.mark.parametrize("stacked", [False, True], ids=["leaves", "stacked"])


# Training


def label(rate):
    return {0.0: "frozen", 1.0: "trainable"}.get(rate, f"rate {rate}")


def reference(optimizer, rates):
    """Parameters after training with one optimizer for each level, by `optax.multi_transform`."""
    _, genes = net_and_genes(stacked=False)
    levels = {label(level): OPTIMIZERS[optimizer](level) if level else optax.set_to_zero() for level in LEVELS}
    return train(NET, optax.multi_transform(levels, masking.rates_labels(rates, genes)), gradient)


@functools.cache
def traced_training(optimizer, stacked):
    """A compiled function from rates of members [P, G] to their parameters."""
    params, genes = net_and_genes(stacked)
    tx = masking.freezable(OPTIMIZERS[optimizer](1), genes)

    def member(rates):
        step_of = optax.GradientTransformationExtraArgs(tx.init, functools.partial(tx.update, rates=rates))
        return train(params, step_of, gradient)

    return jax.jit(jax.vmap(member))


@either_form
@every_optimizer
@few
@given(rates_of_net)
def test_rates_train_as_an_optimizer_for_each_level_does(optimizer, stacked, rates):
    expected = reference(optimizer, rates)
    params, genes = net_and_genes(stacked)
    static = train(params, masking.freeze(OPTIMIZERS[optimizer](1), genes, rates=rates), gradient)
    others = traced_training(optimizer, stacked)(jnp.array([rates, rates[::-1]]))
    for trained in (static, jax.tree.map(lambda leaf: leaf[0], others)):
        for name, rate in zip(NAMES, rates, strict=True):
            assert jax.tree.all(jax.tree.map(np.array_equal, unstack(trained)[name], NET[name])) == (rate == 0)
        chex.assert_trees_all_close(unstack(trained), expected, rtol=1e-5, atol=1e-6)


def jitted(tx, **extra):
    """An optimizer whose updates are computed by a compiled function.

    One that also adds them to parameters may round differently: XLA joins the last product of an update with the sum.
    """
    return optax.GradientTransformationExtraArgs(tx.init, functools.partial(jax.jit(tx.update), **extra))


def compiled_training(tx, params):
    """Parameters after some steps, each compiled as a whole."""

    @jax.jit
    def step(params, state):
        updates, state = tx.update(gradient(params), state, params)
        return optax.apply_updates(params, updates), state

    state = tx.init(params)
    for _ in range(test_masking.NUM_STEPS):
        params, state = step(params, state)
    return params


@either_form
@every_optimizer
def test_a_rate_of_1_everywhere_is_plain_training_to_the_bit(optimizer, stacked):
    params, genes = net_and_genes(stacked)
    plain, ones = OPTIMIZERS[optimizer](1), np.ones(len(NAMES), np.float32)
    expected, static = train(params, plain, gradient), masking.freeze(plain, genes, rates=ones)
    chex.assert_trees_all_equal(train(params, static, gradient), expected)
    chex.assert_trees_all_equal(compiled_training(static, params), compiled_training(plain, params))
    traced = masking.freezable(plain, genes)
    by_genome = train(params, jitted(traced, genome=np.zeros(len(NAMES), bool)), gradient)
    chex.assert_trees_all_equal(train(params, jitted(traced, rates=ones), gradient), by_genome)


@either_form
@every_optimizer
def test_a_rate_of_one_half_everywhere_is_half_the_learning_rate_to_the_bit(optimizer, stacked):
    params = stack(NET) if stacked else NET
    rules = {"layers/.*": masking.Stacked("layer_{}")} if stacked else {r"(layer_\d)/.*": r"\1"}
    genes = masking.make_genes(params, {**rules, "(head)/.*": r"\1"})
    plain, slower = OPTIMIZERS[optimizer](1), OPTIMIZERS[optimizer](0.5)
    halves = np.full(len(genes), 0.5, np.float32)
    static = masking.freeze(plain, genes, rates=halves)
    chex.assert_trees_all_equal(train(params, static, gradient), train(params, slower, gradient))
    chex.assert_trees_all_equal(compiled_training(static, params), compiled_training(slower, params))
    by_genome = train(params, jitted(masking.freezable(slower, genes), genome=np.zeros(len(genes), bool)), gradient)
    chex.assert_trees_all_equal(train(params, jitted(masking.freezable(plain, genes), rates=halves), gradient), by_genome)


def test_rates_may_change_between_updates_and_nothing_is_compiled_anew():
    tx = masking.freezable(optax.sgd(1.0), GENES)
    params = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape), PARAMS)
    ones, state = jax.tree.map(jnp.ones_like, params), tx.init(params)
    chex.clear_trace_counter()
    step = jax.jit(chex.assert_max_traces(tx.update, n=1))
    for rates in ([0, 0, 0, 0], [0.5, 0, 2, 1], [1, 1, 1, 1]):
        updates, state = step(ones, state, params, rates=jnp.array(rates, float))
        np.testing.assert_array_equal(updates["embed"], np.full(3, -rates[0]))
        np.testing.assert_array_equal(updates["stack"]["bias"], -np.repeat(np.array([rates[1:]]).T, 2, axis=1))
        np.testing.assert_array_equal(updates["head"], [-1, -1])


@pytest.mark.parametrize("axis", [0, 1, -1])
def test_layers_along_any_axis_have_rates_of_their_own(axis):
    params = {"w": jnp.zeros((3, 3, 3))}
    genes = masking.make_genes(params, {"w": masking.Stacked("layer_{}", axis=axis)})
    expected = -np.moveaxis(np.broadcast_to(np.array([0, 0.5, 2])[:, None, None], (3, 3, 3)), 0, axis)
    static, traced = masking.freeze(optax.sgd(1.0), genes, rates=[0, 0.5, 2]), masking.freezable(optax.sgd(1.0), genes)
    for tx, extra in ((static, {}), (traced, {"rates": jnp.array([0, 0.5, 2])})):
        updates, _ = tx.update(jax.tree.map(jnp.ones_like, params), tx.init(params), params, **extra)
        np.testing.assert_array_equal(updates["w"], expected)


@pytest.mark.parametrize("rates", [[0, 0.5], jnp.array([0, 0.5])], ids=["static", "traced"])
def test_what_a_rate_of_0_freezes_counts_nowhere(rates):
    """Neither its gradient, which is not finite, nor its decay reaches the clip."""
    params = {"body": jnp.array([10.0]), "head": jnp.array([20.0])}
    genes = masking.make_genes(params, {"(.*)": r"\1"})
    tx = optax.chain(optax.add_decayed_weights(0.1), optax.clip_by_global_norm(1.0), optax.sgd(1.0))
    wrapped = masking.freeze(tx, genes, rates=rates) if isinstance(rates, list) else masking.freezable(tx, genes)
    extra = {} if isinstance(rates, list) else {"rates": rates}
    updates, _ = wrapped.update({"body": jnp.array([jnp.nan]), "head": jnp.array([4.0])}, wrapped.init(params), params, **extra)
    chex.assert_trees_all_equal(updates, {"body": jnp.array([0.0]), "head": jnp.array([-0.5])})


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16, jnp.float32])
def test_updates_keep_their_dtype(dtype):
    params = {"w": jnp.ones((2, 3), dtype), "head": jnp.ones(2, dtype)}
    genes = masking.make_genes(params, {"w": masking.Stacked("layer_{}"), "head": "head"})
    for rates in ([0.5, 0, 0.25], jnp.array([0.5, 0, 0.25])):
        tx = masking.freezable(optax.sgd(1.0), genes)
        updates = [tx.update(params, tx.init(params), params, rates=rates)[0]]
        tx = masking.freeze(optax.sgd(1.0), genes, rates=rates)
        updates += [tx.update(params, tx.init(params), params)[0]]
        for update in updates:
            chex.assert_trees_all_equal_dtypes(update, params)
            assert update["w"].astype(float).tolist() == [[-0.5] * 3, [0] * 3]


@pytest.mark.parametrize("genome", [[0, 0, 1], [0, 1, 1], [1, 0, 0]], ids=str)
def test_rates_of_0_and_1_are_a_genome_for_every_optimizer(genome):
    """Also for those whose updates cannot be scaled, and with no more state."""
    make = lambda: optax.contrib.schedule_free_adamw(0.1)  # noqa: E731
    _, genes = net_and_genes(stacked=False)
    by_rates, by_genome = masking.freeze(make(), genes, rates=1 - np.array(genome)), masking.freeze(make(), genes, genome)
    chex.assert_trees_all_equal_shapes(by_rates.init(NET), by_genome.init(NET))
    chex.assert_trees_all_equal(train(NET, by_rates, gradient), train(NET, by_genome, gradient))


# Trees and labels


@few
@given(rates_of_example)
def test_the_tree_of_rates(rates):
    embed, *layers = np.float32(rates)
    by_layer = np.array(layers)[:, None]
    expected = {"embed": embed, "stack": {"bias": by_layer, "kernel": by_layer[:, None]}, "head": np.float32(1)}
    tree = masking.rates_tree(rates, GENES)
    chex.assert_trees_all_equal(tree, expected)
    chex.assert_trees_all_equal(traced_tree(jnp.array(rates), GENES), expected)
    frozen = masking.frozen_tree(np.equal(rates, 0), GENES)
    chex.assert_trees_all_equal(jax.tree.map(lambda rate: rate == 0, tree), frozen)
    chex.assert_trees_all_equal_shapes(jax.tree.map(np.multiply, PARAMS, tree), PARAMS)


traced_tree = jax.jit(masking.rates_tree, static_argnums=1)


@pytest.mark.parametrize(
    ("rates", "embed", "stack"),
    [
        ([1, 1, 1, 1], "trainable", "trainable"),
        ([0, 0.3, 0.3, 0.3], "frozen", "rate 0.3"),
        ([1e-3, 0, 0, 0], "rate 0.001", "frozen"),
        ([0.1 + 0.2, 4, 4, 4], "rate 0.3", "rate 4.0"),
    ],
    ids=str,
)
def test_labels_of_rates(rates, embed, stack):
    labels = {"embed": embed, "stack": {"bias": stack, "kernel": stack}, "head": "trainable"}
    assert masking.rates_labels(rates, GENES) == labels


def test_levels_that_differ_have_labels_that_differ():
    genes = masking.make_genes([np.ones(1)] * 3, {r"(\d)": r"\1"})
    assert masking.rates_labels([1.00001, 0.999999, 1e-30], genes) == ["rate 1.00001", "rate 0.999999", "rate 1e-30"]


def test_labels_are_for_whole_leaves():
    with pytest.raises(ValueError, match=r"'stack/bias' stacks layers with the rates 0.3, 1.0, and .* use freeze\("):
        masking.rates_labels([0, 0.3, 0.3, 1], GENES)


# Bad rates

USES = {
    "freeze": lambda rates: masking.freeze(optax.sgd(0.1), GENES, rates=rates),
    "freezable": lambda rates: masking.freezable(optax.sgd(0.1), GENES).update(PARAMS, (), PARAMS, rates=rates),
    "tree": lambda rates: masking.rates_tree(rates, GENES),
    "labels": lambda rates: masking.rates_labels(rates, GENES),
    "write_mask": lambda rates: masking.write_mask("never_written.json", GENES, rates=rates),
}


def assert_one_line(error):
    assert "\n" not in str(error.value)
    assert len(str(error.value)) <= 600


@pytest.mark.parametrize("use", USES)
@pytest.mark.parametrize(
    ("rates", "said"),
    [
        ([0, -0.5, 1, 1], "gene 'layer_0' is -0.5"),
        ([0, 1, np.nan, 1], "gene 'layer_1' is nan"),
        ([np.inf, 1, 1, 1], "gene 'embed' is inf"),
        (jnp.array([0, 1, 1, -1.0]), "gene 'layer_2' is -1.0"),
        ([1e39, 1, 1, 1], r"gene 'embed' is 1e\+39"),
        ([10**400, 1, 1, 1], "gene 'embed' is 1000"),
        (["0.3", "1", "1", "1"], r"gene 'embed' is '0.3'. Convert text first: float\(x\)"),
        ([0.3, None, 1, 1], "gene 'layer_0' is None"),
        ([1j, 0, 0, 0], "gene 'embed' is 1j"),
        ([True, False, True, True], "got bools: pass a mask"),
        (jnp.zeros(4, bool), "got bools: pass a mask"),
        ([0.3, 1], r"Expected rates of shape \(4,\), one rate for each of embed, layer_0, .*; got \(2,\)"),
        (0.3, r"got \(\)"),
        ([[0.3, 1, 1, 1]], r"got \(1, 4\). Use jax.vmap"),
        ({"embed": 0.3, "layer_0": 1, "layer_1": 1, "layer_2": 1}, r"got \(\). Of a dict.* list\(mask.values\(\)\)"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_values_that_are_no_rates(use, rates, said):
    with pytest.raises(ValueError, match=said) as error:
        USES[use](rates)
    assert_one_line(error)


@pytest.mark.parametrize(
    "rates",
    [(0, 1, 0.5, 2), np.array([0, 1, 0.5, 2], np.float16), jnp.array([0, 1, 0.5, 2], jnp.bfloat16), [np.float64(0), 1, 0.5, 2]],
    ids=lambda rates: type(rates).__name__,
)
def test_values_that_are_rates(rates):
    for tree in (masking.rates_tree(rates, GENES), traced_tree(jnp.asarray(rates), GENES)):
        assert tree["embed"].dtype == tree["stack"]["bias"].dtype == np.float32
        assert tree["stack"]["bias"].ravel().tolist() == [1, 0.5, 2]


def test_traced_rates_are_numbers_and_only_for_freezable():
    with pytest.raises(ValueError, match="got bools: pass a mask"):
        jax.jit(lambda rates: masking.rates_tree(rates, GENES))(jnp.zeros(4, bool))
    with pytest.raises(ValueError, match=r"rates are traced.*use freezable\(\) in place of freeze\(\)"):
        jax.jit(lambda rates: masking.freeze(optax.sgd(0.1), GENES, rates=rates).init(PARAMS))(jnp.ones(4))


@pytest.mark.parametrize("given", [{}, {"genome": [0] * 4, "rates": [1] * 4}], ids=["neither", "both"])
def test_either_a_genome_or_rates(given):
    which = "both" if given else "neither"
    with pytest.raises(
        ValueError, match=rf"either a genome or rates, got {which}: .*freeze\(tx, genes, rates=rates\)"
    ) as error:
        masking.freeze(optax.sgd(0.1), GENES, **given)
    assert_one_line(error)
    with pytest.raises(ValueError, match=rf"either a genome or rates, got {which}: .*params, rates=rates\)") as error:
        masking.freezable(optax.sgd(0.1), GENES).update(PARAMS, (), PARAMS, **given)
    assert_one_line(error)


def test_rates_in_the_place_of_a_genome_are_sent_to_their_own():
    for use in (
        lambda: masking.freeze(optax.sgd(0.1), GENES, [0, 0.3, 1, 1]),
        lambda: masking.freezable(optax.sgd(0.1), GENES).update(PARAMS, (), PARAMS, genome=[0, 0.3, 1, 1]),
        lambda: jax.jit(lambda rates: masking.frozen_tree(rates, GENES))(jnp.array([0, 0.3, 1, 1])),
    ):
        with pytest.raises(ValueError, match=r"pass learning rates as rates=\.") as error:
            use()
        assert_one_line(error)


# Mask files


@pytest.fixture(scope="module")
def mask_file(tmp_path_factory):
    return tmp_path_factory.mktemp("masks") / "mask.json"


@few
@given(
    st.lists(st.just(0) | st.floats(2**-20, 2**20, width=32), min_size=4, max_size=4), st.sampled_from(["fresh", "kept", None])
)
def test_rates_read_as_they_were_written(mask_file, rates, head):
    masking.write_mask(mask_file, GENES, rates=rates, head=head)
    read = masking.read_rates(mask_file, GENES)
    assert tuple(read) == GENES.names
    np.testing.assert_array_equal(np.float32(list(read.values())), np.float32(rates))
    assert list(masking.read_mask(mask_file, GENES).values()) == [rate == 0 for rate in rates]
    assert masking.read_head(mask_file) == head


def test_a_file_of_rates(mask_file):
    tensors = {"embed": "e.weight", "head": "h.weight"} | {
        f"stack/{name}[{i}]": f"l.{i}.{name}" for name in ("bias", "kernel") for i in range(3)
    }
    masking.write_mask(mask_file, GENES, [0, 1, 0, 0], tensors, rates=[0.3, 0, 1, 0.1], head="kept")
    mask = json.loads(mask_file.read_text())
    assert (mask["version"], mask["genome"], mask["head"]) == (2, [0, 1, 0, 0], "kept")
    assert mask["rates"] == {"embed": 0.3, "layer_0": 0, "layer_1": 1, "layer_2": 0.1}
    assert mask["tensors"] == {
        "frozen": ["l.0.bias", "l.0.kernel"],
        "trainable": ["e.weight", "h.weight", "l.1.bias", "l.2.bias", "l.1.kernel", "l.2.kernel"],
        "rates": {"e.weight": 0.3, "l.2.bias": 0.1, "l.2.kernel": 0.1},
    }


def test_a_genome_has_the_rates_0_and_1(mask_file):
    masking.write_mask(mask_file, GENES, [1, 0, 0, 1])
    assert list(masking.read_rates(mask_file).values()) == [0.0, 1.0, 1.0, 0.0]
    assert masking.read_head(mask_file) is None


def test_version_1_still_loads(tmp_path):
    path = tmp_path / "mask.json"
    path.write_text('{"format": "gafreeze_jax mask", "version": 1, "genome": [1, 0], "frozen": {"a": true, "b": false}}')
    assert masking.read_mask(path) == {"a": True, "b": False}
    assert masking.read_rates(path) == {"a": 0.0, "b": 1.0}
    assert masking.read_head(path) is None


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        ({"version": 3}, "its version is 3"),
        ({"version": "2"}, "its version is '2'"),
        ({"rates": None}, '"rates" must have a number for each gene of "frozen"'),
        ({"rates": [0, 1]}, '"rates" must have a number'),
        ({"rates": {"a": 0}}, '"rates" must have a number'),
        ({"rates": {"a": 0, "b": 1, "c": 1}}, '"rates" must have a number'),
        ({"rates": {"a": 0, "b": -0.5}}, "rate of the gene 'b' is -0.5"),
        ({"rates": {"a": 0, "b": float("nan")}}, "rate of the gene 'b' is nan"),
        ({"rates": {"a": 0, "b": float("inf")}}, "rate of the gene 'b' is inf"),
        ({"rates": {"a": 0, "b": "x" * 1000}}, "rate of the gene 'b' is 'xxx"),
        ({"rates": {"a": 0, "b": True}}, "rate of the gene 'b' is True"),
        ({"rates": {"a": 0, "b": 0}}, "the gene 'b' trains, but has a rate of 0"),
        ({"rates": {"a": 0.3, "b": 1}}, "the gene 'a' is frozen, but has a rate of 0.3"),
        ({"head": "new"}, """the head is "fresh", "kept" or null, not 'new'"""),
        ({"head": ["kept"]}, "the head is"),
    ],
    ids=str,
)
def test_damaged_files_of_rates(tmp_path, damage, said):
    path = tmp_path / "mask.json"
    whole = {"format": "gafreeze_jax mask", "version": 2, "frozen": {"a": True, "b": False}, "rates": {"a": 0, "b": 1}}
    path.write_text(json.dumps(whole))
    assert masking.read_rates(path) == {"a": 0.0, "b": 1.0}
    path.write_text(json.dumps(whole | damage))
    for read in (masking.read_mask, masking.read_rates, masking.read_head):
        with pytest.raises(ValueError, match=said) as error:
            read(path)
        assert str(error.value).startswith(f"{path}: expected a mask file of version 1 or 2")
        assert_one_line(error)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({}, "Expected a genome, rates or both"),
        ({"genome": [0, 0, 0, 0], "rates": [0, 1, 1, 1]}, "the gene 'embed' trains, but has a rate of 0"),
        ({"genome": [0, 1, 0, 0], "rates": [1, 0.5, 1, 1]}, "the gene 'layer_0' is frozen, but has a rate of 0.5"),
        ({"genome": [0, 0, 0, 0], "head": "new"}, """The head is "fresh", "kept" or None, not 'new'"""),
    ],
    ids=["neither", "trains", "frozen", "head"],
)
def test_masks_that_are_not_written(tmp_path, given, said):
    with pytest.raises(ValueError, match=said) as error:
        masking.write_mask(tmp_path / "mask.json", GENES, **given)
    assert_one_line(error)
    assert not (tmp_path / "mask.json").exists()


def test_masks_of_other_genes_are_refused_for_rates_as_well(mask_file):
    masking.write_mask(mask_file, GENES, rates=[0, 0.3, 1, 1])
    with pytest.raises(ValueError, match="the mask has the genes embed, layer_0, layer_1, layer_2; the network has"):
        masking.read_rates(mask_file, net_and_genes(stacked=False)[1])


def test_the_reference_moves_by_rate():
    """Else the first test could not fail."""
    for optimizer in OPTIMIZERS:
        trained = [reference(optimizer, [rate] * len(NAMES)) for rate in LEVELS]
        moved = [np.abs(params["layer_0"]["kernel"] - NET["layer_0"]["kernel"]).mean() for params in trained]
        assert moved[0] == 0
        assert np.all(np.diff(moved) > 1e-3)
