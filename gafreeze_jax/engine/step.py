"""A training step of a cohort: fetch the batch, differentiate, update; block by block, or many steps in one program."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from gafreeze_jax.engine import backprop
from gafreeze_jax.engine.backprop import Gradients
from gafreeze_jax.engine.cache import Chunk, fetch
from gafreeze_jax.engine.network import INPUTS, STATISTICS, Axis, Loss, Network, PyTree
from gafreeze_jax.engine.optimizer import Recipe, Trainable, update_block

AUGMENTATION = 2**31 - 1  # folded into a step's key, as the blocks' indices are
Augment = Callable[[Array, PyTree], PyTree]


class Program(NamedTuple):
    """What is static about training a cohort.

    Attributes:
      frozen: see `backprop.value_and_grad`.
      start: the block that the inputs enter.
      per_example: whether these inputs have a row for each example.
      axis: of the members.
      remat: see `Plan`.
    """

    network: Network
    loss: Loss
    recipe: Recipe
    frozen: tuple[bool | None, ...]
    start: int
    per_example: bool
    axis: Axis
    remat: bool
    augment: Augment | None


class Shared(NamedTuple):
    """What all members of a cohort share.

    Attributes:
      pretrained: parameters of all blocks.
      chunk: some steps.
      key: for dropout and augmentation.
      gates: see `backprop.value_and_grad`.
      rates: by what the updates of the blocks that train are multiplied, by name: [members], or scalars without members.
    """

    pretrained: PyTree
    chunk: Chunk
    key: Array
    gates: dict[str, Array]
    rates: dict[str, Array]


@functools.partial(jax.jit, static_argnums=0)
def _augment(augment: Augment, key: Array, x: PyTree) -> PyTree:
    return augment(jax.random.fold_in(key, AUGMENTATION), x)


def differentiate(program: Program, params: PyTree, shared: Shared, step: Any, key: Array) -> Gradients:
    """Loss and gradients of a step, added up over its slices if it is cut.

    Each slice has its own dropout. Running statistics move with each.

    Args:
      params: of the blocks that train, and the head.
      step: its number in the chunk.
      key: of this step.
    """
    num = shared.chunk.batches.num_slices
    if num is None:
        return _differentiate_slice(program, params, shared, (step, None), key)
    so_far = None
    for part, of_slice in enumerate(jax.random.split(key, num)):
        so_far = _differentiate_slice(program, params, shared, (step, part), of_slice, so_far)
        params = params | {name: params[name] | {STATISTICS: new} for name, new in so_far.statistics.items()}
    assert so_far is not None
    return so_far


def _differentiate_slice(
    program: Program, params: PyTree, shared: Shared, place: tuple[Any, int | None], key: Array, so_far: Gradients | None = None
) -> Gradients:
    batch = fetch(program.per_example, shared.chunk, *place)
    if program.augment is not None:
        x = _augment(program.augment, key, batch.x)
        batch = batch._replace(x=x, context=batch.context | ({INPUTS: x} if program.network.reads_inputs else {}))
    gradients_for = backprop.value_and_grad(
        program.network, program.loss, program.frozen, start=program.start, axis=program.axis, remat=program.remat
    )
    return gradients_for(shared.pretrained | params, batch, key, shared.gates, so_far)


def train_step(program: Program, trained: Trainable, shared: Shared, step: Any, number: Any) -> tuple[Trainable, Array]:
    """One step: parameters and optimizer states, and losses [members].

    Args:
      trained: donated, block by block.
      step: its number in the chunk.
      number: its number in the whole run.
    """
    key = jax.random.fold_in(shared.key, number)
    loss, gradients, square_norm, statistics = differentiate(program, trained.params, shared, step, key)
    updated = {
        name: update_block(
            tx=program.recipe.of(name),
            max_norm=program.recipe.max_norm,
            axis=program.axis,
            block=Trainable(trained.params[name], trained.state[name]),
            gradients=gradients.pop(name),  # frees each block's as soon as it is used
            square_norm=square_norm,
            frozen=shared.gates.get(name),
            rate=shared.rates.get(name),
            statistics=statistics.pop(name, None),
        )
        for name in trained.params
    }
    return Trainable.of_blocks(updated), loss


@functools.partial(jax.jit, static_argnames=("program",), donate_argnames=("trained",))
def train_chunk(program: Program, trained: Trainable, shared: Shared, first: int) -> tuple[Trainable, Array]:
    """All steps of a chunk as one program, of which the first has the number `first` in the run; losses are summed."""

    def body(step, carry):
        trained, total = carry
        trained, loss = train_step(program, trained, shared, step, first + step)
        return trained, total + loss

    members = () if program.axis is None else jax.tree.leaves(trained)[0].shape[:1]
    return jax.lax.fori_loop(0, len(shared.chunk.batches.examples), body, (trained, jnp.zeros(members)))
