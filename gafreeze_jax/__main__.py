"""What is done with runs afterwards: `python -m gafreeze_jax report RUN` or `gafreeze report RUN`."""

import sys
from pathlib import Path

import tyro
from tyro.conf import Positional


def report(runs: Positional[tuple[Path, ...]], /, out: Path | None = None) -> None:
    """Makes the page of a run again, finished or not; of several runs, a page that shows them side by side.

    Args:
      runs: folders of runs.
      out: file to write. Default: report.html in the run's folder; for several runs, comparison.html here.
    """
    from gafreeze_jax import page
    from gafreeze_jax.runs import Run

    if not runs:
        raise ValueError("report: expected the folder of a run, or several")
    path = out or (runs[0] / "report.html" if len(runs) == 1 else Path("comparison.html"))
    page.write([Run(folder) for folder in runs], path)
    print(path)


def show(run: Positional[Path], /) -> None:
    """Prints the summary of a run again; of an unfinished one, what is known so far.

    Args:
      run: its folder.
    """
    from gafreeze_jax import page
    from gafreeze_jax.report import print_summary
    from gafreeze_jax.runs import Run

    known = Run(run)
    if known.finished:
        print_summary(known.facts, run)
    else:
        print(page.verdict_of(known))


def main() -> None:
    from gafreeze_jax.report import fail

    try:
        tyro.extras.subcommand_cli_from_dict({"report": report, "show": show}, prog="gafreeze")
    except (ValueError, OSError) as error:
        sys.exit(fail(error))


if __name__ == "__main__":
    main()
