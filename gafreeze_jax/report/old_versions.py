"""Entries that the files of version 0.1.0 lack. Nothing else knows what older versions wrote."""

from collections.abc import Mapping
from typing import Any

from gafreeze_jax.report.metric_format import ACCURACY

LEARNING_RATE_FACTORS = {"train all, half rate": 1 / 2, "train all, quarter rate": 1 / 4}
# What runs without them did.
OPTIONS = {"head": "fresh", "rates": [1.0], "levels": [1.0], "baselines": "default", "class_weights": "none"}
OPTIONS |= {"micro_batch": None, "remat": False}
NO_MASKS = ("gradual unfreezing", "auto-RGN", *LEARNING_RATE_FACTORS)


def complete(facts: Mapping[str, Any]) -> dict[str, Any]:
    """The content of `run.json` and `result.json` with the entries that later versions write."""
    completed = {"metric": ACCURACY._asdict(), **facts}
    if "results" in facts:
        completed["results"] = {
            name: {"is_mask": name not in NO_MASKS, "learning_rate_factor": LEARNING_RATE_FACTORS.get(name, 1.0), **entry}
            for name, entry in facts["results"].items()
        }
    return completed
