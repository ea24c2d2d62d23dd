"""Finds which layers to freeze of a model that is a function of a tree of arrays, and shows how it is cut into blocks.

    python examples/plain_function.py

It ends in seconds. Put your own function, pretrained parameters and arrays in the place of these.
"""

import jax
import numpy as np
from sklearn.datasets import load_digits

import gafreeze_jax


def apply(params, x):
    for layer in params["layers"]:
        x = jax.nn.relu(x @ layer["kernel"] + layer["bias"])
    return x @ params["classifier"]


digits = load_digits()
inputs = (digits.data / 16).astype("float32")
train, validation = ((inputs[rows], digits.target[rows]) for rows in (slice(0, 300), slice(300, 600)))

rng = np.random.default_rng(0)
normal = lambda *shape: rng.normal(size=shape, scale=(2 / shape[0]) ** 0.5).astype("float32")  # noqa: E731
layers = [{"kernel": normal(*shape), "bias": np.zeros(shape[1], "float32")} for shape in ((64, 32), (32, 16), (16, 8))]
params = {"layers": layers, "classifier": normal(8, 10)}  # in place of pretrained ones
genes = gafreeze_jax.make_genes(params, {r"layers/(\d)/.*": r"layer_\1", "classifier": None})  # None = always trains
print(gafreeze_jax.explain(gafreeze_jax.cut(apply, params, genes, inputs[:2])))
options = {"gens": 3, "epochs": 10, "learning_rate": 3e-3, "head_learning_rate": 1e-2}
found = gafreeze_jax.search(apply, params, genes, train, validation, options=options)

print(f"{found.verdict['sentence']} See {found.folder}/report.html")
params = found.model  # the fine-tuned parameters
