"""However a member is trained, its trajectory is that of the plain static `optax.multi_transform` run."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from gafreeze_jax import masking
from gafreeze_jax.data import tokens
from gafreeze_jax.data.batches import balanced_batches
from gafreeze_jax.engine.cache import Activations, Budget, fetch
from gafreeze_jax.engine.cohort import Plan, Replicate
from gafreeze_jax.engine.network import ALONE, Batch, Block, Dataset, Network, Source
from gafreeze_jax.engine.optimizer import Recipe, adamw_recipe
from gafreeze_jax.engine.population import Population
from gafreeze_jax.engine.scoring import score
from gafreeze_jax.metrics import ACCURACY, cross_entropy
from gafreeze_jax.models import base, bert

pytestmark = pytest.mark.usefixtures("quick_compilation")

ALL_MASKS = np.array(list(np.ndindex(2, 2, 2)), bool)
NUM_EXAMPLES, NUM_CLASSES = 20, 3
QUICK = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}  # as `quick_compilation`


def bert_task():
    """A random BERT of three genes with dropout, and texts of 3 to 12 random tokens."""
    config = bert.BertConfig(
        vocab_size=40, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32, initializer_range=0.3
    )
    model = base.Model(bert.FAMILY, config, num_classes=NUM_CLASSES)
    params = jax.jit(model.init_params, compiler_options=QUICK)(jax.random.key(0))
    rng = np.random.default_rng(0)
    lengths = rng.integers(3, 13, NUM_EXAMPLES)
    inputs = {
        "ids": rng.integers(0, 40, lengths.sum()).astype(np.int32),
        "positions": np.concatenate([np.arange(n) for n in lengths]).astype(np.int32),
        "types": np.zeros(lengths.sum(), np.int32),
    }
    texts = tokens.Tokens(inputs, np.cumsum(lengths) - lengths, lengths)
    targets = rng.integers(0, NUM_CLASSES, NUM_EXAMPLES).astype(np.int32)
    steps = tokens.pack_batches(texts, balanced_batches(rng, lengths, 8, num_epochs=2))
    source = Source(Dataset(inputs, targets), tokens.scoring_batches(texts))
    return model.make_network(), params, source, steps


def convolutional_task():
    """Two convolutions and a dense layer on 8 x 8 images."""

    def convolve(params, x, context, *, frozen, key):
        x = jax.lax.conv_general_dilated(x, params["kernel"], (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
        return jax.nn.relu(x + params["bias"][None, None, None])

    def dense(params, x, context, *, frozen, key):
        return jnp.tanh(x.reshape(len(x), -1) @ params["kernel"] + params["bias"][None])

    def head(params, x, context, *, frozen, key):
        return x @ params["kernel"] + params["bias"][None]

    rng = np.random.default_rng(1)

    def layer(*shape):
        kernel = rng.normal(size=shape) / np.sqrt(np.prod(shape[:-1]))
        return {"kernel": kernel.astype(np.float32), "bias": rng.normal(size=shape[-1]).astype(np.float32)}

    params = {"low": layer(3, 3, 1, 4), "high": layer(3, 3, 4, 4), "dense": layer(256, 8), "head": layer(8, NUM_CLASSES)}
    network = Network((Block("low", convolve), Block("high", convolve), Block("dense", dense)), head)
    images = rng.normal(size=(NUM_EXAMPLES, 8, 8, 1)).astype(np.float32)
    targets = rng.integers(0, NUM_CLASSES, NUM_EXAMPLES).astype(np.int32)
    as_batch = lambda examples: Batch(examples.astype(np.int32), examples.astype(np.int32), {})  # noqa: E731
    equal = np.ones(NUM_EXAMPLES)
    source = Source(Dataset(images, targets), as_batch(balanced_batches(rng, equal, 8)))
    return network, params, source, as_batch(balanced_batches(rng, equal, 8, num_epochs=2))


def with_a_block_without_parameters(task):
    network, params, *others = task
    low, *blocks = network.blocks
    pass_on = Block("activation", lambda params, x, context, *, frozen, key: jnp.sin(x))
    return network._replace(blocks=(low, pass_on, *blocks)), {**params, "activation": {}}, *others


TASKS = {"bert": bert_task(), "convolutional": convolutional_task()}
NUM_STEPS = 6
RECIPES = {
    "adamw": adamw_recipe(learning_rate=3e-3, head_learning_rate=1e-2, num_steps=NUM_STEPS)._replace(max_norm=0.5),
    "sgd": Recipe(optax.sgd(0.1, momentum=0.9), optax.sgd(0.2), max_norm=math.inf),
    "lion": Recipe(optax.lion(1e-3, weight_decay=0.1), optax.lion(3e-3), max_norm=0.3),
}


def apply_network(network, params, x, batch, genome, key, statistics=None):
    """The network's output. New running statistics, where there are some, are put into the dict `statistics`."""
    for index, (block, frozen) in enumerate(zip(network.blocks, genome, strict=True)):
        if block.apply is None:
            continue
        block_key = None if key is None else jax.random.fold_in(key, index)
        read = params[block.name] | {name: params[name] for name in block.shared}
        x = block.apply(read, x, batch.context, frozen=bool(frozen), key=block_key)
        if isinstance(x, tuple):
            x, statistics[block.name] = x
    head_key = None if key is None else jax.random.fold_in(key, len(network.blocks))
    head = params["head"] | {name: params[name] for name in network.shared}
    return network.head(head, x, batch.context, frozen=key is None, key=head_key)


