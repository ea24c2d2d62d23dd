"""Relative positions that all layers of a network share: parameters of a part of their own, which attention reads.

What is added to the score of a query and a key depends on how far the key is from the query. Within a row of L tokens there are
2 L - 1 distances, from L - 1 (the key is that far to the left) down to 1 - L; arrays "by distance" have them in this order.
"""

from collections.abc import Callable

import jax.numpy as jnp
import numpy as np
from jax import Array

NAME = "relative_positions"  # of the part, and so of the gene
Bias = Callable[[Array, Array, Array], Array]  # as in `layers.attend`


def distances(length: int) -> np.ndarray:
    """
    >>> distances(3).tolist()
    [2, 1, 0, -1, -2]
    """
    return np.arange(length - 1, -length, -1)


def columns(places: Array, length: int) -> Array:
    """Where each key's distance from a query stands among distances: places of queries [B, 1] -> [B, L]."""
    return jnp.arange(length)[None] + (length - 1 - places)


def spread(x: Array) -> Array:
    """From distances to keys, without a gather: [..., L, 2 L - 1] by distance from each of L queries -> [..., L, L].

    >>> spread(jnp.array([[1, 0, -1], [1, 0, -1]])).tolist()
    [[0, -1], [1, 0]]
    """
    *lead, length, width = x.shape
    flat = jnp.pad(x, [*[(0, 0)] * (x.ndim - 1), (0, 1)]).reshape(*lead, -1)
    return flat[..., length - 1 : length - 1 + length * width].reshape(*lead, length, width)[..., :length]
