"""The functions of blocks and head: slices of a program, for batches of any size.

A function is traced anew for every batch size; the places at which it is cut stay the same.
"""

import functools
import hashlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.core import Tracer
from jax.extend.core import ClosedJaxpr, DebugInfo, Jaxpr, JaxprEqn, Literal, Var, jaxpr_as_fun

from gafreeze_jax.engine.network import ALONE, INPUTS, STATISTICS, PyTree, has_statistics
from gafreeze_jax.masking.genes import Genes
from gafreeze_jax.models.cutting import convolutions
from gafreeze_jax.models.cutting import program as programs
from gafreeze_jax.models.cutting.boundaries import Crossing
from gafreeze_jax.models.cutting.program import HEAD, Atom, FlatProgram, is_statistic, shaped

ALWAYS = "always"  # the key, among the head's parameters, of those without a gene
LEAVES = "params"  # the key, among a block's parameters, of its leaves; its running statistics are at "batch_stats"


def block_tree(leaves: Mapping[str, Any]) -> dict[str, tuple[Any, ...]]:
    """A block's parameters, from {path: leaf}. Paths are left out, so that equal layers have equal trees."""
    statistics = tuple(leaf for path, leaf in leaves.items() if is_statistic(path))
    others = tuple(leaf for path, leaf in leaves.items() if not is_statistic(path))
    return {LEAVES: others} | ({STATISTICS: statistics} if statistics else {})


def cache_by_mesh(function: Callable[..., Any]) -> Callable[..., Any]:
    """Keeps results, also by the mesh over which members or batches are sharded just then: equations are bound to it."""
    cached = functools.cache(lambda mesh, *args: function(*args))
    return lambda *args: cached(jax.sharding.get_abstract_mesh(), *args)


class Traced:
    """A function, flattened for batches of those sizes that are asked for.

    Args:
      apply: `apply(params, inputs, key) -> (outputs, new running statistics or None)`.
      params, inputs: shapes; those of the inputs are of a batch of any size.

    Attributes:
      program: `program(size, training)`.
    """

    def __init__(self, apply: Callable[..., Any], params: PyTree, genes: Genes, inputs: PyTree):
        self._apply, self._params, self._genes, self._inputs = apply, params, genes, inputs
        self.program = cache_by_mesh(self._program)

    def _program(self, size: int, training: bool) -> FlatProgram:
        def of_size(leaf: Any) -> jax.ShapeDtypeStruct:
            return jax.ShapeDtypeStruct((size, *leaf.shape[1:]), leaf.dtype)

        key = jax.eval_shape(jax.random.key, 0) if training else None
        return programs.trace(self._apply, self._params, self._genes, jax.tree.map(of_size, self._inputs), key)


class Slice(NamedTuple):
    """The equations that lead from given values to wanted ones.

    Attributes:
      closed: these equations; its arguments are the given values and the keys.
      keys: a number and a shape for each key that is read and comes from the function's own. How it is made is not part of a
        slice: each gets one of its own, so that equal layers are equal. Other keys, such as fixed ones, stay as they are.
      draws: places of the equations that read them.
      read: the given values that are needed.
    """

    closed: ClosedJaxpr
    keys: list[tuple[int, tuple[int, ...]]]
    draws: frozenset[int]
    read: frozenset[Var]


