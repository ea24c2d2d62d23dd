"""DistilBERT (Sanh et al. 2019): BERT's layers without types of tokens, and without dropout of what attention returns."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from gafreeze_jax.models import bert, configs, layers
from gafreeze_jax.models.base import Family, Layout, Part, module_head
from gafreeze_jax.models.checkpoints import dense, norm

LAYOUT = Layout(
    prefix="distilbert.",
    bare=("pre_classifier.", "classifier."),
    ignored=rf"(vocab_(transform|layer_norm|projector)|qa_outputs)\..*|{bert.BUFFERS}",  # heads of other tasks
    tied=("vocab_projector.weight", "embeddings.word_embeddings.weight"),
    table=(
        *bert.EMBEDDINGS,
        *dense("transformer.layer.{}.attention.q_lin", "layer_{}/attention/query"),
        *dense("transformer.layer.{}.attention.k_lin", "layer_{}/attention/key"),
        *dense("transformer.layer.{}.attention.v_lin", "layer_{}/attention/value"),
        *dense("transformer.layer.{}.attention.out_lin", "layer_{}/attention/out"),
        *norm("transformer.layer.{}.sa_layer_norm", "layer_{}/attention/norm"),
        *dense("transformer.layer.{}.ffn.lin1", "layer_{}/mlp/up"),
        *dense("transformer.layer.{}.ffn.lin2", "layer_{}/mlp/down"),
        *norm("transformer.layer.{}.output_layer_norm", "layer_{}/mlp/norm"),
        *dense("pre_classifier", "head/pooler"),
        *dense("classifier", "head/classifier"),
    ),
)


@dataclass(frozen=True)
class DistilBertConfig:
    """What of a Hugging Face `config.json` changes the computation. Names are theirs."""

    num_types = 1

    vocab_size: int = configs.field(configs.COUNT)
    dim: int = configs.field(configs.COUNT)
    n_layers: int = configs.field(configs.DEPTH)
    n_heads: int = configs.field(configs.COUNT)
    hidden_dim: int = configs.field(configs.COUNT)
    activation: str = configs.field(configs.one_of(layers.ACTIVATIONS), "gelu")
    max_position_embeddings: int = configs.field(configs.COUNT, 512)
    initializer_range: float = configs.field(configs.POSITIVE, 0.02)
    dropout: float = configs.field(configs.RATE, 0.1)
    attention_dropout: float = configs.field(configs.RATE, 0.1)
    seq_classif_dropout: float = configs.field(configs.RATE, 0.2)

    @property
    def hidden_size(self) -> int:
        return self.dim

    @property
    def max_tokens(self) -> int:
        return self.max_position_embeddings

    def as_bert(self) -> bert.BertConfig:
        """The BERT that computes the same."""
        return _Bert(
            vocab_size=self.vocab_size,
            hidden_size=self.dim,
            num_hidden_layers=self.n_layers,
            num_attention_heads=self.n_heads,
            intermediate_size=self.hidden_dim,
            hidden_act=self.activation,
            max_position_embeddings=self.max_position_embeddings,
            type_vocab_size=0,
            initializer_range=self.initializer_range,
            hidden_dropout_prob=self.dropout,
            attention_probs_dropout_prob=self.attention_dropout,
            classifier_dropout=self.seq_classif_dropout,
        )


@dataclass(frozen=True)
class _Bert(bert.BertConfig):
    @property
    def head_activation(self) -> str:
        return "relu"

    @property
    def attention_output_dropout(self) -> float:
        return 0.0

    @property
    def token_head_dropout(self) -> float:
        return self.hidden_dropout_prob


def problems(raw: Mapping[str, Any], config: DistilBertConfig | None) -> Iterator[str]:
    if config and config.dim % config.n_heads:
        yield f"{config.n_heads} attention heads do not divide dim {config.dim}"


def blocks(config: DistilBertConfig, dtype: Any, per_example: bool) -> Iterator[Part]:
    return bert.blocks(config.as_bert(), dtype, per_example)


def head(config: DistilBertConfig, num_classes: int) -> bert.BertHead:
    return bert.BertHead(config.as_bert(), num_classes)


def token_head(config: DistilBertConfig, num_classes: int) -> layers.TokenHead:
    return bert.token_head(config.as_bert(), num_classes)


FAMILY = Family(
    model_type="distilbert",
    kind="encoder",
    title="a DistilBERT",
    config=DistilBertConfig,
    problems=problems,
    layout=LAYOUT,
    blocks=blocks,
    heads={
        "classify": module_head("DistilBertForSequenceClassification", head, "head/classifier"),
        "tokens": module_head("DistilBertForTokenClassification", token_head, "head/classifier", per_example=False),
    },
)
