"""Convolutions of a user's function on a CPU, in the ways of `models/convolutions.py`.

XLA's take up to 1.6 times as long for one member, and several times as long for stacked members, depthwise kernels and in a
loop.
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
    """The same computation with convolutions by matrix products where that is faster, as it is traced just now.

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
    replacement = jax.checkpoint(functools.partial(_in_our_layout, way, equation.params["dimension_numbers"]))
    (call,) = jax.make_jaxpr(jax.jit(replacement))(*shapes).eqns
    return call.replace(invars=equation.invars, outvars=equation.outvars)


def _in_our_layout(way: Callable[[Array, Array], Array], dimensions: Any, x: Array, kernel: Array) -> Array:
    """Calls a way, which takes channels last, with axes in any order."""
    (batch, channels, *places), (outputs, inputs, *sizes), (of_batch, of_outputs, *of_places) = dimensions
    y = way(x.transpose(batch, *places, channels), kernel.transpose(*sizes, inputs, outputs))
    return y.transpose(np.argsort([of_batch, *of_places, of_outputs]))


def _way(equation: JaxprEqn) -> Callable[[Array, Array], Array] | None:
    """[B, ..., I] and [k, ..., I, O] -> [B, ..., O], if there is a fast one."""
    params, (x, kernel) = equation.params, map(shaped, equation.invars)
    all_arrays = x, kernel, shaped(equation.outvars[0])
    if any(array.dtype != jnp.float32 or 0 in array.shape for array in all_arrays):
        return None
    dilated = any(dilation != 1 for dilation in (*params["lhs_dilation"], *params["rhs_dilation"]))
    if dilated or params["batch_group_count"] != 1:
        return None
    (_, channels, *places), (_, _, *axes), _ = params["dimension_numbers"]
    sizes, strides, padding = [kernel.shape[axis] for axis in axes], params["window_strides"], params["padding"]
    is_square = len(axes) == 2 and len({*sizes}) == len({*strides}) == 1
    is_of_patches = is_square and sizes[0] == strides[0] and {*padding} == {(0, 0)}
    is_centred = is_square and sizes[0] % 2 == 1 and {*padding} == {(sizes[0] // 2,) * 2}
    if math.prod(sizes) > MOST_TAPS and not is_of_patches:
        return None
    if (groups := params["feature_group_count"]) != 1:
        is_depthwise = groups == x.shape[channels] == math.prod(kernel.shape) // math.prod(sizes)
        return convolutions.convolve_depthwise if is_depthwise and is_centred and strides[0] == 1 else None
    if is_of_patches:
        return convolutions.convolve_patches
    if is_centred:
        image = [x.shape[axis] for axis in places]
        if convolutions.is_left_to_xla(image, sizes[0], x.shape[channels], strides[0]):
            return None
        return functools.partial(convolutions.convolve, stride=strides[0])
    return functools.partial(convolutions.convolve_by_patches, strides=tuple(strides), padding=tuple(padding))
