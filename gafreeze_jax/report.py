"""What a person sees of a search: the lines and the progress bar while it runs, the table and the files afterwards."""

import contextlib
import dataclasses
import json
import math
import os
import platform
import sys
import time
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

import jax
import numpy as np
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from gafreeze_jax import verdict
from gafreeze_jax.ledger import Evaluation
from gafreeze_jax.search import Generation

PACKAGES = ("gafreeze_jax", "jax", "jaxlib", "flax", "optax", "numpy", "transformers", "tensorflow-datasets")


WIDTH = 110  # of the final table


class Row(NamedTuple):
    """A line of the final table: a mask, or another way to fine-tune, trained with S seeds.

    Attributes:
      name: such as "found".
      genome: as text.
      validation_accuracy, validation_loss: means over seeds.
      correct: [S, N] of each seed's model, the share of right answers in each of N rows of the test split.
      test_loss: mean over seeds and examples.
      trainable_parameters: at the end.
      flops: of a training run.
    """

    name: str
    genome: str
    validation_accuracy: float
    validation_loss: float
    correct: np.ndarray
    test_loss: float
    trainable_parameters: int
    flops: float


def frozen_names(names: Sequence[str], genome: str) -> list[str]:
    return [name for name, gene in zip(names, genome, strict=True) if gene == "1"]


def describe_mask(names: Sequence[str], genome: str) -> str:
    """A mask in words: "freeze embeddings, layer_0-layer_2; train layer_3"; runs of neighbours are drawn together."""
    if "0" not in genome:
        return "train the head only"
    if "1" not in genome:
        return "train everything"
    return f"freeze {_ranges(names, genome, '1')}; train {_ranges(names, genome, '0')}"


def _ranges(names: Sequence[str], genome: str, gene: str) -> str:
    parts, i = [], 0
    while i < len(genome):
        end = i
        while end < len(genome) and genome[end] == gene:
            end += 1
        run = names[i:end]
        if len(run) > 2:
            parts.append(f"{run[0]} to {run[-1]}")
        else:
            parts += run
        i = max(end, i + 1)
    return ", ".join(parts)


class Display:
    """Prints each generation and, on a terminal, a progress bar with the time left. A context manager.

    Args:
      num_steps: training steps that are to come, about.
      doing: what the bar says.
    """

    def __init__(self, num_steps: int, doing: str = "searching"):
        self._doing = doing
        self.console = Console(highlight=False, soft_wrap=True)
        self._start = time.perf_counter()
        self._trained_steps = 0
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.fields[speed]}"),
            TimeElapsedColumn(),
            TextColumn("time left"),
            TimeRemainingColumn(),
            console=self.console,
            transient=True,
            disable=not self.console.is_terminal,
        )
        self._task = self._progress.add_task("compiling", total=num_steps, speed="")

    def __enter__(self) -> "Display":
        self._progress.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._progress.stop()

    def line(self, text: str) -> None:
        """Prints a line above the progress bar."""
        self.console.print(text, markup=False)

    def steps(self, member_steps: int) -> None:
        """Counts training steps of members."""
        self._trained_steps += member_steps
        speed = self._trained_steps / (time.perf_counter() - self._start)
        self._progress.update(self._task, advance=member_steps, description=self._doing, speed=f"{speed:.1f} member-steps/s")

    def generation(self, generation: Generation) -> None:
        """Prints a generation's two lines."""
        best = generation.best
        self.console.print(f"=== Generation {generation.number} ===", markup=False)
        genome = ", ".join(best.genome)
        self.console.print(f"Fittest chromosome: [{genome}] | Fitness: {best.accuracy:.4f}", markup=False)


def perplexity(loss: float) -> float:
    """Of a language model: the exponential of its mean loss; infinite where that has no float."""
    return math.exp(loss) if loss < 700 else math.inf


def comparison(rows: Sequence[Row], *, language: bool = False) -> Table:
    """The table at the end, of means over seeds."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    titles = ["", "validation", "test", "95 % interval", *(["test perplexity"] if language else [])]
    for title in (*titles, "FLOPs", "trainable parameters"):
        table.add_column(title, justify="left" if not title else "right", no_wrap=True)
    everything = next(row for row in rows if row.name == "train all")
    for row in rows:
        accuracy = verdict.interval(row.correct)
        table.add_row(
            row.name,
            f"{row.validation_accuracy:.4f}",
            f"{accuracy.mean:.4f}",
            f"{max(0.0, accuracy.low):.4f} to {min(1.0, accuracy.high):.4f}" if math.isfinite(accuracy.low) else "one seed",
            *([f"{perplexity(row.test_loss):.2f}"] if language else []),
            f"{row.flops / everything.flops:.0%}",
            f"{row.trainable_parameters:,} ({row.trainable_parameters / max(1, everything.trainable_parameters):.0%})",
            style="bold" if row is rows[0] else None,
        )
    return table


def print_summary(
    names: Sequence[str],
    rows: Sequence[Row],
    judgement: verdict.Verdict,
    result: Mapping[str, Any],
    *,
    language: bool = False,
) -> None:
    """What was found, beside the baselines, and what that is worth."""
    console = Console(highlight=False, soft_wrap=True)
    console.width = max(console.width, WIDTH)
    found = rows[0]
    mask = describe_mask(names, found.genome) if found.trainable_parameters else "train nothing"
    console.print(f"Found mask: {mask}", style="bold", markup=False)
    console.print(comparison(rows, language=language))
    console.print(judgement.sentence, style="bold", markup=False)
    if front := result.get("front"):
        console.print(front_table(names, front["masks"]))
        console.print("In front.png and masks/, too", markup=False)
    if judgement.gap is not None:
        console.print(f"Validation minus test accuracy of the found mask: {100 * judgement.gap:+.1f} points", markup=False)
    console.print(f"{result['num_evaluations']} evaluations in {result['seconds']:.0f} s", markup=False)


def front_table(names: Sequence[str], front: Sequence[Mapping[str, Any]]) -> Table:
    """Masks that no other one beats in accuracy, training FLOPs and optimizer bytes at once."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for title in ("front", "validation", "FLOPs", "optimizer bytes", "trainable parameters"):
        table.add_column(title, justify="left" if title == "front" else "right")
    for one in front:
        counts = (f"{one[name]:,}" for name in ("optimizer_bytes", "trainable_parameters"))
        mask = describe_mask(names, one["genome"])
        table.add_row(mask, f"{one['validation_accuracy']:.4f}", f"{one['flops']:.0%}", *counts)
    return table


