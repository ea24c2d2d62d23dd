"""MPNet (Song et al. 2020): BERT's layers, whose attention scores depend on relative positions that all layers share (T5's)."""

import dataclasses
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import Array

from gafreeze_jax.extras import needs
from gafreeze_jax.models import bert, configs, layers, relative
from gafreeze_jax.models.base import Family, Part
from gafreeze_jax.models.checkpoints import dense, norm

with needs("text"):
    import flax.linen as nn

NUM_BUCKETS, MAX_DISTANCE = 32, 128  # whatever the config says, as in transformers
LAYOUT = dataclasses.replace(
    bert.LAYOUT,
    prefix="mpnet.",
    ignored=rf"(lm_head|pooler|qa_outputs)\..*|{bert.BUFFERS}",  # heads of other tasks
    tied=("lm_head.decoder.weight", "embeddings.word_embeddings.weight"),
    table=(
        *bert.EMBEDDINGS,
        ("encoder.relative_attention_bias.weight", f"{relative.NAME}/bias", None),
        *dense("encoder.layer.{}.attention.attn.q", "layer_{}/attention/query"),
        *dense("encoder.layer.{}.attention.attn.k", "layer_{}/attention/key"),
        *dense("encoder.layer.{}.attention.attn.v", "layer_{}/attention/value"),
        *dense("encoder.layer.{}.attention.attn.o", "layer_{}/attention/out"),
        *norm("encoder.layer.{}.attention.LayerNorm", "layer_{}/attention/norm"),
        *bert.MLP,
        *dense("classifier.dense", "head/pooler"),
        *dense("classifier.out_proj", "head/classifier"),
        *dense("classifier", "head/token_classifier"),
    ),
)


@dataclass(frozen=True)
class MPNetConfig(bert.BertConfig):
    """BERT's without types of tokens, and the number of relative positions. Padding is token 1, whatever the config says."""

    type_vocab_size: int = 0
    classifier_dropout: float | None = None
    relative_attention_num_buckets: int = configs.field(configs.COUNT, NUM_BUCKETS)

    @property
    def num_types(self) -> int:
        return 1

    @property
    def first_position(self) -> int:
        return 2

    @property
    def head_input_dropout(self) -> float:
        return self.head_dropout


def problems(raw: Mapping[str, Any], config: MPNetConfig | None) -> Iterator[str]:
    yield from bert.problems(raw, config)
    if config and config.max_tokens < 1:
        yield f"max_position_embeddings must be above {config.first_position}, got {config.max_position_embeddings}"
    if config and config.relative_attention_num_buckets < NUM_BUCKETS:
        yield f"relative_attention_num_buckets must be at least {NUM_BUCKETS}, got {config.relative_attention_num_buckets}"


def bucket(distances: np.ndarray) -> np.ndarray:
    """The row of the positions' table for distances from keys to queries: one each for near keys, then wider ones."""
    half = NUM_BUCKETS // 2
    near, away = half // 2, np.abs(distances)
    growth = np.log(np.maximum(away, 1).astype(np.float32) / near) / np.float32(math.log(MAX_DISTANCE / near))
    far = np.minimum(near + (growth * (half - near)).astype(np.int64), half - 1)
    return np.where(distances < 0, half, 0) + np.where(away < near, away, far)


class MPNetPositions(nn.Module):
    """A number for each bucket and head."""

    config: MPNetConfig

    @nn.compact
    def __call__(self, x: Array, context: dict[str, Array], frozen: Any) -> Array:
        cfg = self.config
        shape = cfg.relative_attention_num_buckets, cfg.num_attention_heads
        self.param("bias", nn.initializers.normal(cfg.initializer_range), shape)
        return x


class MPNetAttention(bert.BertAttention):
    """BERT's with a number for each head and distance added to the scores."""

    reads = (relative.NAME,)

    def bias(self, query: layers.Dense, key: layers.Dense, context: dict[str, Any], frozen: Any) -> relative.Bias:
        table = context[relative.NAME]["bias"].astype(jnp.float32)

        def added(queries: Array, keys: Array, places: Array) -> Array:
            length = keys.shape[1]
            by_distance = table[bucket(relative.distances(length))].T  # [H, 2 L - 1]
            if queries.shape[1] == length:
                return relative.spread(jnp.repeat(by_distance[:, None], length, axis=1))[None]
            return jnp.moveaxis(by_distance[:, relative.columns(places, length)], 0, 1)[:, :, None]

        return added


def blocks(config: MPNetConfig, dtype: Any, per_example: bool) -> Iterator[Part]:
    return bert.blocks(config, dtype, per_example, attention=MPNetAttention, positions=MPNetPositions(config))


FAMILY = Family(
    model_type="mpnet",
    kind="encoder",
    title="an MPNet",
    config=MPNetConfig,
    problems=problems,
    layout=LAYOUT,
    blocks=blocks,
    heads=bert.heads("MPNet", "token_classifier"),
)
