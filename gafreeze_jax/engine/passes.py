"""Forward and backward passes of a block and of the head, each compiled by itself.

Members of a population may be stacked along a leading axis and are then mapped with `jax.vmap`. An `axis` of None says
that an argument has no such axis, and is shared by all members.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from gafreeze_jax.engine import devices
from gafreeze_jax.engine.network import ALONE, STATISTICS, Axis, Loss, Network, PyTree, Step, has_statistics, parameters


def over_members(function: Callable, axes: tuple[Axis, ...]) -> Callable:
    """`function` mapped over the arguments that have a member axis; itself if none has. Devices share the members out.

    It may close over no arrays.
    """
    if all(axis is None for axis in axes):
        return function

    def of_member(*args):
        with ALONE(False):
            return function(*args)

    return devices.over_shards(jax.vmap(of_member, axes), axes)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Borrowed:
    """Parameters of lower blocks that a block or the head reads as well; see `Block.shared`.

    Attributes:
      trees: of each of these blocks.
      names: of them.
      axes: their member axes.
    """

    trees: tuple[PyTree, ...] = ()
    names: tuple[str, ...] = dataclasses.field(default=(), metadata={"static": True})
    axes: tuple[Axis, ...] = dataclasses.field(default=(), metadata={"static": True})

    @classmethod
    def of(cls, names: tuple[str, ...], params: PyTree, axes: Mapping[str, Axis] = MappingProxyType({})) -> "Borrowed":
        """From the network's parameters, and the axes of those that have one."""
        return cls(tuple(parameters(params[name]) for name in names), names, tuple(map(axes.get, names)))

    def gathered(self) -> "Borrowed":
        """Under `jax.jit`: the same in whole on each device that has the member."""
        return dataclasses.replace(self, trees=tuple(map(devices.gathered, self.trees, self.axes)))


NOTHING = Borrowed()


def with_shared(names: Sequence[str], params: PyTree, shared: Iterable[PyTree]) -> PyTree:
    """Parameters with those of other blocks, by their names."""
    return params | dict(zip(names, shared, strict=True)) if names else params


@functools.partial(jax.jit, static_argnames=("apply", "axes"))
def infer(
    apply: Callable, axes: tuple[Axis, Axis], params: PyTree, x: PyTree, context: PyTree, borrowed: Borrowed = NOTHING
) -> Array:
    """A block in inference mode. `axes` are those of `params` and `x`."""
    params, borrowed = devices.gathered(params, axes[0]), borrowed.gathered()

    def run(params, x, context, *shared):
        return apply(with_shared(borrowed.names, params, shared), x, context, frozen=True, key=None)

    return over_members(run, (*axes, None, *borrowed.axes))(params, x, context, *borrowed.trees)


class Wrt(NamedTuple):
    """What a block is differentiated with respect to; `borrowed` are names."""

    params: bool
    input: bool
    borrowed: tuple[str, ...] = ()


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Pullback:
    """A function from `jax.vjp` that was made inside `jax.jit`, without those of its arrays that went into the program.

    As outputs of the program these would be copied, weights above all.

    Attributes:
      arrays: the arrays that the program computed.
      sources: for each array of the function, its place among the program's inputs, or None.
      treedef: of the function.
    """

    arrays: list[Array]
    sources: tuple[int | None, ...] = dataclasses.field(metadata={"static": True})
    treedef: Any = dataclasses.field(metadata={"static": True})

    @classmethod
    def without(cls, inputs: PyTree, function: Callable) -> "Pullback":
        places = {id(array): place for place, array in enumerate(jax.tree.leaves(inputs))}
        arrays, treedef = jax.tree.flatten(function)
        sources = tuple(places.get(id(array)) for array in arrays)
        return cls([array for array, source in zip(arrays, sources, strict=True) if source is None], sources, treedef)

    def complete(self, inputs: PyTree) -> Callable:
        given, computed = jax.tree.leaves(inputs), iter(self.arrays)
        arrays = [next(computed) if source is None else given[source] for source in self.sources]
        return jax.tree.unflatten(self.treedef, arrays)


class Residuals(NamedTuple):
    """What a block's forward pass keeps for its backward pass: the pullback and the block's input."""

    pullback: Pullback
    x: PyTree