def plain_run(task, recipe, genome):
    """The reference: `jax.grad` of the whole network, and one static `optax.multi_transform`."""
    network, params, source, steps = task
    params = jax.tree.map(jnp.asarray, params)
    always = {"head/.*": None} if params["head"] else {}
    genes = masking.make_genes(params, {**{f"{name}/.*": name for name in network.names}, **always})
    labels = lambda tree: jax.tree_util.tree_map_with_path(  # noqa: E731
        lambda path, _: "head" if path[0].key == "head" else "body", tree
    )
    optimizer = optax.multi_transform({"body": recipe.body, "head": recipe.head}, labels)
    tx = masking.freeze(optax.chain(optax.clip_by_global_norm(recipe.max_norm), optimizer), genes, genome)
    state = tx.init(params)

    @jax.jit
    def step(params, state, batch, key):
        def loss(params):
            x = jax.tree.map(lambda leaf: jnp.asarray(leaf)[batch.elements], source.data.inputs)
            statistics = {}
            logits = apply_network(network, params, x, batch, genome, key, statistics)
            losses = cross_entropy(logits, jnp.asarray(source.data.targets)[batch.examples])
            return losses @ batch.weights / batch.weights.sum(), statistics

        gradients, statistics = jax.grad(loss, has_aux=True)(params)
        updates, state = tx.update(gradients, state, params)
        params = optax.apply_updates(params, updates)
        return params | {name: params[name] | {"batch_stats": new} for name, new in statistics.items()}, state

    for i in range(len(steps.examples)):
        batch = jax.tree.map(lambda leaf, i=i: jnp.asarray(leaf[i]), steps)
        params, state = step(params, state, batch, jax.random.fold_in(jax.random.key(7), i))
    return params


CASES = [("bert", "adamw"), ("convolutional", "sgd"), ("convolutional", "lion")]


@functools.cache
def make_case(name, recipe_name):
    task, recipe = TASKS[name], RECIPES[recipe_name]
    return task, recipe, {tuple(genome): plain_run(task, recipe, genome) for genome in ALL_MASKS}


@pytest.fixture(params=CASES, ids="-".join)
def case(request):
    """A task, a recipe and the reference parameters for all masks."""
    return make_case(*request.param)


def make_population(task, recipe, **options):
    network, params, source, _ = task
    return Population(network, params, recipe, source, source, loss=cross_entropy, metric=ACCURACY, **options)


def accuracy_and_loss(network, params, source):
    scores = score(network, params, source, loss=cross_entropy, metric=ACCURACY)
    return float(scores.values.mean()), float(scores.losses.mean())


def make_run(task):
    _, params, _, steps = task
    return Replicate(params["head"], steps, jax.random.key(7))


def assert_same_training(task, member, expected):
    network, initial, _, _ = task
    assert_same_params(network.names, member.genome, member.params, expected, initial, rtol=2e-4, atol=2e-5)