def plot_front(path: Path, masks: Sequence[Mapping[str, Any]], evaluated: Sequence[Mapping[str, Any]]) -> None:
    """Draws accuracy against training FLOPs: all masks that were evaluated, and, with optimizer bytes, those on the front."""
    from matplotlib.figure import Figure  # takes half a second

    figure = Figure(figsize=(7, 4.2), layout="constrained")
    axes = figure.subplots()
    column = lambda group, name: [one[name] for one in group]  # noqa: E731
    points, own = ((column(group, "flops"), column(group, "validation_accuracy")) for group in (evaluated, masks))
    axes.scatter(*points, color="0.7", s=18, label="evaluated")
    front = axes.scatter(*own, c=column(masks, "optimizer_bytes"), s=50, edgecolors="black", label="front")
    figure.colorbar(front, label="optimizer bytes")
    axes.set(xlabel="training FLOPs, as a share of training everything", ylabel="validation accuracy")
    axes.xaxis.set_major_formatter(lambda share, _: f"{share:.0%}")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, loc="lower right")
    figure.savefig(path, dpi=150)


def printable(text: str) -> str:
    r"""Text that may come from data, with what a terminal could take for commands as escapes.

    >>> print(printable("caf\u00e9 \x1b[2J"))
    café \x1b[2J
    """
    return "".join(one if one.isprintable() else repr(one)[1:-1] for one in text)


def fail(error: Exception) -> int:
    """Prints an error on one line of stderr; returns the exit code, 2."""
    print("error:", printable(" ".join(str(error).split())), file=sys.stderr)
    return 2


def make_result(
    options: Any,
    names: Sequence[str],
    rows: Sequence[Row],
    judgement: verdict.Verdict,
    evaluations: Sequence[Evaluation],
    seconds: float,
    *,
    language: bool = False,
    **facts: Any,
) -> dict[str, Any]:
    """The content of `result.json`.

    Args:
      options: a dataclass.
      names: of the genes.
      rows: what was found, and the baselines.
      facts: further entries.
    """
    found = rows[0]

    def entry(row: Row) -> dict[str, Any]:
        accuracy = verdict.interval(row.correct)
        losses = {"validation": row.validation_loss, "test": row.test_loss}
        return {
            "genome": [int(gene) for gene in row.genome],
            "frozen": frozen_names(names, row.genome),
            "validation_accuracy": row.validation_accuracy,
            "validation_loss": row.validation_loss,
            "test_accuracy": accuracy.mean,
            "test_accuracy_interval": [bound if math.isfinite(bound) else None for bound in accuracy[1:]],
            "test_accuracy_by_seed": row.correct.mean(1).tolist(),
            "test_loss": row.test_loss,
            **({f"{split}_perplexity": perplexity(loss) for split, loss in losses.items()} if language else {}),
            "trainable_parameters": row.trainable_parameters,
            "training_flops": row.flops,
        }

    return {
        "options": dataclasses.asdict(options),
        "versions": versions(),
        "device": device(),
        "cpus": os.cpu_count(),
        "stages": list(names),
        "best_genome": [int(gene) for gene in found.genome],
        "fitness": found.validation_accuracy,
        "verdict": verdict.as_json(judgement),
        "results": {row.name: entry(row) for row in rows},
        "num_evaluations": len(evaluations),
        "num_diverged": sum(evaluation.diverged for evaluation in evaluations),
        "seconds": round(seconds, 1),
        **facts,
    }


def device() -> str:
    return f"{jax.device_count()} x {jax.devices()[0].device_kind}"


def versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        with contextlib.suppress(PackageNotFoundError):
            found[package] = version(package)
    return found


def write_json(path: Path, content: Any) -> None:
    """Writes a JSON file, whole or not at all."""
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(content, indent=2, default=str) + "\n", encoding="utf-8")
    partial.replace(path)
