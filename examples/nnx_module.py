"""Finds which layers of a Flax NNX module to freeze.

    python examples/nnx_module.py

It ends in seconds. Put your own module and arrays in the place of these.
"""

from flax import nnx
from sklearn.datasets import load_digits

import gafreeze_jax


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
train, validation = ((inputs[rows], digits.target[rows]) for rows in (slice(0, 300), slice(300, 600)))

model = MLP(nnx.Rngs(0))  # in place of a pretrained one
rules = {r"layers/(\d)/.*": r"layer_\1", "classifier/.*": None}  # None = always trains
options = {"gens": 3, "epochs": 10, "learning_rate": 3e-3, "head_learning_rate": 1e-2}
found = gafreeze_jax.search(model, None, rules, train, validation, options=options)

print(f"{found.verdict['sentence']} See {found.folder}/report.html")
model = found.model  # the fine-tuned one