def assert_same_params(names, genome, actual, desired, initial, *, rtol, atol):
    """Frozen parameters are the initial ones; all others have been trained, and are the desired ones."""
    frozen = dict(zip(names, genome, strict=True)) | {"head": False}

    def compare(path, actual, desired, start):
        if frozen[path[0].key]:
            np.testing.assert_array_equal(actual, start)
        elif not jax.tree_util.keystr(path, simple=True, separator="/").endswith("attention/key/bias"):
            # Softmax does not see that bias: its gradient is rounding noise, which Adam scales up to full steps.
            np.testing.assert_allclose(actual, desired, rtol=rtol, atol=atol)
            assert not np.array_equal(actual, start)

    jax.tree_util.tree_map_with_path(compare, actual, desired, initial)


PLANS = {
    "block by block": {"plan": Plan()},
    "stacked": {"plan": Plan(members=3)},
    "two calls at the same time": {"plan": Plan(calls=2)},
    "static, in one": {"plan": Plan(steps=NUM_STEPS)},
    "static, stacked, 4 steps at a time": {"plan": Plan(3, 4)},
    "traced": {"plan": Plan(1, 1, "traced")},
    "traced, all members, in one": {"plan": Plan(len(ALL_MASKS), NUM_STEPS, "traced")},
    "nothing kept": {"budget": Budget(10**5, 0), "plan": Plan(steps=0)},
    "streamed from the host": {"budget": Budget(0, 10**9)},
    "streamed, 4 steps at a time": {"budget": Budget(0, 10**9), "plan": Plan(3, 4)},
    "recomputed, stacked": {"plan": Plan(3, remat=True)},
}


# BERT's programs take longest to compile, so some plans have fewer of them there. How data get to a program, and how programs
# are cut, does not depend on the optimizer: one for each network is enough.
PLANS_OF_BERT = {"static, stacked, 4 steps at a time": {"plan": Plan(3, 3)}}  # as often, and no rest
MASKS_OF_BERT = {"static, in one": ALL_MASKS[[2, 5, 6, 7]], "streamed, 4 steps at a time": ALL_MASKS[5:]}
NOT_WITH_LION = [
    "two calls at the same time",
    "nothing kept",
    "streamed from the host",
    "streamed, 4 steps at a time",
]


@pytest.mark.parametrize(
    ("case", "plan"),
    [(case, plan) for case in CASES for plan in PLANS if not ("lion" in case and plan in NOT_WITH_LION)],
    indirect=["case"],
    ids=lambda part: part if isinstance(part, str) else "-".join(part),
)
def test_every_mask_trains_like_the_plain_static_run(case, plan):
    task, recipe, expected = case
    masks, options = ALL_MASKS, PLANS[plan]
    if task is TASKS["bert"]:
        masks, options = MASKS_OF_BERT.get(plan, masks), PLANS_OF_BERT.get(plan, options)
    members = list(make_population(task, recipe, **options).evaluate(masks, make_run(task)))
    assert {tuple(member.genome) for member in members} == set(map(tuple, masks))
    for member in members:
        assert_same_training(task, member, expected[tuple(member.genome)])


@pytest.mark.parametrize("plan", [Plan(), Plan(3), Plan(len(ALL_MASKS), 2, "traced")])
def test_a_member_that_was_stopped_ends_like_the_plain_static_run(case, plan):
    task, recipe, expected = case
    population, run = make_population(task, recipe, plan=plan), make_run(task)
    members = list(population.evaluate(ALL_MASKS, run, until=1))
    assert {member.steps for member in members} == {1}
    members = list(population.resume(members[::-1], run, until=3))
    ended = list(population.resume(members[1::2], run))  # and so in other company
    assert len(ended) == len(ALL_MASKS) // 2
    assert all(member.steps == NUM_STEPS and member.state is None for member in ended)
    for member in ended:
        assert_same_training(task, member, expected[tuple(member.genome)])


def test_one_by_one_stopping_changes_no_bit():
    task = TASKS["bert"]
    population, run = make_population(task, RECIPES["adamw"]), make_run(task)
    for genome in ALL_MASKS[[0, 1, 7]]:
        (through,) = population.evaluate(genome[None], run)
        stopped = list(population.evaluate(genome[None], run, until=2))
        for until in (3, None):
            stopped = list(population.resume(stopped, run, until))
        jax.tree.map(np.testing.assert_array_equal, stopped[0].params, through.params)
        assert stopped[0].score == through.score
        assert stopped[0].train_loss == pytest.approx(through.train_loss)


