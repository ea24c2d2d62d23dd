"""Labelled texts: options of BERT, and what any family of networks for texts does with them."""

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np

from gafreeze_jax import masking, options
from gafreeze_jax.data import splits, targets, text, tokens
from gafreeze_jax.engine.network import Dataset, Source
from gafreeze_jax.models import base, checkpoints, pretrained, vocabulary
from gafreeze_jax.tasks import heads, kinds
from gafreeze_jax.tasks.base import Keys, Problem, Setup, Unlabelled, block_genes
from gafreeze_jax.tasks.class_weights import ClassWeights, weigh


@dataclass(frozen=True, kw_only=True)
class Options(options.Options):
    """Find which layers of a pretrained BERT, or of a relative, to freeze when fine-tuning it on labelled texts."""

    places: ClassVar = {"model": ("minilm",), "data": ("reviews", "hub", "tfds")}

    model: str = "minilm"
    """minilm (fetched once), a folder in the Hugging Face layout, or a hub name such as google-bert/bert-base-uncased.
    Networks may also be RoBERTa, XLM-RoBERTa, CamemBERT, DistilBERT, ELECTRA, ALBERT, ModernBERT, MPNet or DeBERTa."""
    data: str = "reviews"
    """reviews (embedded), a .csv, .tsv, .jsonl, .parquet or .conll file (or .gz), a folder with a train file and, if there are
    any, validation and test files, hub:NAME or hub:NAME/CONFIG such as hub:nyu-mll/glue/sst2 on the Hugging Face hub, or
    tfds:NAME such as tfds:glue/sst2."""
    task: Literal["auto", "label", "labels", "number", "tags"] = "auto"
    """What a text is given: one label of a few, several labels, a number, or a tag for each word. auto: recognised from the
    labels."""
    metric: kinds.MetricName = "auto"
    """What the search maximizes, and reports compare. auto: accuracy for one label, macro-f1 for several, spearman for numbers,
    entity-f1 for tags of entities, token-accuracy for other tags."""
    max_tokens: int = 64
    """Longer texts are cut."""
    granularity: base.Granularity = "layer"
    """layer: a gene for every encoder layer; sublayer: one for its attention and one for its MLP."""
    head: heads.HeadOption = "auto"
    """keep: continue with the model's own classifier, which is a gene of its own; classes are matched by name. fresh: train a
    new one. auto: keep it if the model knows all classes of the data."""
    class_weights: ClassWeights = "none"
    """balanced: weights each example by N / (C n), where its class has n of the N training examples and there are C classes."""
    text_columns: tuple[str, ...] = ()
    """Name of the text column, or of two for pairs of texts. Default: found by convention."""
    label_column: str | None = None
    """Name of the label column, or of columns of 0 and 1 that are a label each, with commas between. Default: found by
    convention."""


FAMILIES = pretrained.families_of("encoder")


def prepare(given: Options, *, trim: bool = True) -> Setup:
    """Loads model and data.

    Args:
      trim: leave words that occur in no text out of what a member trains, until the model is saved.
    """
    options.check(given, max_tokens=8)
    checkpoint, data = read_both(given, lambda: checkpoints.find_model(given.model), FAMILIES)
    return prepare_classification(given, checkpoint, data, trim=trim)


def read_both(
    given: Any, find_model: Callable[[], Path], families: Sequence[base.Family]
) -> tuple[pretrained.Checkpoint, text.TextData]:
    """The checkpoint and the data; the data first, unless the checkpoint's classes must be known."""
    read = functools.cache(lambda: pretrained.read(find_model(), families))
    data = load_data(given, known=lambda: heads.known_classes(given.head, read()))
    return read(), data


def load_data(given: Any, known: splits.Known = tuple) -> text.TextData:
    """The data of the options, for a model that tells some classes apart already."""
    asked = given.task if given.task in targets.IN_WORDS else None
    return text.load_text(
        given.data,
        text_columns=given.text_columns,
        label_column=given.label_column,
        max_train=given.train_examples,
        max_validation=given.validation_examples,
        kind=asked,
        known=known,
    )


