"""The output of a running search: lines, below them a live view on a terminal, and TensorBoard's event files."""

import os
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from types import TracebackType
from typing import Any

import jax
import numpy as np
from rich.console import Console, ConsoleOptions, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.style import Style
from rich.table import Table
from rich.text import Text

from gafreeze_jax.extras import needs
from gafreeze_jax.report.metric_format import ACCURACY, MetricFormat
from gafreeze_jax.search.history import Evaluation
from gafreeze_jax.search.loop import Generation
from gafreeze_jax.space import Genome, Space

LEVELS, ASCII_LEVELS = "▁▂▃▄▅▆▇█", "0123456789"  # from no member that freezes a layer to all of them
TRAINED, FROZEN = (120, 120, 120), (86, 180, 233)  # grey, and Okabe & Ito's sky blue
PRIOR = 0.1  # of a phase's steps, that its speed so far is outweighed by that of earlier phases
COMPILING, COMPILED = "/jax/core/compile/", "/jax/core/compile/backend_compile_duration"  # events of JAX


class Progress:
    """The progress of a run through its phases, in steps, and the time left.

    Attributes:
      doing: what this phase does.
      done: its steps so far.
      took: seconds of each earlier phase, since the process began.
    """

    def __init__(self):
        self.took: dict[str, float] = {}
        self.doing, self.done = "starting", 0.0
        self._training, self._worked = False, 0.0  # steps of this phase that were not skipped
        self._expected: dict[str, float] = {}  # steps of this phase and later ones
        self._before = 0.0, 0.0  # of earlier phases: steps that were not skipped, and seconds that they took
        self._begun = self._start = time.perf_counter()  # the first phase, and this one, later by its pauses
        self._paused = self._start  # when the last pause ended

    def expect(self, steps: Mapping[str, float]) -> None:
        """Estimates the steps of this phase and of later ones; estimates of other phases stay."""
        self._expected |= steps

    def begin(self, doing: str, *, training: bool = True) -> None:
        """Begins a phase.

        Args:
          training: whether its steps are training steps of members.
        """
        self.took[self.doing] = self.took.get(self.doing, 0.0) + self.seconds - sum(self.took.values())
        self._before = self._so_far()
        self.done = self._worked = 0.0
        self._expected.pop(self.doing, None)
        self.doing, self._training = doing, training
        self._start = self._paused = time.perf_counter()

    def step(self, num: float) -> None:
        """Counts steps of this phase."""
        self.done += num
        self._worked += num

    def skip(self, num: float) -> None:
        """Counts steps of this phase that are skipped, as their outcome is known."""
        self.done += num

    def pause(self, seconds: float) -> None:
        """Leaves the last seconds out of the speed, as when programs were compiled; pauses may overlap."""
        now = time.perf_counter()
        self._start += now - max(now - seconds, self._paused)
        self._paused = now

    @property
    def expected(self) -> float:
        """Steps of this phase; 0 if unknown."""
        return self._expected.get(self.doing, 0.0)

    @property
    def seconds(self) -> float:
        """Since the beginning."""
        return time.perf_counter() - self._begun

    @property
    def speed(self) -> float | None:
        """Training steps in a second of this phase, without pauses."""
        return self._worked / (time.perf_counter() - self._start) if self._training and self._worked else None

    @property
    def seconds_left(self) -> float | None:
        """By the speed of this phase, the more of it is done, and for later ones by that of all so far."""
        steps, seconds = self._so_far()
        if not steps:
            return None
        pace, expected = seconds / steps, self.expected  # which another thread may change
        later = pace * (sum(list(self._expected.values())) - expected)
        if not expected:
            return later
        prior = PRIOR * expected
        pace_of_phase = (time.perf_counter() - self._start + prior * pace) / (self._worked + prior)
        return pace_of_phase * max(0.0, expected - self.done) + later

    def _so_far(self) -> tuple[float, float]:
        """Steps that were not skipped, and seconds of the phases that had some."""
        steps, seconds = self._before
        return steps + self._worked, seconds + (time.perf_counter() - self._start if self._worked else 0.0)


