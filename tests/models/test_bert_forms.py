"""The same BERT by half layers, and computed in bfloat16."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import test_population as tasks

from gafreeze_jax.engine import process
from gafreeze_jax.models import base, bert, products

pytestmark = pytest.mark.usefixtures("quick_compilation")

CONFIG = bert.BertConfig(
    vocab_size=40, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32, initializer_range=0.3
)
MODEL = base.Model(bert.FAMILY, CONFIG, num_classes=tasks.NUM_CLASSES)
_, PARAMS, SOURCE, _ = tasks.TASKS["bert"]


def test_half_layers_compute_the_same_and_are_joined_again():
    halves = MODEL.make_network(granularity="sublayer")
    split = base.split_layers(PARAMS, halves.names)
    assert halves.names == ("embeddings", "layer_0/attention", "layer_0/mlp", "layer_1/attention", "layer_1/mlp")
    assert tasks.accuracy_and_loss(halves, split, SOURCE) == pytest.approx(
        tasks.accuracy_and_loss(MODEL.make_network(), PARAMS, SOURCE)
    )
    assert base.join_layers(split) == PARAMS


def test_bfloat16_computes_nearly_the_same_and_leaves_parameters_in_float32():
    half = MODEL.make_network(dtype=jnp.bfloat16)
    _, loss = tasks.accuracy_and_loss(half, PARAMS, SOURCE)
    _, expected = tasks.accuracy_and_loss(MODEL.make_network(), PARAMS, SOURCE)
    assert loss == pytest.approx(expected, rel=0.02)
    assert loss != expected
    task = (half, *tasks.TASKS["bert"][1:])
    population = tasks.make_population(task, tasks.RECIPES["sgd"])
    (member,) = population.evaluate(np.array([[True, False, False]]), tasks.make_run(task))
    assert {leaf.dtype for leaf in jax.tree.leaves(member.params)} == {np.dtype("float32")}


def test_bfloat16_products_have_gradients_as_in_float32_but_for_rounding():
    x, kernel, cotangent = (jax.random.normal(jax.random.key(i), shape) for i, shape in enumerate(((64, 8), (8, 12), (64, 12))))
    product = functools.partial(products.product, jnp.dtype("bfloat16"))
    _, pullback = jax.vjp(product, x, kernel)
    for got, expected in zip(pullback(cotangent), (cotangent @ kernel.T, x.T @ cotangent), strict=True):
        assert got.dtype == expected.dtype
        np.testing.assert_allclose(got, expected, atol=0.02 * float(jnp.abs(expected).max()))
        assert (got != expected).any()


@pytest.mark.parametrize(("name", "expected"), [("x", (8, 12)), ("kernel", (8, 64))])
def test_bfloat16_products_keep_only_what_the_gradient_needs(name, expected):
    x, kernel = jnp.ones((64, 8)), jnp.ones((8, 12))
    arguments = {"x": x, "kernel": kernel}

    def of_one(value):
        return products.product(jnp.dtype("bfloat16"), **(arguments | {name: value}))

    _, pullback = jax.vjp(of_one, arguments[name])
    kept = {leaf.shape for leaf in jax.tree.leaves(pullback) if leaf.ndim}
    assert kept == {expected}


@pytest.mark.parametrize(
    ("backend", "features", "shape", "expected"),
    [
        ("cpu", {"fpu"}, (256, 256), "float32"),
        ("cpu", {"avx512_bf16"}, (256, 256), "float32"),
        ("cpu", {"amx_bf16"}, (256, 256), "bfloat16"),
        ("cpu", {"amx_bf16"}, (255, 1000), "float32"),
        ("cpu", {"amx_bf16"}, (3, 3, 512, 512), "float32"),
        ("gpu", {"fpu"}, (2, 2), "bfloat16"),
    ],
)
def test_the_fastest_dtype_follows_from_processor_and_network(backend, features, shape, expected, monkeypatch):
    monkeypatch.setattr(process, "processor_features", lambda: frozenset(features))
    monkeypatch.setattr(jax, "default_backend", lambda: backend)
    assert products.fastest_dtype({"low": [np.zeros(5)], "high": np.zeros(shape)}) == expected
