"""Kills short runs at random moments, resumes them, and compares the outcome with that of a run that nobody disturbed.

    python benchmarks/kill_and_resume.py

Takes about 20 minutes on 2 cores. Of two plans (block by block, two members stacked; whole runs in one program, four members
stacked) one undisturbed run is made, then others are killed (SIGKILL), each when a random number of evaluations is there and
a random time after that: while the network is loaded, programs are compiled, members trained, finalists kept, final files
written. Half are resumed by `--resume`, half by the same command. Equal means: the same evaluations (all but their seconds),
the same mask and verdict, and the same bytes of the model. Prints a line for each kill, and how many of all were equal.

Then runs of two processes with two devices each: one of both is killed, the other one must end by itself with an error, and
after both were started again all must be equal, too.
"""

import csv
import dataclasses
import json
import os
import shlex
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import tyro

from gafreeze_jax.runs import results

EXPERIMENTS = Path(__file__).parent.parent / "experiments"
TIMES = ("seconds", "call")  # columns that tell how long something took, or follow from that
MOST_SECONDS = 0.5  # after the last evaluation that is waited for
LONGER = 20  # times as long where the run starts, and after the last one
PLANS = ("members=2", "members=4,steps=70,freezing=traced")


@dataclass(frozen=True)
class Options:
    """Kill runs of an experiment, and resume them."""

    command: str = "run_custom.py --network cnn --gens 2 --population 3 --epochs 10 --finalist-seeds 2"
    """What to run."""
    plans: tuple[str, ...] = PLANS
    """Of each, so many runs are killed:"""
    kills: int = 25
    """How many runs are killed."""
    kills_of_two: int = 3
    """How many runs of two processes are killed."""
    seed: int = 0
    """Decides the moments."""
    out: Path | None = None
    """JSON file to write."""


def outcome(folder: Path) -> dict[str, Any]:
    """All of a run that must be the same."""
    with open(folder / "evaluations.csv", encoding="utf-8", newline="") as file:
        rows = [{name: value for name, value in row.items() if name not in TIMES} for row in csv.DictReader(file)]
    result = json.loads((folder / "result.json").read_text())
    (model,) = (folder / "model").glob("*.safetensors")
    return {
        "evaluations": rows,
        "mask": json.loads((folder / "mask.json").read_text()),
        "verdict": result["verdict"],
        "results": result["results"],
        "search": result["search"],
        "model": model.read_bytes(),
    }


def where(folder: Path) -> str:
    """How far a run had come, by its folder."""
    if not (folder / "run.json").exists():
        return "starting"
    if (folder / "SHA256SUMS").exists():
        return "finished"
    if (folder / "mask.json").exists() or (folder / "model").exists():
        return "writing the final files"
    if not (folder / "evaluations.csv").exists():
        return "compiling"
    return "in phase " + (folder / "evaluations.csv").read_text().splitlines()[-1].split(",")[0]


def num_evaluations(folder: Path) -> int:
    """How many are there; -1 before the run has begun."""
    if not (folder / "run.json").exists():
        return -1
    file = folder / "evaluations.csv"
    return len(file.read_text().splitlines()) - 1 if file.exists() else 0


