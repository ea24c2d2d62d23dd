"""A cut function costs what a chain of blocks by hand costs: operations, programs and calls."""

from collections import Counter

import cut_bert
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax import lax

from gafreeze_jax import cut, masking
from gafreeze_jax.data.batches import in_order, make_batches
from gafreeze_jax.engine import backprop, costs
from gafreeze_jax.engine.cohort import Replicate
from gafreeze_jax.engine.network import INPUTS, Dataset, Source, Step
from gafreeze_jax.engine.optimizer import Recipe
from gafreeze_jax.engine.population import Population
from gafreeze_jax.metrics import ACCURACY, cross_entropy
from gafreeze_jax.models import base, bert, from_function

BATCH, WIDTH, NUM_CLASSES, NUM_LAYERS = 256, 64, 4, 3
LAST = ("NHWC", "HWIO", "NHWC")


def ideal_flops(frozen, pixels, taps):
    """Of the matrix products of a network from the lowest trained layer on."""
    depth = [*frozen, False].index(False)
    layer, head = 2 * BATCH * pixels * taps * WIDTH**2, 2 * BATCH * WIDTH * NUM_CLASSES
    of_inputs = len(frozen[depth + 1 :]) * layer + head * (depth < NUM_LAYERS)
    of_weights = frozen.count(False) * layer + head
    return len(frozen[depth:]) * layer + head + of_inputs + of_weights


@pytest.mark.parametrize("side", [None, 4], ids=["dense", "convolutional"])
def test_a_step_does_what_its_mask_needs_and_no_more(side):
    rng = np.random.default_rng(0)
    normal = lambda *shape: rng.normal(size=shape).astype(np.float32) / 8  # noqa: E731
    image, kernel = ((), ()) if side is None else ((side, side), (3, 3))
    params = {"layers": [normal(*kernel, WIDTH, WIDTH) for _ in range(NUM_LAYERS)], "head": normal(WIDTH, NUM_CLASSES)}
    genes = masking.make_genes(params, {r"layers/(\d)": r"layer_\1", "head": None})

    def apply(params, x):
        for layer in params["layers"]:
            x = x @ layer if side is None else lax.conv_general_dilated(x, layer, (1, 1), "SAME", dimension_numbers=LAST)
            x = jax.nn.relu(x)
        return (x if side is None else x.mean((1, 2))) @ params["head"]

    data = Dataset(normal(BATCH, *image, WIDTH), np.zeros(BATCH, np.int32))
    source = Source(data, make_batches(in_order(BATCH, BATCH)))
    network, parts = cut(apply, params, genes, data.inputs[:2]), from_function.split(params, genes)
    recipe = Recipe(optax.sgd(1e-3), optax.sgd(1e-3))
    members = Population(network, parts, recipe, source, source, loss=cross_entropy, metric=ACCURACY)
    run = Replicate(parts["head"], source.batches, jax.random.key(0))
    for genome in members.space.all_genomes().tolist():
        flops = costs.flops_per_step(members, genome, run)
        ideal = ideal_flops([gene == 1 for gene in genome], int(np.prod(image)), int(np.prod(kernel)))
        assert flops == pytest.approx(ideal, rel=0.1), genome


def calls_of(network, params, x, context, masks):
    """How often each pass is called for some masks, and how many programs it is compiled to."""
    targets, called, programs = jnp.zeros(len(context["firsts"]), jnp.int32), Counter(), {}
    for mask in masks:
        gradients_for = backprop.value_and_grad(network, cross_entropy, mask)
        traced = jax.make_jaxpr(gradients_for)(params, Step(x, targets, jnp.ones(len(targets)), context), jax.random.key(0))
        for equation in traced.jaxpr.eqns:
            if equation.primitive.name == "jit":
                called[equation.params["name"]] += 1
                programs.setdefault(equation.params["name"], {})[id(equation.params["jaxpr"])] = traced  # keeps it alive
    return {name: (number, len(programs[name])) for name, number in called.items()}


def test_a_cut_bert_has_as_many_programs_and_calls_as_by_hand():
    """`benchmarks/cut_bert.py` takes the time."""
    config = bert.BertConfig(vocab_size=20, hidden_size=8, num_hidden_layers=4, num_attention_heads=2, intermediate_size=16)
    model = base.Model(bert.FAMILY, config, num_classes=2)
    by_hand, params = model.make_network(), model.init_params(jax.random.key(0))
    ids = np.random.default_rng(0).integers(0, 20, (2, 6)).astype(np.int32)
    genes = masking.make_genes(params, cut_bert.RULES)
    network = cut(cut_bert.as_function(by_hand), params, genes, ids)
    x, context = cut_bert.packed(jnp.asarray(ids))
    masks = [[i < depth for i in range(5)] for depth in range(6)] + [[False, True, False, True, True]]
    expected = calls_of(by_hand, params, x, context, masks)
    assert expected.keys() >= {"infer", "forward", "backward", "head_step"}
    found = calls_of(
        network, from_function.split(params, genes), jnp.asarray(ids), {INPUTS: jnp.asarray(ids), **context}, masks
    )
    assert found == expected
