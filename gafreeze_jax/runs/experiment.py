"""What all experiments share: their common options, the run of a search, the scores on the test split and the files.

An experiment has a function that loads a network and data and says in a `Prepared` what there is to do; `main` does it.
Nothing in here knows what kind of network or data that is.
"""

import contextlib
import dataclasses
import functools
import importlib.util
import math
import os
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

from gafreeze_jax import masking
from gafreeze_jax.data.batches import balanced_batches, in_order, make_batches
from gafreeze_jax.engine import costs, devices, planning
from gafreeze_jax.engine.cohort import Member, Replicate
from gafreeze_jax.engine.network import Batch, Dataset, Loss, Network, PyTree, Source, parameters
from gafreeze_jax.engine.optimizer import adamw_recipe
from gafreeze_jax.engine.population import Population
from gafreeze_jax.engine.scoring import Scores, score
from gafreeze_jax.metrics import ACCURACY, Metric, cross_entropy
from gafreeze_jax.report import page, summary
from gafreeze_jax.report.display import Display
from gafreeze_jax.report.folder_format import TENSORBOARD
from gafreeze_jax.report.metric_format import MetricFormat
from gafreeze_jax.report.run_folder import RunFolder
from gafreeze_jax.runs import results, verdict
from gafreeze_jax.runs.finalists import LOWER_RATES, NO_MASKS, Finalist, Trainer, retrain
from gafreeze_jax.runs.fingerprint import fingerprint
from gafreeze_jax.runs.run_dir import RunDir, choose_folder
from gafreeze_jax.runs.signals import stoppable
from gafreeze_jax.search import genetic, nsga2
from gafreeze_jax.search.halving import Settings
from gafreeze_jax.search.history import FINAL, RANDOM, Evaluation, Ledger
from gafreeze_jax.search.loop import Generation, Search, evaluation_of
from gafreeze_jax.space import Genome, Space, as_genome

OptionsT = TypeVar("OptionsT", bound="Options")
LEAST_STEPS = 16  # after which a member is scored
NUM_LEADERS = 2  # of a search, that are trained again
SEARCHING, RANDOM_MASKS, FINALISTS = "searching", "random masks", "finalists"  # what the progress bar says
TEST = "scoring the test examples"
FORWARD = 1 / 3  # of a training step's work
SCORING_BATCH = 100  # of 1,000 images at a time, PyTorch and we score half as many a second on a CPU


@dataclass(frozen=True, kw_only=True)
class Options:
    """Options of all experiments."""

    gens: int = 10
    """Generations of the genetic algorithm."""
    population: int = 3
    """Members of a generation. The first one has more if train-all, head-only and all prefix masks are more."""
    out: str | Path | None = None
    """Folder for the results, also such as gs://bucket/run. One that holds an unfinished run of the same options goes on.
    Default: a new one under runs/."""
    resume: str | Path | None = None
    """Folder of a run to go on with; its options need not be given again."""
    seed: int = 0
    """Decides the head's initialisation, the batches, dropout and the genetic algorithm."""
    train_examples: int = 128
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
    objective: Literal["accuracy", "pareto"] = "accuracy"
    """accuracy: find the fittest mask. pareto: find masks that no other beats in accuracy, training FLOPs and optimizer bytes
    at once (NSGA-II)."""
    max_flops: float | None = None
    """Evaluate only masks that take at most this share of the FLOPs of training everything, such as 0.4."""
    halving: bool = True
    """Stop poor masks after a quarter or half of their steps, where that is 16 or more."""
    max_evaluations: float | None = None
    """Search for at most the training steps of so many full evaluations."""
    max_minutes: float | None = None
    """Begin no generation after so many minutes of evaluations."""
    patience: int | None = None
    """Stop after so many generations without a fitter mask."""
    finalist_seeds: int = 5
    """Fresh seeds with which the most promising masks and all baselines are trained at the end."""
    compare_random: bool = True
    """Compare with the best random mask, too, searched with as many training steps."""
    mask: str | Path | None = None
    """A mask.json, such as a run's: train with this mask, beside training everything at three rates, in place of a search."""
    plan: str = "auto"
    """How members are trained. auto: measured. Or for example members=4,steps=0,freezing=static,calls=1: how many are stacked
    in a call, how many steps a compiled program does (0 = it does a layer), whether masks are compiled in or traced, and how
    many calls run at the same time."""
    coordinator: str | None = None
    """With several processes: HOST:PORT of the first one. On Cloud TPU and under Slurm these three options are not needed."""
    num_processes: int | None = None
    """How many there are."""
    process_id: int | None = None
    """Which of them this one is, from 0; that one writes the results."""
    quiet: bool = False
    """Print the generations, the verdict and the folder only."""
    verbose: bool = False
    """Print the plans tried, what was compiled, and each evaluation, too."""
    tensorboard: bool = False
    """Write TensorBoard's event files, too, to tensorboard/ in the folder of results."""


