import ast
import functools
import itertools
import json
import sys
from pathlib import Path

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from flax.core import FrozenDict
from hypothesis import given, settings
from hypothesis import strategies as st

from gafreeze_jax import masking
from gafreeze_jax.masking import (
    Stacked,
    count_trainable,
    freezable,
    freeze,
    frozen_labels,
    frozen_tree,
    make_genes,
    read_mask,
    write_mask,
)
from gafreeze_jax.masking.mask_file import NOTE

pytestmark = pytest.mark.usefixtures("quick_compilation")

few = settings(max_examples=30, deadline=None)

F, T = False, True


# The running example: 3 + 3 * (4 + 2) + 2 parameters, of which the last 2 always train.
PARAMS = {"embed": np.ones(3), "stack": {"bias": np.ones((3, 2)), "kernel": np.ones((3, 2, 2))}, "head": np.ones(2)}
GENES = make_genes(PARAMS, {"embed": "embed", "stack/.*": Stacked("layer_{}"), "head": None})
genomes_of_example = st.lists(st.booleans(), min_size=4, max_size=4)


# ---------------------------------------------------------------------------------------------------------------------
# make_genes


def nested_dict():
    params = {"layers": {"0": {"w": jnp.ones(2), "b": jnp.ones(1)}, "1": {"w": jnp.ones(2)}}, "head": jnp.ones(1)}
    owners = {"head": -1, "layers/0/b": 0, "layers/0/w": 0, "layers/1/w": 1}
    return params, {r"layers/(\d+)/.*": r"layer_\1", "head": None}, owners


def frozen_dict():
    params, rules, owners = nested_dict()
    return FrozenDict(params), rules, owners


def nnx_state():
    class Net(nnx.Module):
        def __init__(self, rngs):
            self.layers = nnx.List([nnx.Linear(2, 2, rngs=rngs), nnx.Linear(2, 2, use_bias=False, rngs=rngs)])
            self.head = nnx.Linear(2, 1, use_bias=False, rngs=rngs)

    owners = {"head/kernel/value": -1, "layers/0/bias/value": 0, "layers/0/kernel/value": 0, "layers/1/kernel/value": 1}
    return nnx.state(Net(nnx.Rngs(0)), nnx.Param), {r"layers/(\d+)/.*": r"layer_\1", "head/.*": None}, owners


def equinox_module():
    eqx = pytest.importorskip("equinox", reason="equinox is not installed")
    mlp = eqx.nn.MLP(2, 1, width_size=2, depth=2, use_final_bias=False, key=jax.random.key(0))
    owners = {"layers/0/weight": 0, "layers/0/bias": 0, "layers/1/weight": 1, "layers/1/bias": 1, "layers/2/weight": -1}
    return eqx.filter(mlp, eqx.is_array), {r"layers/([01])/.*": r"layer_\1", "layers/2/.*": None}, owners


def tuples_and_lists():
    params = ([jnp.ones(2), jnp.ones(3)], (jnp.ones(1),))
    return params, [(r"0/(\d+)", r"layer_\1"), ("1/0", None)], {"0/0": 0, "0/1": 1, "1/0": -1}


containers = pytest.mark.parametrize("container", [nested_dict, frozen_dict, nnx_state, equinox_module, tuples_and_lists])


@containers
def test_genes_of_every_container(container):
    params, rules, owners = container()
    genes = make_genes(params, rules)
    assert genes.names == ("layer_0", "layer_1")
    assert dict(zip(genes.paths, genes.owners, strict=True)) == owners


@containers
@pytest.mark.parametrize("wrapper", [freeze, freezable])
def test_one_step_in_every_container(container, wrapper):
    params, rules, owners = container()
    genes = make_genes(params, rules)
    genome = np.array([T, F])
    if wrapper is freeze:
        tx, extra = freeze(optax.sgd(0.5), genes, genome), {}
    else:
        tx, extra = freezable(optax.sgd(0.5), genes), {"genome": genome}
    gradients = jax.tree.map(jnp.ones_like, params)
    updates, _ = tx.update(gradients, tx.init(params), params, **extra)
    chex.assert_trees_all_equal_structs(updates, params)
    moved = dict(zip(genes.paths, [float(leaf.mean()) for leaf in jax.tree.leaves(updates)], strict=True))
    assert moved == {path: 0 if owner == 0 else -0.5 for path, owner in owners.items()}


