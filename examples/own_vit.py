"""Finds which layers of one of this project's own networks to freeze, a vision transformer, given as a plain function.

    python examples/own_vit.py

It ends in a minute, most of which compiles. For a pretrained one, and for texts, `experiments/` do more: they read checkpoints
in the Hugging Face layout, and save them.
"""

import jax
from sklearn.datasets import load_digits

import gafreeze_jax
from gafreeze_jax.models import base, vit

digits = load_digits()
inputs = (digits.images[..., None] * 255 / 16).astype("uint8")  # [N, height, width, channels]
train, validation = ((inputs[rows], digits.target[rows]) for rows in (slice(0, 200), slice(200, 400)))

sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
config = vit.ViTConfig(image_size=8, patch_size=2, num_channels=1, **sizes)
model = base.Model(vit.VIT, config, num_classes=10)
network = model.make_network()
params = base.split_layers(model.init_params(jax.random.key(0)), network.names)  # in place of pretrained ones


def apply(params, images):
    x = images
    for block in network.blocks:
        x = block.apply(params[block.name], x, {}, frozen=True, key=None)
    return network.head(params["head"], x, {}, frozen=True, key=None)


rules = {f"({'|'.join(network.names)})/.*": r"\1", "head/.*": None}  # the head always trains
options = {"gens": 1, "epochs": 10, "learning_rate": 3e-3, "head_learning_rate": 1e-2, "finalist_seeds": 1}
found = gafreeze_jax.search(apply, params, rules, train, validation, options=options)

print(f"{found.verdict['sentence']} See {found.folder}/report.html")
