"""Dense and convolutional networks as chains of blocks.

    network, shapes = make_cnn((28, 28, 1), channels=(16, 32), dense=128, num_classes=10)
    params = init_params(jax.random.key(0), shapes)
    head = init_head(jax.random.key(1), shapes)

Shapes are those of the kernels, by block. Inputs are float32, images [B, H, W, C].
"""

import itertools
import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from gafreeze_jax.engine.network import Block, Network
from gafreeze_jax.models.convolutions import convolve

KERNEL = 3  # height and width of the convolutions
Shapes = dict[str, tuple[int, ...]]


def make_dense(sizes: Sequence[int]) -> tuple[Network, Shapes]:
    """A multilayer perceptron with relu: genes `dense_0`, `dense_1`, ...; its last layer is the head.

    Args:
      sizes: numbers of inputs, of units of each hidden layer, and of classes.

    Raises:
      ValueError: if there are fewer than three, so that no layer has a gene, or if one is not positive.

    >>> make_dense([10, 32, 16, 8, 3])[1]
    {'dense_0': (10, 32), 'dense_1': (32, 16), 'dense_2': (16, 8), 'head': (8, 3)}
    """
    _check_positive(sizes=sizes)
    if len(sizes) < 3:
        raise ValueError(f"sizes must be those of the inputs, of at least one hidden layer and of the classes, got {sizes}")
    names = [*(f"dense_{i}" for i in range(len(sizes) - 2)), "head"]
    return _make_network(dict(zip(names, itertools.pairwise(sizes), strict=True)))


def make_cnn(image: Sequence[int], channels: Sequence[int], dense: int, num_classes: int) -> tuple[Network, Shapes]:
    """A convolutional network with relu: genes `conv_0`, `conv_1`, ... and `dense`; a linear classifier is the head.

    Every convolution is 3 x 3 and followed by 2 x 2 max-pooling.

    Args:
      image: height, width and channels of the input.
      channels: of each convolution.
      dense: units of the dense layer.

    Raises:
      ValueError: if there is no convolution, if a size is not positive, or if nothing is left of an image after pooling.

    >>> make_cnn((28, 28, 1), channels=(16, 32), dense=128, num_classes=10)[1]
    {'conv_0': (3, 3, 1, 16), 'conv_1': (3, 3, 16, 32), 'dense': (1568, 128), 'head': (128, 10)}
    """
    _check_positive(image=image, channels=channels, dense=[dense], num_classes=[num_classes])
    if len(image) != 3:
        raise ValueError(f"image must be height, width and channels, got {image}")
    height, width = (size >> len(channels) for size in image[:2])
    if not height * width:
        raise ValueError(f"an image of {image[0]} x {image[1]} cannot be halved {len(channels)} times; take fewer convolutions")
    widths = [image[2], *channels]
    convolutions = {f"conv_{i}": (KERNEL, KERNEL, *widths[i : i + 2]) for i in range(len(channels))}
    return _make_network({**convolutions, "dense": (height * width * channels[-1], dense), "head": (dense, num_classes)})


def _check_positive(**sizes: Sequence[int]) -> None:
    if problems := [f"{name}: {list(values)}" for name, values in sizes.items() if not values or min(values) < 1]:
        raise ValueError(f"sizes must be positive integers, at least one; got {'; '.join(problems)}")


def _make_network(shapes: Shapes) -> tuple[Network, Shapes]:
    blocks = (
        Block(name, hidden if len(shape) == 2 else pooled_convolution) for name, shape in shapes.items() if name != "head"
    )
    return Network(tuple(blocks), linear), shapes


def init_params(key: Array, shapes: Shapes) -> dict[str, dict[str, np.ndarray]]:
    """Kernels from a normal distribution of variance 2 / inputs (He et al. 2015), biases 0: {block name: ..., "head": ...}."""
    ends = np.cumsum([math.prod(shape) for shape in shapes.values()])
    parts = np.split(np.asarray(jax.random.normal(key, (ends[-1],))), ends[:-1])  # drawn at once, as every size compiles anew
    return {
        name: {
            "kernel": part.reshape(shape) * np.float32(math.sqrt(2 / math.prod(shape[:-1]))),
            "bias": np.zeros(shape[-1], np.float32),
        }
        for part, (name, shape) in zip(parts, shapes.items(), strict=True)
    }


def init_head(key: Array, shapes: Shapes) -> dict[str, np.ndarray]:
    """A fresh head alone."""
    return init_params(key, {"head": shapes["head"]})["head"]


def linear(params, x, context, *, frozen, key):
    return x.reshape(len(x), -1) @ params["kernel"] + params["bias"][None]


def hidden(params, x, context, *, frozen, key):
    return jax.nn.relu(linear(params, x, context, frozen=frozen, key=key))


def convolution(params, x, context, *, frozen, key):
    return jax.nn.relu(convolve(x, params["kernel"]) + params["bias"][None, None, None])


def pooled_convolution(params, x, context, *, frozen, key):
    return max_pool(convolution(params, x, context, frozen=frozen, key=key))


def max_pool(x: Array) -> Array:
    """Maximum of 2 x 2 pixels, without overlap: [B, H, W, C] -> [B, H // 2, W // 2, C]. An odd last row or column is left out.

    Its gradient takes a tenth of the time of that of `lax.reduce_window` on a CPU.
    """
    height, width = (size // 2 * 2 for size in x.shape[1:3])
    rows = jnp.maximum(x[:, :height:2], x[:, 1:height:2])
    return jnp.maximum(rows[:, :, :width:2], rows[:, :, 1:width:2])