def test_order_of_rules_comes_before_natural_order_of_names():
    params = {name: np.ones(1) for name in ["embed", "layer_10", "layer_2", "layer_1", "pooler"]}
    genes = make_genes(params, {"pooler": "pooler", r"layer_.*": r"\g<0>", "embed": "embed"})
    assert genes.names == ("pooler", "layer_1", "layer_2", "layer_10", "embed")


@few
@given(st.sets(st.integers(0, 200), min_size=1, max_size=12))
def test_numbered_layers_are_in_numeric_order(numbers):
    genes = make_genes({f"layer_{i}": np.ones(1) for i in numbers}, {r"layer_(\d+)": r"block \1 of all"})
    assert genes.names == tuple(f"block {i} of all" for i in sorted(numbers))


@pytest.mark.parametrize(
    ("target", "names"),
    [
        ("body", ("body",)),
        (r"\1", ("decoder", "encoder")),
        (r"\g<part>_\2", ("decoder_0", "encoder_0", "encoder_1")),
        (
            Stacked(r"\1_\2[{}]"),
            ("decoder_0[0]", "decoder_0[1]", "encoder_0[0]", "encoder_0[1]", "encoder_1[0]", "encoder_1[1]"),
        ),
    ],
)
def test_groups_are_expanded_in_names(target, names):
    params = {"encoder": [np.ones(2), np.ones(2)], "decoder": [np.ones(2)]}
    assert make_genes(params, {r"(?P<part>\w+)/(\d)": target}).names == names


def test_a_stack_has_layers():
    with pytest.raises(ValueError, match="leaf 'layers' is a stack of no layers"):
        make_genes({"layers": np.ones((0, 3)), "head": np.ones(1)}, {"layers": Stacked("layer_{}"), "head": None})


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16", "complex64"])
@pytest.mark.parametrize("in_jit", [False, True])
def test_the_sign_of_a_frozen_zero_stays(dtype, in_jit):
    """Pruned weights have many: -0.0 + 0.0 would be 0.0."""
    body = -jnp.zeros((2, 3), dtype)
    params = {"body": body.at[0, 0].set(1), "head": jnp.ones(2)}
    genes = make_genes(params, {"body": Stacked("layer_{}"), "head": None})
    gradients, given = jax.tree.map(jnp.ones_like, params), {"genome": jnp.array([True, True])}
    for tx, extra in ((freeze(optax.adamw(0.1), genes, [True, True]), {}), (freezable(optax.adamw(0.1), genes), given)):

        def step(params, extra, tx=tx):
            updates, _ = tx.update(gradients, tx.init(params), params, **extra)
            return optax.apply_updates(params, updates)

        trained = (jax.jit(step) if in_jit else step)(params, extra)
        assert np.asarray(trained["body"]).tobytes() == np.asarray(params["body"]).tobytes()
        assert (trained["head"] != params["head"]).all()


def test_two_rules_may_feed_one_gene():
    params = {"embed": np.ones(1), "embed_norm": np.ones(1), "layer": np.ones(1)}
    genes = make_genes(params, {"embed": "embed", "layer": "layer", "embed_norm": "embed"})
    assert genes.names == ("embed", "layer")
    assert genes.owners == (0, 0, 1)


def test_all_culprits_are_named_at_once():
    params = {"embed": np.ones(1), "head": np.ones(1), "layer_0": np.ones(1), "layer_1": np.ones(1), "scale": np.ones(())}
    rules = {"embed": "embed", r"layer_\d": "layers", ".*_1": "one", "emb": "prefix", "pooler": None, "scale": Stacked("s_{}")}
    with pytest.raises(ValueError, match="Every leaf needs exactly one rule") as error:
        make_genes(params, rules)
    assert str(error.value).splitlines()[1:] == [
        "  leaf 'head' is matched by no rule",
        r"  leaf 'layer_1' is matched by 'layer_\\d' and '.*_1'",
        "  leaf 'scale' is a scalar and cannot be stacked as 's_{}'",
        "  rule 'emb' matches no leaf",
        "  rule 'pooler' matches no leaf",
        "The tree's leaves are: embed, head, layer_0, layer_1, scale",
    ]


