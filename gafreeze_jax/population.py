"""Trains and scores the members of a population: one fine-tuning run per genome.

Every member starts from the same pretrained parameters and sees the same batches, the same initial head and the same
dropout (common random numbers), so members differ by their genomes alone. Up to its `depth`, its lowest trainable
stage, a member computes what every other member computes there: these activations are kept, and a member starts at its
depth. Several members can run in one call, stacked and mapped by `jax.vmap`, with traced genes where they differ.
"""

import functools
from collections.abc import Callable, Iterator
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array

from gafreeze_jax import masking, stages
from gafreeze_jax.activations import Activations, Source, activation_budget, device_memory, score_from
from gafreeze_jax.stages import Axis, Batch, Network, PyTree, Wrt, over_members


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


def members_that_fit(params: PyTree, most: int) -> int:
    """How many members to stack in one call: 1 on a CPU, where it saves nothing, else what fits the device, at most `most`.

    A member needs its parameters, gradients and two moments; these may take two fifths of the memory, which leaves the
    rest for activations.
    """
    limit = device_memory()
    if jax.default_backend() == "cpu" or not limit:
        return 1
    bytes_per_member = 4 * sum(leaf.nbytes for leaf in jax.tree.leaves(params))
    return int(np.clip(0.4 * limit // bytes_per_member, 1, most))


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
        return score_from(self.network, params, axes, self._validation, boundary, inputs)


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
