"""Means and effects, with confidence intervals."""

import math
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from scipy import special


class Interval(NamedTuple):
    """A mean and its confidence interval; the bounds are NaN if there is only one seed."""

    mean: float
    low: float
    high: float

    def __neg__(self) -> "Interval":
        return Interval(-self.mean, -self.high, -self.low)

    def as_json(self) -> dict[str, float | None]:
        """Unknown bounds are null."""
        return {name: value if math.isfinite(value) else None for name, value in self._asdict().items()}

    @classmethod
    def from_json(cls, entry: Mapping[str, float | None]) -> "Interval":
        """The reverse of `as_json`."""
        return cls(*(math.nan if (value := entry[name]) is None else value for name in cls._fields))


def interval(values: ArrayLike) -> Interval:
    """The mean of values with a 95 % confidence interval.

    Values [S] are a sample of S seeds: Student's t. Values [S, N] combine a sample of S seeds with a sample of N examples: the
    variance of the mean is the sum of the two samples' variances, minus what both count (two-way random effects; Owen 2007,
    "The pigeonhole bootstrap"), and t has Satterthwaite's (1946) degrees of freedom.

    In simulations (tests/test_intervals.py), 95 % intervals of differences contained the truth in 94 to 99 % of experiments
    with five seeds or more, and in 88 to 98 % with two or three. If the mean is close to a limit of its range, the interval is
    too narrow: for an accuracy of 0.97 on 100 examples it contained the truth in 90 %.

    Values of a metric that is no mean are the influences of examples (`Metric.contributions`). Intervals of MCC, macro-F1
    and Spearman, and of their differences, contained the truth in 93 to 96 % of experiments with five seeds and 200 examples
    (tests/metrics/test_metric_intervals.py).

    Raises:
      ValueError: for another shape, or values that are not finite.
    """
    values = np.asarray(values, float)
    problems = []
    if values.ndim not in (1, 2) or not values.size or values.shape[1:] == (1,):
        problems.append(f"values must have shape (seeds,) or (seeds, examples) with 2 examples or more, got {values.shape}")
    if not np.isfinite(values).all():
        problems.append(f"values must be finite, got {np.sum(~np.isfinite(values))} that are not")
    if problems:
        raise ValueError("; ".join(problems))

    mean, num_seeds = float(values.mean()), len(values)
    if num_seeds == 1:
        return Interval(mean, math.nan, math.nan)
    by_seed = values.reshape(num_seeds, -1).mean(1)
    variance, freedom = by_seed.var(ddof=1) / num_seeds, num_seeds - 1
    if values.ndim == 2:
        variance, freedom = _with_examples(values, by_seed, variance, freedom)
    return _around(mean, variance, freedom, 0.95)


def _around(mean: float, variance: float, freedom: float, confidence: float) -> Interval:
    if variance == 0:
        return Interval(mean, mean, mean)
    half = float(special.stdtrit(freedom, (1 + confidence) / 2) * math.sqrt(variance))
    return Interval(mean, mean - half, mean + half)


def _with_examples(values: np.ndarray, by_seed: np.ndarray, of_seeds: float, freedom: float) -> tuple[float, float]:
    """The variance of a mean over seeds and examples, and its degrees of freedom.

    Args:
      of_seeds: the variance over seeds, with `freedom` degrees of freedom.
    """
    num_seeds, num_examples = values.shape
    by_example = values.mean(0)
    of_examples = by_example.var(ddof=1) / num_examples
    rest = values - by_seed[:, None] - by_example + values.mean()
    of_both = (rest**2).mean() / ((num_seeds - 1) * (num_examples - 1))  # is part of either
    variance = max(of_seeds + of_examples - of_both, of_seeds, of_examples)
    scale = of_seeds**2 / freedom + of_examples**2 / (num_examples - 1)
    return variance, variance**2 / scale if scale else math.inf


def difference(first: ArrayLike, second: ArrayLike) -> Interval:
    """How much greater the mean of `first` is than that of `second`, [S] or [S, N] of the same seeds and examples, in pairs.

    Raises:
      ValueError: for unlike shapes, and as `interval`.
    """
    if np.shape(first) != np.shape(second):
        raise ValueError(f"expected the same seeds and examples for both, got shapes {np.shape(first)} and {np.shape(second)}")
    return interval(np.subtract(first, second, dtype=float))


def leads(values: np.ndarray, confidence: float) -> list[Interval]:
    """How much greater the mean of the first of R finalists is than that of each, in pairs, for values [R, S, N].

    As `difference`, for few seeds: the variance over seeds is taken to be at least the finalists' mean one, which is known
    with (R - 1)(S - 1) degrees of freedom, as in an analysis of variance with seeds as blocks. With R = 8 and S = 2, a
    finalist as good as the leader had a 98 % interval above 0 in less than 1 % of simulations (tests/runs/test_racing.py).
    """
    num, num_seeds, _ = values.shape
    by_seed = values.mean(2)
    rest = by_seed - by_seed.mean(0) - by_seed.mean(1, keepdims=True) + by_seed.mean()
    freedom = (num - 1) * (num_seeds - 1)
    of_others = 2 * float(np.sum(rest**2)) / freedom / num_seeds
    intervals = []
    for gaps in values[0] - values:
        by_seed = gaps.mean(1)
        of_seeds = max(float(by_seed.var(ddof=1)) / num_seeds, of_others)
        variance, satterthwaite = _with_examples(gaps, by_seed, of_seeds, freedom)
        intervals.append(_around(float(gaps.mean()), variance, satterthwaite, confidence))
    return intervals


def main_effects(genomes: np.ndarray, values: np.ndarray, weights: np.ndarray) -> list[Interval] | None:
    """The mean change in values where a gene is frozen, for each gene, with 95 % intervals.

    Weighted least squares on the genes and a constant; Student's t with N - G - 1 degrees of freedom. Interactions of genes
    count as noise, so they widen the intervals. None if the genomes do not tell all genes apart.

    Args:
      genomes: [N, G] bools, True = frozen.
      values: [N].
      weights: [N].
    """
    num, num_genes = genomes.shape
    design = np.sqrt(weights)[:, None] * np.column_stack([np.ones(num), genomes])
    if np.linalg.matrix_rank(design) <= num_genes or (freedom := num - num_genes - 1) < 1:
        return None
    target = np.sqrt(weights) * values
    inverse = np.linalg.inv(design.T @ design)
    coefficients = inverse @ design.T @ target
    variance = np.sum((target - design @ coefficients) ** 2) / freedom
    half = special.stdtrit(freedom, 0.975) * np.sqrt(variance * np.diag(inverse))
    return [Interval(*map(float, (mean, mean - h, mean + h))) for mean, h in zip(coefficients, half, strict=True)][1:]
