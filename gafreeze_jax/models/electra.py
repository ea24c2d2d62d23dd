"""ELECTRA (Clark et al. 2020): BERT's layers above embeddings of a width of their own, and a head like RoBERTa's."""

import dataclasses
from dataclasses import dataclass

from gafreeze_jax.models import bert, configs
from gafreeze_jax.models.base import Family
from gafreeze_jax.models.checkpoints import dense

LAYOUT = dataclasses.replace(
    bert.LAYOUT,
    prefix="electra.",
    # Heads of other tasks.
    ignored=rf"((discriminator|generator)_predictions|generator_lm_head|sequence_summary|qa_outputs)\..*|{bert.BUFFERS}",
    tied=("generator_lm_head.weight", "embeddings.word_embeddings.weight"),
    table=(
        *bert.EMBEDDINGS,
        *dense("embeddings_project", "embeddings/project"),
        *bert.LAYERS,
        *dense("classifier.dense", "head/pooler"),
        *dense("classifier.out_proj", "head/classifier"),
        *dense("classifier", "head/token_classifier"),
    ),
)


@dataclass(frozen=True)
class ElectraConfig(bert.BertConfig):
    """BERT's, and the width of the embeddings."""

    embedding_size: int = configs.field(configs.COUNT, 128)

    @property
    def embedding_width(self) -> int:
        return self.embedding_size

    @property
    def head_activation(self) -> str:
        return "gelu"

    @property
    def head_input_dropout(self) -> float:
        return self.head_dropout


FAMILY = Family(
    model_type="electra",
    kind="encoder",
    title="an ELECTRA",
    config=ElectraConfig,
    problems=bert.problems,
    layout=LAYOUT,
    blocks=bert.blocks,
    heads=bert.heads("Electra", "token_classifier"),
)
