"""Whole searches on real data, by the scripts as anybody would run them: the table of results in the README.

    python benchmarks/real_results.py --out benchmarks/results/real_results.json --data FOLDER

Takes about 90 minutes on 2 cores. FOLDER holds sst2/, trec/, cola/, rte/ and mrpc/ (train.tsv and, if there are such,
validation.tsv and test.tsv, or .tsv.gz), fashion_mnist/ (train.npz and test.npz with `images` and `labels`), cifar10/test.npz,
and resnet20-cifar10.safetensors (PyTorch's names); without it, only the searches that need nothing are run. Each run's folder
is left in runs/real_results/, and the shifted images (see shifts.py), which ResNet-20's training has not seen, beside them.
"""

import json
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import shifts
import tyro
from machine import describe_machine

from gafreeze_jax.runs.results import write_json
from gafreeze_jax.space import Space

ROOT = Path(__file__).parent.parent
SHIFTED = ROOT / "runs" / "real_results" / "shifted"
ADAPT_RESNET_20 = (
    "run_resnet.py --gens 10 --model FOLDER/resnet20-cifar10.safetensors --head keep --epochs 4 --batch-size 32 "
    "--train-examples 256 --learning-rate 1e-3"
)
SEARCHES = {
    "MiniLM: embedded reviews": "run_bert.py --gens 10",
    "MiniLM: TREC": "run_bert.py --gens 10 --data FOLDER/trec --train-examples 512 --rates 0.25 1",
    "MiniLM: SST-2": "run_bert.py --gens 10 --data FOLDER/sst2 --train-examples 512 --rates 0.25 1",
    "MiniLM: CoLA": "run_bert.py --gens 10 --data FOLDER/cola --train-examples 512 --rates 0.25 1",
    "MiniLM: MRPC": "run_bert.py --gens 10 --data FOLDER/mrpc --train-examples 256 --rates 0.25 1",
    "MiniLM: RTE": "run_bert.py --gens 10 --data FOLDER/rte --train-examples 256 --rates 0.25 1",
    "ResNet-20 (CIFAR-10): Fashion-MNIST": "run_resnet.py --gens 10 --model FOLDER/resnet20-cifar10.safetensors "
    "--data FOLDER/fashion_mnist --train-examples 256 --epochs 4 --rates 0.25 1",
    "small ResNet (digits 0-4): digits 5-9": "run_resnet.py --gens 10 --data digits:5-9 --train-examples 20 --rates 1",
    "small GPT-2 (Python reference): the rest of it": "run_gpt2.py --gens 10",
    "small ResNet, head kept: inverted digits": "run_resnet.py --gens 10",
    "small ResNet, head kept: faint digits": "run_resnet.py --gens 10 --data digits:faint",
    "small ResNet, head kept: noisy digits": "run_resnet.py --gens 10 --data digits:noisy",
    "ResNet-20, head kept: CIFAR-10 with noise": f"{ADAPT_RESNET_20} --data SHIFTED/noise",
    "ResNet-20, head kept: CIFAR-10 with low contrast": f"{ADAPT_RESNET_20} --data SHIFTED/contrast",
    "ResNet-20, head kept: CIFAR-10 blurred": f"{ADAPT_RESNET_20} --data SHIFTED/blur",
}
NUM_TRAIN, NUM_VALIDATION = 256, 256  # shifted images; the others test


@dataclass(frozen=True)
class Options:
    """Run searches on real data."""

    data: Path | None = None
    """Folder of the data sets."""
    only: tuple[str, ...] = ()
    """Run these only: words that their names begin with, such as "MiniLM: TREC,"."""
    out: Path | None = None
    """JSON file to write; searches that it has and that are not run again stay in it."""


