"""Every evaluation once: what was found out about each genome, kept in a CSV file as it happens."""

import csv
import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np


class Evaluation(NamedTuple):
    """One genome, trained and scored.

    Attributes:
      genome: its genes as text, "1" = frozen, such as "1100".
      seed: of the head, the batches and dropout.
      steps: that it has been trained.
      generation: the one that asked for it, from 1.
      accuracy: on the validation set.
      loss: on the validation set, mean over examples; not finite if the run diverged.
      train_loss: mean over the training steps.
      trainable_parameters: how many the genome leaves trainable.
      seconds: of training, since it was scored last, and scoring.
    """

    genome: str
    seed: int
    steps: int
    generation: int
    accuracy: float
    loss: float
    train_loss: float
    trainable_parameters: int
    seconds: float

    @property
    def diverged(self) -> bool:
        return not (math.isfinite(self.loss) and math.isfinite(self.train_loss))

    @property
    def fitness(self) -> tuple[float, float, float]:
        """Accuracy; ties go to the lower loss, then to fewer trainable parameters. Higher is better."""
        if self.diverged:
            return (-math.inf, -math.inf, -math.inf)
        return (self.accuracy, -self.loss, -float(self.trainable_parameters))


def genome_text(genome: np.ndarray) -> str:
    return "".join("1" if gene else "0" for gene in genome)


def genome_array(text: str) -> np.ndarray:
    """[G] bool."""
    return np.array([gene == "1" for gene in text])


class Ledger:
    """The evaluations of a search, in the order in which they were made.

    Args:
      num_steps: of a full evaluation; one that was stopped earlier has fewer.
      path: a CSV file to write, a row per evaluation as soon as it is there; None = keep in memory only.
    """

    COLUMNS = ("evaluation", *Evaluation._fields, "diverged")

    def __init__(self, num_steps: int, path: str | os.PathLike[str] | None = None):
        self.num_steps = num_steps
        self._path = None if path is None else Path(path)
        self._evaluations: dict[tuple[str, int, int], Evaluation] = {}
        self._furthest: dict[str, dict[int, Evaluation]] = {}  # by genome and seed
        if self._path is not None:
            with open(self._path, "x", encoding="utf-8", newline="") as file:
                csv.writer(file).writerow(self.COLUMNS)

    def __len__(self) -> int:
        return len(self._evaluations)

    def __contains__(self, genome: np.ndarray) -> bool:
        return genome_text(genome) in self._furthest

    def __iter__(self) -> Iterator[Evaluation]:
        return iter(self._evaluations.values())

    def add(self, evaluation: Evaluation) -> None:
        """Records an evaluation.

        Raises:
          ValueError: if the genome has been evaluated before, with this seed and after so many steps or more.
        """
        key = (evaluation.genome, evaluation.seed, evaluation.steps)
        by_seed = self._furthest.setdefault(evaluation.genome, {})
        if evaluation.seed in by_seed and by_seed[evaluation.seed].steps >= evaluation.steps:
            raise ValueError("genome {}, seed {} has been evaluated after {} steps already".format(*key))
        self._evaluations[key] = by_seed[evaluation.seed] = evaluation
        if self._path is not None:
            row = {**evaluation._asdict(), "evaluation": len(self), "diverged": evaluation.diverged}
            with open(self._path, "a", encoding="utf-8", newline="") as file:
                csv.DictWriter(file, self.COLUMNS).writerow(row)

    def unseen(self, genomes: np.ndarray) -> np.ndarray:
        """Those of some genomes [P, G] that have not been evaluated at all, each once: [N, G]."""
        new = {genome_text(genome): genome for genome in genomes if genome not in self}
        return np.array(list(new.values()), bool).reshape(-1, genomes.shape[1])

    def recall(self, genome: str, seed: int, steps: int) -> Evaluation | None:
        """The evaluation of a genome with a seed after so many steps, if there is one."""
        return self._evaluations.get((genome, seed, steps))

    def furthest(self, genome: str) -> dict[int, Evaluation]:
        """The longest evaluation of a genome with each seed."""
        return self._furthest[genome]

    def at(self, steps: int, seed: int) -> list[Evaluation]:
        """Evaluations with a seed after so many steps, the fittest first."""
        own = [one for one in self if one.steps == steps and one.seed == seed]
        return sorted(own, key=lambda one: one.fitness, reverse=True)

    def fitness(self, genome: str) -> tuple[float, ...]:
        """Of a genome's longest evaluations: their steps, and the means over seeds of what `Evaluation.fitness` has.

        If one diverged, all are -inf.
        """
        steps = max(one.steps for one in self._furthest[genome].values())
        of_seeds = [one.fitness for one in self._furthest[genome].values() if one.steps == steps]
        means = np.mean(of_seeds, axis=0).tolist()
        return (float(steps) if math.isfinite(means[0]) else -math.inf, *means)

    @property
    def steps_trained(self) -> int:
        """Training steps of all evaluations."""
        return sum(one.steps for by_seed in self._furthest.values() for one in by_seed.values())

    @property
    def num_full(self) -> int:
        """Evaluations that were not stopped early."""
        return sum(one.steps == self.num_steps for one in self)
