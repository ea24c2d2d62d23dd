"""What the pretrained stages make of a data set, computed once and kept; and scores of a network on a data set.

All members of a population start from the same pretrained parameters, and frozen stages run in inference mode: up to its
lowest trainable stage every member computes the same.
"""

import functools
import os
from collections import OrderedDict
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from gafreeze_jax import stages
from gafreeze_jax.stages import Axis, Batch, Dataset, Network, PyTree


class Source(NamedTuple):
    """A data set and batches that run through it once, in order."""

    data: Dataset
    batches: Batch


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
        while depth > 0 and depth not in self._kept and self._bytes(depth) > self._budget:
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

    def _bytes(self, depth: int) -> int:
        return self._shapes[depth].size * self._shapes[depth].dtype.itemsize

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


def device_memory() -> int | None:
    """Bytes that an accelerator has; None on a CPU."""
    return (jax.local_devices()[0].memory_stats() or {}).get("bytes_limit")


def activation_budget() -> int:
    """Bytes that activations may take: a quarter of the device's memory, or an eighth of the machine's on a CPU."""
    limit = device_memory()
    if limit:
        return limit // 4
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 8


def score(network: Network, params: PyTree, source: Source) -> tuple[float, float]:
    """Accuracy (a share) and mean loss of one network on a data set."""
    activations = Activations(network, params, source, budget=0)
    axes = dict.fromkeys((*network.names, "head"))
    (accuracy,), (loss,) = score_from(network, params, axes, activations, *activations.inputs(0))
    return float(accuracy), float(loss)


def score_from(
    network: Network, params: PyTree, axes: dict[str, Axis], activations: Activations, boundary: int, inputs: PyTree
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