def summary(command: str, seconds: float, result: Mapping[str, Any]) -> dict[str, Any]:
    """What is kept of a run.

    Args:
      command: what anybody would type.
      seconds: of wall clock, from the start of the command.
      result: the content of its `result.json`.
    """
    rows = result["results"]
    kept = (
        "genome",
        "validation_accuracy",
        "test_accuracy",
        "test_accuracy_interval",
        "training_flops",
        "trainable_parameters",
        "rate",
    )
    return {
        "command": command,
        "seconds": round(seconds),
        "evaluations": result["num_evaluations"],
        "stages": result["stages"],
        "rates": result["rates"],
        "verdict": result["verdict"]["sentence"],
        "found_minus": result["verdict"]["differences"]["found"],
        "results": {name: {key: row[key] for key in kept} for name, row in rows.items()},
    }


def table(searches: Mapping[str, Mapping[str, Any]]) -> str:
    """In Markdown: of each search the mask found, beside training everything with the same seeds."""
    lines = ["| network: data | mask | test | train all | difference | FLOPs | best of the others | seconds |"]
    lines.append("|" + " --- |" * 2 + " ---: |" * 4 + " --- | ---: |")
    for name, search in searches.items():
        rows = dict(search["results"])
        found, everything = rows.pop("found"), rows["train all"]
        mask = Space(search["stages"], rates=search.get("rates", (1.0,))).text(found["genome"])
        low, high = found["test_accuracy_interval"]
        difference = search["found_minus"]["train all"]
        rows = {row: entry for row, entry in rows.items() if not row.startswith("found, ")}
        best = max(rows, key=lambda row: rows[row]["validation_accuracy"])
        cells = [
            name,
            f"`{mask}`",
            f"{100 * found['test_accuracy']:.1f} ({100 * low:.1f} to {100 * high:.1f})",
            f"{100 * everything['test_accuracy']:.1f}",
            "{mean:+.1f} ({low:+.1f} to {high:+.1f})".format(**{key: 100 * value for key, value in difference.items()}),
            f"{found['training_flops'] / everything['training_flops']:.0%}",
            f"{best}, {100 * rows[best]['test_accuracy']:.1f}",
            str(search["seconds"]),
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def write_shifted(data: Path, shift: str) -> None:
    """Shifted images of CIFAR-10's test file, as three splits."""
    with np.load(data / "cifar10" / "test.npz") as file:
        images, labels = shifts.OF_IMAGES[shift](file["images"]), file["labels"]
    order = np.random.default_rng(0).permutation(len(labels))
    folder = SHIFTED / shift
    folder.mkdir(parents=True, exist_ok=True)
    ends = NUM_TRAIN, NUM_TRAIN + NUM_VALIDATION
    for name, rows in zip(("train", "validation", "test"), np.split(order, ends), strict=True):
        np.savez(folder / f"{name}.npz", images=images[rows], labels=labels[rows])


def main(options: Options) -> None:
    known = json.loads(options.out.read_text())["searches"] if options.out is not None and options.out.exists() else {}
    for name, command in SEARCHES.items():
        if (options.only and not name.startswith(options.only)) or (options.data is None and "FOLDER" in command):
            continue
        out = ROOT / "runs" / "real_results" / "".join(one if one.isalnum() else "-" for one in name)
        if "SHIFTED/" in command:
            assert options.data is not None
            write_shifted(options.data, command.rpartition("/")[2])
        script, *words = shlex.split(command.replace("FOLDER", str(options.data)).replace("SHIFTED", str(SHIFTED)))
        shutil.rmtree(out, ignore_errors=True)
        print(f"\n{name}: experiments/{command}", flush=True)
        start = time.perf_counter()
        subprocess.run([sys.executable, ROOT / "experiments" / script, *words, "--out", out], check=True)
        seconds = time.perf_counter() - start
        known[name] = summary(command, seconds, json.loads((out / "result.json").read_text()))
        if options.out is not None:
            ordered = {name: known[name] for name in SEARCHES if name in known}
            write_json(options.out, {"machine": describe_machine(), "searches": ordered})
    print("\n" + table(known))


if __name__ == "__main__":
    main(tyro.cli(Options))
