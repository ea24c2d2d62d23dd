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
from gafreeze_jax.runs.finalists import Finalist
from gafreeze_jax.runs.verdict import Verdict
from gafreeze_jax.search.history import Evaluation, write_whole
from gafreeze_jax.space import Space

PACKAGES = ("gafreeze_jax", "jax", "jaxlib", "flax", "optax", "numpy", "transformers", "tensorflow-datasets")


class Tested(NamedTuple):
    """A finalist that was trained with S seeds and scored on the test split.

    Attributes:
      scores: [S, N] contributions of N test examples to each seed's score, of which it is the mean (`Metric.contributions`).
      test_loss: mean over seeds and examples.
      trainable_parameters: at the end.
    """

    finalist: Finalist
    scores: np.ndarray
    test_loss: float
    trainable_parameters: int


def make_result(
    options: Any,
    space: Space,
    finalists: Sequence[Tested],
    verdict: Verdict,
    *,
    metric: Metric,
    evaluations: Sequence[Evaluation],
    seconds: float,
    has_perplexity: bool = False,
    dropped: Sequence[Finalist] = (),
    **facts: Any,
) -> dict[str, Any]:
    """The content of `result.json`.

    Args:
      options: a dataclass.
      finalists: the found mask and the baselines.
      has_perplexity: whether the exponential of the mean loss is written as perplexity.
      dropped: finalists that were not scored on the test split.
      facts: further entries.
    """
    found = finalists[0].finalist
    return {
        "options": dataclasses.asdict(options),
        "versions": versions(),
        "device": device(),
        "cpus": os.cpu_count(),
        **space.facts(),
        "metric": metric.facts(),
        "best_genome": list(found.genome),
        "fitness": metric.shown(found.validation[0]),
        "verdict": verdict.as_json(),
        "results": {row.finalist.name: _entry(row, space, metric, has_perplexity=has_perplexity) for row in finalists},
        "dropped": {finalist.name: _entry_of_dropped(finalist, space, metric) for finalist in dropped},
        "num_evaluations": len(evaluations),
        "num_diverged": sum(evaluation.diverged for evaluation in evaluations),
        "seconds": round(seconds, 1),
        **facts,
    }


def _entry_of_any(finalist: Finalist, space: Space, metric: Metric) -> dict[str, Any]:
    """A finalist in `result.json`; values of the metric are in its own direction."""
    return {
        "genome": list(finalist.genome),
        "frozen": space.frozen_names(finalist.genome),
        "rate": finalist.rate,
        f"validation_{metric.key}": metric.shown(finalist.validation[0]),
        "is_mask": finalist.is_mask,
        "is_ablation": finalist.is_ablation,
    }


def _entry(scored: Tested, space: Space, metric: Metric, *, has_perplexity: bool) -> dict[str, Any]:
    finalist, key = scored.finalist, metric.key
    test = MetricFormat(**metric.facts()).shown_interval(interval(scored.scores))
    losses = {"validation": finalist.validation[1], "test": scored.test_loss}
    entry = _entry_of_any(finalist, space, metric) | {
        "validation_loss": losses["validation"],
        f"test_{key}": test.mean,
        f"test_{key}_interval": [bound if math.isfinite(bound) else None for bound in test[1:]],
        f"test_{key}_by_seed": [metric.shown(score) for score in scored.scores.mean(1).tolist()],
        "test_loss": losses["test"],
        "trainable_parameters": scored.trainable_parameters,
        "training_flops": finalist.flops,
        "learning_rate_factor": finalist.learning_rate_factor,
    }
    if has_perplexity:
        entry |= {f"{split}_perplexity": float(exponential_mean(np.array([loss]))) for split, loss in losses.items()}
    return entry


def _entry_of_dropped(finalist: Finalist, space: Space, metric: Metric) -> dict[str, Any]:
    """If it is not behind, the verdict did not need it."""
    behind = finalist.behind and finalist.behind.as_json()
    return _entry_of_any(finalist, space, metric) | {"behind": behind, "seeds": len(finalist.members)}


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
