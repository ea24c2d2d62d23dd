"""Every evaluation once: what was found out about each genome, kept in a CSV file as it happens."""

import csv
import io
import itertools
import math
import operator
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from etils import epath

SEARCH, RANDOM, FINAL = "search", "random", "final"  # phases of a run


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
      seconds: of training, since it was scored last, and scoring; of what was done at the same time, its share.
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


class Journal:
    """All evaluations of a run, in a CSV file as soon as they are there: what an interrupted run goes on from.

    What was trained together is written together, whole or not at all. The last column, `call`, is the CRC-32 of those rows
    (without it); rows that are damaged are left out when the file is read.

    Args:
      path: of the file, local or such as gs://bucket/evaluations.csv, which may be there already; None = keep in memory only.
      write: whether to write to it, and not only read.

    Raises:
      ValueError: if there is another kind of file.
    """

    COLUMNS = ("phase", *Evaluation._fields, "diverged", "call")

    def __init__(self, path: "epath.Path | None" = None, *, write: bool = True):
        self._path = path if write else None
        self._evaluations: dict[tuple[str, int, int], Evaluation] = {}
        self._together: dict[tuple[str, int, int], list[str]] = {}
        self._phases: dict[tuple[str, int, int], str] = {}
        self._text = ",".join(self.COLUMNS) + "\n"
        self.num_damaged = 0
        if path is not None and path.exists():
            self._read(path)

    def __len__(self) -> int:
        return len(self._evaluations)

    def __iter__(self) -> Iterator[Evaluation]:
        return iter(self._evaluations.values())

    def write(self, phase: str, evaluations: Sequence[Evaluation]) -> None:
        """Records what was trained together.

        Args:
          phase: of the run, such as `SEARCH`.

        Raises:
          OSError: if it cannot be written.
        """
        self._add(phase, evaluations)
        self._text += _with_checksum([_row(phase, *one, one.diverged) for one in evaluations])
        if self._path is not None:
            write_whole(self._path, self._text)

    def recall(self, genome: str, seed: int, steps: int) -> Evaluation | None:
        """The evaluation of a genome with a seed after so many steps, if there is one."""
        return self._evaluations.get((genome, seed, steps))

    def together(self, genome: str, seed: int, steps: int) -> list[str]:
        """The genomes that were trained in one call to get an evaluation."""
        return self._together[genome, seed, steps]

    def before(self, genome: str, seed: int, steps: int) -> int:
        """After how many steps a genome was scored before; 0 = it was not."""
        own = (key for key in self._evaluations if key[:2] == (genome, seed))
        return max((earlier for *_, earlier in own if earlier < steps), default=0)

    def phase(self, genome: str, seed: int, steps: int) -> str:
        """Of the run, in which an evaluation was made."""
        return self._phases[genome, seed, steps]

    def _add(self, phase: str, evaluations: Sequence[Evaluation]) -> None:
        genomes = [one.genome for one in evaluations]
        for one in evaluations:
            key = (one.genome, one.seed, one.steps)
            self._evaluations[key], self._together[key], self._phases[key] = one, genomes, phase

    def _read(self, path: "epath.Path") -> None:
        header, *lines = path.read_bytes().decode("utf-8", "replace").removesuffix("\n").split("\n")
        if header != self._text.rstrip():
            raise ValueError(f"{path}: expected the columns {self._text.rstrip()}; got {header[:200]!r}")
        split = [line.rpartition(",") for line in lines]
        for call, parts in itertools.groupby(split, key=operator.itemgetter(2)):
            texts = [text for text, _, _ in parts]
            if call != _checksum(texts):
                self.num_damaged += len(texts)
                continue
            parsed = [dict(zip(self.COLUMNS, row, strict=False)) for row in csv.reader(texts)]
            kinds = Evaluation.__annotations__
            self._add(
                parsed[0]["phase"], [Evaluation(*(kinds[name](row[name]) for name in Evaluation._fields)) for row in parsed]
            )
            self._text += _with_checksum(texts)


def _row(*values: object) -> str:
    buffer = io.StringIO()
    csv.writer(buffer, lineterminator="").writerow(values)
    return buffer.getvalue()


def _checksum(rows: Sequence[str]) -> str:
    return f"{zlib.crc32(chr(10).join(rows).encode()):08x}"


def _with_checksum(rows: Sequence[str]) -> str:
    return "".join(f"{row},{_checksum(rows)}\n" for row in rows)


def write_whole(path: "epath.Path | Path", text: str) -> None:
    """Writes a file, whole or not at all."""
    partial = path.parent / f".{path.name}.partial"
    partial.write_text(text, encoding="utf-8")
    partial.replace(path)


class Ledger:
    """The evaluations of a search, in the order in which they were made.

    Args:
      num_steps: of a full evaluation; one that was stopped earlier has fewer.
      journal: where those that are not there are written, too.
      phase: what the journal says of them.
      on_add: called with the phase, each evaluation as it is recorded, and whether it is new to the journal.
    """

    def __init__(
        self,
        num_steps: int,
        journal: Journal | None = None,
        phase: str = SEARCH,
        on_add: Callable[[str, Evaluation, bool], None] = lambda phase, evaluation, new: None,
    ):
        self.num_steps, self._phase, self._on_add = num_steps, phase, on_add
        self.journal = Journal() if journal is None else journal
        self._evaluations: dict[tuple[str, int, int], Evaluation] = {}
        self._furthest: dict[str, dict[int, Evaluation]] = {}  # by genome and seed

    def __len__(self) -> int:
        return len(self._evaluations)

    def __contains__(self, genome: np.ndarray) -> bool:
        return genome_text(genome) in self._furthest

    def __iter__(self) -> Iterator[Evaluation]:
        return iter(self._evaluations.values())

    def add(self, *evaluations: Evaluation) -> None:
        """Records what was trained together.

        Raises:
          ValueError: if a genome has been evaluated before, with this seed and after so many steps or more.
          OSError: if it cannot be written.
        """
        for one in evaluations:
            by_seed = self._furthest.setdefault(one.genome, {})
            if one.seed in by_seed and by_seed[one.seed].steps >= one.steps:
                raise ValueError(f"genome {one.genome}, seed {one.seed} has been evaluated after {one.steps} steps already")
            self._evaluations[one.genome, one.seed, one.steps] = by_seed[one.seed] = one
        if new := [one for one in evaluations if self.journal.recall(one.genome, one.seed, one.steps) is None]:
            self.journal.write(self._phase, new)
        for one in evaluations:
            self._on_add(self._phase, one, one in new)

    def unseen(self, genomes: np.ndarray) -> np.ndarray:
        """Those of some genomes [P, G] that have not been evaluated at all, each once: [N, G]."""
        new = {genome_text(genome): genome for genome in genomes if genome not in self}
        return np.array(list(new.values()), bool).reshape(-1, genomes.shape[1])

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
    def seconds(self) -> float:
        """That all evaluations took."""
        return sum(one.seconds for one in self)

    @property
    def num_full(self) -> int:
        """Evaluations that were not stopped early."""
        return sum(one.steps == self.num_steps for one in self)
