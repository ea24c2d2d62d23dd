"""What a mask costs: operations, compiling and memory."""

import functools
import gc

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import test_population as tasks

from gafreeze_jax.data import tokens
from gafreeze_jax.engine import backprop, cache, costs, optimizer, passes, scoring, step
from gafreeze_jax.engine.cohort import Plan, Replicate, make_cohorts, untrained
from gafreeze_jax.engine.network import Batch, Block, Dataset, Network, Source, head_as_block
from gafreeze_jax.engine.optimizer import Recipe
from gafreeze_jax.engine.population import Population
from gafreeze_jax.metrics import ACCURACY, cross_entropy
from gafreeze_jax.models import base, bert
from gafreeze_jax.runs.mask_costs import MaskCosts, pareto_fitness
from gafreeze_jax.search import nsga2
from gafreeze_jax.search.history import Evaluation, Ledger

pytestmark = pytest.mark.usefixtures("quick_compilation")

SGD = Recipe(optax.sgd(1e-3), optax.sgd(1e-3))
NUM_BLOCKS = 3


def dense_task():
    """Three dense blocks, and what each does forwards: its first matrix products, its other ones, those without weights."""
    batch, width, num_classes = 256, 64, 4

    def dense(params, x, context, *, frozen, key):
        return jax.nn.relu(x @ params)

    def head(params, x, context, *, frozen, key):
        return x @ params

    rng = np.random.default_rng(0)
    params = {f"dense_{i}": rng.normal(size=(width, width)).astype(np.float32) / 8 for i in range(NUM_BLOCKS)}
    params["head"] = rng.normal(size=(width, num_classes)).astype(np.float32)
    network = Network(tuple(Block(f"dense_{i}", dense) for i in range(NUM_BLOCKS)), head)
    data = Dataset(rng.normal(size=(batch, width)).astype(np.float32), np.zeros(batch, np.int32))
    rows = np.arange(batch, dtype=np.int32)[None]
    forwards = [(2.0 * batch * width**2, 0.0, 0.0)] * NUM_BLOCKS
    return network, params, Source(data, Batch(rows, rows, {})), forwards, 2.0 * batch * width * num_classes


def bert_task():
    """A BERT of MiniLM's width; its first products are those for query, key and value, and attention has no weights."""
    texts, length, width, hidden = 64, 8, 384, 1536
    config = bert.BertConfig(100, width, NUM_BLOCKS - 1, 12, hidden)
    params = jax.jit(base.Model(bert.FAMILY, config, num_classes=2).init_params)(jax.random.key(0))
    size = texts * length
    inputs = {"ids": np.zeros(size, np.int32), "types": np.zeros(size, np.int32)}
    inputs["positions"] = np.tile(np.arange(length, dtype=np.int32), texts)
    sequences = tokens.Tokens(inputs, np.arange(texts) * length, np.full(texts, length))
    batches = tokens.pack_batches(sequences, np.arange(texts)[None], length)

    def layer(queries):
        first, others = 2.0 * width**2 * (queries + 2 * size), 2.0 * queries * width * (width + 2 * hidden)
        return first, others, 4.0 * queries * length * width

    forwards = [(0.0, 0.0, 0.0), layer(size), layer(texts)]
    network = base.Model(bert.FAMILY, config, num_classes=2).make_network()
    source = Source(Dataset(inputs, np.zeros(texts, np.int32)), batches)
    return network, params, source, forwards, 2.0 * texts * (width**2 + 2 * width)


TASKS = {"dense": functools.cache(dense_task), "bert": functools.cache(bert_task)}


def ideal_flops(genome, forwards, head):
    """Forwards from the depth, input gradients down to it, and weight gradients of trained blocks."""
    depth = int(np.append(genome, False).argmin())
    flops = head * (2 + (depth < NUM_BLOCKS))
    for index in range(depth, NUM_BLOCKS):
        first, others, without_weights = forwards[index]
        flops += (first + others + without_weights) + (others + 2 * without_weights)
        if index > depth:
            flops += first
        if not genome[index]:
            flops += first + others
    return flops


