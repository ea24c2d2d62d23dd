"""Models of which only a function is known train like the plain static `optax.multi_transform` run."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from etils import epath
from test_population import ALL_MASKS, NUM_CLASSES, NUM_EXAMPLES

from gafreeze_jax import masking
from gafreeze_jax.data.batches import balanced_batches, in_order, make_batches
from gafreeze_jax.engine import planning
from gafreeze_jax.engine.cache import Budget
from gafreeze_jax.engine.cohort import Plan, Replicate
from gafreeze_jax.engine.costs import flops_per_step
from gafreeze_jax.engine.network import Block, Dataset, Network, Source
from gafreeze_jax.engine.optimizer import Recipe
from gafreeze_jax.engine.population import Population
from gafreeze_jax.engine.prefix import frozen_prefix, value_and_grad
from gafreeze_jax.metrics import ACCURACY, cross_entropy
from gafreeze_jax.models import from_function
from gafreeze_jax.options import Options
from gafreeze_jax.report.display import Display
from gafreeze_jax.runs.run_dir import RunDir
from gafreeze_jax.runs.search_run import make_settings, run_search
from gafreeze_jax.space import as_genome
from gafreeze_jax.tasks.base import make_problem

pytestmark = pytest.mark.usefixtures("quick_compilation")

RNG = np.random.default_rng(0)
normal = lambda *shape: RNG.normal(size=shape).astype(np.float32) / 3  # noqa: E731
PARAMS = {
    "first": (normal(5, 6), normal(6)),
    "stack": {"kernel": normal(2, 6, 6), "bias": normal(2, 6)},
    "last": normal(6, NUM_CLASSES),
}
GENES = masking.make_genes(PARAMS, {"first/.*": "first", "stack/.*": masking.Stacked("layer_{}"), "last": None})
DATA = Dataset(
    {"x": normal(NUM_EXAMPLES, 5), "shift": RNG.integers(0, 3, NUM_EXAMPLES).astype(np.int32)},
    RNG.integers(0, NUM_CLASSES, NUM_EXAMPLES).astype(np.int32),
)
STEPS = balanced_batches(RNG, np.ones(NUM_EXAMPLES), 8, 2)
RECIPE = Recipe(optax.adamw(3e-3), optax.adamw(1e-2), max_norm=0.2)


def apply(params, inputs, key):
    kernel, bias = params["first"]
    x = jnp.tanh(inputs["x"] @ kernel + bias[None])
    if key is not None:  # noise, in place of dropout
        x += 0.1 * jax.random.normal(key, x.shape)
    for i in range(2):
        x = jnp.tanh(x @ params["stack"]["kernel"][i] + params["stack"]["bias"][i][None])
    return x @ params["last"] + inputs["shift"][:, None]


def plain_run(genome, key_of_step):
    tx = optax.chain(
        optax.clip_by_global_norm(RECIPE.max_norm),
        optax.multi_transform(
            {"body": RECIPE.body, "head": RECIPE.head},
            functools.partial(jax.tree_util.tree_map_with_path, lambda path, _: "head" if path[0].key == "last" else "body"),
        ),
    )
    tx = masking.freeze(tx, GENES, genome)
    params = jax.tree.map(jnp.asarray, PARAMS)
    state = tx.init(params)
    for i, examples in enumerate(STEPS):
        key = key_of_step(jax.random.fold_in(jax.random.key(3), i), genome)
        rows = examples[examples >= 0]  # those that fill the batch up come first, and draw noise as well

        def loss(params, examples=examples, rows=rows, key=key):
            inputs = jax.tree.map(lambda leaf: leaf[examples], DATA.inputs)
            return cross_entropy(apply(params, inputs, key)[-len(rows) :], DATA.targets[rows]).mean()

        updates, state = tx.update(jax.grad(loss)(params), state, params)
        params = optax.apply_updates(params, updates)
    return params


def key_of_head(key, genome):
    return jax.random.fold_in(key, len(GENES))


def key_of_first_block(key, genome):
    """Noise is drawn in the block of the first gene, unless that is frozen."""
    return None if genome[0] else jax.random.fold_in(jax.random.fold_in(key, 0), 0)


@functools.cache
def expected(key_of_step):
    return {tuple(genome): plain_run(genome, key_of_step) for genome in ALL_MASKS}


NETWORK = from_function.make_network(apply, GENES)
KEYS = {"one piece": key_of_head, "cut": key_of_first_block}
PLANS = [Plan(), Plan(members=3), Plan(1, len(STEPS)), Plan(1, 1, "traced"), Plan(8, len(STEPS), "traced")]


@functools.cache
def make_network(kind):
    example = jax.tree.map(lambda leaf: leaf[:3], DATA.inputs)
    return NETWORK if kind == "one piece" else from_function.cut(apply, PARAMS, GENES, example)


def make_population(plan, kind="one piece", budget=None):
    source = Source(DATA, make_batches(in_order(NUM_EXAMPLES, 8)))
    params = from_function.split(PARAMS, GENES)
    return Population(
        make_network(kind), params, RECIPE, source, source, loss=cross_entropy, metric=ACCURACY, plan=plan, budget=budget
    )


RUN = Replicate(from_function.split(PARAMS, GENES)["head"], make_batches(STEPS), jax.random.key(3))


@pytest.mark.parametrize("kind", KEYS)
@pytest.mark.parametrize("plan", PLANS, ids=str)
def test_every_mask_trains_like_the_plain_run(plan, kind):
    check_members(make_population(plan, kind), kind)


@pytest.mark.parametrize("budget", [Budget(0, 10**6), Budget(2500, 10**6)], ids=str)
def test_a_cut_network_trains_from_the_hosts_memory(budget):
    """Inputs, which the head reads, and activations do not fit the device; or only activations of some blocks do."""
    check_members(make_population(Plan(), "cut", budget), "cut")


def check_members(population, kind):
    members = list(population.evaluate(ALL_MASKS, RUN))
    assert len(members) == len(ALL_MASKS)
    for member in members:
        params = from_function.join(member.params, GENES)
        frozen = masking.frozen_tree(member.genome, GENES)
        for ours, theirs, start, held in zip(
            *map(jax.tree.leaves, (params, expected(KEYS[kind])[tuple(member.genome)], PARAMS, frozen)), strict=True
        ):
            held = np.broadcast_to(held, start.shape)
            np.testing.assert_allclose(ours, theirs, rtol=2e-4, atol=2e-5)
            np.testing.assert_array_equal(np.asarray(ours)[held], start[held])
            assert not np.any(np.asarray(ours)[~held] == start[~held])
        logits = apply(params, DATA.inputs, None)
        assert member.score == pytest.approx(np.mean(logits.argmax(-1) == DATA.targets))


def test_frozen_parameters_cost_no_weight_gradient():
    members = make_population(Plan())
    everything, top = (flops_per_step(members, genome, RUN) for genome in ((0, 0, 0), (1, 1, 0)))
    assert top < 0.8 * everything


def test_a_program_for_each_mask_is_not_the_first_plan():
    work = planning.Work(7, 24, 24, 60, 8, tiny=False, large=True, num_cores=2, in_blocks=False)
    assert planning.candidates(work)[0] == Plan(1, 1, "traced")
    assert planning.candidates(work._replace(num_cores=0))[0] == Plan(8, 24, "traced")
    static = planning.Trial(Plan(), compile_seconds=30, num_timed=3, step_seconds=0.1)
    assert work.seconds(static) == pytest.approx(57 * 10 + 60 * 24 * 0.1)


def test_a_search_in_a_few_lines(tmp_path):
    plan = "members=4,steps=3,freezing=traced"
    options = Options(gens=1, population=3, epochs=1, batch_size=8, finalist_seeds=2, halving=False, plan=plan)
    task = make_problem(NETWORK, from_function.split(PARAMS, GENES), DATA, DATA, options, genes=GENES)
    space = task.space(options)
    with Display(space) as display:
        result = run_search(task, options, RunDir(epath.Path(tmp_path), space.facts()), display)
    names = [finalist.name for finalist in result.baselines]
    schedules = ["train all, half rate", "train all, quarter rate"]
    masks = ["train all", "head only", "best prefix mask", "best suffix mask"]
    assert names == [*masks, *schedules]
    for finalist in (result.found, *result.baselines):
        assert len(finalist.members) == 2
        assert {as_genome(member.genome) for member in finalist.members} == {finalist.genome}
    trainable = {one.genome: one.trainable_parameters for one in result.evaluations}
    for genome, num in trainable.items():
        assert num == masking.count_trainable(PARAMS, GENES, genome)
    assert len((tmp_path / "evaluations.csv").read_text().splitlines()) == 1 + len(result.evaluations)


def test_inputs_and_targets_must_be_equally_many():
    bad = DATA._replace(targets=DATA.targets[:-1])
    with pytest.raises(ValueError, match="validation: expected a row of inputs for each of 19 targets, got 20, 20"):
        make_problem(NETWORK, from_function.split(PARAMS, GENES), DATA, bad, Options(), genes=GENES)


@pytest.mark.parametrize("name", ["head", "always"])
def test_names_that_are_taken(name):
    genes = masking.make_genes({"a": np.ones(2)}, {"a": name})
    with pytest.raises(ValueError, match=f"cannot be called {name}"):
        from_function.split({"a": np.ones(2)}, genes)
    with pytest.raises(ValueError, match=f"cannot be called {name}"):
        from_function.in_order_of_use(lambda params, x: x * params["a"], {"a": np.ones(2)}, genes, np.ones((3, 2)))


def test_augmented_inputs_enter_the_lowest_block_of_every_member():
    """With an augmentation that changes nothing training is as without; with another one, even a frozen bottom sees it."""
    layer = lambda params, x, context, *, frozen, key: jnp.tanh(x @ params)  # noqa: E731
    linear = lambda params, x, context, *, frozen, key: x @ params  # noqa: E731
    network = Network((Block("low", layer), Block("high", layer)), linear)
    params = {"low": normal(5, 6), "high": normal(6, 6), "head": normal(6, NUM_CLASSES)}
    data = Dataset(DATA.inputs["x"], DATA.targets)
    plain = Source(data, make_batches(in_order(NUM_EXAMPLES, 8)))
    run = Replicate(params["head"], make_batches(STEPS), jax.random.key(3))

    def train(augment):
        train = plain._replace(augment=augment)
        population = Population(network, params, RECIPE, train, plain, loss=cross_entropy, metric=ACCURACY)
        return {member.genome: member.params for member in population.evaluate([(1, 0), (0, 0)], run)}

    without, same, other = map(train, (None, lambda key, x: x + 0, lambda key, x: x + jax.random.normal(key, x.shape)))
    for genome in without:
        jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-5), without[genome], same[genome])
        assert not np.allclose(without[genome]["high"], other[genome]["high"])
    np.testing.assert_array_equal(other[1, 0]["low"], params["low"])


@pytest.mark.parametrize(
    ("num_steps", "changes", "rungs"),
    [
        (64, {}, (16, 32, 64)),
        (40, {}, (20, 40)),
        (20, {}, (20,)),
        (64, {"halving": False}, (64,)),
        (64, {"objective": "pareto"}, (64,)),
    ],
)
def test_members_are_not_scored_too_early(num_steps, changes, rungs):
    assert make_settings(Options(**changes), num_steps).rungs == rungs


CHAIN = {"a": np.eye(4, dtype=np.float32), "b": np.ones((4, 4), np.float32), "c": np.ones((4, 2), np.float32)}
OF_CHAIN = masking.make_genes(CHAIN, {"a": "a", "b": "b", "c": None})
ROWS = np.random.default_rng(3).normal(size=(6, 4)).astype(np.float32)
OWN_KEY = jax.random.key(7)


@pytest.mark.parametrize("own_key", [lambda: jax.random.key(0), lambda: jax.random.PRNGKey(0), lambda: OWN_KEY])
def test_keys_that_a_function_makes_itself_stay_as_they_are(own_key):
    """A fixed random projection, beside dropout."""

    def apply(params, x, key=None):
        x = jnp.tanh(x @ params["a"]) @ jax.random.normal(own_key(), (4, 4))
        x = x if key is None else x * jax.random.bernoulli(key, 1.0, x.shape)
        return x @ params["b"] @ params["c"]

    network = from_function.cut(apply, CHAIN, OF_CHAIN, ROWS[:4])
    params, targets, loss = from_function.split(CHAIN, OF_CHAIN), np.zeros(6, np.int32), cross_entropy
    expected = loss(apply(CHAIN, ROWS), targets).mean()
    cached = frozen_prefix(network, params, [1, 1]).cache(ROWS)
    np.testing.assert_allclose(value_and_grad(network, [1, 1], loss)(params, cached, targets).loss, expected, rtol=1e-5)
    for seed in range(2):
        trained = value_and_grad(network, [0, 0], loss)(params, ROWS, targets, jax.random.key(seed))
        np.testing.assert_allclose(trained.loss, expected, rtol=1e-5)


def test_a_loop_of_unknown_length_may_lie_below_what_trains():
    def apply(params, x):
        halved = jax.vmap(lambda row: jax.lax.while_loop(lambda h: jnp.abs(h).max() > 1, lambda h: h / 2, row))
        return halved(x @ params["a"]) @ params["b"] @ params["c"]

    network = from_function.cut(apply, CHAIN, OF_CHAIN, ROWS[:4])
    found = value_and_grad(network, [1, 0], cross_entropy)(from_function.split(CHAIN, OF_CHAIN), ROWS, np.zeros(6, np.int32))
    np.testing.assert_allclose(found.loss, cross_entropy(apply(CHAIN, ROWS), np.zeros(6, np.int32)).mean(), rtol=1e-5)


@pytest.mark.parametrize(
    ("apply", "inputs", "message"),
    [
        (lambda params, x: None, ROWS, "the function must give one array of outputs, got None"),
        (lambda params, x: x["u"] @ params["a"], {"u": ROWS, "v": 2.0}, "inputs must be arrays .* close over single numbers"),
        (lambda params, x: params["a"], {}, "inputs must be arrays"),
    ],
)
def test_functions_that_cannot_be_cut(apply, inputs, message):
    with pytest.raises(ValueError, match=message):
        from_function.cut(apply, CHAIN, OF_CHAIN, inputs)


def test_no_rows_are_no_prefix():
    network = from_function.cut(lambda params, x: x @ params["a"] @ params["b"] @ params["c"], CHAIN, OF_CHAIN, ROWS)
    with pytest.raises(ValueError, match="expected inputs of one example or more, got none"):
        frozen_prefix(network, from_function.split(CHAIN, OF_CHAIN), [1, 0]).cache(ROWS[:0])
