"""What decoders share: word vectors, an output layer of its own where it is not the word vectors, and heads."""

import functools
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from gafreeze_jax.extras import needs
from gafreeze_jax.models import gpt2, layers, products
from gafreeze_jax.models.base import Head, Part

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


class OutputLayer(nn.Module):
    """A logit for each word: [N, D] -> [N, V] float32."""

    config: Any
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array, context: dict[str, Array], frozen: Any) -> Array:
        cfg = self.config
        dense = layers.Dense(cfg.vocab_size, self.dtype, cfg.initializer_range, use_bias=False, name="dense")
        return dense(x.astype(jnp.float32))


def output_layer(config: Any, dtype: Any) -> Iterator[Part]:
    yield Part("output", OutputLayer(config, dtype), per_example=False)


def _logits(params, x, context, *, frozen, key):
    """Nothing is left for the head to do."""
    return x


def make_logits(config: Any, num_classes: None, dtype: Any) -> Callable:
    return _logits


def init_score(key: Array, config: Any, num_classes: int) -> dict:
    """A fresh classifier."""
    return {"score": {"kernel": config.initializer_range * jax.random.normal(key, (config.hidden_size, num_classes))}}


def heads(stem: str) -> dict[str, Head]:
    """The heads of networks whose names begin with `stem` in PyTorch."""
    lm = functools.partial(Head, architecture=f"{stem}ForCausalLM", init=gpt2.init_nothing, per_example=False)
    untied = lm(make=make_logits, blocks=output_layer)
    return {
        "lm": lm(make=gpt2.make_next_token, shared=("embeddings",), tied=True, untied=untied),
        "classify": Head(
            architecture=f"{stem}ForSequenceClassification", make=gpt2.make_score, init=init_score, output="head/score"
        ),
    }