class Display:
    """Shows the progress of a search. A context manager.

    The two lines of each generation are always printed. The live view shows the progress, and in a row for each generation
    the share of the population that freezes each gene.

    Args:
      space: of the genomes; needed where there are evaluations.
      metric: what evaluations are scored by.
      quiet: print nothing else.
      verbose: print details, too.
      tensorboard: folder for event files.
      console: where it is shown; default: stdout.

    Attributes:
      progress: of the run; callers report its steps.
    """

    def __init__(
        self,
        space: Space | None = None,
        *,
        metric: MetricFormat = ACCURACY,
        quiet: bool = False,
        verbose: bool = False,
        tensorboard: os.PathLike[str] | None = None,
        console: Console | None = None,
    ):
        self._space, self.metric, self._quiet, self._verbose = space or Space("-"), metric, quiet, verbose
        self.console = console or Console(highlight=False, soft_wrap=True, emoji=False)
        self._live = Live(
            get_renderable=lambda: self,
            console=self.console,
            transient=True,
            refresh_per_second=2,
            redirect_stderr=sys.stderr.isatty(),
        )
        self._generations: list[Generation] = []
        self._reached: dict[tuple[str, Genome, int], Evaluation] = {}  # by phase of the run, genome and seed
        self._new: set[tuple[str, Genome, int]] = set()  # those that were trained
        self._latest: tuple[str, int] | None = None  # phase and generation
        self._num_evaluations = 0
        self.progress = Progress()
        self._compiled: list[float] = []
        self._events: Any = None
        if tensorboard is not None:
            with needs("tensorboard"):
                from tensorboardX import SummaryWriter

            self._events = SummaryWriter(str(tensorboard), purge_step=0)  # a resumed run writes all of them again

    def __enter__(self) -> "Display":
        jax.monitoring.register_event_duration_secs_listener(self._on_event)
        if self.console.is_interactive and not self._quiet:
            self._live.start(refresh=True)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._live.stop()
        jax.monitoring.unregister_event_duration_listener(self._on_event)
        if self._events is not None:
            self._events.close()

    def line(self, text: str, *, detail: bool = False) -> None:
        """Prints a line, unless it is a detail that was not asked for."""
        if not self._quiet and (self._verbose or not detail):
            self.console.print(text, markup=False)

    def evaluation(self, phase: str, evaluation: Evaluation, new: bool) -> None:
        """Counts an evaluation; if it is not new, it was recalled or looked up."""
        genome, seed, steps = evaluation.genome, evaluation.seed, evaluation.steps
        key = phase, genome, seed
        if new:
            self._new.add(key)
        else:
            self.progress.skip(steps - (self._reached[key].steps if key in self._reached else 0))
        self._reached[key], self._latest = evaluation, (phase, evaluation.generation)
        self._num_evaluations += 1
        value = self.metric.shown(evaluation.score)
        losses = f"loss {evaluation.loss:.4f}, train loss {evaluation.train_loss:.4f}"
        how = f"{evaluation.seconds:.2f} s" if new else "known already"
        text = (
            f"{phase} {self._space.text(genome)}, seed {seed}, {steps} steps: {self.metric.name} {value:.4f}, {losses}, {how}"
        )
        self.line(text, detail=True)
        self._write(self._num_evaluations, {f"{phase}/{self.metric.key}": value, f"{phase}/seconds": evaluation.seconds})

    def generation(self, generation: Generation) -> None:
        """Prints a generation's two lines."""
        best = generation.best
        self._generations.append(generation)
        levels = ", ".join(map(str, best.genome[: self._space.num_genes]))
        fittest = f"Fittest chromosome: [{levels}] | Fitness: {self.metric.shown(best.score):.4f}"
        self.console.print(f"=== Generation {generation.number} ===\n{fittest}", markup=False)
        picked = ", picked by the surrogate" if generation.screened else ""
        programs = f"{len(self._compiled)} programs compiled or loaded so far, in {sum(self._compiled):.1f} s"
        self.line(
            f"{generation.num_new} new masks{picked}, {generation.num_full} of them trained to the end; mean of the population "
            f"{self.metric.shown(generation.mean):.4f}; {programs}",
            detail=True,
        )
        shares = {
            f"frozen/{name}": float(share) for name, share in zip(self._space.names, generation.frozen_share, strict=True)
        }
        fitness = {"fitness/best": self.metric.shown(best.score), "fitness/mean": self.metric.shown(generation.mean)}
        self._write(generation.number, fitness | shares)
        if self._events is not None:
            self._events.flush()

    def _write(self, step: int, scalars: Mapping[str, float]) -> None:
        if self._events is not None:
            for name, value in scalars.items():
                self._events.add_scalar(name, value, step)

    def _on_event(self, event: str, duration_secs: float, **kwargs: str | int) -> None:
        if event.startswith(COMPILING):
            self.progress.pause(duration_secs)
        if event == COMPILED:
            self._compiled.append(duration_secs)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[RenderableType]:
        """The live view."""
        levels = ASCII_LEVELS if options.ascii_only else LEVELS
        num_rows = console.height // 2 - 6  # lines above it need room, too
        yield Text()
        if self._generations and num_rows > 0:
            yield from heat_map(
                self._space.names, self._generations[-num_rows:], self.metric, width=options.max_width, levels=levels
            )
        for fields in (self._fitness_and_speed(), self._counts()):
            if fields:
                yield Text("   ".join(fields), no_wrap=True, overflow="ellipsis")
        line = Table.grid(expand=True, padding=(0, 2, 0, 0))
        line.add_column(no_wrap=True)
        line.add_column(ratio=1)
        line.add_column(no_wrap=True)
        progress = self.progress
        bar = ProgressBar(total=progress.expected or None, completed=min(progress.done, progress.expected))
        left = progress.seconds_left
        line.add_row(progress.doing, bar, clock(progress.seconds) + ("" if left is None else f", about {clock(left)} left"))
        yield line

    def _fitness_and_speed(self) -> list[str]:
        fields = []
        if self._generations:
            last = self._generations[-1]
            best, mean = self.metric.shown(last.best.score), self.metric.shown(last.mean)
            fields += [f"Generation {last.number}", f"best {best:.4f}", f"mean {mean:.4f}"]
        if (speed := self.progress.speed) is not None:
            fields.append(f"{speed:,.1f} member-steps/s")
        return fields

    def _counts(self) -> list[str]:
        reached = list(self._reached.items())
        in_full = max((evaluation.steps for _, evaluation in reached), default=0)
        num_stopped = sum(
            evaluation.steps < in_full and (phase, evaluation.generation) != self._latest for (phase, *_), evaluation in reached
        )
        num_reused = len(reached) - len(self._new)
        counts = f"Evaluations: {len(self._new):,} done, {num_reused:,} reused, {num_stopped:,} stopped early"
        return [*([counts] if reached else []), *memory_in_use()]


