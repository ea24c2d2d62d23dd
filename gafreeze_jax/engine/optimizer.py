"""How parameters move: the optimizers of a network, the state they start from, and their updates."""

import functools
import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import Array

from gafreeze_jax import masking
from gafreeze_jax.engine import devices
from gafreeze_jax.engine.network import STATISTICS, Axis, PyTree, parameters
from gafreeze_jax.engine.passes import over_members


class Recipe(NamedTuple):
    """How a member is trained.

    Attributes:
      body: optimizer of the blocks. It runs block by block, so it must treat every leaf by itself (AdamW, SGD, Lion, ...).
      head: optimizer of the head.
      max_norm: gradients of trainable parameters are clipped to this global norm (Pascanu et al. 2013); infinite = not clipped.
    """

    body: optax.GradientTransformation
    head: optax.GradientTransformation
    max_norm: float = 1.0

    def of(self, name: str) -> optax.GradientTransformation:
        """The optimizer of a block, or of "head"."""
        return self.head if name == "head" else self.body


@functools.cache  # equal recipes share compiled code
def adamw_recipe(*, learning_rate: float, head_learning_rate: float, num_steps: int) -> Recipe:
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


class Trainable(NamedTuple):
    """Parameters that are trained, and the state of their optimizers, {name: tree} each, or of one block."""

    params: PyTree
    state: PyTree

    @classmethod
    def of_blocks(cls, blocks: "Mapping[str, Trainable]") -> "Trainable":
        """The trees of several blocks, by name."""
        params = {name: block.params for name, block in blocks.items()}
        return cls(params, {name: block.state for name, block in blocks.items()})


def masters(params: PyTree, dtype: Any) -> PyTree:
    """Parameters in the dtype in which they train, if that is not None."""

    def widen(leaf: Any) -> Array:
        return jnp.asarray(leaf, dtype if jnp.issubdtype(jnp.result_type(leaf), jnp.floating) else None)

    return params if dtype is None else jax.tree.map(widen, params)


@functools.partial(jax.jit, static_argnames=("tx", "axis", "size", "dtype"))
def start_block(tx: optax.GradientTransformation, axis: Axis, size: int, params: PyTree, *, dtype: Any = None) -> Trainable:
    """A copy of a block's parameters, or `size` copies along a member axis, and their optimizer's state.

    Args:
      dtype: `Network.master_dtype`.
    """
    members = () if axis is None else (size,)
    params = masters(params, dtype)
    copies = jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, members + jnp.shape(leaf)), params)
    init = tx.init if axis is None else jax.vmap(tx.init, axis_size=size)  # the size, as a head may have no parameters
    return devices.shard(Trainable(copies, init(parameters(copies))), axis)


def start_blocks(recipe: Recipe, axis: Axis, size: int, params: dict[str, PyTree], *, dtype: Any = None) -> Trainable:
    """`start_block` of several blocks and the head."""
    started = {name: start_block(recipe.of(name), axis, size, tree, dtype=dtype) for name, tree in params.items()}
    return Trainable.of_blocks(started)


start_blocks_in_one = jax.jit(start_blocks, static_argnames=("recipe", "axis", "size", "dtype"))


@functools.partial(jax.jit, static_argnames=("tx", "max_norm", "axis"), donate_argnames=("block",))
def update_block(
    *,
    tx: optax.GradientTransformation,
    max_norm: float,
    axis: Axis,
    block: Trainable,
    gradients: PyTree,
    square_norm: Array,
    frozen: Array | None,
    rate: Array | None,
    statistics: PyTree,
) -> Trainable:
    """One step of a block's optimizer; `axis` is that of all arrays.

    Args:
      block: donated.
      square_norm: of the gradients of all blocks and the head, for clipping.
      frozen: [members], or None = trained by all.
      rate: [members], by which the updates are multiplied; None = 1.
      statistics: new running statistics, or None.
    """

    def run(params, state, gradients, square_norm, frozen, rate):
        if max_norm < math.inf:
            scale = max_norm / jnp.maximum(jnp.sqrt(square_norm), max_norm)
            gradients = jax.tree.map(lambda g: g * scale, gradients)
        if frozen is None or not jax.tree.leaves(params):
            updates, state = tx.update(gradients, state, params)
        else:
            gene = masking.make_genes(params, {".*": "block"})
            updates, state = masking.freezable(tx, gene).update(gradients, state, params, genome=frozen[None])
        if rate is not None:
            updates = jax.tree.map(lambda update: update * rate, updates)
        return optax.apply_updates(params, updates), state

    of_flags = (None if flags is None else axis for flags in (frozen, rate))
    mapped = over_members(run, (axis, axis, axis, axis, *of_flags))
    params, state = mapped(parameters(block.params), block.state, gradients, square_norm, frozen, rate)
    return devices.shard(Trainable(params if statistics is None else params | {STATISTICS: statistics}, state), axis)