class Counter:
    """Replaces jitted functions by ones that add up what XLA says they do."""

    def __init__(self, monkeypatch):
        self.flops = 0.0
        for module, name in (
            (backprop, "infer"), (backprop, "forward"), (backprop, "backward"), (backprop, "head_step"),
            (step, "update_block"),
        ):  # fmt: skip
            monkeypatch.setattr(module, name, self.counting(getattr(module, name)))

    def counting(self, function):
        def run(*arguments, **options):
            self.flops += function.lower(*arguments, **options).compile().cost_analysis()["flops"]
            return function(*arguments, **options)

        return run


def make_population(name):
    network, params, source, *_ = TASKS[name]()
    members = Population(network, params, SGD, source, source, loss=cross_entropy, metric=ACCURACY)
    return members, Replicate(params["head"], source.batches, jax.random.key(0))


@pytest.mark.parametrize("path", ["static", "freeze-aware", "freeze-aware, 3 members"])
@pytest.mark.parametrize("name", TASKS)
def test_a_step_does_what_its_mask_needs_and_no_more(name, path, monkeypatch):
    *_, forwards, head = TASKS[name]()
    members, run = make_population(name)
    for genome in tasks.ALL_MASKS:
        if path == "static":
            flops = costs.flops_per_step(members, genome, run)
        else:
            num_members = 3 if "3" in path else 1
            (cohort,) = make_cohorts(Plan(num_members), members.space, untrained([genome] * num_members))
            members.trainer.activations.inputs(cohort.depth)
            with monkeypatch.context() as patch:
                counter = Counter(patch)
                members.trainer.fit(cohort, run, members.trainer.start(cohort, run), until=run.num_steps)
            flops = counter.flops / cohort.size
        assert flops == pytest.approx(ideal_flops(genome, forwards, head), rel=0.1), genome


def ideal_flops_of_kept_head(genome, forwards, head):
    """As `ideal_flops` where the head is the last gene: frozen, its gradients by weights are left out."""
    if np.all(genome):
        return 0.0
    *blocks, held = genome
    return ideal_flops(blocks, forwards, head) - head * held


def with_head_as_gene(name):
    """As `make_population`."""
    network, params, source, *_ = TASKS[name]()
    params = {**params, "classifier": params["head"], "head": {}}
    network = head_as_block(network, "classifier")
    members = Population(network, params, SGD, source, source, loss=cross_entropy, metric=ACCURACY)
    return members, Replicate({}, source.batches, jax.random.key(0))


@pytest.mark.parametrize("name", TASKS)
def test_a_step_does_what_its_mask_needs_also_where_the_head_may_be_frozen(name):
    """Suffix masks, which freeze what is above, are among them."""
    *_, forwards, head = TASKS[name]()
    members, run = with_head_as_gene(name)
    for genome in [*members.space.suffixes().tolist(), [0, 1, 1, 0], [1, 0, 1, 1], [1, 0, 0, 1], [1, 1, 1, 0]]:
        expected = ideal_flops_of_kept_head(genome, forwards, head)
        tiny = 0.01 * ideal_flops([False] * NUM_BLOCKS, forwards, head)  # the loss
        assert costs.flops_per_step(members, genome, run) == pytest.approx(expected, rel=0.1, abs=tiny), genome


WHOLE = Plan(len(tasks.ALL_MASKS), tasks.NUM_STEPS, "traced")
COMPILED = (
    passes.forward, passes.backward, passes.infer, passes.head_step, scoring.score_head, cache.fetch,
    scoring._score_chunk_in_one, optimizer.update_block, step.train_chunk, optimizer.start_block,
)  # fmt: skip


