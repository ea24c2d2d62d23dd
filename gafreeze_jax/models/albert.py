"""ALBERT (Lan et al. 2020): BERT's layers, with the same parameters again and again, above narrow embeddings.

Layers that share parameters are a group, of which a network usually has one. A group is one gene, as its parameters can only
be frozen in all of its layers.
"""

import dataclasses
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
from jax import Array

from gafreeze_jax.extras import needs
from gafreeze_jax.models import bert, configs, layers
from gafreeze_jax.models.base import Family, Part
from gafreeze_jax.models.checkpoints import dense, norm

with needs("text"):
    import flax.linen as nn

IN_CHECKPOINTS, IN_TREE = "encoder.albert_layer_groups.{}.albert_layers.{}", "shared_layers_{}/layer_{}"
LAYOUT = dataclasses.replace(
    bert.LAYOUT,
    prefix="albert.",
    ignored=rf"(predictions|sop_classifier|qa_outputs)\..*|{bert.BUFFERS}",  # heads of other tasks
    tied=("predictions.decoder.weight", "embeddings.word_embeddings.weight"),
    table=(
        *bert.EMBEDDINGS,
        *dense("encoder.embedding_hidden_mapping_in", "embeddings/project"),
        *dense(f"{IN_CHECKPOINTS}.attention.query", f"{IN_TREE}/attention/query"),
        *dense(f"{IN_CHECKPOINTS}.attention.key", f"{IN_TREE}/attention/key"),
        *dense(f"{IN_CHECKPOINTS}.attention.value", f"{IN_TREE}/attention/value"),
        *dense(f"{IN_CHECKPOINTS}.attention.dense", f"{IN_TREE}/attention/out"),
        *norm(f"{IN_CHECKPOINTS}.attention.LayerNorm", f"{IN_TREE}/attention/norm"),
        *dense(f"{IN_CHECKPOINTS}.ffn", f"{IN_TREE}/mlp/up"),
        *dense(f"{IN_CHECKPOINTS}.ffn_output", f"{IN_TREE}/mlp/down"),
        *norm(f"{IN_CHECKPOINTS}.full_layer_layer_norm", f"{IN_TREE}/mlp/norm"),
        *dense("pooler", "head/pooler"),
        *dense("classifier", "head/classifier"),
    ),
)


@dataclass(frozen=True)
class AlbertConfig(bert.BertConfig):
    """BERT's with other defaults, the width of the embeddings, and which layers share parameters."""

    hidden_act: str = configs.field(configs.one_of(layers.ACTIVATIONS), "gelu_new")
    hidden_dropout_prob: float = configs.field(configs.RATE, 0.0)
    attention_probs_dropout_prob: float = configs.field(configs.RATE, 0.0)
    classifier_dropout_prob: float = configs.field(configs.RATE, 0.1)
    embedding_size: int = configs.field(configs.COUNT, 128)
    num_hidden_groups: int = configs.field(configs.DEPTH, 1)
    inner_group_num: int = configs.field(configs.DEPTH, 1)

    @property
    def embedding_width(self) -> int:
        return self.embedding_size

    @property
    def projects_embeddings(self) -> bool:
        return True

    @property
    def mlp_output_dropout(self) -> float:
        return 0.0

    @property
    def head_dropout(self) -> float:
        return self.classifier_dropout_prob

    @property
    def repeats(self) -> list[int]:
        """How many times each group is run."""
        groups = Counter(int(i / (self.num_hidden_layers / self.num_hidden_groups)) for i in range(self.num_hidden_layers))
        return [groups[group] for group in range(self.num_hidden_groups)]


def problems(raw: Mapping[str, Any], config: AlbertConfig | None) -> Iterator[str]:
    yield from bert.problems(raw, config)
    if config and config.num_hidden_groups > config.num_hidden_layers:
        yield f"num_hidden_groups {config.num_hidden_groups} must be at most num_hidden_layers {config.num_hidden_layers}"


class AlbertGroup(nn.Module):
    """Layers that are run several times: [R * S, D] -> [R * S, D], or [B, D], each text's first token, where `last`."""

    config: AlbertConfig
    repeats: int
    dtype: Any = jnp.float32
    last: bool = False

    @nn.compact
    def __call__(self, x: Array, context: dict[str, Array], frozen: Any) -> Array:
        parts = (("attention", bert.BertAttention(self.config, self.dtype)), ("mlp", bert.BertMLP(self.config, self.dtype)))
        group = [layers.Sublayers(parts, name=f"layer_{i}") for i in range(self.config.inner_group_num)]
        for layer in self.repeats * group:
            x = layer(x, context, frozen)
        return x[context["firsts"]] if self.last else x


def blocks(config: AlbertConfig, dtype: Any, per_example: bool) -> Iterator[Part]:
    yield Part("embeddings", bert.BertEmbeddings(config, dtype), per_example=False)
    for i, repeats in enumerate(config.repeats):
        last = per_example and i == config.num_hidden_groups - 1
        yield Part(f"shared_layers_{i}", AlbertGroup(config, repeats, dtype, last), per_example=last)


FAMILY = Family(
    model_type="albert",
    kind="encoder",
    title="an ALBERT",
    config=AlbertConfig,
    problems=problems,
    layout=LAYOUT,
    blocks=blocks,
    heads=bert.heads("Albert"),
)
