"""Freezing in your own training loop: the frozen bottom of a network is computed once, and never run backwards."""

import dataclasses
import os
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from gafreeze_jax.engine import backprop
from gafreeze_jax.engine.backprop import Gradients
from gafreeze_jax.engine.cache import Budget, default_budget
from gafreeze_jax.engine.network import (
    ALONE,
    INPUTS,
    STATISTICS,
    AnyArray,
    Loss,
    Network,
    PyTree,
    Step,
    has_statistics,
    lowest_trainable,
    parameters,
)
from gafreeze_jax.engine.optimizer import masters
from gafreeze_jax.engine.passes import Borrowed, infer
from gafreeze_jax.listing import listed

ROWS = 100  # computed at a time
Mask = Mapping[str, bool] | Sequence[int] | AnyArray


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class PrefixRows:
    """What enters a block, a row per example; a tree, of which rows can be taken by `jax.tree.map`.

    Attributes:
      x: tree of arrays [B, ...].
      inputs: of the network, if blocks above read them; else None.
      depth: the block's index.
    """

    x: PyTree
    inputs: PyTree
    depth: int = dataclasses.field(metadata={"static": True})


class FrozenPrefix:
    """The blocks below the lowest one that a mask trains; made by `frozen_prefix`.

    Attributes:
      depth: their number.
    """

    def __init__(self, network: Network, params: Mapping[str, PyTree], frozen: Sequence[bool]):
        self._network, self.depth = network, lowest_trainable(frozen)
        self._held = {name for name, is_frozen in zip(network.names, frozen, strict=True) if is_frozen}
        self._params = jax.tree.map(jnp.asarray, {name: params[name] for name in network.names[: self.depth]})

    def __call__(self, inputs: PyTree) -> PrefixRows:
        """Runs a batch [B, ...] through the frozen blocks."""
        x = inputs
        for block in self._network.blocks[: self.depth]:
            if block.apply is not None:
                borrowed = Borrowed.of(block.shared, self._params)
                x = infer(block.apply, (None, None), self._params[block.name], x, {INPUTS: inputs}, borrowed)
        return PrefixRows(x, inputs if self._network.reads_inputs else None, self.depth)

    def cache(self, inputs: PyTree, budget: Budget | None = None, folder: str | os.PathLike[str] | None = None) -> PrefixRows:
        """Runs a whole data set [N, ...] through the frozen blocks.

        Returns:
          N rows: JAX arrays if `budget.device` has room for them, or numpy arrays in `budget.host`, or else on disk, in a new
          folder under `folder` (default: that for temporary files). By default the budget is a quarter of the memory, on a
          CPU an eighth.
        """
        budget = budget or default_budget()
        arrays = jax.tree.leaves(inputs)
        if not arrays or not (num := len(arrays[0])):
            raise ValueError("expected inputs of one example or more, got none")
        at_a_time = min(num, ROWS)

        def rows_from(first: int) -> PrefixRows:
            with ALONE(True):
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
        """Those of a network's parameters that the mask trains, the head's among them; a tree as that of the gradients."""
        trees = {name: parameters(tree) for name, tree in params.items() if name not in self._held}
        return masters(jax.tree.map(jnp.asarray, trees), self._network.master_dtype)

    def merge(
        self, params: Mapping[str, PyTree], trained: Mapping[str, PyTree], statistics: Mapping[str, PyTree] | None = None
    ) -> dict[str, PyTree]:
        """The network's parameters with trained ones, and new running statistics if there are some, in their places."""
        new = {name: {**params[name], **tree} if has_statistics(params[name]) else tree for name, tree in trained.items()}
        new |= {name: {**new[name], STATISTICS: of_block} for name, of_block in (statistics or {}).items()}
        return {**params, **new}


def _allocate(path: Path | None, shape: tuple[int, ...], dtype: Any) -> np.ndarray:
    if path is None:
        return np.empty(shape, dtype)
    return np.lib.format.open_memmap(path, "w+", np.dtype(dtype), shape)


def frozen_prefix(network: Network, params: Mapping[str, PyTree], mask: Mask) -> FrozenPrefix:
    """The frozen bottom of a network, for your own training loop; see `value_and_grad`.

    Args:
      params: of the network, {block name: ..., "head": ...}, such as `from_function.split` gives.
      mask: for each of the G blocks whether it is frozen: [G] with 1 = frozen, or by name, as from `read_mask`.

    Raises:
      ValueError: if the mask is for other genes.
    """
    return FrozenPrefix(network, params, _as_bools(network, mask))


def value_and_grad(network: Network, mask: Mask, loss: Loss) -> Callable[..., Gradients]:
    """Freeze-aware `jax.value_and_grad` of a network, for your own training loop.

    Nothing below the lowest trained block is run backwards. What `frozen_prefix` has computed is not run forwards either.

    Args:
      mask: for each of the G blocks whether it is frozen, as `frozen_prefix` takes it.
      loss: (outputs [B, ...], targets [B, ...]) -> losses [B], of which the mean is differentiated.

    Returns:
      A function `(params, batch, targets, key=None) -> Gradients`, which may be compiled.
        params: of the network, {block name: ..., "head": ...}.
        batch: inputs [B, ...], or what `frozen_prefix` made of them, for this mask or one that trains more.
        key: for dropout, or None.

    Raises:
      ValueError: if the mask is for other genes.

    >>> from gafreeze_jax.metrics import cross_entropy
    >>> from gafreeze_jax.models.plain import init_params, make_dense
    >>> network, shapes = make_dense([4, 8, 8, 2])
    >>> params = init_params(jax.random.key(0), shapes)
    >>> inputs, targets = np.ones((6, 4), np.float32), np.zeros(6, int)
    >>> gradients_for = value_and_grad(network, [1, 0], cross_entropy)
    >>> loss, gradients, *_ = gradients_for(params, inputs, targets)
    >>> sorted(gradients)
    ['dense_1', 'head']
    >>> rows = frozen_prefix(network, params, [1, 0]).cache(inputs)
    >>> bool(gradients_for(params, rows, targets).loss == loss)
    True
    """
    frozen = _as_bools(network, mask)

    def run(params: Mapping[str, PyTree], batch: PyTree, targets: Array, key: Array | None = None) -> Gradients:
        rows = batch if isinstance(batch, PrefixRows) else PrefixRows(batch, batch, 0)
        context: dict[str, Any] = {} if rows.inputs is None else {INPUTS: rows.inputs}
        gradients_for = backprop.value_and_grad(network, loss, frozen, start=rows.depth)
        return gradients_for(params, Step(rows.x, targets, jnp.ones(len(targets)), context), key)

    return run


def _as_bools(network: Network, mask: Mask) -> list[bool]:
    names = network.names
    if isinstance(mask, Mapping) and mask.keys() == set(names):
        mask = [mask[name] for name in names]
    expected = f"mask: expected {len(names)} genes, {listed(names)}"
    if isinstance(mask, Mapping):
        raise ValueError(f"{expected}; got {listed(mask)}")
    genes = np.asarray(mask)
    if genes.size and (genes.dtype.kind not in "bui" or not np.isin(genes, (0, 1)).all()):
        got = listed(map(str, genes.ravel()))
        raise ValueError(f"mask: expected 1 for each frozen gene and 0 for the others; got {got} (of rates, 0 is frozen)")
    if genes.shape != (len(names),):
        raise ValueError(f"{expected}; got {len(genes) if genes.ndim == 1 else genes.shape}")
    return genes.astype(bool).tolist()
