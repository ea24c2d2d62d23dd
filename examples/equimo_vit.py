"""Finds which layers of a vision transformer of the library Equimo to freeze, which is taken as it is.

    pip install equimo
    python examples/equimo_vit.py

It ends in minutes, most of which compile. Put a pretrained model of the library and your own images in the place of these.
"""

import jax
from equimo.models import VisionTransformer
from sklearn.datasets import load_digits

import gafreeze_jax

digits = load_digits()
inputs = (digits.images[:, None] / 16).astype("float32")  # [N, channels, height, width]
train, validation = ((inputs[rows], digits.target[rows]) for rows in (slice(0, 200), slice(200, 400)))

model = VisionTransformer(8, 1, 32, patch_size=4, num_heads=2, depths=[2], num_classes=10, key=jax.random.key(0))
rules = {
    "patch_embed/.*|global_pos_embed/.*|cls_token|reg_tokens": "embeddings",
    r"blocks/0/blocks/(\d+)/.*": r"layer_\1",
    "norm/.*|head/.*": None,  # always trains
}
options = {"gens": 1, "epochs": 5, "learning_rate": 2e-3, "head_learning_rate": 1e-2, "finalist_seeds": 1}
found = gafreeze_jax.search(model, None, rules, train, validation, options=options)

print(f"{found.verdict['sentence']} See {found.folder}/report.html")
model = found.model  # the fine-tuned one
