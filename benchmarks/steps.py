"""Training steps of a BERT on random texts: how long one takes, and its operations."""

import time
from collections.abc import Callable
from typing import Any

import numpy as np

from gafreeze_jax.data import tokens
from gafreeze_jax.models import bert

NUM_CLASSES = 2
BLOCKS = (3, 48)  # steps; the longer one where steps are so short that a block's time drowns in noise
MOST_STEPS = 3 * BLOCKS[-1]
NOISE_SECONDS = 0.1


def make_texts(num: int, length: int, vocabulary: int) -> tokens.Tokens:
    """Texts of `length` random tokens."""
    ids = np.random.default_rng(0).integers(vocabulary, size=num * length, dtype=np.int32)
    positions = np.tile(np.arange(length, dtype=np.int32), num)
    inputs = {"ids": ids, "positions": positions, "types": np.zeros_like(ids)}
    return tokens.Tokens(inputs, np.arange(num) * length, np.full(num, length))


def seconds_per_step(train: Callable[[int], Any]) -> float:
    """What `train(num_steps)` takes longer for three blocks than for one, so that all but the steps drops out."""
    difference = 0.0
    for block in BLOCKS:
        seconds = []
        for num_steps in (block, 3 * block):
            start = time.perf_counter()
            train(num_steps)
            seconds.append(time.perf_counter() - start)
        difference = (seconds[1] - seconds[0]) / (2 * block)
        if 2 * block * difference > NOISE_SECONDS:
            break
    return difference


def step_flops(config: bert.BertConfig, genome: np.ndarray, num_texts: int, length: int) -> float:
    """Floating-point operations of the matrix products of a step of ours, from shapes.

    Layers are run forwards from the lowest trainable one, and backwards down to it; its own input gets no gradient, and the
    weights of frozen layers above it get none. The last layer is computed for the first token of each text only.
    """
    width, hidden, num_layers = config.hidden_size, config.intermediate_size, config.num_hidden_layers
    num_tokens = num_texts * length
    depth = int(np.append(genome, False).argmin())
    any_below = depth <= num_layers
    flops = 2.0 * num_texts * ((2 + any_below) * width**2 + 3 * width * NUM_CLASSES)  # the head
    for index in range(max(depth, 1), num_layers + 1):
        num_queries = num_texts if index == num_layers else num_tokens
        projections = 2.0 * (num_queries + 2 * num_tokens) * width**2  # query, key, value
        others = 2.0 * num_queries * (width**2 + 2 * width * hidden)
        attention = 4.0 * num_queries * length * width
        flops += 2 * (projections + others) + 3 * attention
        if index == depth:
            flops -= projections
        if not genome[index]:
            flops += projections + others
    return flops
