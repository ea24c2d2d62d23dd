"""An experiment from its options to its files."""

import dataclasses
import os
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from etils import epath

from gafreeze_jax import masking
from gafreeze_jax.engine import devices, process
from gafreeze_jax.masking.mask_file import load_mask
from gafreeze_jax.options import OptionError, Options, check, with_absolute_paths
from gafreeze_jax.report import summary
from gafreeze_jax.report.display import Display
from gafreeze_jax.report.folder_format import TENSORBOARD, is_local
from gafreeze_jax.report.metric_format import MetricFormat
from gafreeze_jax.runs import results
from gafreeze_jax.runs.baselines import BASELINES, LOWER_RATES
from gafreeze_jax.runs.fingerprint import fingerprint, fingerprint_of_model
from gafreeze_jax.runs.finish import finish, steps_of_test
from gafreeze_jax.runs.held_out import HeldOut
from gafreeze_jax.runs.narrator import TEST
from gafreeze_jax.runs.remarks import majority
from gafreeze_jax.runs.run_dir import RunDir, choose_folder
from gafreeze_jax.runs.search_run import run_search, space_of_mask, train_mask
from gafreeze_jax.runs.signals import stoppable
from gafreeze_jax.space import MAX_LEVELS, Space
from gafreeze_jax.tasks.base import Problem, Setup

OptionsT = TypeVar("OptionsT", bound=Options)


def main(kind: str, prepare: Callable[[OptionsT], Setup], options: OptionsT, resume_by: str | None = None) -> None:
    """Runs an experiment; a wrong option ends it in one line before it starts.

    Args:
      kind: of experiment; the name of its folder under runs/ begins with it.
      prepare: loads network and data; raises ValueError or OSError if an option is wrong.
      resume_by: the command that resumes an interrupted run, up to the run's folder.
    """
    start = time.perf_counter()
    process.keep_memory()
    path = None
    resume_by = resume_by or f"python {sys.argv[0]} --resume"
    with stoppable(lambda: f"To resume: {resume_by} {path}" if path else "Nothing was done yet."):
        try:
            devices.join(options.coordinator, options.num_processes, options.process_id, timeout=options.process_timeout)
            options, path, finished = choose_folder(kind, with_absolute_paths(options))
            if finished:
                print(f"{path} holds this run; it is finished, nothing is left to do")
                return
            begun = _begin(kind, prepare, options, path)
        except (ValueError, OSError, ModuleNotFoundError) as error:  # the last one says which extra is missing
            sys.exit(summary.fail(error))
        try:
            entries = _run(begun, options, start=start)
        except OptionError as error:
            begun.run_dir.discard()
            sys.exit(summary.fail(error))
        except OSError as error:
            devices.leave(summary.fail(OSError(f"{error}. What was done is kept; to resume: {resume_by} {path}")))
        if entries is not None:
            summary.print_summary(entries, path, quiet=options.quiet)


def carry_out(kind: str, prepare: Callable[[OptionsT], Setup], options: OptionsT) -> Path:
    """`main` for use in a program: errors are raised, also if the folder holds a run of another model or other data.

    Returns the run's folder; a finished run is left as it is.
    """
    start = time.perf_counter()
    options, path, finished = choose_folder(kind, with_absolute_paths(options))
    begun = _begin(kind, prepare, options, path)
    if not finished:
        try:
            entries = _run(begun, options, start=start)
        except OptionError:
            begun.run_dir.discard()
            raise
        if entries is not None:
            summary.print_summary(entries, path, quiet=options.quiet)
    return Path(path)


class _Begun(NamedTuple):
    """A run before its first step; `mask` has the rates of a mask to train with."""

    setup: Setup
    held_out: HeldOut
    mask: Sequence[float] | None
    run_dir: RunDir


def _begin(kind: str, prepare: Callable[[OptionsT], Setup], options: OptionsT, path: epath.Path) -> _Begun:
    """Checks the options, loads network, data and a mask, and opens the folder."""
    check(options)
    if options.tensorboard and not is_local(path):
        raise ValueError(f"--tensorboard needs a local folder, got {path}")
    process.keep_compiled_programs()
    setup = prepare(options)
    if setup.num_test < 2:
        raise ValueError(f"the test split has {setup.num_test} example, and a verdict needs two or more")
    held_out, mask = HeldOut(setup.test), None if options.mask is None else _read_rates(options.mask, setup.problem)
    space = space_of_mask(setup.problem, mask)[0] if mask else setup.problem.space(options)
    return _Begun(setup, held_out, mask, RunDir.open(path, _facts(kind, options, setup, held_out, space)))


