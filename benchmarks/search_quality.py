"""How good are the genomes that searches find? Replays them on FreezeBench's tables, without training anything.

    python benchmarks/search_quality.py --out FILE.json --plot FILE.png

Needs optuna and pygad, and matplotlib for --plot.

A replay sees what a real search would: the validation accuracies of one training seed, in replay r that of seed r mod S. What
it has cost is counted in training steps, in units of full evaluations; known genomes are not trained again, by anyone. A search
is replayed in several spaces, as far as the table goes: masks at the learning rate itself, masks at several rates, a level for
each gene, and both. Ours is run once for each of the budgets 8, 16, 32 and 64, as it plans by them; the others are run once,
and name the genome with the highest validation accuracy so far. One that has converged before keeps its choice.

Ours trains the genomes of its first generation whatever the budget, and at the end its leaders and the best of each kind of
baseline at the other rates, so it may spend more than the budget. It is therefore compared with what a rival names after as
many training steps as ours took in the same replay, not after the budget.

The quality of a genome is its test accuracy, mean over the table's seeds. Regret is the highest quality in the table minus that
of the named genome, in points (hundredths). As the highest of many noisy means is too high, every regret is a little too large,
by the same amount for all. Intervals are 95 % ones (Student's t) over replays: what would change with other random numbers of
the algorithms. The tables' few training seeds and data sets are taken as they are. Where accuracies are tied, ours looks at the
losses, which the others are not told.

- ours: as the experiments search, but with a population of 6, and members are stopped at the table's stops
- ours, no halving: all members are trained to the end
- ours, no surrogate: offspring are not screened
- ours, prefixes alone: of the baselines the first generation has prefix masks and training everything at all rates
- ours, random start: the first generation is random
- ours, no tuning: leaders and baselines are not trained at other rates at the end
- ours among masks: in a larger space, what ours finds among masks at the learning rate itself with as many training steps
- all of rivals.py

The surrogate's kernel, the share that is not stopped and the stops were settled looking at minilm-sst2, resnet20-cifar10 and
cnn-fashion_mnist; the other tables are for confirmation. Three things were decided after looking at the five with a fresh head
and masks alone: that the surrogate has no features of its own, that its expectation does not name the mask, which lost on
resnet20-cifar10 and minilm-trec, and that the search trains only the best of the prefix masks to the end in any case.

Prints for each table and space the mean regrets, what ours takes, how far the genome that ours names is ahead of training
everything at the rate that does best on validation data, and whether ours is worse than any rival beyond noise.
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
from rivals import BY_HAND, RIVALS, Budget, BudgetSpent, Rival
from tables import TABLES, Table, load_table

from gafreeze_jax.intervals import Interval, difference, interval
from gafreeze_jax.listing import listed
from gafreeze_jax.report import summary
from gafreeze_jax.runs import results
from gafreeze_jax.runs.baselines import BASELINES, FURTHER, initial_genomes
from gafreeze_jax.runs.search_run import NUM_LEADERS
from gafreeze_jax.search import loop
from gafreeze_jax.search.genetic import make_ga
from gafreeze_jax.search.halving import Settings
from gafreeze_jax.search.history import Ledger
from gafreeze_jax.space import Space, as_genome

BUDGETS = (8, 16, 32, 64)
MOST = 96  # evaluations of rivals: as many as ours may spend
CALLS = 3  # for each of these, known genomes included, after which a rival counts as converged
POPULATION = 6
SETTLED = ("minilm-sst2", "resnet20-cifar10", "cnn-fashion_mnist")
RIVALS_NEED = ("optuna", "pygad")
SEEDS_OF_A_JOB = 10
OTHERS = RIVALS | BY_HAND
SAME_STEPS = "ours among masks"  # with as many training steps as ours took in a larger space


@dataclass(frozen=True)
class Options:
    """Replay search algorithms on tables of all genomes."""

    tables: Path = TABLES
    """Folder with .npz files, as freezebench.py makes them."""
    only: tuple[str, ...] = ()
    """Names of tables; default: all."""
    ablations: bool = True
    """Also replay ours without some of its parts."""
    seeds: int = 200
    """Replays of each algorithm on each table."""
    workers: int = 2
    """Processes at the same time."""
    out: Path | None = None
    """JSON file to write."""
    plot: Path | None = None
    """PNG file to write."""


class Variant(NamedTuple):
    """Which parts our search has.

    Attributes:
      start: what the first generation has, besides training everything at all rates.
    """

    halving: bool = True
    surrogate: bool = True
    start: str = "baselines"
    tuning: bool = True


OURS = {
    "ours": Variant(),
    "ours, no halving": Variant(halving=False),
    "ours, no surrogate": Variant(surrogate=False),
    "ours, prefixes alone": Variant(start="prefixes"),
    "ours, random start": Variant(start="random"),
    "ours, no tuning": Variant(tuning=False),
}


class Course(NamedTuple):
    """What N replays of an algorithm came to after each of T amounts of training: budgets of ours, evaluations of the others.

    Attributes:
      regrets: [N, T] in points.
      spent: [N, T] full evaluations' worth of training steps.
    """

    regrets: np.ndarray
    spent: np.ndarray

    def after(self, spent: np.ndarray) -> np.ndarray:
        """Regrets [N, B] where as much, or just more, was spent [N, B] in each replay; at the end, where it never was."""
        places = (self.spent[:, None] < spent[..., None] - 1e-6).sum(-1)
        return np.take_along_axis(self.regrets, np.minimum(places, self.regrets.shape[1] - 1), 1)

    @property
    def at_budgets(self) -> np.ndarray:
        """Regrets [N, B] with each budget."""
        if self.regrets.shape[1] == len(BUDGETS):
            return self.regrets
        return self.after(np.tile(np.array(BUDGETS, float), (len(self.regrets), 1)))


def spaces_of(table: Table) -> dict[str, Space]:
    """The spaces that a table can be searched in, by name."""
    names, levels, rates, head = table.space.names, table.space.levels, table.space.rates, table.space.head
    spaces = {"masks": Space(names, head=head)}
    if table.space.has_rate:
        spaces["masks x rate"] = Space(names, rates=rates, head=head)
    if len(levels) > 2:
        spaces["levels"] = Space(names, levels, head=head)
    if len(levels) > 2 and table.space.has_rate:
        spaces["levels x rate"] = table.space
    return spaces


# ---------------------------------------------------------------------------------------------------------------------
# Replays


class Trained(NamedTuple):
    """What a table says of a genome. It has no training losses; the search wants to know only whether they are finite."""

    genome: np.ndarray
    score: float
    loss: float
    train_loss: float = 0.0
    seconds: float = 0.0


class Replayed:
    """An evaluator that looks genomes of a space up."""

    def __init__(self, table: Table, space: Space):
        self.table, self.space = table, space

    def evaluate(self, genomes: Iterable[np.ndarray], seed: int, until: int) -> list[list[Trained]]:
        curves = self.table.validation[:, seed, self.table.stops.index(until)]
        rows = self.table.rows(self.space, self.space.stack(map(as_genome, genomes)))
        return [[Trained(genome, *map(float, curves[row])) for genome, row in zip(genomes, rows, strict=True)]]

    def resume(self, members: Sequence[Trained], seed: int, until: int) -> list[list[Trained]]:
        return self.evaluate([member.genome for member in members], seed, until)


SEEDED = (*BASELINES, *FURTHER)
make_cached_ga = functools.cache(make_ga)  # searches with the same one share compiled code


def first_genomes(space: Space, start: str) -> np.ndarray:
    """What is evaluated first, as in `runs.search_run`."""
    if start == "random":
        return space.stack([])
    return initial_genomes(space, [baseline for baseline in SEEDED if start == "baselines" and baseline.fits(space)])


def groups_of(space: Space, start: str) -> dict[str, np.ndarray]:
    """Sets of genomes of which the search names the fittest, as in `runs.search_run`."""
    chosen = {
        "baselines": {baseline.name: baseline.genomes for baseline in SEEDED if baseline.genomes and baseline.fits(space)},
        "prefixes": {"best prefix mask": lambda space: space.prefixes()[1:-1]},
        "random": {},
    }[start]
    groups = {name: space.at_rates(genomes(space)) for name, genomes in chosen.items()}
    return {name: rows for name, rows in groups.items() if len(rows) > 1}


def run_ours(
    table: Table, space: Space, seed: int, budget: int, variant: Variant, evaluator: Replayed | None = None
) -> tuple[int, float]:
    """The row of the genome that our search names, and the full evaluations that it took."""
    num_steps = table.stops[-1]
    ledger = Ledger(num_steps)
    search = loop.Search(
        space=space,
        ga=make_cached_ga(space, POPULATION),
        evaluator=evaluator or Replayed(table, space),
        ledger=ledger,
        settings=Settings(
            table.stops if variant.halving else (num_steps,),
            seed % table.num_seeds,
            screen=variant.surrogate,
            evaluations=budget,
        ),
        initial=first_genomes(space, variant.start),
        count_trainable=lambda genome: int(table.trainable[table.rows(space, np.array(genome))]),
        groups=groups_of(space, variant.start),
    )
    found = search.run(jax.random.key(seed))
    if space.has_rate and variant.tuning:
        found = search.tune(found, NUM_LEADERS)
    return int(table.rows(space, np.array(found.leaders[0]))), ledger.steps_trained / num_steps


def ask_rival(table: Table, space: Space, seed: int, rival: Rival) -> Budget:
    """What a rival has evaluated when it has converged, or spent its budget."""
    accuracies = table.validation[:, seed % table.num_seeds, -1, 0]
    budget = Budget(lambda genome: float(accuracies[table.rows(space, np.array(genome))]), MOST, CALLS)
    with contextlib.suppress(BudgetSpent):
        rival(seed, space, budget, MOST)
    return budget


def run_rival(table: Table, space: Space, seed: int, rival: Rival) -> list[tuple[int, float]]:
    """As `run_ours`, after each evaluation from the first to the last but `MOST`."""
    budget = ask_rival(table, space, seed, rival)
    rows = table.rows(space, space.stack(budget.genomes))
    nums = range(1, MOST + 1)
    return [(int(rows[int(np.argmax(budget.fitness[:num]))]), float(min(num, len(rows)))) for num in nums]


def replay(path: Path, space_name: str, algorithm: str, seeds: Iterable[int]) -> Course:
    table = load_table(path)
    spaces, quality = spaces_of(table), quality_of(table)
    space = spaces[space_name]

    def run(seed: int) -> list[tuple[int, float]]:
        if algorithm in OTHERS:
            return run_rival(table, space, seed, OTHERS[algorithm])
        ours = [run_ours(table, space, seed, budget, OURS.get(algorithm, Variant())) for budget in BUDGETS]
        if algorithm != SAME_STEPS:
            return ours
        return [run_ours(table, spaces["masks"], seed, round(spent), Variant()) for _, spent in ours]

    runs = np.array(list(map(run, seeds)))
    return Course(quality.max() - quality[runs[..., 0].astype(int)], runs[..., 1])


def algorithms(space_name: str, ablations: bool) -> list[str]:
    """What is replayed in a space."""
    ours = list(OURS) if ablations else ["ours"]
    without = {"masks": ["ours, no tuning"]}.get(space_name, [])
    return [*(name for name in ours if name not in without), *([SAME_STEPS] if space_name != "masks" else []), *OTHERS]


# ---------------------------------------------------------------------------------------------------------------------
# What they come to


def quality_of(table: Table) -> np.ndarray:
    """Test accuracy of each genome in points, mean over seeds: [N]."""
    return 100 * table.test[..., 0].mean(1)


def choose_by_validation(table: Table, space: Space, genomes: np.ndarray) -> np.ndarray:
    """Quality of the best of some genomes, by validation accuracy with each training seed, mean over ties: [S]."""
    rows, quality = table.rows(space, genomes), quality_of(table)
    scores = table.validation[rows, :, -1, 0]
    best = scores == scores.max(0)
    return (quality[rows][:, None] * best).sum(0) / best.sum(0)


def regret_of_all(table: Table, space: Space) -> float:
    """Mean regret of naming the highest validation accuracy of all genomes: what validation itself cannot tell."""
    return float(quality_of(table).max() - choose_by_validation(table, space, space.all_genomes()).mean())


def ahead_of_training_everything(table: Table, ours: Course) -> list[Interval]:
    """Points by which what ours names is better than training everything at its best rate in the table, by budget."""
    space = table.space
    tuned = choose_by_validation(table, space, space.at_rates([space.all_trained]))
    of_replays = tuned[np.arange(len(ours.regrets)) % table.num_seeds]
    return [difference(quality_of(table).max() - regrets, of_replays) for regrets in ours.regrets.T]


def minus(ours: Course, other: Course) -> list[Interval]:
    """Our regret minus another's after as many training steps, by budget."""
    others = other.regrets if other.regrets.shape == ours.regrets.shape else other.after(ours.spent)
    return [difference(*pair) for pair in zip(ours.regrets.T, others.T, strict=True)]