def test_stacked_leaves_have_one_gene_per_index():
    assert GENES.names == ("embed", "layer_0", "layer_1", "layer_2")
    assert GENES.paths == ("embed", "head", "stack/bias", "stack/kernel")
    assert GENES.owners == (0, -1, (1, 2, 3), (1, 2, 3))


def test_genes_of_equal_trees_are_one_static_argument():
    same = make_genes(jax.tree.map(np.zeros_like, PARAMS), {"embed": "embed", "stack/.*": Stacked("layer_{}"), "head": None})
    other = make_genes(PARAMS, {"embed": None, "stack/.*": Stacked("layer_{}"), "head": "head"})
    assert {GENES, same, other} == {GENES, other}


# ---------------------------------------------------------------------------------------------------------------------
# Trees that a genome stands for


@pytest.mark.parametrize(
    ("genome", "embed", "layers", "labels"),
    [
        ([F, F, F, F], F, [F, F, F], ("trainable", "trainable")),
        ([T, F, F, F], T, [F, F, F], ("frozen", "trainable")),
        ([F, F, T, F], F, [F, T, F], ("trainable", "trainable")),
        ([F, T, T, T], F, [T, T, T], ("trainable", "frozen")),
        ([T, T, T, T], T, [T, T, T], ("frozen", "frozen")),
    ],
    ids=["none", "embed", "middle_of_stack", "whole_stack", "all"],
)
def test_frozen_tree_and_labels(genome, embed, layers, labels):
    a, b, c = layers
    chex.assert_trees_all_equal(
        frozen_tree(genome, GENES),
        {
            "embed": np.array(embed),
            "stack": {"bias": np.array([[a], [b], [c]]), "kernel": np.array([[[a]], [[b]], [[c]]])},
            "head": np.array(F),
        },
    )
    assert frozen_labels(genome, GENES) == {
        "embed": labels[0],
        "stack": {"bias": labels[1], "kernel": labels[1]},
        "head": "trainable",
    }


traced_frozen_tree = jax.jit(frozen_tree, static_argnums=1)


@few
@given(genomes_of_example)
def test_traced_frozen_tree_equals_the_static_one(genome):
    chex.assert_trees_all_equal(traced_frozen_tree(jnp.array(genome), GENES), frozen_tree(genome, GENES))


@few
@given(genomes_of_example)
def test_count_trainable(genome):
    embed, *layers = genome
    assert count_trainable(PARAMS, GENES, genome) == 3 * (not embed) + 6 * (3 - sum(layers)) + 2


@pytest.mark.parametrize("genome", [[T, F, F], [T, F, F, F, F], T, np.zeros((2, 4), bool)], ids=["short", "long", "one", "2-D"])
@pytest.mark.parametrize(
    "use",
    [
        lambda genome: frozen_tree(genome, GENES),
        lambda genome: frozen_tree(jnp.array(genome), GENES),
        lambda genome: frozen_labels(genome, GENES),
        lambda genome: count_trainable(PARAMS, GENES, genome),
        lambda genome: freeze(optax.sgd(0.1), GENES, genome),
        lambda genome: freezable(optax.sgd(0.1), GENES).update(PARAMS, (), PARAMS, genome=genome),
        lambda genome: write_mask("never_written.json", GENES, genome),
    ],
    ids=["frozen_tree", "frozen_tree_jax", "frozen_labels", "count_trainable", "freeze", "freezable", "write_mask"],
)
def test_genomes_of_wrong_shape(use, genome):
    with pytest.raises(ValueError, match=r"Expected a genome of shape \(4,\), one gene for each of embed, layer_0") as error:
        use(genome)
    assert ("Use jax.vmap for a population" in str(error.value)) == (np.ndim(genome) == 2)


def test_freeze_wants_a_genome_known_in_python():
    with pytest.raises(ValueError, match=r"traced.*use freezable\(\) in place of freeze\(\)"):
        jax.jit(lambda genome: freeze(optax.sgd(0.1), GENES, genome).init(PARAMS))(jnp.array([T, F, F, F]))


