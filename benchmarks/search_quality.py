"""How good are the masks that search algorithms find? Replays them on FreezeBench's tables, without training anything.

    python benchmarks/search_quality.py --out FILE.json --plot FILE.png

Needs optuna and pygad, and matplotlib for --plot. 200 replays of each algorithm on each table take about 10 minutes on 2 cores.

A replay sees what a real search would: the validation accuracies of one training seed, in replay r that of seed r mod S. What
it has cost is counted in training steps, in units of full evaluations; known masks are not trained again, by any algorithm.
After 8, 16, 32 and 64 full evaluations it names a mask: ours its first leader, the others the one with the highest
validation accuracy so far. Ours is run once for each of these budgets, as it plans by them; the others are run to 64. One that
has converged before keeps its choice. The quality of a mask is its test accuracy, mean over the table's seeds; regret is the
highest quality of any mask minus that of the named one, in points (hundredths). As the highest of 2^G noisy means is too high,
every regret is a little too large, by the same amount for all algorithms.

Intervals are 95 % ones (Student's t) over replays: what would change with other random numbers of the algorithms. The tables'
few training seeds and data sets are taken as they are. Differences are between replays of the same number. Where accuracies
are tied, ours looks at the losses, which the others are not told.

- ours: as the experiments search, but with a population of 6; all prefix masks are in the first generation, and members are
  stopped at the table's stops
- ours, no halving: all members are trained to the end
- ours, no surrogate: offspring are not screened
- ours, no prefixes: the first generation is random
- all of rivals.py, which start from random masks

The surrogate's kernel, the share that is not stopped and the stops were settled looking at minilm-sst2, resnet20-cifar10 and
cnn-fashion_mnist; minilm-trec and resnet20-fashion_mnist are for confirmation. Three things were decided after looking at all
five: that the surrogate has no features of its own, that its expectation does not name the mask, which lost on
resnet20-cifar10 and minilm-trec, and that the search trains only the best prefix mask to the end in any case, of the baselines.

Prints for each table the mean regrets, how ours differs from some, the regret of the highest validation accuracy of all masks,
and whether ours reaches its goals:

- the plain GA's regret after 64 evaluations, with half of its training steps at most
- never worse than random search
- better than Optuna's samplers with every budget
"""

# pyright: reportMissingImports=false

import contextlib
import functools
import importlib.util
import multiprocessing
import os
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import tyro
from rivals import RIVALS, Budget, BudgetSpent, Rival
from tables import TABLES, Table, load_table

from gafreeze_jax.intervals import Interval, difference, interval
from gafreeze_jax.report import summary
from gafreeze_jax.runs import results
from gafreeze_jax.search import loop
from gafreeze_jax.search.genetic import make_ga
from gafreeze_jax.search.halving import Settings
from gafreeze_jax.search.history import Ledger
from gafreeze_jax.space import Space

BUDGETS = (8, 16, 32, 64)
POPULATION = 6
SETTLED = ("minilm-sst2", "resnet20-cifar10", "cnn-fashion_mnist")
CONFIRMING = ("minilm-trec", "resnet20-fashion_mnist")
RIVALS_NEED = ("optuna", "pygad")
SEEDS_OF_A_JOB = 10


@dataclass(frozen=True)
class Options:
    """Replay search algorithms on tables of all masks."""

    tables: Path = TABLES
    """Folder with .npz files, as freezebench.py makes them."""
    seeds: int = 200
    """Replays of each algorithm on each table."""
    workers: int = 2
    """Processes at the same time."""
    out: Path | None = None
    """JSON file to write."""
    plot: Path | None = None
    """PNG file to write."""


class Variant(NamedTuple):
    """Which parts our search has."""

    halving: bool = True
    surrogate: bool = True
    prefixes: bool = True


OURS = {
    "ours": Variant(),
    "ours, no halving": Variant(halving=False),
    "ours, no surrogate": Variant(surrogate=False),
    "ours, no prefixes": Variant(prefixes=False),
}
ALGORITHMS = (*OURS, *RIVALS)


class Course(NamedTuple):
    """What replays of an algorithm came to.

    Attributes:
      regrets: [N, B] in points, of N replays with each budget.
      spent: [N, B] full evaluations' worth of training steps.
    """

    regrets: np.ndarray
    spent: np.ndarray


# ---------------------------------------------------------------------------------------------------------------------
# Replays


class Trained(NamedTuple):
    """What a table says of a mask. It has no training losses; the search wants to know only whether they are finite."""

    genome: np.ndarray
    score: float
    loss: float
    train_loss: float = 0.0
    seconds: float = 0.0


