"""Layers of transformers that cost no more to train than they must."""

import functools
from collections.abc import Callable, Mapping, Sequence
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


def reads(module: nn.Module) -> tuple[str, ...]:
    """Names of lower blocks whose parameters a module reads, as its class says in `reads`."""
    return getattr(module, "reads", ())


@functools.cache  # equal modules have one function, and so share compiled code
def as_block(module: nn.Module) -> Callable:
    """What a `Block` or a `Network`'s head calls, of a module that is called with an input, its context and `frozen`.

    Running statistics are handled where its parameters have some. Parameters of lower blocks that the module reads are in its
    context, by the names of these blocks. Frozen parameters may be narrower than float32; modules widen arrays of two axes or
    more where they use them, so that no second copy is kept.
    """
    shared = reads(module)

    def apply(params, x, context, *, frozen, key):
        params = jax.tree.map(_widen_vector, params)
        rngs = {} if key is None else {"dropout": key}
        if shared:
            context = context | {name: params[name] for name in shared}
            params = {name: leaf for name, leaf in params.items() if name not in shared}
        if not has_statistics(params):
            return module.apply({"params": params}, x, context, frozen, rngs=rngs)
        variables = {"params": parameters(params), STATISTICS: params[STATISTICS]}
        if frozen is True:
            return module.apply(variables, x, context, True)
        x, updated = module.apply(variables, x, context, frozen, rngs=rngs, mutable=[STATISTICS])
        return x, updated[STATISTICS]

    return apply


def _widen_vector(leaf: Array) -> Array:
    return leaf.astype(jnp.float32) if leaf.ndim < 2 and leaf.dtype != jnp.float32 else leaf


class Sublayers(nn.Module):
    """Modules that follow each other, as attention and MLP do in a layer.

    Attributes:
      modules: name and module of each.
    """

    modules: tuple[tuple[str, nn.Module], ...]

    @property
    def reads(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(name for _, module in self.modules for name in reads(module)))

    @nn.compact
    def __call__(self, x: Array, context: Mapping[str, Array], frozen: Any) -> Array:
        for name, module in self.modules:
            x = module.copy(name=name)(x, context, frozen)
        return x


def add_rows(tables: Sequence[tuple[Array, Array]]) -> Array:
    """Sums of rows of embeddings, by tables [V, D] and ids [N]: [N, D] float32."""
    return functools.reduce(jnp.add, (table[ids].astype(jnp.float32) for table, ids in tables))


class Dense(nn.Module):
    """A dense layer: [N, I] -> [N, features].

    Attributes:
      dtype: of the operands of its products, in the backward pass as well. Sums, and the kernel's gradient, are float32.
      stddev: of the initial kernel.
    """

    features: int
    dtype: Any = jnp.float32
    stddev: float = 0.02
    use_bias: bool = True

    @nn.compact
    def __call__(self, x: Array) -> Array:
        kernel = self.param("kernel", nn.initializers.normal(self.stddev), (x.shape[-1], self.features))
        y = matmul(self.dtype, x, kernel)
        if not self.use_bias:
            return y
        bias = self.param("bias", nn.initializers.zeros, (self.features,))
        return y + bias[None].astype(y.dtype)


def dense(features: int, config: Any, dtype: Any, name: str, use_bias: bool = True) -> Dense:
    """A dense layer whose kernel starts as a family's config says."""
    return Dense(features, dtype, config.initializer_range, use_bias, name=name)


def residual_stddev(config: Any, num_layers: int) -> float:
    """Of kernels whose outputs are added up along the depth of the network."""
    return config.initializer_range / (2 * num_layers) ** 0.5


class TokenHead(nn.Module):
    """A class for each token: [N, D] -> logits [N, C] float32.

    Attributes:
      stddev: of the initial kernel.
      layer: its name in the tree.
    """

    num_classes: int
    stddev: float
    dropout_rate: float
    layer: str

    @nn.compact
    def __call__(self, x: Array, context: dict[str, Array], frozen: Any = False) -> Array:
        x = dropout(self, x.astype(jnp.float32), self.dropout_rate, frozen)
        return Dense(self.num_classes, jnp.float32, self.stddev, name=self.layer)(x)


def norm(epsilon: float, dtype: Any, name: str, use_bias: bool = True) -> nn.Module:
    """A layer norm that is recomputed in the backward pass, which is as fast as keeping what its gradient needs."""
    return nn.remat(nn.LayerNorm)(epsilon=epsilon, dtype=dtype, use_bias=use_bias, use_fast_variance=False, name=name)


