"""BERT on labelled texts: options, model and data, for a search and for labelling."""

import functools
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from gafreeze_jax import masking
from gafreeze_jax.data import text, tokens
from gafreeze_jax.engine.network import Dataset, Source
from gafreeze_jax.models import base, bert, checkpoints, pretrained, vocabulary
from gafreeze_jax.runs import experiment


@dataclass(frozen=True, kw_only=True)
class Options(experiment.Options):
    """Search which layers of a pretrained BERT to freeze when fine-tuning it to classify texts."""

    model: str = "minilm"
    """minilm (fetched once), a folder in the Hugging Face layout, or a hub name such as google-bert/bert-base-uncased."""
    data: str = "reviews"
    """reviews (embedded), a .csv, .tsv or .jsonl file (or .gz), a folder with a train file and, if there are any, validation
    and test files, or tfds:NAME such as tfds:glue/sst2."""
    max_tokens: int = 64
    """Longer texts are cut."""
    granularity: base.Granularity = "layer"
    """layer: a gene for every encoder layer; sublayer: one for its attention and one for its MLP."""
    text_columns: tuple[str, ...] = ()
    """Name of the text column, or of two for pairs of texts. Default: found by convention."""
    label_column: str | None = None
    """Name of the label column. Default: found by convention."""


def prepare(options: Options, *, trim: bool = True) -> experiment.Prepared:
    """Loads model and data.

    Args:
      trim: leave words that occur in no text out of what a member trains, until the model is saved.
    """
    experiment.check(options, max_tokens=8)
    data = text.load_text(
        options.data,
        text_columns=options.text_columns,
        label_column=options.label_column,
        max_train=options.train_examples,
        max_validation=options.validation_examples,
    )
    folder = checkpoints.find_model(options.model)
    dtype, key = experiment.compute_dtype(options.dtype), experiment.Keys.of(options.seed).head
    loaded = pretrained.load(folder, families=[bert.FAMILY], num_classes=len(data.label_names), key=key)
    model, config = loaded.model, loaded.config
    tokenizer = tokens.load_tokenizer(folder)
    limits = {"max_tokens": options.max_tokens, "vocabulary": config.vocab_size, "types": config.num_types}
    if options.max_tokens > config.max_tokens:
        raise ValueError(f"--max-tokens must be at most the model's {config.max_tokens}, got {options.max_tokens}")
    train, validation, test = (tokens.tokenize(tokenizer, split.texts, **limits) for split in data[:3])
    occurring = (train.inputs["ids"], validation.inputs["ids"]) if trim else (np.arange(config.vocab_size),)
    trimmed, params, used = vocabulary.trim(model, loaded.params, *occurring)
    network = trimmed.make_network(dtype=dtype, granularity=options.granularity)
    genes = experiment.block_genes(network, loaded.params)
    task = experiment.Task(
        network,
        base.split_layers(params, network.names),
        Source(Dataset(tokens.renumber(train, used), data.train.labels), tokens.scoring_batches(train)),
        Source(Dataset(tokens.renumber(validation, used), data.validation.labels), tokens.scoring_batches(validation)),
        loaded.make_head,
        tokens.batch_maker(train, options.batch_size, options.epochs),
        genes,
        functools.partial(masking.count_trainable, loaded.params, genes),
        model.tensor_names(loaded.params),
    )
    return experiment.Prepared(
        task,
        [
            f"Model: {options.model}, genes {', '.join(genes.names)}; pooler and classifier always train",
            *text.describe(options.data, data),
        ],
        model.make_network(dtype=dtype),
        experiment.Locked(Source(Dataset(test.inputs, data.test.labels), tokens.scoring_batches(test))),
        len(data.test.texts),
        lambda params: vocabulary.restore(base.join_layers(params), used, loaded.params),
        lambda to, params: loaded.save(to, params, label_names=data.label_names),
        {"label_names": data.label_names},
    )


def load_unlabelled(options: Options, folder: Path, data: Path) -> experiment.Unlabelled:
    """Loads a saved model and the texts of a file."""
    texts, columns, notes = text.load_unlabelled(data, options.text_columns)
    loaded = pretrained.load(folder, families=[bert.FAMILY])
    limits = {
        "max_tokens": options.max_tokens,
        "vocabulary": loaded.config.vocab_size,
        "types": loaded.config.num_types,
    }
    tokenized = tokens.tokenize(tokens.load_tokenizer(folder), texts, **limits)
    network = loaded.model.make_network(dtype=experiment.compute_dtype(options.dtype))
    source = Source(Dataset(tokenized.inputs), tokens.scoring_batches(tokenized))
    return experiment.Unlabelled(network, loaded.params, source, columns, notes)