class Replayed:
    """An evaluator that looks masks up."""

    def __init__(self, table: Table):
        self.table, self.space = table, Space(table.genes)

    def evaluate(self, genomes: Iterable[np.ndarray], seed: int, until: int) -> list[list[Trained]]:
        curves = self.table.validation[:, seed, self.table.stops.index(until)]
        return [[Trained(genome, *map(float, curves[self.space.index(genome)])) for genome in genomes]]

    def resume(self, members: Sequence[Trained], seed: int, until: int) -> list[list[Trained]]:
        return self.evaluate([member.genome for member in members], seed, until)


make_cached_ga = functools.cache(make_ga)  # searches with the same one share compiled code


def run_ours(table: Table, seed: int, budget: int, variant: Variant) -> tuple[int, float]:
    """The mask that our search names, and the full evaluations that it took."""
    space, num_steps = Space(table.genes), table.stops[-1]
    initial = space.prefixes() if variant.prefixes else space.stack([])
    trained_with = seed % table.test.shape[1]
    ledger = Ledger(num_steps)
    found = loop.Search(
        space=space,
        ga=make_cached_ga(space, POPULATION),
        evaluator=Replayed(table),
        ledger=ledger,
        settings=Settings(
            table.stops if variant.halving else (num_steps,), trained_with, screen=variant.surrogate, evaluations=budget
        ),
        initial=initial,
        count_trainable=lambda genome: int(table.trainable[space.index(genome)]),
        groups={"best prefix mask": initial[1:-1]} if variant.prefixes else {},
    ).run(jax.random.key(seed))
    return int(space.index(found.leaders[0])), ledger.steps_trained / num_steps


def run_rival(table: Table, seed: int, rival: Rival) -> list[tuple[int, float]]:
    """As `run_ours`, with each budget."""
    accuracies, space = table.validation[:, seed % table.test.shape[1], -1, 0], Space(table.genes)
    budget = Budget(lambda genome: float(accuracies[space.index(genome)]), BUDGETS[-1])
    with contextlib.suppress(BudgetSpent):
        rival(seed, len(table.genes), budget, BUDGETS[-1])
    nums = [min(num, len(budget.genomes)) for num in BUDGETS]
    return [(int(space.index(budget.genomes[int(np.argmax(budget.fitness[:num]))])), float(num)) for num in nums]


def replay(path: Path, algorithm: str, seeds: Iterable[int]) -> Course:
    table = load_table(path)
    quality = 100 * table.test[..., 0].mean(1)
    runs = np.array(
        [
            [run_ours(table, seed, budget, OURS[algorithm]) for budget in BUDGETS]
            if algorithm in OURS
            else run_rival(table, seed, RIVALS[algorithm])
            for seed in seeds
        ]
    )
    return Course(quality.max() - quality[runs[..., 0].astype(int)], runs[..., 1])


# ---------------------------------------------------------------------------------------------------------------------
# What they come to


class Goals(NamedTuple):
    """How ours compares, with B budgets.

    Attributes:
      steps_of_plain: by which our mean regret is at most the plain GA's with the last budget, as a share of its steps; None
        if it never is.
      at_half: our regret with the budget before the last minus the plain GA's with the last.
      minus: {rival: [B] our regret minus its own}.
    """

    steps_of_plain: float | None
    at_half: Interval
    minus: Mapping[str, list[Interval]]

    @property
    def lines(self) -> list[str]:
        share = self.steps_of_plain
        reached = "never" if share is None else f"with {share:.0%}"
        half = f"difference with half its budget {points(self.at_half)}"
        relations = {name: list(map(relation, differences)) for name, differences in self.minus.items()}
        optuna = [name for name in relations if name.startswith("Optuna")]
        better = all(how == "better" for name in optuna for how in relations[name])
        return [
            f"{mark(share is not None and share <= 0.5)} the plain GA's last regret with 50% of its steps or less: "
            f"{reached}; {half}",
            f"{mark('worse' not in relations['random search'])} never worse than random search: "
            + told(relations["random search"]),
            f"{mark(better)} always better than Optuna's samplers: "
            + "; ".join(f"{name.removeprefix('Optuna ')} {told(relations[name])}" for name in optuna),
        ]


def mark(reached: bool) -> str:
    return "reached:" if reached else "MISSED: "


def relation(less: Interval) -> str:
    """What a difference in regret says, by its interval."""
    return "better" if less.high < 0 else "worse" if less.low > 0 else "equal within noise"


def told(relations: Sequence[str]) -> str:
    """With which budgets ours is what."""
    budgets = {
        how: [str(budget) for budget, given in zip(BUDGETS, relations, strict=True) if given == how] for how in relations
    }
    return ", ".join(f"{how} at {' '.join(names)}" for how, names in budgets.items())