@pytest.mark.parametrize("recipe", tasks.RECIPES)
def test_optimizer_bytes_are_those_of_the_state(recipe):
    task = tasks.TASKS["bert"]
    members, run = tasks.make_population(task, tasks.RECIPES[recipe]), tasks.make_run(task)
    sizes = costs.optimizer_bytes(members, run)
    of_masks = MaskCosts(members, run)
    for member in members.evaluate(tasks.ALL_MASKS[[0, 3, 5, 7]], run, until=1):
        own = {name: sum(leaf.nbytes for leaf in jax.tree.leaves(state)) for name, state in member.state.items()}
        assert own == {name: sizes[name] for name in own}
        assert of_masks.optimizer_bytes(np.array(member.genome, bool)) == sum(own.values())


def test_a_diverged_mask_is_worst_for_nsga2():
    members, run = make_population("dense")
    ledger, of_masks = Ledger(6), MaskCosts(members, run)
    for genome, loss in (((0, 1, 1), 0.5), ((1, 1, 1), np.nan)):
        ledger.add(Evaluation(genome, 0, 6, 1, 0.9, loss, 0.4, 10, 1.0))
    told = np.array([pareto_fitness(ledger, of_masks, genome) for genome in ((0, 1, 1), (1, 1, 1))])
    assert told[0, 0] == 0.9
    assert (told[1, 1:] >= told[0, 1:]).all()  # though it costs less
    assert nsga2.non_dominated_rank(told).tolist() == [0, 1]


@pytest.mark.parametrize("plan", [Plan(), Plan(3), Plan(calls=2), WHOLE], ids=str)
def test_generations_compile_nothing_after_the_first_and_memory_does_not_grow(plan):
    task = tasks.TASKS["bert"]
    members, run = tasks.make_population(task, tasks.RECIPES["adamw"], plan=plan), tasks.make_run(task)
    compiled, held = [], []
    for seed in range(3):
        for member in members.evaluate(np.random.default_rng(seed).permutation(tasks.ALL_MASKS), run):
            del member
        gc.collect()
        compiled.append([function._cache_size() for function in COMPILED])
        held.append(sum(array.nbytes for array in jax.live_arrays()))
    assert compiled[0] == compiled[1] == compiled[2]
    assert held[1] == held[2]


def test_blocks_that_are_computed_again_keep_their_inputs_and_cost_a_forward_pass_more():
    forwards = TASKS["bert"]()[3]
    members, run = make_population("bert")
    genome = members.space.all_trained
    flops, num_bytes = [], []
    for remat in (False, True):
        members.plan = Plan(remat=remat)
        flops.append(costs.flops_per_step(members, genome, run))
        num_bytes.append(costs.bytes_of_cohort(members, members.plan, [genome], run))
    assert flops[1] - flops[0] == pytest.approx(sum(map(sum, forwards)), rel=0.1)

    (cohort,) = make_cohorts(members.plan, members.space, untrained([genome]))
    program = members.trainer.program(cohort, 0)
    (chunk,) = members.trainer.activations.chunks(*members.trainer.activations.inputs(0), run.batches)
    batch = cache.fetch(False, chunk, 0)
    residuals, pieces = [], []
    for remat in (False, True):
        forward = backprop.forward_chain(program.network, cohort.frozen, 0, None, remat=remat)
        chain = forward(members.params, batch.x, batch.context, run.key, {})
        residuals.append({name: costs.num_bytes(of_block) for name, of_block in chain.residuals.items()})
        pieces.append(chain.residuals["layer_0"])
    width = TASKS["bert"]()[1]["layer_0"]["attention"]["query"]["bias"].size
    assert residuals[1]["layer_0"] == pytest.approx(costs.num_bytes(batch.x) / 3 * width, rel=0.01)  # a row for each id
    saved = sum(residuals[0].values()) - sum(residuals[1].values()) - max(residuals[0].values())
    assert num_bytes[0] - num_bytes[1] == pytest.approx(saved, rel=0.01)
    backward = passes.backward.lower(
        axis=None, residuals=pieces[1], params=members.params["layer_0"], cotangent=pieces[1].x, frozen=None,
        square_norm=jnp.zeros(()),
    )  # fmt: skip
    assert backward.compile().memory_analysis().temp_size_in_bytes == pytest.approx(residuals[0]["layer_0"], rel=0.3)


