"""Convolutions of images, computed in the way that is fast where they run."""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.custom_derivatives import SymbolicZero

from gafreeze_jax.engine import process
from gafreeze_jax.engine.network import ALONE
from gafreeze_jax.models import products

# A CPU with these instructions convolves such images faster by XLA.
VECTORS, XLA_CHANNELS, XLA_ROWS = "avx512f", 16, 8
# With at most this many input channels and at least this many rows, copying whole patches costs more than it saves.
FEW_CHANNELS, MANY_ROWS = 128, 16
ROWS_ADDED_UP = 8  # at once: more would be hardly faster, and take longer to compile


def convolve(x: Array, kernel: Array, stride: int = 1, dtype: Any = jnp.float32) -> Array:
    """Convolution with zero padding by half the kernel: [B, H, W, I] and [k, k, I, O] -> [B, H / stride, W / stride, O].

    Sizes are rounded up; k is odd.

    Args:
      dtype: of the operands of products.
    """
    if jax.default_backend() != "cpu" or is_left_to_xla(x.shape[1:3], kernel.shape[0], kernel.shape[2], stride, dtype):
        return convolve_by_xla(x, kernel, stride, dtype)
    # Copying again for the backward pass takes no time and saves much memory.
    if kernel.shape[0] > 1 and stride == 1 and kernel.shape[2] <= FEW_CHANNELS and x.shape[1] >= MANY_ROWS:
        return convolve_by_rows(jnp.dtype(dtype), x, kernel)
    strides, padding = centred_window(kernel.shape[0], stride)
    return jax.checkpoint(functools.partial(convolve_by_patches, strides=strides, padding=padding, dtype=dtype))(x, kernel)


def is_left_to_xla(image: Sequence[int], size: int, channels: int, stride: int, dtype: Any = jnp.float32) -> bool:
    """Whether XLA:CPU's own way is the fastest for images [H, W] of so many channels, as it is traced just now.

    Mapped over kernels it takes six times as long as ours, and twenty times in a loop; for few channels twice as long, and for
    images of 2 x 2 pixels a hundred times (`python benchmarks/convolutions.py`).
    """
    is_large = size > 1 and channels >= XLA_CHANNELS and min(image) >= XLA_ROWS
    is_fast = VECTORS in process.processor_features() and stride == 1 and jnp.dtype(dtype) == jnp.float32
    return ALONE.value and is_fast and is_large


def convolve_depthwise(x: Array, kernel: Array) -> Array:
    """A convolution of each channel by itself, padded as `convolve` does: [B, H, W, C] and [k, k, 1, C] -> [B, H, W, C]."""
    if jax.default_backend() != "cpu":
        return convolve_by_xla(x, kernel, dtype=x.dtype, groups=x.shape[-1])
    return add_shifted(x, kernel)


