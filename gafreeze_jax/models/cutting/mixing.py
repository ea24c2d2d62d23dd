"""Equations that make the examples of a batch depend on each other, found by tracing batches of two sizes.

What a block computes for an example can be kept, and used in other batches, only if it does not depend on the others. The axes
that grow with the batch tell: an equation whose result has no such axis, or two of them, brings examples together, as a mean
over the batch or the products of all pairs do. Where the result has one, `MOVES` knows which primitives work along it.
Rows that are picked by indices are compared with the examples that they are for, if the indices do not depend on the inputs.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.extend.core import JaxprEqn, Literal, jaxpr_as_fun, jaxprs_in_params, primitives

from gafreeze_jax.models.cutting.pieces import make_slice
from gafreeze_jax.models.cutting.program import NOTHING, Atom, FlatProgram, shaped


class Along(NamedTuple):
    """An equation's way from an axis that grows with the batch to another.

    Attributes:
      params: of the equation.
      operand, shape, axis: of the first operand that has such an axis: its place, its shape, and the axis.
      result, to: shape and axis of the first result.
      size: of the batch.
    """

    params: Mapping[str, Any]
    operand: int
    shape: tuple[int, ...]
    axis: int
    result: tuple[int, ...]
    to: int
    size: int


def find(small: FlatProgram, large: FlatProgram, size: int) -> set[int]:
    """Places of the equations that mix examples.

    Args:
      large: the same equations as the first program's, for larger batches.
      size: of the batches of the first.
    """
    mixing = set()
    for place, (equation, of_large) in enumerate(zip(small.equations, large.equations, strict=True)):
        of_inputs = any(small.origin(atom).inputs for atom in equation.invars)
        if of_inputs and _mixes(equation, of_large, size) and not _picks_its_own(small, equation, of_large, size):
            mixing.add(place)
    return mixing


def _mixes(equation: JaxprEqn, of_large: JaxprEqn, size: int) -> bool:
    growing = [_growing(a, b) for a, b in zip(equation.invars, of_large.invars, strict=True)]
    if not any(growing):
        return False
    if equation.primitive in CALLS:
        return _mixes_inside(equation, of_large, size)
    of_results = [_growing(a, b) for a, b in zip(equation.outvars, of_large.outvars, strict=True)]
    if any(len(axes) > 1 for axes in growing) or any(len(axes) != 1 for axes in of_results):
        return True
    if any(map(_is_other_number, equation.invars, of_large.invars)):
        return True
    place = next(place for place, axes in enumerate(growing) if axes)
    shape, result = shaped(equation.invars[place]).shape, shaped(equation.outvars[0]).shape
    along = Along(equation.params, place, shape, growing[place][0], result, of_results[0][0], size)
    moves = MOVES.get(equation.primitive)
    return moves is not None and moves(along)


def _is_other_number(atom: Any, of_large: Any) -> bool:
    """Whether a constant is a number that depends on the batch's size, as in `x / len(x)`."""
    if not (isinstance(atom, Literal) and isinstance(of_large, Literal)):
        return False
    return jnp.issubdtype(shaped(atom).dtype, jnp.inexact) and bool(np.any(atom.val != of_large.val))


def _mixes_inside(equation: JaxprEqn, of_large: JaxprEqn, size: int) -> bool:
    """Whether a function that an equation calls does, or is called for one example after the other."""
    if equation.params.get("length") != of_large.params.get("length"):
        return True
    functions = zip(jaxprs_in_params(equation.params), jaxprs_in_params(of_large.params), strict=True)
    return any(
        len(ours.eqns) != len(theirs.eqns) or any(_mixes(*pair, size) for pair in zip(ours.eqns, theirs.eqns, strict=True))
        for ours, theirs in functions
    )


