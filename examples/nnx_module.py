"""Searches which layers of a Flax NNX module to freeze.

    python examples/nnx_module.py

It ends in seconds. Put your own module, pretrained parameters and arrays in the place of these.
"""

from flax import nnx
from sklearn.datasets import load_digits

from gafreeze_jax import Space, masking
from gafreeze_jax.engine.network import Dataset
from gafreeze_jax.models import from_function
from gafreeze_jax.options import Options
from gafreeze_jax.runs.search_run import run_search
from gafreeze_jax.tasks.base import make_problem


class MLP(nnx.Module):
    def __init__(self, rngs):
        self.layers = nnx.List([nnx.Linear(inputs, outputs, rngs=rngs) for inputs, outputs in ((64, 32), (32, 16), (16, 8))])
        self.classifier = nnx.Linear(8, 10, rngs=rngs)

    def __call__(self, x):
        for layer in self.layers:
            x = nnx.relu(layer(x))
        return self.classifier(x)


digits = load_digits()
inputs = (digits.data / 16).astype("float32")
train, validation = (Dataset(inputs[rows], digits.target[rows]) for rows in (slice(0, 300), slice(300, 600)))

model = MLP(nnx.Rngs(0))  # in place of a pretrained one
graph, params, rest = nnx.split(model, nnx.Param, ...)
genes = masking.make_genes(params, {r"layers/(\d)/.*": r"layer_\1", "classifier/.*": None})  # None = always trains
network = from_function.make_network(lambda params, x, key: nnx.merge(graph, params, rest)(x), genes)
options = Options(gens=3, epochs=10, learning_rate=3e-3, head_learning_rate=1e-2)
problem = make_problem(network, from_function.split(params, genes), train, validation, options, genes=genes)
found = run_search(problem, options).found

print(f"{Space(genes.names).describe(found.genome)}: accuracy {found.validation[0]:.3f}")
masking.write_mask("mask.json", genes, found.best.genome)
nnx.update(model, from_function.join(found.best.params, genes))  # the model is the fine-tuned one now