@pytest.mark.parametrize("axis", [None, 0])
def test_what_a_block_keeps_has_no_copies_of_its_weights(axis):
    def apply(params, x, context, *, frozen, key):
        return jnp.tanh(x @ params)

    members = () if axis is None else (2,)
    x, params = jnp.ones((*members, 5, 7)), jnp.ones((*members, 7, 11))
    y, pullback, _ = passes.forward(
        apply=apply, wrt=passes.Wrt(True, True), axes=(axis, axis, None), params=params, x=x, frozen=None, context={}, key=None,
        index=0,
    )  # fmt: skip
    assert {array.shape for array in pullback.arrays if array.ndim} == {y.shape}
    of_params, of_x, _, _ = passes.backward(
        axis=axis, residuals=passes.Residuals(pullback, x), params=params, cotangent=jnp.ones_like(y), frozen=None,
        square_norm=jnp.zeros(members),
    )  # fmt: skip
    expected = jax.vjp(lambda params, x: jnp.tanh(x @ params), params, x)[1](jnp.ones_like(y))
    jax.tree.map(np.testing.assert_allclose, (of_params, of_x), expected)


def test_what_freezes_the_same_is_counted_once(monkeypatch):
    members, run = make_population("dense")
    expected = [costs.flops_per_step(members, genome, run) for genome in tasks.ALL_MASKS]
    costs._pieces_of_step.cache_clear()
    costs.step_flops(members, run)
    assert costs._pieces_of_step.cache_info().misses == 3 * NUM_BLOCKS
    monkeypatch.setattr(jax.stages.Traced, "lower", None)
    prefixes = [costs.flops_per_step(members, genome, run) for genome in members.space.prefixes()]
    assert prefixes == [expected[int(members.space.index(genome))] for genome in members.space.prefixes()]
    again, run = make_population("dense")
    assert costs.flops_per_step(again, (0, 1, 0), run) == expected[2]


@pytest.mark.parametrize("name", TASKS)
def test_what_all_masks_cost_follows_from_a_few(name):
    members, run = make_population(name)
    flops = costs.step_flops(members, run)
    for genome in tasks.ALL_MASKS:
        assert flops(genome) == pytest.approx(costs.flops_per_step(members, genome, run), rel=0.02)
        assert flops.from_scratch(genome) == pytest.approx(costs.flops_per_step(members, genome, run, enter=0), rel=0.02)


@pytest.mark.parametrize(("length", "unroll"), [(1, 1), (10, 1), (10, 3), (7, 4), (6, 6), (0, 1)])
def test_what_a_loop_computes_counts_as_often_as_it_runs(length, unroll):
    """Also within another loop, in a gradient, and where it is recomputed."""
    weights = jnp.ones((8, 8))
    product = 2 * 8**3

    def loop(x, inner=lambda x: x @ weights):
        return jax.lax.scan(lambda x, _: (inner(x), None), x, None, length, unroll=unroll)[0]

    def count(function):
        return costs.flops_of_piece(jax.make_jaxpr(function)(weights))

    about = functools.partial(pytest.approx, rel=0.1, abs=200)  # as loops count, too, and add up
    assert count(loop) == about(length * product)
    assert count(jax.jit(lambda x: loop(x) @ weights)) == about((length + 1) * product)
    assert count(lambda x: loop(x, loop)) == about(length**2 * product)
    assert count(jax.grad(lambda x: loop(x).sum())) == about(length * product)
    recomputed = jax.checkpoint(lambda x: loop(x, jnp.tanh) @ weights)
    assert count(jax.grad(lambda x: recomputed(x).sum())) >= product + 2 * length * 8**2
