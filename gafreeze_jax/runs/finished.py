"""What is done with a finished run: its model labels a file, and its mask is tried on other data."""

import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import jax
import numpy as np
from rich.console import Console
from rich.progress import track

from gafreeze_jax.engine.scoring import each_batch, outputs_only
from gafreeze_jax.metrics import cross_entropy, exponential_mean
from gafreeze_jax.report.folder_format import SUMS
from gafreeze_jax.report.run_folder import RunFolder
from gafreeze_jax.runs import experiment
from gafreeze_jax.runs.run_dir import with_options
from gafreeze_jax.tasks import bert, gpt2, resnet

TASKS: dict[str, ModuleType] = {"bert": bert, "gpt2": gpt2, "resnet": resnet}  # by the kind of run


def predict(path: Path, data: Path, **changes: Any) -> dict[str, Sequence[Any]]:
    """Has the model of a run label a file; progress and notes go to stderr.

    Args:
      path: of the run's folder.
      data: a file such as the run has learned from; it needs no labels.
      changes: options that are not those of the run; None or () is none.

    Returns:
      A table {title: [N]}: what tells the inputs apart, "label" and "probability". For a model of language, a line on the
      whole text, with "tokens" that were predicted and "perplexity".

    Raises:
      ValueError, OSError: if the run is not finished or of another kind, or the data cannot be read.
    """
    run, task, options = _open(path, changes)
    network, params, source, columns, notes = task.load_unlabelled(options, path / "model", data)
    print(*notes, sep="\n", end="\n" if notes else "", file=sys.stderr)
    label_names = run.facts.get("label_names")
    batches = each_batch(network, params, source, outputs_only if label_names else cross_entropy)
    console = Console(stderr=True)
    progress = track(
        batches,
        "labelling",
        total=len(source.batches.examples),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    )
    num = source.num_examples
    if label_names is None:
        losses = np.zeros(num)
        for rows, loss in progress:
            losses[rows] = loss
        return {**columns, "tokens": [num], "perplexity": [float(exponential_mean(losses))]}
    probabilities = np.zeros((num, len(label_names)))
    for rows, logits in progress:
        probabilities[rows] = jax.nn.softmax(logits)
    labels = [label_names[label] for label in probabilities.argmax(1)]
    return {**columns, "label": labels, "probability": probabilities.max(1)}


def apply(path: Path, *, out: str | Path | None = None, seeds: int | None = None, **changes: Any) -> None:
    """Fine-tunes with the mask that a run has found, beside training everything at three rates, and leaves a run's folder.

    Options are those of the run but for `changes`. Seeds are others than the run has used.

    Args:
      path: of the run's folder.
      out: folder for the results; by default a new one under runs/.
      seeds: how many; by default as many as the run had for its finalists.
      changes: as for `predict`.

    Raises:
      ValueError, OSError: if the run is not finished or of another kind; what else is wrong ends the program.
    """
    if seeds is not None and seeds < 1:
        raise ValueError(f"--seeds must be at least 1, got {seeds}")
    run, task, options = _open(path, changes)
    options = dataclasses.replace(
        options,
        mask=path / "mask.json",
        out=out,
        seed=options.seed + options.finalist_seeds,
        finalist_seeds=options.finalist_seeds if seeds is None else seeds,
    )
    experiment.main(run.facts["kind"], task.prepare, options, go_on="the same command with --out")


def _open(path: Path, changes: dict[str, Any]) -> tuple[RunFolder, ModuleType, Any]:
    """A finished run, what knows its kind of model and data, and its options with changes."""
    run = RunFolder(path)
    script = f"run_{run.facts['kind']}.py"
    if not (path / SUMS).is_file():
        raise ValueError(f"{path}: the run is not finished; to go on with it: python experiments/{script} --resume {path}")
    task = TASKS.get(run.facts["kind"])
    if task is None:
        raise ValueError(
            f"{path}: is a run of {script}, and only that script knows its network and data. To train with the mask, give the "
            f"script --mask {path / 'mask.json'}; the parameters are in {path / 'model/model.safetensors'}"
        )
    options = with_options(task.Options(), run.options)
    given = {name: value for name, value in changes.items() if value not in (None, ())}
    if others := [name for name in given if not hasattr(options, name)]:
        raise ValueError(f"{path}: runs of {script} have no --{others[0].replace('_', '-')}")
    return run, task, dataclasses.replace(options, **given)
