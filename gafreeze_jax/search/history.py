"""What has been evaluated: a `Journal` holds every evaluation of a run, a `Ledger` those that one search has asked for so far.

A search has no other state. An interrupted one is replayed with an empty ledger: what the journal holds is not trained again.
"""

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

from gafreeze_jax.space import Genome, Space, as_genome

if TYPE_CHECKING:
    from etils import epath

SEARCH, RANDOM, BASELINE, FINAL = "search", "random", "baseline", "final"  # phases of a run


class Evaluation(NamedTuple):
    """A genome, trained and scored.

    Attributes:
      genome: see `space.Space`.
      seed: of the head, the batches and dropout.
      steps: of training.
      generation: that asked for it, from 1.
      score: the metric on the validation split, higher is better.
      loss: on the validation split, mean over examples. If it is not finite, or the score is NaN, the run diverged.
      train_loss: mean over the training steps.
      trainable_parameters: number of parameters that the genome leaves trainable.
      seconds: of training, since the last score, and scoring; a share of what was done at the same time.
    """

    genome: Genome
    seed: int
    steps: int
    generation: int
    score: float
    loss: float
    train_loss: float
    trainable_parameters: int
    seconds: float

    @property
    def diverged(self) -> bool:
        return math.isnan(self.score) or not (math.isfinite(self.loss) and math.isfinite(self.train_loss))

    @property
    def fitness(self) -> tuple[float, float, float]:
        """The score; ties go to the lower loss, then to fewer trainable parameters. Higher is better."""
        if self.diverged:
            return (-math.inf, -math.inf, -math.inf)
        return (self.score, -self.loss, -float(self.trainable_parameters))


class Entry(NamedTuple):
    """An evaluation in the journal.

    Attributes:
      phase: of the run, such as `SEARCH`.
      evaluation: what was recorded.
      together: the genomes that were trained in the same call.
    """

    phase: str
    evaluation: Evaluation
    together: list[Genome]


class Journal:
    """Every evaluation of a run, in a CSV file as soon as it is made: what an interrupted run is replayed from.

    Evaluations of one call are written together, whole or not at all. The last column, `call`, is the CRC-32 of their rows
    (without it); damaged rows are skipped when the file is read.

    Args:
      path: of the file, local or such as gs://bucket/evaluations.csv; None = keep in memory only.
      space: of the genomes, for a file.
      metric: name of the scores' column.
      higher_is_better: whether the column holds scores, and not their negatives.
      write: whether to write to the file, and not only read it.

    Attributes:
      num_damaged: rows that were skipped.

    Raises:
      ValueError: if there is another kind of file, or one about other genes.
    """

    def __init__(
        self,
        path: "epath.Path | None" = None,
        space: Space | None = None,
        *,
        metric: str = "accuracy",
        higher_is_better: bool = True,
        write: bool = True,
    ):
        self._path = path if write else None
        self._entries: dict[tuple[Genome, int, int], Entry] = {}
        self._text, self._sign = _header(metric) + "\n", 1 if higher_is_better else -1
        self.num_damaged = 0
        self._space = space
        if path is not None and path.exists():
            self._read(path, self._space_of_file())

    def __len__(self) -> int:
        return len(self._entries)

    def __iter__(self) -> Iterator[Evaluation]:
        return (entry.evaluation for entry in self._entries.values())

    def write(self, phase: str, evaluations: Sequence[Evaluation]) -> None:
        """Records what was trained together.

        Args:
          phase: of the run, such as `SEARCH`.

        Raises:
          OSError: if it cannot be written.
        """
        self._add(phase, evaluations)
        if self._path is not None:
            space = self._space_of_file()
            self._text += _with_checksum([_row(phase, evaluation, space, self._sign) for evaluation in evaluations])
            write_whole(self._path, self._text)

    def _space_of_file(self) -> Space:
        if self._space is None:
            raise ValueError(f"{self._path}: expected the space of its genomes")
        return self._space

    def recall(self, genome: Genome, seed: int, steps: int) -> Evaluation | None:
        """The evaluation of a genome with a seed after this many steps, if there is one."""
        entry = self._entries.get((genome, seed, steps))
        return None if entry is None else entry.evaluation

    def together(self, genome: Genome, seed: int, steps: int) -> list[Genome]:
        """The genomes that were trained in one call to get an evaluation."""
        return self._entries[genome, seed, steps].together

    def before(self, genome: Genome, seed: int, steps: int) -> int:
        """The last earlier step after which a genome was scored; 0 if there is none."""
        earlier = [key[2] for key in self._entries if key[:2] == (genome, seed) and key[2] < steps]
        return max(earlier, default=0)

    def phase(self, genome: Genome, seed: int, steps: int) -> str:
        """The phase of the run that made an evaluation."""
        return self._entries[genome, seed, steps].phase

    def _add(self, phase: str, evaluations: Sequence[Evaluation]) -> None:
        together = [evaluation.genome for evaluation in evaluations]
        for evaluation in evaluations:
            key = (evaluation.genome, evaluation.seed, evaluation.steps)
            self._entries[key] = Entry(phase, evaluation, together)

    def _read(self, path: "epath.Path", space: Space) -> None:
        header, *lines = path.read_bytes().decode("utf-8", "replace").removesuffix("\n").split("\n")
        if header != self._text.rstrip():
            raise ValueError(f"{path}: expected the columns {self._text.rstrip()}; got {header[:200]!r}")
        split = [line.rpartition(",") for line in lines]
        for call, parts in itertools.groupby(split, key=operator.itemgetter(2)):
            texts = [text for text, _, _ in parts]
            if call != _checksum(texts):
                self.num_damaged += len(texts)
                continue
            try:
                phases, evaluations = zip(*(_parse(row, space, self._sign) for row in csv.reader(texts)), strict=True)
            except ValueError as error:
                raise ValueError(f"{path}: {error}") from None
            self._add(phases[0], evaluations)
            self._text += _with_checksum(texts)