def make_slice(program: FlatProgram, given: Sequence[Var], wanted: Sequence[Atom]) -> Slice:
    equations: list[JaxprEqn] = []
    keys: dict[Var, None] = {}
    draws: set[int] = set()
    needed = {atom for atom in wanted if not isinstance(atom, Literal)}
    stop = frozenset(given)
    for place in reversed(range(len(program.equations))):
        equation = program.equations[place]
        if needed.isdisjoint(equation.outvars) or stop.issuperset(needed.intersection(equation.outvars)):
            continue
        equations.append(equation)
        read = [atom for atom in equation.invars if not isinstance(atom, Literal)]
        given_keys = [var for var in read if _is_key(var) and program.origin(var).key]
        if given_keys and not all(map(_is_key, equation.outvars)):
            draws.add(place)
            keys |= dict.fromkeys(given_keys)
        needed |= set(read) - keys.keys()
    constants = {var: value for var, value in program.constants.items() if var in needed}
    order = list(keys)[::-1]
    info = DebugInfo("cut", "piece", None, None)
    jaxpr = Jaxpr([*constants], [*given, *order], [*wanted], equations[::-1], debug_info=info)
    closed = ClosedJaxpr(jaxpr, [*constants.values()])
    return Slice(closed, [(i, shaped(var).shape) for i, var in enumerate(order)], frozenset(draws), frozenset(needed & stop))


def _is_key(var: Any) -> bool:
    return _is_key_type(var.aval.dtype)


def _is_key_type(dtype: Any) -> bool:
    return jnp.issubdtype(dtype, jax.dtypes.prng_key)


class Piece:
    """A block's or the head's `apply`; see `engine.network.Block`. What goes from piece to piece is a tuple of arrays [B, ...].

    Args:
      names: of the genes whose parameters it reads; the head's start with `HEAD`.
      below, above: for inference mode and, if there is one, training mode, the values that enter and leave; None below is for
        the lowest piece, which the inputs enter, None above for the head.
      size: of the batches by which pieces are compared.

    Attributes:
      signature: equal for pieces that compute the same from their arguments.
      reads_inputs: whether it reads the function's inputs beside what the piece below gives.
      num_parameters: that it is called with, running statistics and shared ones among them.
    """

    def __init__(
        self,
        traced: Traced,
        *,
        names: Sequence[str],
        below: Sequence[tuple[Crossing, ...] | None],
        above: Sequence[tuple[Crossing, ...] | None],
        size: int,
    ):
        self._traced, self.names, self._below, self._above = traced, tuple(names), tuple(below), tuple(above)
        self.size = size
        self.slice = cache_by_mesh(self._slice)
        self._fast = cache_by_mesh(lambda size, training, alone: convolutions.by_products(self.slice(size, training).closed))
        leaves = jax.tree.leaves(self._parameters(traced.program(size, False)))
        self.num_parameters = sum(var.aval.size for var in leaves)
        modes = [bool(mode) for mode in range(len(self._below))]
        self.reads_inputs = True
        self.reads_inputs = self._below[0] is not None and any(
            not self._slice(size, training).read.isdisjoint(traced.program(size, training).inputs) for training in modes
        )
        texts = [signature(self.slice(size, training).closed) for training in modes]
        self._has_training_mode = len(set(texts)) > 1
        batches = [tuple(crossing.batch for crossing in of or ()) for of in (*self._below, *self._above)]
        self.signature = (*texts, *batches)

    def __call__(self, params: PyTree, x: PyTree, context: PyTree, *, frozen: Any, key: Array | None) -> Any:
        old = params[STATISTICS] if has_statistics(params) else ()
        if key is None or frozen is True or not self._has_training_mode:
            y, statistics = self._run(params, x, context, None)[0], old
        elif frozen is False:
            y, statistics = self._run(params, x, context, key)
        else:
            inferred = self._run(params, x, context, None)[0], old
            y, statistics = jax.tree.map(functools.partial(jnp.where, frozen), inferred, self._run(params, x, context, key))
        if not old or frozen is True:
            return y
        return y, tuple(jnp.asarray(new, like) for new, like in zip(statistics, map(jnp.result_type, old), strict=True))

    def _run(self, params: PyTree, x: PyTree, context: PyTree, key: Array | None) -> tuple[Any, tuple[Array, ...]]:
        """What leaves it, and new running statistics; without a key in inference mode."""
        training = key is not None
        below, above = self._below[training], self._above[training]
        size = len(jax.tree.leaves(x)[0])
        closed, keys, *_ = self.slice(size, training)
        entering = (
            jax.tree.leaves(x) if below is None else [of.batch.from_rows(rows) for of, rows in zip(below, x, strict=True)]
        )
        inputs = jax.tree.leaves(context[INPUTS]) if self.reads_inputs else []
        drawn = [_make_keys(key, i, shape) for i, shape in keys]
        leaves = jax.tree.leaves(params)  # those that train may be wider than the function takes them
        narrowed = [leaf.astype(var.aval.dtype) for leaf, var in zip(leaves, closed.jaxpr.invars, strict=False)]
        args = [*narrowed, *entering, *inputs, *drawn]
        # Run one operation at a time, a piece computes what the function does to the bit.
        is_traced = any(isinstance(arg, Tracer) for arg in args)
        results = jaxpr_as_fun(self._fast(size, training, ALONE.value) if is_traced else closed)(*args)
        if above is None:
            return results[0], ()
        leaving, statistics = results[: len(above)], results[len(above) :]
        return tuple(of.batch.to_rows(array) for of, array in zip(above, leaving, strict=True)), tuple(statistics)

    def _slice(self, size: int, training: bool) -> Slice:
        program, compared = (self._traced.program(rows, training) for rows in (size, self.size))
        below, above = self._below[training], self._above[training]
        if (below or above) and program.operations != compared.operations:
            raise ValueError(
                f"batches of {size} rows take other operations than those of {self.size}, by which the function was cut"
            )
        given = jax.tree.leaves(self._parameters(program))
        given += [] if below is None else [value(program, crossing) for crossing in below]
        given += program.inputs if below is None or self.reads_inputs else ()
        wanted = program.outputs if above is None else [value(program, crossing) for crossing in above]
        return make_slice(program, given, [*wanted, *program.statistics.get(self.names[0], ())])

    def _parameters(self, program: FlatProgram) -> PyTree:
        """Variables of its parameters, in the tree that it is called with."""
        if self.names[0] != HEAD:
            return block_tree(program.parameters[self.names[0]])
        return {ALWAYS: program.parameters[HEAD]} | {name: block_tree(program.parameters[name]) for name in self.names[1:]}


