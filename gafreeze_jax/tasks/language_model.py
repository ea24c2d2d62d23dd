"""GPT-2: options, plain text for language modelling, and labelled texts."""

import dataclasses
import functools
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import jax
import numpy as np

from gafreeze_jax import masking, options, user_cache
from gafreeze_jax.data import lm, tokens
from gafreeze_jax.engine.cohort import Member
from gafreeze_jax.engine.network import Network, Source
from gafreeze_jax.metrics import exponential_mean
from gafreeze_jax.models import base, checkpoints, gpt2, pretrained
from gafreeze_jax.tasks import heads, kinds, pretraining, text
from gafreeze_jax.tasks.base import Problem, Setup, Unlabelled, block_genes, language_modelling
from gafreeze_jax.tasks.class_weights import ClassWeights


@dataclass(frozen=True, kw_only=True)
class Options(options.Options):
    """Find which layers of a GPT-2 to freeze when it is fine-tuned to another kind of text, or to classify texts."""

    places: ClassVar = {"model": ("pydoc",), "data": ("reviews", "pydoc", "hub", "tfds")}

    task: Literal["lm", "classify"] = "lm"
    """lm: predict the next token; an example is a window of text, the fitness the share of tokens predicted. classify: give a
    text one label of a few, several labels, a number, or a tag for each word, recognised from the labels."""
    metric: kinds.MetricName = "auto"
    """What the search maximizes, and reports compare. auto: accuracy, for lm of tokens; macro-f1 for several labels a text,
    spearman for numbers, entity-f1 for tags of entities, token-accuracy for other tags. For lm also token-accuracy, which is
    the same there, and perplexity."""
    model: str = "pydoc"
    """pydoc (a small one, pretrained here on the bytes of the Python language's reference), a folder in the Hugging Face
    layout, or a hub name such as openai-community/gpt2. Networks may also be Llama, Mistral, Qwen2, Qwen3 or GPT-NeoX."""
    data: str = "reviews"
    """reviews (embedded). For lm also pydoc, a .txt file (or .gz), or a folder with a train file and, if there are any,
    validation and test files. For classify also a .csv, .tsv, .jsonl, .parquet or .conll file (or .gz), a folder of them,
    hub:NAME or tfds:NAME."""
    max_tokens: int = 128
    """Of a window; longer texts to classify are cut."""
    learning_rate: float = 3e-3
    """Highest learning rate of the pretrained layers (AdamW, linear warm-up and decay). The default suits the small model;
    take about 1e-4 for a GPT-2 of 100 million parameters."""
    granularity: base.Granularity = "layer"
    """layer: a gene for every block; sublayer: one for its attention and one for its MLP."""
    head: heads.HeadOption = "auto"
    """To classify; keep: continue with the model's own classifier, which is a gene of its own; classes are matched by name.
    fresh: train a new one. auto: keep it if the model knows all classes of the data."""
    class_weights: ClassWeights = "none"
    """To classify; balanced: weights each example by N / (C n), where its class has n of the N training examples and there are
    C classes."""
    text_columns: tuple[str, ...] = ()
    """Name of the text column, or of two for pairs of texts, to classify. Default: found by convention."""
    label_column: str | None = None
    """Name of the label column, or of columns of 0 and 1 that are a label each, with commas between, to classify. Default:
    found by convention."""


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
PRETRAINING = options.Options(epochs=3, batch_size=8, learning_rate=4e-3)
FAMILIES = pretrained.families_of("decoder")


def find_model(given: Options) -> Path:
    if given.model != "pydoc":
        return checkpoints.find_model(given.model, embedded="pydoc")
    if given.max_tokens > SMALL["n_positions"]:  # before a minute has passed
        raise ValueError(f"--max-tokens must be at most the model's {SMALL['n_positions']}, got {given.max_tokens}")
    corpus = lm.load_corpus("pydoc")
    facts = {"config": SMALL, "options": pretraining.facts_of(PRETRAINING), "text": corpus._asdict()}
    make = functools.partial(pretrain, corpus, dataclasses.replace(PRETRAINING, quiet=given.quiet))
    return user_cache.keep("gpt2-pydoc", facts, make)


def pretrain(corpus: lm.Corpus, given: options.Options, folder: Path) -> None:
    """Pretrains the small GPT-2 and writes it to a folder in the Hugging Face layout."""
    (folder / "config.json").write_text(json.dumps(SMALL, indent=2))
    _, config = pretrained.read_config(folder, [gpt2.FAMILY])
    model = base.Model(gpt2.FAMILY, config, head="lm")
    tokenizer = tokens.make_byte_tokenizer()
    tokenizer.save_pretrained(folder)
    train, validation = (
        lm.make_windows(lm.encode(tokenizer, part, vocabulary=config.vocab_size), config.n_positions) for part in corpus[:2]
    )
    network, initial = model.make_network(), model.init_params(jax.random.key(0))
    problem = _make_problem(model, network, initial, train=train, validation=validation, given=given)
    data = f"{len(train.targets):,} bytes of Python's language reference"
    params = pretraining.pretrain_aloud("a GPT-2", data, problem, given, describe=_describe)
    model.save(folder, params, source=folder)


