"""Backpropagation through a chain of blocks that does no work for frozen ones.

`value_and_grad` differentiates any chain of blocks for a mask: a frozen block has no weight gradient, nothing below the
lowest trainable block is run backwards, and if its input is known it is not run forwards either. Every block is compiled
by itself, once for all blocks that share its `apply`, so one set of compiled functions serves all masks; under
`jax.jit` the pieces become one program for one mask.

Members of a population may be stacked along a leading axis and are then mapped with `jax.vmap`. An `axis` of None says
that an argument has no such axis, and is shared by all members.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from jax import Array

from gafreeze_jax.engine.network import Axis, Loss, Network, PyTree, lowest_trainable
from gafreeze_jax.engine.passes import (
    Borrowed,
    HeadGradients,
    Residuals,
    Wrt,
    add,
    backward,
    forward,
    head_step,
    hold_and_measure,
    infer,
)
from gafreeze_jax.listing import listed


class Chain(NamedTuple):
    """The forward pass of a chain of blocks.

    Attributes:
      x: enters the head.
      residuals: of every block from the lowest trainable one on, by name.
      statistics: new running statistics of the trained blocks that have some, by name.
    """

    x: PyTree
    residuals: dict[str, Residuals]
    statistics: dict[str, PyTree]


def forward_chain(
    network: Network, frozen: Sequence[bool | None], start: int, axis: Axis, *, remat: bool = False
) -> Callable[..., Chain]:
    """The first half of `value_and_grad`: a function `(params, x, context, key, gates) -> Chain`."""
    axes = _axes_of_trained(network, frozen, axis)

    def run(params, x, context, key, gates):
        residuals: dict[str, Residuals] = {}
        statistics: dict[str, PyTree] = {}
        x_axis: Axis = None
        for index, block in enumerate(network.blocks[start:], start=start):
            if block.apply is None:
                continue
            trained = block.name in axes
            borrowed = Borrowed.of(block.shared, params, axes)
            wrt = Wrt(trained, bool(residuals), tuple(name for name in block.shared if name in axes))
            if not any(wrt):
                x = infer(block.apply, (None, None), params[block.name], x, context, borrowed)
                continue
            gate = gates[block.name] if frozen[index] is None else None
            y, pullback, new_statistics = forward(
                apply=block.apply,
                wrt=wrt,
                axes=(axis if trained else None, x_axis, None if gate is None else axis),
                remat=remat,
                params=params[block.name],
                x=x,
                frozen=gate,
                context=context,
                key=key,
                index=index,
                borrowed=borrowed,
            )
            residuals[block.name] = Residuals(pullback, x)
            if new_statistics is not None:
                statistics[block.name] = new_statistics
            x, x_axis = y, axis if trained or wrt.borrowed else x_axis
        return Chain(x, residuals, statistics)

    return run


def _axes_of_trained(network: Network, frozen: Sequence[bool | None], axis: Axis) -> dict[str, Axis]:
    """The member axes of the blocks that are trained, by name."""
    return {name: axis for name, gene in zip(network.names, frozen, strict=True) if gene is not True}


class Gradients(NamedTuple):
    """What the function from `value_and_grad` gives, with a leading axis if there are members.

    Attributes:
      loss: mean over the examples; of some slices of a step, what they contribute to it.
      gradients: {block name: ..., "head": ...} without the frozen blocks; zero where a gate is True.
      square_norm: of all of them, as `optax.clip_by_global_norm` would see it.
      statistics: {block name: new running statistics} of the trained blocks that have some; the old ones where a gate is True.
    """

    loss: Array
    gradients: dict[str, PyTree]
    square_norm: Array
    statistics: dict[str, PyTree]


def _backward_chain(
    network: Network,
    axis: Axis,
    axes: Mapping[str, Axis],
    *,
    residuals: dict[str, Residuals],
    head: HeadGradients,
    params: PyTree,
    gates: Mapping[str, Array],
    so_far: dict[str, PyTree],
) -> tuple[dict[str, PyTree], Array]:
    """The second half of `value_and_grad`: gradients by name, and their square norm. It empties `residuals` and `so_far`.

    Args:
      axes: from `_axes_of_trained`.
    """
    gradients, from_above = {"head": head.params}, dict(head.shared)
    shared = {block.name: block.shared for block in network.blocks}
    cotangent, square_norm = head.input, head.square_norm
    while residuals:
        name, of_block = residuals.popitem()  # frees what the block keeps as soon as it has been run backwards
        of_params, cotangent, of_borrowed, square_norm = backward(
            axis=axis,
            params_axis=axes.get(name),
            residuals=of_block,
            params=params[name],
            cotangent=cotangent,
            frozen=gates.get(name),
            square_norm=square_norm,
            from_above=from_above.pop(name, None),
            borrowed=Borrowed.of(shared[name], params, axes),
            so_far=so_far.pop(name, None),
        )
        for lender, more in of_borrowed.items():
            from_above[lender] = add(from_above[lender], more) if lender in from_above else more
        if of_params is not None:
            gradients[name] = of_params
    for name, of_params in from_above.items():  # of blocks that compute nothing themselves
        if name in so_far:
            of_params = add(of_params, so_far.pop(name))
        gradients[name], square_norm = hold_and_measure(axis, of_params, gates.get(name), square_norm)
    return gradients, square_norm


def _check(network: Network, frozen: Sequence[bool | None], start: int) -> None:
    if len(frozen) != len(network.blocks):
        raise ValueError(f"Expected {len(network.blocks)} genes, one for each of {listed(network.names)}; got {len(frozen)}")
    if (depth := lowest_trainable(frozen)) < start:
        raise ValueError(f"Block {network.names[depth]!r} is not frozen, so x must enter there or below, not at block {start}")


def value_and_grad(
    network: Network, loss: Loss, frozen: Sequence[bool | None], *, start: int = 0, axis: Axis = None, remat: bool = False
) -> Callable[..., Gradients]:
    """Freeze-aware `jax.value_and_grad` of a chain of blocks: frozen blocks cost their forward run and no more.

    The function that it returns runs block by block, and no other mask makes anything compile again. It may also be compiled
    as a whole (`jax.jit`) or mapped (`jax.vmap`); the mask is static, so what is skipped is skipped there as well.

    Args:
      loss: of each example; the gradients are those of its weighted mean.
      frozen: for each of the G blocks True (frozen: inference mode, no gradient), False (trained), or None: decided by
        `gates` when called.
      start: the block that `step.x` enters; those below must be frozen.
      axis: 0 if blocks that are not frozen, and the head, have parameters for several members along a leading axis.
      remat: whether blocks are recomputed in the backward pass, so that of each only its input is kept.

    Returns:
      A function `(params, step, key=None, gates=None, so_far=None) -> Gradients`.
        params: {block name: ..., "head": ...}.
        key: for dropout, or None.
        gates: {block name: [members] bool, or scalar without members} where `frozen` is None.
        so_far: of earlier slices of the step, to which this one's are added; donated.

    >>> import jax.numpy as jnp
    >>> from gafreeze_jax.engine.network import Block, Step
    >>> layer = lambda params, x, context, *, frozen, key: jnp.tanh(x @ params)
    >>> head = lambda params, x, context, *, frozen, key: x @ params
    >>> network = Network((Block("low", layer), Block("high", layer)), head)
    >>> params = {"low": jnp.eye(3), "high": jnp.eye(3), "head": jnp.ones((3, 2))}
    >>> squared_error = lambda outputs, targets: jnp.square(outputs - targets).sum(-1)
    >>> gradients_for = value_and_grad(network, squared_error, frozen=[True, False])
    >>> loss, gradients, *_ = gradients_for(params, Step(jnp.ones((4, 3)), jnp.zeros((4, 2)), jnp.ones(4), {}))
    >>> sorted(gradients), round(float(loss), 4)
    (['head', 'high'], 7.4193)
    """
    _check(network, frozen, start)
    axes = _axes_of_trained(network, frozen, axis)
    forwards = forward_chain(network, frozen, start, axis, remat=remat)
    backwards = functools.partial(_backward_chain, network, axis, axes)

    def run(params, step, key=None, gates=None, so_far=None):
        gates, before = gates or {}, dict(so_far.gradients) if so_far else {}
        x, residuals, statistics = forwards(params, step.x, step.context, key, gates)
        head = head_step(
            network=network,
            loss=loss,
            trained=tuple(name for name in network.shared if name in axes),
            input_too=bool(residuals),
            axes=(axis, axis if residuals else None),
            params=params["head"],
            borrowed=Borrowed.of(network.shared, params, axes),
            step=step._replace(x=x),
            key=key,
            so_far=None if so_far is None else (so_far.loss, before.pop("head")),
        )
        gradients, square_norm = backwards(residuals=residuals, head=head, params=params, gates=gates, so_far=before)
        return Gradients(head.loss, gradients, square_norm, statistics)

    return run
