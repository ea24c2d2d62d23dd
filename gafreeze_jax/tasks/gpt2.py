"""GPT-2 on plain text or on labelled texts: options, model and data, for a search and for labelling."""

import dataclasses
import functools
import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import jax
import numpy as np
from jax import Array

from gafreeze_jax import masking, user_cache
from gafreeze_jax.data import lm, text, tokens
from gafreeze_jax.engine.network import Batch, Dataset, Network, Source
from gafreeze_jax.metrics import exponential_mean
from gafreeze_jax.models import base, checkpoints, gpt2, pretrained, vocabulary
from gafreeze_jax.runs import experiment
from gafreeze_jax.tasks import pretraining


@dataclass(frozen=True, kw_only=True)
class Options(experiment.Options):
    """Search which layers of a GPT-2 to freeze when it is fine-tuned to another kind of text, or to classify texts."""

    task: Literal["lm", "classify"] = "lm"
    """lm: predict the next token; an example is a window of text, the fitness the share of tokens predicted. classify: tell
    the class of a text."""
    model: str = "pydoc"
    """pydoc (a small one, pretrained here on the bytes of the Python language's reference), a folder in the Hugging Face
    layout, or a hub name such as openai-community/gpt2."""
    data: str = "reviews"
    """reviews (embedded). For lm also pydoc, a .txt file (or .gz), or a folder with a train file and, if there are any,
    validation and test files. For classify also a .csv, .tsv or .jsonl file (or .gz), a folder of them, or tfds:NAME."""
    max_tokens: int = 128
    """Of a window; longer texts to classify are cut."""
    learning_rate: float = 3e-3
    """Highest learning rate of the pretrained layers (AdamW, linear warm-up and decay). The default suits the small model;
    take about 1e-4 for a GPT-2 of 100 million parameters."""
    granularity: base.Granularity = "layer"
    """layer: a gene for every block; sublayer: one for its attention and one for its MLP."""
    text_columns: tuple[str, ...] = ()
    """Name of the text column, or of two for pairs of texts, to classify. Default: found by convention."""
    label_column: str | None = None
    """Name of the label column. Default: found by convention."""


SMALL = {
    "model_type": "gpt2",
    "vocab_size": tokens.NUM_BYTES,
    "n_positions": 128,
    "n_embd": 128,
    "n_layer": 4,
    "n_head": 4,
    "embd_pdrop": 0.0,
    "attn_pdrop": 0.0,
    "resid_pdrop": 0.0,
    "initializer_range": 0.06,  # of so narrow a network; with 0.02 it learns more slowly at first
    "bos_token_id": None,
    "eos_token_id": None,
}
PRETRAINING = experiment.Options(epochs=3, batch_size=8, learning_rate=4e-3)


def find_model(options: Options) -> Path:
    if options.model != "pydoc":
        return checkpoints.find_model(options.model, embedded="pydoc")
    check_length(options, SMALL["n_positions"])  # before a minute has passed
    corpus = lm.load_corpus("pydoc")
    facts = {"config": SMALL, "options": pretraining.facts_of(PRETRAINING), "text": corpus._asdict()}
    return user_cache.keep(
        "gpt2-pydoc", facts, functools.partial(pretrain, corpus, dataclasses.replace(PRETRAINING, quiet=options.quiet))
    )


def pretrain(corpus: lm.Corpus, options: experiment.Options, folder: Path) -> None:
    """Pretrains the small GPT-2 and writes it to a folder in the Hugging Face layout."""
    (folder / "config.json").write_text(json.dumps(SMALL, indent=2))
    _, config = pretrained.read_config(folder, [gpt2.FAMILY])
    model = base.Model(gpt2.FAMILY, config, head="lm")
    tokenizer = tokens.make_byte_tokenizer()
    tokenizer.save_pretrained(folder)
    train, validation = (
        lm.make_windows(lm.encode(tokenizer, part, vocabulary=config.vocab_size), config.n_positions) for part in corpus[:2]
    )
    params = model.init_params(jax.random.key(0))
    num_params = sum(leaf.size for leaf in jax.tree.leaves(params))
    say = (lambda text: None) if options.quiet else functools.partial(print, flush=True)
    say(
        f"Pretraining a GPT-2 of {num_params:,} parameters on {len(train.targets):,} bytes of Python's language reference, "
        "once, as it is kept ..."
    )
    start = time.perf_counter()
    member = pretraining.pretrain(lm_task(model, params, train, validation, options), options)
    say(
        f"It took {time.perf_counter() - start:.0f} s, and predicts {member.score:.1%} of the validation bytes (perplexity "
        f"{exponential_mean(np.array([member.loss])):.2f})"
    )
    model.save(folder, dict(member.params), source=folder)


def lm_task(
    model: base.Model,
    params: dict,
    train: lm.Windows,
    validation: lm.Windows,
    options: experiment.Options,
    network: Network | None = None,
) -> experiment.Task:
    """A task of language modelling; `network` is the model's by default."""
    first, second = (Source(windows.dataset, lm.scoring_batches(windows)) for windows in (train, validation))
    make_batches = lm.batch_maker(train, options.batch_size, options.epochs)
    return make_task(model, network or model.make_network(), params, first, second, model.init_head, make_batches, whole=params)


def make_task(
    model: base.Model,
    network: Network,
    params: dict,
    train: Source,
    validation: Source,
    make_head: Callable[[Array], dict],
    make_batches: Callable[[np.random.Generator], Batch],
    whole: dict,
) -> experiment.Task:
    """A task; `whole` is the tree before words were left out."""
    genes = experiment.block_genes(network, whole)
    count = functools.partial(masking.count_trainable, whole, genes)
    params = base.split_layers(params, network.names)
    tensors = model.tensor_names(whole)
    return experiment.Task(network, params, train, validation, make_head, make_batches, genes, count, tensors)


