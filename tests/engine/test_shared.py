"""Parameters of a block that computes nothing, and of one that does, read by higher blocks: members train alike by all ways."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import test_population as tasks

from gafreeze_jax.engine import prefix
from gafreeze_jax.engine.backprop import value_and_grad
from gafreeze_jax.engine.cohort import Plan
from gafreeze_jax.engine.network import Batch, Block, Dataset, Network, Source, Step
from gafreeze_jax.metrics import cross_entropy

pytestmark = pytest.mark.usefixtures("quick_compilation")

WIDTH, NUM = 4, 8


def low(params, x, context, *, frozen, key):
    return jnp.tanh(x @ params["kernel"])


def high(params, x, context, *, frozen, key):
    noise = 0 if key is None else jnp.where(frozen, 0, 0.1) * jax.random.normal(key, x.shape)
    return jnp.tanh(x @ params["kernel"] * params["table"]["scale"][None]) + x @ params["low"]["kernel"] + noise


def head(params, x, context, *, frozen, key):
    return x @ params["kernel"]


def make_task():
    rng = np.random.default_rng(0)
    shared = ("table", "low")
    blocks = (Block("low", low), Block("table", None), Block("middle", high, shared=shared), Block("high", high, shared=shared))
    kernels = {
        name: {"kernel": rng.normal(size=(WIDTH, WIDTH)).astype(np.float32) / 2} for name in ("low", "middle", "high", "head")
    }
    params = kernels | {"table": {"scale": rng.normal(size=WIDTH).astype(np.float32)}}
    data = Dataset(rng.normal(size=(NUM, WIDTH)).astype(np.float32), rng.integers(WIDTH, size=NUM).astype(np.int32))
    rows = np.array([[0, 1, 2], [3, 4, 5], [6, 7, -1]], np.int32)
    return Network(blocks, head), params, Source(data, Batch(rows, rows, {})), Batch(rows, rows, {})


TASK = make_task()
MASKS = np.array([[0, 0, 0, 0], [1, 0, 1, 0], [0, 1, 0, 1], [1, 0, 1, 1], [1, 1, 0, 1]], bool)


@pytest.mark.parametrize("plan", [Plan(), Plan(5), Plan(2, 3), Plan(5, 3, "traced")], ids=str)
def test_masks_train_like_the_plain_static_run(plan):
    recipe = tasks.RECIPES["sgd"]
    for member in tasks.make_population(TASK, recipe, plan=plan).evaluate(MASKS, tasks.make_run(TASK)):
        tasks.assert_same_training(TASK, member, tasks.plain_run(TASK, recipe, member.genome))


def test_a_frozen_layer_passes_gradients_to_what_it_reads():
    network, params, source, _ = TASK
    step = Step(source.data.inputs, source.data.targets, jnp.ones(NUM), {})
    found = value_and_grad(network, cross_entropy, [True, False, True, True])(params, step).gradients
    assert sorted(found) == ["head", "table"]

    def loss(scale):
        changed = params | {"table": {"scale": scale}}
        logits = tasks.apply_network(network, changed, step.x, step, (True,) * 4, None)
        return cross_entropy(logits, step.targets).mean()

    np.testing.assert_allclose(found["table"]["scale"], jax.grad(loss)(params["table"]["scale"]), rtol=1e-5)


def test_a_frozen_prefix_reads_it_as_well():
    network, params, source, _ = TASK
    frozen = prefix.frozen_prefix(network, params, [1, 1, 1, 0])
    expected = tasks.apply_network(network._replace(blocks=network.blocks[:3], head=lambda params, x, *args, **kwargs: x),
                                   params, source.data.inputs, source.batches, (1, 1, 1), None)  # fmt: skip
    np.testing.assert_allclose(frozen(source.data.inputs).x, expected, rtol=1e-5, atol=1e-6)