def _picks_its_own(program: FlatProgram, equation: JaxprEqn, of_large: JaxprEqn, size: int) -> bool:
    """Whether indices are known to pick rows of the example that they are for, as in `x[jnp.arange(len(x)), last]`."""
    if equation.primitive is not primitives.gather_p:
        return False
    operand, indices = map(_growing, equation.invars, of_large.invars)
    picked_by = equation.params["dimension_numbers"].start_index_map
    if len(operand) != 1 or len(indices) != 1 or operand[0] not in picked_by:
        return False
    column = _column(program, equation.invars[1], picked_by.index(operand[0]))
    if column is None or equation.params["slice_sizes"][operand[0]] != 1:
        return False
    length, num_picked = shaped(equation.invars[0]).shape[operand[0]], column.shape[indices[0]]
    examples = np.moveaxis(column, indices[0], -1) // (length // size)
    return bool(np.all(examples == np.arange(num_picked) // (num_picked // size)))


def _column(program: FlatProgram, indices: Atom, column: int) -> np.ndarray | None:
    """A column [...] of indices [..., columns], if it depends neither on inputs nor on parameters."""
    if isinstance(indices, Literal):
        return None
    if program.origin(indices) == NOTHING:
        (known,) = jaxpr_as_fun(make_slice(program, [], [indices]).closed)()
        return np.asarray(known)[..., column]
    producer = next(equation for equation in program.equations if indices in equation.outvars)
    if producer.primitive is not primitives.concatenate_p or producer.params["dimension"] != len(shaped(indices).shape) - 1:
        return None
    for part in producer.invars:
        width = shaped(part).shape[-1]
        if column < width:
            return _column(program, part, column)
        column -= width
    return None


def _growing(atom: Any, of_large: Any) -> list[int]:
    """Axes that are longer in a larger batch."""
    if isinstance(atom, Literal):
        return []
    lengths = zip(shaped(atom).shape, shaped(of_large).shape, strict=True)
    return [axis for axis, (length, longer) in enumerate(lengths) if length != longer]


def _has_axis(along: Along) -> bool:
    return along.params["axis"] == along.axis


def _ranks(along: Along) -> bool:
    last = len(along.shape) - 1
    return along.params.get("axis", last) == along.axis


def _sorts(along: Along) -> bool:
    return along.params["dimension"] == along.axis


def _reverses(along: Along) -> bool:
    return along.axis in along.params["dimensions"]


def _slices(along: Along) -> bool:
    return along.result[along.to] != along.shape[along.axis]


def _pads(along: Along) -> bool:
    return along.params["padding_config"][along.axis] != (0, 0, 0)


def _regroups(along: Along) -> bool:
    """Rows that become fewer, or no more, are those of one example only if nothing before them is split off."""
    before, after = math.prod(along.shape[: along.axis]), math.prod(along.result[: along.to])
    length, new = along.shape[along.axis], along.result[along.to]
    return new <= length and (before != after or new % along.size != 0)


def _picks(along: Along) -> bool:
    """Rows of parameters may be picked by what is in the batch, but not rows of the batch."""
    return along.operand == 0 and along.axis in along.params["dimension_numbers"].start_index_map


def _scatters(along: Along) -> bool:
    return along.to in along.params["dimension_numbers"].scatter_dims_to_operand_dims


def _has_window(along: Along) -> bool:
    return along.params["window_dimensions"][along.axis] != 1


def _convolves(along: Along) -> bool:
    return along.operand == 0 and along.params["dimension_numbers"].lhs_spec[0] != along.axis


def _transforms(along: Along) -> bool:
    return along.axis >= len(along.shape) - len(along.params["fft_lengths"])


CALLS = {
    primitives.closed_call_p,
    primitives.cond_p,
    primitives.custom_jvp_call_p,
    primitives.custom_vjp_call_p,
    primitives.jit_p,
    primitives.remat_p,
    primitives.scan_p,
    primitives.while_p,
}
MOVES: dict[Any, Callable[[Along], bool]] = {
    primitives.conv_general_dilated_p: _convolves,
    primitives.cumlogsumexp_p: _has_axis,
    primitives.cummax_p: _has_axis,
    primitives.cummin_p: _has_axis,
    primitives.cumprod_p: _has_axis,
    primitives.cumsum_p: _has_axis,
    primitives.dynamic_slice_p: _slices,
    primitives.fft_p: _transforms,
    primitives.gather_p: _picks,
    primitives.pad_p: _pads,
    primitives.reduce_window_max_p: _has_window,
    primitives.reduce_window_min_p: _has_window,
    primitives.reduce_window_p: _has_window,
    primitives.reduce_window_sum_p: _has_window,
    primitives.reshape_p: _regroups,
    primitives.rev_p: _reverses,
    primitives.scatter_add_p: _scatters,
    primitives.scatter_max_p: _scatters,
    primitives.scatter_min_p: _scatters,
    primitives.scatter_mul_p: _scatters,
    primitives.scatter_p: _scatters,
    primitives.slice_p: _slices,
    primitives.sort_p: _sorts,
    primitives.top_k_p: _ranks,
    lax.split_p: _has_axis,
}