def compare(courses: Mapping[str, Course]) -> Goals:
    ours, plain = courses["ours"], courses["plain GA"]
    final = plain.regrets[:, -1]
    there = [spent for regret, spent in zip(ours.regrets.mean(0), ours.spent.mean(0), strict=True) if regret <= final.mean()]
    return Goals(
        float(there[0] / plain.spent[:, -1].mean()) if there else None,
        difference(ours.regrets[:, -2], final),
        {
            name: [difference(*pair) for pair in zip(ours.regrets.T, courses[name].regrets.T, strict=True)]
            for name in ("random search", "Optuna TPE", "Optuna NSGA-II")
        },
    )


def points(value: Interval) -> str:
    return f"{value.mean:.2f} ±{value.high - value.mean:.2f}"


def role(name: str) -> str:
    return "options were settled on it" if name in SETTLED else "for confirmation" if name in CONFIRMING else ""


def regret_of_all(table: Table) -> float:
    """Mean regret of naming the highest validation accuracy of all masks: what validation itself cannot tell."""
    quality = 100 * table.test[..., 0].mean(1)
    named = [quality[scores == scores.max()].mean() for scores in table.validation[:, :, -1, 0].T]
    return float(quality.max() - np.mean(named))


def print_result(name: str, table: Table, courses: Mapping[str, Course], goals: Goals) -> None:
    quality = table.test[..., 0].mean(1)
    best = int(quality.argmax())
    facts = [
        f"{len(quality):,} masks",
        f"best {best:0{len(table.genes)}b} with {quality.max():.4f} on the test set",
        role(name),
    ]
    rows = {name: [interval(regrets) for regrets in course.regrets.T] for name, course in courses.items()}
    rows |= {f"ours minus {name}": differences for name, differences in goals.minus.items()}
    print(f"\n{name}: {', '.join(filter(None, facts))}")
    print(f"{'mean regret in points with a budget of':40}" + "".join(f"{budget:>14}" for budget in BUDGETS))
    for row, values in rows.items():
        print(f"{row:40}" + "".join(f"{points(value):>14}" for value in values))
    for name, course in courses.items():
        spent = {budget: took for budget, took in zip(BUDGETS, course.spent.mean(0), strict=True) if abs(took - budget) >= 0.5}
        if spent:
            print(f"{name} took {', '.join(f'{took:.1f} of {budget}' for budget, took in spent.items())}")
    print(f"naming the highest validation accuracy of all {len(quality):,} masks: {regret_of_all(table):.2f}")
    print(*goals.lines, sep="\n", flush=True)


def as_json(courses: Mapping[str, Course], goals: Goals) -> dict[str, Any]:
    def rounded(values: Iterable[float]) -> list[float]:
        return [round(float(value), 4) for value in values]

    return {
        "algorithms": {
            name: {
                "regret": [rounded(interval(regrets)) for regrets in course.regrets.T],
                "spent": rounded(course.spent.mean(0)),
            }
            for name, course in courses.items()
        },
        "ours_minus": {name: [rounded(value) for value in differences] for name, differences in goals.minus.items()},
        "at_half_minus_plain_ga": rounded(goals.at_half),
        "steps_of_plain_ga": goals.steps_of_plain,
        "goals": goals.lines,
    }


# ---------------------------------------------------------------------------------------------------------------------
# The plot

COLOURS = {  # Okabe & Ito's, which colour-blind people can tell apart
    "ours": "#D55E00",
    "random search": "#999999",
    "plain GA": "#000000",
    "PyGAD": "#E69F00",
    "Optuna TPE": "#0072B2",
    "Optuna NSGA-II": "#56B4E9",
    "regularized evolution": "#009E73",
}
MARKERS = dict(zip(COLOURS, "oxs^Dvp", strict=True))


