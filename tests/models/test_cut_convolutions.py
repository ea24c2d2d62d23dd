"""Convolutions of a user's function give the same in the fast ways, which are taken where there is one."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend.core import jaxpr_as_fun

from gafreeze_jax.engine import process
from gafreeze_jax.engine.network import ALONE
from gafreeze_jax.models import convolutions
from gafreeze_jax.models.cutting.convolutions import by_products

pytestmark = pytest.mark.usefixtures("quick_compilation")

FLAX, EQUINOX = ("NHWC", "HWIO", "NHWC"), ("NCHW", "OIHW", "NCHW")
# Shapes of images and kernel, strides, padding, and what differs from the defaults.
FAST = {
    "3 x 3": ((2, 7, 6, 3), (3, 3, 3, 4), (1, 1), "SAME", {}),
    "3 x 3 of large images": ((2, 17, 6, 3), (3, 3, 3, 4), (1, 1), "SAME", {}),
    "stride 2, as in Flax": ((2, 8, 6, 3), (3, 3, 3, 4), (2, 2), "SAME", {}),
    "stride 2, as in PyTorch": ((2, 8, 6, 3), (3, 3, 3, 4), (2, 2), [(1, 1), (1, 1)], {}),
    "channels first": ((2, 3, 8, 6), (4, 3, 3, 3), (2, 2), [(1, 1), (1, 1)], {"dimension_numbers": EQUINOX}),
    "axes in any order": ((3, 8, 2, 6), (4, 3, 3, 5), (1, 1), "SAME", {"dimension_numbers": ("CHNW", "OHIW", "WNCH")}),
    "no padding": ((2, 7, 6, 3), (3, 2, 3, 4), (1, 1), "VALID", {}),
    "strides that differ": ((2, 7, 6, 3), (3, 3, 3, 4), (1, 2), [(1, 1), (1, 1)], {}),
    "padding cut off": ((2, 7, 6, 3), (3, 3, 3, 4), (1, 1), [(-1, 1), (0, 2)], {}),
    "1 x 1": ((2, 7, 6, 3), (1, 1, 3, 4), (1, 1), "SAME", {}),
    "patches": ((2, 8, 8, 3), (4, 4, 3, 5), (4, 4), "VALID", {}),
    "large patches": ((1, 16, 16, 3), (8, 8, 3, 5), (8, 8), "VALID", {}),
    "depthwise": ((2, 7, 6, 4), (3, 3, 1, 4), (1, 1), "SAME", {"feature_group_count": 4}),
    "a sequence": ((2, 9, 3), (3, 3, 4), (2,), "SAME", {"dimension_numbers": ("NWC", "WIO", "NWC")}),
    "a volume": ((2, 4, 5, 3, 2), (2, 2, 3, 2, 3), (1, 1, 2), "VALID", {"dimension_numbers": ("NDHWC", "DHWIO", "NDHWC")}),
}
LEFT = {
    "dilated": ((2, 7, 6, 3), (3, 3, 3, 4), (1, 1), "SAME", {"rhs_dilation": (2, 2)}),
    "transposed": ((2, 7, 6, 3), (3, 3, 3, 4), (1, 1), [(1, 1), (1, 1)], {"lhs_dilation": (2, 2)}),
    "in groups": ((2, 7, 6, 4), (3, 3, 2, 4), (1, 1), "SAME", {"feature_group_count": 2}),
    "depthwise with stride": ((2, 7, 6, 4), (3, 3, 1, 4), (2, 2), "SAME", {"feature_group_count": 4}),
    "depthwise, twice as many": ((2, 7, 6, 4), (3, 3, 1, 8), (1, 1), "SAME", {"feature_group_count": 4}),
    "depthwise with a large kernel": ((1, 9, 9, 2), (9, 9, 1, 2), (1, 1), "SAME", {"feature_group_count": 2}),
    "a kernel larger than the image": ((2, 2, 2, 3), (3, 3, 3, 4), (1, 1), "VALID", {}),
    "no images": ((0, 7, 6, 3), (3, 3, 3, 4), (1, 1), "SAME", {}),
    "groups of the batch": ((4, 7, 6, 3), (3, 3, 3, 4), (1, 1), "SAME", {"batch_group_count": 2}),
    "a large kernel": ((1, 16, 16, 2), (9, 9, 2, 3), (1, 1), "SAME", {}),
}


def make(case, dtype=jnp.float32):
    of_x, of_kernel, strides, padding, more = case
    rng = np.random.default_rng(0)
    x, kernel = (jnp.array(rng.normal(size=shape), dtype) for shape in (of_x, of_kernel))
    options = {"dimension_numbers": FLAX} | more
    function = functools.partial(jax.lax.conv_general_dilated, window_strides=strides, padding=padding, **options)
    return function, jaxpr_as_fun(by_products(jax.make_jaxpr(function)(x, kernel))), x, kernel


def values_and_gradients(function, x, kernel):
    y, pullback = jax.vjp(lambda *args: jax.tree.leaves(function(*args))[0], x, kernel)
    return y, *pullback(jnp.cos(jnp.arange(y.size, dtype=y.dtype)).reshape(y.shape))


def is_left(function, x, kernel):
    return "conv_general_dilated" in str(jax.make_jaxpr(function)(x, kernel))


@pytest.mark.parametrize("case", FAST)
@pytest.mark.parametrize("members", [None, 2])
def test_what_is_fast_gives_the_same(case, members):
    function, fast, x, kernel = make(FAST[case])
    assert not is_left(fast, x, kernel)
    results = [functools.partial(values_and_gradients, one) for one in (fast, function)]
    if members:
        x, kernel = (jnp.stack([leaf * (1 + i) for i in range(members)]) for leaf in (x, kernel))
        results = [jax.vmap(one) for one in results]
    for ours, theirs in zip(*(jax.jit(one)(x, kernel) for one in results), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("case", LEFT)
def test_others_are_left_as_they_are(case):
    function, left, x, kernel = make(LEFT[case])
    assert is_left(left, x, kernel)
    np.testing.assert_array_equal(left(x, kernel)[0], function(x, kernel))


def test_so_are_narrow_ones_and_those_on_accelerators(monkeypatch):
    _, left, x, kernel = make(FAST["3 x 3"], jnp.bfloat16)
    assert is_left(left, x, kernel)
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    _, left, x, kernel = make(FAST["3 x 3"])
    assert is_left(left, x, kernel)


@pytest.mark.parametrize(("shape", "dimensions"), [((2, 8, 9, 16), FLAX), ((2, 16, 8, 9), EQUINOX)])
def test_large_images_of_one_member_are_left_to_xla(shape, dimensions, monkeypatch):
    monkeypatch.setattr(process, "processor_features", lambda: frozenset({convolutions.VECTORS}))
    of_kernel = (3, 3, 16, 4) if dimensions == FLAX else (4, 16, 3, 3)
    case = (shape, of_kernel, (1, 1), "SAME", {"dimension_numbers": dimensions})
    with ALONE(True):
        _, left, x, kernel = make(case)
    _, fast, *_ = make(case)
    assert is_left(left, x, kernel)
    assert not is_left(fast, x, kernel)
