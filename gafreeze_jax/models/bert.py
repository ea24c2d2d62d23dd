"""BERT for sequence classification (Devlin et al. 2019): the embeddings, then one block per layer.

Token arrays are flat, `[tokens, features]`: matrix products are then single large ones, and short texts share rows (see
`data/tokens.py`). The last layer is computed for the first token of every text alone, as nothing else is read from it.
"""

import functools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
from jax import Array

from gafreeze_jax.extras import needs
from gafreeze_jax.models import checkpoints, configs, layers, products, relative
from gafreeze_jax.models.base import Family, Head, Layout, Part, module_head
from gafreeze_jax.models.relative import Bias

with needs("text"):
    import flax.linen as nn

EMBEDDINGS = (
    ("embeddings.word_embeddings.weight", "embeddings/word", None),
    ("embeddings.position_embeddings.weight", "embeddings/position", None),
    ("embeddings.token_type_embeddings.weight", "embeddings/type", None),
    *checkpoints.norm("embeddings.LayerNorm", "embeddings/norm"),
)
MLP = (
    *checkpoints.dense("encoder.layer.{}.intermediate.dense", "layer_{}/mlp/up"),
    *checkpoints.dense("encoder.layer.{}.output.dense", "layer_{}/mlp/down"),
    *checkpoints.norm("encoder.layer.{}.output.LayerNorm", "layer_{}/mlp/norm"),
)
LAYERS = (
    *checkpoints.dense("encoder.layer.{}.attention.self.query", "layer_{}/attention/query"),
    *checkpoints.dense("encoder.layer.{}.attention.self.key", "layer_{}/attention/key"),
    *checkpoints.dense("encoder.layer.{}.attention.self.value", "layer_{}/attention/value"),
    *checkpoints.dense("encoder.layer.{}.attention.output.dense", "layer_{}/attention/out"),
    *checkpoints.norm("encoder.layer.{}.attention.output.LayerNorm", "layer_{}/attention/norm"),
    *MLP,
)
BUFFERS = r"embeddings\.(position|token_type)_ids"
LAYOUT = Layout(
    prefix="bert.",
    bare=("classifier.",),
    old_endings=((".gamma", ".weight"), (".beta", ".bias")),
    ignored=rf"(cls|qa_outputs|crf)\..*|{BUFFERS}",  # heads of other tasks
    tied=("cls.predictions.decoder.weight", "embeddings.word_embeddings.weight"),
    table=(
        *EMBEDDINGS,
        *LAYERS,
        *checkpoints.dense("pooler.dense", "head/pooler"),
        *checkpoints.dense("classifier", "head/classifier"),
    ),
)