# ---------------------------------------------------------------------------------------------------------------------
# One step of freeze() and freezable(), by hand


def update_of(wrapper, tx, genes, genome, gradients, params):
    if wrapper is freeze:
        tx = freeze(tx, genes, genome)
        return tx.update(gradients, tx.init(params), params)
    tx = freezable(tx, genes)
    return jax.jit(tx.update)(gradients, tx.init(params), params, genome=jnp.array(genome))


both_wrappers = pytest.mark.parametrize("wrapper", [freeze, freezable])
TWO_LEAVES = {"body": jnp.array([10.0]), "head": jnp.array([20.0])}
TWO_GENES = make_genes(TWO_LEAVES, {"(.*)": r"\1"})


@both_wrappers
@pytest.mark.parametrize(
    ("genome", "body", "head"),
    # Clipped to norm 1 and added to weight decay of 0.1 * parameter, all times -1.
    [([F, F], -0.6 - 1, -0.8 - 2), ([T, F], 0, -1 - 2), ([F, T], -1 - 1, 0), ([T, T], 0, 0)],
    ids=["none", "body", "head", "all"],
)
def test_clipping_and_weight_decay_skip_frozen_leaves(wrapper, genome, body, head):
    tx = optax.chain(optax.clip_by_global_norm(1.0), optax.add_decayed_weights(0.1), optax.sgd(1.0))
    gradients = {"body": jnp.array([3.0]), "head": jnp.array([4.0])}
    updates, _ = update_of(wrapper, tx, TWO_GENES, genome, gradients, TWO_LEAVES)
    chex.assert_trees_all_close(updates, {"body": jnp.array([body], float), "head": jnp.array([head], float)}, rtol=1e-6)


@both_wrappers
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_bad_gradients_of_frozen_leaves_do_not_pass(wrapper, bad):
    tx = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(1.0, weight_decay=0.0))
    gradients = {"body": jnp.array([bad]), "head": jnp.array([4.0])}
    updates, state = update_of(wrapper, tx, TWO_GENES, [T, F], gradients, TWO_LEAVES)
    chex.assert_trees_all_close(updates, {"body": jnp.array([0.0]), "head": jnp.array([-1.0])}, rtol=1e-4)
    chex.assert_tree_all_finite(state)


@both_wrappers
def test_bad_gradients_of_frozen_rows_do_not_pass(wrapper):
    params = jnp.zeros((2, 2))
    genes = make_genes(params, {"": Stacked("row_{}")})
    gradients = jnp.array([[jnp.nan, 7.0], [3.0, 4.0]])
    updates, _ = update_of(
        wrapper, optax.chain(optax.clip_by_global_norm(1.0), optax.sgd(1.0)), genes, [T, F], gradients, params
    )
    np.testing.assert_allclose(updates, [[0, 0], [-0.6, -0.8]], rtol=1e-6)


@both_wrappers
def test_nan_in_trainable_leaves_is_not_hidden(wrapper):
    gradients = {"body": jnp.array([1.0]), "head": jnp.array([jnp.nan])}
    updates, _ = update_of(wrapper, optax.sgd(1.0), TWO_GENES, [T, F], gradients, TWO_LEAVES)
    assert updates["body"] == 0
    assert jnp.isnan(updates["head"])


@pytest.mark.parametrize(
    ("genome", "shapes"),
    [
        ([F, F, F, F], [(3,), (2,), (3, 2), (3, 2, 2)]),
        ([T, F, F, F], [(2,), (3, 2), (3, 2, 2)]),
        ([F, T, F, T], [(3,), (2,), (1, 2), (1, 2, 2)]),
        ([T, T, T, T], [(2,)]),
    ],
    ids=["none", "embed", "part_of_stack", "all"],
)
def test_freeze_keeps_no_optimizer_state_for_frozen_leaves(genome, shapes):
    state = freeze(optax.adam(0.1), GENES, genome).init(PARAMS)
    assert [leaf.shape for leaf in jax.tree.leaves(state)] == [(), *shapes, *shapes]  # count, first and second moments


