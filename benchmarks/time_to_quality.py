"""Seconds until a search names masks as good as those that PyGAD with PyTorch names after 8, 16, 32 and 64 evaluations.

    python benchmarks/time_to_quality.py --texts FOLDER --images FOLDER --weights resnet20-cifar10.safetensors

FOLDERs have train and test files, such as SST-2's and CIFAR-10's. Both sides share a process, which keeps freed memory. Needs
torch and pygad. Takes about 15 minutes on 2 idle cores.

Two things are put together:

- What a training step and an evaluation cost, measured on this machine: both sides take turns to evaluate each prefix mask, and
  each mask that freezes one gene alone, with few and with more steps. The difference is that of the steps; what is left are
  start and scoring. Costs of other masks are sums of these, as for FLOPs, and are compared with a few that are measured, too. A
  side is given the least of some rounds, as others may be busy on the machine; ours has the plan that it would choose. What
  ours compiles is counted, once a search, in seconds of a processor; loading and tokenizing are not, on either side.
- What searches name, replayed on FreezeBench's tables (see search_quality.py): PyGAD after each number of evaluations, in which
  known genomes are not trained again; ours with several budgets. Each replay's genomes are summed up at the costs above.

Prints for each table and number of evaluations what PyGAD's masks are short of the best, on average over replays, and its
seconds; the smallest budget of ours that is at least as good, its regret and seconds, and how many times less that is. So the
seconds are those of this machine, and the qualities those of the tables' machine and precision.
"""

# pyright: reportMissingImports=false

import dataclasses
import itertools
import os
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import freezebench
import jax
import numpy as np
import pytorch_bert
import pytorch_resnet
import run_bert
import run_resnet
import tyro
import vs_pytorch
from rivals import RIVALS
from search_quality import BUDGETS, Replayed, Trained, Variant, ask_rival, quality_of, run_ours, spaces_of
from tables import TABLES, Table, load_table

from gafreeze_jax.engine import planning, process
from gafreeze_jax.models import pretrained
from gafreeze_jax.runs import results
from gafreeze_jax.search.costs import StepFlops
from gafreeze_jax.space import Genome, Space, as_genome
from gafreeze_jax.tasks.base import Setup

SETTINGS = freezebench.FRESH
FEW, MORE = 1, 5  # steps
CHECKED = 3  # masks whose cost is not used
OUR_BUDGETS = (1, 2, 4, 8, 12, 16, 24, 32, 48, 64)
NETWORKS = {"minilm": ("minilm-sst2", "minilm-trec"), "resnet20": ("resnet20-cifar10", "resnet20-fashion_mnist")}
GOALS = {"minilm": 5, "resnet20": 10}  # times less at every number of evaluations
Evaluate = Callable[[np.ndarray, int], None]
CLOCKS = {"wall": time.perf_counter, "processor": lambda: time.process_time() / len(os.sched_getaffinity(0))}


@dataclass(frozen=True)
class Options:
    """Time searches until they are as good as PyGAD with PyTorch."""

    texts: Path
    """Folder of a data set of texts."""
    images: Path
    """Folder of a data set of images."""
    weights: Path
    """ResNet-20 for CIFAR-10."""
    networks: tuple[Literal["minilm", "resnet20"], ...] = ("minilm", "resnet20")
    """Whose tables are replayed."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Of matrix products and activations; parameters are float32."""
    rounds: int = 3
    """Measurements of each mask, of which the least counts."""
    clock: Literal["wall", "processor"] = "wall"
    """processor: seconds of all cores, over their number, for a machine that is busy with other work. That is as if a side
    never left a core idle; PyTorch's threads must not wait in a loop then (OMP_WAIT_POLICY=passive)."""
    replays: int = 100
    """Replays of each search."""
    tables: Path = TABLES
    """FreezeBench's tables."""
    out: Path | None = None
    """JSON file to write."""


# ---------------------------------------------------------------------------------------------------------------------
# What training costs


class Sides(NamedTuple):
    """Evaluates a genome [G] with so many steps: trains and scores it.

    Attributes:
      members: that ours evaluates together, copies of the same genome.
      compiles_steps: whether ours compiles a program for a number of steps.
    """

    space: Space
    ours: Evaluate
    pytorch: Evaluate
    members: int
    plan: str
    compiles_steps: bool = False


