"""What it costs that nothing is lost: the processor time of a run's writes, as a share of that of the whole run.

    python benchmarks/cost_of_saving.py

Takes about 5 minutes on 2 cores: the default run of run_bert.py. Then all that it wrote on the way (the journal after each
evaluation, the finalists through Orbax) is written again, with nothing else going on, and timed.
"""

import dataclasses
import os
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

import tyro
from etils import epath

sys.path.insert(0, str(Path(__file__).parent.parent / "experiments"))
import run_bert

from gafreeze_jax.report.run_folder import RunFolder
from gafreeze_jax.runs import results
from gafreeze_jax.runs.finalist_store import FinalistStore
from gafreeze_jax.search.history import Journal


@dataclass(frozen=True)
class Options:
    """Time a run and its writes."""

    gens: int = 10
    """Generations of the run."""
    out: Path | None = None
    """JSON file to write."""


def timed(function: Callable[[], None]) -> dict[str, float]:
    """Processor time and time of a function, in seconds."""
    wall, processor = time.perf_counter(), time.process_time()
    function()
    return {"processor": time.process_time() - processor, "wall": time.perf_counter() - wall}


def main(options: Options) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = epath.Path(name)
        keeping, writing = (
            patch.object(kind, method, autospec=True, side_effect=getattr(kind, method))
            for kind, method in ((FinalistStore, "keep"), (Journal, "write"))
        )
        with keeping as keep, writing as write:
            run = timed(lambda: run_bert.main(run_bert.Options(gens=options.gens, out=name + "/run")))

        space = RunFolder(name + "/run").space

        def write_journal() -> None:
            journal = Journal(folder / "evaluations.csv", space)
            for call in write.call_args_list:
                journal.write(*call.args[1:])

        def keep_finalists() -> None:
            kept = FinalistStore(folder / "members", space)
            for call in keep.call_args_list:
                kept.keep(*call.args[1:])
            kept.close()

        writes = {"journal": timed(write_journal), "finalists": timed(keep_finalists)}
        num_bytes = sum(file.stat().st_size for file in Path(name, "members").rglob("*") if file.is_file())
    facts: dict[str, Any] = {
        "run": run,
        "writes": writes,
        "megabytes_of_finalists": num_bytes / 1e6,
        "share": sum(part["processor"] for part in writes.values()) / run["processor"],
    }
    print(f"The run: {run['processor']:.0f} s of processor time in {run['wall']:.0f} s")
    for part, seconds in writes.items():
        share = seconds["processor"] / run["processor"]
        print(f"{part}: {seconds['processor']:.2f} s of processor time, {share:.2%}; alone it takes {seconds['wall']:.2f} s")
    if options.out is not None:
        about = {"options": dataclasses.asdict(options), "versions": results.versions(), "device": results.device()}
        results.write_json(options.out, about | {"cpus": os.cpu_count()} | facts)


if __name__ == "__main__":
    main(tyro.cli(Options))
