"""What a person sees of a search afterwards: the table and the files."""

import contextlib
import dataclasses
import json
import math
import os
import platform
import sys
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from rich.console import Console
from rich.table import Table

from gafreeze_jax.runs import verdict
from gafreeze_jax.runs.finalists import LOWER_RATES
from gafreeze_jax.search.history import Evaluation, write_whole

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


def perplexity(loss: float) -> float:
    """Of a language model: the exponential of its mean loss; infinite where that has no float."""
    return math.exp(loss) if loss < 700 else math.inf


def comparison(result: Mapping[str, Any]) -> Table:
    """The table at the end, of means over seeds, from the content of `result.json`."""
    rows = result["results"]
    language = any("test_perplexity" in row for row in rows.values())
    table = Table(box=None, pad_edge=False, header_style="bold")
    titles = ["", "validation", "test", "95 % interval", *(["test perplexity"] if language else [])]
    for title in (*titles, "FLOPs", "trainable parameters"):
        table.add_column(title, justify="left" if not title else "right", no_wrap=True)
    everything = rows["train all"]
    for name, row in rows.items():
        low, high = row["test_accuracy_interval"]
        table.add_row(
            name,
            f"{row['validation_accuracy']:.4f}",
            f"{row['test_accuracy']:.4f}",
            "one seed" if low is None else f"{max(0.0, low):.4f} to {min(1.0, high):.4f}",
            *([f"{row['test_perplexity']:.2f}"] if language else []),
            f"{row['training_flops'] / everything['training_flops']:.0%}",
            f"{row['trainable_parameters']:,} ({row['trainable_parameters'] / max(1, everything['trainable_parameters']):.0%})",
            style="bold" if name == "found" else None,
        )
    return table


def print_summary(result: Mapping[str, Any], out: os.PathLike[str], *, quiet: bool = False) -> None:
    """What was found, beside the baselines, what that is worth, and where it is.

    Args:
      result: the content of `result.json`.
      out: the run's folder.
      quiet: print what that is worth and where it is only.
    """
    if quiet:
        print(result["verdict"]["sentence"], os.fspath(out), sep="\n")
        return
    console = Console(highlight=False, soft_wrap=True)
    console.width = max(console.width, WIDTH)
    console.print(f"Found mask: {describe_found(result)}", style="bold", markup=False)
    console.print(comparison(result))
    console.print(result["verdict"]["sentence"], style="bold", markup=False)
    if (advice := advise(result)) is not None:
        console.print(advice, markup=False)
    if front := result.get("front"):
        console.print(front_table(result["stages"], front["masks"]))
        console.print("In masks/, too", markup=False)
    if (gap := result["verdict"]["gap"]) is not None:
        console.print(f"Validation minus test accuracy of the found mask: {100 * gap:+.1f} points", markup=False)
    console.print(
        f"{result['num_evaluations']} evaluations in {result['seconds']:.0f} s. In {os.fspath(out)}: report.html, model/, "
        "mask.json, evaluations.csv, result.json, plots/",
        markup=False,
    )


def advise(result: Mapping[str, Any]) -> str | None:
    """What to try next, if training everything at a lower learning rate is ahead of all other rows on the validation split."""
    results = result["results"]
    best = max(results, key=lambda name: (results[name]["validation_accuracy"], -results[name]["validation_loss"]))
    if best not in LOWER_RATES:
        return None
    rate = LOWER_RATES[best] * result["options"]["learning_rate"]
    return f"On validation, training everything at a lower learning rate is best: try again with --learning-rate {rate:g}"


def describe_found(result: Mapping[str, Any]) -> str:
    """The found mask in words."""
    if not result["results"]["found"]["trainable_parameters"]:
        return "train nothing"
    return describe_mask(result["stages"], "".join(map(str, result["best_genome"])))


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
    write_whole(path, json.dumps(content, indent=2, default=str) + "\n")