def test_only_members_at_the_same_step_go_on():
    task = TASKS["convolutional"]
    population, run = make_population(task, RECIPES["sgd"]), make_run(task)
    (ended,) = population.evaluate(ALL_MASKS[:1], run)
    (first,) = population.evaluate(ALL_MASKS[:1], run, until=1)
    (second,) = population.evaluate(ALL_MASKS[1:2], run, until=2)
    for members, until in (([ended], None), ([first, second], None), ([first], 1), ([first], 0), ([second], 1)):
        with pytest.raises(ValueError, match="stopped after the same step"):
            population.resume(members, run, until)
    with pytest.raises(ValueError, match="stopped after the same step, before step 0; got 0 steps"):
        population.evaluate(ALL_MASKS[:1], run, until=0)


BUDGETS = {"device": Budget(10**9, 0), "host": Budget(0, 10**9)}


@pytest.mark.parametrize("budget", BUDGETS)
@pytest.mark.parametrize("name", TASKS)
def test_activations_are_the_outputs_of_the_pretrained_blocks(name, budget):
    network, params, source, _ = TASKS[name]
    activations = Activations(network, params, source, BUDGETS[budget])
    direct = [step.x for step in all_steps(activations, 0)]
    for depth, block in enumerate(network.blocks, start=1):
        apply = jax.jit(functools.partial(block.apply, frozen=True, key=None))
        assert activations.inputs(depth)[0] == depth
        for i, (kept, batch) in enumerate(zip(all_steps(activations, depth), source.batches.examples, strict=True)):
            direct[i] = apply(params[block.name], direct[i], kept.context)
            real = (batch if block.per_example else source.batches.elements[i]) >= 0
            np.testing.assert_allclose(kept.x[real], direct[i][real], rtol=1e-4, atol=1e-5)


def all_steps(activations, depth):
    boundary, inputs = activations.inputs(depth)
    return [
        fetch(activations.per_example(boundary), chunk, step)
        for chunk in activations.chunks(boundary, inputs)
        for step in range(len(chunk.batches.examples))
    ]


ONE_BOUNDARY = NUM_EXAMPLES * 8 * 8 * 4 * 4  # bytes of the output of "low", or of "high"; that of "dense" is smaller
IMAGES = NUM_EXAMPLES * 8 * 8 * 4


def test_the_budget_of_activations_is_kept():
    network, params, source, _ = TASKS["convolutional"]
    activations = Activations(network, params, source, Budget(ONE_BOUNDARY, 0))
    for depth in (1, 2, 3, 1):
        assert activations.inputs(depth)[0] == depth
        assert activations.num_bytes.device <= ONE_BOUNDARY
    activations = Activations(network, params, source, Budget(ONE_BOUNDARY - 1, 0))
    assert [activations.inputs(depth)[0] for depth in (0, 1, 2, 3)] == [0, 0, 0, 3]


def test_what_is_used_least_leaves_the_device_first_and_the_host_last():
    network, params, source, _ = TASKS["convolutional"]
    activations = Activations(network, params, source, Budget(ONE_BOUNDARY, ONE_BOUNDARY))
    on_device = lambda depth: isinstance(activations.inputs(depth)[1], jax.Array)  # noqa: E731
    activations.expect([1, 1, 2])
    assert on_device(1)
    assert activations.num_bytes == (ONE_BOUNDARY, 0)
    assert on_device(2)  # and 1 has moved to the host
    assert activations.num_bytes == (ONE_BOUNDARY, ONE_BOUNDARY)
    activations.expect([2])
    assert on_device(1)
    assert activations.num_bytes == (ONE_BOUNDARY, ONE_BOUNDARY)
    activations.clear()
    assert activations.num_bytes == (0, 0)


def test_a_data_set_that_does_not_fit_stays_on_the_host():
    network, params, source, _ = TASKS["convolutional"]
    assert isinstance(Activations(network, params, source, Budget(IMAGES - 1, 0)).inputs(0)[1], np.ndarray)
    assert isinstance(Activations(network, params, source, Budget(2 * IMAGES, 0)).inputs(0)[1], jax.Array)


