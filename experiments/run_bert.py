"""Searches which layers of a pretrained BERT to freeze when it is fine-tuned to classify texts.

    python experiments/run_bert.py --gens 10

runs without a network: it takes the embedded all-MiniLM-L6-v2 and 1,988 embedded reviews. On 2 CPU cores it ends in under
5 minutes. It leaves a fine-tuned model, the mask and all evaluations in a folder under runs/.
"""

import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
import tyro

from gafreeze_jax import genetic, masking, planning, population, report
from gafreeze_jax.activations import Source, score
from gafreeze_jax.data import text, tokens
from gafreeze_jax.data.batches import balanced_batches
from gafreeze_jax.ledger import Ledger
from gafreeze_jax.models import bert, checkpoints
from gafreeze_jax.search import search
from gafreeze_jax.stages import Dataset


@dataclass(frozen=True)
class Options:
    """Search which layers of a pretrained BERT to freeze when fine-tuning it to classify texts."""

    gens: int = 10
    """Generations of the genetic algorithm."""
    population: int = 6
    """Members of a generation. The first one has more if train-all, head-only and all prefix masks are more."""
    model: str = "minilm"
    """minilm (embedded), a folder in the Hugging Face layout, or a hub name such as google-bert/bert-base-uncased."""
    data: str = "reviews"
    """reviews (embedded), a .csv, .tsv or .jsonl file (or .gz), a folder with a train file and, if there are any, validation
    and test files, or tfds:NAME such as tfds:glue/sst2."""
    out: Path | None = None
    """Folder for the results; must be new or empty. Default: a new one under runs/."""
    seed: int = 0
    """Decides the head's initialisation, the batches, dropout and the genetic algorithm."""
    train_examples: int = 192
    """Train members on at most so many examples, drawn stratified by label."""
    validation_examples: int = 256
    """Score members on at most so many examples, drawn stratified by label."""
    epochs: int = 2
    """Passes through the training examples."""
    batch_size: int = 16
    """Examples in a training step."""
    max_tokens: int = 64
    """Longer texts are cut."""
    learning_rate: float = 4e-4
    """Highest learning rate of the pretrained layers (AdamW, linear warm-up and decay)."""
    head_learning_rate: float = 2e-3
    """Highest learning rate of the pooler and the classifier."""
    granularity: bert.Granularity = "layer"
    """layer: a gene for every encoder layer; sublayer: one for its attention and one for its MLP."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """What activations and products are computed in; parameters stay float32. auto: float32 on CPU, else bfloat16."""
    plan: str = "auto"
    """How members are trained. auto: measured. Or for example members=4,steps=0,freezing=static,calls=1: how many are stacked
    in a call, how many steps a compiled program does (0 = it does a layer), whether masks are compiled in or traced, and how
    many calls run at the same time."""
    text_columns: tuple[str, ...] = ()
    """Name of the text column, or of two for pairs of texts. Default: found by convention."""
    label_column: str | None = None
    """Name of the label column. Default: found by convention."""


def check(options: Options) -> None:
    smallest = {
        "gens": 1, "population": 2, "seed": 0, "train_examples": 2, "validation_examples": 2, "epochs": 1, "batch_size": 1,
        "max_tokens": 8,
    }  # fmt: skip
    for name, least in smallest.items():
        if getattr(options, name) < least:
            raise ValueError(f"--{name.replace('_', '-')} must be at least {least}, got {getattr(options, name)}")
    for name in ("learning_rate", "head_learning_rate"):
        if not 0 < getattr(options, name) < 1:
            raise ValueError(f"--{name.replace('_', '-')} must be between 0 and 1, got {getattr(options, name)}")
    if options.plan != "auto":
        planning.parse(options.plan)


def main(options: Options) -> None:
    start = time.perf_counter()
    try:
        check(options)
        planning.keep_compiled_programs()
        data = text.load_text(
            options.data,
            text_columns=options.text_columns,
            label_column=options.label_column,
            max_train=options.train_examples,
            max_validation=options.validation_examples,
        )
        folder = checkpoints.find_model(options.model)
        key_head, key_dropout, key_search = jax.random.split(jax.random.key(options.seed), 3)
        config, pretrained, _ = bert.load_bert(folder, key_head, len(data.label_names))
        tokenizer = tokens.load_tokenizer(folder)
        limits = {"max_tokens": options.max_tokens, "vocabulary": config.vocab_size, "types": config.type_vocab_size}
        if options.max_tokens > config.max_position_embeddings:
            raise ValueError(
                f"--max-tokens must be at most the model's {config.max_position_embeddings}, got {options.max_tokens}"
            )
        train, validation = (tokens.tokenize(tokenizer, split.texts, **limits) for split in (data.train, data.validation))
        out = report.make_run_folder(options.out or Path("runs") / time.strftime("bert-%Y%m%d-%H%M%S"))
    except (ValueError, OSError) as error:
        sys.exit(report.fail(error))

    # What a member trains: words that occur in no text are left out until the model is saved.
    rng = np.random.default_rng(options.seed)
    trimmed_config, params, used = bert.trim_vocabulary(config, pretrained, train.inputs["ids"], validation.inputs["ids"])
    num_classes = len(data.label_names)
    on_cpu = jax.default_backend() == "cpu"
    dtype = jnp.dtype(("float32" if on_cpu else "bfloat16") if options.dtype == "auto" else options.dtype)
    network = bert.make_bert(trimmed_config, num_classes, dtype=dtype, granularity=options.granularity)
    stage_params = bert.split_layers(params) if options.granularity == "sublayer" else params
    batches = tokens.pack_batches(train, balanced_batches(rng, train.lengths, options.batch_size, options.epochs))
    num_steps = len(batches.examples)
    genes = masking.make_genes(pretrained, {**{f"{name}/.*": name for name in network.names}, "head/.*": None})
    prefixes = masking.prefix_genomes(len(genes))
    groups = {"train all": prefixes[:1], "head only": prefixes[-1:], "best prefix mask": prefixes[1:-1]}

    print(f"Model: {options.model}, genes {', '.join(genes.names)}; pooler and classifier always train")
    for line in text.describe(options.data, data):
        print(line)
    print(f"Each member trains {num_steps} steps of {options.batch_size} examples. Results go to {out}", flush=True)

    num_evaluations = max(len(prefixes), options.population) + (options.gens - 1) * options.population
    with report.Display(num_evaluations, num_steps) as display:
        members = population.Population(
            network,
            stage_params,
            population.adamw_recipe(options.learning_rate, options.head_learning_rate, num_steps),
            Source(Dataset(tokens.renumber(train, used), data.train.labels), tokens.scoring_batches(train)),
            Source(Dataset(tokens.renumber(validation, used), data.validation.labels), tokens.scoring_batches(validation)),
            on_steps=display.steps,
        )
        run = population.Run(params["head"], batches, key_dropout)
        if options.plan == "auto":
            like_the_first = np.concatenate([prefixes, rng.random((options.population, len(genes))) < 0.5])
            like_the_first = like_the_first[: max(len(prefixes), options.population)]
            choice = planning.choose(members, like_the_first, run, num_evaluations)
        else:
            choice = planning.Choice(planning.parse(options.plan), "given by --plan")
        members.plan = choice.plan
        display.line(f"Plan: {planning.describe(choice.plan)} ({choice.reason}); {dtype.name}")
        ledger = Ledger(out / "evaluations.csv")
        fittest = search(
            genetic.make_ga(len(genes), options.population, initial=prefixes),
            key_search,
            lambda genomes: members.evaluate(genomes, run),
            ledger,
            num_generations=options.gens,
            initial=prefixes,
            count_trainable=lambda genome: masking.count_trainable(pretrained, genes, genome),
            groups=groups,
            on_generation=display.generation,
        )

    print(f"\nScoring the {len(data.test.texts):,} test examples, which nothing has seen so far ...", flush=True)
    test = tokens.tokenize(tokenizer, data.test.texts, **limits)
    source = Source(Dataset(test.inputs, data.test.labels), tokens.scoring_batches(test))
    full_network = bert.make_bert(config, num_classes, dtype=dtype)
    final = {
        name: bert.restore_vocabulary(bert.join_layers(member.params), used, pretrained)
        for name, (_, member) in fittest.items()
    }
    test_accuracy: dict[str, float] = {}  # by genome: the one found may be a baseline
    rows = {}
    for name in ("found", *groups):
        evaluation = fittest[name][0]
        if evaluation.genome not in test_accuracy:
            test_accuracy[evaluation.genome], _ = score(full_network, final[name], source)
        rows[name] = report.Row(name, evaluation, test_accuracy[evaluation.genome])
    bert.save_bert(out / "model", folder, final["found"], data.label_names)
    found = rows["found"].evaluation
    masking.write_mask(out / "mask.json", genes, [gene == "1" for gene in found.genome])
    engine = {"dtype": dtype.name, "plan": planning.as_json(choice, members.plan)}
    result = report.make_result(options, genes.names, rows, list(ledger), time.perf_counter() - start, **engine)
    report.write_json(out / "result.json", result)
    report.print_summary(genes.names, rows, result, out)


if __name__ == "__main__":
    main(tyro.cli(Options))