def _header(metric: str) -> str:
    """The columns; scores have the metric's name."""
    names = (metric if name == "score" else name for name in Evaluation._fields)
    return ",".join(("phase", *names, "diverged", "call"))


def _row(phase: str, evaluation: Evaluation, space: Space, sign: int) -> str:
    """A line without its checksum; `sign` is the metric's direction."""
    genome, *values = evaluation._replace(score=sign * evaluation.score)
    buffer = io.StringIO()
    csv.writer(buffer, lineterminator="").writerow([phase, space.text(genome), *values, evaluation.diverged])
    return buffer.getvalue()


def _parse(row: Sequence[str], space: Space, sign: int) -> tuple[str, Evaluation]:
    """The reverse of `_row`."""
    phase, genome, *values, _ = row
    kinds = list(Evaluation.__annotations__.values())[1:]
    evaluation = Evaluation(space.parse(genome), *(kind(value) for kind, value in zip(kinds, values, strict=True)))
    return phase, evaluation._replace(score=sign * evaluation.score)


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
      num_steps: of a full evaluation; one that was stopped early has fewer.
      journal: where new evaluations are written.
      phase: of the run, for the journal.
      on_add: called with the phase, each evaluation as it is recorded, and whether it is new to the journal.
    """

    def __init__(
        self,
        num_steps: int,
        journal: Journal | None = None,
        *,
        phase: str = SEARCH,
        on_add: Callable[[str, Evaluation, bool], None] = lambda phase, evaluation, new: None,
    ):
        self.num_steps, self._phase, self._on_add = num_steps, phase, on_add
        self.journal = Journal() if journal is None else journal
        self._evaluations: list[Evaluation] = []
        self._furthest: dict[Genome, dict[int, Evaluation]] = {}  # by genome and seed

    def __len__(self) -> int:
        return len(self._evaluations)

    def __contains__(self, genome: Genome) -> bool:
        return genome in self._furthest

    def __iter__(self) -> Iterator[Evaluation]:
        return iter(self._evaluations)

    def add(self, *evaluations: Evaluation) -> None:
        """Records what was trained together.

        Raises:
          ValueError: if a genome has been evaluated before, with this seed and after so many steps or more.
          OSError: if it cannot be written.
        """
        for evaluation in evaluations:
            genome, seed, steps, *_ = evaluation
            by_seed = self._furthest.setdefault(genome, {})
            if seed in by_seed and by_seed[seed].steps >= steps:
                raise ValueError(f"genome {genome}, seed {seed} has been evaluated after {steps} steps already")
            by_seed[seed] = evaluation
        self._evaluations += evaluations
        new = [evaluation for evaluation in evaluations if self.journal.recall(*evaluation[:3]) is None]
        if new:
            self.journal.write(self._phase, new)
        for evaluation in evaluations:
            self._on_add(self._phase, evaluation, evaluation in new)

    def unseen(self, genomes: np.ndarray) -> np.ndarray:
        """Genomes of [P, K] that have not been evaluated at all, each once: [N, K]."""
        new = {genome: row for genome, row in zip(map(as_genome, genomes), genomes, strict=True) if genome not in self}
        return np.array(list(new.values()), np.int8).reshape(-1, np.shape(genomes)[1])

    def furthest(self, genome: Genome) -> dict[int, Evaluation]:
        """The longest evaluation of a genome with each seed."""
        return self._furthest[genome]

    def at(self, steps: int, seed: int) -> list[Evaluation]:
        """Evaluations with a seed after this many steps, the fittest first."""
        scored = [evaluation for evaluation in self if evaluation.steps == steps and evaluation.seed == seed]
        return sorted(scored, key=lambda evaluation: evaluation.fitness, reverse=True)

    def fitness(self, genome: Genome) -> tuple[float, ...]:
        """Of a genome's longest evaluations: their steps, and the means over seeds of what `Evaluation.fitness` has.

        If one diverged, all are -inf.
        """
        evaluations = self._furthest[genome].values()
        steps = max(evaluation.steps for evaluation in evaluations)
        of_seeds = [evaluation.fitness for evaluation in evaluations if evaluation.steps == steps]
        means = np.mean(of_seeds, axis=0).tolist()
        return (float(steps) if math.isfinite(means[0]) else -math.inf, *means)

    @property
    def steps_trained(self) -> int:
        """Training steps of all evaluations."""
        return sum(evaluation.steps for by_seed in self._furthest.values() for evaluation in by_seed.values())

    @property
    def seconds(self) -> float:
        """Of all evaluations."""
        return sum(evaluation.seconds for evaluation in self)

    @property
    def num_full(self) -> int:
        """Evaluations that were not stopped early."""
        return sum(evaluation.steps == self.num_steps for evaluation in self)
