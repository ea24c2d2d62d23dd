"""Metrics: what a search maximizes on the validation split, and what a report compares on the test split.

A metric has two halves. `per_example` runs on the device, within the program that scores a batch, and gives a number for each
example, or a few. `reduce` runs on the host, once for a whole split. A metric of your own is one more `Metric`, which a task
(`tasks/base.py`) is given; `from_estimate` makes it of a function for one model.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
import optax
from jax import Array

Estimate = tuple[float, np.ndarray]  # a metric, and how much each example moves it: [U], of which the mean is 0


class Metric(NamedTuple):
    """A number for what a network does on a split.

    Attributes:
      name: for people, such as "accuracy"; also in file keys, with spaces as underscores.
      per_example: `per_example(outputs, targets) -> values` [B] for outputs and targets with B rows, or [K, B]: K numbers for
        each example, such as the predicted class and the right one. Runs under `jax.jit`.
      reduce: from the values [..., E] or [..., K, E] of E examples to the metric [...].
      influence: by how much each example moves the metric: from values to numbers [..., U] whose mean is the metric and whose
        spread is its sampling error (pseudo-values, Tukey 1958). U units were drawn independently: the examples, or sentences
        where words are examples. None = leave out one example at a time (jackknife).
      higher_is_better: whether a search maximizes it; otherwise it maximizes its negative.
      is_share: whether it lies between 0 and 1 and reads well as a percentage.
      threshold: above which a probability means "yes". None = there is none, or the one that is best for the values given.
      settle: `settle(values) -> metric` chooses a threshold by the values [K, E] of the validation split, for all other splits.
    """

    name: str
    per_example: Callable[[Array, Array], Array]
    reduce: Callable[[np.ndarray], np.ndarray]
    influence: Callable[[np.ndarray], np.ndarray] | None = None
    higher_is_better: bool = True
    is_share: bool = False
    threshold: float | None = None
    settle: Callable[[np.ndarray], "Metric"] | None = None

    @property
    def key(self) -> str:
        """The name in file keys, such as `test_accuracy`."""
        return self.name.replace(" ", "_")

    def score(self, values: np.ndarray) -> np.ndarray:
        """The metric [...] of values, negated where lower is better, so that higher scores are better."""
        reduced = self.reduce(np.asarray(values, np.float64))
        return reduced if self.higher_is_better else -reduced

    def contributions(self, values: np.ndarray) -> np.ndarray:
        """What each unit contributes to the score: [..., U], with the score as their mean."""
        values = np.asarray(values, np.float64)
        contributions = self._jackknife(values) if self.influence is None else self.influence(values)
        return contributions if self.higher_is_better else -contributions

    def _jackknife(self, values: np.ndarray) -> np.ndarray:
        num = values.shape[-1]
        left_out = np.stack([self.reduce(np.delete(values, example, -1)) for example in range(num)], axis=-1)
        metric, slopes = self.reduce(values)[..., None], left_out.mean(-1, keepdims=True) - left_out
        return metric + (num - 1) * slopes

    def shown(self, score: float) -> float:
        """A score in the metric's own direction."""
        return score if self.higher_is_better else -score

    def facts(self) -> dict[str, Any]:
        """Its description in files."""
        return {"name": self.name, "higher_is_better": self.higher_is_better, "is_share": self.is_share}


def from_estimate(
    name: str, per_example: Callable[[Array, Array], Array], estimate: Callable[..., Estimate], **how: Any
) -> Metric:
    """A metric of values [..., K, E].

    Args:
      estimate: from the K columns [E] of one model to the metric, and how much each example moves it: the metric's derivative
        by the example's share of the sample, times the number of examples (infinitesimal jackknife, Jaeckel 1972).
      how: further fields of the metric.
    """

    def of_models(estimate_one: Callable[..., Any], values: np.ndarray) -> np.ndarray:
        results = np.array([estimate_one(*columns) for columns in values.reshape(-1, *values.shape[-2:])])
        return results.reshape((*values.shape[:-2], *results.shape[1:]))

    def reduce(values: np.ndarray) -> np.ndarray:
        return of_models(lambda *columns: estimate(*columns)[0], values)

    def pseudo_values(*columns: np.ndarray) -> np.ndarray:
        value, moves = estimate(*columns)
        return value + moves - moves.mean()

    def influence(values: np.ndarray) -> np.ndarray:
        return of_models(pseudo_values, values)

    return Metric(name, per_example, reduce, influence, **how)


def ratio(parts: np.ndarray, wholes: np.ndarray) -> Estimate:
    """The sum of `parts` [U] divided by the sum of `wholes` [U]; 0 if that is 0."""
    total = wholes.sum()
    value = parts.sum() / total if total else 0.0
    return value, len(parts) * (parts - value * wholes) / max(total, 1)


def cross_entropy(logits: Array, labels: Array) -> Array:
    """Cross-entropy [B] of logits [B, C] and labels [B]."""
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels)


def _is_right(logits: Array, labels: Array) -> Array:
    return (logits.argmax(-1) == labels).astype(jnp.float32)


def _mean(values: np.ndarray) -> np.ndarray:
    return values.mean(-1)


def _values(values: np.ndarray) -> np.ndarray:
    return values


def exponential_mean(losses: np.ndarray) -> np.ndarray:
    """exp of the mean loss [...] of losses [..., E]; infinite where that has no float."""
    with np.errstate(over="ignore"):
        return np.exp(losses.mean(-1))


def _perplexity_influence(losses: np.ndarray) -> np.ndarray:
    perplexity = exponential_mean(losses)[..., None]
    return perplexity * (1 + losses - losses.mean(-1, keepdims=True))


ACCURACY = Metric("accuracy", _is_right, _mean, _values, is_share=True)
PERPLEXITY = Metric("perplexity", cross_entropy, exponential_mean, _perplexity_influence, higher_is_better=False)
