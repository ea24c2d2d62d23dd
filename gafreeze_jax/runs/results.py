"""What a run writes to `result.json`: the finalists' scores, the verdict, and what is needed to repeat the run."""

import contextlib
import dataclasses
import json
import math
import os
import platform
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from gafreeze_jax.intervals import interval
from gafreeze_jax.metrics import Metric, exponential_mean
from gafreeze_jax.report.metric_format import MetricFormat
from gafreeze_jax.runs.verdict import Verdict
from gafreeze_jax.search.history import Evaluation, write_whole
from gafreeze_jax.space import Genome, Space

PACKAGES = ("gafreeze_jax", "jax", "jaxlib", "flax", "optax", "numpy", "transformers", "tensorflow-datasets")


class ScoredFinalist(NamedTuple):
    """A mask, or another way to fine-tune, that was trained with S seeds and scored on the test split.

    Attributes:
      name: such as "found".
      genome: the level of each gene; for what is no mask, that of the end.
      validation_score, validation_loss: means over seeds.
      scores: [S, N] contributions of N test examples to each seed's score, of which it is the mean (`Metric.contributions`).
      test_loss: mean over seeds and examples.
      trainable_parameters: at the end.
      flops: of a training run.
      is_mask: whether the genome alone says how it was trained.
      learning_rate_factor: of all blocks.
      rate: of all genes, that was chosen for it.
    """

    name: str
    genome: Genome
    validation_score: float
    validation_loss: float
    scores: np.ndarray
    test_loss: float
    trainable_parameters: int
    flops: float
    is_mask: bool = True
    learning_rate_factor: float = 1.0
    rate: float = 1.0


def make_result(
    options: Any,
    space: Space,
    finalists: Sequence[ScoredFinalist],
    verdict: Verdict,
    *,
    metric: Metric,
    evaluations: Sequence[Evaluation],
    seconds: float,
    has_perplexity: bool = False,
    **facts: Any,
) -> dict[str, Any]:
    """The content of `result.json`.

    Args:
      options: a dataclass.
      finalists: the found mask and the baselines.
      has_perplexity: whether the exponential of the mean loss is written as perplexity.
      facts: further entries.
    """
    found = finalists[0]
    return {
        "options": dataclasses.asdict(options),
        "versions": versions(),
        "device": device(),
        "cpus": os.cpu_count(),
        **space.facts(),
        "metric": metric.facts(),
        "best_genome": list(found.genome),
        "fitness": metric.shown(found.validation_score),
        "verdict": verdict.as_json(),
        "results": {finalist.name: _entry(finalist, space, metric, has_perplexity=has_perplexity) for finalist in finalists},
        "num_evaluations": len(evaluations),
        "num_diverged": sum(evaluation.diverged for evaluation in evaluations),
        "seconds": round(seconds, 1),
        **facts,
    }


def _entry(finalist: ScoredFinalist, space: Space, metric: Metric, *, has_perplexity: bool) -> dict[str, Any]:
    """A finalist in `result.json`; values of the metric are in its own direction."""
    key = metric.key
    test = MetricFormat(**metric.facts()).shown_interval(interval(finalist.scores))
    entry = {
        "genome": list(finalist.genome),
        "frozen": space.frozen_names(finalist.genome),
        "rate": finalist.rate,
        f"validation_{key}": metric.shown(finalist.validation_score),
        "validation_loss": finalist.validation_loss,
        f"test_{key}": test.mean,
        f"test_{key}_interval": [bound if math.isfinite(bound) else None for bound in test[1:]],
        f"test_{key}_by_seed": [metric.shown(score) for score in finalist.scores.mean(1).tolist()],
        "test_loss": finalist.test_loss,
        "trainable_parameters": finalist.trainable_parameters,
        "training_flops": finalist.flops,
        "is_mask": finalist.is_mask,
        "learning_rate_factor": finalist.learning_rate_factor,
    }
    if has_perplexity:
        losses = {"validation": finalist.validation_loss, "test": finalist.test_loss}
        entry |= {f"{split}_perplexity": float(exponential_mean(np.array([loss]))) for split, loss in losses.items()}
    return entry


def device() -> str:
    return f"{jax.device_count()} x {jax.devices()[0].device_kind}"


def versions() -> dict[str, str]:
    """Versions of Python and of the packages on which results depend."""
    versions = {"python": platform.python_version()}
    for package in PACKAGES:
        with contextlib.suppress(PackageNotFoundError):
            versions[package] = version(package)
    return versions


def write_json(path: Path, content: Any) -> None:
    """Writes a JSON file, whole or not at all."""
    write_whole(path, json.dumps(content, indent=2, default=str) + "\n")