def prepare_classification(
    given: Any, checkpoint: pretrained.Checkpoint, data: text.TextData, *, trim: bool = True, pad: bool = False
) -> Setup:
    """A setup for labelled texts.

    Args:
      given: options with `max_tokens`, `granularity`, `head`, `metric` and `class_weights`.
      pad: save which token fills up batches, for PyTorch.
    """
    head = heads.choose(given.head, checkpoint, data.label_names, kinds.HEADS[data.kind])
    about = [head.about, *targets.describe_splits(given.data, data)]
    loaded, data = head.load(checkpoint, Keys.of(given.seed).head), head.relabel(data)
    scale = kinds.make_scale(data.kind, data.train.labels, head_is_kept=head.kept, has_bias=loaded.has_bias)
    task = kinds.make_task(data.kind, data.label_names, metric=given.metric, scale=scale)
    task, weighing = weigh(task, data.train.labels, given.class_weights)
    model, config, dtype = loaded.model, loaded.config, options.compute_dtype(given.dtype, loaded.params)
    tokenizer = tokens.load_tokenizer(checkpoint.path, config.vocab_size, as_words=data.kind == "tags")
    pairs = [(split, _tokenize(given, config, tokenizer, split.texts, given.data, data.kind)) for split in data[:3]]
    train, validation, test = (texts for _, texts in pairs)
    labels = [kinds.make_targets(data.kind, texts, split.labels, scale) for split, texts in pairs]
    occurring = (train.inputs["ids"], validation.inputs["ids"]) if trim else (np.arange(config.vocab_size),)
    trimmed, params, used = vocabulary.trim(model, loaded.params, *occurring)
    network = trimmed.make_network(dtype=dtype, granularity=given.granularity)
    genes = block_genes(network, loaded.params)
    problem = Problem(
        network=network,
        params=base.split_layers(params, network.names),
        train=_source(train, tokens.renumber(train, used), labels[0]),
        validation=_source(validation, tokens.renumber(validation, used), labels[1]),
        make_head=loaded.make_head,
        make_batches=tokens.batch_maker(train, given.batch_size, given.epochs, micro_batch=given.micro_batch),
        genes=genes,
        count_trainable=functools.partial(masking.count_trainable, loaded.params, genes),
        tensors=loaded.torch_names,
        task=task,
    )
    saved = _to_save(data, tokenizer, config.vocab_size, [train, validation, test], pad)
    setup = Setup(
        problem=problem,
        about=[
            f"Model: {given.model}, genes {', '.join([*genes.names, *[heads.GENE] * head.kept])}",
            *about,
            f"Task: {targets.IN_WORDS[data.kind]} (--task {data.kind}); the metric is {task.metric.name}",
            *weighing,
            *tokens.describe([train, validation, test], given.max_tokens),
        ],
        network=model.make_network(dtype=dtype),
        test=_source(test, test.inputs, labels[2]),
        num_test=len(data.test.texts),
        restore=lambda params: vocabulary.restore(base.join_layers(params), used, loaded.params),
        save=lambda to, params: loaded.save(to, scale.put_into(params, loaded.output), **saved),
        facts={"label_names": data.label_names, "text_columns": data.text_columns, "learned": {"task": data.kind}},
        pretrained=loaded.read_leaves,
        test_columns=_columns_of_test(data),
    )
    return head.finish(setup)


def _to_save(data: text.TextData, tokenizer: Any, vocabulary: int, texts: Sequence[tokens.Tokens], pad: bool) -> dict[str, Any]:
    """What is saved beside the parameters."""
    return {
        "label_names": data.label_names,
        "problem_type": kinds.PROBLEM_TYPES[data.kind],
        "padding": tokens.padding(tokenizer, vocabulary, texts) if pad else None,
        "input_names": tokens.input_names(tokenizer, texts),
    }


def _columns_of_test(data: text.TextData) -> dict[str, Sequence[str]]:
    """The texts of the test split, by the titles of their columns; none where a text is a list of words."""
    if data.kind == "tags":
        return {}
    return dict(zip(data.text_columns or ("text",), zip(*data.test.texts, strict=True), strict=True))


def _source(texts: tokens.Tokens, inputs: dict[str, np.ndarray], labels: np.ndarray | None) -> Source:
    return Source(Dataset(inputs, labels), tokens.scoring_batches(texts))


def load_unlabelled(
    given: Any,
    folder: Path,
    data: Path,
    label_names: Sequence[str],
    families: Sequence[base.Family] = FAMILIES,
    *,
    task: targets.Kind = "label",
    threshold: float | None = None,
) -> Unlabelled:
    """Loads a saved model and the texts of a file.

    Args:
      families: that the model may belong to.
      task: what it has learned.
      threshold: at which it gives one of several labels.
    """
    texts, columns, notes = text.load_unlabelled(data, given.text_columns)
    loaded = pretrained.load(folder, kinds.HEADS[task], families=families)
    config = loaded.config
    if task == "tags":
        texts = [text.words_of(of_row) for of_row in texts]
    elif any(isinstance(of_row, text.Words) for of_row in texts):
        raise ValueError(f"{data}: its texts are lists of words, and the model has learned from whole texts; join the words")
    tokenizer = tokens.load_tokenizer(folder, config.vocab_size, as_words=task == "tags")
    tokenized = _tokenize(given, config, tokenizer, texts, str(data), task)
    words = None if tokenized.kept is None else kinds.TaggedWords(texts, tokenized.kept)
    return Unlabelled(
        network=loaded.model.make_network(dtype=options.compute_dtype(given.dtype, loaded.params)),
        params=loaded.params,
        source=_source(tokenized, tokenized.inputs, None),
        task=kinds.make_task(task, label_names, threshold=threshold, words=words),
        columns=columns,
        notes=(*notes, *tokens.describe([tokenized], given.max_tokens)),
    )


def _tokenize(
    given: Any, config: Any, tokenizer: Any, texts: Sequence[tuple[str, ...]], where: str, kind: targets.Kind
) -> tokens.Tokens:
    check_length(given.max_tokens, config)
    limits = {"max_tokens": given.max_tokens, "vocabulary": config.vocab_size, "types": config.num_types}
    return tokens.tokenize(tokenizer, texts, **limits, where=where, as_words=kind == "tags")


def check_length(max_tokens: int, config: Any) -> None:
    if max_tokens > config.max_tokens:
        raise ValueError(f"--max-tokens must be at most the model's {config.max_tokens}, got {max_tokens}")
