"""The embedded data set: short English reviews of films, food, hotels, gadgets and services, positive or negative.

Written one by one for this project (see `docs/decisions.md`). Two fifths say plainly what they think; the others hide it
behind negation, contrast, irony or faint praise.
"""

import csv
from importlib.resources import files
from typing import Any


def read_reviews() -> dict[str, list[dict[str, Any]]]:
    """All reviews by split ("train", "validation", "test"), each with "split", "domain", "label" and "text"."""
    text = files("gafreeze_jax.data").joinpath("reviews.tsv").read_text(encoding="utf-8")
    splits: dict[str, list[dict[str, Any]]] = {"train": [], "validation": [], "test": []}
    for row in csv.DictReader(text.splitlines(), delimiter="\t", quoting=csv.QUOTE_NONE):
        splits[row["split"]].append(row)
    return splits
