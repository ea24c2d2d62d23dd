"""What training a genome costs, without training it: floating-point operations and bytes."""

import functools
import itertools
from typing import Any

import jax
import jax.extend as jex
import numpy as np
from jax import Array

from gafreeze_jax.engine import backprop, devices
from gafreeze_jax.engine.cache import Chunk, fetch
from gafreeze_jax.engine.cohort import Cohort, Genomes, Plan, Replicate, make_cohorts, untrained
from gafreeze_jax.engine.network import Axis, PyTree, num_bytes, parameters
from gafreeze_jax.engine.optimizer import masters
from gafreeze_jax.engine.passes import Borrowed, head_residuals
from gafreeze_jax.engine.population import Population
from gafreeze_jax.engine.step import Program, train_step
from gafreeze_jax.search.costs import StepFlops
from gafreeze_jax.space import Genome, as_genome


def flops_per_step(
    population: Population, genome: Genome | np.ndarray, replicate: Replicate, enter: int | None = None
) -> float:
    """Floating-point operations of a member's training step, as XLA counts them; loops of unknown length count once.

    Args:
      enter: the block from whose kept input it starts; default: the genome's lowest trainable one.
    """
    return sum(map(flops_of_piece, _pieces(population, genome, replicate, enter)))


def convolves(population: Population, genome: Genome, replicate: Replicate) -> bool:
    """Whether a member's training step leaves convolutions to XLA."""
    return any("conv_general_dilated" in str(piece) for piece in set(_pieces(population, genome, replicate)))


def _pieces(
    population: Population, genome: Genome | np.ndarray, replicate: Replicate, enter: int | None = None
) -> tuple[jex.core.ClosedJaxpr, ...]:
    """Those parts of a member's training step that are compiled by themselves."""
    plan = Plan(steps=1, remat=population.plan.remat)
    (cohort,) = make_cohorts(plan, population.space, untrained([as_genome(genome)]))
    program, *arguments = population.trainer.shapes(cohort, replicate, enter=enter)
    leaves, tree = jax.tree.flatten(arguments)
    return _pieces_of_step(program, tuple(leaves), tree)


@functools.cache  # genomes that freeze the same share a program, as they do where it is compiled
def _pieces_of_step(program: Program, leaves: tuple[jax.ShapeDtypeStruct, ...], tree: Any) -> tuple[jex.core.ClosedJaxpr, ...]:
    step = jax.make_jaxpr(functools.partial(train_step, program))(*tree.unflatten(leaves), 0, 0)
    pieces = (equation.params.get("jaxpr") for equation in step.eqns)
    return tuple(piece for piece in pieces if isinstance(piece, jex.core.ClosedJaxpr))


@functools.cache  # steps of different genomes share most pieces
def flops_of_piece(jaxpr: jex.core.ClosedJaxpr) -> float:
    """Floating-point operations of a program, as in `flops_per_step`."""
    analysis: Any = jax.jit(jex.core.jaxpr_as_fun(jaxpr)).lower(*jaxpr.in_avals).cost_analysis()
    return analysis.get("flops", 0.0) + _flops_of_repetitions(jaxpr.jaxpr)


def _flops_of_repetitions(jaxpr: jex.core.Jaxpr) -> float:
    """What loops of known length compute, but for the one time for which XLA counts the body in the compiled loop."""
    flops, read = 0.0, {atom for atom in jaxpr.outvars if isinstance(atom, jex.core.Var)}
    for equation in reversed(jaxpr.eqns):
        if read.isdisjoint(equation.outvars):
            continue  # XLA leaves it out
        read |= {atom for atom in equation.invars if isinstance(atom, jex.core.Var)}
        if equation.primitive.name == "scan":
            body, length, unrolled = (equation.params[name] for name in ("jaxpr", "length", "unroll"))
            counted = min(length, unrolled + length % unrolled)
            flops += (length - counted) * flops_of_piece(body) + counted * _flops_of_repetitions(body.jaxpr)
        else:
            flops += sum(map(_flops_of_repetitions, jex.core.jaxprs_in_params(equation.params)))
    return flops


def step_flops(population: Population, replicate: Replicate) -> StepFlops:
    """Floating-point operations of a training step of any genome, from XLA's counts for 3 G genomes."""
    space = population.space
    count = functools.partial(flops_per_step, population, replicate=replicate)
    above = [count(genome) for genome in space.prefixes()]
    only_frozen = space.masks(np.eye(space.num_genes, dtype=bool))
    spared = [0.0, *(above[0] - count(genome) for genome in only_frozen[1:])]
    entered = [count(space.all_frozen, enter=depth) for depth in range(space.num_genes)]
    return StepFlops(above, spared, [low - high for low, high in itertools.pairwise([*entered, above[-1]])])