@dataclass(frozen=True)
class BertConfig:
    """What of a Hugging Face `config.json` changes the computation. Names are theirs.

    Networks with BERT's layers differ by what is no field.
    """

    vocab_size: int = configs.field(configs.COUNT)
    hidden_size: int = configs.field(configs.COUNT)
    num_hidden_layers: int = configs.field(configs.DEPTH)
    num_attention_heads: int = configs.field(configs.COUNT)
    intermediate_size: int = configs.field(configs.COUNT)
    hidden_act: str = configs.field(configs.one_of(layers.ACTIVATIONS), "gelu")
    max_position_embeddings: int = configs.field(configs.COUNT, 512)
    type_vocab_size: int = configs.field(configs.COUNT, 2)
    layer_norm_eps: float = configs.field(configs.POSITIVE, 1e-12)
    initializer_range: float = configs.field(configs.POSITIVE, 0.02)
    hidden_dropout_prob: float = configs.field(configs.RATE, 0.1)
    attention_probs_dropout_prob: float = configs.field(configs.RATE, 0.1)
    classifier_dropout: float | None = configs.field(configs.or_null(configs.RATE), None)

    @property
    def first_position(self) -> int:
        """Row of the position vectors that a text's first token has."""
        return 0

    @property
    def max_tokens(self) -> int:
        return self.max_position_embeddings - self.first_position

    @property
    def embedding_width(self) -> int:
        return self.hidden_size

    @property
    def projects_embeddings(self) -> bool:
        """Whether a dense layer follows the embeddings."""
        return self.embedding_width != self.hidden_size

    @property
    def num_types(self) -> int:
        return self.type_vocab_size

    @property
    def head_width(self) -> int:
        return self.hidden_size // self.num_attention_heads

    @property
    def attention_scale(self) -> float:
        """Of the attention scores."""
        return self.head_width**-0.5

    @property
    def attention_output_dropout(self) -> float:
        return self.hidden_dropout_prob

    @property
    def mlp_output_dropout(self) -> float:
        return self.hidden_dropout_prob

    @property
    def head_dropout(self) -> float:
        return self.hidden_dropout_prob if self.classifier_dropout is None else self.classifier_dropout

    @property
    def head_activation(self) -> str:
        """Between the head's two layers."""
        return "tanh"

    @property
    def head_input_dropout(self) -> float:
        """Before the first of the head's two layers, too, in some relatives."""
        return 0.0

    @property
    def token_head_dropout(self) -> float:
        """Before a classifier of tokens."""
        return self.head_dropout


def problems(raw: Mapping[str, Any], config: BertConfig | None) -> Iterator[str]:
    if config and config.hidden_size % config.num_attention_heads:
        yield f"{config.num_attention_heads} attention heads do not divide hidden_size {config.hidden_size}"
    if raw.get("position_embedding_type", "absolute") != "absolute":
        yield f"position_embedding_type must be 'absolute', got {raw['position_embedding_type']!r}"
    if raw.get("is_decoder") or raw.get("add_cross_attention"):
        yield "it is a decoder; expected an encoder"


def norm(config: BertConfig, dtype: Any, name: str) -> nn.Module:
    return layers.norm(config.layer_norm_eps, dtype, name)


def add_embeddings(module: nn.Module, config: BertConfig, x: dict[str, Array], has_positions: bool = True) -> Array:
    """Sums of the vectors of tokens, of positions if there are some, and of types if there are some: [N, D] float32."""
    init = nn.initializers.normal(config.initializer_range)
    rows = [(module.param("word", init, (config.vocab_size, config.embedding_width)), x["ids"])]
    if has_positions:
        position = module.param("position", init, (config.max_position_embeddings, config.embedding_width))
        rows.append((position, x["positions"] + config.first_position))
    if config.type_vocab_size:
        rows.append((module.param("type", init, (config.type_vocab_size, config.embedding_width)), x["types"]))
    return layers.add_rows(rows)


class BertEmbeddings(nn.Module):
    config: BertConfig
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: dict[str, Array], context: dict[str, Array], frozen: Any) -> Array:
        cfg = self.config
        h = add_embeddings(self, cfg, x)
        h = norm(cfg, products.activation_dtype(self.dtype), "norm")(h)
        h = layers.dropout(self, h, cfg.hidden_dropout_prob, frozen)
        return layers.dense(cfg.hidden_size, cfg, self.dtype, "project")(h) if cfg.projects_embeddings else h


