"""Trains a cohort: from pretrained or half-trained parameters to the parameters after a step."""

import functools
import math
from collections.abc import Callable, Iterable, Mapping

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array

from gafreeze_jax.engine import devices
from gafreeze_jax.engine.cache import Activations
from gafreeze_jax.engine.cohort import Cohort, Member, Replicate
from gafreeze_jax.engine.network import ALONE, Loss, Network, PyTree, parameters
from gafreeze_jax.engine.optimizer import Recipe, Trainable, start_block, start_blocks, start_blocks_in_one
from gafreeze_jax.engine.step import Program, Shared, differentiate, train_chunk, train_step


class CohortTrainer:
    """Trains cohorts of one network on one data set.

    Args:
      pretrained: parameters of the blocks, on the device.
      activations: of the training set.
    """

    def __init__(self, network: Network, recipe: Recipe, loss: Loss, *, pretrained: PyTree, activations: Activations):
        self.network, self.recipe, self.loss = network, recipe, loss
        self.pretrained, self.activations = pretrained, activations

    def start(self, cohort: Cohort, replicate: Replicate, steps: int = 0) -> Trainable:
        """Parameters that the cohort trains, and their optimizers' states, where its members stopped; may be donated.

        Args:
          steps: of one program; 0 = every block is started by itself.
        """
        if cohort.members[0].state is None:
            initial = {name: self.pretrained[name] for name in cohort.trained} | {"head": replicate.head}
            start = start_blocks_in_one if steps else start_blocks
            return start(self.recipe, cohort.axis, cohort.size, initial, dtype=self.network.master_dtype)
        return Trainable.of_blocks({name: self._restart(cohort, name) for name in (*cohort.trained, "head")})

    def _restart(self, cohort: Cohort, name: str) -> Trainable:
        """A block as the members have it that train it, and as pretrained for those that start to train it now."""
        start_late = functools.cache(functools.partial(self._start_late, name, cohort.members[0].steps))

        def of_member(member: Member) -> Trainable:
            state = member.state or {}
            return Trainable(member.params[name], state[name]) if name in state else start_late()

        return _stack(cohort, map(of_member, cohort.members))

    def _start_late(self, name: str, steps: int) -> Trainable:
        """Pretrained parameters of a block, and an optimizer state that has counted `steps`, which sets the learning rate."""
        of_block = self.pretrained[name]
        params, state = start_block(self.recipe.of(name), None, 1, of_block, dtype=self.network.master_dtype)

        def count(leaf: Array) -> Array:
            return jnp.full_like(leaf, steps) if jnp.issubdtype(leaf.dtype, jnp.integer) else leaf

        return Trainable(params, jax.tree.map(count, state))

    def fit(
        self,
        cohort: Cohort,
        replicate: Replicate,
        trained: Trainable,
        *,
        until: int,
        steps: int = 0,
        on_steps: Callable[[int], None] = lambda member_steps: None,
    ) -> tuple[Trainable, Array]:
        """Trains a cohort from where its members stopped to the step `until`.

        Args:
          trained: from `start`; donated.
          steps: of one program; 0 = block by block.
          on_steps: called with the number of member-steps since its last call.

        Returns:
          The same after these steps, and sums of losses.
        """
        done = first = cohort.members[0].steps
        boundary, inputs = self.activations.inputs(cohort.depth)
        program = self.program(cohort, boundary)
        batches = jax.tree.map(lambda leaf: leaf[first:until], replicate.batches)
        total: Array | None = None
        for chunk in self.activations.chunks(boundary, inputs, batches, steps or None):
            shared = Shared(self.pretrained, chunk, replicate.key, cohort.gates, cohort.rates)
            num_steps = len(chunk.batches.examples)
            for step in range(1 if steps else num_steps):
                if steps:
                    trained, loss = train_chunk(program, trained, shared, done)
                else:
                    with ALONE(True):
                        trained, loss = train_step(program, trained, shared, step, done + step)
                total = loss if total is None else total + loss
                on_steps((num_steps if steps else 1) * len(cohort.members))
            done += num_steps
        assert total is not None, "a cohort trains at least one step"
        return trained, total

    def program(self, cohort: Cohort, boundary: int) -> Program:
        return Program(
            network=self.network,
            loss=self.loss,
            recipe=self.recipe,
            frozen=cohort.frozen,
            start=boundary,
            per_example=self.activations.per_example(boundary),
            axis=cohort.axis,
            remat=cohort.remat,
            augment=self.activations.augment,
        )

    def trace(self, cohort: Cohort, replicate: Replicate, num_steps: int = 1) -> jax.stages.Traced:
        """Training steps as one program, for the mesh in context."""
        return train_chunk.trace(*self.shapes(cohort, replicate, num_steps), 0)

    def shapes(
        self, cohort: Cohort, replicate: Replicate, num_steps: int = 1, enter: int | None = None
    ) -> tuple[Program, Trainable, Shared]:
        """A program of training steps and the shapes of what it takes, for the mesh in context.

        Args:
          enter: the block from whose kept input the program starts; default: the cohort's lowest trainable one.
        """
        boundary = self.activations.boundary(cohort.depth if enter is None else enter)
        trained = jax.eval_shape(functools.partial(self.start, cohort, replicate))
        chunk = self.activations.chunk_shape(boundary, replicate.batches, num_steps)
        trained = devices.shapes(trained, lambda leaf: devices.spec_of(leaf, cohort.axis))
        pretrained = devices.shapes(self.pretrained, lambda leaf: devices.spec_of(leaf, None))
        chunk, key = devices.shapes((chunk, replicate.key))
        shared = Shared(pretrained, chunk, key, *jax.eval_shape(lambda: (cohort.gates, cohort.rates)))
        return self.program(cohort, boundary), trained, shared

    def relative_gradient_norms(self, cohort: Cohort, replicate: Replicate, until: int) -> dict[str, float]:
        """||gradients|| / ||parameters|| of each block that a cohort of one member trains; infinite if all parameters are 0.

        Args:
          until: gradient norms are means over the steps that follow, up to this one; none of them is trained.
        """
        (member,) = cohort.members
        boundary, inputs = self.activations.inputs(cohort.depth)
        program = self.program(cohort, boundary)
        batches = jax.tree.map(lambda leaf: leaf[member.steps : until], replicate.batches)
        norms: list[dict[str, Array]] = []
        for chunk in self.activations.chunks(boundary, inputs, batches):
            shared = Shared(self.pretrained, chunk, replicate.key, cohort.gates, cohort.rates)
            for step in range(len(chunk.batches.examples)):
                key = jax.random.fold_in(replicate.key, member.steps + len(norms))
                with ALONE(True):
                    gradients = differentiate(program, dict(member.params), shared, step, key).gradients
                norms.append({name: _norm(gradients[name]) for name in cohort.trained})
        relative = {}
        for name in cohort.trained:
            of_params = float(_norm(parameters(member.params[name])))
            mean = float(np.mean([of_step[name] for of_step in norms]))
            relative[name] = mean / of_params if of_params else math.inf
        return relative