def _read_rates(path: str | os.PathLike[str], problem: Problem) -> list[float]:
    """By what a mask multiplies the updates of each gene."""
    mask, names = load_mask(path), problem.genes.names
    genes = tuple(mask["frozen"])
    if problem.head == "kept" and genes == names[:-1]:
        raise ValueError(f"{path}: the mask is for a fresh head, and this run keeps the model's; give --head fresh")
    if problem.head == "fresh" and genes[:-1] == names and mask["head"] == "kept":
        raise ValueError(f"{path}: the mask is for the model's own head, and this run has a fresh one; give --head keep")
    rates = list(masking.read_rates(path, problem.genes).values())
    if len(others := set(rates) - {0, 1}) > MAX_LEVELS - 2:
        raise ValueError(
            f"{path}: a run can train at {MAX_LEVELS - 2} rates besides 0 and 1 at most; the mask has {len(others)}"
        )
    return rates


def _run(begun: _Begun, options: Options, *, start: float) -> dict[str, Any] | None:
    """The run itself; its result, in the first of several processes.

    Args:
      start: when this process began with it.
    """
    setup, held_out, mask, run_dir = begun
    start -= run_dir.seconds
    path, steps = run_dir.path or Path(), run_dir.facts["num_steps"]
    with run_dir, _make_display(setup, held_out, options, run_dir) as display:
        for text in setup.about:
            display.line(summary.printable(text))
        if shares := run_dir.facts.get("majority"):
            metric = MetricFormat(**run_dir.facts["metric"])
            value = metric.write(shares[f"validation_{metric.key}"])
            alone = f"{value} of the validation examples" if metric.key == "accuracy" else f"validation {metric.name} {value}"
            display.line(summary.printable(f"Majority class: {shares['label']}, {alone}"))
        slices = f", {options.micro_batch} at a time" if options.micro_batch else ""
        display.line(f"Each member trains {steps} steps of {options.batch_size} examples{slices}. Results go to {path}")
        if mask is None:
            result = run_search(setup.problem, options, run_dir, display)
        else:
            result = train_mask(setup.problem, mask, options, run_dir, display)
        if not devices.is_first():
            return None
        with run_dir.finishing() as folder:
            return finish(setup, held_out, result, options, folder, start=start, display=display)


def _make_display(setup: Setup, held_out: HeldOut, options: Options, run_dir: RunDir) -> Display:
    """For a run from the search to its files."""
    display = Display(
        Space.from_facts(run_dir.facts),
        metric=MetricFormat(**setup.problem.task.metric.facts()),
        quiet=options.quiet,
        verbose=options.verbose,
        tensorboard=Path(run_dir.path or "") / TENSORBOARD if options.tensorboard and devices.is_first() else None,
    )
    # Found, and train all at three rates; or found and all baselines.
    num_rows = 2 + len(LOWER_RATES) if options.mask else 1 + len(BASELINES)
    display.progress.expect({TEST: options.finalist_seeds * num_rows * steps_of_test(held_out, options)})
    return display


def _facts(kind: str, options: Options, setup: Setup, held_out: HeldOut, space: Space) -> dict[str, Any]:
    """What a run is, for `run.json`."""
    problem = setup.problem
    data, of_test = (problem.train.data, problem.validation.data), held_out.fingerprint
    return {
        "kind": kind,
        "options": dataclasses.asdict(options),
        "versions": results.versions(),
        "device": results.device(),
        "dtype": problem.network.dtype and problem.network.dtype.name,
        **space.facts(),
        "metric": problem.task.metric.facts(),
        "num_steps": problem.replicate(options.seed).num_steps,
        "about": list(setup.about),
        **majority(problem, validation=problem.validation.data.targets),
        "fingerprint": fingerprint(problem.params, *data) + of_test,
        "fingerprints": {"model": fingerprint_of_model(setup), "data": fingerprint(*data) + of_test},
    }
