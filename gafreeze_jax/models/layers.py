"""Layers of transformers that cost no more to train than they must."""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from gafreeze_jax.engine import devices
from gafreeze_jax.engine.network import STATISTICS, has_statistics, parameters
from gafreeze_jax.extras import needs
from gafreeze_jax.models.products import matmul

with needs("text"):
    import flax.linen as nn

ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "gelu": lambda x: nn.gelu(x, approximate=False),
    "gelu_new": nn.gelu,
    "gelu_pytorch_tanh": nn.gelu,
    "gelu_fast": nn.gelu,
    "relu": nn.relu,
    "silu": nn.silu,
    "swish": nn.silu,
    "tanh": jnp.tanh,
}


@functools.cache  # equal modules have one function, and so share compiled code
def as_block(module: nn.Module) -> Callable:
    """What a `Block` or a `Network`'s head calls, of a module that is called with an input, its context and `frozen`.

    Running statistics are handled where its parameters have some.
    """

    def apply(params, x, context, *, frozen, key):
        rngs = {} if key is None else {"dropout": key}
        if not has_statistics(params):
            return module.apply({"params": params}, x, context, frozen, rngs=rngs)
        variables = {"params": parameters(params), STATISTICS: params[STATISTICS]}
        if frozen is True:
            return module.apply(variables, x, context, True)
        x, updated = module.apply(variables, x, context, frozen, rngs=rngs, mutable=[STATISTICS])
        return x, updated[STATISTICS]

    return apply


class Sublayers(nn.Module):
    """Modules that follow each other, as attention and MLP do in a layer.

    Attributes:
      modules: name and module of each.
    """

    modules: tuple[tuple[str, nn.Module], ...]

    @nn.compact
    def __call__(self, x: Array, context: Mapping[str, Array], frozen: Any) -> Array:
        for name, module in self.modules:
            x = module.copy(name=name)(x, context, frozen)
        return x


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
        y = matmul(self.dtype, x, kernel)
        return y + bias[None].astype(y.dtype)


def norm(epsilon: float, dtype: Any, name: str) -> nn.Module:
    """A layer norm that is computed again in the backward pass, which is as fast as keeping what its gradient needs."""
    return nn.remat(nn.LayerNorm)(epsilon=epsilon, dtype=dtype, use_fast_variance=False, name=name)


def activate(name: str, x: Array) -> Array:
    """An activation function that is computed again in the backward pass."""
    return jax.checkpoint(ACTIVATIONS[name])(x)


def attend(
    module: nn.Module,
    query: Array,
    key: Array,
    value: Array,
    segments: Array,
    at: Array | None,
    *,
    num_heads: int,
    scale: float,
    causal: bool,
    dropout_rate: float,
    frozen: Any,
) -> Array:
    """Attention within the texts of a row, softmax in float32.

    Args:
      module: that has the key for dropout.
      query: [R * S, D], or [B, D] with `at`.
      key, value: [R * S, D].
      segments: [R, S], which text a token belongs to.
      at: [B], index into R * S: of every text the one token that asks; where `causal`, the text's last one.
      causal: whether a token sees the earlier tokens and itself alone.

    Returns:
      An array like `query`.
    """
    rows, length = segments.shape

    def split(h: Array, *lead: int) -> Array:
        return h.reshape(*lead, num_heads, h.shape[-1] // num_heads)

    key, value = split(key, rows, length), split(value, rows, length)
    if at is None:
        queries = split(query, rows, length)
        mask = segments[:, :, None] == segments[:, None, :]
        if causal:
            mask &= jnp.tri(length, dtype=bool)[None]
    else:  # one query per text: [B, 1, ...] against its row
        row = at // length
        key, value, segments = devices.whole((key, value, segments))
        queries, key, value = split(query, -1, 1), key[row], value[row]
        mask = (segments[row] == segments.reshape(-1)[at][:, None])[:, None]
    scores = jnp.einsum("bqhd,bkhd->bhqk", queries, key, preferred_element_type=jnp.float32) * scale
    weights = nn.softmax(jnp.where(mask[:, None], scores, jnp.finfo(jnp.float32).min)).astype(query.dtype)
    weights = dropout(module, weights, dropout_rate, frozen)
    return jnp.einsum("bhqk,bkhd->bqhd", weights, value).reshape(query.shape)


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