_norm = jax.jit(optax.tree.norm)


def member_trees(
    cohort: Cohort, i: int, stacked: dict[str, PyTree], frozen: Mapping[str, PyTree], *, all_at_once: bool
) -> Mapping[str, PyTree]:
    """Member i of {block name: tree}: what it trains from `stacked`, which has the cohort's axis; the rest from `frozen`.

    Args:
      all_at_once: pick all blocks by one program that serves all masks, in place of one for each block.
    """
    trained = [name for name in stacked if not cohort.masks[i].get(name, False)]
    trees = {**frozen, **{name: stacked[name] for name in trained}}
    if cohort.axis is None:
        return trees
    if devices.num_shards() > 1:
        return devices.Slot(trees, i, trained)
    if all_at_once:
        picked = devices.pick(stacked, i)
        return trees | {name: picked[name] for name in trained}
    return trees | {name: devices.pick(trees[name], i) for name in trained}


def _stack(cohort: Cohort, trees: Iterable[PyTree]) -> PyTree:
    """A copy of the trees of a cohort's members, stacked along its member axis if it has one."""
    if cohort.axis is None:
        return jax.tree.map(jnp.array, *trees)
    if devices.num_shards() > 1:
        return devices.stack(trees, cohort.size)
    trees = list(trees)
    filled = [*trees, *[trees[-1]] * (cohort.size - len(trees))]
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *filled)
