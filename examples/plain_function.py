"""Searches which layers to freeze of a model that is a function of a tree of arrays.

    python examples/plain_function.py

It ends in seconds. Put your own module, pretrained parameters and arrays in the place of these.
"""

import jax
import numpy as np
from sklearn.datasets import load_digits

from gafreeze_jax import Space, masking
from gafreeze_jax.engine.network import Dataset
from gafreeze_jax.models import from_function
from gafreeze_jax.options import Options
from gafreeze_jax.runs.search_run import run_search
from gafreeze_jax.tasks.base import make_problem


def apply(params, x):
    for layer in params["layers"]:
        x = jax.nn.relu(x @ layer["kernel"] + layer["bias"])
    return x @ params["classifier"]


digits = load_digits()
inputs = (digits.data / 16).astype("float32")
train, validation = (Dataset(inputs[rows], digits.target[rows]) for rows in (slice(0, 300), slice(300, 600)))

rng = np.random.default_rng(0)
normal = lambda *shape: rng.normal(size=shape, scale=(2 / shape[0]) ** 0.5).astype("float32")  # noqa: E731
layers = [{"kernel": normal(*shape), "bias": np.zeros(shape[1], "float32")} for shape in ((64, 32), (32, 16), (16, 8))]
params = {"layers": layers, "classifier": normal(8, 10)}  # in place of pretrained ones
genes = masking.make_genes(params, {r"layers/(\d)/.*": r"layer_\1", "classifier": None})  # None = always trains
network = from_function.make_network(lambda params, x, key: apply(params, x), genes)
options = Options(gens=3, epochs=10, learning_rate=3e-3, head_learning_rate=1e-2)
problem = make_problem(network, from_function.split(params, genes), train, validation, options, genes=genes)
found = run_search(problem, options).found

print(f"{Space(genes.names).describe(found.genome)}: accuracy {found.validation[0]:.3f}")
masking.write_mask("mask.json", genes, found.best.genome)
params = from_function.join(found.best.params, genes)  # the fine-tuned parameters
