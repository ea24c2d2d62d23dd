"""Plain networks: pooling agrees with XLA's, shapes are as said, bad sizes are refused."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gafreeze_jax.engine import backprop
from gafreeze_jax.engine.network import Step
from gafreeze_jax.metrics import cross_entropy
from gafreeze_jax.models import plain

pytestmark = pytest.mark.usefixtures("quick_compilation")


def random(*shape):
    return np.random.default_rng(0).normal(size=shape).astype(np.float32)


def values_and_gradients(function, cotangent, *arguments):
    value, pullback = jax.vjp(function, *arguments)
    return value, *pullback(cotangent)


@pytest.mark.parametrize("image", [(4, 6), (5, 7), (2, 3)])
def test_pooling_equals_that_of_xla(image):
    def reduce_window(x):
        return jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, (1, 2, 2, 1), (1, 2, 2, 1), "VALID")

    x, cotangent = jnp.array(random(2, *image, 3)), jnp.array(random(2, image[0] // 2, image[1] // 2, 3))
    ours, theirs = (values_and_gradients(pool, cotangent, x) for pool in (plain.max_pool, reduce_window))
    jax.tree.map(np.testing.assert_array_equal, ours, theirs)


NETWORKS = {
    "dense": (plain.make_dense([10, 32, 16, 8, 3]), (10,), ("dense_0", "dense_1", "dense_2"), 3),
    "cnn": (plain.make_cnn((9, 12, 2), (4, 6), 16, 5), (9, 12, 2), ("conv_0", "conv_1", "dense"), 5),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_shapes(name):
    (network, shapes), inputs, genes, num_classes = NETWORKS[name]
    params = plain.init_params(jax.random.key(0), shapes)
    assert network.names == genes
    assert tuple(params) == tuple(shapes) == (*genes, "head")
    assert {block: layer["kernel"].shape for block, layer in params.items()} == shapes
    assert all(layer["bias"].shape == layer["kernel"].shape[-1:] for layer in params.values())
    differentiate = backprop.value_and_grad(network, cross_entropy, [False] * len(genes))
    gradients = differentiate(params, Step(random(4, *inputs), jnp.zeros(4, int), jnp.ones(4), {})).gradients
    assert jax.tree.map(np.shape, gradients) == jax.tree.map(np.shape, params)
    x = random(4, *inputs)
    for block in network.blocks:
        x = block.apply(params[block.name], x, {}, frozen=True, key=None)
    assert network.head(params["head"], x, {}, frozen=True, key=None).shape == (4, num_classes)


def test_equal_blocks_share_their_function():
    (dense, _), (cnn, _) = NETWORKS["dense"][0], NETWORKS["cnn"][0]
    assert len({block.apply for block in dense.blocks} | {cnn.blocks[-1].apply}) == 1
    assert len({block.apply for block in cnn.blocks[:-1]}) == 1
    assert dense == plain.make_dense([10, 32, 16, 8, 3])[0]


def test_initial_parameters_are_he_normal():
    shapes = plain.make_cnn((16, 16, 8), (64, 64), 128, 10)[1]
    params = plain.init_params(jax.random.key(0), shapes)
    for name, layer in params.items():
        kernel = layer["kernel"]
        assert kernel.dtype == layer["bias"].dtype == np.float32
        assert kernel.std() == pytest.approx(np.sqrt(2 / np.prod(shapes[name][:-1])), rel=0.05)
        assert not layer["bias"].any()
    again, other = (plain.init_params(jax.random.key(seed), shapes) for seed in (0, 1))
    jax.tree.map(np.testing.assert_array_equal, params, again)
    assert not np.array_equal(params["conv_0"]["kernel"], other["conv_0"]["kernel"])


def test_a_fresh_head_comes_from_the_key():
    _, shapes = NETWORKS["dense"][0]
    first, again, other = (plain.init_head(jax.random.key(seed), shapes) for seed in (0, 0, 1))
    jax.tree.map(np.testing.assert_array_equal, first, again)
    assert jax.tree.map(np.shape, first) == {"kernel": (8, 3), "bias": (3,)}
    assert not np.array_equal(first["kernel"], other["kernel"])


BAD_DENSE = {
    "positive integers, at least one; got sizes: []": [],
    "positive integers, at least one; got sizes: [10, 0, 3]": [10, 0, 3],
    "at least one hidden layer and of the classes, got [10, 3]": [10, 3],
}


@pytest.mark.parametrize("message", BAD_DENSE)
def test_bad_sizes_of_dense_networks(message):
    with pytest.raises(ValueError, match="sizes must be") as error:
        plain.make_dense(BAD_DENSE[message])
    assert message in str(error.value)


BAD_CNN = {
    "got channels: []": ((8, 8, 1), [], 4, 3),
    "got channels: [4, 0]; num_classes: [-1]": ((8, 8, 1), [4, 0], 4, -1),
    "got dense: [0]": ((8, 8, 1), [4], 0, 3),
    "got image: [8, 0, 1]": ((8, 0, 1), [4], 4, 3),
    "image must be height, width and channels, got (8, 8)": ((8, 8), [4], 4, 3),
    "an image of 8 x 3 cannot be halved 2 times; take fewer convolutions": ((8, 3, 1), [4, 4], 4, 3),
}


@pytest.mark.parametrize("message", BAD_CNN)
def test_bad_sizes_of_convolutional_networks(message):
    with pytest.raises(ValueError, match=r"image|sizes") as error:
        plain.make_cnn(*BAD_CNN[message])
    assert message in str(error.value)