def relation(less: Interval) -> str:
    """What a difference in regret says, by its interval."""
    return "better" if less.high < 0 else "worse" if less.low > 0 else "equal within noise"


def told(differences: Sequence[Interval]) -> str:
    """With which budgets ours is what."""
    relations = list(map(relation, differences))
    budgets = {
        how: [str(budget) for budget, given in zip(BUDGETS, relations, strict=True) if given == how] for how in relations
    }
    return ", ".join(f"{how} at {' '.join(names)}" for how, names in budgets.items())


def verdict(differences: Mapping[str, Sequence[Interval]]) -> str:
    """Whether ours is never worse than any rival, beyond noise."""
    worse = {
        name: [f"{budget} ({points(value)})" for budget, value in zip(BUDGETS, of_rival, strict=True) if value.low > 0]
        for name, of_rival in differences.items()
    }
    lines = [f"{name} at {', '.join(where)}" for name, where in worse.items() if where]
    return f"MISSED:  worse than {'; '.join(lines)}" if lines else "reached: never worse than a rival beyond noise"


def points(value: Interval) -> str:
    return f"{value.mean:.2f} ±{value.high - value.mean:.2f}"


def role(name: str) -> str:
    return "options were settled on it" if name in SETTLED else "for confirmation"


def print_table(name: str, table: Table) -> None:
    quality = quality_of(table)
    best = table.space.text(table.space.all_genomes()[int(quality.argmax())])
    print(f"\n{name}: {len(quality):,} genomes of {table.num_seeds} seeds, best {best} with {quality.max():.2f}, {role(name)}")
    space = table.space
    everything = quality[table.rows(space, space.at_rates([space.all_trained]))]
    at_rates = ", ".join(f"{value:.2f} at {rate:g}" for rate, value in zip(space.rates, everything, strict=True))
    print(f"training everything: {at_rates}")


