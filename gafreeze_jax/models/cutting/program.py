"""A function of parameters, inputs and a key as one flat list of equations.

Calls of compiled functions are inlined, and scans over stacked layers are unrolled. Calls with derivatives of their own
(`jax.custom_vjp`), conditions and other loops stay single equations.
"""

import itertools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.extend.core import ClosedJaxpr, JaxprEqn, Literal, Var
from jax.extend.core.primitives import (
    closed_call_p,
    convert_element_type_p,
    jit_p,
    remat_p,
    scan_p,
    slice_p,
    squeeze_p,
    transpose_p,
)

from gafreeze_jax.engine.network import STATISTICS, PyTree
from gafreeze_jax.masking.genes import ALWAYS_TRAINS, Genes

HEAD = "head"  # in place of a gene's name: the parameters that always train


class Origin(NamedTuple):
    """What a value is computed from.

    Attributes:
      genes: whose parameters it depends on; `HEAD` stands for those that always train.
      inputs: whether it depends on the inputs.
      key: whether it depends on the key that the function is given.
    """

    genes: frozenset[str] = frozenset()
    inputs: bool = False
    key: bool = False


NOTHING = Origin()


class Stack(NamedTuple):
    """Values that a program has stacked along an axis, such as the layers of a stacked parameter, before they are joined."""

    layers: tuple[Any, ...]
    axis: int


Value = Var | Literal | Stack
Atom = Var | Literal


def shaped(atom: Atom) -> Any:
    """Shape and dtype of an atom; JAX declares them for no abstract value."""
    return atom.aval


class FlatProgram(NamedTuple):
    """A function, flattened.

    Attributes:
      parameters: {gene or `HEAD`: {path: variable}}.
      inputs: variables of the leaves of the inputs.
      equations: in the order in which they are computed; each variable is defined once.
      outputs: of the function.
      statistics: of each gene that has some, its new running statistics; empty in inference mode.
      constants: arrays that the function closes over.
      origins: of all variables.
    """

    parameters: dict[str, dict[str, Var]]
    inputs: tuple[Var, ...]
    equations: list[JaxprEqn]
    outputs: list[Atom]
    statistics: dict[str, tuple[Atom, ...]]
    constants: dict[Var, Any]
    origins: dict[Var, Origin]

    @property
    def operations(self) -> list[str]:
        return [equation.primitive.name for equation in self.equations]

    def origin(self, atom: Atom) -> Origin:
        return NOTHING if isinstance(atom, Literal) else self.origins[atom]


def trace(apply: Callable[..., Any], params: PyTree, genes: Genes, inputs: PyTree, key: Any) -> FlatProgram:
    """Flattens `apply(params, inputs, key) -> (outputs, new running statistics or None)`, of which all but `apply` are shapes.

    Args:
      key: None for inference mode.
    """
    closed, shapes = jax.make_jaxpr(apply, return_shape=True)(params, inputs, key)
    flat = _Flattening()
    parameters: dict[str, dict[str, Var]] = {name: {} for name in (*genes.names, HEAD)}

    def parameter(owner: int, path: str, aval: Any) -> Var:
        name = HEAD if owner == ALWAYS_TRAINS else genes.names[owner]
        parameters[name][path] = flat.variable(aval, Origin(frozenset([name])))
        return parameters[name][path]

    invars = list(closed.jaxpr.invars)
    num_params, num_inputs = len(genes.paths), len(jax.tree.leaves(inputs))
    args: list[Value] = []
    for var, path, owner, axis in zip(invars[:num_params], genes.paths, genes.owners, genes.axes, strict=True):
        if isinstance(owner, tuple):
            layer = var.aval.update(shape=(*var.aval.shape[:axis], *var.aval.shape[axis + 1 :]))
            args.append(Stack(tuple(parameter(gene, path, layer) for gene in owner), axis))
        else:
            args.append(parameter(owner, path, var.aval))
    of_inputs = tuple(flat.variable(var.aval, Origin(inputs=True)) for var in invars[num_params : num_params + num_inputs])
    args += [*of_inputs, *(flat.variable(var.aval, Origin(key=True)) for var in invars[num_params + num_inputs :])]
    results = flat.run(closed, args)
    num_outputs = len(jax.tree.leaves(shapes[0]))
    outputs = [flat.joined(value) for value in results[:num_outputs]]
    statistics = _statistics(flat, genes, results[num_outputs:])
    return FlatProgram(
        parameters=parameters,
        inputs=of_inputs,
        equations=_alive(flat.equations, [*outputs, *itertools.chain(*statistics.values())]),
        outputs=outputs,
        statistics=statistics,
        constants=flat.constants,
        origins=flat.origins,
    )