class OptionError(ValueError):
    """An option that turns out to be wrong when model and data are known."""


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
        "max_evaluations": 1,
        "patience": 1,
        "finalist_seeds": 1,
    }
    for name, least in (common | smallest).items():
        if (value := getattr(options, name)) is not None and not value >= least:  # NaN is not, either
            raise ValueError(f"--{name.replace('_', '-')} must be at least {least}, got {value}")
    if options.seed >= 2**32:
        raise ValueError(f"--seed must be below 2**32, got {options.seed}")
    if options.max_flops is not None and not 0 < options.max_flops <= 1:
        raise ValueError(f"--max-flops must be above 0 and at most 1, got {options.max_flops}")
    if options.max_minutes is not None and not options.max_minutes > 0:
        raise ValueError(f"--max-minutes must be above 0, got {options.max_minutes}")
    for name in ("learning_rate", "head_learning_rate"):
        if not 0 < getattr(options, name) < 1:
            raise ValueError(f"--{name.replace('_', '-')} must be between 0 and 1, got {getattr(options, name)}")
    if options.plan != "auto" and planning.parse(options.plan).calls > 1 < jax.device_count():
        raise ValueError(f"--plan: with {jax.device_count()} devices calls run one by one; leave out calls")
    if options.quiet and options.verbose:
        raise ValueError("--quiet and --verbose contradict each other: give one of them")
    if options.tensorboard and importlib.util.find_spec("tensorboardX") is None:
        raise ValueError("--tensorboard needs tensorboardX: pip install tensorboardX")


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
      params: {block name: pretrained parameters, ...}.
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
    count_trainable: Callable[[Genome], int]
    tensors: Mapping[str, str] = MappingProxyType({})
    loss: Loss = cross_entropy
    metric: Metric = ACCURACY

    def run(self, seed: int) -> Replicate:
        """What a seed decides: the head's initialisation, the batches and dropout."""
        keys = Keys.of(seed)
        return Replicate(self.make_head(keys.head), self.make_batches(np.random.default_rng(seed)), keys.dropout)


def make_source(data: Dataset) -> Source:
    """Arrays in their order, in batches for scoring."""
    return Source(data, make_batches(in_order(len(jax.tree.leaves(data.inputs)[0]), SCORING_BATCH)))


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
      params: {block name: ..., "head": ...}.
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

    def count_trainable(genome: Genome) -> int:
        return sizes["head"] + sum(sizes[name] for name, frozen in zip(network.names, genome, strict=True) if not frozen)

    return Task(
        network,
        params,
        make_source(train),
        make_source(validation),
        make_head or (lambda key: params["head"]),
        lambda rng: make_batches(balanced_batches(rng, equal, batch_size, options.epochs)),
        genes or block_genes(network, params),
        count_trainable,
    )


def block_genes(network: Network, params: PyTree) -> masking.Genes:
    """Genes of a network's own tree, {block name: ..., "head": ...}; the head always trains."""
    rules = {f"{re.escape(name)}/.*": name for name in network.names}
    return masking.make_genes(params, rules | ({"head/.*": None} if jax.tree.leaves(params["head"]) else {}))


class Result(NamedTuple):
    """What a search has found, trained with fresh seeds.

    Attributes:
      found: the winner among the search's leaders.
      baselines: "train all", "head only" ("train nothing" if the head has no parameters), "best prefix mask", "best random
        mask" and `finalists.NO_MASKS`, as far as there are such.
      evaluations: all, in order.
      engine: facts about the search and how members were trained, for `result.json`.
    """

    found: Finalist
    baselines: list[Finalist]
    evaluations: Sequence[Evaluation]
    engine: dict[str, Any]


