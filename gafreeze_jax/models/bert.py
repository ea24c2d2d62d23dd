"""BERT for sequence classification (Devlin et al. 2019): the embeddings, then one block per layer.

Token arrays are flat, `[tokens, features]`: matrix products are then single large ones, and short texts share rows (see
`data/tokens.py`). The last layer is computed for the first token of every text alone, as nothing else is read from it.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
from jax import Array

from gafreeze_jax.extras import needs
from gafreeze_jax.models import checkpoints, configs, layers, products
from gafreeze_jax.models.base import Family, Head, Layout, Part

with needs("text"):
    import flax.linen as nn

EMBEDDINGS = (
    ("embeddings.word_embeddings.weight", "embeddings/word", None),
    ("embeddings.position_embeddings.weight", "embeddings/position", None),
    ("embeddings.token_type_embeddings.weight", "embeddings/type", None),
    *checkpoints.norm("embeddings.LayerNorm", "embeddings/norm"),
)
LAYERS = (
    *checkpoints.dense("encoder.layer.{}.attention.self.query", "layer_{}/attention/query"),
    *checkpoints.dense("encoder.layer.{}.attention.self.key", "layer_{}/attention/key"),
    *checkpoints.dense("encoder.layer.{}.attention.self.value", "layer_{}/attention/value"),
    *checkpoints.dense("encoder.layer.{}.attention.output.dense", "layer_{}/attention/out"),
    *checkpoints.norm("encoder.layer.{}.attention.output.LayerNorm", "layer_{}/attention/norm"),
    *checkpoints.dense("encoder.layer.{}.intermediate.dense", "layer_{}/mlp/up"),
    *checkpoints.dense("encoder.layer.{}.output.dense", "layer_{}/mlp/down"),
    *checkpoints.norm("encoder.layer.{}.output.LayerNorm", "layer_{}/mlp/norm"),
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

    Attributes:
      head_activation: between the head's two layers.
      drops_head_input: whether there is dropout before the first of them, too.
    """

    head_activation = "tanh"
    drops_head_input = False

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
    def attention_output_dropout(self) -> float:
        return self.hidden_dropout_prob

    @property
    def mlp_output_dropout(self) -> float:
        return self.hidden_dropout_prob

    @property
    def head_dropout(self) -> float:
        return self.hidden_dropout_prob if self.classifier_dropout is None else self.classifier_dropout


def problems(raw: Mapping[str, Any], config: BertConfig | None) -> Iterator[str]:
    if config and config.hidden_size % config.num_attention_heads:
        yield f"{config.num_attention_heads} attention heads do not divide hidden_size {config.hidden_size}"
    if raw.get("position_embedding_type", "absolute") != "absolute":
        yield f"position_embedding_type must be 'absolute', got {raw['position_embedding_type']!r}"
    if raw.get("is_decoder") or raw.get("add_cross_attention"):
        yield "it is a decoder; expected an encoder"


def _dense(features: int, config: BertConfig, dtype: Any, name: str) -> layers.Dense:
    return layers.Dense(features, dtype, config.initializer_range, name=name)


def _norm(config: BertConfig, dtype: Any, name: str) -> nn.Module:
    return layers.norm(config.layer_norm_eps, dtype, name)


class BertEmbeddings(nn.Module):
    config: BertConfig
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: dict[str, Array], context: dict[str, Array], frozen: Any) -> Array:
        cfg, init = self.config, nn.initializers.normal(self.config.initializer_range)
        word = self.param("word", init, (cfg.vocab_size, cfg.embedding_width))
        position = self.param("position", init, (cfg.max_position_embeddings, cfg.embedding_width))
        rows = [(word, x["ids"]), (position, x["positions"] + cfg.first_position)]
        if cfg.type_vocab_size:
            rows.append((self.param("type", init, (cfg.type_vocab_size, cfg.embedding_width)), x["types"]))
        h = layers.add_rows(rows)
        h = _norm(cfg, products.activation_dtype(self.dtype), "norm")(h)
        h = layers.dropout(self, h, cfg.hidden_dropout_prob, frozen)
        return _dense(cfg.hidden_size, cfg, self.dtype, "project")(h) if cfg.projects_embeddings else h


