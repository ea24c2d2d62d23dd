"""DeBERTa-v2 and v3 (He et al. 2021): BERT's layers with disentangled attention, without positions of tokens in the embeddings.

The score of a query and a key is the sum of content to content, content to position and position to content; relative positions
have vectors, which all layers share and project by kernels of their own.
"""

import dataclasses
import functools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import Array

from gafreeze_jax.extras import needs
from gafreeze_jax.models import bert, configs, layers, products, relative
from gafreeze_jax.models.base import Family, Part
from gafreeze_jax.models.checkpoints import dense, norm

with needs("text"):
    import flax.linen as nn

IN_CHECKPOINTS = "encoder.layer.{}.attention.self"
LAYOUT = dataclasses.replace(
    bert.LAYOUT,
    prefix="deberta.",
    bare=("pooler.", "classifier."),
    # Heads of other tasks; positions of tokens, which checkpoints may have without using them.
    ignored=rf"(cls|lm_predictions|mask_predictions|qa_outputs)\..*|embeddings\.position_embeddings\..*|{bert.BUFFERS}",
    table=(
        *bert.EMBEDDINGS,
        ("embeddings.embed_proj.weight", "embeddings/project/kernel", (1, 0)),
        ("encoder.rel_embeddings.weight", f"{relative.NAME}/embedding", None),
        *norm("encoder.LayerNorm", f"{relative.NAME}/norm"),
        *dense(f"{IN_CHECKPOINTS}.query_proj", "layer_{}/attention/query"),
        *dense(f"{IN_CHECKPOINTS}.key_proj", "layer_{}/attention/key"),
        *dense(f"{IN_CHECKPOINTS}.value_proj", "layer_{}/attention/value"),
        *dense(f"{IN_CHECKPOINTS}.pos_key_proj", "layer_{}/attention/position_key"),
        *dense(f"{IN_CHECKPOINTS}.pos_query_proj", "layer_{}/attention/position_query"),
        *dense("encoder.layer.{}.attention.output.dense", "layer_{}/attention/out"),
        *norm("encoder.layer.{}.attention.output.LayerNorm", "layer_{}/attention/norm"),
        *bert.MLP,
        *dense("pooler.dense", "head/pooler"),
        *dense("classifier", "head/classifier"),
    ),
)
NORM, TO_POSITION, FROM_POSITION = "layer_norm", "c2p", "p2c"


def _kinds(value: Any) -> tuple[Any, ...]:
    """Of attention to positions and from them, of a list or of a text such as "p2c|c2p"."""
    return tuple(kind.strip() for kind in value.lower().split("|")) if isinstance(value, str) else tuple(value or ())


def _are_kinds(value: Any) -> bool:
    return isinstance(value, str | list | tuple | None) and all(kind in (TO_POSITION, FROM_POSITION) for kind in _kinds(value))


KINDS = configs.Rule(f"null, or a list of {TO_POSITION} and {FROM_POSITION}", _are_kinds)


@dataclass(frozen=True)
class DebertaConfig(bert.BertConfig):
    """What of a Hugging Face `config.json` changes the computation. Names are theirs."""

    type_vocab_size: int = configs.field(configs.NUMBER, 0)
    classifier_dropout: float | None = None
    layer_norm_eps: float = configs.field(configs.POSITIVE, 1e-7)
    embedding_size: int | None = configs.field(configs.or_null(configs.COUNT), None)
    relative_attention: bool = configs.field(configs.FLAG, False)
    max_relative_positions: int = configs.field(configs.INTEGER, -1)
    position_buckets: int = configs.field(configs.INTEGER, -1)
    position_biased_input: bool = configs.field(configs.FLAG, True)
    pos_att_type: str | tuple[str, ...] | None = configs.field(KINDS, None)
    share_att_key: bool = configs.field(configs.FLAG, False)
    norm_rel_ebd: str = configs.field(configs.one_of(["none", NORM]), "none")
    pooler_hidden_act: str = configs.field(configs.one_of(layers.ACTIVATIONS), "gelu")
    pooler_dropout: float = configs.field(configs.RATE, 0.0)
    cls_dropout: float | None = configs.field(configs.or_null(configs.RATE), None)

    @property
    def num_types(self) -> int:
        return max(1, self.type_vocab_size)

    @property
    def embedding_width(self) -> int:
        return self.embedding_size or self.hidden_size

    @property
    def kinds(self) -> tuple[str, ...]:
        """Of attention to positions and from them."""
        return _kinds(self.pos_att_type)

    @property
    def attention_scale(self) -> float:
        return (self.head_width * (1 + len(set(self.kinds)))) ** -0.5

    @property
    def head_activation(self) -> str:
        return self.pooler_hidden_act

    @property
    def head_input_dropout(self) -> float:
        return self.pooler_dropout

    @property
    def head_dropout(self) -> float:
        return self.hidden_dropout_prob if self.cls_dropout is None else self.cls_dropout

    @property
    def token_head_dropout(self) -> float:
        return self.hidden_dropout_prob

    @property
    def farthest(self) -> int:
        """Distances beyond it are as it is."""
        return self.max_relative_positions if self.max_relative_positions > 0 else self.max_position_embeddings

    @property
    def span(self) -> int:
        """Number of relative positions to one side."""
        return self.position_buckets if self.position_buckets > 0 else self.farthest

    def rows(self, distances: np.ndarray) -> np.ndarray:
        """Of the positions' table, for distances from keys to queries; with buckets far ones are on a logarithmic scale."""
        if self.position_buckets > 0:
            near = self.position_buckets // 2
            away = np.maximum(np.abs(distances), near).astype(np.float32)
            growth = np.log(away / near) / np.log(np.float32((self.farthest - 1) / near))
            far = np.sign(distances) * (np.ceil(growth * (near - 1)) + near)
            distances = np.where(np.abs(distances) <= near, distances, far).astype(np.int64)
        return np.clip(distances + self.span, 0, 2 * self.span - 1)


