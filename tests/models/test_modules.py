"""Modules of each library as functions: training and inference mode, running statistics, and back."""

import equinox as eqx
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from gafreeze_jax import masking
from gafreeze_jax.engine.network import STATISTICS
from gafreeze_jax.models import from_function
from gafreeze_jax.models.modules import as_function

pytestmark = pytest.mark.usefixtures("quick_compilation")

ROWS = np.random.default_rng(0).normal(size=(6, 4)).astype(np.float32)


class Linen(nn.Module):
    @nn.compact
    def __call__(self, x, train=False):
        for i in range(2):
            x = nn.BatchNorm(not train, name=f"norm_{i}")(nn.Dense(4, name=f"dense_{i}")(x))
            x = nn.Dropout(0.5, deterministic=not train)(nn.relu(x))
        return nn.Dense(3, name="head")(x)


class Nnx(nnx.Module):
    def __init__(self, rngs):
        self.dense = nnx.List([nnx.Linear(4, 4, rngs=rngs) for _ in range(2)])
        self.norm = nnx.List([nnx.BatchNorm(4, rngs=rngs) for _ in range(2)])
        self.drop = nnx.Dropout(0.5, rngs=rngs)
        self.head = nnx.Linear(4, 3, rngs=rngs)

    def __call__(self, x):
        for dense, norm in zip(self.dense, self.norm, strict=True):
            x = self.drop(nnx.relu(norm(dense(x))))
        return self.head(x)


class Equinox(eqx.Module):
    dense: list
    drop: eqx.nn.Dropout
    head: eqx.nn.Linear

    def __init__(self, key):
        self.dense = [eqx.nn.Linear(4, 4, key=key), eqx.nn.Linear(4, 4, key=key)]
        self.drop, self.head = eqx.nn.Dropout(0.5), eqx.nn.Linear(4, 3, key=key)

    def __call__(self, x, key=None):
        keys = [None, None] if key is None else jax.random.split(key)
        for dense, of_drop in zip(self.dense, keys, strict=True):
            x = self.drop(jnp.tanh(dense(x)), key=of_drop)
        return self.head(x)


class EquinoxWithState(eqx.Module):
    dense: list
    norm: list
    drop: eqx.nn.Dropout
    head: eqx.nn.Linear

    def __init__(self, mode, key):
        self.dense = [eqx.nn.Linear(4, 4, key=key) for _ in range(2)]
        self.norm = [eqx.nn.BatchNorm(4, "rows", momentum=0.5, mode=mode) for _ in range(2)]
        self.drop, self.head = eqx.nn.Dropout(0.5), eqx.nn.Linear(4, 3, key=key)

    def __call__(self, x, state, key=None):
        keys = [None, None] if key is None else jax.random.split(key)
        for dense, norm, of_drop in zip(self.dense, self.norm, keys, strict=True):
            x, state = norm(dense(x), state)
            x = self.drop(jax.nn.relu(x), key=of_drop)
        return self.head(x), state


def make_linen():
    module = Linen()
    variables = module.init(jax.random.key(0), ROWS)
    return as_function(module, variables), module.apply(variables, ROWS)


def make_nnx():
    module = Nnx(nnx.Rngs(0))
    module.eval()
    return as_function(module), module(ROWS)


def make_equinox():
    module = Equinox(jax.random.key(0))
    return as_function(module), jax.vmap(eqx.nn.inference_mode(module))(ROWS)


def make_equinox_with_state(mode="ema"):
    """After a step of training on other rows, from which the running statistics are."""
    module, state = eqx.nn.make_with_state(EquinoxWithState)(mode, jax.random.key(0))

    def run(module, state, rows):
        return jax.vmap(module, in_axes=(0, None), out_axes=(0, None), axis_name="rows")(rows, state)

    _, state = run(eqx.tree_at(lambda module: module.drop.inference, module, True), state, 2 * ROWS)
    return as_function(module, state), run(eqx.nn.inference_mode(module), state, ROWS)[0]


RULES = {r"(?:params/|batch_stats/)?(?:dense|norm)[/_](\d)/.*": r"layer_\1", r"(?:params/)?head/.*": None}


MAKES = [make_linen, make_nnx, make_equinox, make_equinox_with_state, lambda: make_equinox_with_state("batch")]


@pytest.mark.parametrize("make", MAKES)
def test_a_module_is_cut_in_both_modes(make):
    function, expected = make()
    genes = masking.make_genes(function.params, RULES)
    network = from_function.cut(function.apply, function.params, genes, ROWS)
    assert all(block.apply for block in network.blocks)
    params = from_function.split(function.params, genes)
    outputs = {}
    for frozen in (True, False):
        x = ROWS
        for block in network.blocks:
            x = block.apply(params[block.name], x, {}, frozen=frozen, key=jax.random.key(0))
            if not frozen and STATISTICS in params[block.name]:
                x, statistics = x
                assert not np.array_equal(statistics[-1], params[block.name][STATISTICS][-1])
        outputs[frozen] = network.head(params["head"], x, {}, frozen=frozen, key=None)
    np.testing.assert_allclose(outputs[True], expected, rtol=1e-4, atol=1e-5)
    assert not np.allclose(outputs[True], outputs[False], atol=1e-3)


def test_a_module_comes_back():
    twice = lambda tree: jax.tree.map(lambda leaf: 2 * leaf, tree)  # noqa: E731
    linen, of_nnx, of_equinox = make_linen()[0], make_nnx()[0], make_equinox()[0]
    assert linen.restore(linen.params) is linen.params
    module = of_nnx.restore(twice(of_nnx.params))
    np.testing.assert_array_equal(module.head.kernel[...], 2 * of_nnx.params["params"]["head"]["kernel"][...])
    np.testing.assert_array_equal(module.norm[0].var[...], 2)
    module = of_equinox.restore(twice(of_equinox.params))
    np.testing.assert_array_equal(module.head.weight, 2 * of_equinox.params.head.weight)
    assert module.drop.p == 0.5
    with_state = make_equinox_with_state()[0]
    module, state = with_state.restore(jax.tree.map(lambda leaf: 2.0 * leaf, with_state.params))
    np.testing.assert_array_equal(module.head.bias, 2 * with_state.params["params"].head.bias)
    mean, _ = state.get(module.norm[1].ema_state_index)
    np.testing.assert_array_equal(mean, 2 * with_state.params[STATISTICS].norm[1].ema_state_index[0])


def test_a_linen_module_without_modes_takes_its_parameters_alone():
    module = nn.Dense(3)
    params = module.init(jax.random.key(0), ROWS)["params"]
    np.testing.assert_array_equal(as_function(module, params).apply(params, ROWS), module.apply({"params": params}, ROWS))


def test_a_function_needs_parameters():
    with pytest.raises(ValueError, match="function: a function needs its parameters; give params"):
        as_function(test_a_function_needs_parameters)