@jax.custom_vjp
def add_shifted(x: Array, kernel: Array) -> Array:
    """A depthwise convolution as a sum of shifted images.

    By JAX's own rule for derivatives XLA:CPU would form the sums of the kernel's gradient one element at a time. Without the
    barriers it computes what comes before the convolution again for each tap, and adds all taps in one loop, which is slower.
    """
    padded = jax.lax.optimization_barrier(_pad(x, len(kernel) // 2, len(kernel) // 2))

    def of_row(i: int) -> Array:
        parts = (_shifted(padded, i, j, x.shape) * kernel[i, j][None, None] for j in range(len(kernel)))
        return functools.reduce(jnp.add, parts)

    return functools.reduce(lambda total, i: jax.lax.optimization_barrier(total + of_row(i)), range(1, len(kernel)), of_row(0))


def _shifted(padded: Array, row: int, column: int, shape: Sequence[int], step: int = 1) -> Array:
    """The part [B, H / step, W, C] of an image that starts at a row, of which every `step`-th is taken, and a column."""
    num, height, width, channels = shape
    end = (num, row + height - step + 1, column + width, channels)
    return jax.lax.slice(padded, (0, row, column, 0), end, (1, step, 1, 1))


def _add_shifted_backward(residuals, cotangent):
    x, kernel = residuals
    if isinstance(cotangent, SymbolicZero):
        return None, None
    of_kernel = None if x is None else _gradient_of_taps(x, cotangent, len(kernel)).reshape(kernel.shape)
    return add_shifted(cotangent, kernel[::-1, ::-1]), of_kernel


def _gradient_of_taps(x: Array, cotangent: Array, size: int) -> Array:
    """Sums of products of the cotangent and each shifted image: [size, size, C]."""
    margin, missing = size // 2, -x.shape[1] % ROWS_ADDED_UP
    padded = jax.lax.optimization_barrier(jnp.pad(x, ((0, 0), (margin, margin + missing), (margin, margin), (0, 0))))
    cotangent = jnp.pad(cotangent, ((0, 0), (0, missing), (0, 0), (0, 0)))
    given = [cotangent[:, first::ROWS_ADDED_UP] for first in range(ROWS_ADDED_UP)]

    def of_tap(i: int, j: int) -> Array:
        """Products of the shifted image and the cotangent, added up over every few rows."""
        parts = (_shifted(padded, i + first, j, cotangent.shape, ROWS_ADDED_UP) * part for first, part in enumerate(given))
        return functools.reduce(jnp.add, parts)

    def of_row(i: int) -> Array:
        # The barrier keeps the sum, which is fast by itself, out of the loops of the products.
        return jax.lax.optimization_barrier(jnp.stack([of_tap(i, j) for j in range(size)])).sum((1, 2, 3))

    return jnp.stack([of_row(i) for i in range(size)])


def _kept(x: Any, kernel: Any) -> tuple[Array | None, Array]:
    """What gradients need: the image only for that of the kernel."""
    return x.value if kernel.perturbed else None, kernel.value


def _add_shifted_forward(x, kernel):
    return add_shifted(x.value, kernel.value), _kept(x, kernel)


add_shifted.defvjp(_add_shifted_forward, _add_shifted_backward, symbolic_zeros=True)


def convolve_patches(x: Array, kernel: Array, dtype: Any = jnp.float32) -> Array:
    """Convolution with a stride of the kernel's size: [B, H, W, I] and [k, k, I, O] -> [B, H // k, W // k, O]."""
    size, _, inputs, outputs = kernel.shape
    height, width = x.shape[1] // size, x.shape[2] // size
    x = x[:, : height * size, : width * size].reshape(len(x), height, size, width, size, inputs)
    patches = x.transpose(0, 1, 3, 2, 4, 5).reshape(len(x), height, width, -1)
    return _product(patches, kernel.reshape(-1, outputs), dtype)


def convolve_by_xla(x: Array, kernel: Array, stride: int = 1, dtype: Any = jnp.float32, groups: int = 1) -> Array:
    window, dimensions = centred_window(kernel.shape[0], stride), ("NHWC", "HWIO", "NHWC")
    return jax.lax.conv_general_dilated(
        x.astype(dtype), kernel.astype(dtype), *window, dimension_numbers=dimensions, feature_group_count=groups
    )


def centred_window(size: int, stride: int = 1) -> tuple[tuple[int, int], tuple[tuple[int, int], tuple[int, int]]]:
    """Strides and padding of a square kernel whose middle stands on each pixel, or on every `stride`-th."""
    margin = size // 2
    return (stride, stride), ((margin, margin), (margin, margin))


def convolve_by_patches(
    x: Array, kernel: Array, strides: Sequence[int], padding: Sequence[tuple[int, int]], dtype: Any = jnp.float32
) -> Array:
    """One matrix product of all patches, which are shifted copies of the image side by side.

    [B, ..., I] and [k, ..., I, O] -> [B, ..., O], with any number of axes between.

    Args:
      strides, padding: of each of these axes.
    """
    *sizes, _, outputs = kernel.shape
    padded = jax.lax.pad(x, jnp.zeros((), x.dtype), [(0, 0, 0), *((*margins, 0) for margins in padding), (0, 0, 0)])
    patches = padded
    for axis in range(len(sizes), 0, -1):  # one after the other, which takes fewer copies to compile
        size, stride = sizes[axis - 1], strides[axis - 1]
        end = padded.shape[axis] - size + 1
        shifted = [jax.lax.slice_in_dim(patches, first, first + end, stride, axis) for first in range(size)]
        patches = jnp.concatenate(shifted, -1)
    return _product(patches, kernel.reshape(-1, outputs), dtype)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def convolve_by_rows(dtype: Any, x: Array, kernel: Array) -> Array:
    """With stride 1: copies are shifted sideways only, and what a row gives to those above and below is added up afterwards.

    It copies a third of what patches do. By JAX's own rule for derivatives XLA:CPU would compute the cotangent anew for each
    of its shifted copies.
    """
    size, _, _, outputs = kernel.shape
    given = _product(_side_by_side(x, size), _of_rows(kernel), dtype)
    parts = (given[:, i : i + x.shape[1], :, i * outputs : (i + 1) * outputs] for i in range(size))
    return functools.reduce(jnp.add, parts)


def _side_by_side(x: Array, size: int) -> Array:
    """Rows shifted sideways, and empty ones above and below: [B, H, W, C] -> [B, H + size - 1, W, size * C]."""
    padded = _pad(x, size // 2, size // 2)
    return jnp.concatenate([padded[:, :, j : j + x.shape[2]] for j in range(size)], -1)


def _of_rows(kernel: Array) -> Array:
    """[k, k, I, O] -> [k * I, k * O]."""
    size, _, inputs, outputs = kernel.shape
    return kernel.transpose(1, 2, 0, 3).reshape(size * inputs, size * outputs)


def _rows_forward(dtype, x, kernel):
    return convolve_by_rows(dtype, x.value, kernel.value), _kept(x, kernel)


def _rows_backward(dtype, residuals, cotangent):
    kept, kernel = residuals
    if isinstance(cotangent, SymbolicZero):
        return None, None
    (size, _, inputs, _), (_, height, width, _) = kernel.shape, cotangent.shape
    margin = size // 2
    x = jnp.zeros((*cotangent.shape[:-1], inputs), cotangent.dtype) if kept is None else kept
    padded = _pad(cotangent, size - 1, 0)
    given = jnp.concatenate([padded[:, size - 1 - i :][:, : height + size - 1] for i in range(size)], -1)
    _, pullback = jax.vjp(lambda rows, kernel: _product(rows, _of_rows(kernel), dtype), _side_by_side(x, size), kernel)
    of_rows, of_kernel = pullback(given)
    padded = _pad(of_rows[:, margin : margin + height], 0, margin)
    parts = (padded[:, :, size - 1 - j :][:, :, :width, j * inputs : (j + 1) * inputs] for j in range(size))
    return functools.reduce(jnp.add, parts), None if kept is None else of_kernel


convolve_by_rows.defvjp(_rows_forward, _rows_backward, symbolic_zeros=True)


def _pad(x: Array, rows: int, columns: int) -> Array:
    """With zeros on all sides: [B, H, W, C] -> [B, H + 2 rows, W + 2 columns, C]."""
    return jnp.pad(x, ((0, 0), (rows, rows), (columns, columns), (0, 0)))


def _product(x: Array, kernel: Array, dtype: Any) -> Array:
    """[..., I] and [I, O] -> [..., O]."""
    return products.matmul(dtype, x.reshape(-1, x.shape[-1]), kernel).reshape(*x.shape[:-1], -1)