def test_freezable_keeps_moments_of_frozen_leaves_at_zero():
    tx = optax.scale_by_adam(b1=0.5, b2=0.75)
    gradients = {"body": jnp.array([3.0]), "head": jnp.array([4.0])}
    _, state = update_of(freezable, tx, TWO_GENES, [T, F], gradients, TWO_LEAVES)
    chex.assert_trees_all_equal(state.mu, {"body": jnp.array([0.0]), "head": jnp.array([2.0])})
    chex.assert_trees_all_equal(state.nu, {"body": jnp.array([0.0]), "head": jnp.array([4.0])})


def test_freezable_compiles_once_for_all_genomes():
    chex.clear_trace_counter()
    tx = freezable(optax.adamw(0.1), GENES)
    params = jax.tree.map(jnp.asarray, PARAMS)
    step = jax.jit(chex.assert_max_traces(tx.update, n=1))
    state = tx.init(params)
    for genome in np.tri(5, 4, -1, dtype=bool):
        _, state = step(params, state, params, genome=jnp.array(genome))


# ---------------------------------------------------------------------------------------------------------------------
# Training: static freeze() = traced freezable() = a reference that knows only the trainable sub-tree

OPTIMIZERS = {
    "clipped_adamw": lambda: optax.chain(optax.clip_by_global_norm(0.1), optax.adamw(0.01, weight_decay=0.1)),
    "momentum": lambda: optax.sgd(0.05, momentum=0.9),
    "lion": lambda: optax.lion(0.01, weight_decay=0.1),
    "scheduled_adam": lambda: optax.adam(optax.linear_schedule(0.0, 0.02, transition_steps=3)),
}
MASKS = list(itertools.product([F, T], repeat=3))
NAMES = ("layer_0", "layer_1", "layer_2")
NUM_STEPS = 6


def dense_net():
    keys = iter(jax.random.split(jax.random.key(0), 8))

    def dense(num_in, num_out):
        bias = 0.1 * jax.random.normal(next(keys), (num_out,))
        return {"kernel": jax.random.normal(next(keys), (num_in, num_out)) / num_in**0.5, "bias": bias}

    return {**{name: dense(4, 4) for name in NAMES}, "head": dense(4, 2)}


NET = dense_net()


def stack(params):
    layers = jax.tree.map(lambda *leaves: jnp.stack(leaves), *(params[name] for name in NAMES))
    return {"layers": layers, "head": params["head"]}


def unstack(params):
    if "layers" not in params:
        return params
    layers = {name: jax.tree.map(lambda leaf, i=i: leaf[i], params["layers"]) for i, name in enumerate(NAMES)}
    return {**layers, "head": params["head"]}


X = np.asarray(jax.random.normal(jax.random.key(1), (8, 4)))
Y = np.asarray(jax.random.normal(jax.random.key(2), (8, 2)))


def loss(params):
    params = unstack(params)
    x = X
    for name in NAMES:
        x = jnp.tanh(x @ params[name]["kernel"] + params[name]["bias"][None])
    return jnp.mean(jnp.square(x @ params["head"]["kernel"] + params["head"]["bias"][None] - Y))


def train(params, tx, gradient):
    """Parameters after `NUM_STEPS` steps."""
    state = tx.init(params)
    for _ in range(NUM_STEPS):
        updates, state = tx.update(gradient(params), state, params)
        params = optax.apply_updates(params, updates)
    return params


gradient = jax.jit(jax.grad(loss))
gradient_of_part = jax.jit(jax.grad(lambda part, rest: loss(rest | part)))


@functools.cache
def reference(optimizer, mask):
    """What training should give: the frozen sub-trees are constants of which the optimizer knows nothing."""
    frozen = {name: NET[name] for name in itertools.compress(NAMES, mask)}
    trainable = {name: layer for name, layer in NET.items() if name not in frozen}
    return frozen | train(trainable, OPTIMIZERS[optimizer](), lambda part: gradient_of_part(part, frozen))


