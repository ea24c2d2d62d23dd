"""What all experiments share: their common options, the run of a search, the scores on the test split and the files.

An experiment has a function that loads a network and data and says in a `Prepared` what there is to do; `main` does it.
Nothing in here knows what kind of network or data that is.
"""

import re
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from gafreeze_jax import genetic, masking, planning, population, report
from gafreeze_jax.activations import Source, score
from gafreeze_jax.data.batches import balanced_batches, in_order, make_batches
from gafreeze_jax.ledger import Evaluation, Ledger
from gafreeze_jax.population import Member
from gafreeze_jax.search import search
from gafreeze_jax.stages import Batch, Dataset, Network, PyTree, parameters

OptionsT = TypeVar("OptionsT", bound="Options")
SCORING_BATCH = 100  # of 1,000 images at a time, PyTorch and we score half as many a second on a CPU


@dataclass(frozen=True, kw_only=True)
class Options:
    """Options of all experiments."""

    gens: int = 10
    """Generations of the genetic algorithm."""
    population: int = 6
    """Members of a generation. The first one has more if train-all, head-only and all prefix masks are more."""
    out: Path | None = None
    """Folder for the results; must be new or empty. Default: a new one under runs/."""
    seed: int = 0
    """Decides the head's initialisation, the batches, dropout and the genetic algorithm."""
    train_examples: int = 192
    """Train members on at most so many examples, drawn stratified by label if they have labels."""
    validation_examples: int = 256
    """Score members on at most so many examples, drawn stratified by label if they have labels."""
    epochs: int = 2
    """Passes through the training examples."""
    batch_size: int = 16
    """Examples in a training step."""
    learning_rate: float = 4e-4
    """Highest learning rate of the pretrained layers (AdamW, linear warm-up and decay)."""
    head_learning_rate: float = 2e-3
    """Highest learning rate of the head."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """What activations and products are computed in; parameters stay float32. auto: float32 on CPU, else bfloat16."""
    plan: str = "auto"
    """How members are trained. auto: measured. Or for example members=4,steps=0,freezing=static,calls=1: how many are stacked
    in a call, how many steps a compiled program does (0 = it does a layer), whether masks are compiled in or traced, and how
    many calls run at the same time."""


def check(options: Options, **smallest: int) -> None:
    """Raises a ValueError if an option is out of range; `smallest` are least values of options that others lack."""
    common = {
        "gens": 1,
        "population": 2,
        "seed": 0,
        "train_examples": 2,
        "validation_examples": 2,
        "epochs": 1,
        "batch_size": 1,
    }
    for name, least in (common | smallest).items():
        if getattr(options, name) < least:
            raise ValueError(f"--{name.replace('_', '-')} must be at least {least}, got {getattr(options, name)}")
    for name in ("learning_rate", "head_learning_rate"):
        if not 0 < getattr(options, name) < 1:
            raise ValueError(f"--{name.replace('_', '-')} must be between 0 and 1, got {getattr(options, name)}")
    if options.plan != "auto":
        planning.parse(options.plan)


def compute_dtype(name: str) -> jnp.dtype:
    """What `--dtype` means on this machine."""
    default = "float32" if jax.default_backend() == "cpu" else "bfloat16"
    return jnp.dtype(default if name == "auto" else name)


class Keys(NamedTuple):
    """A key for each use; what a seed decides besides the batches."""

    head: Array
    dropout: Array
    search: Array

    @classmethod
    def of(cls, seed: int) -> "Keys":
        return cls(*jax.random.split(jax.random.key(seed), 3))


class Task(NamedTuple):
    """A network and the data to fine-tune it with.

    Attributes:
      params: {stage name: pretrained parameters, ...}.
      make_head: initial parameters of the head from a key.
      make_batches: all training steps, with a leading axis.
      genes: which leaf of the pretrained tree, as the user knows it, belongs to which gene; for `mask.json`.
      count_trainable: number of parameters that a genome [G] leaves trainable, the head's included.
      tensors: for `mask.json`, what the leaves of that tree are called in a checkpoint: {path: name}.
    """

    network: Network
    params: PyTree
    train: Source
    validation: Source
    make_head: Callable[[Array], PyTree]
    make_batches: Callable[[np.random.Generator], Batch]
    genes: masking.Genes
    count_trainable: Callable[[np.ndarray], int]
    tensors: Mapping[str, str] = MappingProxyType({})

    def run(self, seed: int) -> population.Run:
        """What a seed decides: the head's initialisation, the batches and dropout."""
        keys = Keys.of(seed)
        return population.Run(self.make_head(keys.head), self.make_batches(np.random.default_rng(seed)), keys.dropout)


