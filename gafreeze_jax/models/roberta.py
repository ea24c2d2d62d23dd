"""RoBERTa (Liu et al. 2019), and its kin XLM-RoBERTa (Conneau et al. 2020) and CamemBERT (Martin et al. 2020): BERT's layers.

Rows of the position vectors are counted from the padding token's id on, and the head has dropout before its first layer.
"""

import dataclasses
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from gafreeze_jax.models import bert, configs
from gafreeze_jax.models.base import Family
from gafreeze_jax.models.checkpoints import dense

LAYOUT = dataclasses.replace(
    bert.LAYOUT,
    prefix="roberta.",
    ignored=rf"(lm_head|pooler|qa_outputs)\..*|{bert.BUFFERS}",  # heads of other tasks
    tied=("lm_head.decoder.weight", "embeddings.word_embeddings.weight"),
    table=(
        *bert.EMBEDDINGS,
        *bert.LAYERS,
        *dense("classifier.dense", "head/pooler"),
        *dense("classifier.out_proj", "head/classifier"),
        *dense("classifier", "head/token_classifier"),
    ),
)


@dataclass(frozen=True)
class RobertaConfig(bert.BertConfig):
    """BERT's, and the id of the padding token."""

    pad_token_id: int = configs.field(configs.NUMBER, 1)

    @property
    def head_input_dropout(self) -> float:
        return self.head_dropout

    @property
    def num_types(self) -> int:
        """The second text of a pair has no type of its own."""
        return 1

    @property
    def first_position(self) -> int:
        return self.pad_token_id + 1


def problems(raw: Mapping[str, Any], config: RobertaConfig | None) -> Iterator[str]:
    yield from bert.problems(raw, config)
    if config and config.max_tokens < 1:
        yield f"max_position_embeddings must be above pad_token_id + 1, got {config.max_position_embeddings}"


def family(model_type: str, title: str, stem: str) -> Family:
    """A family, whose networks' names begin with `stem` in PyTorch."""
    return Family(
        model_type=model_type,
        kind="encoder",
        title=title,
        config=RobertaConfig,
        problems=problems,
        layout=LAYOUT,
        blocks=bert.blocks,
        heads=bert.heads(stem, "token_classifier"),
    )


FAMILIES = (
    family("roberta", "a RoBERTa", "Roberta"),
    family("xlm-roberta", "an XLM-RoBERTa", "XLMRoberta"),
    family("camembert", "a CamemBERT", "Camembert"),
)