class Forward(NamedTuple):
    """A block in training mode.

    Attributes:
      y: its output.
      pullback: for `backward`.
      statistics: new running statistics, or None.
    """

    y: Array
    pullback: Pullback
    statistics: PyTree


@functools.partial(jax.jit, static_argnames=("apply", "wrt", "axes", "remat"))
def forward(
    *,
    apply: Callable,
    wrt: Wrt,
    axes: tuple[Axis, Axis, Axis],
    remat: bool = False,
    params: PyTree,
    x: PyTree,
    frozen: Array | None,
    context: PyTree,
    key: Array | None,
    index: int,
    borrowed: Borrowed = NOTHING,
) -> Forward:
    """Runs a block in training mode.

    Args:
      axes: of `params`, `x` and `frozen`.
      remat: whether `backward` runs the block forwards again, so that nothing but its input is kept (Chen et al. 2016).
      frozen: [members] bool, or None: trained by all members if `wrt.params`, else frozen for all.
      key: of this step, or None; the block's key is `fold_in(key, index)`, the same for all members.
    """
    key = None if key is None else jax.random.fold_in(key, index)
    params, borrowed = devices.gathered(params, axes[0]), borrowed.gathered()

    def run(params, x, frozen, context, key, *shared):
        read = with_shared(borrowed.names, params, shared)
        y = apply(read, x, context, frozen=not wrt.params if frozen is None else frozen, key=key)
        if not (wrt.params and has_statistics(params)):
            return y, None
        y, statistics = y
        if frozen is not None:
            statistics = jax.tree.map(functools.partial(jnp.where, frozen), params[STATISTICS], statistics)
        return y, statistics

    def of_variables(variables):
        tree = params
        if wrt.params:
            tree = params | variables["params"] if has_statistics(params) else variables["params"]
        shared = (shared_trees | variables["borrowed"]).values()
        mapped = over_members(run, (*axes, None, None, *borrowed.axes))
        return mapped(tree, variables.get("x", x), frozen, context, key, *shared)

    shared_trees = dict(zip(borrowed.names, borrowed.trees, strict=True))
    variables = ({"params": parameters(params)} if wrt.params else {}) | ({"x": x} if wrt.input else {})
    variables["borrowed"] = {name: shared_trees[name] for name in wrt.borrowed}
    y, pullback, statistics = jax.vjp(jax.checkpoint(of_variables) if remat else of_variables, variables, has_aux=True)
    return Forward(y, Pullback.without((params, x, borrowed), pullback), statistics)


@functools.partial(jax.jit, static_argnames=("axis", "params_axis"), donate_argnames=("square_norm", "so_far"))
def backward(
    *,
    axis: Axis,
    params_axis: Axis = None,
    residuals: Residuals,
    params: PyTree,
    cotangent: Array,
    frozen: Array | None,
    square_norm: Array,
    from_above: PyTree = None,
    so_far: PyTree = None,
    borrowed: Borrowed = NOTHING,
) -> tuple[PyTree, Array | None, dict[str, PyTree], Array]:
    """Runs a block backwards.

    Args:
      axis: of all arguments (`frozen` may be None) but `params`.
      residuals: from `forward`, with the input it had.
      params: as given to `forward`.
      cotangent: of the block's output.
      frozen: [members] bool, whose gradients are set to zero.
      square_norm: [members], of the gradients of the blocks above.
      from_above: gradients of the parameters as higher blocks and the head read them, or None.
      so_far: gradients of the parameters from earlier slices of the step, to which this one's are added, or None; donated.
      borrowed: as given to `forward`.

    Returns:
      Gradients of the parameters and of the input (None if not asked for), those of borrowed parameters that were asked for, by
      name, and `square_norm` with this block's added.
    """
    params, borrowed = devices.gathered(params, params_axis), borrowed.gathered()
    (gradients,) = residuals.pullback.complete((params, residuals.x, borrowed))(cotangent)
    of_params = gradients.get("params")
    if of_params is not None:
        for others in (from_above, so_far):
            of_params = of_params if others is None else add(of_params, others)
        of_params, square_norm = hold_and_measure(axis, of_params, frozen, square_norm)
    return of_params, gradients.get("x"), gradients["borrowed"], square_norm


@jax.jit
def add(a: PyTree, b: PyTree) -> PyTree:
    return jax.tree.map(jnp.add, a, b)


