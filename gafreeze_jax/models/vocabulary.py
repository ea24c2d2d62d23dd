"""Leaves word vectors that a task does not use out of training, and puts them back."""

import dataclasses

import numpy as np

from gafreeze_jax.models.base import Model


def trim(model: Model, params: dict, *ids: np.ndarray) -> tuple[Model, dict, np.ndarray]:
    """Leaves out the word vectors of tokens that a task does not use, half the parameters of a small BERT.

    They get no gradient, so leaving them out changes nothing but that weight decay does not shrink them.

    Args:
      ids: int arrays, all the tokens used.

    Returns:
      Model and parameters with the K rows that are used, and the sorted ids of these rows, [K]; `np.searchsorted` of it
      gives a token's new id.
    """
    used = np.unique(np.concatenate(ids))
    embeddings = params["embeddings"]
    trimmed = params | {"embeddings": embeddings | {"word": embeddings["word"][used]}}
    config = dataclasses.replace(model.config, vocab_size=len(used))
    return dataclasses.replace(model, config=config), trimmed, used


def restore(params: dict, used: np.ndarray, pretrained: dict) -> dict:
    """The reverse of `trim`: rows that were left out come from the pretrained parameters."""
    trained = params["embeddings"]["word"]
    word = np.array(pretrained["embeddings"]["word"], trained.dtype)
    word[used] = trained
    return params | {"embeddings": params["embeddings"] | {"word": word}}