def problems(raw: Mapping[str, Any], config: DebertaConfig | None) -> Iterator[str]:
    yield from bert.problems(raw, config)
    if raw.get("conv_kernel_size") not in (None, 0, -1):
        yield f"conv_kernel_size must be 0, as convolutions are not implemented, got {raw['conv_kernel_size']!r}"
    if raw.get("z_steps") not in (None, 0, 1):
        yield f"z_steps must be 0, as repeating the last layer is not implemented, got {raw['z_steps']!r}"
    if not config:
        return
    for name, expected in (("attention_head_size", config.head_width), ("pooler_hidden_size", config.hidden_size)):
        if raw.get(name) not in (None, expected):
            yield f"{name} must be {expected}, got {raw[name]!r}"
    if config.norm_rel_ebd == NORM and not config.relative_attention:
        yield "norm_rel_ebd must be none where relative_attention is false"
    if config.position_buckets > 0 and not 1 <= config.position_buckets // 2 < config.farthest - 1:
        yield f"position_buckets must be from 2 to {2 * config.farthest - 3}, or -1, got {config.position_buckets}"


class DebertaEmbeddings(nn.Module):
    config: DebertaConfig
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: dict[str, Array], context: dict[str, Array], frozen: Any) -> Array:
        cfg = self.config
        h = bert.add_embeddings(self, cfg, x, cfg.position_biased_input)
        if cfg.projects_embeddings:
            h = layers.dense(cfg.hidden_size, cfg, self.dtype, "project", use_bias=False)(h)
        h = bert.norm(cfg, products.activation_dtype(self.dtype), "norm")(h)
        return layers.dropout(self, h, cfg.hidden_dropout_prob, frozen)


class DebertaPositions(nn.Module):
    """A vector for each relative position, and their norm."""

    config: DebertaConfig

    @nn.compact
    def __call__(self, x: Array, context: dict[str, Array], frozen: Any) -> Array:
        cfg = self.config
        table = self.param("embedding", nn.initializers.normal(cfg.initializer_range), (2 * cfg.span, cfg.hidden_size))
        if cfg.norm_rel_ebd == NORM:
            bert.norm(cfg, jnp.float32, "norm")(table)
        return x


class DebertaAttention(bert.BertAttention):
    """BERT's with scores of contents and relative positions."""

    config: Any

    @property
    def reads(self) -> tuple[str, ...]:
        return (relative.NAME,) if self.config.relative_attention else ()

    def bias(self, query: layers.Dense, key: layers.Dense, context: dict[str, Any], frozen: Any) -> relative.Bias | None:
        cfg = self.config
        if not cfg.relative_attention or not cfg.kinds:
            return None
        if not cfg.share_att_key:
            key, query = (layers.dense(cfg.hidden_size, cfg, self.dtype, f"position_{name}") for name in ("key", "query"))
        rows, places = np.unique(cfg.rows(relative.distances(context["segments"].shape[1])), return_inverse=True)
        vectors = _vectors(cfg, context[relative.NAME])[rows].astype(products.activation_dtype(self.dtype))
        vectors = layers.dropout(self, vectors, cfg.hidden_dropout_prob, frozen)

        def by_distance(project: layers.Dense) -> Array:
            return project(vectors).reshape(len(rows), -1, cfg.head_width)[places]

        to_position = by_distance(key) if TO_POSITION in cfg.kinds else None
        from_position = by_distance(query) if FROM_POSITION in cfg.kinds else None
        return functools.partial(_scores, cfg.attention_scale, to_position, from_position)


def _vectors(config: DebertaConfig, params: Mapping[str, Any]) -> Array:
    """Of relative positions, [2 * span, D]."""
    table = params["embedding"].astype(jnp.float32)
    if config.norm_rel_ebd != NORM:
        return table
    norm: Any = nn.LayerNorm(epsilon=config.layer_norm_eps, use_fast_variance=False, parent=None)
    return norm.apply({"params": params["norm"]}, table)


def _scores(
    scale: float, to_position: Array | None, from_position: Array | None, queries: Array, keys: Array, places: Array
) -> Array:
    """Of contents and positions, for `layers.attend`; the projected positions are by distance, [2 L - 1, H, W]."""
    length, product = keys.shape[1], functools.partial(jnp.einsum, preferred_element_type=jnp.float32)
    alone = queries.shape[1] < length  # one query for each text
    scores = jnp.zeros(())
    if to_position is not None:
        by_distance = product("bqhd,chd->bhqc", queries, to_position)
        columns = relative.columns(places, length)[:, None, None]
        scores += jnp.take_along_axis(by_distance, columns, axis=-1) if alone else relative.spread(by_distance)
    if from_position is not None and alone:
        scores += product("bkhd,bkhd->bhk", keys, from_position[relative.columns(places, length)])[:, :, None]
    elif from_position is not None:
        scores += relative.spread(product("bkhd,chd->bhkc", keys, from_position[::-1])).swapaxes(-1, -2)
    return scores * scale


def blocks(config: DebertaConfig, dtype: Any, per_example: bool) -> Iterator[Part]:
    positions = DebertaPositions(config) if config.relative_attention else None
    parts = {"embeddings": DebertaEmbeddings, "attention": DebertaAttention, "positions": positions}
    return bert.blocks(config, dtype, per_example, **parts)


FAMILY = Family(
    model_type="deberta-v2",
    kind="encoder",
    title="a DeBERTa",
    config=DebertaConfig,
    problems=problems,
    layout=LAYOUT,
    blocks=blocks,
    heads=bert.heads("DebertaV2"),
)