def make_sides(setup: Setup, pytorch: Evaluate) -> Sides:
    """`pytorch`, and ours by the plan that a search would choose."""
    problem, space = setup.problem, Space(setup.problem.network.names)
    population = freezebench.make_population(setup, SETTINGS, planning.Plan())
    run = problem.replicate(0)
    population.plan = planning.choose(population, space.prefixes(), run, max(BUDGETS)).plan
    members = population.plan.members * population.plan.calls

    def evaluate(genome: np.ndarray, num_steps: int) -> None:
        batches = jax.tree.map(lambda leaf: leaf[:num_steps], run.batches)
        for member in population.evaluate(np.tile(genome, (members, 1)), run._replace(batches=batches)):
            jax.block_until_ready(dict(member.params))

    return Sides(space, evaluate, pytorch, members, planning.describe(population.plan), population.plan.steps > 0)


def bert_sides(options: Options) -> Sides:
    sizes = {name: getattr(SETTINGS, name) for name in ("train_examples", "validation_examples", "epochs")}
    task = vs_pytorch.load_task(vs_pytorch.Options(data=str(options.texts), dtype=options.dtype, **sizes))
    rates = SETTINGS.learning_rate, SETTINGS.head_learning_rate
    finetuner = pytorch_bert.Finetuner(task.folder, task.params["head"], *rates, options.dtype)
    rng = np.random.default_rng(0)
    examples = pytorch_bert.bucketed_batches(rng, task.train.lengths, SETTINGS.batch_size, SETTINGS.epochs)
    batches = pytorch_bert.pad_batches(task.train, task.data.train.labels, examples)
    scoring = pytorch_bert.scoring_batches(task.validation, task.data.validation.labels)
    given: dict[str, Any] = dataclasses.asdict(SETTINGS) | {"data": str(options.texts), "dtype": options.dtype}
    return make_sides(run_bert.prepare(run_bert.Options(head="fresh", **given)), of_loop(finetuner, batches, scoring))


def resnet_sides(options: Options) -> Sides:
    given: dict[str, Any] = dataclasses.asdict(SETTINGS) | {"data": str(options.images), "dtype": options.dtype}
    setup = run_resnet.prepare(run_resnet.Options(model=str(options.weights), head="fresh", **given))
    run, pixels = setup.problem.replicate(0), pretrained.load(options.weights).model.pixels
    train, validation = setup.problem.train.data, setup.problem.validation.data
    assert pixels is not None
    finetuner = pytorch_resnet.make_finetuner(
        options.weights,
        run.head,
        learning_rates=(SETTINGS.learning_rate, SETTINGS.head_learning_rate),
        dtype=options.dtype,
    )
    examples = np.asarray(run.batches.examples)
    batches = pytorch_resnet.make_batches(train.inputs, train.targets, examples, pixels)
    return make_sides(
        setup, of_loop(finetuner, batches, pytorch_resnet.scoring_batches(validation.inputs, validation.targets, pixels))
    )


def of_loop(finetuner: Any, batches: Sequence[Any], scoring: Sequence[Any]) -> Evaluate:
    def evaluate(genome: np.ndarray, num_steps: int) -> None:
        finetuner.fit(genome, batches[:num_steps])
        finetuner.score(scoring)

    return evaluate


class Costs(NamedTuple):
    """Seconds that a side takes.

    Attributes:
      step: of a training step; the sum that `StepFlops` makes of FLOPs.
      evaluation: [G + 1], by the index of the lowest trained gene: of an evaluation, beside its steps.
      compiling: of a search.
    """

    step: StepFlops
    evaluation: Sequence[float]
    compiling: float

    def __call__(self, frozen: np.ndarray, num_steps: int) -> float:
        """Of an evaluation of a genome [G], of which so many steps are trained."""
        depth = int(np.append(frozen, False).argmin())
        return max(0.0, self.step(frozen)) * num_steps + self.evaluation[depth]