def _statistics(flat: "_Flattening", genes: Genes, values: Sequence[Value]) -> dict[str, tuple[Atom, ...]]:
    """New running statistics by gene; their leaves come in the order of the parameters' leaves."""
    by_gene: dict[str, list[Atom]] = {}
    places = [place for place, path in enumerate(genes.paths) if is_statistic(path)]
    for place, value in zip(places if values else [], values, strict=True):
        owner = genes.owners[place]
        if isinstance(owner, tuple):
            if isinstance(value, Stack) and value.axis == genes.axes[place]:
                layers = value.layers
            else:
                layers = flat.take_apart(value, genes.axes[place], len(owner))
            for gene, layer in zip(owner, layers, strict=True):
                by_gene.setdefault(genes.names[gene], []).append(layer)
        else:
            by_gene.setdefault(genes.names[owner], []).append(flat.joined(value))
    return {name: tuple(atoms) for name, atoms in by_gene.items()}


def _alive(equations: Sequence[JaxprEqn], wanted: Sequence[Atom]) -> list[JaxprEqn]:
    """The equations that lead to the wanted values."""
    needed = {atom for atom in wanted if not isinstance(atom, Literal)}
    alive = []
    for equation in reversed(equations):
        if not needed.isdisjoint(equation.outvars):
            alive.append(equation)
            needed |= {atom for atom in equation.invars if not isinstance(atom, Literal)}
    return alive[::-1]


def is_statistic(path: str) -> bool:
    return path.startswith(f"{STATISTICS}/")


class _Flattening:
    """Equations that are being collected."""

    def __init__(self):
        self.equations: list[JaxprEqn] = []
        self.origins: dict[Var, Origin] = {}
        self.constants: dict[Var, Any] = {}

    def variable(self, aval: Any, origin: Origin = NOTHING) -> Var:
        var = Var(aval)
        self.origins[var] = origin
        return var

    def run(self, closed: Any, args: Sequence[Value]) -> list[Value]:
        """Adds the equations of a closed jaxpr, and gives its results."""
        jaxpr = closed.jaxpr
        env: dict[Var, Value] = dict(zip(jaxpr.invars, args, strict=True))
        for var, value in zip(jaxpr.constvars, closed.consts, strict=True):
            env[var] = constant = self.variable(var.aval)
            self.constants[constant] = value
        for equation in jaxpr.eqns:
            operands = [atom if isinstance(atom, Literal) else env[atom] for atom in equation.invars]
            rule = RULES.get(equation.primitive)
            results = None if rule is None else rule(self, equation, operands)
            env |= zip(equation.outvars, self.add(equation, operands) if results is None else results, strict=True)
        return [atom if isinstance(atom, Literal) else env[atom] for atom in jaxpr.outvars]

    def add(self, equation: JaxprEqn, operands: Sequence[Value]) -> list[Var]:
        """Adds an equation as it is."""
        atoms = [self.joined(value) for value in operands]
        origins = [self.origins[atom] for atom in atoms if not isinstance(atom, Literal)]
        genes = frozenset().union(*(of.genes for of in origins))
        origin = Origin(genes, any(of.inputs for of in origins), any(of.key for of in origins))
        results = [self.variable(var.aval, origin) for var in equation.outvars]
        self.equations.append(equation.replace(invars=atoms, outvars=results))
        return results

    def call(self, function: Callable[..., Array], *operands: Atom) -> Any:
        """Adds the equations of a function with one result."""
        shapes = [jax.ShapeDtypeStruct(shaped(atom).shape, shaped(atom).dtype) for atom in operands]
        (result,) = self.run(jax.make_jaxpr(function)(*shapes), operands)
        return result

    def joined(self, value: Value) -> Atom:
        if isinstance(value, Stack):
            return self.call(lambda *layers: jnp.stack(layers, value.axis), *map(self.joined, value.layers))
        return value

    def take_apart(self, value: Value, axis: int, length: int) -> tuple[Atom, ...]:
        """The layers of a value along an axis."""
        if isinstance(value, Stack) and value.axis == axis:
            return value.layers
        whole = self.joined(value)
        return tuple(self.call(lambda x, i=i: lax.index_in_dim(x, i, axis, keepdims=False), whole) for i in range(length))

    def map_layers(self, function: Callable[[Array], Array], stack: Stack, axis: int) -> list[Stack]:
        """A function of each layer, stacked along another axis."""
        return [Stack(tuple(self.call(function, self.joined(layer)) for layer in stack.layers), axis)]


