"""A network as a chain of blocks, one per gene, and the data that goes through it.

A block may be anything that JAX can differentiate. `backprop` differentiates the chain for a mask.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

PyTree = Any
Axis = int | None
AnyArray = Array | np.ndarray
Loss = Callable[[Array, Array], Array]  # (outputs [B, ...], targets [B, ...]) -> losses [B]

STATISTICS = "batch_stats"  # Flax's name for running statistics
INPUTS = "inputs"  # the key, in a context, of the rows that enter the lowest block

# Whether a block is traced as a program of its own, for one member and one batch: not in a loop, nor mapped over members.
ALONE = jax.make_user_context(default_value=False)


class Block(NamedTuple):
    """One gene's part of a network.

    Parameters that are a dict with a key "batch_stats" hold running statistics there, as of a batch normalisation. No
    optimizer touches them, and no gradient is taken of them.

    Attributes:
      name: the gene's name, and the key of the block's parameters in the network's tree.
      apply: `apply(params, x, context, *, frozen, key) -> x`. `context` holds what else the batch has, such as attention
        segments. Where `frozen` (a bool, or traced) the block must run in inference mode; `key` is for dropout, None
        when scoring. Blocks with the same `apply` object and parameter shapes share their compiled code. With running
        statistics it returns `(x, new statistics)` unless `frozen` is True. None = nothing is computed here, and the
        parameters are for others (see `shared` here and in `Network`).
      per_example: whether the output has one row per example; otherwise it has one per element of the batch (see `Batch`).
      shared: names of lower blocks whose parameters it reads as well, such as positions that all layers share: it receives
        {..., block name: parameters} beside its own. Their gradient is the sum over all that read them.
    """

    name: str
    apply: Callable[..., Any] | None
    per_example: bool = True
    shared: tuple[str, ...] = ()


class Network(NamedTuple):
    """A chain of blocks and the head on top, which always trains. Its parameters are {block name: ..., "head": ...}.

    Attributes:
      blocks: the G blocks, lowest first.
      head: like `Block.apply`; it gives the network's outputs [B, ...], one row per example.
      shared: names of blocks whose parameters the head reads as well, such as word vectors that are tied to its output: it
        receives {..., block name: parameters} beside its own.
      reads_inputs: whether blocks above the lowest one read what enters that, such as an attention mask: `context["inputs"]`.
      master_dtype: of parameters that train, whatever the pretrained ones have; blocks then take both. None = as they are.
      dtype: of the operands of its products, as it was made; None = its functions decide.
    """

    blocks: tuple[Block, ...]
    head: Callable[..., Array]
    shared: tuple[str, ...] = ()
    reads_inputs: bool = False
    master_dtype: Any = None
    dtype: np.dtype | None = None

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(block.name for block in self.blocks)


def head_as_block(network: Network, name: str) -> Network:
    """The network with its head as the highest block, so that it may be frozen; the head on top only passes outputs on.

    Its parameters move to `name`, and leave none at "head".

    Raises:
      ValueError: if the head reads the parameters of other blocks.
    """
    if network.shared:
        raise ValueError(f"the head reads parameters of {', '.join(network.shared)}, and cannot be a block of its own")
    return network._replace(blocks=(*network.blocks, Block(name, network.head)), head=pass_on)


def pass_on(params: PyTree, x: Array, context: PyTree, *, frozen: Any, key: Array | None) -> Array:
    """A head that does nothing, where blocks compute the outputs."""
    return x


class Dataset(NamedTuple):
    """A data set.

    Attributes:
      inputs: tree of arrays [N, ...], a row for every element: for images an element is an example, for texts a token.
      targets: [E, ...], a row for every example; None for data without labels.
    """

    inputs: PyTree
    targets: Any = None


class Batch(NamedTuple):
    """Which rows of a data set form a batch; one batch, or a sequence of them with a leading axis.

    Where the batches of training steps are cut into slices, whose gradients are added up, all shapes begin with [steps,
    slices, ...].

    Attributes:
      elements: [steps, N] int32, rows of `Dataset.inputs`; -1 = padding.
      examples: [steps, B] int32, rows of `Dataset.targets`; -1 only fills the batch up.
      context: dict of arrays [steps, ...] for the blocks.
    """

    elements: AnyArray
    examples: AnyArray
    context: dict[str, Any]

    @property
    def weights(self) -> Array:
        """[steps, B] float32: 1, or 0 for rows that only fill the batch up."""
        return jnp.asarray(self.examples >= 0, jnp.float32)

    @property
    def num_slices(self) -> int | None:
        """Of each of a sequence of batches; None if they are not cut."""
        return self.examples.shape[1] if self.examples.ndim == 3 else None


class Source(NamedTuple):
    """A data set and batches that run through it once, in order.

    Attributes:
      augment: `augment(key, inputs) -> inputs`, applied to the rows [N, ...] of each training batch. Activations of augmented
        inputs change at every step, so none are kept.
      rows: [E], the row that each example belongs to, where examples do not stand for themselves, as the tokens of a text.
    """

    data: Dataset
    batches: Batch
    augment: Callable[[Array, PyTree], PyTree] | None = None
    rows: np.ndarray | None = None

    @property
    def num_examples(self) -> int:
        return int(np.max(self.batches.examples)) + 1


class Step(NamedTuple):
    """The data of one step.

    Attributes:
      x: tree of arrays [N, ...] that enters the lowest block to be computed.
      targets: [B, ...], or None.
      weights: [B], 0 for examples that only fill the batch up.
      context: for the blocks.
      total: of the weights of all slices of the step; None = these are all.
    """

    x: PyTree
    targets: Array | None
    weights: Array
    context: PyTree
    total: Array | None = None


def parameters(tree: PyTree) -> PyTree:
    """The parameters that an optimizer may change: a block's tree without its running statistics."""
    return {name: leaf for name, leaf in tree.items() if name != STATISTICS} if has_statistics(tree) else tree


def has_statistics(tree: PyTree) -> bool:
    return isinstance(tree, Mapping) and STATISTICS in tree


def num_bytes(tree: PyTree) -> int:
    """Of all arrays of a tree, or of arrays of such shapes."""
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def lowest_trainable(frozen: Sequence[bool | None]) -> int:
    """Index of the first block that is not frozen; their number if all are."""
    return next((i for i, gene in enumerate(frozen) if gene is not True), len(frozen))