def make_source(data: Dataset) -> Source:
    """Arrays in their order, in batches for scoring."""
    return Source(data, make_batches(in_order(len(data.targets), SCORING_BATCH)))


def make_task(
    network: Network,
    params: PyTree,
    train: Dataset,
    validation: Dataset,
    options: Options,
    genes: masking.Genes | None = None,
    make_head: Callable[[Array], PyTree] | None = None,
) -> Task:
    """A task on arrays, in which an example is one row of the inputs.

    Args:
      params: {stage name: ..., "head": ...}.
      genes: of the user's own tree, if that is another one.
      make_head: initial parameters of the head from a key; by default, it is the one in `params` for every seed.

    Raises:
      ValueError: if inputs and targets are not equally many.
    """
    for name, data in (("train", train), ("validation", validation)):
        if {len(leaf) for leaf in jax.tree.leaves(data.inputs)} != {len(data.targets)}:
            rows = ", ".join(str(len(leaf)) for leaf in jax.tree.leaves(data.inputs))
            raise ValueError(f"{name}: expected a row of inputs for each of {len(data.targets)} targets, got {rows}")
    equal = np.ones(len(train.targets))
    batch_size = min(options.batch_size, len(equal))
    sizes = {name: sum(map(np.size, jax.tree.leaves(parameters(tree)))) for name, tree in params.items()}

    def count_trainable(genome: np.ndarray) -> int:
        return sizes["head"] + sum(sizes[name] for name, frozen in zip(network.names, genome, strict=True) if not frozen)

    return Task(
        network,
        params,
        make_source(train),
        make_source(validation),
        make_head or (lambda key: params["head"]),
        lambda rng: make_batches(balanced_batches(rng, equal, batch_size, options.epochs)),
        genes or stage_genes(network, params),
        count_trainable,
    )


def stage_genes(network: Network, params: PyTree) -> masking.Genes:
    """Genes of a network's own tree, {stage name: ..., "head": ...}; the head always trains."""
    rules = {f"{re.escape(name)}/.*": name for name in network.names}
    return masking.make_genes(params, rules | ({"head/.*": None} if jax.tree.leaves(params["head"]) else {}))


class Result(NamedTuple):
    """What a search has found.

    Attributes:
      fittest: "found", "train all", "head only" ("train nothing" if the head has no parameters) and "best prefix mask":
        evaluation and trained member of each.
      evaluations: all, in order.
      engine: facts about how members were trained, for `result.json`.
    """

    fittest: dict[str, tuple[Evaluation, Member]]
    evaluations: Sequence[Evaluation]
    engine: dict[str, Any]