@functools.partial(jax.jit, static_argnames=("axis",))
def hold_and_measure(axis: Axis, gradients: PyTree, frozen: Array | None, square_norm: Array) -> tuple[PyTree, Array]:
    """Gradients with zero where `frozen` ([members] bool, or None), and `square_norm` with theirs added."""

    def run(gradients, frozen):
        if frozen is not None:
            gradients = jax.tree.map(lambda g: jnp.where(frozen, 0, g), gradients)
        return gradients, sum_of_squares(gradients)

    gradients = devices.shard(gradients, axis)
    gradients, added = over_members(run, (axis, None if frozen is None else axis))(gradients, frozen)
    return gradients, square_norm + added


def sum_of_squares(tree: PyTree) -> Array:
    return sum((jnp.vdot(leaf, leaf) for leaf in jax.tree.leaves(tree)), jnp.zeros(()))


class HeadGradients(NamedTuple):
    """What `head_step` gives; each with a member axis if an argument has one.

    Attributes:
      loss: mean over the examples.
      params: gradients of the head's parameters.
      shared: gradients of the shared blocks that are trained, by name.
      input: gradient of the head's input, or None.
      square_norm: of `params`.
    """

    loss: Array
    params: PyTree
    shared: dict[str, PyTree]
    input: Array | None
    square_norm: Array


@functools.partial(jax.jit, static_argnames=("network", "loss", "trained", "input_too", "axes"), donate_argnames=("so_far",))
def head_step(
    *,
    network: Network,
    loss: Loss,
    trained: tuple[str, ...],
    input_too: bool,
    axes: tuple[Axis, Axis],
    params: PyTree,
    borrowed: Borrowed,
    step: Step,
    key: Array | None,
    so_far: tuple[Array, PyTree] | None = None,
) -> HeadGradients:
    """Loss and gradients of the head.

    Args:
      trained: names of the shared blocks whose gradients are wanted.
      input_too: whether the gradient of the input is wanted.
      axes: of `params` and the input.
      borrowed: the shared blocks' parameters.
      step: whose `x` enters the head.
      so_far: loss and gradients of the parameters from earlier slices of the step, to which this one's are added; donated.
    """
    borrowed = borrowed.gathered()
    total = step.weights.sum() if step.total is None else step.total
    key = None if key is None else jax.random.fold_in(key, len(network.blocks))

    def run(params, x, targets, weights, total, context, key, *shared):
        by_name = dict(zip(borrowed.names, shared, strict=True))

        def mean_loss(variables):
            all_params = with_shared(borrowed.names, variables["params"], (by_name | variables["shared"]).values())
            outputs = network.head(all_params, variables.get("x", x), context, frozen=False, key=key)
            return loss(outputs, targets) @ weights / total

        variables = {"params": params, "shared": {name: by_name[name] for name in trained}} | ({"x": x} if input_too else {})
        mean, gradients = jax.value_and_grad(mean_loss)(variables)
        of_params = gradients["params"]
        return HeadGradients(mean, of_params, gradients["shared"], gradients.get("x"), sum_of_squares(of_params))

    mapped = over_members(run, (*axes, None, None, None, None, None, *borrowed.axes))
    gradients = mapped(params, step.x, step.targets, step.weights, total, step.context, key, *borrowed.trees)
    if so_far is not None:
        mean, of_params = jax.tree.map(jnp.add, (gradients.loss, gradients.params), so_far)
        square_norm = hold_and_measure(axes[0], of_params, None, jnp.zeros_like(mean))[1]
        gradients = gradients._replace(loss=mean, params=of_params, square_norm=square_norm)
    return gradients


def head_residuals(
    *, network: Network, loss: Loss, axes: tuple[Axis, Axis], params: PyTree, borrowed: Borrowed, step: Step
) -> list[Array]:
    """What the head keeps for its backward pass, logits above all; the arguments are those of `head_step`."""

    def losses(params, x, targets, context, *shared):
        return loss(network.head(with_shared(borrowed.names, params, shared), x, context, frozen=False, key=None), targets)

    def of_variables(params, trees):
        mapped = over_members(losses, (*axes, None, None, *borrowed.axes))
        return mapped(params, step.x, step.targets, step.context, *trees)

    _, pullback = jax.vjp(of_variables, params, borrowed.trees)
    return Pullback.without((params, borrowed.trees, step.x), pullback).arrays
