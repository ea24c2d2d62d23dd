"""The examples of a batch in the values of a program, found by tracing batches of two sizes."""

import math
from typing import NamedTuple

import jax.numpy as jnp
from jax import Array
from jax.extend.core import JaxprEqn, Literal, Var
from jax.extend.core.primitives import reshape_p

from gafreeze_jax.models.cutting.program import FlatProgram, shaped


class BatchAxis(NamedTuple):
    """Where a value has the examples of its batch.

    Attributes:
      axis: of a length that is a multiple of the batch's.
      times: this multiple, example by example, such as the tokens of a text.
    """

    axis: int
    times: int

    def to_rows(self, value: Array) -> Array:
        """The value with a row for each example."""
        if self.times > 1:
            shape = value.shape
            value = value.reshape(*shape[: self.axis], -1, self.times, *shape[self.axis + 1 :])
        return value if self.axis == 0 else jnp.moveaxis(value, self.axis, 0)

    def from_rows(self, rows: Array) -> Array:
        """The reverse of `to_rows`."""
        value = rows if self.axis == 0 else jnp.moveaxis(rows, 0, self.axis)
        if self.times > 1:
            shape = value.shape
            value = value.reshape(*shape[: self.axis], -1, *shape[self.axis + 2 :])
        return value


def find(small: FlatProgram, large: FlatProgram, sizes: tuple[int, int]) -> dict[Var, BatchAxis] | None:
    """The batch axis of each variable of the first of two programs that has one.

    Args:
      sizes: of the batches of both.

    Returns:
      None if the programs do not have the same equations.
    """
    if small.operations != large.operations:
        return None
    found = dict.fromkeys(small.inputs, BatchAxis(0, 1))
    for equation, of_large in zip(small.equations, large.equations, strict=True):
        for var, other in zip(equation.outvars, of_large.outvars, strict=True):
            lengths = list(zip(shaped(var).shape, shaped(other).shape, strict=True))
            changed = [axis for axis, (length, of_other) in enumerate(lengths) if length != of_other]
            if len(changed) != 1:
                continue
            batch = BatchAxis(changed[0], lengths[changed[0]][0] // sizes[0])
            if lengths[batch.axis] == (batch.times * sizes[0], batch.times * sizes[1]) and _is_by_example(
                equation, batch, found
            ):
                found[var] = batch
    return found


def _is_by_example(equation: JaxprEqn, batch: BatchAxis, found: dict[Var, BatchAxis]) -> bool:
    """Whether a longer axis of an equation's result has all of an example before the next one."""
    if batch.times == 1:
        return True
    operands = [atom for atom in equation.invars if not isinstance(atom, Literal) and atom in found]
    if equation.primitive is reshape_p and operands:
        before = math.prod(shaped(operands[0]).shape[: found[operands[0]].axis])
        return before == math.prod(shaped(equation.outvars[0]).shape[: batch.axis])
    return bool(operands) and all(found[atom].times == batch.times for atom in operands)