@functools.cache
def traced(optimizer, stacked):
    """Jitted training with `freezable`: a function of one genome, and the outcome for all of them at once."""
    params, genes = net_and_genes(stacked)
    tx = freezable(OPTIMIZERS[optimizer](), genes)

    def step(genome, params, state):
        updates, state = tx.update(gradient(params), state, params, genome=genome)
        return optax.apply_updates(params, updates), state

    def run(step, genome, params, state):
        for _ in range(NUM_STEPS):
            params, state = step(genome, params, state)
        return params

    members = jax.tree.map(lambda leaf: jnp.stack([leaf] * len(MASKS)), params)
    every = run(jax.jit(jax.vmap(step)), jnp.array(MASKS), members, jax.vmap(tx.init)(members))
    return functools.partial(run, jax.jit(step), params=params, state=tx.init(params)), every


def net_and_genes(stacked):
    if stacked:
        params = stack(NET)
        return params, make_genes(params, {"layers/.*": Stacked("layer_{}"), "head/.*": None})
    params = NET
    return params, make_genes(params, {r"(layer_\d)/.*": r"\1", "head/.*": None})


def assert_trained(params, expected, mask):
    params = unstack(params)
    for name, frozen in zip(NAMES, mask, strict=True):
        if frozen:
            chex.assert_trees_all_equal(params[name], NET[name])
    chex.assert_trees_all_close(params, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("mask", MASKS, ids=lambda mask: "".join(str(int(gene)) for gene in mask))
@pytest.mark.parametrize(
    ("optimizer", "stacked"),
    [*((optimizer, False) for optimizer in OPTIMIZERS), ("clipped_adamw", True), ("lion", True)],
    ids=[*OPTIMIZERS, "stacked_clipped_adamw", "stacked_lion"],
)
def test_static_and_traced_masks_train_as_the_reference_does(optimizer, stacked, mask):
    expected = reference(optimizer, mask)
    params, genes = net_and_genes(stacked)
    static = train(params, freeze(OPTIMIZERS[optimizer](), genes, mask), gradient)
    one, every = traced(optimizer, stacked)
    assert_trained(static, expected, mask)
    assert_trained(one(jnp.array(mask)), expected, mask)
    assert_trained(jax.tree.map(lambda leaf: leaf[MASKS.index(mask)], every), expected, mask)


def test_every_trainable_leaf_of_the_reference_moves():
    """Else the test above could not fail."""
    for optimizer, mask in itertools.product(OPTIMIZERS, MASKS):
        trained = reference(optimizer, mask)
        for name, frozen in zip((*NAMES, "head"), (*mask, False), strict=True):
            distance = jax.tree.map(lambda new, old: jnp.abs(new - old).max(), trained[name], NET[name])
            assert all((d == 0) if frozen else (d > 1e-3) for d in jax.tree.leaves(distance))


@pytest.mark.parametrize(
    ("mask", "num_products"),
    # Of matrices, in a network of two layers and a head: 3 forwards, one for each weight gradient, and one for each
    # activation gradient above the lowest layer that trains.
    [([F, F], 3 + 3 + 2), ([T, F], 3 + 2 + 1), ([F, T], 3 + 2 + 2), ([T, T], 3 + 1 + 0)],
    ids=["train_all", "first", "second", "head_only"],
)
def test_weight_gradients_of_frozen_leaves_are_not_computed(mask, num_products):
    size = 64
    params = {name: jnp.ones((size, size)) for name in ["layer_0", "layer_1", "head"]}
    genes = make_genes(params, {"(layer_.)": r"\1", "head": None})
    tx = freeze(optax.sgd(0.1), genes, mask)

    def loss(params, x):
        x = jnp.tanh(jnp.tanh(x @ params["layer_0"]) @ params["layer_1"])
        return jnp.sum(jnp.square(x @ params["head"]))

    def step(params, state, x):
        updates, state = tx.update(jax.grad(loss)(params, x), state, params)
        return optax.apply_updates(params, updates), state

    cost = jax.jit(step).lower(params, tx.init(params), jnp.ones((size, size))).compile().cost_analysis()
    # All else is a few operations per element, of 2 * 64 per element that a product costs.
    assert cost["flops"] / (2 * size**3) == pytest.approx(num_products, abs=0.4)


# ---------------------------------------------------------------------------------------------------------------------
# Mask files


@pytest.fixture(scope="module")
def mask_file(tmp_path_factory):
    return tmp_path_factory.mktemp("masks") / "mask.json"


@few
@given(genomes_of_example)
def test_masks_read_as_they_were_written(mask_file, genome):
    write_mask(mask_file, GENES, genome)
    assert list(read_mask(mask_file, GENES).items()) == list(zip(GENES.names, genome, strict=True))


def test_mask_files_say_which_leaves_are_frozen(mask_file):
    write_mask(mask_file, GENES, [F, T, F, T])
    assert json.loads(mask_file.read_text()) == {
        "format": "gafreeze_jax mask",
        "version": 2,
        "genome": [0, 1, 0, 1],
        "frozen": {"embed": F, "layer_0": T, "layer_1": F, "layer_2": T},
        "rates": {"embed": 1, "layer_0": 0, "layer_1": 1, "layer_2": 0},
        "head": None,
        "leaves": {
            "embed": ["embed"],
            "layer_0": ["stack/bias[0]", "stack/kernel[0]"],
            "layer_1": ["stack/bias[1]", "stack/kernel[1]"],
            "layer_2": ["stack/bias[2]", "stack/kernel[2]"],
        },
        "always_trainable": ["head"],
        "note": NOTE,
    }


@pytest.mark.parametrize(
    "text",
    [
        "",
        "embed: frozen",
        "[1, 0]",
        "{}",
        '{"format": "gafreeze_jax mask", "version": 1}',
        '{"format": "gafreeze_jax mask", "version": 3, "frozen": {"embed": true}}',
        '{"format": "another mask", "version": 1, "frozen": {"embed": true}}',
        '{"format": "gafreeze_jax mask", "version": 1, "frozen": {}}',
        '{"format": "gafreeze_jax mask", "version": 1, "frozen": [true]}',
        '{"format": "gafreeze_jax mask", "version": 1, "frozen": {"embed": 1}}',
    ],
    ids=["empty", "no_json", "list", "no_fields", "no_mask", "version", "format", "no_genes", "no_names", "no_bools"],
)
def test_other_files_are_no_masks(tmp_path, text):
    (tmp_path / "mask.json").write_text(text)
    with pytest.raises(ValueError, match=r"mask\.json: expected a mask file of version 1 or 2"):
        read_mask(tmp_path / "mask.json")


@pytest.mark.parametrize("rates", [[1], {"other": 1}, None, "1"])
def test_rates_are_no_part_of_a_mask_of_version_1(tmp_path, rates):
    mask = {"format": "gafreeze_jax mask", "version": 1, "frozen": {"embed": True, "body": False}, "rates": rates}
    (tmp_path / "mask.json").write_text(json.dumps(mask))
    assert masking.read_rates(tmp_path / "mask.json") == {"embed": 0.0, "body": 1.0}


@pytest.mark.parametrize("names", [["head", "body"], ["body"], ["body", "head", "tail"]], ids=["order", "fewer", "more"])
def test_masks_of_other_genes_are_refused(tmp_path, names):
    other = make_genes([np.ones(1) for _ in names], {str(i): name for i, name in enumerate(names)})
    write_mask(tmp_path / "mask.json", other, [True] * len(names))
    with pytest.raises(ValueError, match=rf"has the genes {', '.join(names)}; the network has body, head"):
        read_mask(tmp_path / "mask.json", TWO_GENES)
    assert read_mask(tmp_path / "mask.json") == dict.fromkeys(names, True)


# ---------------------------------------------------------------------------------------------------------------------


def test_the_folder_can_be_taken_into_other_projects():
    files = Path(masking.__file__).parent.glob("*.py")
    nodes = [node for file in files for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))]
    imported = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    imported |= {"." * node.level + (node.module or "") for node in nodes if isinstance(node, ast.ImportFrom)}
    assert {name.split(".")[0] for name in imported} - sys.stdlib_module_names == {"jax", "numpy", "optax", "gafreeze_jax"}
    assert all(name.startswith("gafreeze_jax.masking") for name in imported if "gafreeze" in name)


def test_an_update_without_a_genome_says_what_is_missing():
    params = {"body": jnp.ones(2), "head": jnp.ones(2)}
    tx = masking.freezable(optax.sgd(0.1), masking.make_genes(params, {"body": "body", "head": None}))
    with pytest.raises(ValueError, match="genome=genome"):
        tx.update(params, tx.init(params), params)
