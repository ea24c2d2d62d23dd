"""Scores of networks on a data set, and their outputs: loss and metric of every example."""

import functools
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from gafreeze_jax.engine import devices
from gafreeze_jax.engine.cache import Activations, Chunk, default_budget, fetch
from gafreeze_jax.engine.network import ALONE, Axis, Loss, Network, PyTree, Source, lowest_trainable
from gafreeze_jax.engine.passes import Borrowed, infer, over_members, with_shared
from gafreeze_jax.metrics import Metric

PerExample = Callable[[Array, Any], PyTree]  # (outputs [B, ...], targets [B, ...] or None) -> tree of [B, ...]


class Scores(NamedTuple):
    """How networks do on E examples.

    Attributes:
      values: [..., E] or [..., K, E] float32, of the metric.
      losses: [..., E] float32.
    """

    values: Any
    losses: Any


@functools.cache  # equal functions share compiled code
def loss_and_metric(loss: Loss, metric: Metric) -> PerExample:
    """The metric's values and the losses of a batch, as `Scores`."""

    def per_example(outputs, targets):
        return Scores(metric.per_example(outputs, targets), loss(outputs, targets))

    return per_example


class MemberParams(NamedTuple):
    """Parameters of several networks along a leading axis, or of one network without it.

    Attributes:
      params: {block name: ..., "head": ...}.
      stacked: names of the parameters that have the axis.
      depth: the lowest block that is not as pretrained.
    """

    params: PyTree
    stacked: frozenset[str]
    depth: int


def score_members(
    network: Network, members: MemberParams, activations: Activations, *, loss: Loss, metric: Metric, scan: bool = False
) -> Scores:
    """Scores [members, E] of networks that share the pretrained blocks below a depth; [1, E] if nothing is stacked.

    Args:
      scan: one program for the whole data set, in place of one per block.
    """
    boundary, inputs = activations.inputs(members.depth)
    score_chunk = _score_chunk_in_one if scan else _score_chunk
    static = _Scoring(
        network=network,
        stacked=members.stacked,
        start=boundary,
        per_example=activations.per_example(boundary),
        score=loss_and_metric(loss, metric),
    )
    parts = [score_chunk(static, members.params, chunk) for chunk in activations.chunks(boundary, inputs)]
    rows = activations.rows
    real = rows >= 0

    has_members = parts[0].losses.ndim > 1

    def in_order(*leaves: Array) -> np.ndarray:
        given = np.concatenate([devices.gather(leaf) for leaf in leaves], axis=-1)
        ordered = np.empty((*given.shape[:-1], activations.num_examples), given.dtype)
        ordered[..., rows[real]] = given[..., real]
        return ordered if has_members else ordered[None]

    return jax.tree.map(in_order, *parts)


class _Scoring(NamedTuple):
    """What is static about scoring."""

    network: Network
    stacked: frozenset[str]
    start: int
    per_example: bool
    score: PerExample


def _score_step(static: _Scoring, params: PyTree, chunk: Chunk, step: int) -> PyTree:
    """The score of each example of a step, [members, B] or [B]."""
    network, stacked, start, per_example, score = static
    x, targets, _, context, _ = fetch(per_example, chunk, step)
    axes = dict.fromkeys(stacked, 0)
    axis: Axis = None
    for block in network.blocks[start:]:
        if block.apply is not None:
            of_params, borrowed = axes.get(block.name), Borrowed.of(block.shared, params, axes)
            x = infer(block.apply, (of_params, axis), params[block.name], x, context, borrowed)
            axis = 0 if 0 in (axis, of_params, *borrowed.axes) else None
    return score_head(
        network=network,
        score=score,
        axes=(axes.get("head"), axis),
        params=params["head"],
        borrowed=Borrowed.of(network.shared, params, axes),
        x=x,
        targets=targets,
        context=context,
    )