Rule = Callable[[_Flattening, JaxprEqn, list[Value]], Sequence[Value] | None]  # None: the equation stays as it is


def _inline(flat: _Flattening, equation: JaxprEqn, operands: list[Value]) -> Sequence[Value]:
    return flat.run(equation.params["jaxpr" if equation.primitive is jit_p else "call_jaxpr"], operands)


def _inline_if_mixed(flat: _Flattening, equation: JaxprEqn, operands: list[Value]) -> Sequence[Value] | None:
    """`jax.checkpoint`: the whole of a layer is one equation, but what spans several genes is taken apart."""
    genes: set[str] = set()
    for value in operands:
        for atom in value.layers if isinstance(value, Stack) else (value,):
            origin = NOTHING if isinstance(atom, Literal | Stack) else flat.origins[atom]
            genes |= origin.genes if not origin.inputs else set()
    return flat.run(ClosedJaxpr(equation.params["jaxpr"], []), operands) if len(genes) > 1 else None


def _unroll(flat: _Flattening, equation: JaxprEqn, operands: list[Value]) -> Sequence[Value] | None:
    """A scan whose layers have parameters of their own."""
    params = equation.params
    num_consts, num_carry, length = params["num_consts"], params["num_carry"], params["length"]
    consts, carry = operands[:num_consts], operands[num_consts : num_consts + num_carry]
    xs = operands[num_consts + num_carry :]
    if not any(isinstance(x, Stack) and x.axis == 0 for x in xs):
        return None
    layers = [flat.take_apart(x, 0, length) for x in xs]
    ys: list[Sequence[Value]] = [()] * length
    for i in reversed(range(length)) if params["reverse"] else range(length):
        results = flat.run(params["jaxpr"], [*consts, *carry, *(layer[i] for layer in layers)])
        carry, ys[i] = results[:num_carry], results[num_carry:]
    return [*carry, *(Stack(of_layers, 0) for of_layers in zip(*ys, strict=True))]


def _slice(flat: _Flattening, equation: JaxprEqn, operands: list[Value]) -> Sequence[Value] | None:
    (stack,), params = operands, equation.params
    if not isinstance(stack, Stack) or params["strides"] is not None:
        return None
    start, limit = params["start_indices"], params["limit_indices"]
    chosen = Stack(stack.layers[start[stack.axis] : limit[stack.axis]], stack.axis)
    of_layer = [_without(places, stack.axis) for places in (start, limit)]
    return flat.map_layers(lambda x: lax.slice(x, *of_layer), chosen, stack.axis)


def _squeeze(flat: _Flattening, equation: JaxprEqn, operands: list[Value]) -> Sequence[Value] | None:
    (stack,), dimensions = operands, equation.params["dimensions"]
    if not isinstance(stack, Stack):
        return None
    of_layer = [place - (place > stack.axis) for place in dimensions if place != stack.axis]
    axis = stack.axis - sum(place < stack.axis for place in dimensions)
    (squeezed,) = flat.map_layers(lambda x: lax.squeeze(x, of_layer), stack, axis)
    return squeezed.layers if stack.axis in dimensions else [squeezed]


def _transpose(flat: _Flattening, equation: JaxprEqn, operands: list[Value]) -> Sequence[Value] | None:
    (stack,), permutation = operands, equation.params["permutation"]
    if not isinstance(stack, Stack):
        return None
    axis = permutation.index(stack.axis)
    of_layer = [place - (place > stack.axis) for place in _without(permutation, axis)]
    return flat.map_layers(lambda x: lax.transpose(x, of_layer), stack, axis)


def _convert(flat: _Flattening, equation: JaxprEqn, operands: list[Value]) -> Sequence[Value] | None:
    (stack,) = operands
    if not isinstance(stack, Stack):
        return None
    return flat.map_layers(lambda x: lax.convert_element_type(x, equation.params["new_dtype"]), stack, stack.axis)


def _without(items: Sequence[int], place: int) -> list[int]:
    return [*items[:place], *items[place + 1 :]]


RULES: dict[Any, Rule] = {
    jit_p: _inline,
    closed_call_p: _inline,
    remat_p: _inline_if_mixed,
    scan_p: _unroll,
    slice_p: _slice,
    squeeze_p: _squeeze,
    transpose_p: _transpose,
    convert_element_type_p: _convert,
}