def kill_and_resume(command: list[str], folder: Path, moment: "Moment", *, same_command: bool) -> str:
    """Starts a run, kills it, lets it go on to its end, and says where it was killed."""
    process = subprocess.Popen([*command, "--out", str(folder)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while process.poll() is None and num_evaluations(folder) < moment.evaluations:
        time.sleep(0.005)
    time.sleep(moment.seconds)
    process.kill()
    process.wait()
    killed = where(folder)
    afresh = same_command or killed == "starting"
    again = [*command, "--out", str(folder)] if afresh else [*command[:2], "--resume", str(folder)]
    subprocess.run(again, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return killed


def start_two(command: list[str], folder: Path) -> list[subprocess.Popen[bytes]]:
    """A run of two processes with two devices each."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    env = os.environ | {"XLA_FLAGS": "--xla_force_host_platform_device_count=2"}
    own = [*command, "--out", str(folder), "--coordinator", address, "--num-processes", "2", "--process-id"]
    quiet = subprocess.DEVNULL
    return [subprocess.Popen([*own, str(i)], env=env, stdout=quiet, stderr=quiet) for i in range(2)]


def kill_one_of_two(command: list[str], folder: Path, moment: "Moment", victim: int) -> tuple[str, float]:
    """Kills one of two processes, and starts both again; says how far they were, and how long the other one took to end."""
    processes = start_two(command, folder)
    while num_evaluations(folder) < moment.evaluations:
        time.sleep(0.005)
    time.sleep(moment.seconds)
    processes[victim].kill()
    start = time.perf_counter()
    code = processes[1 - victim].wait()
    seconds = time.perf_counter() - start
    killed = where(folder)
    if killed != "finished" and code == 0:
        raise RuntimeError("the other process ended as if nothing had happened")
    for process in start_two(command, folder):
        if process.wait() != 0:
            raise RuntimeError("the run could not be resumed")
    return killed, seconds


class Moment(NamedTuple):
    """To kill a run: when so many evaluations are there (-1: before it has begun), and so many seconds later."""

    evaluations: int
    seconds: float


def draw_moments(rng: np.random.Generator, num: int, num_evaluations: int) -> list[Moment]:
    """Uniformly over the numbers of evaluations, in strata, and a time that an evaluation takes, about."""
    shares = (np.arange(num) + rng.random(num)) / num
    rows = np.floor(-1 + (num_evaluations + 2) * shares).astype(int)
    return [Moment(int(row), MOST_SECONDS * rng.random() * (LONGER if row in (-1, num_evaluations) else 1)) for row in rows]


def main(options: Options) -> None:
    rng = np.random.default_rng(options.seed)
    script, *rest = shlex.split(options.command)
    rows = []
    with tempfile.TemporaryDirectory() as name:
        for number, plan in enumerate(options.plans):
            command = [sys.executable, str(EXPERIMENTS / script), *rest, "--plan", plan]
            undisturbed = Path(name) / f"undisturbed-{number}"
            subprocess.run([*command, "--out", str(undisturbed)], check=True, stdout=subprocess.DEVNULL)
            expected = outcome(undisturbed)
            print(f"{plan}: {len(expected['evaluations'])} evaluations", flush=True)
            for i, moment in enumerate(draw_moments(rng, options.kills, len(expected["evaluations"]))):
                folder = Path(name) / f"{number}-{i}"
                killed = kill_and_resume(command, folder, moment, same_command=i % 2 == 0)
                found = outcome(folder)
                other = [part for part in expected if found[part] != expected[part]]
                rows.append({"plan": plan, **moment._asdict(), "killed": killed, "other": other})
                verdict = "other " + ", ".join(other) if other else "equal"
                print(f"killed {moment.seconds:.2f} s after {moment.evaluations} evaluations, {killed}: {verdict}", flush=True)
        command = [sys.executable, str(EXPERIMENTS / script), *rest, "--plan", "members=4"]
        for process in start_two(command, Path(name) / "two") if options.kills_of_two else ():
            process.wait()
        expected = outcome(Path(name) / "two") if options.kills_of_two else {}
        for i, moment in enumerate(draw_moments(rng, options.kills_of_two, 20)):
            folder, victim = Path(name) / f"two-{i}", i % 2
            killed, seconds = kill_one_of_two(command, folder, moment, victim)
            found = outcome(folder)
            other = [part for part in expected if found[part] != expected[part]]
            facts = {"plan": "two processes", "victim": victim, "other_ended_after_seconds": round(seconds, 1)}
            rows.append({**facts, **moment._asdict(), "killed": killed, "other": other})
            verdict = "other " + ", ".join(other) if other else "equal"
            print(f"process {victim} of two killed, {killed}; the other one ended after {seconds:.0f} s: {verdict}", flush=True)
    num_equal = sum(not row["other"] for row in rows)
    print(f"{num_equal} of {len(rows)} equal; killed: {dict(Counter(row['killed'] for row in rows))}")
    if options.out is not None:
        facts = {"options": dataclasses.asdict(options), "versions": results.versions(), "device": results.device()}
        results.write_json(options.out, facts | {"num_equal": num_equal, "kills": rows})
    if num_equal < len(rows):
        sys.exit(1)


if __name__ == "__main__":
    main(tyro.cli(Options))