def _score_chunk(static: _Scoring, params: PyTree, chunk: Chunk) -> Scores:
    with ALONE(True):
        steps = [_score_step(static, params, chunk, step) for step in range(len(chunk.batches.examples))]
    return jax.tree.map(lambda *parts: jnp.concatenate(parts, axis=-1), *steps)


@functools.partial(jax.jit, static_argnums=0)
def _score_chunk_in_one(static: _Scoring, params: PyTree, chunk: Chunk) -> Scores:
    steps = jnp.arange(len(chunk.batches.examples))
    scores = jax.lax.map(functools.partial(_score_step, static, params, chunk), steps)
    return jax.tree.map(lambda leaf: jnp.moveaxis(leaf, 0, -2).reshape(*leaf.shape[1:-1], -1), scores)


@functools.partial(jax.jit, static_argnames=("network", "score", "axes"))
def score_head(
    *,
    network: Network,
    score: PerExample,
    axes: tuple[Axis, Axis],
    params: PyTree,
    borrowed: Borrowed,
    x: Array,
    targets: Array | None,
    context: PyTree,
) -> PyTree:
    """What `score` makes of the outputs of a batch. `axes` are those of `params` and `x`."""
    borrowed = borrowed.gathered()

    def run(params, x, targets, context, *shared):
        return score(network.head(with_shared(borrowed.names, params, shared), x, context, frozen=True, key=None), targets)

    return over_members(run, (*axes, None, None, *borrowed.axes))(params, x, targets, context, *borrowed.trees)


def score(network: Network, params: PyTree, source: Source, *, loss: Loss, metric: Metric) -> Scores:
    """Scores [E] of one network."""
    activations = Activations(network, params, source, default_budget())
    scores = score_members(network, MemberParams(params, frozenset(), 0), activations, loss=loss, metric=metric)
    return Scores(scores.values[0], scores.losses[0])


def score_each(
    network: Network, members: Iterable[PyTree], source: Source, *, pretrained: PyTree, loss: Loss, metric: Metric
) -> Iterator[Scores]:
    """Scores [E] of networks, one after the other; what their lowest blocks compute that are as pretrained is kept for all.

    Args:
      members: parameters of each network.
    """
    on_device = devices.spread({block.name: pretrained[block.name] for block in network.blocks})
    activations = Activations(network, on_device, source, default_budget())
    for params in members:
        kept = {name: on_device[name] for name in network.names if _are_equal(params[name], pretrained[name])}
        depth = lowest_trainable([name in kept for name in network.names])
        activations.expect([depth])
        member = MemberParams(devices.spread({**params, **kept}), frozenset(), depth)
        scores = score_members(network, member, activations, loss=loss, metric=metric)
        yield Scores(scores.values[0], scores.losses[0])


def _are_equal(params: PyTree, pretrained: PyTree) -> bool:
    pairs = zip(jax.tree.leaves(params), jax.tree.leaves(pretrained), strict=True)
    return all(ours is theirs or np.array_equal(ours, theirs) for ours, theirs in pairs)


def each_batch(
    network: Network, params: PyTree, source: Source, per_example: PerExample
) -> Iterator[tuple[np.ndarray, PyTree]]:
    """What one network gives, batch by batch.

    Args:
      per_example: of the outputs and targets of a batch, such as a loss.

    Yields:
      The rows [B] of the examples, and arrays [B, ...].
    """
    activations = Activations(network, params, source, default_budget())
    static = _Scoring(network, frozenset(), start=0, per_example=False, score=per_example)
    batches = iter(np.asarray(source.batches.examples))  # a chunk that is read from the host has its own numbers
    _, inputs = activations.inputs(0)
    for chunk in activations.chunks(0, inputs):
        for step in range(len(chunk.batches.examples)):
            rows = next(batches)
            with ALONE(True):
                values = _score_step(static, params, chunk, step)
            yield rows[rows >= 0], jax.tree.map(lambda leaf, real=rows >= 0: np.asarray(leaf)[real], values)