def measure(sides: Sides, rounds: int, clock: Callable[[], float]) -> dict[str, Costs]:
    """Costs of both sides, which take turns mask by mask."""
    space = sides.space
    others = np.random.default_rng(0).random((CHECKED, space.num_genes)) < 0.5
    masks = [as_genome(row) for row in (*space.prefixes(), *np.eye(space.num_genes, dtype=bool), *others)]
    least: dict[tuple[str, Genome, int], float] = {}

    def run(side: str, mask: Genome, num_steps: int) -> float:
        start = clock()
        (sides.ours if side == "ours" else sides.pytorch)(np.array(mask, bool), num_steps)
        return clock() - start

    def first_calls() -> float:
        """Seconds of the processor."""
        start = time.process_time()
        for mask in dict.fromkeys(masks):
            for num_steps in (FEW, MORE) if sides.compiles_steps else (FEW,):
                sides.ours(np.array(mask, bool), num_steps)
        return time.process_time() - start

    sides.pytorch(np.array(masks[0], bool), FEW)
    compiling = max(0.0, first_calls() - first_calls())
    for number in range(rounds):
        for mask in dict.fromkeys(masks):
            for side, num_steps in itertools.product(("ours", "PyTorch"), (FEW, MORE)):
                seconds = run(side, mask, num_steps) / (sides.members if side == "ours" else 1)
                least[side, mask, num_steps] = min(seconds, least.get((side, mask, num_steps), seconds))
        print(f"Round {number + 1} of {rounds}", flush=True)
    costs = {side: make_costs(space, side, least, compiling * (side == "ours")) for side in ("ours", "PyTorch")}
    for (side, cost), mask in itertools.product(costs.items(), masks[-CHECKED:]):
        summed, measured = (cost(np.array(mask, bool), MORE), least[side, mask, MORE])
        print(f"{side}, {space.text(mask)}: {MORE} steps {measured:.2f} s, by the sum {summed:.2f}", flush=True)
    return costs


def make_costs(space: Space, side: str, least: Mapping[tuple[str, Genome, int], float], compiling: float) -> Costs:
    """Costs of any mask, from those of prefix masks and of masks that freeze one gene alone."""

    def step(mask: Iterable[int]) -> float:
        genome = as_genome(mask)
        return (least[side, genome, MORE] - least[side, genome, FEW]) / (MORE - FEW)

    prefixes, single = space.prefixes(), np.eye(space.num_genes, dtype=int)
    above = [step(mask) for mask in prefixes]
    spared = [0.0, *(max(0.0, above[0] - step(mask)) for mask in single[1:])]
    evaluation = [max(0.0, least[side, as_genome(mask), FEW] - FEW * cost) for mask, cost in zip(prefixes, above, strict=True)]
    return Costs(StepFlops(above, spared, [0.0] * space.num_genes), evaluation, compiling)


# ---------------------------------------------------------------------------------------------------------------------
# What searches name, and when


class Clocked(Replayed):
    """Also sums up the seconds that its evaluations would take."""

    def __init__(self, table: Table, space: Space, costs: Costs):
        super().__init__(table, space)
        self.seconds, self._costs, self._steps = costs.compiling, costs, dict[Genome, int]()

    def evaluate(self, genomes: Iterable[np.ndarray], seed: int, until: int) -> list[list[Trained]]:
        genomes = list(genomes)
        for genome in map(as_genome, genomes):
            steps = until - self._steps.get(genome, 0)
            self.seconds += self._costs(self.space.frozen(np.array(genome)), steps)
            self._steps[genome] = until
        return super().evaluate(genomes, seed, until)


class Point(NamedTuple):
    """What a search came to on average: points of test accuracy short of the best mask, seconds, and for what budget."""

    budget: int
    regret: float
    seconds: float


def pygad_points(table: Table, space: Space, costs: Costs, replays: int) -> list[Point]:
    """PyGAD with PyTorch, after each number of evaluations; known genomes are not trained again."""
    quality, num_steps = quality_of(table), table.stops[-1]
    regrets, seconds = np.empty((replays, len(BUDGETS))), np.empty((replays, len(BUDGETS)))
    for seed in range(replays):
        asked = ask_rival(table, space, seed, RIVALS["PyGAD"])
        rows = table.rows(space, space.stack(asked.genomes))
        each = [costs(space.frozen(np.array(genome)), num_steps) for genome in asked.genomes]
        for place, num in enumerate(BUDGETS):
            regrets[seed, place] = quality.max() - quality[rows[int(np.argmax(asked.fitness[:num]))]]
            seconds[seed, place] = sum(each[:num])
    return [Point(*point) for point in zip(BUDGETS, regrets.mean(0).tolist(), seconds.mean(0).tolist(), strict=True)]


