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
      generation: the one that asked for it first, from 1.
      accuracy: on the validation set.
      loss: on the validation set, mean over examples; not finite if the run diverged.
      train_loss: mean over the training steps.
      trainable_parameters: how many the genome leaves trainable.
      seconds: of training and scoring.
    """

    genome: str
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


class Ledger:
    """The evaluations of a search, in the order in which they were made.

    Args:
      path: a CSV file to write, a row per evaluation as soon as it is there; None = keep in memory only.
    """

    COLUMNS = ("evaluation", *Evaluation._fields, "diverged")

    def __init__(self, path: str | os.PathLike[str] | None = None):
        self._path = None if path is None else Path(path)
        self._evaluations: dict[str, Evaluation] = {}
        if self._path is not None:
            with open(self._path, "x", encoding="utf-8", newline="") as file:
                csv.writer(file).writerow(self.COLUMNS)

    def __len__(self) -> int:
        return len(self._evaluations)

    def __contains__(self, genome: np.ndarray) -> bool:
        return genome_text(genome) in self._evaluations

    def __getitem__(self, genome: np.ndarray) -> Evaluation:
        return self._evaluations[genome_text(genome)]

    def __iter__(self) -> Iterator[Evaluation]:
        return iter(self._evaluations.values())

    def add(self, evaluation: Evaluation) -> None:
        """Records an evaluation.

        Raises:
          ValueError: if the genome has been evaluated before.
        """
        if evaluation.genome in self._evaluations:
            raise ValueError(f"genome {evaluation.genome} has been evaluated already")
        self._evaluations[evaluation.genome] = evaluation
        if self._path is not None:
            row = {**evaluation._asdict(), "evaluation": len(self), "diverged": evaluation.diverged}
            with open(self._path, "a", encoding="utf-8", newline="") as file:
                csv.DictWriter(file, self.COLUMNS).writerow(row)

    def unseen(self, genomes: np.ndarray) -> np.ndarray:
        """Those of some genomes [P, G] that have not been evaluated, each once: [N, G]."""
        new = {genome_text(genome): genome for genome in genomes if genome not in self}
        return np.array(list(new.values()), bool).reshape(-1, genomes.shape[1])
