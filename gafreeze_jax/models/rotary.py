"""Rotary position embeddings (Su et al. 2021): queries and keys are turned by angles that grow with a token's position."""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from gafreeze_jax.extras import needs
from gafreeze_jax.models import configs, layers

with needs("text"):
    import flax.linen as nn

# What each type needs beside `rope_theta`.
TYPES = {
    "default": (),
    "linear": ("factor",),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"),
}
SETTINGS = configs.or_null(configs.Rule("an object", lambda value: isinstance(value, Mapping)))


def settings(theta: float, given: tuple | None, **defaults: Any) -> dict[str, Any]:
    """What a config's object says, and what holds for entries that it lacks. `type` is the old name of `rope_type`."""
    entries = {name: value for name, value in given or () if value is not None}
    kind = entries.pop("type", "default")
    return {"rope_theta": theta, "rope_type": kind, "partial_rotary_factor": 1.0, **defaults, **entries}


def problems(settings: Mapping[str, Any]) -> Iterator[str]:
    """What is wrong with settings."""
    kind = settings["rope_type"]
    if kind not in TYPES:
        yield f"rope_type must be one of {', '.join(TYPES)}, got {kind!r}"
    needed = ("rope_theta", "partial_rotary_factor", *TYPES.get(kind, ()))
    wrong = [name for name in needed if not configs.POSITIVE.is_right(settings.get(name))]
    for name in wrong:
        yield f"{name} must be {configs.POSITIVE.expected}, got {settings.get(name)!r}"
    if kind == "llama3" and not wrong and (high := settings["high_freq_factor"]) <= (low := settings["low_freq_factor"]):
        yield f"high_freq_factor must be above low_freq_factor {low}, got {high}"


def frequencies(width: int, settings: Mapping[str, Any]) -> tuple[float, ...]:
    """Angles from one position to the next: width / 2 of them, float32.

    Args:
      width: number of a head's features that are turned, even.
      settings: those of `settings`. With "linear" positions are divided by `factor` (Chen et al. 2023); with "llama3" (Llama
        3.1) only where frequencies are low, and between the two limits in part.
    """
    base = np.float32(1) / np.float32(settings["rope_theta"]) ** (np.arange(0, width, 2, dtype=np.float32) / np.float32(width))
    kind, factor = settings["rope_type"], settings.get("factor", 1.0)
    if kind == "linear":
        base = base / np.float32(factor)
    elif kind == "llama3":
        low, high = settings["low_freq_factor"], settings["high_freq_factor"]
        turns = settings["original_max_position_embeddings"] * base / (2 * math.pi)
        kept = np.clip((turns - low) / (high - low), 0, 1)
        base = (base * (kept + (1 - kept) / factor)).astype(np.float32)
    return tuple(base.tolist())


def positions(segments: Array) -> Array:
    """Of tokens in their texts: segments [R, S] -> [R * S]. A text has neighbouring places of a row."""
    place = jnp.arange(segments.shape[1])[None]
    begins = jnp.pad(segments[:, 1:] != segments[:, :-1], ((0, 0), (1, 0)), constant_values=True)
    return (place - jax.lax.cummax(jnp.where(begins, place, 0), axis=1)).reshape(-1)


def attend(
    module: nn.Module,
    query: Array,
    key: Array,
    value: Array,
    segments: Array,
    at: Array | None,
    *,
    frequencies: Sequence[float],
    **options: Any,
) -> Array:
    """`layers.attend` with rotary positions, and with the number of heads and the scale that follow from the query's shape.

    Args:
      query: [R * S, H, W], or [B, H, W] with `at`.
      key, value: [R * S, K, W].

    Returns:
      [R * S, H * W], or [B, H * W] with `at`.
    """
    places, (num_queries, num_heads, width) = positions(segments), query.shape
    key = rotate(key, places, frequencies)
    query = rotate(query, places if at is None else places[at], frequencies).reshape(num_queries, -1)
    return layers.attend(module, query, key, value, segments, at, num_heads=num_heads, scale=width**-0.5, **options)


def rotate(x: Array, positions: Array, frequencies: Sequence[float]) -> Array:
    """Turns features i and i + n of each head, for the n frequencies; further features stay.

    Args:
      x: [N, H, W], of H heads.
      positions: [N].
      frequencies: [n].

    Returns:
      An array like x.
    """
    n = len(frequencies)
    angles = (positions.astype(jnp.float32)[:, None] * np.array(frequencies, np.float32)[None])[:, None]
    cos, sin = jnp.cos(angles), jnp.sin(angles)
    first, second = (part.astype(jnp.float32) for part in (x[..., :n], x[..., n : 2 * n]))
    turned = jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
    return jnp.concatenate([turned.astype(x.dtype), x[..., 2 * n :]], axis=-1)