class BertAttention(nn.Module):
    """Self-attention within the texts of a row, residual, norm: [R * S, D] -> [R * S, D], or [B, D] where `last`."""

    config: BertConfig
    dtype: Any = jnp.float32
    last: bool = False

    @nn.compact
    def __call__(self, x: Array, context: dict[str, Array], frozen: Any) -> Array:
        cfg = self.config
        at = context["firsts"] if self.last else None  # [B], index into R * S
        query, key, value = (layers.dense(cfg.hidden_size, cfg, self.dtype, name) for name in ("query", "key", "value"))
        bias, keys, values = self.bias(query, key, context, frozen), key(x), value(x)
        x = x if at is None else x[at]
        mixed = layers.attend(
            self, query(x), keys, values, context["segments"], at,
            num_heads=cfg.num_attention_heads, scale=cfg.attention_scale, causal=False, bias=bias,
            dropout_rate=cfg.attention_probs_dropout_prob, frozen=frozen,
        )  # fmt: skip
        out = layers.dense(cfg.hidden_size, cfg, self.dtype, "out")(mixed)
        out = layers.dropout(self, out, cfg.attention_output_dropout, frozen)
        return norm(cfg, x.dtype, "norm")(x + out)

    def bias(self, query: layers.Dense, key: layers.Dense, context: dict[str, Array], frozen: Any) -> Bias | None:
        """What relatives add to the scores of attention, as in `layers.attend`; `query` and `key` are their projections."""
        return None


class BertMLP(nn.Module):
    """Two dense layers, residual, norm."""

    config: BertConfig
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array, context: dict[str, Array], frozen: Any) -> Array:
        cfg = self.config
        h = layers.activate(cfg.hidden_act, layers.dense(cfg.intermediate_size, cfg, self.dtype, "up")(x))
        out = layers.dropout(self, layers.dense(cfg.hidden_size, cfg, self.dtype, "down")(h), cfg.mlp_output_dropout, frozen)
        return norm(cfg, x.dtype, "norm")(x + out)


class BertHead(nn.Module):
    """Pooler and classifier: [B, D] -> logits [B, C]."""

    config: BertConfig
    num_classes: int

    @nn.compact
    def __call__(self, x: Array, context: dict[str, Array], frozen: Any = False) -> Array:
        cfg = self.config
        x = layers.dropout(self, x, cfg.head_input_dropout, frozen)
        pooled = layers.ACTIVATIONS[cfg.head_activation](layers.dense(cfg.hidden_size, cfg, jnp.float32, "pooler")(x))
        pooled = layers.dropout(self, pooled, cfg.head_dropout, frozen)
        return layers.dense(self.num_classes, cfg, jnp.float32, "classifier")(pooled)


def token_head(config: BertConfig, num_classes: int, layer: str = "classifier") -> layers.TokenHead:
    """A classifier of every token, without a pooler."""
    return layers.TokenHead(num_classes, config.initializer_range, config.token_head_dropout, layer)


def blocks(
    config: BertConfig,
    dtype: Any,
    per_example: bool,
    *,
    embeddings: type[nn.Module] = BertEmbeddings,
    attention: type[nn.Module] = BertAttention,
    positions: nn.Module | None = None,
) -> Iterator[Part]:
    """The embeddings, relative positions that all layers share where a network has them, and the layers."""
    yield Part("embeddings", embeddings(config, dtype), per_example=False)
    if positions is not None:
        yield Part(relative.NAME, positions, per_example=False, computes=False)
    for i in range(config.num_hidden_layers):
        last = per_example and i == config.num_hidden_layers - 1
        sublayers = {"attention": attention(config, dtype, last), "mlp": BertMLP(config, dtype)}
        yield Part(f"layer_{i}", sublayers, per_example=last)


def heads(stem: str, token_layer: str = "classifier") -> dict[str, Head]:
    """The heads of networks with BERT's layers, whose names begin with `stem` in PyTorch.

    Args:
      token_layer: name of the layer that classifies tokens, where its tensors are not called as those of a text's classifier.
    """
    of_tokens = functools.partial(token_head, layer=token_layer)
    return {
        "classify": module_head(f"{stem}ForSequenceClassification", BertHead, "head/classifier"),
        "tokens": module_head(f"{stem}ForTokenClassification", of_tokens, f"head/{token_layer}", per_example=False),
    }


FAMILY = Family(
    model_type="bert",
    kind="encoder",
    title="a BERT",
    config=BertConfig,
    problems=problems,
    layout=LAYOUT,
    blocks=blocks,
    heads=heads("Bert"),
)
