"""ModernBERT (Warner et al. 2024): norms first, rotary positions, gated MLPs, and attention to near tokens in most layers."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax import Array

from gafreeze_jax.extras import needs
from gafreeze_jax.models import configs, layers, products, rotary
from gafreeze_jax.models.base import Family, Layout, Part, module_head
from gafreeze_jax.models.checkpoints import dense, norm

with needs("text"):
    import flax.linen as nn

LAYOUT = Layout(
    prefix="model.",
    bare=("head.", "classifier."),
    ignored=r"(decoder|qa_outputs)\..*",  # heads of other tasks
    tied=("decoder.weight", "embeddings.tok_embeddings.weight"),
    table=(
        ("embeddings.tok_embeddings.weight", "embeddings/word", None),
        *norm("embeddings.norm", "embeddings/norm"),
        *norm("layers.{}.attn_norm", "layer_{}/attention/norm"),
        *dense("layers.{}.attn.Wqkv", "layer_{}/attention/qkv"),
        *dense("layers.{}.attn.Wo", "layer_{}/attention/out"),
        *norm("layers.{}.mlp_norm", "layer_{}/mlp/norm"),
        *dense("layers.{}.mlp.Wi", "layer_{}/mlp/up"),
        *dense("layers.{}.mlp.Wo", "layer_{}/mlp/down"),
        *norm("final_norm", "final_norm/norm"),
        *dense("head.dense", "head/dense"),
        *norm("head.norm", "head/norm"),
        *dense("classifier", "head/classifier"),
    ),
)


def _are_settings(value: Any) -> bool:
    return isinstance(value, Mapping) and all(
        isinstance(value.get(kind), Mapping | None) for kind in (configs.FULL, configs.SLIDING)
    )


ROPES = configs.or_null(configs.Rule("an object with one for each type of layers, or null", _are_settings))


@dataclass(frozen=True)
class ModernBertConfig:
    """What of a Hugging Face `config.json` changes the computation. Names are theirs, some of them in old configs only."""

    num_types = 1

    vocab_size: int = configs.field(configs.COUNT)
    hidden_size: int = configs.field(configs.COUNT)
    num_hidden_layers: int = configs.field(configs.DEPTH)
    num_attention_heads: int = configs.field(configs.COUNT)
    intermediate_size: int = configs.field(configs.COUNT)
    hidden_activation: str = configs.field(configs.one_of(layers.ACTIVATIONS), "gelu")
    max_position_embeddings: int = configs.field(configs.COUNT, 8192)
    norm_eps: float = configs.field(configs.POSITIVE, 1e-5)
    norm_bias: bool = configs.field(configs.FLAG, False)
    attention_bias: bool = configs.field(configs.FLAG, False)
    mlp_bias: bool = configs.field(configs.FLAG, False)
    initializer_range: float = configs.field(configs.POSITIVE, 0.02)
    layer_types: tuple[str, ...] | None = configs.field(configs.LAYER_TYPES, None)
    global_attn_every_n_layers: int = configs.field(configs.COUNT, 3)
    local_attention: int = configs.field(configs.COUNT, 128)
    rope_parameters: tuple | None = configs.field(ROPES, None)
    global_rope_theta: float = configs.field(configs.POSITIVE, 160_000.0)
    local_rope_theta: float = configs.field(configs.POSITIVE, 10_000.0)
    embedding_dropout: float = configs.field(configs.RATE, 0.0)
    attention_dropout: float = configs.field(configs.RATE, 0.0)
    mlp_dropout: float = configs.field(configs.RATE, 0.0)
    classifier_dropout: float = configs.field(configs.RATE, 0.0)
    classifier_bias: bool = configs.field(configs.FLAG, False)
    classifier_activation: str = configs.field(configs.one_of(layers.ACTIVATIONS), "gelu")
    classifier_pooling: Literal["cls", "mean"] = configs.field(configs.one_of(["cls", "mean"]), "cls")

    @property
    def max_tokens(self) -> int:
        return self.max_position_embeddings

    @property
    def head_width(self) -> int:
        return self.hidden_size // self.num_attention_heads

    def layer_type(self, index: int) -> str:
        """Whether a layer's tokens see the whole text or near tokens alone."""
        if self.layer_types is not None:
            return self.layer_types[index]
        return configs.SLIDING if index % self.global_attn_every_n_layers else configs.FULL

    def rope(self, layer_type: str) -> dict[str, Any]:
        theta = self.global_rope_theta if layer_type == configs.FULL else self.local_rope_theta
        return rotary.settings(theta, dict(self.rope_parameters or ()).get(layer_type))


def problems(raw: Mapping[str, Any], config: ModernBertConfig | None) -> Iterator[str]:
    if raw.get("rope_scaling") is not None:
        yield f"rope_scaling must be null, got {raw['rope_scaling']!r}"
    if not config:
        return
    if config.hidden_size % (2 * config.num_attention_heads):
        yield f"hidden_size {config.hidden_size} must be {config.num_attention_heads} attention heads of an even width"
    if config.layer_types is not None and len(config.layer_types) != config.num_hidden_layers:
        yield f"layer_types has {len(config.layer_types)} entries, expected num_hidden_layers {config.num_hidden_layers}"
    for layer_type in (configs.FULL, configs.SLIDING):
        yield from rotary.problems(config.rope(layer_type))


def _norm(config: ModernBertConfig, dtype: Any) -> nn.Module:
    return layers.norm(config.norm_eps, dtype, "norm", config.norm_bias)


