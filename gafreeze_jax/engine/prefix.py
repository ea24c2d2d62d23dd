"""The frozen bottom of a network for a training loop of one's own: computed once for a data set, and never run backwards."""

import os
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from gafreeze_jax.engine import backprop
from gafreeze_jax.engine.backprop import Gradients
from gafreeze_jax.engine.cache import Budget, default_budget
from gafreeze_jax.engine.network import INPUTS, Loss, Network, PyTree, Step, lowest_trainable
from gafreeze_jax.engine.optimizer import masters
from gafreeze_jax.engine.passes import infer
from gafreeze_jax.listing import listed

ROWS = 100  # computed at a time


class PrefixRows(NamedTuple):
    """What enters the lowest trained block, a row per example.

    Attributes:
      x: tree of arrays [B, ...].
      inputs: of the network, if blocks above read them; else None.
    """

    x: PyTree
    inputs: PyTree


class FrozenPrefix:
    """The blocks below the lowest one that a mask trains; made by `frozen_prefix`.

    Attributes:
      depth: their number.
      frozen: [G] bools.
      params: of all blocks that are frozen, {block name: ...}.
    """

    def __init__(self, network: Network, params: Mapping[str, PyTree], frozen: Sequence[bool]):
        self._network, self.frozen, self.depth = network, tuple(frozen), lowest_trainable(frozen)
        held = [name for name, is_frozen in zip(network.names, frozen, strict=True) if is_frozen]
        self.params = jax.tree.map(jnp.asarray, {name: params[name] for name in held})

    def __call__(self, inputs: PyTree) -> PrefixRows:
        """Runs a batch [B, ...] through the frozen blocks."""
        x = inputs
        for block in self._network.blocks[: self.depth]:
            if block.apply is not None:
                x = infer(block.apply, (None, None), self.params[block.name], x, {INPUTS: inputs})
        return PrefixRows(x, inputs if self._network.reads_inputs else None)

    def cache(self, inputs: PyTree, budget: Budget | None = None, folder: str | os.PathLike[str] | None = None) -> PrefixRows:
        """Runs a whole data set [N, ...] through the frozen blocks.

        Returns:
          N rows: JAX arrays if `budget.device` has room for them, or numpy arrays in `budget.host`, or else on disk, in a new
          folder under `folder` (default: that for temporary files). By default the budget is a quarter of the memory.
        """
        budget = budget or default_budget()
        num = len(jax.tree.leaves(inputs)[0])
        at_a_time = min(num, ROWS)

        def rows_from(first: int) -> PrefixRows:
            return self(jax.tree.map(lambda leaf: leaf[first : first + at_a_time], inputs))

        leaves, tree = jax.tree.flatten(jax.eval_shape(lambda: rows_from(0)))
        num_bytes = sum(num * leaf.size // at_a_time * leaf.dtype.itemsize for leaf in leaves)
        on_disk = num_bytes > max(budget)
        place = Path(tempfile.mkdtemp(prefix="frozen_prefix-", dir=folder)) if on_disk else None
        kept = [_allocate(place and place / f"{i}.npy", (num, *leaf.shape[1:]), leaf.dtype) for i, leaf in enumerate(leaves)]
        for start in range(0, num, at_a_time):
            first = min(start, num - at_a_time)  # all batches have one size
            for array, rows in zip(kept, jax.tree.leaves(rows_from(first)), strict=True):
                array[first : first + at_a_time] = rows
        return jax.tree.map(jnp.asarray if num_bytes <= budget.device else np.asanyarray, tree.unflatten(kept))

    def trained(self, params: Mapping[str, PyTree]) -> dict[str, PyTree]:
        """Those of a network's parameters that the mask trains, the head's among them."""
        trained = {name: jax.tree.map(jnp.asarray, tree) for name, tree in params.items() if name not in self.params}
        return masters(trained, self._network.master_dtype)

    def value_and_grad(self, loss: Loss) -> Callable[..., Gradients]:
        """Freeze-aware `jax.value_and_grad` from the lowest trained block on.

        Args:
          loss: (outputs [B, ...], targets [B, ...]) -> losses [B], of which the mean is differentiated.

        Returns:
          A function `(trained, rows, targets, key=None) -> Gradients`; gradients are a tree like `trained`. It may be compiled.
        """
        gradients_for = backprop.value_and_grad(self._network, loss, self.frozen, start=self.depth)

        def run(trained: Mapping[str, PyTree], rows: PrefixRows, targets: Array, key: Array | None = None) -> Gradients:
            context: dict[str, Any] = {} if rows.inputs is None else {INPUTS: rows.inputs}
            return gradients_for({**self.params, **trained}, Step(rows.x, targets, jnp.ones(len(targets)), context), key)

        return run


def _allocate(path: Path | None, shape: tuple[int, ...], dtype: Any) -> np.ndarray:
    if path is None:
        return np.empty(shape, dtype)
    return np.lib.format.open_memmap(path, "w+", np.dtype(dtype), shape)


def frozen_prefix(
    network: Network, params: Mapping[str, PyTree], mask: Mapping[str, bool] | Sequence[int] | np.ndarray
) -> FrozenPrefix:
    """The frozen bottom of a network, for a training loop of one's own.

    Args:
      params: of the network, {block name: ..., "head": ...}, such as `from_function.split` gives.
      mask: for each of the G blocks whether it is frozen: [G] with 1 = frozen, or by name, as from `read_mask`.

    Raises:
      ValueError: if the mask is for other genes.
    """
    names = network.names
    if isinstance(mask, Mapping) and mask.keys() == set(names):
        mask = [mask[name] for name in names]
    if isinstance(mask, Mapping) or len(mask) != len(names):
        got = listed(mask) if isinstance(mask, Mapping) else len(mask)
        raise ValueError(f"mask: expected {len(names)} genes, {listed(names)}; got {got}")
    return FrozenPrefix(network, params, [bool(gene) for gene in mask])
