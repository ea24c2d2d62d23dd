"""Finds which layers of a Haiku network to freeze, and shows how it is cut into blocks.

    python examples/haiku_function.py

It ends in seconds. Put your own network, pretrained parameters and arrays in the place of these.
"""

import haiku as hk
import jax
from sklearn.datasets import load_digits

import gafreeze_jax


def network(x, is_training):
    for width in (32, 16, 8):
        x = jax.nn.relu(hk.Linear(width)(x))
        x = hk.dropout(hk.next_rng_key(), 0.1, x) if is_training else x
    return hk.Linear(10, name="classifier")(x)


model = hk.transform(network)


def apply(params, x, key):
    return model.apply(params, key, x, is_training=key is not None)  # Haiku takes the key before the inputs


digits = load_digits()
inputs = (digits.data / 16).astype("float32")
train, validation = ((inputs[rows], digits.target[rows]) for rows in (slice(0, 300), slice(300, 600)))

params = model.init(jax.random.key(0), inputs[:1], is_training=False)  # in place of pretrained ones
rules = {"linear/.*": "linear_0", r"linear_(\d)/.*": r"linear_\1", "classifier/.*": None}  # None = always trains
genes = gafreeze_jax.make_genes(params, rules)
print(gafreeze_jax.explain(gafreeze_jax.cut(apply, params, genes, inputs[:2])))
options = {"gens": 3, "epochs": 10, "learning_rate": 3e-3, "head_learning_rate": 1e-2}
found = gafreeze_jax.search(apply, params, rules, train, validation, options=options)

print(f"{found.verdict['sentence']} See {found.folder}/report.html")
params = found.model  # the fine-tuned parameters, as `model.apply` takes them
