"""Kinds of tasks on texts and images: which metrics each has, its loss, and how predictions are written.

A kind says what the labels are (`data/targets.py`): one label, several, a number, or a tag for each word.
"""

import functools
import itertools
import json
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

import jax
import numpy as np
import optax
from jax import Array

from gafreeze_jax.data.targets import IN_WORDS, Kind
from gafreeze_jax.data.tokens import Tokens
from gafreeze_jax.engine.network import PyTree
from gafreeze_jax.metrics import ACCURACY, PERPLEXITY, Metric, classes, label_sets, numbers, tags
from gafreeze_jax.report.predictions import write_names
from gafreeze_jax.tasks.base import Columns, Task, classification, probabilities_of, softmax

MetricName = Literal[
    "auto", "accuracy", "balanced-accuracy", "macro-f1", "micro-f1", "mcc", "roc-auc", "average-precision", "spearman",
    "pearson", "rmse", "r2", "entity-f1", "token-accuracy", "perplexity",
]  # fmt: skip
# The first of each is the default.
OF_CLASSES = {
    "accuracy": ACCURACY,
    "balanced-accuracy": classes.BALANCED_ACCURACY,
    "macro-f1": classes.MACRO_F1,
    "micro-f1": classes.MICRO_F1,
    "mcc": classes.MCC,
}
OF_TWO_CLASSES = {**OF_CLASSES, "roc-auc": classes.ROC_AUC, "average-precision": classes.AVERAGE_PRECISION}
OF_LABELS = {
    "macro-f1": label_sets.MACRO_F1,
    "micro-f1": label_sets.MICRO_F1,
    "accuracy": label_sets.ACCURACY,
    "roc-auc": label_sets.ROC_AUC,
    "average-precision": label_sets.AVERAGE_PRECISION,
}
OF_NUMBERS = {"spearman": numbers.SPEARMAN, "pearson": numbers.PEARSON, "r2": numbers.R2, "rmse": numbers.rmse()}
OF_TAGS = {"token-accuracy": tags.TOKEN_ACCURACY}
OF_NEXT_TOKENS = {"accuracy": ACCURACY, "token-accuracy": ACCURACY, "perplexity": PERPLEXITY}
HEADS: dict[Kind, str] = {"label": "classify", "labels": "classify", "number": "classify", "tags": "tokens"}
PROBLEM_TYPES: dict[Kind, str | None] = {  # transformers' names
    "label": "single_label_classification",
    "labels": "multi_label_classification",
    "number": "regression",
    "tags": None,
}


def choose_metric(asked: MetricName, known: Mapping[str, Metric], what: str) -> Metric:
    """The metric that `--metric` names, or the first.

    Args:
      known: those that make sense here.
      what: the task in words, for errors.

    Raises:
      ValueError: for another.
    """
    if asked == "auto":
        return next(iter(known.values()))
    if asked not in known:
        raise ValueError(f"--metric {asked} is not for {what}; choose {' or '.join(known)}")
    return known[asked]


def metric_of_classes(asked: MetricName, num_classes: int) -> Metric:
    """The metric for one of C labels."""
    if num_classes == 2:
        return choose_metric(asked, OF_TWO_CLASSES, "one of two labels")
    return choose_metric(asked, OF_CLASSES, f"one of {num_classes} labels")


class Scale(NamedTuple):
    """What numbers are standardised with: (number - mean) / deviation."""

    mean: float = 0.0
    deviation: float = 1.0

    @classmethod
    def of(cls, values: np.ndarray, *, has_bias: bool) -> "Scale":
        """That of numbers [N].

        Args:
          has_bias: whether the output layer has one. Without it the mean stays in the numbers, as `put_into` could not add it.
        """
        mean = float(values.mean(dtype=np.float64)) if has_bias else 0.0
        return cls(mean, float(values.std(dtype=np.float64)))

    def apply(self, values: np.ndarray) -> np.ndarray:
        return ((values.astype(np.float64) - self.mean) / self.deviation).astype(np.float32)

    def put_into(self, params: PyTree, output: str) -> PyTree:
        """Parameters of a network whose outputs are numbers in the user's units.

        Args:
          output: path of the layer that gives standardised numbers.
        """
        if self == Scale():
            return params
        name, _, rest = output.partition("/")
        if name:
            return {**params, name: self.put_into(params[name], rest)}
        means = {"kernel": 0.0, "bias": self.mean}
        return {name: np.asarray(leaf * self.deviation + means[name], np.float32) for name, leaf in params.items()}


def make_scale(kind: Kind, values: Any, *, head_is_kept: bool, has_bias: bool) -> Scale:
    """What labels are standardised with: numbers, unless a kept head gives them in their own units already."""
    return Scale.of(values, has_bias=has_bias) if kind == "number" and not head_is_kept else Scale()


