"""Where the seconds of a search go: by phase, and by kind of work.

    python benchmarks/where_time_goes.py OPTIONS...  # of run_bert.py; --out FOLDER for a folder other than one under runs/

runs experiments/run_bert.py from an empty compile cache and prints two tables. Phases are those in `result.json`. Kinds of work
are the shares of a sample, `SAMPLE` seconds in the middle of the search, by the profiler of XLA: how long its threads spent in
products, in other operations, and waiting for Python or for each other; compiling is timed by JAX's events.
"""

import json
import os
import sys
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

AFTER, SAMPLE = 60.0, 10.0  # seconds
COMPILING = "/jax/core/compile/backend_compile_duration"
PRODUCTS = ("ynn", "dot", "onednn", "matmul", "conv")
OPERATIONS = {"fusion": "elementwise", "reduce": "reductions", "transpose": "copies", "copy": "copies"}
OTHER_EVENTS = ("Threadpool", "ThunkExecutor", "end: ", "Slinky", "Commo", "Pjrt", "PjRt", "$", "Execute")


def kind_of(operation: str) -> str | None:
    """The kind of work of an event on one of XLA's threads; None if it is not an operation."""
    name = operation.lower()
    if operation.startswith(OTHER_EVENTS):
        return None
    if any(word in name for word in PRODUCTS):
        return "products"
    return next((kind for word, kind in OPERATIONS.items() if word in name), "other operations")


def kinds_of_work(folder: str) -> dict[str, float]:
    """Seconds of each kind of work on all of XLA's threads, from a profile in a folder."""
    import jax

    seconds: Counter[str] = Counter()
    for path in Path(folder).rglob("*.xplane.pb"):
        for plane in jax.profiler.ProfileData.from_file(str(path)).planes:
            for line in plane.lines:
                for event in line.events if line.name.startswith("tf_XLA") else ():
                    if (kind := kind_of(event.name)) is not None:
                        seconds[kind] += event.duration_ns / 1e9
    return dict(seconds)


def sample(folder: str, spans: list[float]) -> None:
    """Profiles `SAMPLE` seconds."""
    import jax

    start = time.perf_counter()
    with jax.profiler.trace(folder):
        time.sleep(SAMPLE)
        spans.append(time.perf_counter() - start)


def run(words: list[str], folder: str) -> tuple[dict[str, Any], dict[str, float], float]:
    """A run's result, the shares of the cores' time that each kind of work has in the sample, and seconds compiling."""
    import jax
    import run_bert
    import tyro

    compiled, spans = list[float](), list[float]()

    def note(event: str, duration: float, **kwargs: Any) -> None:
        if event == COMPILING:
            compiled.append(duration)

    listener: Any = note  # the type that JAX declares for it takes no function
    jax.monitoring.register_event_duration_secs_listener(listener)
    profile = os.path.join(folder, "profile")
    timer = threading.Timer(AFTER, sample, [profile, spans])
    timer.start()
    options = tyro.cli(run_bert.Options, args=["--out", os.path.join(folder, "run"), *words])
    run_bert.main(options)
    timer.cancel()
    timer.join()
    available = sum(spans) * len(os.sched_getaffinity(0))
    kinds = {kind: seconds / available for kind, seconds in kinds_of_work(profile).items()} if spans else {}
    return json.loads((Path(str(options.out)) / "result.json").read_text()), kinds, sum(compiled)


def report(result: dict[str, Any], kinds: dict[str, float], compiling: float) -> str:
    """The tables, as Markdown."""
    phases = result["seconds_of_phases"]
    rest = result["seconds"] - sum(phases.values())
    lines = ["| phase | seconds |", "| --- | ---: |"]
    lines += [f"| {name} | {seconds:.0f} |" for name, seconds in [*phases.items(), ("writing files", rest)]]
    lines += [f"| all | {result['seconds']:.0f} |", "", f"Compiling: {compiling:.0f} s, on all threads together.", ""]
    lines += ["| kind of work, in the search | share of the cores' time |", "| --- | ---: |"]
    lines += [f"| {kind} | {share:.0%} |" for kind, share in sorted(kinds.items(), key=lambda item: -item[1])]
    return "\n".join([*lines, f"| waiting | {max(0.0, 1 - sum(kinds.values())):.0%} |"])


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        os.environ["JAX_ENABLE_COMPILATION_CACHE"] = "false"
        print(report(*run(sys.argv[1:], folder)))


if __name__ == "__main__":
    main()