class ModernBertEmbeddings(nn.Module):
    config: ModernBertConfig
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: dict[str, Array], context: dict[str, Array], frozen: Any) -> Array:
        cfg = self.config
        word = self.param("word", nn.initializers.normal(cfg.initializer_range), (cfg.vocab_size, cfg.hidden_size))
        h = _norm(cfg, products.activation_dtype(self.dtype))(layers.add_rows([(word, x["ids"])]))
        return layers.dropout(self, h, cfg.embedding_dropout, frozen)


class ModernBertAttention(nn.Module):
    """Norm, self-attention within the texts of a row, residual: [R * S, D] -> [R * S, D], or [B, D] where `last`.

    Attributes:
      reach: how many tokens away a token still sees others; None: it sees the whole text.
      frequencies: of the rotary positions.
      first: whether it is in the lowest layer, which has no norm, as the embeddings have one.
    """

    config: ModernBertConfig
    frequencies: tuple[float, ...]
    reach: int | None
    first: bool
    dtype: Any = jnp.float32
    last: bool = False

    @nn.compact
    def __call__(self, x: Array, context: dict[str, Array], frozen: Any) -> Array:
        cfg = self.config
        at = context["firsts"] if self.last else None  # [B], index into R * S
        h = x if self.first else _norm(cfg, x.dtype)(x)
        qkv = layers.dense(3 * cfg.hidden_size, cfg, self.dtype, "qkv", cfg.attention_bias)(h)
        query, key, value = (part.reshape(len(part), -1, cfg.head_width) for part in jnp.split(qkv, 3, axis=-1))
        if at is not None:
            x, query = x[at], query[at]
        mixed = rotary.attend(
            self, query, key, value, context["segments"], at, frequencies=self.frequencies,
            causal=False, reach=self.reach, dropout_rate=cfg.attention_dropout, frozen=frozen,
        )  # fmt: skip
        stddev = layers.residual_stddev(cfg, cfg.num_hidden_layers)
        out = layers.Dense(cfg.hidden_size, self.dtype, stddev, cfg.attention_bias, name="out")(mixed)
        return x + layers.dropout(self, out, cfg.attention_dropout, frozen)


class ModernBertMLP(nn.Module):
    """Norm, a gated dense layer, another one, residual."""

    config: ModernBertConfig
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array, context: dict[str, Array], frozen: Any) -> Array:
        cfg = self.config
        h = _norm(cfg, x.dtype)(x)
        h = layers.dense(2 * cfg.intermediate_size, cfg, self.dtype, "up", cfg.mlp_bias)(h)
        h, gate = jnp.split(h, 2, axis=-1)
        h = layers.dropout(self, layers.activate(cfg.hidden_activation, h) * gate, cfg.mlp_dropout, frozen)
        stddev = layers.residual_stddev(cfg, cfg.num_hidden_layers)
        return x + layers.Dense(cfg.hidden_size, self.dtype, stddev, cfg.mlp_bias, name="down")(h)


class ModernBertFinalNorm(nn.Module):
    """A norm; where `averages`, then the mean over each text's tokens: [R * S, D] -> [B, D]."""

    config: ModernBertConfig
    averages: bool

    @nn.compact
    def __call__(self, x: Array, context: dict[str, Array], frozen: Any) -> Array:
        x = _norm(self.config, x.dtype)(x)
        if not self.averages:
            return x
        texts, num_texts = context["segments"].reshape(-1), len(context["firsts"])
        sums, lengths = (jax.ops.segment_sum(rows, texts, num_texts) for rows in (x, jnp.ones((len(x), 1), x.dtype)))
        return sums / jnp.maximum(lengths, 1)


class ModernBertHead(nn.Module):
    """A dense layer, a norm and the classifier: [B, D] -> logits [B, C], of texts or of tokens."""

    config: ModernBertConfig
    num_classes: int

    @nn.compact
    def __call__(self, x: Array, context: dict[str, Array], frozen: Any = False) -> Array:
        cfg = self.config
        h = layers.dense(cfg.hidden_size, cfg, jnp.float32, "dense", cfg.classifier_bias)(x)
        h = _norm(cfg, jnp.float32)(layers.ACTIVATIONS[cfg.classifier_activation](h))
        h = layers.dropout(self, h, cfg.classifier_dropout, frozen)
        return layers.Dense(self.num_classes, jnp.float32, cfg.hidden_size**-0.5, name="classifier")(h)


def blocks(config: ModernBertConfig, dtype: Any, per_example: bool) -> Iterator[Part]:
    yield Part("embeddings", ModernBertEmbeddings(config, dtype), per_example=False)
    averages = per_example and config.classifier_pooling == "mean"
    for i in range(config.num_hidden_layers):
        last = per_example and not averages and i == config.num_hidden_layers - 1
        kind = config.layer_type(i)
        frequencies = rotary.frequencies(config.head_width, config.rope(kind))
        reach = None if kind == configs.FULL else config.local_attention // 2
        attention = ModernBertAttention(config, frequencies, reach, i == 0, dtype, last)
        yield Part(f"layer_{i}", {"attention": attention, "mlp": ModernBertMLP(config, dtype)}, per_example=last)
    yield Part("final_norm", ModernBertFinalNorm(config, averages), per_example=per_example)


FAMILY = Family(
    model_type="modernbert",
    kind="encoder",
    title="a ModernBERT",
    config=ModernBertConfig,
    problems=problems,
    layout=LAYOUT,
    blocks=blocks,
    heads={
        "classify": module_head("ModernBertForSequenceClassification", ModernBertHead, "head/classifier"),
        "tokens": module_head("ModernBertForTokenClassification", ModernBertHead, "head/classifier", per_example=False),
    },
)
