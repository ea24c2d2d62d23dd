"""Finds which layers of an Equinox module with running statistics to freeze.

    python examples/equinox_state.py

It ends in seconds. Frozen layers normalise by their running statistics, and keep them.
"""

import equinox as eqx
import jax
from sklearn.datasets import load_digits

import gafreeze_jax


class CNN(eqx.Module):
    layers: list
    classifier: eqx.nn.Linear

    def __init__(self, key):
        sizes = [1, 8, 16, 16]
        *keys, last = jax.random.split(key, 4)
        self.layers = [
            (eqx.nn.Conv2d(a, b, 3, stride=2, padding=1, key=key), eqx.nn.BatchNorm(b, "batch", mode="batch", momentum=0.9))
            for a, b, key in zip(sizes, sizes[1:], keys, strict=False)
        ]
        self.classifier = eqx.nn.Linear(16, 10, key=last)

    def __call__(self, x, state):
        for convolution, norm in self.layers:
            x, state = norm(convolution(x), state)
            x = jax.nn.relu(x)
        return self.classifier(x.mean((1, 2))), state


digits = load_digits()
inputs = (digits.images[:, None] / 16).astype("float32")
train, validation = ((inputs[rows], digits.target[rows]) for rows in (slice(0, 300), slice(300, 600)))

model, state = eqx.nn.make_with_state(CNN)(jax.random.key(0))  # in place of pretrained ones
rules = {r"(?:params|batch_stats)/layers/(\d)/.*": r"layer_\1", "params/classifier/.*": None}  # None = always trains
options = {"gens": 3, "epochs": 6, "learning_rate": 6e-3, "head_learning_rate": 1e-2}
found = gafreeze_jax.search(model, state, rules, train, validation, options=options)

print(f"{found.verdict['sentence']} See {found.folder}/report.html")
model, state = found.model  # the fine-tuned ones