def print_space(name: str, table: Table, space: Space, courses: Mapping[str, Course]) -> None:
    ours = courses["ours"]
    print(f"\n{f'{name}: mean regret with a budget of':44}" + "".join(f"{budget:>14}" for budget in BUDGETS))
    rows = {algorithm: list(map(interval, course.at_budgets.T)) for algorithm, course in courses.items()}
    rows["named ahead of training everything, tuned"] = ahead_of_training_everything(table, ours)
    for row, values in rows.items():
        print(f"{row:44}" + "".join(f"{points(value):>14}" for value in values))
    print(f"{'ours took':44}" + "".join(f"{took:14.1f}" for took in ours.spent.mean(0)))
    print(f"naming the highest validation accuracy of all {space.size:,} genomes: {regret_of_all(table, space):.2f}")
    differences = differences_from(courses)
    for other, values in differences.items():
        print(f"{f'ours minus {other}':44}" + "".join(f"{points(value):>14}" for value in values) + f"  {told(values)}")
    print(verdict({name: values for name, values in differences.items() if name in OTHERS}), flush=True)


def differences_from(courses: Mapping[str, Course]) -> dict[str, list[Interval]]:
    """Our regret minus that of each rival, and of ours among masks, after as many training steps, by budget."""
    return {name: minus(courses["ours"], course) for name, course in courses.items() if name not in OURS}