def draw(path: Path, tables: Mapping[str, Mapping[str, Course]]) -> None:
    """Regret against budget, a panel for each table; the last place is for the legend."""
    import matplotlib.pyplot as plt

    plt.switch_backend("agg")
    num_columns = min(3, len(tables) + 1)
    num_rows = -(-(len(tables) + 1) // num_columns)
    figure, axes = plt.subplots(num_rows, num_columns, figsize=(3.4 * num_columns, 3 * num_rows), squeeze=False)
    figure.set_layout_engine("constrained", w_pad=0.12, h_pad=0.1)
    panels = axes.flat
    for name, courses in tables.items():
        panel = next(panels)
        for algorithm, colour in COLOURS.items():
            means, lows, highs = np.transpose([interval(regrets) for regrets in courses[algorithm].regrets.T])
            style = {"lw": 2.6, "zorder": 4} if algorithm == "ours" else {"lw": 1.2, "zorder": 3}
            style |= {"ls": "--", "zorder": 3.5} if algorithm == "random search" else {}
            panel.plot(BUDGETS, means, color=colour, marker=MARKERS[algorithm], ms=4.5, label=algorithm, **style)
            panel.fill_between(BUDGETS, lows, highs, color=colour, alpha=0.12, lw=0)
        panel.set_title(name, fontsize=11, loc="left", fontweight="bold")
        panel.text(0.99, 0.98, role(name), transform=panel.transAxes, ha="right", va="top", fontsize=9, color="#555555")
        panel.set_xscale("log", base=2)
        panel.set_xticks(BUDGETS, map(str, BUDGETS))
        panel.set_ylim(bottom=0)
        panel.grid(color="#DDDDDD", lw=0.6)
        panel.spines[["top", "right"]].set_visible(False)
    handles, labels = axes.flat[0].get_legend_handles_labels()
    legend, *empty = panels
    for panel in (legend, *empty):
        panel.axis("off")
    legend.legend(handles, labels, loc="center", fontsize=10, frameon=False, title="mean, with its 95 % interval")
    figure.supxlabel("training steps, in full evaluations", fontsize=10)
    figure.supylabel("regret in points of test accuracy", fontsize=10)
    figure.savefig(path, dpi=120)
    plt.close(figure)


# ---------------------------------------------------------------------------------------------------------------------


def find_tables(options: Options) -> dict[str, Path]:
    """Paths by name, those on which options were settled first; raises a ValueError with all that stands in the way."""
    problems = [
        f"--{name} must be at least {least}, got {value}"
        for name, value, least in (("seeds", options.seeds, 2), ("workers", options.workers, 1))
        if value < least
    ]
    needed = [*RIVALS_NEED, *(["matplotlib"] if options.plot is not None else [])]
    problems += [f"{name} is missing: pip install {name}" for name in needed if importlib.util.find_spec(name) is None]
    paths = {path.stem: path for path in sorted(options.tables.glob("*.npz"))}
    if not paths:
        problems.append(f"--tables: no .npz files in {options.tables}; freezebench.py makes them")
    problems += [
        f"{path}: {np.sum(~done):,} of {done.size:,} trainings are missing; freezebench.py goes on with them"
        for path in paths.values()
        if not (done := load_table(path).done).all()
    ]
    if problems:
        raise ValueError("; ".join(problems))
    order = [*SETTLED, *CONFIRMING]
    return dict(sorted(paths.items(), key=lambda item: order.index(item[0]) if item[0] in order else len(order)))


def main(options: Options) -> None:
    start = time.perf_counter()
    try:
        paths = find_tables(options)
    except (ValueError, OSError) as error:
        sys.exit(summary.fail(error))
    versions = results.versions() | {name: version(name) for name in RIVALS_NEED}
    print(f"{options.seeds} replays of each algorithm; 95 % intervals over them")
    os.environ |= {"OPENBLAS_NUM_THREADS": "1", "JAX_PLATFORMS": "cpu"}  # workers inherit it; many threads slow them down
    tables, entries = {}, {}
    parts = [range(first, min(first + SEEDS_OF_A_JOB, options.seeds)) for first in range(0, options.seeds, SEEDS_OF_A_JOB)]
    with ProcessPoolExecutor(options.workers, multiprocessing.get_context("spawn")) as pool:
        jobs = {
            name: {algorithm: [pool.submit(replay, path, algorithm, part) for part in parts] for algorithm in ALGORITHMS}
            for name, path in paths.items()
        }
        for name, path in paths.items():
            courses = {
                algorithm: Course(*map(np.concatenate, zip(*(job.result() for job in replays), strict=True)))
                for algorithm, replays in jobs[name].items()
            }
            goals = compare(courses)
            table = load_table(path)
            print_result(name, table, courses, goals)
            facts = {"role": role(name), "all_masks": round(regret_of_all(table), 4)}
            tables[name], entries[name] = courses, as_json(courses, goals) | facts
    seconds = time.perf_counter() - start
    print(f"\n{seconds:.0f} s")
    if options.out is not None:
        facts = {"seeds": options.seeds, "workers": options.workers, "cpus": os.cpu_count(), "seconds": round(seconds)}
        results.write_json(options.out, facts | {"versions": versions, "budgets": BUDGETS, "tables": entries})
    if options.plot is not None:
        draw(options.plot, tables)


if __name__ == "__main__":
    main(tyro.cli(Options))
