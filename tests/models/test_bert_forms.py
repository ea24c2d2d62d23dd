"""The same BERT by half layers, and computed in bfloat16."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import test_population as tasks

from gafreeze_jax.activations import score
from gafreeze_jax.models import bert

CONFIG = bert.BertConfig(
    vocab_size=40, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32, initializer_range=0.3
)
_, PARAMS, SOURCE, _ = tasks.TASKS["bert"]


def test_half_layers_compute_the_same_and_are_joined_again():
    halves = bert.make_bert(CONFIG, tasks.NUM_CLASSES, granularity="sublayer")
    split = bert.split_layers(PARAMS)
    assert halves.names == ("embeddings", "layer_0/attention", "layer_0/mlp", "layer_1/attention", "layer_1/mlp")
    assert score(halves, split, SOURCE) == pytest.approx(score(bert.make_bert(CONFIG, tasks.NUM_CLASSES), PARAMS, SOURCE))
    assert bert.join_layers(split) == PARAMS


def test_bfloat16_computes_nearly_the_same_and_leaves_parameters_in_float32():
    half = bert.make_bert(CONFIG, tasks.NUM_CLASSES, dtype=jnp.bfloat16)
    _, loss = score(half, PARAMS, SOURCE)
    _, expected = score(bert.make_bert(CONFIG, tasks.NUM_CLASSES), PARAMS, SOURCE)
    assert loss == pytest.approx(expected, rel=0.02)
    assert loss != expected
    task = (half, *tasks.TASKS["bert"][1:])
    population = tasks.make_population(task, tasks.RECIPES["sgd"])
    (member,) = population.evaluate(np.array([[True, False, False]]), tasks.make_run(task))
    assert {leaf.dtype for leaf in jax.tree.leaves(member.params)} == {np.dtype("float32")}
