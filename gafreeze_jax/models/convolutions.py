"""Convolutions of images, computed in the way that is fast where they run."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from gafreeze_jax.models import products

FEW_CHANNELS = 128  # up to which copying pixels costs more than it saves (`benchmarks/convolutions.py`)


def convolve(x: Array, kernel: Array, stride: int = 1, dtype: Any = jnp.float32) -> Array:
    """Convolution with zero padding by half the kernel: [B, H, W, I] and [k, k, I, O] -> [B, H / stride, W / stride, O].

    Sizes are rounded up; k is odd.

    Args:
      dtype: of the operands of products.
    """
    # XLA's own is slow on CPUs when it is run backwards, mapped over kernels or in a loop (twenty times in a `lax.scan`).
    if jax.default_backend() != "cpu":
        return convolve_by_xla(x, kernel, stride, dtype)
    if kernel.shape[0] > 1 and stride == 1 and kernel.shape[2] <= FEW_CHANNELS:
        by_product = functools.partial(convolve_by_rows, dtype=dtype)
    else:
        by_product = functools.partial(convolve_by_patches, stride=stride, dtype=dtype)
    return jax.checkpoint(by_product)(x, kernel)  # copying again for the backward pass takes no time and saves much memory


def convolve_depthwise(x: Array, kernel: Array) -> Array:
    """A convolution of each channel by itself, padded as `convolve` does: [B, H, W, C] and [k, k, 1, C] -> [B, H, W, C]."""
    if jax.default_backend() != "cpu":
        margin = kernel.shape[0] // 2
        window = (1, 1), ((margin, margin), (margin, margin))
        return jax.lax.conv_general_dilated(
            x, kernel.astype(x.dtype), *window, dimension_numbers=("NHWC", "HWIO", "NHWC"), feature_group_count=x.shape[-1]
        )
    return jax.checkpoint(_add_shifted)(x, kernel)


def _add_shifted(x: Array, kernel: Array) -> Array:
    (size, *_), (_, height, width, _) = kernel.shape, x.shape
    margin = size // 2
    padded = jnp.pad(x, ((0, 0), (margin, margin), (margin, margin), (0, 0)))
    taps = ((i, j) for i in range(size) for j in range(size))
    parts = (padded[:, i : i + height, j : j + width] * kernel[i, j][None, None] for i, j in taps)
    return functools.reduce(jnp.add, parts)


def convolve_patches(x: Array, kernel: Array, dtype: Any = jnp.float32) -> Array:
    """Convolution with a stride of the kernel's size: [B, H, W, I] and [k, k, I, O] -> [B, H // k, W // k, O]."""
    size, _, inputs, outputs = kernel.shape
    height, width = x.shape[1] // size, x.shape[2] // size
    x = x[:, : height * size, : width * size].reshape(len(x), height, size, width, size, inputs)
    patches = x.transpose(0, 1, 3, 2, 4, 5).reshape(len(x), height, width, -1)
    return _product(patches, kernel.reshape(-1, outputs), dtype)


def convolve_by_xla(x: Array, kernel: Array, stride: int = 1, dtype: Any = jnp.float32) -> Array:
    margin = kernel.shape[0] // 2
    window = (stride, stride), ((margin, margin), (margin, margin))
    return jax.lax.conv_general_dilated(
        x.astype(dtype), kernel.astype(dtype), *window, dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


def convolve_by_patches(x: Array, kernel: Array, stride: int = 1, dtype: Any = jnp.float32) -> Array:
    """One matrix product of all k x k patches, which are shifted copies of the image side by side."""
    (size, _, _, outputs), margin = kernel.shape, kernel.shape[0] // 2
    height, width = (-(-length // stride) for length in x.shape[1:3])
    padded = jnp.pad(x, ((0, 0), (margin, margin), (margin, margin), (0, 0)))

    def span(first: int, num: int) -> slice:
        return slice(first, first + (num - 1) * stride + 1, stride)

    patches = jnp.concatenate([padded[:, span(i, height), span(j, width)] for i in range(size) for j in range(size)], -1)
    return _product(patches, kernel.reshape(-1, outputs), dtype)


def convolve_by_rows(x: Array, kernel: Array, dtype: Any = jnp.float32) -> Array:
    """With stride 1: copies are shifted sideways only, and what a row gives to those above and below is added up afterwards.

    It copies a third of what patches do.
    """
    (size, _, inputs, outputs), margin = kernel.shape, kernel.shape[0] // 2
    height, width = x.shape[1:3]
    padded = jnp.pad(x, ((0, 0), (margin, margin), (margin, margin), (0, 0)))
    rows = jnp.concatenate([padded[:, :, j : j + width] for j in range(size)], -1)
    given = _product(rows, kernel.transpose(1, 2, 0, 3).reshape(size * inputs, size * outputs), dtype)
    parts = (given[:, i : i + height, :, i * outputs : (i + 1) * outputs] for i in range(size))
    return functools.reduce(jnp.add, parts)


def _product(x: Array, kernel: Array, dtype: Any) -> Array:
    """[B, H, W, I] and [I, O] -> [B, H, W, O]."""
    return products.matmul(dtype, x.reshape(-1, x.shape[-1]), kernel).reshape(*x.shape[:-1], -1)
