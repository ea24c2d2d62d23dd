"""A network as a chain of stages, one per gene, and backpropagation that does no work for frozen ones.

`value_and_grad` differentiates any chain of stages for a mask: a frozen stage has no weight gradient, nothing below the
lowest trainable stage is run backwards, and if its input is known it is not run forwards either. Every stage is compiled
by itself, once for all stages that share its `apply`, so one set of compiled functions serves all masks; under
`jax.jit` the pieces become one program for one mask.

Members of a population may be stacked along a leading axis and are then mapped with `jax.vmap`. An `axis` of None says
that an argument has no such axis, and is shared by all members.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array

from gafreeze_jax import devices

PyTree = Any
Axis = int | None
AnyArray = Array | np.ndarray

STATISTICS = "batch_stats"  # Flax's name for them


class Stage(NamedTuple):
    """One gene's worth of a network.

    Parameters that are a dict with a key "batch_stats" hold running statistics there, as of a batch normalisation, which
    no optimizer touches and no gradient is taken of.

    Attributes:
      name: the gene's name, and the key of the stage's parameters in the network's tree.
      apply: `apply(params, x, context, *, frozen, key) -> x`. `context` holds what else the batch has, such as attention
        segments. Where `frozen` (a bool, or traced) the stage must run in inference mode; `key` is for dropout, None
        when scoring. Stages with the same `apply` object and parameter shapes share their compiled code. With running
        statistics it returns `(x, new statistics)` unless `frozen` is True. None = nothing is computed here, and the
        parameters are for the head (see `Network.shared`).
      per_example: whether the output has one row per example; else one per element of the batch (see `Batch`).
    """

    name: str
    apply: Callable[..., Any] | None
    per_example: bool = True


class Network(NamedTuple):
    """A chain of stages and the head on top, which always trains. Its parameters are {stage name: ..., "head": ...}.

    Attributes:
      stages: the G stages, lowest first.
      head: like `Stage.apply`; its output goes to `loss`.
      loss: `loss(output, targets) -> (loss [B], correct [B])`, per example.
      shared: names of stages whose parameters the head reads, too, such as word vectors that are tied to its output: it is
        given {..., stage name: parameters} beside its own.
    """

    stages: tuple[Stage, ...]
    head: Callable[..., Array]
    loss: Callable[[Array, Array], tuple[Array, Array]]
    shared: tuple[str, ...] = ()

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(stage.name for stage in self.stages)


class Dataset(NamedTuple):
    """A data set on the device.

    Attributes:
      inputs: tree of arrays [N, ...], a row for every element: for images an element is an example, for texts a token.
      targets: [E, ...], a row for every example.
    """

    inputs: PyTree
    targets: AnyArray


class Batch(NamedTuple):
    """Which rows of a data set form a batch; one batch, or a sequence of them with a leading axis.

    Attributes:
      elements: [steps, N] int32, rows of `Dataset.inputs`; -1 = padding.
      examples: [steps, B] int32, rows of `Dataset.targets`; -1 only fills the batch up.
      context: dict of arrays [steps, ...] for the stages.
    """

    elements: AnyArray
    examples: AnyArray
    context: dict[str, Any]

    @property
    def weights(self) -> Array:
        """[steps, B] float32: 1, or 0 for what only fills the batch up."""
        return jnp.asarray(self.examples >= 0, jnp.float32)


def classification(logits: Array, labels: Array) -> tuple[Array, Array]:
    """Cross-entropy and whether the prediction is right, for logits [B, C] and labels [B]."""
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels), logits.argmax(-1) == labels


def parameters(tree: PyTree) -> PyTree:
    """What an optimizer may change: a stage's tree without its running statistics."""
    return {name: leaf for name, leaf in tree.items() if name != STATISTICS} if has_statistics(tree) else tree


def has_statistics(tree: PyTree) -> bool:
    return isinstance(tree, Mapping) and STATISTICS in tree


def over_members(function: Callable, axes: tuple[Axis, ...]) -> Callable:
    """`function` mapped over those arguments that have a member axis; itself if none has. Devices share the members out.

    It may close over no arrays.
    """
    return function if all(axis is None for axis in axes) else devices.over_shards(jax.vmap(function, axes), axes)


@functools.partial(jax.jit, static_argnames=("apply", "axes"))
def infer(apply: Callable, axes: tuple[Axis, Axis], params: PyTree, x: PyTree, context: PyTree) -> Array:
    """A stage in inference mode. `axes` are those of `params` and `x`."""
    run = lambda params, x, context: apply(params, x, context, frozen=True, key=None)  # noqa: E731
    return over_members(run, (*axes, None))(params, x, context)


