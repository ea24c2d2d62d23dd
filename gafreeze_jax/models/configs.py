"""Hugging Face's `config.json`: read, checked against rules, and written back with changes."""

import dataclasses
import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from gafreeze_jax.data import files

# What a field must be, and a test for it.
Rule = tuple[str, Callable[[Any], bool]]


def _is_rate(value: Any) -> bool:
    return type(value) in (int, float) and 0 <= value < 1


# `type`, not `isinstance`: to that a bool is an int.
COUNT: Rule = ("a positive integer below 2**31", lambda value: type(value) is int and 0 < value < 2**31)
DEPTH: Rule = ("an integer from 1 to 1000", lambda value: type(value) is int and 0 < value <= 1000)
POSITIVE: Rule = ("a positive number", lambda value: type(value) in (int, float) and 0 < value < math.inf)
RATE: Rule = ("a number from 0 to below 1", _is_rate)
FLAG: Rule = ("true or false", lambda value: type(value) is bool)


def or_null(rule: Rule) -> Rule:
    expected, is_right = rule
    return f"null or {expected}", lambda value: value is None or is_right(value)


def list_of(rule: Rule) -> Rule:
    expected, is_right = rule
    return (
        f"a list, each {expected}",
        lambda value: isinstance(value, list | tuple) and len(value) > 0 and all(map(is_right, value)),
    )


def one_of(names: Sequence[str]) -> Rule:
    return f"one of {', '.join(names)}", lambda value: value in list(names)  # it may be unhashable


def read(path: Path, model_type: str, kind: str) -> dict[str, Any]:
    """The content of a `config.json`.

    Args:
      kind: what it must be, in words, such as "a BERT".

    Raises:
      ValueError, FileNotFoundError: if there is none, or it is of another kind of model.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file; expected a folder in the Hugging Face layout")
    try:
        raw = files.parse_json(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path}: not JSON: {error}") from None
    if not isinstance(raw, dict) or raw.get("model_type") != model_type:
        found = raw.get("model_type") if isinstance(raw, dict) else raw
        raise ValueError(f"{path}: expected {kind} (model_type {model_type!r}), got model_type {found!r}")
    return raw


def check(raw: Mapping[str, Any], config: type, rules: Mapping[str, Rule]) -> tuple[dict[str, Any], list[str]]:
    """The fields that a dataclass has, with its defaults, and what is wrong with them."""
    values = {field.name: raw.get(field.name, field.default) for field in dataclasses.fields(config)}
    problems = [
        f"{name} is missing" if values[name] is dataclasses.MISSING else f"{name} must be {expected}, got {values[name]!r}"
        for name, (expected, is_right) in rules.items()
        if not is_right(values[name])
    ]
    return values, problems


def write(folder: Path, source: Path, **changes: Any) -> None:
    """Writes the config of the folder `source` with changes, for float32 parameters."""
    config = json.loads((source / "config.json").read_text(encoding="utf-8")) | changes
    if "id2label" in changes:
        config.pop("num_labels", None)
    for name in ("torch_dtype", "dtype"):
        if name in config:
            config[name] = "float32"
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def labels(names: Sequence[str]) -> dict[str, Any]:
    """Entries of a classifier's config, for `write`."""
    return {
        "id2label": {str(i): name for i, name in enumerate(names)},
        "label2id": {name: i for i, name in enumerate(names)},
        "problem_type": "single_label_classification",
    }
