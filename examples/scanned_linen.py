"""Searches which layers of a Flax Linen module to freeze whose layers are stacked by `nn.scan`: a gene for each index.

    python examples/scanned_linen.py

It ends in seconds. Put your own module, pretrained parameters and arrays in the place of these.
"""

import flax.linen as nn
import jax
from sklearn.datasets import load_digits

from gafreeze_jax import Space, masking
from gafreeze_jax.engine.network import Dataset
from gafreeze_jax.models import from_function
from gafreeze_jax.options import Options
from gafreeze_jax.runs.search_run import run_search
from gafreeze_jax.tasks.base import make_problem


class Layer(nn.Module):
    @nn.compact
    def __call__(self, x, _):
        return x + nn.relu(nn.Dense(64)(x)), None


class ResidualMLP(nn.Module):
    @nn.compact
    def __call__(self, x):
        layers = nn.scan(Layer, variable_axes={"params": 0}, split_rngs={"params": True}, length=4)
        x, _ = layers(name="layers")(x, None)
        return nn.Dense(10, name="classifier")(x)


digits = load_digits()
inputs = (digits.data / 16).astype("float32")
train, validation = (Dataset(inputs[rows], digits.target[rows]) for rows in (slice(0, 300), slice(300, 600)))

model = ResidualMLP()
params = model.init(jax.random.key(0), inputs[:1])["params"]  # in place of pretrained ones
genes = masking.make_genes(params, {"layers/.*": masking.Stacked("layer_{}"), "classifier/.*": None})  # None = always trains
network = from_function.make_network(lambda params, x, key: model.apply({"params": params}, x), genes)
options = Options(gens=3, epochs=10, learning_rate=3e-3, head_learning_rate=1e-2)
problem = make_problem(network, from_function.split(params, genes), train, validation, options, genes=genes)
found = run_search(problem, options).found

print(f"{Space(genes.names).describe(found.genome)}: accuracy {found.validation[0]:.3f}")
masking.write_mask("mask.json", genes, found.best.genome)
params = from_function.join(found.best.params, genes)  # the fine-tuned parameters, as the module takes them
