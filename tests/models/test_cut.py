"""Functions are cut into blocks that compute what they did."""

import functools
import re
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from zoo import ZOO

from gafreeze_jax.engine import backprop
from gafreeze_jax.engine.network import INPUTS, STATISTICS, Step
from gafreeze_jax.metrics import cross_entropy
from gafreeze_jax.models import from_function

pytestmark = pytest.mark.usefixtures("quick_compilation")


@functools.cache
def cut_animal(name):
    animal = ZOO[name]()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        network = from_function.cut(animal.apply, animal.params, animal.genes, animal.inputs)
    return animal, network, [str(warning.message) for warning in caught]


def run(network, params, inputs):
    """The network in inference mode, block by block."""
    x = inputs
    for block in network.blocks:
        if block.apply is not None:
            x = block.apply(params[block.name], x, {INPUTS: inputs}, frozen=True, key=None)
    shared = {name: {"params": params[name]["params"]} for name in network.shared}
    return network.head(params["head"] | shared, x, {INPUTS: inputs}, frozen=True, key=None)


def infer(animal, inputs):
    takes_key = animal.apply.__code__.co_argcount > 2
    return animal.apply(animal.params, inputs, None) if takes_key else animal.apply(animal.params, inputs)


@pytest.mark.parametrize("name", ZOO)
def test_blocks_are_found(name):
    animal, network, messages = cut_animal(name)
    parts = [block.apply for block in network.blocks if block.apply is not None]
    assert (len(parts), len(set(parts))) == (animal.num_blocks, animal.num_programs), messages
    assert [re.search(animal.message, message) is not None for message in messages] == [True] * (animal.message is not None)
    assert network.names == animal.genes.names


@pytest.mark.parametrize("name", ZOO)
def test_outputs_and_gradients_are_those_of_the_function(name):
    """Also for a batch of another size."""
    animal, network, _ = cut_animal(name)
    inputs = jax.tree.map(lambda leaf: np.concatenate([leaf, leaf[::-1], leaf]), animal.inputs)
    params = from_function.split(animal.params, animal.genes)
    targets = np.arange(len(jax.tree.leaves(inputs)[0])) % 3

    @jax.jit
    def ours(params, inputs):
        step = Step(inputs, targets, jnp.ones(len(targets)), {INPUTS: inputs})
        gradients = backprop.value_and_grad(network, cross_entropy, [False] * len(network.blocks))(params, step).gradients
        return run(network, params, inputs), gradients

    @jax.jit
    @functools.partial(jax.value_and_grad, has_aux=True)
    def theirs(params, inputs):
        outputs = infer(animal._replace(params=params), inputs)
        return cross_entropy(outputs, targets).mean(), outputs

    outputs, gradients = ours(params, inputs)
    (_, expected), of_tree = theirs(animal.params, inputs)
    np.testing.assert_allclose(outputs, expected, rtol=1e-4, atol=1e-5)
    of_genes = from_function.split(of_tree, animal.genes)
    for tree in of_genes.values():
        tree.pop(STATISTICS, None)
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-3, atol=1e-5), gradients, of_genes)
