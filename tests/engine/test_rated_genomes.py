"""Genomes with levels, a rate of all genes and a head that is a gene train as plain `optax.multi_transform` does.

The reference differentiates the whole network, and has an optimizer for each level, with a learning rate of its own. That they
train on several devices as on one is in test_devices.py.
"""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import test_cost
import test_population as tasks

from gafreeze_jax.engine import costs
from gafreeze_jax.engine.cohort import Plan, make_cohorts, untrained
from gafreeze_jax.engine.network import head_as_block
from gafreeze_jax.engine.optimizer import Recipe, adamw_recipe
from gafreeze_jax.metrics import cross_entropy
from gafreeze_jax.space import Space, as_genome

pytestmark = pytest.mark.usefixtures("quick_compilation")

HEAD = "classifier"
LEVELS, RATES = (1, 0, 0.5), (0.5, 1)


def small_task():
    """A convolution, a dense layer, and the head as the third gene."""
    network, params, source, steps = tasks.TASKS["convolutional"]
    low, _, dense = network.blocks
    return with_head_as_gene(
        (network._replace(blocks=(low, dense)), {name: params[name] for name in ("low", "dense", "head")}, source, steps)
    )


def with_head_as_gene(task):
    network, params, source, steps = task
    return head_as_block(network, HEAD), {**params, HEAD: params["head"], "head": {}}, source, steps


TASK = small_task()
TASKS = {"small": TASK, "bert": with_head_as_gene(tasks.TASKS["bert"])}
SPACE = Space(TASK[0].names, LEVELS, RATES, head="kept")
ALL = SPACE.unique(SPACE.all_genomes().tolist())


def make_adamw(rate):
    return adamw_recipe(learning_rate=3e-3 * rate, head_learning_rate=1.0, num_steps=tasks.NUM_STEPS)._replace(max_norm=0.5)


def make_momentum(rate):
    return Recipe(optax.sgd(0.1 * rate, momentum=0.9), optax.sgd(1.0), max_norm=math.inf)


def make_lion(rate):
    return Recipe(optax.lion(1e-3 * rate, weight_decay=0.1), optax.lion(1.0), max_norm=0.3)


RECIPES = {"adamw": make_adamw, "momentum": make_momentum, "lion": make_lion}


@functools.cache
def gradients_of(name, frozen):
    """A compiled function from parameters, a batch and a key to gradients of the whole network."""
    network, _, source, _ = TASKS[name]

    def loss(params, batch, key):
        x = jax.tree.map(lambda leaf: jnp.asarray(leaf)[batch.elements], source.data.inputs)
        losses = cross_entropy(
            tasks.apply_network(network, params, x, batch, frozen, key), jnp.asarray(source.data.targets)[batch.examples]
        )
        return losses @ batch.weights / batch.weights.sum()

    return jax.jit(jax.grad(loss))


def plain_run(name, make_recipe, rates):
    """Parameters after training blocks at multiples of the learning rate, by one optimizer for each of these."""
    network, params, _, steps = TASKS[name]
    labels = {block: str(rate) for block, rate in zip(network.names, rates, strict=True)} | {"head": "1.0"}
    held = {block: label == "0.0" for block, label in labels.items()}
    of_level = {str(rate): make_recipe(rate).body if rate else optax.set_to_zero() for rate in {1.0, *map(float, rates)}}
    tx = optax.chain(
        optax.masked(optax.set_to_zero(), held),
        optax.clip_by_global_norm(make_recipe(1).max_norm),
        optax.multi_transform(of_level, labels),
    )
    params = jax.tree.map(jnp.asarray, params)
    state = tx.init(params)
    for i in range(tasks.NUM_STEPS):
        batch = jax.tree.map(lambda leaf, i=i: jnp.asarray(leaf[i]), steps)
        key = jax.random.fold_in(jax.random.key(7), i)
        gradients = gradients_of(name, tuple(rate == 0 for rate in rates))(params, batch, key)
        updates, state = tx.update(gradients, state, params)
        params = optax.apply_updates(params, updates)
    return params


def multipliers(genome, space=SPACE):
    return tuple(space.multipliers(genome).tolist())


@pytest.fixture(scope="module", params=RECIPES)
def case(request):
    """How a member is trained, and the reference parameters by what updates are multiplied by."""
    make_recipe = RECIPES[request.param]
    return make_recipe(1), {rates: plain_run("small", make_recipe, rates) for rates in set(map(multipliers, ALL))}


def assert_same_training(member, expected):
    trees = dict(member.params), expected, TASK[1]
    tasks.assert_same_params(SPACE.names, SPACE.frozen(member.genome), *trees, rtol=2e-4, atol=2e-5)


PLANS = {
    "alone": Plan(),
    "stacked": Plan(members=5),
    "static, in one": Plan(steps=tasks.NUM_STEPS),
    "traced, all members, in one": Plan(len(ALL), tasks.NUM_STEPS, "traced"),
}


@pytest.mark.parametrize("plan", PLANS)
def test_every_genome_trains_as_by_one_optimizer_for_each_level(case, plan):
    recipe, expected = case
    members = list(tasks.make_population(TASK, recipe, plan=PLANS[plan], space=SPACE).evaluate(ALL, tasks.make_run(TASK)))
    assert {member.genome for member in members} == set(map(as_genome, ALL))
    assert len(members) == 53  # 27 levels at 2 rates, and what trains nothing has none
    for member in members:
        assert_same_training(member, expected[multipliers(member.genome)])


