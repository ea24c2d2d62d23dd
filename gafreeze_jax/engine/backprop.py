"""Backpropagation through a chain of blocks that does no work for frozen ones.

`value_and_grad` differentiates any chain of blocks for a mask: a frozen block has no weight gradient, nothing below the
lowest trainable block is run backwards, and if its input is known it is not run forwards either. Every block is compiled
by itself, once for all blocks that share its `apply`, so one set of compiled functions serves all masks; under
`jax.jit` the pieces become one program for one mask.

Members of a population may be stacked along a leading axis and are then mapped with `jax.vmap`. An `axis` of None says
that an argument has no such axis, and is shared by all members.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from gafreeze_jax.engine import devices
from gafreeze_jax.engine.network import STATISTICS, Axis, Network, PyTree, has_statistics, lowest_trainable, parameters


def over_members(function: Callable, axes: tuple[Axis, ...]) -> Callable:
    """`function` mapped over those arguments that have a member axis; itself if none has. Devices share the members out.

    It may close over no arrays.
    """
    return function if all(axis is None for axis in axes) else devices.over_shards(jax.vmap(function, axes), axes)


@functools.partial(jax.jit, static_argnames=("apply", "axes"))
def infer(apply: Callable, axes: tuple[Axis, Axis], params: PyTree, x: PyTree, context: PyTree) -> Array:
    """A block in inference mode. `axes` are those of `params` and `x`."""
    run = lambda params, x, context: apply(params, x, context, frozen=True, key=None)  # noqa: E731
    return over_members(run, (*axes, None))(params, x, context)


class Wrt(NamedTuple):
    """What a block is differentiated with respect to."""

    params: bool
    input: bool


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Pullback:
    """A function from `jax.vjp` that was made inside `jax.jit`, without those of its arrays that went into the program.

    As outputs of the program, these would be copied: weights above all.

    Attributes:
      arrays: the others, computed by the program.
      sources: for each array of the function, the place of what went in, or None.
      treedef: of the function.
    """

    arrays: list[Array]
    sources: tuple[int | None, ...] = dataclasses.field(metadata={"static": True})
    treedef: Any = dataclasses.field(metadata={"static": True})

    @classmethod
    def without(cls, went_in: PyTree, function: Callable) -> "Pullback":
        places = {id(array): place for place, array in enumerate(jax.tree.leaves(went_in))}
        arrays, treedef = jax.tree.flatten(function)
        sources = tuple(places.get(id(array)) for array in arrays)
        return cls([array for array, source in zip(arrays, sources, strict=True) if source is None], sources, treedef)

    def complete(self, went_in: PyTree) -> Callable:
        given, others = jax.tree.leaves(went_in), iter(self.arrays)
        arrays = [next(others) if source is None else given[source] for source in self.sources]
        return jax.tree.unflatten(self.treedef, arrays)


@functools.partial(jax.jit, static_argnames=("apply", "wrt", "axes"))
def forward(
    apply: Callable,
    wrt: Wrt,
    axes: tuple[Axis, Axis, Axis],
    params: PyTree,
    x: PyTree,
    frozen: Array | None,
    context: PyTree,
    key: Array | None,
    index: int,
) -> tuple[Array, Pullback, PyTree]:
    """A block in training mode, its pullback for `backward`, and its new running statistics, or None.

    Args:
      axes: of `params`, `x` and `frozen`.
      frozen: [members] bool, or None: trained by all if `wrt.params`, else frozen for all.
      key: of this step, or None; the block's own is `fold_in(key, index)`, the same for all members.
    """
    key = None if key is None else jax.random.fold_in(key, index)

    def run(params, x, frozen, context, key):
        y = apply(params, x, context, frozen=not wrt.params if frozen is None else frozen, key=key)
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
        return over_members(run, (*axes, None, None))(tree, variables.get("x", x), frozen, context, key)

    variables = ({"params": parameters(params)} if wrt.params else {}) | ({"x": x} if wrt.input else {})
    y, pullback, statistics = jax.vjp(of_variables, variables, has_aux=True)
    return y, Pullback.without((params, x), pullback), statistics


@functools.partial(jax.jit, static_argnames=("axis",), donate_argnames=("square_norm",))
def backward(
    axis: Axis,
    pullback: Pullback,
    params: PyTree,
    x: PyTree,
    cotangent: Array,
    frozen: Array | None,
    square_norm: Array,
    by_head: PyTree = None,
) -> tuple[PyTree, Array | None, Array]:
    """Runs a block backwards.

    Args:
      axis: of all arguments (`frozen` may be None).
      params, x: as they were given to `forward`.
      cotangent: of the block's output.
      frozen: [members] bool, whose gradients are set to zero.
      square_norm: [members], of the gradients of the blocks above.
      by_head: gradients of the parameters as the head reads them, or None.

    Returns:
      Gradients of the parameters and of the input (None if not asked for), and `square_norm` with this block's added.
    """
    (gradients,) = pullback.complete((params, x))(cotangent)
    of_params = gradients.get("params")
    if of_params is not None:
        if by_head is not None:
            of_params = jax.tree.map(jnp.add, of_params, by_head)
        of_params, square_norm = hold_and_measure(axis, of_params, frozen, square_norm)
    return of_params, gradients.get("x"), square_norm


@functools.partial(jax.jit, static_argnames=("axis",))
def hold_and_measure(axis: Axis, gradients: PyTree, frozen: Array | None, square_norm: Array) -> tuple[PyTree, Array]:
    """Gradients with zero where `frozen` ([members] bool, or None), and `square_norm` with theirs added."""

    def run(gradients, frozen):
        if frozen is not None:
            gradients = jax.tree.map(lambda g: jnp.where(frozen, 0, g), gradients)
        return gradients, sum_of_squares(gradients)

    gradients, own = over_members(run, (axis, None if frozen is None else axis))(gradients, frozen)
    return gradients, square_norm + own


def sum_of_squares(tree: PyTree) -> Array:
    return sum((jnp.vdot(leaf, leaf) for leaf in jax.tree.leaves(tree)), jnp.zeros(()))


class HeadGradients(NamedTuple):
    """What `head_step` gives; each with a member axis if an argument has one.

    Attributes:
      loss: mean over the examples.
      params: gradients of the head's parameters.
      shared: those of the blocks it reads, by name, without frozen ones.
      input: of its input, or None.
      square_norm: of `params`.
    """

    loss: Array
    params: PyTree
    shared: dict[str, PyTree]
    input: Array | None
    square_norm: Array


HeadAxes = tuple[Axis, ...]  # of the head's parameters, of those of each shared block, and of its input


def with_shared(network: Network, params: PyTree, shared: Sequence[PyTree]) -> PyTree:
    """What the head is given as its parameters."""
    return params | dict(zip(network.shared, map(parameters, shared), strict=True)) if network.shared else params


@functools.partial(jax.jit, static_argnames=("network", "trained", "input_too", "axes"))
def head_step(
    network: Network,
    trained: tuple[bool, ...],
    input_too: bool,
    axes: HeadAxes,
    params: PyTree,
    shared: tuple[PyTree, ...],
    x: Array,
    targets: Array,
    weights: Array,
    context: PyTree,
    key: Array | None,
) -> HeadGradients:
    """Loss and gradients of the head.

    Args:
      trained: for each shared block, whether its gradient is wanted.
      input_too: whether the gradient of the input is wanted.
      axes: of `params`, `shared` and `x`.
    """
    key = None if key is None else jax.random.fold_in(key, len(network.blocks))

    def run(params, x, targets, weights, context, key, *shared):
        def mean_loss(variables):
            own, of_input, read = variables["params"], variables.get("x", x), dict(enumerate(shared)) | variables["shared"]
            output = network.head(with_shared(network, own, list(read.values())), of_input, context, frozen=False, key=key)
            losses, _ = network.loss(output, targets)
            return losses @ weights / weights.sum()

        wanted = {i: parameters(tree) for i, tree in enumerate(shared) if trained[i]}
        variables = {"params": params, "shared": wanted} | ({"x": x} if input_too else {})
        loss, gradients = jax.value_and_grad(mean_loss)(variables)
        by_name = {network.shared[i]: tree for i, tree in gradients["shared"].items()}
        return HeadGradients(loss, gradients["params"], by_name, gradients.get("x"), sum_of_squares(gradients["params"]))

    of_params, *of_shared, of_x = axes
    mapped = over_members(run, (of_params, of_x, None, None, None, None, *of_shared))
    return mapped(params, x, targets, weights, context, key, *shared)


def head_residuals(
    network: Network, axes: HeadAxes, params: PyTree, shared: tuple[PyTree, ...], x: PyTree, targets: Array, context: PyTree
) -> list[Array]:
    """What the head keeps for its backward pass, logits above all; `axes` of `params`, `shared` and `x`."""

    def losses(params, x, targets, context, *shared):
        return network.loss(network.head(with_shared(network, params, shared), x, context, frozen=False, key=None), targets)[0]

    of_params, *of_shared, of_x = axes
    mapped = over_members(losses, (of_params, of_x, None, None, *of_shared))
    of_variables = lambda params, shared: mapped(params, x, targets, context, *shared)  # noqa: E731
    _, pullback = jax.vjp(of_variables, params, shared)
    return Pullback.without((params, shared, x), pullback).arrays


class Residuals(NamedTuple):
    """What is kept of a block for `backward`: its pullback and its input."""

    pullback: Pullback
    x: PyTree


def forward_chain(network: Network, frozen: Sequence[bool | None], start: int, axis: Axis) -> Callable:
    """The first half of `value_and_grad`: a function `(params, x, context, key, gates) -> (x, kept, statistics)`.

    `kept` has a `Residuals` for every block from the lowest trainable one on, and `statistics` new running statistics of those
    trained blocks that have some; both by name.
    """

    def run(params, x, context, key, gates):
        depth = lowest_trainable(frozen)
        for block in network.blocks[start:depth]:
            if block.apply is not None:
                x = infer(block.apply, (None, None), params[block.name], x, context)
        kept: dict[str, Residuals] = {}
        statistics: dict[str, PyTree] = {}
        x_axis: Axis = None
        for index, block in enumerate(network.blocks[depth:], start=depth):
            if block.apply is None:
                continue
            trained = frozen[index] is not True
            gate = gates[block.name] if frozen[index] is None else None
            y, pullback, new = forward(
                block.apply,
                Wrt(params=trained, input=bool(kept)),
                (axis if trained else None, x_axis, None if gate is None else axis),
                params[block.name],
                x,
                gate,
                context,
                key,
                index,
            )
            kept[block.name] = Residuals(pullback, x)
            if new is not None:
                statistics[block.name] = new
            x, x_axis = y, axis if trained else x_axis
        return x, kept, statistics

    return run


class Gradients(NamedTuple):
    """What the function from `value_and_grad` gives, with a leading axis if there are members.

    Attributes:
      loss: mean over the examples.
      gradients: {block name: ..., "head": ...} without the frozen blocks; zero where a gate is True.
      square_norm: of all of them, as `optax.clip_by_global_norm` would see it.
      statistics: {block name: new running statistics} of the blocks that have some and train; old ones where a gate is True.
    """

    loss: Array
    gradients: dict[str, PyTree]
    square_norm: Array
    statistics: dict[str, PyTree]


def value_and_grad(network: Network, frozen: Sequence[bool | None], *, start: int = 0, axis: Axis = None) -> Callable:
    """Freeze-aware `jax.value_and_grad` of a chain of blocks: frozen blocks cost their forward run and no more.

    Called as it is, the function it returns runs block by block, and no other mask makes anything compile again. It may
    also be compiled as a whole (`jax.jit`) or mapped (`jax.vmap`); the mask is static, so what is skipped is skipped
    there as well.

    Args:
      frozen: for each of the G blocks True (frozen: inference mode, no gradient), False (trained), or None: decided by
        `gates` when called.
      start: the block that `x` enters; those below must be frozen.
      axis: 0 if blocks that are not frozen, and the head, have parameters for several members along a leading axis.

    Returns:
      A function `(params, x, targets, weights, context, key=None, gates=None) -> Gradients`.
        params: {block name: ..., "head": ...}.
        x: tree of arrays [N, ...] that enters the block `start`.
        targets, weights: [B, ...] and [B]; the loss is the mean over examples by weight.
        context: for the blocks.
        key: for dropout, or None.
        gates: {block name: [members] bool, or scalar without members} where `frozen` is None.

    >>> layer = lambda params, x, context, *, frozen, key: jnp.tanh(x @ params)
    >>> head = lambda params, x, context, *, frozen, key: x @ params
    >>> network = Network((Block("low", layer), Block("high", layer)), head, classification)
    >>> params = {"low": jnp.eye(3), "high": jnp.eye(3), "head": jnp.ones((3, 2))}
    >>> gradients_for = value_and_grad(network, frozen=[True, False])
    >>> loss, gradients, *_ = gradients_for(params, jnp.ones((4, 3)), jnp.zeros(4, int), jnp.ones(4), {})
    >>> sorted(gradients), round(float(loss), 4)
    (['head', 'high'], 0.6931)
    """
    if len(frozen) != len(network.blocks):
        raise ValueError(f"Expected {len(network.blocks)} genes, one for each of {', '.join(network.names)}; got {len(frozen)}")
    if (depth := lowest_trainable(frozen)) < start:
        raise ValueError(f"Block {network.names[depth]!r} is not frozen, so x must enter there or below, not at block {start}")

    trained = tuple(name for name, gene in zip(network.names, frozen, strict=True) if gene is not True)

    def run(params, x, targets, weights, context, key=None, gates=None):
        gates = {} if gates is None else gates
        x, kept, statistics = forward_chain(network, frozen, start, axis)(params, x, context, key, gates)
        of_shared = tuple(name in trained for name in network.shared)
        axes = (axis, *(axis if own else None for own in of_shared), axis if kept else None)
        shared = tuple(params[name] for name in network.shared)
        loss, of_head, by_head, cotangent, square_norm = head_step(
            network, of_shared, bool(kept), axes, params["head"], shared, x, targets, weights, context, key
        )
        gradients = {"head": of_head}
        while kept:
            name, (pullback, x) = kept.popitem()  # and what it keeps is free afterwards
            of_params, cotangent, square_norm = backward(
                axis, pullback, params[name], x, cotangent, gates.get(name), square_norm, by_head.pop(name, None)
            )
            if of_params is not None:
                gradients[name] = of_params
        for name, of_params in by_head.items():  # of blocks that compute nothing themselves
            gradients[name], square_norm = hold_and_measure(axis, of_params, gates.get(name), square_norm)
        return Gradients(loss, gradients, square_norm, statistics)

    return run


@functools.partial(jax.jit, static_argnames=("network", "axes"))
def head_score(
    network: Network,
    axes: HeadAxes,
    params: PyTree,
    shared: tuple[PyTree, ...],
    x: Array,
    targets: Array,
    weights: Array,
    context: PyTree,
) -> tuple[Array, Array]:
    """Sum of losses and number of right answers of a batch; `axes` of `params`, `shared` and `x`."""

    def run(params, x, targets, weights, context, *shared):
        output = network.head(with_shared(network, params, shared), x, context, frozen=True, key=None)
        losses, correct = network.loss(output, targets)
        return losses @ weights, correct @ weights

    of_params, *of_shared, of_x = axes
    mapped = over_members(run, (of_params, of_x, None, None, None, *of_shared))
    return mapped(params, x, targets, weights, context, *shared)


@functools.partial(jax.jit, static_argnames=("network",))
def head_predict(
    network: Network, params: PyTree, shared: tuple[PyTree, ...], x: Array, targets: Array, context: PyTree
) -> tuple[Array, Array]:
    """Loss of each example of a batch, and whether the answer is right: [B] each."""
    return network.loss(head_output(network, params, shared, x, targets, context), targets)


@functools.partial(jax.jit, static_argnames=("network",))
def head_output(
    network: Network, params: PyTree, shared: tuple[PyTree, ...], x: Array, targets: Array, context: PyTree
) -> Array:
    """What the head makes of a batch, such as logits [B, C]; as `head_predict`, it is given targets, and needs none."""
    return network.head(with_shared(network, params, shared), x, context, frozen=True, key=None)