def make_settings(options: Options, num_steps: int) -> Settings:
    """How to search. Members are scored after a quarter and half of their steps, unless that is too early to tell."""
    early = options.halving and options.objective == "accuracy"  # a cheap mask need not be accurate
    rungs = [steps for steps in (num_steps // 4, num_steps // 2) if early and steps >= LEAST_STEPS]
    return Settings(
        (*rungs, num_steps),
        options.seed,
        screen=options.objective == "accuracy",
        generations=options.gens,
        evaluations=math.inf if options.max_evaluations is None else options.max_evaluations,
        seconds=math.inf if options.max_minutes is None else 60 * options.max_minutes,
        patience=options.patience,
    )


def run_search(task: Task, options: Options, saved: RunDir | None = None, display: Display | None = None) -> Result:
    """Searches for the fittest mask, showing progress, and trains leaders and baselines with fresh seeds.

    Args:
      saved: the run as it is kept; what is there already is not done again.
      display: where the progress is shown; default: one for this search.
    """
    saved = saved or RunDir()
    make_run = functools.cache(task.run)
    run = make_run(options.seed)
    space, num_steps = Space(task.network.names), run.num_steps
    prefixes = space.prefixes()
    least = "head only" if jax.tree.leaves(run.head) else "train nothing"
    fixed = {"train all": space.all_trained, least: space.all_frozen}  # no search has to choose these
    groups = {"best prefix mask": prefixes[1:-1]} if space.num_genes > 1 else {}
    settings = make_settings(options, num_steps)
    sizes = max(len(prefixes), options.population), options.population
    in_full = settings._replace(rungs=settings.rungs[-1:])
    enumerated = in_full.enumerates(space.size, *sizes)
    settings = in_full if enumerated else settings
    steps_of_search = int(min(space.size, settings.num_genomes(*sizes)) * settings.steps_of_genome)
    comparing = options.compare_random and not enumerated
    num_finalists = options.finalist_seeds * (NUM_LEADERS + len(fixed) + len(groups) + comparing + len(NO_MASKS))
    own = Display(task.network.names, quiet=options.quiet, verbose=options.verbose)
    with devices.over_all_devices(options.population), contextlib.nullcontext(display) if display else own as display:
        display.progress.expect(
            {RANDOM_MASKS: steps_of_search * comparing, FINALISTS: num_finalists * num_steps, SEARCHING: steps_of_search}
        )
        random = space.sample(np.random.default_rng(options.seed), options.population)
        like_the_first = space.frozen(np.concatenate([prefixes, random])[: sizes[0]])
        num_evaluations = int(steps_of_search / num_steps)
        members, choice = _populate(task, options, saved, display, run, like_the_first, num_evaluations, settings.rungs[0])
        if enumerated:
            display.line(f"All {space.size} masks fit the budget: each is trained to the end, in place of a search")
        ledger = Ledger(num_steps, saved.journal, on_add=display.evaluation)
        trainer = Trainer(members, make_run, saved.journal)
        screened: list[bool] = []

        def on_generation(generation: Generation) -> None:
            screened.append(generation.screened)
            steps = ledger.steps_trained + generation.steps_left
            display.progress.expect({SEARCHING: steps, RANDOM_MASKS: steps * comparing})
            display.generation(generation)

        costs = Costs(members, run)
        limit = math.inf if options.max_flops is None else options.max_flops
        if limit < math.inf and (least_share := costs.share(space.all_frozen)) > limit:
            raise OptionError(f"--max-flops {limit}: no mask takes so little; the head alone takes {least_share:.4f}")
        allowed = lambda genome: limit == math.inf or costs.share(genome) <= limit  # noqa: E731
        search = functools.partial(
            Search, space=space, evaluator=trainer, count_trainable=task.count_trainable, allowed=allowed
        )
        in_pareto = options.objective == "pareto"
        make_ga = functools.partial(nsga2.make_nsga2, num_objectives=3) if in_pareto else genetic.make_ga
        first = search(
            ga=make_ga(space, options.population, initial=prefixes),
            ledger=ledger,
            settings=settings,
            initial=prefixes,
            groups=groups,
            fitness=functools.partial(pareto_fitness, ledger, costs) if in_pareto else None,
            elapsed=lambda: float(devices.of_first(ledger.seconds)),
            on_generation=on_generation,
        )
        key, key_random = jax.random.split(Keys.of(options.seed).search)
        display.progress.begin(SEARCHING)
        found = first.run(key)
        spent = ledger.steps_trained / num_steps
        display.line(f"The search ended {found.why_stopped}: {_count(ledger)}, as many training steps as {spent:.1f} full ones")
        for (start, stop), value, num in found.correlations:
            display.line(f"Rank correlation of accuracies after {start} and {stop} steps: {value:.2f}, over {num} masks")
        baselines = fixed | found.groups
        random_masks = {}
        if comparing:
            display.progress.begin(RANDOM_MASKS)
            display.progress.expect({RANDOM_MASKS: ledger.steps_trained})
            others = Ledger(num_steps, saved.journal, RANDOM, display.evaluation)
            same_budget = settings._replace(generations=math.inf, evaluations=spent, patience=None, screen=False)
            rival = search(
                ga=genetic.make_random(space, options.population),
                ledger=others,
                settings=same_budget,
                initial=space.stack([]),
                groups={},
                elapsed=lambda: float(devices.of_first(others.seconds)),
            )
            baselines["best random mask"] = rival.run(key_random).leaders[0]
            known = [{one.genome for one in own} for own in (others, ledger)]
            random_masks = {"evaluated": len(known[0]), "looked_up": len(known[0] & known[1])}
            display.line(f"Random masks, for comparison, with the same training steps: {_count(others)}")
        seeds = range(options.seed + 1, options.seed + 1 + options.finalist_seeds)
        leaders, num_baselines = found.leaders[:NUM_LEADERS], len(baselines) + len(NO_MASKS)
        display.line(
            f"Training the {len(leaders)} most promising masks and {num_baselines} baselines again "
            f"with fresh seeds ({len(seeds)} each) ..."
        )

        num_finalists = len(seeds) * (len({*leaders, *baselines.values()}) + len(NO_MASKS))
        display.progress.begin(FINALISTS)
        display.progress.expect({FINALISTS: num_finalists * num_steps})
        record = _recorder(task, saved, num_steps, display, len(screened))
        winner, rivals = retrain(members, make_run, leaders, baselines, seeds, options.epochs, saved.finalists, record)
        display.progress.begin("counting FLOPs", training=False)
        step_flops = costs.count()
    facts = {
        "dtype": compute_dtype(options.dtype).name,
        "step_flops": step_flops._asdict(),
        "plan": planning.as_json(choice, members.plan),
        "search": {
            "rungs": settings.rungs,
            "full_evaluations": spent,
            "ended": found.why_stopped,
            "generations_screened": sum(screened),
            **({"random_masks": random_masks} if random_masks else {}),
            "correlations": [one._asdict() for one in found.correlations],
            "finalist_seeds": list(seeds),
        },
        **({"front": find_front(ledger, costs, options.seed)} if in_pareto else {}),
    }
    return Result(winner, rivals, list(saved.journal), facts)


def train_mask(
    task: Task, genome: Genome, options: Options, saved: RunDir | None = None, display: Display | None = None
) -> Result:
    """Trains with a genome, and everything at three rates, with fresh seeds, in place of a search; else as `run_search`."""
    saved = saved or RunDir()
    everything = Space(task.network.names).all_trained
    make_run = functools.cache(task.run)
    seeds = range(options.seed + 1, options.seed + 1 + options.finalist_seeds)
    run = make_run(seeds[0])
    num_steps, num_runs = run.num_steps, (len({genome, everything}) + len(LOWER_RATES)) * len(seeds)
    own = Display(task.network.names, quiet=options.quiet, verbose=options.verbose)
    with devices.over_all_devices(len({genome, everything})), contextlib.nullcontext(display) if display else own as display:
        display.progress.expect({FINALISTS: num_runs * num_steps, RANDOM_MASKS: 0, SEARCHING: 0})
        genomes = np.array([everything, genome], bool)
        members, choice = _populate(task, options, saved, display, run, genomes, num_runs)
        display.line(f"Training with the mask, and everything, also at lower rates, with {len(seeds)} fresh seeds each ...")
        baselines = {"train all": everything}
        display.progress.begin(FINALISTS)
        record = _recorder(task, saved, num_steps, display)
        found, rivals = retrain(
            members, make_run, [genome], baselines, seeds, options.epochs, saved.finalists, record, no_masks=LOWER_RATES
        )
        display.progress.begin("counting FLOPs", training=False)
        step_flops = costs.step_flops(members, run)
    facts = {
        "dtype": compute_dtype(options.dtype).name,
        "step_flops": step_flops._asdict(),
        "plan": planning.as_json(choice, members.plan),
    }
    return Result(found, rivals, list(saved.journal), facts)


def _populate(
    task: Task,
    options: Options,
    saved: RunDir,
    display: Display,
    run: Replicate,
    genomes: np.ndarray,
    num_evaluations: int,
    at_a_time: int | None = None,
) -> tuple[Population, planning.Choice]:
    """The task's population, with the plan that the run has, or that is given, or else chosen (see `planning.choose`)."""
    members = Population(
        task.network,
        task.params,
        adamw_recipe(
            learning_rate=options.learning_rate,
            head_learning_rate=options.head_learning_rate,
            num_steps=run.num_steps,
        ),
        task.train,
        task.validation,
        loss=task.loss,
        metric=task.metric,
        on_steps=display.progress.step,
    )
    if "plan" in saved.facts:
        choice = planning.from_json(saved.facts["plan"])
    elif options.plan == "auto":
        display.progress.begin("choosing a plan", training=False)
        choice = planning.choose(members, genomes, run, num_evaluations, at_a_time)
    else:
        choice = planning.Choice(planning.parse(options.plan), "given by --plan")
    members.plan = choice.plan
    saved.add_facts(plan=planning.as_json(choice, choice.plan))
    dtype = compute_dtype(options.dtype)
    display.line(f"Plan: {planning.describe(choice.plan)} ({choice.reason}); {dtype.name}")
    for trial in choice.trials:
        display.line(
            f"Tried: {planning.describe(trial.plan)}: {trial.step_seconds * 1e3:.3g} ms a member-step, "
            f"{trial.compile_seconds:.1f} s compiling",
            detail=True,
        )
    if num_known := len(saved.journal):
        display.line(f"Going on with {num_known} evaluations that are there already")
    return members, choice


def _recorder(
    task: Task, saved: RunDir, num_steps: int, display: Display, generation: int = 0
) -> Callable[[Sequence[Member], int], None]:
    """Puts finalists into the journal."""
    final = Ledger(num_steps, saved.journal, FINAL, display.evaluation)

    def record(ready: Sequence[Member], seed: int) -> None:
        final.add(*(evaluation_of(one, seed, num_steps, generation, task.count_trainable) for one in ready))

    return record


class Costs:
    """What masks cost, counted when it is first asked for.

    Args:
      run: whose steps are counted.
    """

    def __init__(self, members: Population, run: Replicate):
        self.count = functools.cache(lambda: costs.step_flops(members, run))
        self._bytes = functools.cache(lambda: costs.optimizer_bytes(members, run))
        self._names = members.network.names

    def share(self, genome: Genome) -> float:
        """FLOPs of a genome's training step, as a share of those of training everything."""
        return self.count()(np.array(genome, bool)) / self.count().above[0]

    def optimizer_bytes(self, genome: Genome) -> int:
        """Of the optimizers' states of what a genome trains."""
        sizes = self._bytes()
        return sizes["head"] + sum(sizes[name] for name, frozen in zip(self._names, genome, strict=True) if not frozen)


def pareto_fitness(ledger: Ledger, costs: Costs, genome: Genome) -> tuple[float, float, float]:
    """What NSGA-II is told of a genome: accuracy, or NaN, which is worst, if it diverged; and what it costs, negative."""
    accuracy = ledger.fitness(genome)[1]
    return accuracy if math.isfinite(accuracy) else math.nan, -costs.share(genome), -costs.optimizer_bytes(genome)


def find_front(ledger: Ledger, costs: Costs, seed: int) -> dict[str, list[dict[str, Any]]]:
    """What was evaluated to the end: accuracy and costs; "masks" are those that no other one beats in all of these at once.

    The most accurate comes first.
    """
    full = [one for one in ledger.at(ledger.num_steps, seed) if not one.diverged]
    evaluated = [
        {
            "genome": Space.text(one.genome),
            "validation_accuracy": one.score,
            "flops": costs.share(one.genome),
            "optimizer_bytes": costs.optimizer_bytes(one.genome),
            "trainable_parameters": one.trainable_parameters,
        }
        for one in full
    ]
    objectives = [(one["validation_accuracy"], -one["flops"], -one["optimizer_bytes"]) for one in evaluated]
    chosen = nsga2.front(np.array(objectives))
    return {"masks": [evaluated[i] for i in chosen], "evaluated": evaluated}


def _count(ledger: Ledger) -> str:
    """How many masks were evaluated, in words."""
    num = len({one.genome for one in ledger})
    return f"{num} masks" if ledger.num_full == num else f"{num} masks, {ledger.num_full} of them to the end"


class Locked:
    """A test split that opens once, for a finished search."""

    def __init__(self, source: Source):
        self._source, self._opened = source, False

    @property
    def fingerprint(self) -> str:
        """Of its content."""
        return fingerprint(self._source.data)

    @property
    def num_examples(self) -> int:
        return self._source.num_examples

    def open(self, result: Result) -> Source:
        """The split.

        Raises:
          RuntimeError: before there is a result, and the second time.
        """
        if not isinstance(result, Result):
            raise RuntimeError(f"the test split opens when the search is over, for its Result; got {type(result).__name__}")
        if self._opened:
            raise RuntimeError("the test split has been opened already; what is chosen now would be chosen on it")
        self._opened = True
        return self._source

    def break_open(self) -> Source:
        """The split, for benchmarks that score every mask. A search that did so would fool itself."""
        return self._source


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
      rows: [E], which row each test example belongs to, where they do not stand for themselves, as the tokens of a text.
    """

    task: Task
    about: Sequence[str]
    network: Network
    test: Locked
    num_test: int
    restore: Callable[[PyTree], PyTree]
    save: Callable[[Path, PyTree], None]
    facts: Mapping[str, Any] = MappingProxyType({})
    language: bool = False
    rows: np.ndarray | None = None


class Unlabelled(NamedTuple):
    """A saved model and N inputs that it is to label; one text, for a model of language.

    Attributes:
      source: the inputs, and for a model of language the next tokens; other targets mean nothing.
      columns: what tells the inputs apart, {title: [N]}.
      notes: what was decided on the way and should be told, a sentence each.
    """

    network: Network
    params: PyTree
    source: Source
    columns: Mapping[str, Sequence[Any]]
    notes: Sequence[str] = ()


def main(kind: str, prepare: Callable[[OptionsT], Prepared], options: OptionsT, go_on: str | None = None) -> None:
    """Runs an experiment from its options to its files; what is wrong with them ends it in one line before it starts.

    Args:
      kind: what its folder under runs/ begins with.
      prepare: loads network and data; raises ValueError or OSError if an option is wrong.
      go_on: the command that goes on with a run that was stopped, up to the run's folder.
    """
    start = time.perf_counter()
    path = None
    go_on = go_on or f"python {sys.argv[0]} --resume"
    with stoppable(lambda: f"To go on: {go_on} {path}" if path else "Nothing was done yet."):
        try:
            devices.join(options.coordinator, options.num_processes, options.process_id)
            options, path, finished = choose_folder(kind, options)
            if finished:
                print(f"{path} holds this run; it is finished, nothing is left to do")
                return
            check(options)
            if options.tensorboard and "://" in str(path):
                raise ValueError(f"--tensorboard needs a local folder, got {path}")
            planning.keep_compiled_programs()
            prepared = prepare(options)
            mask = None if options.mask is None else masking.read_mask(options.mask, prepared.task.genes)
            saved = RunDir.open(path, _facts(kind, options, prepared))
        except (ValueError, OSError, ModuleNotFoundError) as error:
            sys.exit(summary.fail(error))
        steps = saved.facts["num_steps"]
        try:
            with saved, make_display(prepared, options, path) as display:
                for text in prepared.about:
                    display.line(summary.printable(text))
                display.line(f"Each member trains {steps} steps of {options.batch_size} examples. Results go to {path}")
                if mask is None:
                    result = run_search(prepared.task, options, saved, display)
                else:
                    result = train_mask(prepared.task, as_genome(mask.values()), options, saved, display)
                if not devices.is_first():
                    return
                with saved.finishing() as folder:
                    entries = finish(prepared, result, options, folder, start - saved.seconds, display)
        except OptionError as error:
            saved.discard()
            sys.exit(summary.fail(error))
        except OSError as error:
            devices.leave(summary.fail(OSError(f"{error}. What was done is kept; to go on: {go_on} {path}")))
        summary.print_summary(entries, path, quiet=options.quiet)


def make_display(prepared: Prepared, options: Options, path: os.PathLike[str]) -> Display:
    """For a run from the search to its files."""
    display = Display(
        prepared.task.network.names,
        quiet=options.quiet,
        verbose=options.verbose,
        tensorboard=Path(path) / TENSORBOARD if options.tensorboard and devices.is_first() else None,
    )
    # Found and train all; of a search, head only and the best prefix mask, too.
    num_rows = 2 + len(LOWER_RATES) if options.mask else 4 + options.compare_random + len(NO_MASKS)
    num_tested = options.finalist_seeds * num_rows
    display.progress.expect({TEST: num_tested * FORWARD * prepared.test.num_examples / options.batch_size})
    return display


def _facts(kind: str, options: Options, prepared: Prepared) -> dict[str, Any]:
    """What a run is, for `run.json`."""
    task, test = prepared.task, prepared.test.fingerprint
    return {
        "kind": kind,
        "options": dataclasses.asdict(options),
        "versions": results.versions(),
        "device": results.device(),
        "stages": task.network.names,
        "num_steps": len(task.run(options.seed).batches.examples),
        "metric": ACCURACY.facts(),
        "fingerprint": fingerprint(task.params, task.train.data, task.validation.data) + test,
    }


def finish(prepared: Prepared, result: Result, options: Options, out: Path, start: float, display: Display) -> dict[str, Any]:
    """Scores the test split, which nothing has seen before, and writes model, mask, result and page; returns the result.

    Args:
      start: `time.perf_counter()` when the run began.
    """
    task = prepared.task
    display.line(f"\nScoring the {prepared.num_test:,} test examples, which nothing has seen so far ...")
    finalists = result.found, *result.baselines
    work = FORWARD * prepared.test.num_examples / options.batch_size
    display.progress.begin(TEST, training=False)
    display.progress.expect({TEST: work * len({id(member) for finalist in finalists for member in finalist.members})})
    test = prepared.test.open(result)
    rows = []
    tested: dict[int, Scores] = {}  # by member: the one found may be a baseline
    for finalist in finalists:
        for member in finalist.members:
            if id(member) not in tested:
                tested[id(member)] = score(
                    prepared.network, prepared.restore(member.params), test, loss=task.loss, metric=task.metric
                )
                display.progress.step(work)
        rows.append(_make_row(prepared, finalist, [tested[id(member)] for member in finalist.members]))
    display.progress.begin("writing files", training=False)
    judged = [verdict.Contender(row.name, Space.text(row.genome) if row.is_mask else "", row.scores, row.flops) for row in rows]
    judgement = verdict.judge(
        judged[0],
        judged[1:],
        metric=MetricFormat(**ACCURACY.facts()),
        validation_score=rows[0].validation_score,
        transferred=options.mask is not None,
    )
    found, saved = result.found, result.found.best
    prepared.save(out / "model", prepared.restore(saved.params))
    of_saved = {
        "test_accuracy": float(task.metric.score(tested[id(saved)].values)),
        "test_loss": float(tested[id(saved)].losses.mean(dtype=np.float64)),
    }
    masking.write_mask(out / "mask.json", task.genes, found.genome, task.tensors)
    if front := result.engine.get("front"):
        (out / "masks").mkdir(exist_ok=True)
        for one in front["masks"]:
            text = one["genome"]
            masking.write_mask(out / "masks" / f"{text}.json", task.genes, Space(task.network.names).parse(text), task.tensors)
    names = task.network.names
    seconds = time.perf_counter() - start
    entries = results.make_result(
        options, Space(names), rows, judgement, metric=ACCURACY, evaluations=result.evaluations, seconds=seconds,
        language=prepared.language, **result.engine, **prepared.facts,
        model=of_saved,
        seconds_of_phases={phase: round(took, 1) for phase, took in display.progress.took.items()},
    )  # fmt: skip
    results.write_json(out / "result.json", entries)
    page.write([RunFolder(out)], out / "report.html")
    return entries


def _make_row(prepared: Prepared, finalist: Finalist, tested: Sequence[Scores]) -> results.ScoredFinalist:
    """What a finalist did on the test split."""
    correct = np.stack([prepared.task.metric.contributions(one.values) for one in tested])
    if prepared.rows is not None:
        counts = np.bincount(prepared.rows)
        correct = np.stack([np.bincount(prepared.rows, own) / counts for own in correct])
    return results.ScoredFinalist(
        finalist.name,
        finalist.genome,
        *finalist.validation,
        correct,
        float(np.mean([one.losses.mean(dtype=np.float64) for one in tested])),
        prepared.task.count_trainable(finalist.genome),
        finalist.flops,
        is_mask=finalist.name not in NO_MASKS,
        learning_rate_factor=LOWER_RATES.get(finalist.name, 1.0),
    )