def value(program: FlatProgram, crossing: Crossing) -> Var:
    return program.equations[crossing.equation].outvars[crossing.result]


def _make_keys(key: Any, i: int, shape: tuple[int, ...]) -> Array:
    key = jax.random.fold_in(key, i)
    return jax.random.split(key, shape) if shape else key


def signature(closed: ClosedJaxpr) -> str:
    """A text that is equal for jaxprs that compute the same, and have the same derivatives."""
    function = jaxpr_as_fun(closed)
    shapes = [jax.ShapeDtypeStruct(var.aval.shape, var.aval.dtype) for var in closed.jaxpr.invars]
    places = [place for place, shape in enumerate(shapes) if jnp.issubdtype(shape.dtype, jnp.inexact)]

    def with_derivatives(*args):
        def of_floats(*floats):
            given = dict(zip(places, floats, strict=True))
            return function(*(given.get(place, arg) for place, arg in enumerate(args)))

        results, pullback = jax.vjp(of_floats, *(args[place] for place in places))
        return results, pullback(results)

    are_floats = all(jnp.issubdtype(atom.aval.dtype, jnp.inexact) for atom in closed.jaxpr.outvars)
    try:
        text = str(jax.make_jaxpr(with_derivatives if are_floats else function)(*shapes))
    except ValueError:  # a loop of unknown length has no derivative, which what trains below it will be told
        text = str(jax.make_jaxpr(function)(*shapes))
    arrays = (jax.random.key_data(array) if _is_key_type(array.dtype) else array for array in closed.consts)
    return "\n".join([text, *(hashlib.sha256(np.asarray(array).tobytes()).hexdigest() for array in arrays)])
