"""Finds which layers of an Equinox module to freeze.

    python examples/equinox_module.py

It ends in seconds. Put your own module and arrays in the place of these.
"""

import equinox as eqx
import jax
from sklearn.datasets import load_digits

import gafreeze_jax

digits = load_digits()
inputs = (digits.data / 16).astype("float32")
train, validation = ((inputs[rows], digits.target[rows]) for rows in (slice(0, 300), slice(300, 600)))

model = eqx.nn.MLP(64, 10, width_size=32, depth=3, key=jax.random.key(0))  # in place of a pretrained one
rules = {r"layers/([0-2])/.*": r"layer_\1", "layers/3/.*": None}  # None = always trains
options = {"gens": 3, "epochs": 10, "learning_rate": 3e-3, "head_learning_rate": 1e-2}
found = gafreeze_jax.search(model, None, rules, train, validation, options=options)

print(f"{found.verdict['sentence']} See {found.folder}/report.html")
model = found.model  # the fine-tuned one