def optimizer_bytes(population: Population, replicate: Replicate) -> dict[str, int]:
    """Bytes of the optimizer's state of each block and the head, where they train, by name."""
    dtype = population.network.master_dtype

    def init(name: str, tree: PyTree) -> PyTree:
        return population.recipe.of(name).init(masters(parameters(tree), dtype))

    params = population.params | {"head": replicate.head}
    return {name: num_bytes(jax.eval_shape(functools.partial(init, name), tree)) for name, tree in params.items()}


def bytes_of_cohort(population: Population, plan: Plan, genomes: Genomes, replicate: Replicate) -> int:
    """Memory that a cohort takes on a device, apart from what all members share.

    Counted are parameters, optimizer states, gradients and residuals: block by block from shapes. A plan of whole steps is
    compiled and asked: it may keep half of what blocks hand over (`benchmarks/tpu_compile.py`).

    Args:
      genomes: [N, G], at most as many as the plan has members.
    """
    (cohort,) = make_cohorts(plan, population.space, untrained(genomes))
    trained = jax.eval_shape(functools.partial(population.trainer.start, cohort, replicate))
    if plan.steps:
        program = population.trainer.trace(cohort, replicate, plan.steps).lower().compile()
        return num_bytes(trained) // cohort.num_shards + _bytes_beside_arguments(program)
    of_parts = _bytes_of_residuals(population, cohort, trained.params, replicate) // devices.num_shards(devices.DATA)
    held = functools.partial(_bytes_of_device, axis=cohort.axis)
    gradients, largest = held(trained.params), max(trained.params.values(), key=num_bytes)
    if replicate.batches.num_slices is not None:  # those of a block are there twice before they are added up
        gradients += held(largest)
    if devices.num_shards(devices.DATA) > 1:  # a block and its gradients are there in whole while it is run backwards
        gradients += 2 * (num_bytes(largest) - held(largest))
    return (held(trained) + gradients + of_parts) // cohort.num_shards


def _bytes_of_device(tree: PyTree, axis: Axis) -> int:
    """Of parameters, where devices that share a member hold parts of large ones."""
    return sum(num_bytes(leaf) // devices.num_parts(leaf, axis) for leaf in jax.tree.leaves(tree))


def _bytes_of_residuals(population: Population, cohort: Cohort, params: PyTree, replicate: Replicate) -> int:
    """Where blocks are recomputed: of their inputs, and of all that the largest one keeps while it is run backwards."""
    trainer, network = population.trainer, population.network
    boundary = trainer.activations.boundary(cohort.depth)
    chunk = trainer.activations.chunk_shape(boundary, replicate.batches)

    def residuals(remat: bool, params: PyTree, chunk: Chunk, key: Array) -> tuple[backprop.Chain, list[Array]]:
        """All that forward passes keep for the backward passes: those of the blocks, and of the head."""
        step = fetch(trainer.activations.per_example(boundary), chunk, 0, None if chunk.batches.num_slices is None else 0)
        all_params = trainer.pretrained | params
        forward = backprop.forward_chain(network, cohort.frozen, boundary, cohort.axis, remat=remat)
        chain = forward(all_params, step.x, step.context, key, cohort.gates)
        of_head = head_residuals(
            network=network,
            loss=trainer.loss,
            axes=(cohort.axis, cohort.axis if chain.residuals else None),
            params=params["head"],
            borrowed=Borrowed.of(network.shared, all_params, dict.fromkeys(params, cohort.axis)),
            step=step._replace(x=chain.x),
        )
        return chain, of_head

    def kept(remat: bool) -> tuple[backprop.Chain, list[Array]]:
        return jax.eval_shape(functools.partial(residuals, remat), params, chunk, replicate.key)

    largest = max(map(num_bytes, kept(False)[0].residuals.values()), default=0) if cohort.remat else 0
    return num_bytes(kept(cohort.remat)) + largest


def _bytes_beside_arguments(program: jax.stages.Compiled) -> int:
    """The most memory that a program takes on a device beside its arguments."""
    memory: Any = program.memory_analysis()
    if jax.default_backend() == "tpu":
        return memory.peak_memory_in_bytes - memory.argument_size_in_bytes
    # XLA:CPU leaves temporary memory out of its peak.
    return memory.temp_size_in_bytes + memory.output_size_in_bytes - memory.alias_size_in_bytes