def run_search(task: Task, options: Options, out: Path | None = None) -> Result:
    """Searches for the fittest mask, showing progress.

    Args:
      out: folder where `evaluations.csv` grows as it goes.
    """
    run = task.run(options.seed)
    num_genes, num_steps = len(task.network.stages), len(run.batches.examples)
    prefixes = masking.prefix_genomes(num_genes)
    least = "head only" if jax.tree.leaves(run.head) else "train nothing"
    groups = {"train all": prefixes[:1], least: prefixes[-1:], "best prefix mask": prefixes[1:-1]}
    groups = {name: genomes for name, genomes in groups.items() if len(genomes)}
    size_of_first = max(len(prefixes), options.population)
    num_evaluations = size_of_first + (options.gens - 1) * options.population
    dtype = compute_dtype(options.dtype)
    with report.Display(num_evaluations, num_steps) as display:
        members = population.Population(
            task.network,
            task.params,
            population.adamw_recipe(options.learning_rate, options.head_learning_rate, num_steps),
            task.train,
            task.validation,
            on_steps=display.steps,
        )
        if options.plan == "auto":
            random = np.random.default_rng(options.seed).random((options.population, num_genes)) < 0.5
            like_the_first = np.concatenate([prefixes, random])[:size_of_first]
            choice = planning.choose(members, like_the_first, run, num_evaluations)
        else:
            choice = planning.Choice(planning.parse(options.plan), "given by --plan")
        members.plan = choice.plan
        display.line(f"Plan: {planning.describe(choice.plan)} ({choice.reason}); {dtype.name}")
        ledger = Ledger(None if out is None else out / "evaluations.csv")
        fittest = search(
            genetic.make_ga(num_genes, options.population, initial=prefixes),
            Keys.of(options.seed).search,
            lambda genomes: members.evaluate(genomes, run),
            ledger,
            num_generations=options.gens,
            initial=prefixes,
            count_trainable=task.count_trainable,
            groups=groups,
            on_generation=display.generation,
        )
    return Result(fittest, list(ledger), {"dtype": dtype.name, "plan": planning.as_json(choice, members.plan)})


class Prepared(NamedTuple):
    """All that an experiment has to say about a search before it begins.

    Attributes:
      about: model and data, for people, a line each.
      network: that scores the test split.
      test: that split.
      num_test: how many examples it has, as people count them.
      restore: gives the parameters of `network` from those of the task.
      save: writes these to a folder, in a layout that others read.
      facts: further entries of `result.json`.
      language: whether the network models language, so that its perplexity is told.
    """

    task: Task
    about: Sequence[str]
    network: Network
    test: Source
    num_test: int
    restore: Callable[[PyTree], PyTree]
    save: Callable[[Path, PyTree], None]
    facts: Mapping[str, Any] = MappingProxyType({})
    language: bool = False


def main(kind: str, prepare: Callable[[OptionsT], Prepared], options: OptionsT) -> None:
    """Runs an experiment from its options to its files; what is wrong with them ends it in one line before it starts.

    Args:
      kind: what its folder under runs/ begins with.
      prepare: loads network and data; raises ValueError or OSError if an option is wrong.
    """
    start = time.perf_counter()
    try:
        check(options)
        planning.keep_compiled_programs()
        prepared = prepare(options)
        out = report.make_run_folder(options.out, kind)
    except (ValueError, OSError) as error:
        sys.exit(report.fail(error))
    print(*prepared.about, sep="\n")
    steps = len(prepared.task.run(options.seed).batches.examples)
    print(f"Each member trains {steps} steps of {options.batch_size} examples. Results go to {out}", flush=True)
    finish(prepared, run_search(prepared.task, options, out), options, out, start)


def finish(prepared: Prepared, result: Result, options: Options, out: Path, start: float) -> None:
    """Scores the test split, which nothing has seen before, writes model, mask and result, and prints the table.

    Args:
      start: `time.perf_counter()` when the run began.
    """
    task = prepared.task
    print(f"\nScoring the {prepared.num_test:,} test examples, which nothing has seen so far ...", flush=True)
    scores: dict[str, tuple[float, float]] = {}  # by genome: the one found may be a baseline
    rows = {}
    for name, (evaluation, member) in result.fittest.items():
        if evaluation.genome not in scores:
            scores[evaluation.genome] = score(prepared.network, prepared.restore(member.params), prepared.test)
        rows[name] = report.Row(name, evaluation, *scores[evaluation.genome])
    found, member = result.fittest["found"]
    prepared.save(out / "model", prepared.restore(member.params))
    masking.write_mask(out / "mask.json", task.genes, [gene == "1" for gene in found.genome], task.tensors)
    names = task.network.names
    seconds = time.perf_counter() - start
    entries = report.make_result(options, names, rows, result.evaluations, seconds, **result.engine, **prepared.facts)
    if prepared.language:
        for name, row in rows.items():
            losses = {"validation": row.evaluation.loss, "test": row.test_loss}
            entries["results"][name] |= {f"{split}_perplexity": report.perplexity(loss) for split, loss in losses.items()}
    report.write_json(out / "result.json", entries)
    report.print_summary(names, rows, entries, out, language=prepared.language)
