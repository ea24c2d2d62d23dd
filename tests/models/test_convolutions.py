"""The ways to convolve agree, forwards and backwards, for one member and for several."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gafreeze_jax.engine import process
from gafreeze_jax.engine.network import ALONE
from gafreeze_jax.models import convolutions

pytestmark = pytest.mark.usefixtures("quick_compilation")


def by_patches(x, kernel, stride=1):
    return convolutions.convolve_by_patches(x, kernel, *convolutions.centred_window(len(kernel), stride))


WAYS = {
    "rows": functools.partial(convolutions.convolve_by_rows, jnp.dtype(jnp.float32)),
    "patches": by_patches,
}


def random(*shape):
    return np.random.default_rng(0).normal(size=shape).astype(np.float32)


@functools.partial(jax.jit, static_argnums=0)  # one program instead of one for each operation
def values_and_gradients(convolve, x, kernel):
    value, pullback = jax.vjp(convolve, jnp.array(x), jnp.array(kernel))
    return value, *pullback(jnp.array(random(*value.shape)))


IMAGES = [((6, 8, 1), 4), ((7, 5, 3), 2), ((1, 1, 2), 3), ((2, 9, 4), 1)]
PATCHES = [("patches", size, stride) for size in (1, 3, 7) for stride in (1, 2)]
ROWS = [("rows", size, 1) for size in (1, 3, 7)]


@pytest.mark.parametrize(("image", "channels"), IMAGES)
@pytest.mark.parametrize(("way", "size", "stride"), PATCHES + ROWS)
def test_convolutions_agree(way, size, stride, image, channels):
    strides = {} if stride == 1 else {"stride": stride}
    x, kernel = random(3, *image), random(size, size, image[2], channels)
    ours, expected = (
        values_and_gradients(functools.partial(convolve, **strides), x, kernel)
        for convolve in (WAYS[way], convolutions.convolve_by_xla)
    )
    for one, other in zip(ours, expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("way", WAYS)
def test_convolutions_agree_for_stacked_members(way):
    x, kernels = random(4, 2, 6, 6, 3), random(4, 3, 3, 3, 5)
    ours, expected = (jax.vmap(convolve)(x, kernels) for convolve in (WAYS[way], convolutions.convolve_by_xla))
    np.testing.assert_allclose(ours, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("depthwise", [False, True])
def test_a_frozen_kernel_keeps_no_images(depthwise):
    """Below it gradients pass through; what it keeps for them is itself."""
    convolve = convolutions.convolve_depthwise if depthwise else convolutions.convolve
    x, kernel = jnp.array(random(2, 16, 6, 4)), jnp.array(random(3, 3, 1 if depthwise else 4, 4))
    of_both = jax.vjp(convolve, x, kernel)[1]
    of_x = jax.vjp(lambda x: convolve(x, kernel), x)[1]
    np.testing.assert_array_equal(of_x(x)[0], of_both(x)[0])
    assert sum(leaf.size for leaf in jax.tree.leaves(of_x)) <= kernel.size
    assert sum(leaf.size for leaf in jax.tree.leaves(of_both)) <= x.size + kernel.size


@pytest.mark.parametrize(("height", "width"), [(6, 5), (1, 1), (9, 2)])
@pytest.mark.parametrize("size", [1, 3, 7])
@pytest.mark.parametrize("members", [1, 2])
def test_depthwise_convolutions_agree(members, size, height, width, monkeypatch):
    x, kernels = random(members, 3, height, width, 5), random(members, size, size, 1, 5)

    def each(x, kernels):
        return jax.vmap(convolutions.convolve_depthwise)(x, kernels)

    ours = values_and_gradients(each, x, kernels)
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    by_xla = values_and_gradients(functools.partial(each), x, kernels)  # another function, so traced anew
    for one, other in zip(ours, by_xla, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("rows", "channels", "size", "stride"), [(16, 4, 3, 1), (6, 4, 3, 1), (16, 200, 3, 1), (6, 4, 3, 2), (6, 4, 1, 1)]
)
@pytest.mark.parametrize("backend", ["cpu", "gpu"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_whatever_is_chosen_agrees(dtype, backend, rows, channels, size, stride, monkeypatch):
    x, kernel = random(2, rows, 6, channels), random(size, size, channels, 5) / np.sqrt(size**2 * channels)
    expected = values_and_gradients(lambda x, kernel: convolutions.convolve_by_xla(x, kernel, stride), x, kernel)
    monkeypatch.setattr(jax, "default_backend", lambda: backend)
    ours = values_and_gradients(lambda x, kernel: convolutions.convolve(x, kernel, stride, dtype).astype(x.dtype), x, kernel)
    tolerance = 1e-4 if dtype == "float32" else 3e-2
    for one, other in zip(ours, expected, strict=True):
        assert one.dtype == jnp.float32
        np.testing.assert_allclose(one, other, rtol=tolerance, atol=tolerance * np.abs(other).max())


@pytest.mark.parametrize(
    ("size", "rows", "channels", "stride", "dtype", "is_left"),
    [
        (3, 8, 16, 1, "float32", True),
        (7, 9, 20, 1, "float32", True),
        (1, 8, 16, 1, "float32", False),
        (3, 7, 16, 1, "float32", False),
        (3, 8, 15, 1, "float32", False),
        (3, 8, 16, 2, "float32", False),
        (3, 8, 16, 1, "bfloat16", False),
    ],
)
def test_large_images_of_one_member_are_left_to_xla(size, rows, channels, stride, dtype, is_left, monkeypatch):
    x, kernel = random(2, rows, 8, channels), random(size, size, channels, 4)

    def traced(alone):
        with ALONE(alone):
            return jax.make_jaxpr(lambda x, kernel: convolutions.convolve(x, kernel, stride, dtype))(x, kernel)

    monkeypatch.setattr(process, "processor_features", frozenset)
    assert "conv_general_dilated" not in str(traced(alone=True))
    monkeypatch.setattr(process, "processor_features", lambda: frozenset({"fpu", convolutions.VECTORS}))
    assert "conv_general_dilated" not in str(traced(alone=False))
    assert ("conv_general_dilated" in str(traced(alone=True))) == is_left
