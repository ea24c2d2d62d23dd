"""The competitor: BERT fine-tuned with a mask of frozen layers, as a good PyTorch user would write it.

Checkpoint, head, genes, learning rates, weight decay, clipping and dropout rates are those of gafreeze_jax, and
tests/benchmarks/test_pytorch_bert.py checks that both train the same parameters. What PyTorch does better in another way it
does in its own: texts of similar length form a batch and are padded to its longest, which wastes least; attention is
scaled_dot_product_attention; AdamW is the fused one (26 ms for MiniLM's 22.7 M parameters, against 191 ms by default; torch
2.13.0, one core of an AMD EPYC) and is given trainable parameters only; weights go back to the pretrained ones in place.

Two things differ from gafreeze_jax. Frozen layers keep their dropout, as `model.train()` has it. And word vectors that no text
uses are trained along, as nobody leaves them out by hand.
"""

# pyright: reportMissingImports=false

from pathlib import Path
from typing import Any

import machine
import numpy as np
import pytorch_loop
import torch
import transformers
from pytorch_loop import Batch
from transformers import BertForSequenceClassification

from gafreeze_jax.data.batches import NONE, orders_by_length
from gafreeze_jax.data.tokens import SCORING_BATCH, Tokens
from gafreeze_jax.models import bert, checkpoints


def bucketed_batches(rng: np.random.Generator, lengths: np.ndarray, batch_size: int, num_epochs: int = 1) -> np.ndarray:
    """Random batches of examples of similar length, in random order: [steps, batch_size], as `balanced_batches` gives them."""
    num = len(lengths)
    steps = -(-num // batch_size)
    epochs = []
    for order in orders_by_length(rng, lengths, num_epochs):
        filled = np.concatenate([order, np.full(steps * batch_size - num, NONE)])
        epochs.append(rng.permutation(filled.reshape(steps, batch_size)))
    return np.concatenate(epochs)


def pad_batches(texts: Tokens, labels: np.ndarray, examples: np.ndarray) -> list[Batch]:
    """What the model takes, each batch padded to its longest text. `examples`: [steps, batch_size], -1 = none."""
    batches = []
    for batch in examples:
        batch = batch[batch != NONE]
        starts, lengths = texts.starts[batch, None], texts.lengths[batch, None]
        columns = np.arange(lengths.max())
        real = columns < lengths
        places = np.where(real, starts + columns, 0)
        arrays = {
            "input_ids": np.where(real, texts.inputs["ids"][places], 0),
            "token_type_ids": np.where(real, texts.inputs["types"][places], 0),
            "attention_mask": real,
            "labels": labels[batch],
        }
        batches.append({name: torch.from_numpy(array.astype(np.int64)) for name, array in arrays.items()})
    return batches


def scoring_batches(texts: Tokens, labels: np.ndarray) -> list[Batch]:
    """All texts once, sorted by length."""
    return pad_batches(texts, labels, bucketed_batches(np.random.default_rng(0), texts.lengths, SCORING_BATCH))


class Finetuner(pytorch_loop.Finetuner):
    """A BERT that is fine-tuned again and again, each time from the pretrained weights.

    Args:
      folder: a checkpoint in the Hugging Face layout.
      head: initial pooler and classifier, as in `models/bert.py`.
      learning_rate, head_learning_rate: highest ones, as for `population.adamw_recipe`.
      dtype: bfloat16 = autocast.
    """

    def __init__(
        self,
        folder: Path,
        head: Any,
        learning_rate: float,
        head_learning_rate: float,
        dtype: pytorch_loop.Dtype = "float32",
        device: str = "cpu",
    ):
        transformers.logging.set_verbosity_error()  # it would say that the classifier is fresh
        transformers.logging.disable_progress_bar()
        tensors = checkpoints.from_tree({"head": head}, bert.LAYOUT.table)
        model = BertForSequenceClassification.from_pretrained(
            folder, num_labels=len(tensors["classifier.bias"]), attn_implementation="sdpa", dtype=torch.float32
        )
        head_modules = {name.split(".")[-1]: model.get_submodule(name) for name in ("bert.pooler", "classifier")}
        trained_always = torch.nn.ModuleDict(head_modules)
        trained_always.load_state_dict({name: torch.tensor(tensor) for name, tensor in tensors.items()})
        super().__init__(
            model,
            [model.bert.embeddings, *model.bert.encoder.layer],
            trained_always,
            learning_rates=(learning_rate, head_learning_rate),
            dtype=dtype,
            device=device,
        )


def describe_machine() -> dict[str, Any]:
    """Processor, cores and versions, PyTorch's too."""
    described = machine.describe_machine()
    versions = described["versions"] | {"torch": torch.__version__}
    return described | {"torch_threads": torch.get_num_threads(), "versions": versions}


def machine_line(described: dict[str, Any]) -> str:
    """The same for people."""
    versions = ", ".join(f"{name} {described['versions'][name]}" for name in ("torch", "jax", "transformers"))
    return f"{described['processor']}, {described['cores']} cores; {versions}"
