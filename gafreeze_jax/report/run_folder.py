"""A run as read from its folder, finished or not: what was evaluated, and what follows from it."""

import itertools
import json
import os
from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from etils import epath

from gafreeze_jax.intervals import Interval, main_effects
from gafreeze_jax.report import folder_format, old_versions
from gafreeze_jax.report.metric_format import MetricFormat
from gafreeze_jax.report.predictions import (
    Confusions,
    Numbers,
    Prediction,
    TypeCounts,
    count_confusions,
    count_types,
    of_classes,
    of_numbers,
    read_rows,
)
from gafreeze_jax.search import nsga2
from gafreeze_jax.search.costs import StepFlops
from gafreeze_jax.search.halving import estimates
from gafreeze_jax.search.history import RANDOM, SEARCH, Evaluation, Journal
from gafreeze_jax.space import Genome, Space, as_genome


class RecordedGeneration(NamedTuple):
    """A generation, as its evaluations record it.

    Attributes:
      number: from 1.
      new: what was evaluated in it and did not diverge, each genome as far as it was trained.
      population: what is bred from next: the fittest genomes so far; with several objectives, the front so far.
      frozen_share: [G], share of the population that freezes each gene.
    """

    number: int
    new: list[Evaluation]
    population: list[Evaluation]
    frozen_share: np.ndarray


class Spent(NamedTuple):
    """What training took of the FLOPs of doing all of it in full, in the order in which that is reduced.

    Attributes:
      in_full: every mask to the end, nothing frozen, nothing kept.
      early_stopping, freezing, keeping: what each of them saved.
    """

    in_full: float
    early_stopping: float
    freezing: float
    keeping: float

    @property
    def spent(self) -> float:
        return self.in_full - self.early_stopping - self.freezing - self.keeping


