"""Searches which layers of an Equinox module to freeze.

    python examples/equinox_module.py

It ends in seconds. Put your own module, pretrained parameters and arrays in the place of these.
"""

import equinox as eqx
import jax
from sklearn.datasets import load_digits

from gafreeze_jax import Space, masking
from gafreeze_jax.engine.network import Dataset
from gafreeze_jax.models import from_function
from gafreeze_jax.options import Options
from gafreeze_jax.runs.search_run import run_search
from gafreeze_jax.tasks.base import make_problem

digits = load_digits()
inputs = (digits.data / 16).astype("float32")
train, validation = (Dataset(inputs[rows], digits.target[rows]) for rows in (slice(0, 300), slice(300, 600)))

model = eqx.nn.MLP(64, 10, width_size=32, depth=3, key=jax.random.key(0))  # in place of a pretrained one
params, static = eqx.partition(model, eqx.is_inexact_array)
genes = masking.make_genes(params, {r"layers/([0-2])/.*": r"layer_\1", "layers/3/.*": None})  # None = always trains
network = from_function.make_network(lambda params, x, key: jax.vmap(eqx.combine(params, static))(x), genes)
options = Options(gens=3, epochs=10, learning_rate=3e-3, head_learning_rate=1e-2)
problem = make_problem(network, from_function.split(params, genes), train, validation, options, genes=genes)
found = run_search(problem, options).found

print(f"{Space(genes.names).describe(found.genome)}: accuracy {found.validation[0]:.3f}")
masking.write_mask("mask.json", genes, found.best.genome)
model = eqx.combine(from_function.join(found.best.params, genes), static)  # the fine-tuned one