def prepare(options: Options) -> experiment.Prepared:
    """Loads model and data."""
    experiment.check(options, max_tokens=8)
    return prepare_lm(options) if options.task == "lm" else prepare_classify(options)


def prepare_lm(options: Options) -> experiment.Prepared:
    corpus = lm.load_corpus(options.data)
    folder = find_model(options)
    loaded = pretrained.load(folder, "lm", families=[gpt2.FAMILY])
    config = loaded.config
    network = make_network(options, loaded.model)
    tokenizer = tokens.load_tokenizer(folder, config.vocab_size)
    limits = {"train": options.train_examples, "validation": options.validation_examples, "test": None}

    def make_windows(split: str, limit: int | None) -> lm.Windows:
        ids = lm.encode(tokenizer, getattr(corpus, split), vocabulary=config.vocab_size)
        return lm.make_windows(ids, options.max_tokens, limit, where=f"{options.data}, {split} split")

    train, validation, test = (make_windows(split, limit) for split, limit in limits.items())
    return experiment.Prepared(
        lm_task(loaded.model, loaded.params, train, validation, options, network),
        [
            f"Model: {options.model}, genes {', '.join(network.names)}; the output layer is the word vectors of embeddings",
            *lm.describe(options.data, (train, validation, test), corpus.notes),
        ],
        make_network(dataclasses.replace(options, granularity="layer"), loaded.model),
        experiment.Locked(Source(test.dataset, lm.scoring_batches(test))),
        len(test.tokens.lengths),
        base.join_layers,
        loaded.save,
        language=True,
        rows=np.repeat(np.arange(len(test.tokens.lengths)), test.tokens.lengths),
    )


def prepare_classify(options: Options) -> experiment.Prepared:
    data = text.load_text(
        options.data,
        text_columns=options.text_columns,
        label_column=options.label_column,
        max_train=options.train_examples,
        max_validation=options.validation_examples,
    )
    folder = find_model(options)
    key = experiment.Keys.of(options.seed).head
    loaded = pretrained.load(folder, families=[gpt2.FAMILY], num_classes=len(data.label_names), key=key)
    config = loaded.config
    full_network = make_network(dataclasses.replace(options, granularity="layer"), loaded.model)
    tokenizer = tokens.load_tokenizer(folder, config.vocab_size)
    limits = {"max_tokens": options.max_tokens, "vocabulary": config.vocab_size, "types": 1}
    train, validation, test = (tokens.tokenize(tokenizer, split.texts, **limits) for split in data[:3])

    # Words that occur in no text are left out until the model is saved.
    trimmed, params, used = vocabulary.trim(loaded.model, loaded.params, train.inputs["ids"], validation.inputs["ids"])
    network = make_network(options, trimmed)
    task = make_task(
        trimmed,
        network,
        params,
        Source(Dataset(tokens.renumber(train, used), data.train.labels), tokens.scoring_batches(train)),
        Source(Dataset(tokens.renumber(validation, used), data.validation.labels), tokens.scoring_batches(validation)),
        loaded.make_head,
        tokens.batch_maker(train, options.batch_size, options.epochs),
        loaded.params,
    )
    padding = tokens.padding(tokenizer, config.vocab_size)
    return experiment.Prepared(
        task,
        [
            f"Model: {options.model}, genes {', '.join(network.names)}; the classifier always trains",
            *text.describe(options.data, data),
        ],
        full_network,
        experiment.Locked(Source(Dataset(test.inputs, data.test.labels), tokens.scoring_batches(test))),
        len(data.test.labels),
        lambda params: vocabulary.restore(base.join_layers(params), used, loaded.params),
        lambda to, params: loaded.save(to, params, label_names=data.label_names, padding=padding),
        {"label_names": data.label_names},
    )


def load_unlabelled(options: Options, folder: Path, data: Path) -> experiment.Unlabelled:
    """Loads a saved model and the texts of a file; for a model of language, the file as one text."""
    loaded = pretrained.load(folder, options.task, families=[gpt2.FAMILY])
    config, params = loaded.config, loaded.params
    network = make_network(dataclasses.replace(options, granularity="layer"), loaded.model)
    tokenizer = tokens.load_tokenizer(folder, config.vocab_size)
    if options.task == "lm":
        ids = lm.encode(tokenizer, lm.read_text(data), vocabulary=config.vocab_size)
        windows = lm.make_windows(ids, options.max_tokens, where=str(data))
        source = Source(windows.dataset, lm.scoring_batches(windows))
        return experiment.Unlabelled(network, params, source, {"file": [data.name]})
    texts, columns, notes = text.load_unlabelled(data, options.text_columns)
    tokenized = tokens.tokenize(tokenizer, texts, max_tokens=options.max_tokens, vocabulary=config.vocab_size, types=1)
    source = Source(Dataset(tokenized.inputs), tokens.scoring_batches(tokenized))
    return experiment.Unlabelled(network, params, source, columns, notes)


def check_length(options: Options, num_positions: int) -> None:
    if options.max_tokens > num_positions:
        raise ValueError(f"--max-tokens must be at most the model's {num_positions}, got {options.max_tokens}")


def make_network(options: Options, model: base.Model) -> Network:
    check_length(options, model.config.max_tokens)
    return model.make_network(dtype=experiment.compute_dtype(options.dtype), granularity=options.granularity)
