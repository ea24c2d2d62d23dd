"""Commands for runs: `gafreeze report RUN` or `python -m gafreeze_jax report RUN`."""

import contextlib
import csv
import os
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from gafreeze_jax.extras import needs

with needs("report"):
    import tyro
    from tyro.conf import OmitArgPrefixes, Positional


def report(runs: Positional[tuple[Path, ...]], /, out: Path | None = None) -> None:
    """Makes the page of a run again, finished or not; of several runs, a page that shows them side by side.

    Args:
      runs: folders of runs.
      out: file to write. Default: report.html in the run's folder; for several runs, comparison.html here.
    """
    from gafreeze_jax.report import page
    from gafreeze_jax.report.run_folder import RunFolder

    if not runs:
        raise ValueError("report: expected one or more run folders")
    path = out or (runs[0] / "report.html" if len(runs) == 1 else Path("comparison.html"))
    page.write([RunFolder(folder) for folder in runs], path)
    print(path)


def show(run: Positional[Path], /) -> None:
    """Prints the summary of a run again, or what is known so far of an unfinished run.

    Args:
      run: its folder.
    """
    from gafreeze_jax.report import page
    from gafreeze_jax.report.run_folder import RunFolder
    from gafreeze_jax.report.summary import print_summary

    known = RunFolder(run)
    if known.finished:
        print_summary(known.facts, run)
    else:
        print(page.verdict_of(known))


def predict(
    run: Positional[Path],
    /,
    data: Path,
    out: Path | None = None,
    text_columns: tuple[str, ...] = (),
    skip_broken: bool = False,
    all_probabilities: bool = False,
) -> None:
    """Labels a file with the model of a run: a CSV with a line for each input, its label and the label's probability.

    Where the run has learned several labels, numbers or tags, these are written, and the entities that tags mark. For a
    language model, writes the perplexity of a text.

    Args:
      run: the run's folder.
      data: what to label: .csv, .tsv, .jsonl, .parquet or .conll for texts; .npz, JPEG, PNG, WebP, GIF or BMP, or a folder of
        such files, for images; .txt for a language model. Labels in it are not read.
      out: file to write. Default: the terminal.
      text_columns: name of the text column, or of two for pairs of texts. Default: as in the run.
      skip_broken: leave out files that cannot be read as images, instead of stopping.
      all_probabilities: also write the probability of each class.
    """
    from gafreeze_jax.runs import reuse

    if out is not None and not out.parent.is_dir():
        raise ValueError(f"--out {out}: no such folder as {out.parent}")
    table = reuse.predict(run, data, all_probabilities=all_probabilities, text_columns=text_columns, skip_broken=skip_broken)
    with open(out, "w", encoding="utf-8", newline="") if out else contextlib.nullcontext(sys.stdout) as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(table)
        for row in zip(*table.values(), strict=True):
            writer.writerow([f"{value:.6g}" if isinstance(value, float | np.floating) else value for value in row])


@dataclass(frozen=True, kw_only=True)
class Changes:
    """Options that may differ from the run's. An option that is left out keeps the run's value, as do all others."""

    data: str
    """What to train on, as for the script that made the run."""
    model: str | None = None
    """Another model, of the same architecture."""
    train_examples: int | None = None
    """Train on at most this many examples."""
    validation_examples: int | None = None
    """Score on at most this many examples."""
    epochs: int | None = None
    """Passes through the training examples."""
    batch_size: int | None = None
    """Examples in a training step."""
    learning_rate: float | None = None
    """Highest learning rate of the pretrained layers."""
    head_learning_rate: float | None = None
    """Highest learning rate of the head."""
    text_columns: tuple[str, ...] = ()
    """Name of the text column, or of two for pairs of texts."""
    label_column: str | None = None
    """Name of the label column."""
    skip_broken: bool = False
    """Leave out files that cannot be read as images, instead of stopping."""


def apply(
    run: Positional[Path], /, changes: OmitArgPrefixes[Changes], seeds: int | None = None, out: Path | None = None
) -> None:
    """Fine-tunes on other data with the mask that a run has found, beside training everything at several learning rates.

    Says in one sentence whether the mask transfers, and leaves the same files as a run.

    Args:
      run: the run's folder.
      changes: options that may differ from the run's.
      seeds: how many to train with, none of which the run has used. Default: as many as the run had for its finalists.
      out: folder for the results. An unfinished run of the same options in it is resumed. Default: a new one under runs/.
    """
    from gafreeze_jax.runs import reuse

    reuse.apply(run, out=out, seeds=seeds, **asdict(changes))


def fetch(model: Positional[str], /) -> None:
    """Fetches a model ahead of time, so that runs with it need no network, and prints its folder.

    Args:
      model: minilm, or a hub name such as google-bert/bert-base-uncased.
    """
    from gafreeze_jax.models.checkpoints import find_model

    print(find_model(model))


def main() -> None:
    from gafreeze_jax.report.summary import fail

    try:
        tyro.extras.subcommand_cli_from_dict(
            {"report": report, "show": show, "predict": predict, "apply": apply, "fetch": fetch}, prog="gafreeze"
        )
        sys.stdout.flush()
    except BrokenPipeError:  # such as by `| head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for what Python writes when it ends
    except (ValueError, OSError) as error:
        sys.exit(fail(error))
