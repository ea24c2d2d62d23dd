"""Steps whose batches are cut into slices: gradients are added up to those of the whole batch."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import test_gpt2
import test_population as tasks

from gafreeze_jax.data import lm, tokens
from gafreeze_jax.data.batches import make_batches, make_sliced
from gafreeze_jax.engine import costs
from gafreeze_jax.engine.cohort import Plan, Replicate
from gafreeze_jax.engine.network import Block, Dataset, Network, Source
from gafreeze_jax.engine.optimizer import Recipe
from gafreeze_jax.engine.population import Population
from gafreeze_jax.metrics import ACCURACY, cross_entropy
from gafreeze_jax.models import base, bert, resnet

pytestmark = pytest.mark.usefixtures("quick_compilation")

RNG_SEED = 3
MASKS = tasks.ALL_MASKS[[0, 3, 5]]


def bert_without_dropout():
    """20 texts of 3 to 12 tokens in batches of 8; a function that makes these."""
    config = bert.BertConfig(
        vocab_size=40, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32, initializer_range=0.3,
        hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
    )  # fmt: skip
    model = base.Model(bert.FAMILY, config, num_classes=tasks.NUM_CLASSES)
    rng = np.random.default_rng(0)
    lengths = rng.integers(3, 13, tasks.NUM_EXAMPLES)
    inputs = {
        "ids": rng.integers(0, 40, lengths.sum()).astype(np.int32),
        "positions": np.concatenate([np.arange(n) for n in lengths]).astype(np.int32),
        "types": np.zeros(lengths.sum(), np.int32),
    }
    texts = tokens.Tokens(inputs, np.cumsum(lengths) - lengths, lengths)
    targets = rng.integers(0, tasks.NUM_CLASSES, tasks.NUM_EXAMPLES).astype(np.int32)
    source = Source(Dataset(inputs, targets), tokens.scoring_batches(texts))
    return model, source, lambda micro_batch: tokens.batch_maker(texts, 8, 2, micro_batch=micro_batch)


def tied_language_model():
    """Windows of 16 tokens, the last one shorter, in batches of 4; the head reads the word vectors."""
    config = dataclasses.replace(test_gpt2.CONFIG, embd_pdrop=0.0, attn_pdrop=0.0, resid_pdrop=0.0)
    windows = lm.make_windows(np.random.default_rng(0).integers(0, 40, 150), 16)
    source = Source(windows.dataset, lm.scoring_batches(windows))
    make = lambda micro_batch: lm.batch_maker(windows, 4, 1, micro_batch=micro_batch)  # noqa: E731
    return test_gpt2.make_model(config, "lm"), source, make


TASKS = {"bert": (bert_without_dropout(), 3), "language model": (tied_language_model(), 1)}
SGD = Recipe(optax.sgd(0.1, momentum=0.9), optax.sgd(0.2), max_norm=0.5)


@pytest.mark.parametrize("name", TASKS)
def test_gradients_of_slices_add_up_to_those_of_the_batch(name):
    """Slices of 3 of 8 texts, and of a window each; batches and slices that are not full are among them."""
    (model, source, make), size = TASKS[name]
    params, network = model.init_params(jax.random.key(0)), model.make_network()
    whole, sliced = (make(micro_batch)(np.random.default_rng(RNG_SEED)) for micro_batch in (None, size))
    assert (sliced.examples < 0).any()
    assert [sorted(set(step.ravel()) - {-1}) for step in sliced.examples] == [
        sorted(set(step) - {-1}) for step in whole.examples
    ]

    def train(plan, batches):
        population = Population(network, params, SGD, source, source, loss=cross_entropy, metric=ACCURACY, plan=plan)
        run = Replicate(params["head"], batches, jax.random.key(7))
        return {member.genome: member for member in population.evaluate(MASKS[: plan.members], run)}

    plans = (Plan(3), Plan(3)) if name == "bert" else (Plan(), Plan(1, 1, "traced"))
    expected, actual = map(train, plans, (whole, sliced))
    for genome, member in actual.items():
        desired = expected[genome]
        tasks.assert_same_params(network.names, genome, member.params, desired.params, params, rtol=2e-4, atol=2e-5)
        assert member.train_loss == pytest.approx(desired.train_loss, rel=1e-5)


def test_slices_need_the_residuals_of_one_and_the_gradients_of_a_block_more():
    (model, source, make), size = TASKS["bert"]
    params, network = model.init_params(jax.random.key(0)), model.make_network()
    stateless = Recipe(optax.sgd(0.1), optax.sgd(0.1))
    population = Population(network, params, stateless, source, source, loss=cross_entropy, metric=ACCURACY)

    def num_bytes(micro_batch):
        batches = make(micro_batch)(np.random.default_rng(RNG_SEED))
        run = Replicate(params["head"], batches, jax.random.key(7))
        return costs.bytes_of_cohort(population, Plan(), MASKS[:1], run), batches

    (whole, batch), (sliced, slices) = num_bytes(None), num_bytes(size)
    of_params = 2 * costs.num_bytes(params)
    largest = max(costs.num_bytes(tree) for tree in params.values())
    num_rows, num_rows_of_slice = (batches.elements.shape[-1] for batches in (batch, slices))
    assert num_rows_of_slice < 0.6 * num_rows
    assert sliced - of_params - largest == pytest.approx((whole - of_params) * num_rows_of_slice / num_rows, rel=0.2)


def test_running_statistics_move_with_each_slice_and_draws_differ():
    """A block that counts what it has seen, and remembers what it has drawn."""

    def apply(params, x, context, *, frozen, key):
        if frozen is True:
            return x @ params["kernel"]
        seen, drawn = params["batch_stats"]["seen"], params["batch_stats"]["drawn"]
        drawn = drawn.at[(seen > 0).astype(int)].set(jax.random.uniform(key))
        return x @ params["kernel"], {"seen": seen + context["weights"].sum(), "drawn": drawn}

    def head(params, x, context, *, frozen, key):
        return x

    statistics = {"seen": np.float32(0), "drawn": np.zeros(2, np.float32)}
    params = {"low": {"kernel": np.eye(3, dtype=np.float32), "batch_stats": statistics}}
    data = Dataset(np.ones((5, 3), np.float32), np.zeros(5, np.int32))
    network = Network((Block("low", apply),), head)
    source = Source(data, make_batches(np.arange(5)[None]))
    sliced = make_sliced(make_batches, np.array([[[0, 1, 2], [3, 4, -1]]]))
    population = Population(network, params, SGD, source, source, loss=cross_entropy, metric=ACCURACY)
    (member,) = population.evaluate([(0,)], Replicate({}, sliced, jax.random.key(0)))
    statistics = member.params["low"]["batch_stats"]
    assert statistics["seen"] == 5
    assert 0 < statistics["drawn"][0] != statistics["drawn"][1] > 0


def test_a_slice_without_examples_leaves_running_statistics_alone():
    norm = resnet.BatchNorm()
    x = jnp.ones((2, 3, 3, 4))
    statistics = {"mean": jnp.full(4, 0.5), "var": jnp.full(4, 2.0)}
    variables = {"params": {"scale": jnp.ones(4), "bias": jnp.zeros(4)}, "batch_stats": statistics}
    y, updated = norm.apply(variables, x, jnp.zeros(2), False, mutable=["batch_stats"])
    assert jnp.isfinite(y).all()
    jax.tree.map(np.testing.assert_array_equal, updated["batch_stats"], statistics)
    _, updated = norm.apply(variables, x, jnp.ones(2), False, mutable=["batch_stats"])
    np.testing.assert_allclose(updated["batch_stats"]["mean"], 0.55)
