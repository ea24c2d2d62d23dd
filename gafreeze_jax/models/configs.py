"""Hugging Face's `config.json`: read, checked by the rules of a dataclass's fields, and written back with changes."""

import dataclasses
import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from gafreeze_jax.data import files
from gafreeze_jax.models import formats


class Rule(NamedTuple):
    """What a value must be, in words, and a test for it."""

    expected: str
    is_right: Callable[[Any], bool]


# `type`, not `isinstance`: to that a bool is an int.


def _integer(low: int, high: int = 2**31) -> Callable[[Any], bool]:
    """Whether a value is an integer from `low` to below `high`."""
    return lambda value: type(value) is int and low <= value < high


def _number(high: float) -> Callable[[Any], bool]:
    """Whether a value is a number from 0 to below `high`."""
    return lambda value: type(value) in (int, float) and 0 <= value < high


COUNT = Rule("a positive integer below 2**31", _integer(1))
NUMBER = Rule("an integer from 0 to below 2**31", _integer(0))
INTEGER = Rule("an integer from -2**31 to 2**31", _integer(1 - 2**31))
DEPTH = Rule("an integer from 1 to 1000", _integer(1, 1001))
POSITIVE = Rule("a positive number", lambda value: _number(math.inf)(value) and value > 0)
NOT_NEGATIVE = Rule("a number that is not negative", _number(math.inf))
RATE = Rule("a number from 0 to below 1", _number(1))
FLAG = Rule("true or false", lambda value: type(value) is bool)


def or_null(rule: Rule) -> Rule:
    def is_right(value: Any) -> bool:
        return value is None or rule.is_right(value)

    return Rule(f"null or {rule.expected}", is_right)


def list_of(rule: Rule) -> Rule:
    def is_right(value: Any) -> bool:
        return isinstance(value, list | tuple) and len(value) > 0 and all(map(rule.is_right, value))

    return Rule(f"a list, each {rule.expected}", is_right)


def one_of(names: Iterable[str]) -> Rule:
    choices = list(names)
    return Rule(f"one of {', '.join(choices)}", choices.__contains__)  # a list, as the value may be unhashable


FULL, SLIDING = "full_attention", "sliding_attention"  # whether a layer's tokens see the whole text, or near tokens alone
LAYER_TYPES = or_null(list_of(one_of([FULL, SLIDING])))


def field(rule: Rule, default: Any = dataclasses.MISSING) -> Any:
    """A field of a config's dataclass, with what its value must be. Without a default, a `config.json` must have it."""
    return dataclasses.field(default=default, metadata={"rule": rule})


def rules(config: type) -> dict[str, Rule]:
    """The rules of a config's fields, by name. Fields without a rule are not read from a `config.json`."""
    return {field.name: field.metadata["rule"] for field in dataclasses.fields(config) if "rule" in field.metadata}


def required(config: type) -> set[str]:
    """The entries that a `config.json` must have."""
    defaults = {field.name: field.default for field in dataclasses.fields(config)}
    return {name for name in rules(config) if defaults[name] is dataclasses.MISSING}


def read(path: Path) -> Any:
    """The content of a `config.json`.

    Raises:
      ValueError, FileNotFoundError: if there is none, or it is not JSON.
    """
    if not path.is_file():
        usual = f"{path}: no such file; expected a folder in the Hugging Face layout"
        raise FileNotFoundError(formats.missing(path.parent, path.name) or usual)
    try:
        return files.parse_json(path.read_text(encoding="utf-8-sig"))  # editors may write a byte order mark
    except ValueError as error:
        raise ValueError(f"{path}: not JSON: {error}{files.hint_at_pointer(path)}") from None


def hashable(value: Any) -> Any:
    """A value of JSON with lists and objects as tuples; `dict` of an object's gives it back.

    >>> hashable({"b": [1, 2], "a": None})
    (('a', None), ('b', (1, 2)))
    """
    if isinstance(value, dict):
        return tuple((name, hashable(value[name])) for name in sorted(value))
    return tuple(map(hashable, value)) if isinstance(value, list | tuple) else value


def check(raw: Mapping[str, Any], config: type) -> tuple[dict[str, Any], list[str]]:
    """The values of a dataclass's fields, `hashable`, and what is wrong with them."""
    defaults = {field.name: field.default for field in dataclasses.fields(config)}
    values, problems = {}, []
    for name, rule in rules(config).items():
        value = raw.get(name, defaults[name])
        values[name] = hashable(value)
        if value is dataclasses.MISSING:
            problems.append(f"{name} is missing")
        elif not rule.is_right(value):
            problems.append(f"{name} must be {rule.expected}, got {value!r}")
    return values, problems


def write(folder: Path, source: Path, **changes: Any) -> None:
    """Writes the config of the folder `source` with changes, for float32 parameters."""
    config = json.loads((source / "config.json").read_text(encoding="utf-8-sig")) | changes
    if "id2label" in changes:
        config.pop("num_labels", None)
    for name in ("torch_dtype", "dtype"):
        if name in config:
            config[name] = "float32"
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def labels(names: Sequence[str], problem_type: str | None) -> dict[str, Any]:
    """Entries of a classifier's config, for `write`; `problem_type` is transformers' name for the task."""
    return {
        "id2label": {str(i): name for i, name in enumerate(names)},
        "label2id": {name: i for i, name in enumerate(names)},
        "problem_type": problem_type,
    }