class Wrt(NamedTuple):
    """What a stage is differentiated with respect to."""

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
    """A stage in training mode, its pullback for `backward`, and its new running statistics, or None.

    Args:
      axes: of `params`, `x` and `frozen`.
      frozen: [members] bool, or None: trained by all if `wrt.params`, else frozen for all.
      key: of this step, or None; the stage's own is `fold_in(key, index)`, the same for all members.
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
    """Runs a stage backwards.

    Args:
      axis: of all arguments (`frozen` may be None).
      params, x: as they were given to `forward`.
      cotangent: of the stage's output.
      frozen: [members] bool, whose gradients are set to zero.
      square_norm: [members], of the gradients of the stages above.
      by_head: gradients of the parameters as the head reads them, or None.

    Returns:
      Gradients of the parameters and of the input (None if not asked for), and `square_norm` with this stage's added.
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
      shared: those of the stages it reads, by name, without frozen ones.
      input: of its input, or None.
      square_norm: of `params`.
    """

    loss: Array
    params: PyTree
    shared: dict[str, PyTree]
    input: Array | None
    square_norm: Array


HeadAxes = tuple[Axis, ...]  # of the head's parameters, of those of each shared stage, and of its input


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
      trained: for each shared stage, whether its gradient is wanted.
      input_too: whether the gradient of the input is wanted.
      axes: of `params`, `shared` and `x`.
    """
    key = None if key is None else jax.random.fold_in(key, len(network.stages))

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


def lowest_trainable(frozen: Sequence[bool | None]) -> int:
    """Index of the first stage that is not frozen; their number if all are."""
    return next((i for i, gene in enumerate(frozen) if gene is not True), len(frozen))


class Kept(NamedTuple):
    """What is kept of a stage for `backward`: its pullback and its input."""

    pullback: Pullback
    x: PyTree


def forward_chain(network: Network, frozen: Sequence[bool | None], start: int, axis: Axis) -> Callable:
    """The first half of `value_and_grad`: a function `(params, x, context, key, gates) -> (x, kept, statistics)`.

    `kept` has a `Kept` for every stage from the lowest trainable one on, and `statistics` new running statistics of those
    trained stages that have some; both by name.
    """

    def run(params, x, context, key, gates):
        depth = lowest_trainable(frozen)
        for stage in network.stages[start:depth]:
            if stage.apply is not None:
                x = infer(stage.apply, (None, None), params[stage.name], x, context)
        kept: dict[str, Kept] = {}
        statistics: dict[str, PyTree] = {}
        x_axis: Axis = None
        for index, stage in enumerate(network.stages[depth:], start=depth):
            if stage.apply is None:
                continue
            trained = frozen[index] is not True
            gate = gates[stage.name] if frozen[index] is None else None
            y, pullback, new = forward(
                stage.apply,
                Wrt(params=trained, input=bool(kept)),
                (axis if trained else None, x_axis, None if gate is None else axis),
                params[stage.name],
                x,
                gate,
                context,
                key,
                index,
            )
            kept[stage.name] = Kept(pullback, x)
            if new is not None:
                statistics[stage.name] = new
            x, x_axis = y, axis if trained else x_axis
        return x, kept, statistics

    return run


class Gradients(NamedTuple):
    """What the function from `value_and_grad` gives, with a leading axis if there are members.

    Attributes:
      loss: mean over the examples.
      gradients: {stage name: ..., "head": ...} without the frozen stages; zero where a gate is True.
      square_norm: of all of them, as `optax.clip_by_global_norm` would see it.
      statistics: {stage name: new running statistics} of the stages that have some and train; old ones where a gate is True.
    """

    loss: Array
    gradients: dict[str, PyTree]
    square_norm: Array
    statistics: dict[str, PyTree]


def value_and_grad(network: Network, frozen: Sequence[bool | None], *, start: int = 0, axis: Axis = None) -> Callable:
    """Freeze-aware `jax.value_and_grad` of a chain of stages: frozen stages cost their forward run and no more.

    Called as it is, the function it returns runs stage by stage, and no other mask makes anything compile again. It may
    also be compiled as a whole (`jax.jit`) or mapped (`jax.vmap`); the mask is static, so what is skipped is skipped
    there as well.

    Args:
      frozen: for each of the G stages True (frozen: inference mode, no gradient), False (trained), or None: decided by
        `gates` when called.
      start: the stage that `x` enters; those below must be frozen.
      axis: 0 if stages that are not frozen, and the head, have parameters for several members along a leading axis.

    Returns:
      A function `(params, x, targets, weights, context, key=None, gates=None) -> Gradients`.
        params: {stage name: ..., "head": ...}.
        x: tree of arrays [N, ...] that enters the stage `start`.
        targets, weights: [B, ...] and [B]; the loss is the mean over examples by weight.
        context: for the stages.
        key: for dropout, or None.
        gates: {stage name: [members] bool, or scalar without members} where `frozen` is None.

    >>> layer = lambda params, x, context, *, frozen, key: jnp.tanh(x @ params)
    >>> head = lambda params, x, context, *, frozen, key: x @ params
    >>> network = Network((Stage("low", layer), Stage("high", layer)), head, classification)
    >>> params = {"low": jnp.eye(3), "high": jnp.eye(3), "head": jnp.ones((3, 2))}
    >>> gradients_for = value_and_grad(network, frozen=[True, False])
    >>> loss, gradients, *_ = gradients_for(params, jnp.ones((4, 3)), jnp.zeros(4, int), jnp.ones(4), {})
    >>> sorted(gradients), round(float(loss), 4)
    (['head', 'high'], 0.6931)
    """
    if len(frozen) != len(network.stages):
        raise ValueError(f"Expected {len(network.stages)} genes, one for each of {', '.join(network.names)}; got {len(frozen)}")
    if (depth := lowest_trainable(frozen)) < start:
        raise ValueError(f"Stage {network.names[depth]!r} is not frozen, so x must enter there or below, not at stage {start}")

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
        for name, of_params in by_head.items():  # of stages that compute nothing themselves
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
