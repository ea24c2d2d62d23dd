"""Trains and scores the members of a population: one fine-tuning run per genome.

Every member starts from the same pretrained parameters and sees the same batches, the same initial head and the same
dropout (common random numbers), so members differ by their genomes alone. Up to its `depth`, its lowest trainable
stage, a member computes what every other member computes there: these activations are kept, and a member starts at its
depth. Several members can run in one call, stacked and mapped by `jax.vmap`, with traced genes where they differ.
"""

import functools
import os
from collections import OrderedDict
from collections.abc import Callable, Iterator
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array

from gafreeze_jax import masking, stages
from gafreeze_jax.stages import Axis, Batch, Dataset, Network, PyTree, Wrt, over_members


class Source(NamedTuple):
    """A data set and batches that run through it once, in order."""

    data: Dataset
    batches: Batch


class Recipe(NamedTuple):
    """How a member is trained.

    Attributes:
      body: optimizer of the stages; it runs stage by stage, so it must treat every leaf by itself (AdamW, SGD, Lion, ...).
      head: optimizer of the head.
      max_norm: gradients of trainable parameters are clipped to this global norm (Pascanu et al. 2013).
    """

    body: optax.GradientTransformation
    head: optax.GradientTransformation
    max_norm: float = 1.0


def adamw_recipe(learning_rate: float, head_learning_rate: float, num_steps: int) -> Recipe:
    """AdamW (Loshchilov & Hutter 2019) with linear warm-up over a tenth of the steps and linear decay to zero.

    Weight decay 0.01 on kernels and embeddings; none on biases and norms, which are vectors.
    """
    warm_up = max(1, num_steps // 10)

    def adamw(peak: float) -> optax.GradientTransformation:
        rise = optax.linear_schedule(0.0, peak, warm_up)
        fall = optax.linear_schedule(peak, 0.0, max(1, num_steps - warm_up))
        mask = functools.partial(jax.tree.map, lambda leaf: leaf.ndim > 1)
        return optax.adamw(optax.join_schedules([rise, fall], [warm_up]), weight_decay=0.01, mask=mask)

    return Recipe(adamw(learning_rate), adamw(head_learning_rate))


class Run(NamedTuple):
    """What a seed decides, the same for all members.

    Attributes:
      head: initial parameters of the head.
      batches: the training steps, with a leading axis.
      key: for dropout.
    """

    head: PyTree
    batches: Batch
    key: Array


class Member(NamedTuple):
    """A trained genome.

    Attributes:
      genome: [G] bool.
      params: the network's parameters; frozen ones are the pretrained arrays themselves.
      train_loss: mean over all training steps.
      accuracy: on the validation set, as share.
      loss: on the validation set, mean over examples; not finite if the run diverged.
    """

    genome: np.ndarray
    params: PyTree
    train_loss: float
    accuracy: float
    loss: float


def depths(genomes: np.ndarray) -> np.ndarray:
    """Index of the lowest trainable stage of genomes [P, G]; G where all are frozen: [P] int."""
    return (~np.pad(genomes, ((0, 0), (0, 1)))).argmax(1)


class Population:
    """Trains and scores genomes of one network on one task.

    Args:
      network: G stages and a head.
      params: pretrained parameters {stage name: ...} (a head in it is not used).
      recipe: how to train.
      train: the training set; its batches serve to compute activations.
      validation: the set that scores members.
      members_per_call: members stacked in one call. 1 skips all work that a genome makes superfluous; more keep an
        accelerator busy.
      on_step: called after each training step of a call with the number of members in it.
    """

    def __init__(
        self,
        network: Network,
        params: PyTree,
        recipe: Recipe,
        train: Source,
        validation: Source,
        *,
        members_per_call: int = 1,
        on_step: Callable[[int], None] = lambda members: None,
    ):
        self.network, self.recipe, self.members_per_call, self._on_step = network, recipe, members_per_call, on_step
        self._params = {stage.name: jax.tree.map(jnp.asarray, params[stage.name]) for stage in network.stages}
        budget = activation_budget() // 2
        self._train = Activations(network, self._params, train, budget)
        self._validation = Activations(network, self._params, validation, budget)

    def evaluate(self, genomes: np.ndarray, run: Run) -> Iterator[Member]:
        """Trains and scores genomes [P, G] bool; members come as they are ready, in an order of their own."""
        genomes = np.asarray(genomes, bool)
        order = np.lexsort(genomes.T[::-1])[::-1]  # deepest first: they cost least, and neighbours agree most
        for first in range(0, len(order), self.members_per_call):
            chunk = genomes[order[first : first + self.members_per_call]]
            call = _Call(self.network, self._params, chunk, self.members_per_call)
            params, train_loss = self._fit(call, run)
            accuracy, loss = self._score(call, params)
            for i, genome in enumerate(chunk):
                yield Member(genome, call.member(params, i), float(train_loss[i]), float(accuracy[i]), float(loss[i]))

    def _fit(self, call: "_Call", run: Run) -> tuple[PyTree, np.ndarray]:
        """Trains a call's members: their parameters (of trained stages and the head), and mean losses [members]."""
        recipe, network = self.recipe, self.network
        tx = dict.fromkeys(call.trained, recipe.body) | {"head": recipe.head}
        params = {name: call.stack(self._params[name]) for name in call.trained} | {"head": call.stack(run.head)}
        state = {name: over_members(tx[name].init, (call.axis,))(params[name]) for name in params}
        boundary, inputs = self._train.inputs(call.depth)
        total = 0.0
        num_steps = len(run.batches.examples)
        for step in range(num_steps):
            key = jax.random.fold_in(run.key, step)
            x, targets, batch = self._train.fetch(boundary, inputs, step, run.batches)
            for stage in network.stages[boundary : call.depth]:
                x = stages.infer(stage.apply, (None, None), self._params[stage.name], x, batch.context)
            pullbacks: list[tuple[str, Callable]] = []
            axis: Axis = None
            for index, stage in enumerate(network.stages[call.depth :], start=call.depth):
                trained = stage.name in call.trained
                gate = call.gates.get(stage.name)
                x, pullback = stages.forward(
                    stage.apply,
                    Wrt(params=trained, input=index > call.depth),
                    (call.axis if trained else None, axis, None if gate is None else call.axis),
                    params[stage.name] if trained else self._params[stage.name],
                    x,
                    gate,
                    batch.context,
                    key,
                    index,
                )
                axis = call.axis
                pullbacks.append((stage.name, pullback))
            loss, gradient, cotangent, square_norm = stages.head_step(
                network, bool(pullbacks), (call.axis, axis), params["head"], x, targets, batch, key
            )
            gradients = {"head": gradient}
            while pullbacks:
                name, pullback = pullbacks.pop()
                gradient, cotangent, square_norm = stages.backward(
                    call.axis, pullback, cotangent, call.gates.get(name), square_norm
                )
                if gradient is not None:
                    gradients[name] = gradient
            for name in params:
                params[name], state[name] = _update(
                    tx[name], recipe.max_norm, call.axis, params[name], state[name], gradients.pop(name), square_norm,
                    call.gates.get(name),
                )  # fmt: skip
            total = total + loss
            self._on_step(call.num_real)
        return params, np.reshape(total, -1) / num_steps

    def _score(self, call: "_Call", params: PyTree) -> tuple[np.ndarray, np.ndarray]:
        """Accuracy and mean loss of a call's members on the validation set: [members] each."""
        boundary, inputs = self._validation.inputs(call.depth)
        own = {stage.name: stage.name in call.trained for stage in self.network.stages}
        params = {name: (params if own[name] else self._params)[name] for name in own} | {"head": params["head"]}
        axes = {name: call.axis if own[name] else None for name in own} | {"head": call.axis}
        return _score(self.network, params, axes, self._validation, boundary, inputs)


def score(network: Network, params: PyTree, source: Source) -> tuple[float, float]:
    """Accuracy (a share) and mean loss of one network on a data set."""
    activations = Activations(network, params, source, budget=0)
    axes = dict.fromkeys((*network.names, "head"))
    (accuracy,), (loss,) = _score(network, params, axes, activations, *activations.inputs(0))
    return float(accuracy), float(loss)


def _score(
    network: Network, params: PyTree, axes: dict[str, Axis], activations: "Activations", boundary: int, inputs: PyTree
) -> tuple[np.ndarray, np.ndarray]:
    """Accuracy and mean loss: [members] each, from the inputs of the stage at a boundary. `axes` of the parameters."""
    correct_sum: Array | float = 0.0
    loss_sum: Array | float = 0.0
    for step in range(activations.num_batches):
        x, targets, batch = activations.fetch(boundary, inputs, step)
        axis: Axis = None
        for stage in network.stages[boundary:]:
            x = stages.infer(stage.apply, (axes[stage.name], axis), params[stage.name], x, batch.context)
            axis = axis if axes[stage.name] is None else axes[stage.name]
        loss, correct, _ = stages.head_score(network, (axes["head"], axis), params["head"], x, targets, batch)
        correct_sum, loss_sum = correct_sum + correct, loss_sum + loss
    correct, loss = (
        np.reshape(np.asarray(total, np.float64), -1) / activations.num_examples for total in (correct_sum, loss_sum)
    )
    return correct, loss


class _Call:
    """Members that are trained together.

    Args:
      genomes: [N, G].
      size: so many members are trained, of which those beyond N are copies of the last one: one shape for all calls.

    Attributes:
      axis: 0, or None for a single member, which has no member axis.
      depth: of the lowest trainable stage of any member.
      trained: names of the stages that any member trains.
      gates: for trained stages that some members freeze: [size] bool.
    """

    def __init__(self, network: Network, params: PyTree, genomes: np.ndarray, size: int):
        self.num_real, self.size = len(genomes), size
        self._pretrained, self._names, self._genomes = params, network.names, genomes
        self.axis: Axis = None if size == 1 else 0
        self.depth = int(depths(genomes).min())
        self.trained = [name for name, frozen in zip(self._names, genomes.T, strict=True) if not frozen.all()]
        filled = genomes[np.minimum(np.arange(size), len(genomes) - 1)]
        self.gates = {
            name: jnp.asarray(frozen)
            for name, frozen in zip(self._names, filled.T, strict=True)
            if frozen.any() and not frozen.all()
        }

    def stack(self, tree: PyTree) -> PyTree:
        """A copy of a tree for every member, which may be donated."""
        copies = () if self.axis is None else (self.size,)
        return jax.tree.map(lambda leaf: jnp.array(jnp.broadcast_to(leaf, copies + jnp.shape(leaf))), tree)

    def member(self, params: PyTree, i: int) -> PyTree:
        """All parameters of member i, without a member axis."""
        own = {"head", *(name for name, frozen in zip(self._names, self._genomes[i], strict=True) if not frozen)}
        pick = (lambda leaf: leaf) if self.axis is None else (lambda leaf: leaf[i])
        return {
            name: jax.tree.map(pick, params[name]) if name in own else self._pretrained[name] for name in (*self._names, "head")
        }


class Activations:
    """What the pretrained stages make of a data set: kept within a budget, the least recently used leave first.

    Args:
      params: pretrained.
      budget: bytes.
    """

    def __init__(self, network: Network, params: PyTree, source: Source, budget: int):
        self.num_batches = len(source.batches.examples)
        self.num_examples = len(source.data.targets)
        self._network, self._params, self._budget = network, params, budget
        self._source = jax.tree.map(jnp.asarray, source)
        self._kept: OrderedDict[int, Array] = OrderedDict()
        self._shapes = self._boundary_shapes()

    def inputs(self, depth: int) -> tuple[int, PyTree]:
        """What enters the stage at `depth`, for the whole data set; if that is too large, the same for a lower stage.

        Returns:
          The stage's index and the array.
        """
        while depth > 0 and depth not in self._kept and self._shapes[depth].size * 4 > self._budget:
            depth -= 1
        if depth == 0:
            return 0, self._source.data.inputs
        if depth not in self._kept:
            self._kept[depth] = self._compute(depth)
            while self.num_bytes > self._budget:
                self._kept.popitem(last=False)
        self._kept.move_to_end(depth)
        return depth, self._kept[depth]

    @property
    def num_bytes(self) -> int:
        """What is kept."""
        return sum(array.nbytes for array in self._kept.values())

    def fetch(self, depth: int, inputs: PyTree, step: int, batches: Batch | None = None) -> tuple[PyTree, Array, Batch]:
        """A batch of what `inputs` gave for a depth: inputs, targets, and the batch itself.

        Args:
          batches: other batches than those that run through the set.
        """
        batches = self._source.batches if batches is None else batches
        return _fetch(self._per_example(depth), inputs, self._source.data.targets, batches, step)

    def _per_example(self, depth: int) -> bool:
        return depth > 0 and self._network.stages[depth - 1].per_example

    def _compute(self, depth: int) -> Array:
        below, inputs = self.inputs(depth - 1)
        out = jnp.zeros(self._shapes[depth].shape, self._shapes[depth].dtype)
        for step in range(self.num_batches):
            x, _, batch = self.fetch(below, inputs, step)
            for stage in self._network.stages[below:depth]:
                x = stages.infer(stage.apply, (None, None), self._params[stage.name], x, batch.context)
            out = _put(out, batch.examples if self._per_example(depth) else batch.elements, x)
        return out

    def _boundary_shapes(self) -> dict[int, jax.ShapeDtypeStruct]:
        (inputs, targets), batches = self._source
        num_elements = len(jax.tree.leaves(inputs)[0])
        x, _, batch = jax.eval_shape(functools.partial(_fetch, False, step=0), inputs, targets, batches)
        shapes = {}
        for depth, stage in enumerate(self._network.stages, start=1):
            apply = functools.partial(stage.apply, frozen=True, key=None)
            x = jax.eval_shape(apply, self._params[stage.name], x, batch.context)
            num = len(targets) if stage.per_example else num_elements
            shapes[depth] = jax.ShapeDtypeStruct((num, *x.shape[1:]), x.dtype)
        return shapes


@functools.partial(jax.jit, static_argnums=0)
def _fetch(per_example: bool, inputs: PyTree, targets: Array, batches: Batch, step: int) -> tuple[PyTree, Array, Batch]:
    batch = jax.tree.map(lambda leaf: leaf[step], batches)
    rows = batch.examples if per_example else batch.elements
    return jax.tree.map(lambda leaf: leaf[rows], inputs), targets[batch.examples], batch


@functools.partial(jax.jit, donate_argnums=0)
def _put(array: Array, rows: Array, values: Array) -> Array:
    """Writes values to rows of an array, apart from those of row -1, which is padding."""
    return array.at[jnp.where(rows < 0, len(array), rows)].set(values, mode="drop")


@functools.partial(jax.jit, static_argnames=("tx", "max_norm", "axis"), donate_argnames=("params", "state"))
def _update(
    tx: optax.GradientTransformation,
    max_norm: float,
    axis: Axis,
    params: PyTree,
    state: PyTree,
    gradients: PyTree,
    square_norm: Array,
    frozen: Array | None,
) -> tuple[PyTree, PyTree]:
    """One step of a stage's optimizer; `axis` is that of all arrays. `frozen`: [members], or None = trained by all."""

    def run(params, state, gradients, square_norm, frozen):
        scale = max_norm / jnp.maximum(jnp.sqrt(square_norm), max_norm)
        gradients = jax.tree.map(lambda g: g * scale, gradients)
        if frozen is None:
            updates, state = tx.update(gradients, state, params)
        else:
            gene = masking.make_genes(params, {".*": "stage"})
            updates, state = masking.freezable(tx, gene).update(gradients, state, params, genome=frozen[None])
        return optax.apply_updates(params, updates), state

    axes = (axis, axis, axis, axis, None if frozen is None else axis)
    return over_members(run, axes)(params, state, gradients, square_norm, frozen)


def activation_budget() -> int:
    """Bytes that activations may take: a quarter of the device's memory, or an eighth of the machine's on a CPU."""
    limit = (jax.local_devices()[0].memory_stats() or {}).get("bytes_limit")
    if limit:
        return limit // 4
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 8
