"""Layers of transformers that cost no more to train than they must."""

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array
from jax.custom_derivatives import SymbolicZero


class Dense(nn.Module):
    """A dense layer with float32 parameters: [N, I] -> [N, features].

    Attributes:
      dtype: of the operands of its products, in the backward pass as well. Sums, and the kernel's gradient, are float32.
      stddev: of the initial kernel.
    """

    features: int
    dtype: Any = jnp.float32
    stddev: float = 0.02

    @nn.compact
    def __call__(self, x: Array) -> Array:
        kernel = self.param("kernel", nn.initializers.normal(self.stddev), (x.shape[-1], self.features))
        bias = self.param("bias", nn.initializers.zeros, (self.features,))
        y: Any = x @ kernel if self.dtype == jnp.float32 else product(jnp.dtype(self.dtype), x, kernel)
        return y + bias[None].astype(y.dtype)


def activation_dtype(dtype: Any) -> Any:
    """Dtype of what lies between products with operands of `dtype`: on a CPU, elementwise work is slower in bfloat16."""
    return jnp.float32 if jax.default_backend() == "cpu" else dtype


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def product(dtype: Any, x: Array, kernel: Array) -> Array:
    """`x @ kernel` with operands of `dtype` and float32 sums, in the dtype of x: [N, I] and [I, F] float32 -> [N, F].

    By JAX's own rule for derivatives the backward products would return `dtype`. XLA:CPU then runs them without the
    processor's bfloat16 units, and the kernel's gradient loses digits everywhere.
    """
    return _dot(x.astype(dtype), kernel.astype(dtype)).astype(x.dtype)


def _dot(a: Array, b: Array, contracted: tuple[int, int] = (1, 0)) -> Array:
    return jax.lax.dot_general(a, b, (((contracted[0],), (contracted[1],)), ((), ())), preferred_element_type=jnp.float32)


def _product_forward(dtype, x, kernel):
    (x, x_is_variable), (kernel, kernel_is_variable) = ((arg.value, arg.perturbed) for arg in (x, kernel))
    a, b = x.astype(dtype), kernel.astype(dtype)
    # Transposed here, as XLA:CPU has no bfloat16 product that transposes its first operand.
    residuals = (jnp.zeros((), x.dtype), b if x_is_variable else None, a.T if kernel_is_variable else None)
    return _dot(a, b).astype(x.dtype), residuals


def _product_backward(dtype, residuals, cotangent):
    like_x, kernel, transposed_x = residuals
    if isinstance(cotangent, SymbolicZero):
        return None, None
    cotangent = cotangent.astype(dtype)
    of_x = None if kernel is None else _dot(cotangent, kernel, (1, 1)).astype(like_x.dtype)
    of_kernel = None if transposed_x is None else _dot(transposed_x, cotangent)
    return of_x, of_kernel


product.defvjp(_product_forward, _product_backward, symbolic_zeros=True)


def dropout(module: nn.Module, x: Array, rate: float, frozen: Any) -> Array:
    """Inverted dropout (Srivastava et al. 2014); none where `frozen` (a bool or a traced one) or the module has no key for it.

    The rate is rounded to a 256th: generating random words is what costs, and so each word decides four times.
    """
    keep = round((1 - rate) * 2**8)
    if frozen is True or keep == 2**8 or not module.has_rng("dropout"):
        return x
    words = jax.random.bits(module.make_rng("dropout"), (-(-x.size // 4),), jnp.uint32)
    parts = jax.lax.bitcast_convert_type(words, jnp.uint8).reshape(-1)[: x.size].reshape(x.shape)
    return jnp.where(frozen, x, jnp.where(parts < keep, x * jnp.asarray(2**8 / keep, x.dtype), 0))
