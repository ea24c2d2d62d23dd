"""What is done with a finished run: its model labels a file, and its mask is tried on other data."""

import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from gafreeze_jax.engine.scoring import each_batch
from gafreeze_jax.extras import needs
from gafreeze_jax.report.folder_format import FUNCTION, SUMS, made_by
from gafreeze_jax.report.run_folder import RunFolder
from gafreeze_jax.report.summary import printable
from gafreeze_jax.runs.fingerprint import fingerprint_of_model
from gafreeze_jax.runs.main import main
from gafreeze_jax.runs.predictions import beside, in_order
from gafreeze_jax.runs.run_dir import with_options
from gafreeze_jax.tasks import images, language_model, text
from gafreeze_jax.tasks.base import Setup

with needs("report"):
    from rich.console import Console
    from rich.progress import track

HEADS = {"fresh": {"head": "fresh"}, "kept": {"head": "keep"}}  # options that give the head that a run had
TASKS: dict[str, ModuleType] = {"bert": text, "gpt2": language_model, "resnet": images}  # by the kind of run


def predict(path: Path, data: Path, *, all_probabilities: bool = False, **changes: Any) -> dict[str, Sequence[Any]]:
    """Labels a file by the model of a run; progress and notes go to stderr.

    Args:
      path: of the run's folder.
      data: a file such as the run has learned from; it needs no labels.
      all_probabilities: also give the probability of each class.
      changes: options that are not those of the run; None, False or () changes nothing.

    Returns:
      A table {title: [N]}: what tells the inputs apart, and what the task writes, such as "label" and "probability". For a
      language model, a line on the whole text, with "tokens" that were predicted and "perplexity".

    Raises:
      ValueError, OSError: if the run is not finished or of another kind, or the data cannot be read.
    """
    run, module, options = _open(path, changes)
    if not getattr(options, "text_columns", True):
        options = dataclasses.replace(options, text_columns=tuple(run.facts.get("text_columns", ())))
    learned = run.facts.get("learned", {})
    labelled = module.load_unlabelled(options, path / "model", data, run.facts.get("label_names", ()), **learned)
    task = labelled.task
    if all_probabilities and task.probabilities is None:
        raise ValueError(f"{path}: --all-probabilities is for labels of whole inputs, which this run has not learned")
    for note in labelled.notes:
        print(printable(note), file=sys.stderr)
    source, console = labelled.source, Console(stderr=True)
    batches = track(
        each_batch(labelled.network, labelled.params, source, task.predict),
        "labelling",
        total=len(source.batches.examples),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    )
    predicted = in_order(batches)
    more = task.probabilities(predicted) if all_probabilities and task.probabilities else {}
    return beside(labelled.columns, {**task.write(predicted), **more})


def apply(path: Path, *, out: str | Path | None = None, seeds: int | None = None, **changes: Any) -> None:
    """Fine-tunes with the mask that a run has found, beside training everything at three rates, and leaves a run's folder.

    Options are those of the run but for `changes`; the head is fresh or kept as there, whatever the classes. Seeds are others
    than the run has used.

    Args:
      path: of the run's folder.
      out: folder for the results; by default a new one under runs/.
      seeds: how many; by default as many as the run had for its finalists.
      changes: as for `predict`.

    Raises:
      ValueError, OSError: if the run is not finished or of another kind; any other error, such as a model that has changed
        since the run, ends the program.
    """
    if seeds is not None and seeds < 1:
        raise ValueError(f"--seeds must be at least 1, got {seeds}")
    run, module, options = _open(path, changes)
    options = dataclasses.replace(
        options,
        **HEADS.get(run.space.head, {}),
        mask=path / "mask.json",
        out=out,
        seed=options.seed + options.finalist_seeds,
        finalist_seeds=options.finalist_seeds if seeds is None else seeds,
    )
    expected = None if changes.get("model") else run.facts.get("fingerprints", {}).get("model")

    def prepare(given: Any) -> Setup:
        setup = module.prepare(given)
        if expected not in (None, fingerprint_of_model(setup)):
            raise ValueError(
                f"{path}: the model {given.model} has changed since this run was made; to train it all the same, give it as "
                "--model"
            )
        return setup

    main(run.facts["kind"], prepare, options, resume_by="the same command with --out")


def _open(path: Path, changes: dict[str, Any]) -> tuple[RunFolder, ModuleType, Any]:
    """A finished run, the module of its kind of task, and its options with changes."""
    run = RunFolder(path)
    kind = run.facts["kind"]
    maker, is_script = made_by(kind), kind != FUNCTION
    if not (path / SUMS).is_file():
        again = f"python experiments/{maker} --resume {path}" if is_script else f"call {maker} again, with the same out"
        raise ValueError(f"{path}: the run is not finished; to resume it: {again}")
    module = TASKS.get(kind)
    if module is None:
        mask = f"--mask {path / 'mask.json'}" if is_script else f"the option mask={str(path / 'mask.json')!r}"
        raise ValueError(
            f"{path}: is a run of {maker}, and only {'that script' if is_script else 'its caller'} knows its network and data. "
            f"To train with the mask, give it {mask}; the parameters are in {path / 'model/model.safetensors'}"
        )
    options = with_options(module.Options(), run.options)
    given = {name: value for name, value in changes.items() if not (value is None or value is False or value == ())}
    if others := [name for name in given if not hasattr(options, name)]:
        raise ValueError(f"{path}: runs of {maker} have no --{others[0].replace('_', '-')}")
    return run, module, dataclasses.replace(options, **given)