def _describe(member: Member) -> str:
    perplexity = float(exponential_mean(np.array([member.loss])))
    return f"predicts {member.score:.1%} of the validation bytes (perplexity {perplexity:.2f})"


def _make_problem(
    model: base.Model, network: Network, params: dict, *, train: lm.Windows, validation: lm.Windows, given: options.Options
) -> Problem:
    """A problem of language modelling."""
    genes = block_genes(network, params)
    return Problem(
        network=network,
        params=base.split_layers(params, network.names),
        train=Source(train.dataset, lm.scoring_batches(train)),
        validation=_source(validation),
        make_head=model.init_head,
        make_batches=lm.batch_maker(train, given.batch_size, given.epochs, micro_batch=given.micro_batch),
        genes=genes,
        count_trainable=functools.partial(masking.count_trainable, params, genes),
        tensors=model.torch_names(params),
        task=language_modelling(),
        head="none",
    )


def _source(windows: lm.Windows) -> Source:
    """For scoring; a window is a row of tokens."""
    lengths = windows.tokens.lengths
    return Source(windows.dataset, lm.scoring_batches(windows), rows=np.repeat(np.arange(len(lengths)), lengths))


def prepare(given: Options) -> Setup:
    """Loads model and data."""
    options.check(given, max_tokens=8)
    if given.task == "lm":
        return _prepare_language_modelling(given)
    checkpoint, data = text.read_both(given, lambda: find_model(given), FAMILIES)
    return text.prepare_classification(given, checkpoint, data, pad=True)


def _prepare_language_modelling(given: Options) -> Setup:
    if given.head != "auto":
        raise ValueError(f"--head {given.head} is for --task classify; a language model keeps its own output layer")
    metric = kinds.choose_metric(given.metric, kinds.OF_NEXT_TOKENS, "the next token")
    corpus = lm.load_corpus(given.data)
    folder = find_model(given)
    loaded = pretrained.load(folder, "lm", families=FAMILIES)
    config, dtype = loaded.config, options.compute_dtype(given.dtype, loaded.params)
    text.check_length(given.max_tokens, config)
    network = loaded.model.make_network(dtype=dtype, granularity=given.granularity)
    tokenizer = tokens.load_tokenizer(folder, config.vocab_size)
    limits = {"train": given.train_examples, "validation": given.validation_examples, "test": None}
    tied = "; the output layer is the word vectors of embeddings" if network.shared else ""
    unknown = []

    def make_windows(split: str, limit: int | None) -> lm.Windows:
        where = f"{given.data}, {split} split"
        ids = lm.encode(tokenizer, getattr(corpus, split), vocabulary=config.vocab_size, where=where)
        unknown.append((tokens.count_unknown(tokenizer, ids), len(ids)))
        return lm.make_windows(ids, given.max_tokens, limit, where=where)

    train, validation, test = (make_windows(split, limit) for split, limit in limits.items())
    problem = _make_problem(loaded.model, network, loaded.params, train=train, validation=validation, given=given)
    return Setup(
        problem=problem._replace(task=language_modelling(metric)),
        about=[
            f"Model: {given.model}, genes {', '.join(network.names)}{tied}",
            *lm.describe(given.data, (train, validation, test), corpus.notes),
            *tokens.describe_unknown(*map(sum, zip(*unknown, strict=True))),
        ],
        network=loaded.model.make_network(dtype=dtype),
        test=_source(test),
        num_test=len(test.tokens.lengths),
        restore=base.join_layers,
        save=loaded.save,
        pretrained=loaded.read_leaves,
    )


def load_unlabelled(given: Options, folder: Path, data: Path, label_names: Sequence[str], **learned: Any) -> Unlabelled:
    """Loads a saved model and the texts of a file; for a language model, the file as one text."""
    if given.task == "classify":
        return text.load_unlabelled(given, folder, data, label_names, FAMILIES, **learned)
    loaded = pretrained.load(folder, given.task, families=FAMILIES)
    config = loaded.config
    tokenizer, where = tokens.load_tokenizer(folder, config.vocab_size), str(data)
    ids = lm.encode(tokenizer, lm.read_text(data), vocabulary=config.vocab_size, where=where)
    windows = lm.make_windows(ids, given.max_tokens, where=where)
    return Unlabelled(
        network=loaded.model.make_network(dtype=options.compute_dtype(given.dtype, loaded.params)),
        params=loaded.params,
        source=Source(windows.dataset, lm.scoring_batches(windows)),
        task=language_modelling(),
        columns={"file": [data.name]},
        notes=tokens.describe_unknown(tokens.count_unknown(tokenizer, ids), len(ids)),
    )