def make_task(
    kind: Kind,
    label_names: Sequence[str],
    *,
    metric: MetricName = "auto",
    scale: Scale | None = None,
    threshold: float | None = None,
    words: "TaggedWords | None" = None,
) -> Task:
    """The task of a kind.

    Args:
      label_names: of its C labels or tags; of numbers, the name of their column.
      metric: that is asked for.
      scale: of numbers.
      threshold: at which one of several labels is predicted; for writing predictions only.
      words: those that are tagged; for writing predictions only.

    Raises:
      ValueError: for a metric of another kind.
    """
    names, what = tuple(label_names), IN_WORDS[kind]
    if kind == "label":
        return classification(names, metric_of_classes(metric, len(names)))
    if kind == "labels":
        return _several_labels(names, choose_metric(metric, OF_LABELS, what), threshold)
    if kind == "number":
        known = OF_NUMBERS | {"rmse": numbers.rmse(scale.deviation if scale else 1.0)}
        write, compare = functools.partial(_write_numbers, *names), functools.partial(_compare_numbers, scale or Scale())
        return Task(numbers.squared_error, choose_metric(metric, known, what), _first_output, write, compare=compare)
    known = {"entity-f1": tags.entity_f1(names), **OF_TAGS} if tags.is_scheme(names) else OF_TAGS
    write = functools.partial(_write_tags, names, words)
    compare = functools.partial(_compare_tags, names)
    return Task(tags.tag_entropy, choose_metric(metric, known, what), softmax, write, compare=compare)


# Several labels


def _several_labels(names: tuple[str, ...], metric: Metric, threshold: float | None) -> Task:
    def joined(given: np.ndarray) -> list[str]:
        return [write_names([*itertools.compress(names, row)], ",", names) for row in given]

    def write(chances: np.ndarray) -> Columns:
        return {"labels": joined(chances >= (0.5 if threshold is None else threshold))}

    def compare(chances: np.ndarray, targets: np.ndarray, chosen: float | None) -> Columns:
        return {"truth": joined(targets > 0), "labels": joined(chances >= (0.5 if chosen is None else chosen))}

    columns = functools.partial(probabilities_of, names)
    return Task(_sigmoid_entropy, metric, _sigmoid, write, probabilities=columns, compare=compare)


def _sigmoid_entropy(logits: Array, labels: Array) -> Array:
    """Cross-entropy [B] of logits and labels [B, C], mean over classes as in PyTorch."""
    return optax.sigmoid_binary_cross_entropy(logits, labels).mean(-1)


def _sigmoid(logits: Array, labels: Any) -> Array:
    return jax.nn.sigmoid(logits)


# Numbers


def _first_output(outputs: Array, targets: Any) -> Array:
    return outputs[:, 0]


def _write_numbers(name: str, predicted: np.ndarray) -> Columns:
    return {name: list(predicted)}


def _compare_numbers(scale: Scale, predicted: np.ndarray, targets: np.ndarray, threshold: float | None) -> Columns:
    in_units = (values.astype(np.float64) * scale.deviation + scale.mean for values in (targets, predicted))
    return dict(zip(("truth", "predicted"), ([f"{value:.6g}" for value in values] for values in in_units), strict=True))


# Tags


class TaggedWords(NamedTuple):
    """Words of N texts, and which of them a model sees.

    Attributes:
      texts: the words of each.
      kept: [E], numbers among all words.
    """

    texts: Sequence[Sequence[str]]
    kept: np.ndarray


def make_targets(kind: Kind, texts: Tokens, values: Any, scale: Scale) -> np.ndarray:
    """What a network learns of the labels of N texts; of tags, [E, 2]: for each word that has a token, its tag and its text."""
    if kind == "number":
        return scale.apply(values)
    if kind != "tags":
        return values
    sentences = np.repeat(np.arange(len(values)), [len(of_text) for of_text in values])
    return np.stack([np.concatenate(values), sentences], axis=1)[texts.kept].astype(np.int32)


def _write_tags(names: tuple[str, ...], words: TaggedWords | None, chances: np.ndarray) -> Columns:
    """Tags of each text, and where they mark some, its entities: type, first word, the word after the last, and text.

    Words that the model does not see, beyond its longest text, are O, or the first tag.
    """
    assert words is not None
    places = np.full(sum(map(len, words.texts)), names.index("O") if "O" in names else 0)
    places[words.kept] = chances.argmax(1)
    of_texts = np.split(places, np.cumsum([len(text) for text in words.texts])[:-1])
    written = {"tags": [write_names([names[place] for place in of_text], " ", names) for of_text in of_texts]}
    if not tags.is_scheme(names):
        return written
    pairs = zip(words.texts, of_texts, strict=True)
    return written | {"entities": [_entities(text, tags.spans(names, of_text)) for text, of_text in pairs]}


def _compare_tags(names: tuple[str, ...], chances: np.ndarray, targets: np.ndarray, threshold: float | None) -> Columns:
    """Tags of the words of each text that the model sees, with spaces between."""
    places, sentences = targets.T
    starts = np.searchsorted(sentences, np.arange(sentences.max(initial=-1) + 1))[1:]
    of_texts = (np.split(of_words, starts) for of_words in (places, chances.argmax(1)))
    written = ([write_names([names[place] for place in of_text], " ", names) for of_text in texts] for texts in of_texts)
    return dict(zip(("truth", "tags"), written, strict=True))


def _entities(text: Sequence[str], spans: Sequence[tuple[int, int, str]]) -> str:
    found = [{"type": kind, "start": start, "end": end, "text": " ".join(text[start:end])} for start, end, kind in spans]
    return json.dumps(found, ensure_ascii=False)