def rms_norm(epsilon: float, dtype: Any, name: str) -> nn.Module:
    """A norm by the root mean square (Zhang & Sennrich 2019), recomputed in the backward pass as well."""
    return nn.remat(nn.RMSNorm)(epsilon=epsilon, dtype=dtype, name=name)


def activate(name: str, x: Array) -> Array:
    """An activation function that is recomputed in the backward pass."""
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
    reach: int | None = None,
    bias: Callable[[Array, Array, Array], Array] | None = None,
) -> Array:
    """Attention within the texts of a row, softmax in float32.

    Args:
      module: that has the key for dropout.
      query: [R * S, D], or [B, D] with `at`.
      key, value: [R * S, K * D / num_heads], of K heads, each for num_heads / K of the query's (Ainslie et al. 2023).
      segments: [R, S], which text a token belongs to.
      at: [B], index into R * S: of every text the one token that asks.
      causal: whether a token sees the earlier tokens and itself alone.
      reach: how many tokens away a token still sees others; None: it sees the whole text.
      bias: `bias(queries, keys, places)` is added to the scores: [R, H, Q, S] for Q queries at these places of their rows,
        [R, Q, H, W], and the keys of the rows, [R, S, K, W]; each R may be 1.

    Returns:
      An array like `query`.
    """
    rows, length = segments.shape
    width = query.shape[-1] // num_heads
    key, value = (h.reshape(rows, length, -1, width) for h in (key, value))
    if at is None:
        queries, texts, places = query.reshape(rows, length, num_heads, width), segments, jnp.arange(length)[None]
    else:  # one query per text: [B, 1, ...] against its row
        row = at // length
        key, value, segments = devices.whole((key, value, segments))
        texts, places = segments.reshape(-1)[at][:, None], (at % length)[:, None]
        queries, key, value, segments = query.reshape(-1, 1, num_heads, width), key[row], value[row], segments[row]
    mask = texts[:, :, None] == segments[:, None, :]
    distances = places[:, :, None] - jnp.arange(length)[None, None]
    if causal:
        mask &= distances >= 0
    if reach is not None and reach < length - 1:
        mask &= jnp.abs(distances) <= reach
    added = None if bias is None else bias(queries, key, places)
    mixed = mix(module, queries, key, value, mask, added, scale=scale, dropout_rate=dropout_rate, frozen=frozen)
    return mixed.reshape(query.shape)


def mix(
    module: nn.Module,
    query: Array,
    key: Array,
    value: Array,
    mask: Array | None,
    bias: Array | None = None,
    *,
    scale: float,
    dropout_rate: float,
    frozen: Any,
) -> Array:
    """Attention of Q tokens to S tokens, softmax in float32.

    Args:
      query: [R, Q, H, W], of H heads.
      key, value: [R, S, K, W]; K divides H.
      mask: [R, Q, S], what they see; None: everything.
      bias: [R, H, Q, S], added to the scaled scores.

    Returns:
      An array like `query`.
    """
    if (shared := query.shape[2] // key.shape[2]) > 1:
        key, value = (jnp.repeat(h, shared, axis=2) for h in (key, value))
    scores = jnp.einsum("bqhd,bkhd->bhqk", query, key, preferred_element_type=jnp.float32) * scale
    scores = scores if bias is None else scores + bias
    if mask is not None:
        scores = jnp.where(mask[:, None], scores, jnp.finfo(jnp.float32).min)
    weights = dropout(module, nn.softmax(scores).astype(query.dtype), dropout_rate, frozen)
    return jnp.einsum("bhqk,bkhd->bqhd", weights, value)


def dropout(module: nn.Module, x: Array, rate: float, frozen: Any) -> Array:
    """Inverted dropout (Srivastava et al. 2014); none where `frozen` (a bool or a traced one) or the module has no key for it.

    The rate is rounded to a 256th: generating random words is what costs, and so each word decides four times.
    """
    keep = max(1, round((1 - rate) * 2**8))
    if frozen is True or keep == 2**8 or not module.has_rng("dropout"):
        return x
    words = jax.random.bits(module.make_rng("dropout"), (-(-x.size // 4),), jnp.uint32)
    parts = jax.lax.bitcast_convert_type(words, jnp.uint8).reshape(-1)[: x.size].reshape(x.shape)
    return jnp.where(frozen, x, jnp.where(parts < keep, x * jnp.asarray(2**8 / keep, x.dtype), 0))


def drop_path(module: nn.Module, x: Array, rate: float, frozen: Any) -> Array:
    """Stochastic depth (Huang et al. 2016): x [B, ...] is 0 for some of the examples, and larger for the others."""
    if not rate:
        return x
    factors = dropout(module, jnp.ones(len(x), x.dtype), rate, frozen)
    return x * jnp.expand_dims(factors, tuple(range(1, x.ndim)))
