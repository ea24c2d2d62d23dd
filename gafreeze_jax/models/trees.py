"""Parameter trees of transformers in other forms: by half layers, and without the word vectors that a task does not use."""

import dataclasses
from typing import Any, Literal, TypeVar

import numpy as np

Granularity = Literal["layer", "sublayer"]
PARTS = ("attention", "mlp")  # of a layer

C = TypeVar("C", bound=Any)  # a config, which has a vocab_size


def split_layers(params: dict) -> dict:
    """Parameters by half layers: "layer_0": {"attention": ..., "mlp": ...} becomes "layer_0/attention" and "layer_0/mlp"."""
    split = {}
    for name, tree in params.items():
        split |= {f"{name}/{part}": tree[part] for part in PARTS} if tree.keys() == set(PARTS) else {name: tree}
    return split


def join_layers(params: dict) -> dict:
    """The reverse of `split_layers`; leaves whole layers as they are."""
    joined: dict = {}
    for name, tree in params.items():
        layer, _, part = name.partition("/")
        if part:
            joined.setdefault(layer, {})[part] = tree
        else:
            joined[layer] = tree
    return joined


def trim_vocabulary(config: C, params: dict, *ids: np.ndarray) -> tuple[C, dict, np.ndarray]:
    """Leaves out the word vectors of tokens that a task does not use, half the parameters of a small BERT.

    They get no gradient, so leaving them out changes nothing but that weight decay does not shrink them.

    Args:
      ids: int arrays, all the tokens used.

    Returns:
      Config and parameters with the K rows that are used, and the sorted ids of these rows, [K]; `np.searchsorted` of it
      gives a token's new id.
    """
    used = np.unique(np.concatenate(ids))
    embeddings = params["embeddings"]
    trimmed = params | {"embeddings": embeddings | {"word": embeddings["word"][used]}}
    return dataclasses.replace(config, vocab_size=len(used)), trimmed, used


def restore_vocabulary(params: dict, used: np.ndarray, pretrained: dict) -> dict:
    """The reverse of `trim_vocabulary`: rows that were left out come from the pretrained parameters."""
    word = np.array(pretrained["embeddings"]["word"])
    word[used] = params["embeddings"]["word"]
    return params | {"embeddings": params["embeddings"] | {"word": word}}