def our_points(table: Table, space: Space, costs: Costs, replays: int) -> list[Point]:
    """Ours, with each budget."""
    quality = quality_of(table)
    points = []
    for budget in OUR_BUDGETS:
        regrets, seconds = [], []
        for seed in range(replays):
            clocked = Clocked(table, space, costs)
            named, _ = run_ours(table, space, seed, budget, Variant(), clocked)
            regrets.append(float(quality.max() - quality[named]))
            seconds.append(clocked.seconds)
        points.append(Point(budget, float(np.mean(regrets)), float(np.mean(seconds))))
    return points


def compare(pygad: Sequence[Point], ours: Sequence[Point]) -> list[dict[str, Any]]:
    """For each of PyGAD's points the quickest of ours that is at least as good, and how many times less it takes."""
    rows = []
    for point in pygad:
        good = [candidate for candidate in ours if candidate.regret <= point.regret]
        first = min(good, key=lambda candidate: candidate.seconds) if good else None
        rows.append(
            {
                "pygad": point._asdict(),
                "ours": first and first._asdict(),
                "times": first and point.seconds / first.seconds,
            }
        )
    return rows


def print_rows(name: str, rows: Sequence[Mapping[str, Any]], goal: float) -> None:
    print(f"\n{name:24} {'PyGAD with PyTorch':^28}   {'ours':^28}")
    print(f"{'':24} {'evaluations':>11} {'regret':>7} {'s':>8}   {'budget':>11} {'regret':>7} {'s':>8} {'times':>7}")
    for row in rows:
        sides = [
            f"{side['budget']:11} {side['regret']:7.2f} {side['seconds']:8.1f}" if side else f"{'never as good':>28}"
            for side in (row["pygad"], row["ours"])
        ]
        times = f"{row['times']:7.2f}" if row["times"] else ""
        print(f"{'':24} {sides[0]}   {sides[1]} {times}")
    missed = [str(row["pygad"]["budget"]) for row in rows if (row["times"] or 0) < goal]
    told = f"missed at {' '.join(missed)}" if missed else "reached"
    print(f"goal, {goal:g} times: {told}", flush=True)


def main(options: Options) -> None:
    process.keep_memory()
    makers = {"minilm": bert_sides, "resnet20": resnet_sides}
    machine = pytorch_bert.describe_machine()
    print(pytorch_bert.machine_line(machine), flush=True)
    measured, compared = {}, {}
    for network in options.networks:
        sides = makers[network](options)
        print(f"\n{network}; ours by the plan: {sides.plan}", flush=True)
        costs = measure(sides, options.rounds, CLOCKS[options.clock])
        everything = {side: cost.step.above[0] * 1e3 for side, cost in costs.items()}
        print(f"ms of a step that trains everything: {', '.join(f'{side} {ms:.1f}' for side, ms in everything.items())}")
        print(f"compiling: {costs['ours'].compiling:.1f} s", flush=True)
        measured[network] = {"plan": sides.plan} | {side: cost._asdict() for side, cost in costs.items()}
        for name in NETWORKS[network]:
            table = load_table(options.tables / f"{name}.npz")
            space = spaces_of(table)["masks"]
            pygad = pygad_points(table, space, costs["PyTorch"], options.replays)
            ours = our_points(table, space, costs["ours"], options.replays)
            rows = compare(pygad, ours)
            print_rows(name, rows, GOALS[network])
            compared[name] = {"rows": rows, "ours": [point._asdict() for point in ours]}
        if options.out is not None:
            facts = {"options": dataclasses.asdict(options), "machine": machine, "pygad": vs_pytorch.pygad.__version__}
            results.write_json(options.out, facts | {"costs": measured, "tables": compared})


if __name__ == "__main__":
    jax.config.update("jax_platforms", "cpu")
    main(tyro.cli(Options))