def as_json(table: Table, space: Space, courses: Mapping[str, Course]) -> dict[str, Any]:
    def rounded(values: Iterable[float]) -> list[float]:
        return [round(float(value), 4) for value in values]

    return {
        "algorithms": {
            name: {"regret": [rounded(interval(regrets)) for regrets in course.at_budgets.T]}
            for name, course in courses.items()
        },
        "ours_took": rounded(courses["ours"].spent.mean(0)),
        "ours_minus": {name: list(map(rounded, values)) for name, values in differences_from(courses).items()},
        "ahead_of_training_everything": list(map(rounded, ahead_of_training_everything(table, courses["ours"]))),
        "all_genomes": round(regret_of_all(table, space), 4),
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
    "greedy selection": "#CC79A7",
}
MARKERS = dict(zip(COLOURS, "oxs^Dvp*", strict=True))


def draw(path: Path, tables: Mapping[str, Mapping[str, Mapping[str, Course]]]) -> None:
    """Regret against budget, among masks at several rates where there are, a panel for each table; the legend comes last."""
    import matplotlib.pyplot as plt

    plt.switch_backend("agg")
    num_columns = min(3, len(tables) + 1)
    num_rows = -(-(len(tables) + 1) // num_columns)
    figure, axes = plt.subplots(num_rows, num_columns, figsize=(3.4 * num_columns, 3 * num_rows), squeeze=False)
    figure.set_layout_engine("constrained", w_pad=0.12, h_pad=0.1)
    panels = axes.flat
    for name, spaces in tables.items():
        panel, courses = next(panels), spaces.get("masks x rate", spaces["masks"])
        for algorithm, colour in COLOURS.items():
            means, lows, highs = np.transpose([interval(regrets) for regrets in courses[algorithm].at_budgets.T])
            style = {"lw": 2.6, "zorder": 4} if algorithm == "ours" else {"lw": 1.2, "zorder": 3}
            style |= {"ls": "--", "zorder": 3.5} if algorithm == "random search" else {}
            panel.plot(BUDGETS, means, color=colour, marker=MARKERS[algorithm], ms=4.5, label=algorithm, **style)
            panel.fill_between(BUDGETS, lows, highs, color=colour, alpha=0.12, lw=0)
        panel.set_title(name, fontsize=11, loc="left", fontweight="bold")
        note = panel.text(0.99, 0.98, role(name), transform=panel.transAxes, ha="right", va="top", fontsize=9, color="#555555")
        note.set_bbox({"facecolor": "white", "alpha": 0.8, "edgecolor": "none", "pad": 1})
        note.set_zorder(6)
        panel.set_xscale("log", base=2)
        panel.set_xticks(BUDGETS, map(str, BUDGETS))
        in_view = COLOURS.keys() - {"greedy selection"}  # which begins far behind
        panel.set_ylim(0, 1.3 * max(courses[algorithm].at_budgets.mean(0).max() for algorithm in in_view))
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
    if unknown := [name for name in options.only if name not in paths]:
        problems.append(f"--only: {listed(unknown)} not in {options.tables}; it has {listed(paths)}")
    paths = {name: path for name, path in paths.items() if not options.only or name in options.only}
    problems += [
        f"{path}: {np.sum(~done):,} of {done.size:,} trainings are missing; freezebench.py goes on with them"
        for path in paths.values()
        if not (done := load_table(path).done).all()
    ]
    if problems:
        raise ValueError("; ".join(problems))
    return dict(sorted(paths.items(), key=lambda item: (*SETTLED, item[0]).index(item[0])))


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
        loaded = {name: load_table(path) for name, path in paths.items()}
        jobs = {
            (name, space): {
                algorithm: [pool.submit(replay, paths[name], space, algorithm, part) for part in parts]
                for algorithm in algorithms(space, options.ablations)
            }
            for name, table in loaded.items()
            for space in spaces_of(table)
        }
        for name, table in loaded.items():
            print_table(name, table)
            tables[name], entries[name] = {}, {"role": role(name), "spaces": {}}
            for space_name, space in spaces_of(table).items():
                courses = {
                    algorithm: Course(*map(np.concatenate, zip(*(job.result() for job in replays), strict=True)))
                    for algorithm, replays in jobs[name, space_name].items()
                }
                print_space(space_name, table, space, courses)
                tables[name][space_name] = courses
                entries[name]["spaces"][space_name] = as_json(table, space, courses)
    seconds = time.perf_counter() - start
    print(f"\n{seconds:.0f} s")
    if options.out is not None:
        facts = {"seeds": options.seeds, "workers": options.workers, "cpus": os.cpu_count(), "seconds": round(seconds)}
        results.write_json(options.out, facts | {"versions": versions, "budgets": BUDGETS, "tables": entries})
    if options.plot is not None:
        draw(options.plot, tables)


if __name__ == "__main__":
    main(tyro.cli(Options))