class RunFolder:
    """The run in a folder.

    Attributes:
      path: of the folder.
      facts: what `run.json` and, once there is one, `result.json` say.
      metric: what the run maximizes, and how it is written.
      rows: the evaluations in `evaluations.csv`.

    Raises:
      ValueError: if the folder holds no run, or anything other than what the run has left there.
    """

    def __init__(self, path: str | os.PathLike[str]):
        self.path, folder = Path(path), epath.Path(path)
        if not (self.path / folder_format.RUN).is_file():
            raise ValueError(f"{path}: no run: expected {folder_format.RUN} in it; give a run's folder")
        if (self.path / folder_format.SUMS).is_file():
            folder_format.verify(folder)
        try:
            self.facts = folder_format.read_facts(folder)
            if (self.path / folder_format.RESULT).is_file():
                self.facts |= json.loads((self.path / folder_format.RESULT).read_text())
            self.facts = old_versions.complete(self.facts)
            self.metric = MetricFormat(**self.facts["metric"])
            self.space, self.options = Space.from_facts(self.facts), dict(self.facts["options"])
            self.seed = int(self.options["seed"])
        except (KeyError, TypeError, AttributeError, json.JSONDecodeError, RecursionError) as error:
            raise ValueError(f"{path}: cannot be read: {type(error).__name__}: {error}") from None
        self._journal = Journal(
            folder / folder_format.JOURNAL,
            self.space,
            metric=self.metric.key,
            higher_is_better=self.metric.higher_is_better,
            write=False,
        )
        self.rows = list(self._journal)

    @property
    def genes(self) -> Sequence[str]:
        """Names, in the order of the genome."""
        return self.space.names

    def phase(self, row: Evaluation) -> str:
        """The phase of the run, such as `SEARCH`, that made an evaluation."""
        return self._journal.phase(row.genome, row.seed, row.steps)

    @property
    def name(self) -> str:
        return self.path.resolve().name

    @property
    def finished(self) -> bool:
        return "results" in self.facts

    def test_value(self, name: str) -> float:
        """The metric of a finalist on the test split."""
        return self.facts["results"][name][f"test_{self.metric.key}"]

    def test_bounds(self, name: str) -> Sequence[float | None]:
        """The 95 % interval of `test_value`."""
        return self.facts["results"][name][f"test_{self.metric.key}_interval"]

    @property
    def has_head(self) -> bool:
        """Whether something trains even where all is frozen."""
        return self.space.head == "fresh" and all(row.trainable_parameters for row in self.rows)

    @property
    def in_pareto(self) -> bool:
        return self.options.get("objective") == "pareto"

    @cached_property
    def num_steps(self) -> int:
        """Of a full evaluation."""
        return self.facts["num_steps"]

    @cached_property
    def searched(self) -> dict[Genome, Evaluation]:
        """What the search evaluated, each genome as far as it was trained."""
        return {row.genome: row for row in furthest(row for row in self.rows if self.phase(row) == SEARCH)}

    @cached_property
    def full(self) -> list[Evaluation]:
        """Those that were trained to the end, the fittest first."""
        rows = [row for row in self.searched.values() if row.steps == self.num_steps and not row.diverged]
        return sorted(rows, key=lambda row: row.fitness, reverse=True)

    @cached_property
    def found(self) -> Genome | None:
        """The mask found; of an unfinished run, the fittest so far, if there is one."""
        if self.finished:
            return as_genome(self.facts["best_genome"])
        return self.full[0].genome if self.full else None

    @cached_property
    def baselines(self) -> dict[str, Evaluation]:
        """Masks that need no search, as the search's own seed has them, by name."""
        everything, *prefixes, nothing = self.space.prefixes()
        least = "head only" if self.has_head else "train nothing"
        masks = {
            "train all": [everything],
            least: [nothing],
            "best prefix mask": prefixes,
            "best suffix mask": self.space.suffixes()[1:-1],
        }
        groups = {name: set(map(as_genome, self.space.at_rates(genomes))) for name, genomes in masks.items()}
        best = {name: next((row for row in self.full if row.genome in group), None) for name, group in groups.items()}
        return {name: row for name, row in best.items() if row is not None}

    @cached_property
    def flops(self) -> StepFlops | None:
        """Of a training step, if the run has counted them."""
        counted = self.facts.get("step_flops")
        return None if counted is None else StepFlops(**counted)

    def cost(self, row: Evaluation) -> float:
        """Training FLOPs of a genome as a share of those of training everything; without them, trainable parameters."""
        if self.flops is not None:
            return self.flops(self.space.frozen(row.genome)) / self.flops.above[0]
        return row.trainable_parameters / max(1, *(row.trainable_parameters for row in self.rows))

    @property
    def cost_name(self) -> str:
        counted = "trainable parameters" if self.flops is None else "training FLOPs"
        return f"{counted}, as a share of those of training everything"

    @cached_property
    def front(self) -> list[Evaluation]:
        """Masks that no other mask beats in both the metric and cost, the best in the metric first."""
        return self._front(self.full)

    def _front(self, rows: Sequence[Evaluation]) -> list[Evaluation]:
        chosen = nsga2.front(np.array([(row.score, -self.cost(row)) for row in rows])) if rows else []
        return [rows[i] for i in chosen]

    @cached_property
    def generations(self) -> list[RecordedGeneration]:
        in_order = sorted(self.searched.values(), key=lambda row: row.generation)
        known: list[Evaluation] = []
        recorded = []
        for number, group in itertools.groupby(in_order, key=lambda row: row.generation):
            new = [row for row in group if not row.diverged]
            known = sorted([*known, *new], key=lambda row: (row.steps, *row.fitness), reverse=True)
            population = self._front(known) if self.in_pareto else known[: int(self.options["population"])]
            if population:
                shares = self.space.frozen([row.genome for row in population]).mean(0)
                recorded.append(RecordedGeneration(number, new, population, shares))
        return recorded

    @property
    def trace(self) -> tuple[list[float], list[float]]:
        """The course of the search: training steps done, in full evaluations, and the best score of a mask trained in full."""
        reached: dict[Genome, int] = {}
        done, best, steps = [], [], 0
        for row in self.rows:
            if self.phase(row) == SEARCH:
                steps += row.steps - reached.get(row.genome, 0)
                reached[row.genome] = row.steps
                if row.steps == self.num_steps and not row.diverged:
                    done.append(steps / self.num_steps)
                    best.append(max([row.score, *best[-1:]]))
        return done, best

    @cached_property
    def effects(self) -> list[Interval] | None:
        """[G] by how much freezing a gene changes the score, on average over the others (see `main_effects`).

        From the masks of the search and the random ones beside it; one that was stopped early counts as the search takes it.
        """
        rows = [row for row in self.rows if row.seed == self.seed and self.phase(row) in (SEARCH, RANDOM)]
        diverged = {row.genome for row in rows if row.diverged}
        rows = [row for row in rows if row.genome not in diverged]
        if not any(row.steps == self.num_steps for row in rows):
            return None
        rungs = {row.steps for row in rows}
        scores = {rung: {row.genome: row.score for row in rows if row.steps == rung} for rung in rungs}
        genomes, values, weights = estimates(scores)
        return main_effects(self.space.frozen(genomes), values, weights)

    @cached_property
    def tested(self) -> list[dict[str, str]]:
        """What the saved model predicts for the test examples, a row each; none if the run is not finished, or wrote none."""
        return read_rows(self.path / folder_format.PREDICTIONS) if self.finished else []

    @cached_property
    def predictions(self) -> list[Prediction]:
        """Of one of several classes."""
        return of_classes(self.tested)

    @cached_property
    def confusions(self) -> Confusions | None:
        return count_confusions(self.predictions, self.facts.get("label_names", ()))

    @cached_property
    def numbers(self) -> Numbers | None:
        """Predicted numbers beside the true ones."""
        return of_numbers(self.tested)

    @cached_property
    def types(self) -> list[TypeCounts]:
        """Entities of each type, or labels where an example may have several: how many are found."""
        return count_types(self.tested)

    @property
    def blocks(self) -> list[dict[str, Any]]:
        """What each block of a cut network costs: the fields of `models.cutting.explain.BlockCosts`."""
        return self.facts.get("blocks", [])

    @cached_property
    def spent(self) -> Spent | None:
        """FLOPs of all training in `evaluations.csv`, if they were counted; traced masks save none."""
        if self.flops is None:
            return None
        full = self.flops.from_scratch(np.zeros(len(self.genes), bool))
        traced = self.facts.get("plan", {}).get("final", {}).get("freezing") == "traced"
        in_full = early = freezing = keeping = 0.0
        for row in furthest(self.rows):
            genome = self.space.frozen(row.genome)
            in_full += self.num_steps * full
            early += (self.num_steps - row.steps) * full
            if not traced:
                freezing += row.steps * (full - self.flops.from_scratch(genome))
                keeping += row.steps * (self.flops.from_scratch(genome) - self.flops(genome))
        return Spent(in_full, early, freezing, keeping)


def furthest(rows: Iterable[Evaluation]) -> list[Evaluation]:
    """The longest evaluation of each genome with each seed."""
    return list({(row.genome, row.seed): row for row in sorted(rows, key=lambda row: row.steps)}.values())
