"""Finds which layers of a Flax Linen module to freeze whose layers are stacked by `nn.scan`: a gene for each index.

    python examples/scanned_linen.py

It ends in seconds. Put your own module, pretrained parameters and arrays in the place of these.
"""

import flax.linen as nn
import jax
from sklearn.datasets import load_digits

import gafreeze_jax


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
train, validation = ((inputs[rows], digits.target[rows]) for rows in (slice(0, 300), slice(300, 600)))

model = ResidualMLP()
params = model.init(jax.random.key(0), inputs[:1])["params"]  # in place of pretrained ones
rules = {"layers/.*": gafreeze_jax.Stacked("layer_{}"), "classifier/.*": None}  # None = always trains
options = {"gens": 3, "epochs": 10, "learning_rate": 3e-3, "head_learning_rate": 1e-2}
found = gafreeze_jax.search(model, params, rules, train, validation, options=options)

print(f"{found.verdict['sentence']} See {found.folder}/report.html")
params = found.model  # the fine-tuned parameters, as the module takes them
