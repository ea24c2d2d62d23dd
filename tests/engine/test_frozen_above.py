"""Frozen blocks above trained ones: gradients pass through them, and nothing else is done for them.

What a step costs then is in test_cost.py; that all masks train alike in test_population.py and test_rated_genomes.py.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import test_population as tasks
import test_rated_genomes as rated
import test_resnet

from gafreeze_jax.engine.backprop import value_and_grad
from gafreeze_jax.engine.cohort import Plan
from gafreeze_jax.engine.network import STATISTICS, Step, parameters
from gafreeze_jax.metrics import cross_entropy

pytestmark = pytest.mark.usefixtures("quick_compilation")

CONVOLUTIONAL = rated.with_head_as_gene(tasks.TASKS["convolutional"])
RESNET = rated.with_head_as_gene(test_resnet.small_task())
SUFFIXES = [(0, 1, 1, 1), (0, 0, 1, 1), (0, 0, 0, 1)]  # of four genes each, of which the last is the head


def first_step(task):
    *_, source, steps = task
    batch = jax.tree.map(lambda leaf: jnp.asarray(leaf[0]), steps)
    rows = (jnp.asarray(array)[batch.examples] for array in (source.data.inputs, source.data.targets))
    return Step(*rows, batch.weights, batch.context | {"weights": batch.weights})


def gradients_of(task, frozen, params=None):
    return value_and_grad(task[0], cross_entropy, [bool(gene) for gene in frozen])(params or task[1], first_step(task))


@pytest.mark.parametrize("frozen", SUFFIXES)
def test_gradients_pass_through_and_are_taken_of_no_frozen_weight(frozen):
    network, params, *_ = CONVOLUTIONAL
    step = first_step(CONVOLUTIONAL)

    def loss(params):
        losses = cross_entropy(tasks.apply_network(network, params, step.x, step, frozen, None), step.targets)
        return losses @ step.weights / step.weights.sum()

    expected, gradients = jax.grad(loss)(params), gradients_of(CONVOLUTIONAL, frozen).gradients
    trained = [name for name, gene in zip(network.names, frozen, strict=True) if not gene]
    assert sorted(gradients) == sorted([*trained, "head"])
    for name in trained:
        jax.tree.map(lambda *pair: np.testing.assert_allclose(*pair, rtol=1e-4, atol=1e-6), gradients[name], expected[name])


@pytest.mark.parametrize("plan", [Plan(), Plan(3), Plan(3, tasks.NUM_STEPS, "traced")], ids=str)
def test_no_optimizer_has_a_state_for_what_is_frozen_above(plan):
    names = CONVOLUTIONAL[0].names
    population = tasks.make_population(CONVOLUTIONAL, tasks.RECIPES["adamw"], plan=plan)
    for member in population.evaluate(SUFFIXES, tasks.make_run(CONVOLUTIONAL), until=2):
        trained = [name for name, gene in zip(names, member.genome, strict=True) if not gene]
        assert sorted(member.state) == sorted([*trained, "head"])
        for name in set(names) - set(trained):
            jax.tree.map(np.testing.assert_array_equal, member.params[name], CONVOLUTIONAL[1][name])


def with_other_statistics(name):
    """The ResNet's parameters, with other running statistics in a block."""
    tree = RESNET[1][name]
    return {**RESNET[1], name: {**tree, STATISTICS: jax.tree.map(lambda leaf: leaf + 0.5, tree[STATISTICS])}}


@pytest.mark.parametrize("frozen", SUFFIXES[:2])
def test_batch_normalisation_that_is_frozen_above_uses_running_statistics(frozen):
    usual = gradients_of(RESNET, frozen)
    for name, gene in zip(RESNET[0].names[:-1], frozen, strict=False):
        changed = gradients_of(RESNET, frozen, with_other_statistics(name))
        same = jax.tree.map(np.allclose, changed.gradients["stem"], usual.gradients["stem"])
        assert jax.tree.all(same) != bool(gene), name
    assert sorted(usual.statistics) == sorted(name for name, gene in zip(RESNET[0].names, frozen, strict=True) if not gene)


@pytest.mark.parametrize("plan", [Plan(), Plan(3), Plan(3, tasks.NUM_STEPS, "traced")], ids=str)
def test_batch_normalisation_that_is_frozen_above_leaves_its_statistics_alone(plan):
    population = tasks.make_population(RESNET, tasks.RECIPES["sgd"], plan=plan)
    for member in population.evaluate(SUFFIXES, tasks.make_run(RESNET)):
        for name, gene in zip(RESNET[0].names[:-1], member.genome, strict=False):
            pairs = zip(*(jax.tree.leaves(params[name][STATISTICS]) for params in (member.params, RESNET[1])), strict=True)
            assert {np.array_equal(*pair) for pair in pairs} == {bool(gene)}, name
            assert jax.tree.leaves(parameters(member.params[name]))