def test_the_reference_moves_by_level(case):
    """Else the test before could not fail."""
    _, expected = case
    moved = [np.abs(expected[rate, 0.0, 0.0]["low"]["kernel"] - TASK[1]["low"]["kernel"]).mean() for rate in (0.25, 0.5, 1.0)]
    assert np.all(np.diff([0, *moved]) > 1e-4)


def test_a_member_that_was_stopped_goes_on_at_its_rates(case):
    recipe, expected = case
    population, run = tasks.make_population(TASK, recipe, plan=Plan(5), space=SPACE), tasks.make_run(TASK)
    members = list(population.evaluate(ALL, run, until=2))
    for member in population.resume(members[::3], run):
        assert_same_training(member, expected[multipliers(member.genome)])


def test_genomes_of_a_network_with_dropout():
    task, space = TASKS["bert"], Space(TASKS["bert"][0].names, LEVELS, RATES, head="kept")
    genomes = [space.parse(text) for text in ("2102@1", "0211@0.5")]
    expected = {genome: plain_run("bert", make_adamw, multipliers(genome, space)) for genome in genomes}
    for plan in (Plan(2), Plan(2, tasks.NUM_STEPS, "traced")):
        population = tasks.make_population(task, make_adamw(1), plan=plan, space=space)
        for member in population.evaluate(genomes, tasks.make_run(task)):
            trees = dict(member.params), expected[member.genome], task[1]
            tasks.assert_same_params(space.names, space.frozen(member.genome), *trees, rtol=2e-4, atol=2e-5)


# Rates of 1 and 1/2

MASKS = Space(SPACE.names, head="kept")


@pytest.fixture
def usual_compilation(quick_compilation):
    """That joins products and sums, which then round together."""
    jax.config.update("jax_disable_most_optimizations", False)
    yield
    jax.config.update("jax_disable_most_optimizations", True)


def train_alone(recipe, genome, space, change=lambda cohort: cohort):
    population, run = tasks.make_population(TASK, recipe, space=space), tasks.make_run(TASK)
    (cohort,) = make_cohorts(population.plan, space, untrained([genome]))
    cohort = change(cohort)
    trained, _ = population.trainer.fit(cohort, run, population.trainer.start(cohort, run), until=tasks.NUM_STEPS)
    return trained.params


def without_rates(cohort):
    return cohort._replace(rates={})


@pytest.mark.parametrize("levels", ["000", "010", "001"])
@pytest.mark.parametrize("name", RECIPES)
def test_a_rate_of_1_everywhere_is_training_without_rates_to_the_bit(name, levels):
    recipe = RECIPES[name](1)
    plain = train_alone(recipe, MASKS.parse(levels), MASKS, without_rates)
    jax.tree.map(np.testing.assert_array_equal, train_alone(recipe, SPACE.parse(f"{levels}@1"), SPACE), plain)


@pytest.mark.usefixtures("usual_compilation")
@pytest.mark.parametrize("name", RECIPES)
def test_masks_train_without_rates_to_the_bit_also_where_products_and_sums_are_joined(name):
    recipe = RECIPES[name](1)
    plain = train_alone(recipe, MASKS.all_trained, MASKS, without_rates)
    jax.tree.map(np.testing.assert_array_equal, train_alone(recipe, MASKS.all_trained, MASKS), plain)
    by_rate = train_alone(recipe, SPACE.all_trained, SPACE)
    jax.tree.map(lambda *pair: np.testing.assert_allclose(*pair, rtol=1e-5, atol=1e-6), by_rate, plain)


@pytest.mark.parametrize("levels", ["000", "100", "001"])
@pytest.mark.parametrize("name", RECIPES)
def test_a_rate_of_one_half_is_half_the_learning_rate_to_the_bit(name, levels):
    by_rate = train_alone(RECIPES[name](1), SPACE.parse(f"{levels}@0.5"), SPACE)
    by_recipe = train_alone(RECIPES[name](0.5), MASKS.parse(levels), MASKS)
    jax.tree.map(np.testing.assert_array_equal, by_rate, by_recipe)


# What rates cost


@pytest.mark.parametrize("plan", [Plan(), Plan(5), Plan(len(ALL), tasks.NUM_STEPS, "traced")], ids=str)
def test_a_population_of_mixed_rates_compiles_what_its_zeros_do(plan):
    population, run = tasks.make_population(TASK, make_adamw(1), plan=plan, space=SPACE), tasks.make_run(TASK)
    zeros = SPACE.masks(np.asarray(SPACE.frozen(ALL)))
    list(population.evaluate(zeros, run))
    compiled = [function._cache_size() for function in test_cost.COMPILED]
    assert sum(compiled)
    list(population.evaluate(ALL, run))
    assert [function._cache_size() for function in test_cost.COMPILED] == compiled


def test_a_genome_costs_what_its_zeros_do():
    population, run = tasks.make_population(TASK, make_adamw(1), space=SPACE), tasks.make_run(TASK)
    for text in ("202@0.5", "022@1", "222@0.5"):
        genome = SPACE.parse(text)
        (zeros,) = SPACE.masks(np.asarray(SPACE.frozen(genome))[None])
        assert costs.flops_per_step(population, genome, run) == costs.flops_per_step(population, zeros, run)