def heat_map(
    genes: Sequence[str], generations: Sequence[Generation], metric: MetricFormat = ACCURACY, *, width: int, levels: str
) -> Iterator[Text]:
    """A title, and a row for each generation: its number, best and mean fitness, and for each gene the share that freezes it.

    Where there are more genes than columns, neighbours share one, and their mean is shown.

    Args:
      width: of a row, at most.
      levels: characters for shares from 0 to 1.
    """
    margin = " gen   best   mean  "
    parts = np.array_split(np.arange(len(genes)), max(1, min(len(genes), width - len(margin))))
    cell = min(max(1, (width - len(margin)) // len(parts)), 1 + max(map(len, genes)))
    names, end = "", 0
    for i, part in enumerate(parts):
        name = genes[int(part[0])]
        if i * cell >= end and i * cell + len(name) <= width - len(margin):
            names = names.ljust(i * cell) + name
            end = len(names) + 1
    title = f"Share of the population that freezes each layer, {levels[0]} none to {levels[-1]} all"
    yield Text(title, style="dim", no_wrap=True, overflow="ellipsis")
    yield Text(margin + names, style="dim", no_wrap=True, overflow="crop")
    colours = np.linspace(TRAINED, FROZEN, len(levels)).round().astype(int)
    styles = [Style(color=f"rgb({red},{green},{blue})") for red, green, blue in colours]
    for generation in generations:
        best, mean = metric.shown(generation.best.score), metric.shown(generation.mean)
        row = Text(f"{generation.number:4} {best:.4f} {mean:6.4f}  ", no_wrap=True, overflow="crop")
        for part in parts:
            level = round(float(generation.frozen_share[part].mean()) * (len(levels) - 1))
            row.append((levels[level] * max(1, cell - 1)).ljust(cell), styles[level])
        yield row


def memory_in_use() -> list[str]:
    """What is in use of the first device's memory, in words; empty where the device does not say."""
    stats = jax.local_devices()[0].memory_stats() or {}
    if "bytes_in_use" not in stats:
        return []
    limit = f"/{stats['bytes_limit'] / 2**30:.1f}" if "bytes_limit" in stats else ""
    return [f"memory {stats['bytes_in_use'] / 2**30:.1f}{limit} GiB"]


def clock(seconds: float) -> str:
    """Hours, if there are any, minutes and seconds.

    >>> clock(83.4), clock(3725)
    ('1:23', '1:02:05')
    """
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