class BertAttention(nn.Module):
    """Self-attention within the texts of a row, residual, norm: [R * S, D] -> [R * S, D], or [B, D] where `last`."""

    config: BertConfig
    dtype: Any = jnp.float32
    last: bool = False

    @nn.compact
    def __call__(self, x: Array, context: dict[str, Array], frozen: Any) -> Array:
        cfg = self.config
        at = context["firsts"] if self.last else None  # [B], index into R * S
        key, value = (_dense(cfg.hidden_size, cfg, self.dtype, name)(x) for name in ("key", "value"))
        x = x if at is None else x[at]
        query = _dense(cfg.hidden_size, cfg, self.dtype, "query")(x)
        mixed = layers.attend(
            self, query, key, value, context["segments"], at,
            num_heads=cfg.num_attention_heads, scale=(cfg.hidden_size // cfg.num_attention_heads) ** -0.5, causal=False,
            dropout_rate=cfg.attention_probs_dropout_prob, frozen=frozen,
        )  # fmt: skip
        out = _dense(cfg.hidden_size, cfg, self.dtype, "out")(mixed)
        out = layers.dropout(self, out, cfg.attention_output_dropout, frozen)
        return _norm(cfg, x.dtype, "norm")(x + out)


class BertMLP(nn.Module):
    """Two dense layers, residual, norm."""

    config: BertConfig
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array, context: dict[str, Array], frozen: Any) -> Array:
        cfg = self.config
        h = layers.activate(cfg.hidden_act, _dense(cfg.intermediate_size, cfg, self.dtype, "up")(x))
        out = layers.dropout(self, _dense(cfg.hidden_size, cfg, self.dtype, "down")(h), cfg.mlp_output_dropout, frozen)
        return _norm(cfg, x.dtype, "norm")(x + out)


class BertHead(nn.Module):
    """Pooler and classifier: [B, D] -> logits [B, C]."""

    config: BertConfig
    num_classes: int

    @nn.compact
    def __call__(self, x: Array, context: dict[str, Array], frozen: Any = False) -> Array:
        cfg = self.config
        x = layers.dropout(self, x, cfg.head_dropout, frozen) if cfg.drops_head_input else x
        pooled = layers.ACTIVATIONS[cfg.head_activation](_dense(cfg.hidden_size, cfg, jnp.float32, "pooler")(x))
        pooled = layers.dropout(self, pooled, cfg.head_dropout, frozen)
        return _dense(self.num_classes, cfg, jnp.float32, "classifier")(pooled)


def make_head(config: BertConfig, num_classes: int, dtype: Any) -> Callable:
    module: Any = BertHead(config, num_classes)  # pyright takes it for unhashable
    return layers.as_block(module)


def init_head(key: Array, config: BertConfig, num_classes: int) -> dict:
    """Fresh pooler and classifier."""
    return dict(BertHead(config, num_classes).init(key, jnp.zeros((1, config.hidden_size)), {})["params"])


class BertTokenHead(nn.Module):
    """A classifier of every token, without a pooler: [N, D] -> logits [N, C]."""

    config: BertConfig
    num_classes: int

    @nn.compact
    def __call__(self, x: Array, context: dict[str, Array], frozen: Any = False) -> Array:
        x = layers.dropout(self, x.astype(jnp.float32), self.config.head_dropout, frozen)
        return _dense(self.num_classes, self.config, jnp.float32, "classifier")(x)


def make_token_head(config: BertConfig, num_classes: int, dtype: Any) -> Callable:
    module: Any = BertTokenHead(config, num_classes)
    return layers.as_block(module)


def init_token_head(key: Array, config: BertConfig, num_classes: int) -> dict:
    return dict(BertTokenHead(config, num_classes).init(key, jnp.zeros((1, config.hidden_size)), {})["params"])


def blocks(config: BertConfig, dtype: Any, per_example: bool) -> Iterator[Part]:
    yield Part("embeddings", BertEmbeddings(config, dtype), per_example=False)
    for i in range(config.num_hidden_layers):
        last = per_example and i == config.num_hidden_layers - 1
        sublayers = {"attention": BertAttention(config, dtype, last), "mlp": BertMLP(config, dtype)}
        yield Part(f"layer_{i}", sublayers, per_example=last)


def classify(architecture: str) -> Head:
    """The head for classification of a family with BERT's layers, by PyTorch's name of the network."""
    return Head(architecture=architecture, make=make_head, init=init_head, output="head/classifier")


FAMILY = Family(
    model_type="bert",
    kind="encoder",
    title="a BERT",
    config=BertConfig,
    problems=problems,
    layout=LAYOUT,
    blocks=blocks,
    heads={
        "classify": classify("BertForSequenceClassification"),
        "tokens": Head(
            architecture="BertForTokenClassification",
            make=make_token_head,
            init=init_token_head,
            output="head/classifier",
            per_example=False,
        ),
    },
)
