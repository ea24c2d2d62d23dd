"""Matrix products with operands of a narrow dtype, in the backward pass as well."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.custom_derivatives import SymbolicZero

from gafreeze_jax.engine import process
from gafreeze_jax.engine.network import PyTree

AMX_WIDTH = 256  # of kernels for which it saves more than casting takes


def fastest_dtype(params: PyTree) -> np.dtype:
    """Of the operands, for a network with these parameters: bfloat16 on GPUs and TPUs, and where AMX multiplies wide kernels.

    Other bfloat16 units of processors speed up forward products alone (`python benchmarks/dtypes.py`).
    """
    is_wide = any(leaf.ndim == 2 and min(leaf.shape) >= AMX_WIDTH for leaf in jax.tree.leaves(params))
    has_amx = "amx_bf16" in process.processor_features()
    return jnp.dtype(jnp.bfloat16 if jax.default_backend() != "cpu" or (has_amx and is_wide) else jnp.float32)


def activation_dtype(dtype: Any) -> Any:
    """Dtype of what lies between products with operands of `dtype`: on a CPU, elementwise work is slower in bfloat16."""
    return jnp.float32 if jax.default_backend() == "cpu" else dtype


def matmul(dtype: Any, x: Array, kernel: Array) -> Array:
    """`x @ kernel` with operands of `dtype`, in the backward pass as well, and float32 sums. The kernel may be of any dtype."""
    return x @ kernel if dtype == kernel.dtype == jnp.float32 else product(jnp.dtype(dtype), x, kernel)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def product(dtype: Any, x: Array, kernel: Array) -> Array:
    """`x @ kernel` with operands of `dtype`, in the dtype of x: [N, I] and [I, F] -> [N, F].

    Sums are float32, and so is the kernel's gradient. By JAX's own rule for derivatives the backward products would
    return `dtype`. XLA:CPU then runs them without the processor's bfloat16 units, and the kernel's gradient loses digits
    everywhere.
    """
    return _dot(x.astype(dtype), kernel.astype(dtype), x.dtype)


def _dot(a: Array, b: Array, dtype: Any, contracted: tuple[int, int] = (1, 0)) -> Array:
    return jax.lax.dot_general(a, b, (((contracted[0],), (contracted[1],)), ((), ())), preferred_element_type=dtype)


def _transposes_first() -> bool:
    """XLA:CPU has no bfloat16 product that transposes its first operand: what is kept of it is transposed beforehand."""
    return jax.default_backend() == "cpu"


def _product_forward(dtype, x, kernel):
    (x, x_is_variable), (kernel, kernel_is_variable) = ((arg.value, arg.perturbed) for arg in (x, kernel))
    a, b = x.astype(dtype), kernel.astype(dtype)
    kept = a.T if _transposes_first() else a
    narrow = kernel if kernel.dtype.itemsize < b.dtype.itemsize else b
    residuals = (jnp.zeros((), x.dtype), narrow if x_is_variable else None, kept if kernel_is_variable else None)
    return _dot(a, b, x.dtype), residuals


def _product_backward(dtype, residuals, cotangent):
    like_x, kernel, x = residuals
    if isinstance(cotangent, SymbolicZero):
        return None, None
    cotangent = cotangent.astype(dtype)
    of_x = None if kernel is None else _dot(cotangent, kernel.astype(dtype), like_x.dtype, (1, 1))
    of_kernel = None if x is None else _dot(x, cotangent, jnp.float32, (1 if _transposes_first() else 0, 0))
    return of_x, of_kernel


product.defvjp(_product_forward, _product_backward, symbolic_zeros=True)
