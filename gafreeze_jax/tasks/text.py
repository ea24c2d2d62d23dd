"""Texts in classes: options of BERT, and what any family of networks for texts does with labelled texts."""

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from gafreeze_jax import masking, options
from gafreeze_jax.data import text, tokens
from gafreeze_jax.engine.network import Dataset, Source
from gafreeze_jax.models import base, checkpoints, pretrained, vocabulary
from gafreeze_jax.tasks import heads
from gafreeze_jax.tasks.base import Keys, Problem, Setup, Unlabelled, block_genes, classification


@dataclass(frozen=True, kw_only=True)
class Options(options.Options):
    """Search which layers of a pretrained BERT, or of a relative, to freeze when fine-tuning it to classify texts."""

    places: ClassVar = {"model": ("minilm",), "data": ("reviews", "tfds")}

    model: str = "minilm"
    """minilm (fetched once), a folder in the Hugging Face layout, or a hub name such as google-bert/bert-base-uncased.
    Networks may also be RoBERTa, XLM-RoBERTa, CamemBERT, DistilBERT, ELECTRA, ALBERT or ModernBERT."""
    data: str = "reviews"
    """reviews (embedded), a .csv, .tsv or .jsonl file (or .gz), a folder with a train file and, if there are any, validation
    and test files, or tfds:NAME such as tfds:glue/sst2."""
    max_tokens: int = 64
    """Longer texts are cut."""
    granularity: base.Granularity = "layer"
    """layer: a gene for every encoder layer; sublayer: one for its attention and one for its MLP."""
    head: heads.HeadOption = "auto"
    """keep: go on with the model's own classifier, which is a gene of its own; classes are matched by name. fresh: train a new
    one. auto: keep it if the model knows all classes of the data."""
    text_columns: tuple[str, ...] = ()
    """Name of the text column, or of two for pairs of texts. Default: found by convention."""
    label_column: str | None = None
    """Name of the label column. Default: found by convention."""


KIND = "encoder"


def prepare(given: Options, *, trim: bool = True) -> Setup:
    """Loads model and data.

    Args:
      trim: leave words that occur in no text out of what a member trains, until the model is saved.
    """
    options.check(given, max_tokens=8)
    data = load_data(given)
    folder = checkpoints.find_model(given.model)
    return prepare_classification(given, folder, data, KIND, trim=trim)


def load_data(given: Any) -> text.TextData:
    return text.load_text(
        given.data,
        text_columns=given.text_columns,
        label_column=given.label_column,
        max_train=given.train_examples,
        max_validation=given.validation_examples,
    )


def prepare_classification(
    given: Any, folder: Path, data: text.TextData, kind: str, *, trim: bool = True, pad: bool = False
) -> Setup:
    """A setup for labelled texts.

    Args:
      given: options with `max_tokens`, `granularity` and `head`.
      folder: of the model.
      kind: of the families that it may belong to.
      pad: tell PyTorch which token fills up batches, when the model is saved.
    """
    checkpoint = pretrained.read(folder, pretrained.families_of(kind))
    head = heads.choose(given.head, checkpoint, data.label_names)
    loaded, data = head.load(checkpoint, Keys.of(given.seed).head), head.relabel(data)
    model, config, dtype = loaded.model, loaded.config, options.compute_dtype(given.dtype)
    check_length(given.max_tokens, config)
    tokenizer = tokens.load_tokenizer(folder, config.vocab_size)
    train, validation, test = (_tokenize(given, config, tokenizer, split.texts, given.data) for split in data[:3])
    occurring = (train.inputs["ids"], validation.inputs["ids"]) if trim else (np.arange(config.vocab_size),)
    trimmed, params, used = vocabulary.trim(model, loaded.params, *occurring)
    network = trimmed.make_network(dtype=dtype, granularity=given.granularity)
    genes = block_genes(network, loaded.params)

    def source(split: tokens.Tokens, labels: np.ndarray) -> Source:
        return Source(Dataset(tokens.renumber(split, used), labels), tokens.scoring_batches(split))

    problem = Problem(
        network=network,
        params=base.split_layers(params, network.names),
        train=source(train, data.train.labels),
        validation=source(validation, data.validation.labels),
        make_head=loaded.make_head,
        make_batches=tokens.batch_maker(train, given.batch_size, given.epochs),
        genes=genes,
        count_trainable=functools.partial(masking.count_trainable, loaded.params, genes),
        tensors=model.tensor_names(loaded.params),
        task=classification(data.label_names),
    )
    padding = {"padding": tokens.padding(tokenizer, config.vocab_size)} if pad else {}
    setup = Setup(
        problem=problem,
        about=[
            f"Model: {given.model}, genes {', '.join([*genes.names, *[heads.GENE] * head.kept])}",
            head.about,
            *text.describe(given.data, data),
            *tokens.describe([train, validation, test], given.max_tokens),
        ],
        network=model.make_network(dtype=dtype),
        test=Source(Dataset(test.inputs, data.test.labels), tokens.scoring_batches(test)),
        num_test=len(data.test.texts),
        restore=lambda params: vocabulary.restore(base.join_layers(params), used, loaded.params),
        save=lambda to, params: loaded.save(to, params, label_names=data.label_names, **padding),
        facts={"label_names": data.label_names, "text_columns": data.text_columns},
        pretrained=loaded.read_leaves,
    )
    return head.finish(setup)


def load_unlabelled(given: Any, folder: Path, data: Path, label_names: Sequence[str], kind: str = KIND) -> Unlabelled:
    """Loads a saved model and the texts of a file."""
    texts, columns, notes = text.load_unlabelled(data, given.text_columns)
    loaded = pretrained.load(folder, families=pretrained.families_of(kind))
    config = loaded.config
    tokenized = _tokenize(given, config, tokens.load_tokenizer(folder, config.vocab_size), texts, str(data))
    return Unlabelled(
        network=loaded.model.make_network(dtype=options.compute_dtype(given.dtype)),
        params=loaded.params,
        source=Source(Dataset(tokenized.inputs), tokens.scoring_batches(tokenized)),
        task=classification(label_names),
        columns=columns,
        notes=(*notes, *tokens.describe([tokenized], given.max_tokens)),
    )


def _tokenize(given: Any, config: Any, tokenizer: Any, texts: Sequence[tuple[str, ...]], where: str) -> tokens.Tokens:
    limits = {"max_tokens": given.max_tokens, "vocabulary": config.vocab_size, "types": config.num_types}
    return tokens.tokenize(tokenizer, texts, **limits, where=where)


def check_length(max_tokens: int, config: Any) -> None:
    if max_tokens > config.max_tokens:
        raise ValueError(f"--max-tokens must be at most the model's {config.max_tokens}, got {max_tokens}")