def test_validation_scores_are_those_of_the_trained_network():
    network, _, source, _ = task = TASKS["bert"]
    logits_of = jax.jit(lambda params, x, batch: apply_network(network, params, x, batch, [True] * 3, None))
    for member in make_population(task, RECIPES["sgd"], plan=Plan(3)).evaluate(ALL_MASKS, make_run(task)):
        right, losses = [], []
        for step in range(len(source.batches.examples)):
            batch = jax.tree.map(lambda leaf, step=step: jnp.asarray(leaf[step]), source.batches)
            x = jax.tree.map(lambda leaf, batch=batch: jnp.asarray(leaf)[batch.elements], source.data.inputs)
            logits = np.asarray(logits_of(dict(member.params), x, batch), np.float64)
            for row, example in zip(logits, batch.examples, strict=True):
                if example >= 0:
                    target = source.data.targets[example]
                    right.append(row.argmax() == target)
                    losses.append(np.log(np.exp(row).sum()) - row[target])
        assert len(right) == NUM_EXAMPLES
        assert member.score == pytest.approx(np.mean(right))
        assert member.loss == pytest.approx(np.mean(losses), rel=1e-5)
        assert accuracy_and_loss(network, member.params, source) == pytest.approx((member.score, member.loss), rel=1e-5)


def test_a_diverged_member_disturbs_no_other():
    network, params, source, steps = TASKS["bert"]
    recipe = Recipe(optax.sgd(1e30), optax.sgd(1e-2), max_norm=1e30)
    task = (network, params, source, steps)
    genomes = np.array([[0, 0, 0], [1, 1, 1], [0, 0, 1]], bool)
    members = {tuple(m.genome): m for m in make_population(task, recipe, plan=Plan(3)).evaluate(genomes, make_run(task))}
    assert not np.isfinite(members[0, 0, 0].loss)
    assert_same_training(task, members[1, 1, 1], plain_run(task, recipe, genomes[1]))


def test_steps_are_counted():
    counted = []
    task = TASKS["convolutional"]
    list(make_population(task, RECIPES["sgd"], plan=Plan(2), on_steps=counted.append).evaluate(ALL_MASKS[:3], make_run(task)))
    assert counted == [2] * NUM_STEPS + [1] * NUM_STEPS


@pytest.mark.parametrize(
    ("plan", "expected"), [(Plan(), {True}), (Plan(remat=True), {True}), (Plan(2), {False}), (Plan(1, 2, "static"), {False})]
)
def test_a_block_knows_whether_it_is_a_program_of_its_own(plan, expected):
    """For one member; in a loop or mapped over members, other ways to compute the same may be faster."""
    told = set()

    def tell(params, x, context, *, frozen, key):
        told.add(ALONE.value)
        return x * params["scale"]

    def head(params, x, context, *, frozen, key):
        return x @ params["kernel"]

    network = Network((Block("low", tell), Block("high", tell)), head)
    params = {"low": {"scale": jnp.ones(())}, "high": {"scale": jnp.ones(())}, "head": {"kernel": jnp.ones((64, NUM_CLASSES))}}
    _, _, source, steps = TASKS["convolutional"]
    flat = source._replace(data=source.data._replace(inputs=source.data.inputs.reshape(NUM_EXAMPLES, -1)))
    task = network, params, flat, steps
    population = make_population(task, RECIPES["sgd"], plan=plan)
    told.clear()  # of what shapes were taken from
    list(population.evaluate([[0, 0], [0, 1]], make_run(task)))
    assert told == expected


@pytest.mark.parametrize("plan", [Plan(members=2), Plan(2, 1, "traced"), Plan(steps=NUM_STEPS)])
def test_a_block_may_have_no_parameters(plan):
    """It is frozen or not, and nothing changes."""
    task = with_a_block_without_parameters(convolutional_task())
    genomes = [(1, 0, 0, 0), (0, 1, 0, 0)]
    alone = make_population(task, RECIPES["sgd"], plan=Plan()).evaluate(genomes, make_run(task))
    expected = {member.genome: member for member in alone}
    for member in make_population(task, RECIPES["sgd"], plan=plan).evaluate(genomes, make_run(task)):
        trees = (dict(member.params), dict(expected[member.genome].params))
        jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=2e-4, atol=2e-5), *trees)
