"""What decoders share: word vectors, an output layer of its own where it is not the word vectors, and heads."""

import functools
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from gafreeze_jax.engine.network import pass_on
from gafreeze_jax.extras import needs
from gafreeze_jax.models import layers, products
from gafreeze_jax.models.base import Head, Part, fixed, module_head

with needs("text"):
    import flax.linen as nn


class WordVectors(nn.Module):
    """The lowest block where positions come later: ids [R * S] -> [R * S, D].

    Attributes:
      dropout_rate: of what it returns.
    """

    config: Any
    dtype: Any = jnp.float32
    dropout_rate: float = 0.0

    @nn.compact
    def __call__(self, x: dict[str, Array], context: dict[str, Array], frozen: Any) -> Array:
        cfg = self.config
        word = self.param("word", nn.initializers.normal(cfg.initializer_range), (cfg.vocab_size, cfg.hidden_size))
        h = word[x["ids"]].astype(products.activation_dtype(self.dtype))
        return layers.dropout(self, h, self.dropout_rate, frozen)


class FinalNorm(nn.Module):
    """The norm above all blocks: [N, D] -> [N, D].

    Attributes:
      make: `layers.norm` or `layers.rms_norm`.
    """

    make: Callable[[float, Any, str], nn.Module]
    epsilon: float

    @nn.compact
    def __call__(self, x: Array, context: dict[str, Array], frozen: Any) -> Array:
        return self.make(self.epsilon, x.dtype, "norm")(x)


class OutputLayer(nn.Module):
    """A logit for each word: [N, D] -> [N, V] float32."""

    config: Any
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array, context: dict[str, Array], frozen: Any) -> Array:
        cfg = self.config
        dense = layers.dense(cfg.vocab_size, cfg, self.dtype, "dense", use_bias=False)
        return dense(x.astype(jnp.float32))


def output_layer(config: Any, dtype: Any) -> Iterator[Part]:
    yield Part("output", OutputLayer(config, dtype), per_example=False)


def token_head(config: Any, num_classes: int, layer: str) -> layers.TokenHead:
    """A classifier of every token."""
    rate = 0.1 if config.classifier_dropout is None else config.classifier_dropout  # as in transformers
    return layers.TokenHead(num_classes, config.initializer_range, rate, layer)


def _score(params, x, context, *, frozen, key):
    """The classifier: [B, D] -> logits [B, C]."""
    return x.astype(jnp.float32) @ params["score"]["kernel"]


@functools.cache  # so that equal networks are equal
def _next_token(dtype: Any) -> Callable:
    """The output layer, which is the word vectors: [N, D] -> logits [N, V]."""

    def apply(params, x, context, *, frozen, key):
        return products.matmul(dtype, x.astype(jnp.float32), params["embeddings"]["word"].T)

    return apply


def make_next_token(config: Any, num_classes: None, dtype: Any) -> Callable:
    return _next_token(dtype)


def init_nothing(key: Array, config: Any, num_classes: None) -> dict:
    return {}


def init_score(key: Array, config: Any, num_classes: int) -> dict:
    """A fresh classifier."""
    return {"score": {"kernel": config.initializer_range * jax.random.normal(key, (config.hidden_size, num_classes))}}


def heads(stem: str, *, lm: str | None = None, token_layer: str = "score", can_be_untied: bool = True) -> dict[str, Head]:
    """The heads of networks whose names begin with `stem` in PyTorch.

    Args:
      lm: name of the language model; `stem` with ForCausalLM by default.
      token_layer: name of the layer that classifies tokens.
      can_be_untied: whether a language model may have an output layer of its own.
    """
    next_token = functools.partial(Head, architecture=lm or f"{stem}ForCausalLM", init=init_nothing, per_example=False)
    untied = next_token(make=fixed(pass_on), blocks=output_layer) if can_be_untied else None
    of_tokens = functools.partial(token_head, layer=token_layer)
    return {
        "lm": next_token(make=make_next_token, shared=("embeddings",), tied=True, untied=untied),
        "classify": Head(
            architecture=f"{stem}ForSequenceClassification", make=fixed(_score), init=init_score, output="head/score"
        ),
        "tokens": module_head(f"{stem}ForTokenClassification", of_tokens, f"head/{token_layer}", per_example=False),
    }
