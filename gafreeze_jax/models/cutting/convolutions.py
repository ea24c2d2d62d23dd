"""Convolutions of a user's function on a CPU, in the ways of `models/convolutions.py`.

XLA's own take several times as long backwards, for several members at once, and in a loop.
"""

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.extend.core import ClosedJaxpr, JaxprEqn
from jax.extend.core.primitives import conv_general_dilated_p

from gafreeze_jax.models import convolutions
from gafreeze_jax.models.cutting.program import shaped

MOST_TAPS = 49  # of a kernel, each of which copies the image


def by_products(closed: ClosedJaxpr) -> ClosedJaxpr:
    """The same computation with convolutions by matrix products where that is faster.

    Sums are in another order, so that results differ by rounding.
    """
    if jax.default_backend() != "cpu":
        return closed
    return closed.replace(jaxpr=closed.jaxpr.replace(eqns=[_replaced(equation) for equation in closed.jaxpr.eqns]))


def _replaced(equation: JaxprEqn) -> JaxprEqn:
    """An equation, or a call in its place."""
    way = _way(equation) if equation.primitive is conv_general_dilated_p else None
    if way is None:
        return equation
    shapes = [jax.ShapeDtypeStruct(shaped(atom).shape, shaped(atom).dtype) for atom in equation.invars]
    (call,) = jax.make_jaxpr(jax.jit(functools.partial(_in_our_layout, way, equation.params["dimension_numbers"])))(
        *shapes
    ).eqns
    return call.replace(invars=equation.invars, outvars=equation.outvars)


def _in_our_layout(way: Callable[[Array, Array], Array], dimensions: Any, x: Array, kernel: Array) -> Array:
    """Calls a way, which takes channels last, with axes in any order."""
    (batch, channels, *places), (outputs, inputs, *sizes), (of_batch, of_outputs, *of_places) = dimensions
    y = way(x.transpose(batch, *places, channels), kernel.transpose(*sizes, inputs, outputs))
    return y.transpose(np.argsort([of_batch, *of_places, of_outputs]))


def _way(equation: JaxprEqn) -> Callable[[Array, Array], Array] | None:
    """[B, ..., I] and [k, ..., I, O] -> [B, ..., O], if there is a fast one."""
    params, (x, kernel) = equation.params, map(shaped, equation.invars)
    (_, channels, *_), (_, _, *axes), _ = params["dimension_numbers"]
    sizes, strides = [kernel.shape[axis] for axis in axes], params["window_strides"]
    dilated = any(dilation != 1 for dilation in (*params["lhs_dilation"], *params["rhs_dilation"]))
    if x.dtype != jnp.float32 or kernel.dtype != jnp.float32 or dilated or params["batch_group_count"] != 1:
        return None
    is_centred = len({*sizes}) == 1 and sizes[0] % 2 == 1 and {*params["padding"]} == {(sizes[0] // 2,) * 2}
    is_plain = len(axes) == 2 and is_centred and len({*strides}) == 1
    is_of_patches = len(axes) == 2 and len({*sizes, *strides}) == 1 and {*params["padding"]} == {(0, 0)}
    if math.prod(sizes) > MOST_TAPS and not is_of_patches:
        return None
    if params["feature_group_count"] != 1:
        is_depthwise = params["feature_group_count"] == x.shape[channels] == math.prod(kernel.shape) // math.prod(sizes)
        return convolutions.convolve_depthwise if is_plain and is_depthwise and strides[0] == 1 else None
    if is_of_patches:
        return convolutions.convolve_patches
    if is_plain:
        return functools.partial(convolutions.convolve, stride=strides[0])
    return jax.checkpoint(
        functools.partial(convolutions.convolve_by_patches, strides=tuple(strides), padding=tuple(params["padding"]))
    )
