"""Whether a found mask is really better than the baselines, by models retrained with fresh seeds; in one sentence.

Two things are drawn at random: the seeds (head, batches, dropout) and the test examples. All finalists share both, so they are
compared in pairs, seed by seed and example by example. Intervals cover what would change with other seeds and with other
examples of the same task (Bouthillier et al. 2021, "Accounting for variance in machine learning benchmarks"); seeds alone would
only tell about this one test set. They do not cover other training examples or another search.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats


class Interval(NamedTuple):
    """A mean and its confidence interval; bounds are NaN where there is only one seed."""

    mean: float
    low: float
    high: float


class Contender(NamedTuple):
    """A mask, trained with S seeds and scored on N test examples; seeds and examples are the same for all finalists.

    Attributes:
      name: such as "train all".
      genome: its genes as text, "1" = frozen, such as "1100"; empty for what is no mask, such as gradual unfreezing.
      correct: [S, N] bool, or shares from 0 to 1, such as of the tokens of a row that are right; all examples count alike.
      cost: FLOPs of a training run.
    """

    name: str
    genome: str
    correct: np.ndarray
    cost: float


class Verdict(NamedTuple):
    """What can be said of a found mask.

    Attributes:
      outcome: see `judge`.
      sentence: the outcome for a person.
      accuracy: of the found mask on the test split.
      differences: {name: {other name: test accuracy of the first finalist minus that of the other}}, for all pairs, both ways.
      gap: validation minus test accuracy of the found mask: the best of many validation scores is too good. None if unknown.
    """

    outcome: Literal["better", "cheaper", "not better"]
    sentence: str
    accuracy: Interval
    differences: Mapping[str, Mapping[str, Interval]]
    gap: float | None


def interval(values: ArrayLike, confidence: float = 0.95) -> Interval:
    """The mean of values with a confidence interval.

    Values [S] are taken as a sample of seeds: Student's t. Values [S, N] are a sample of S seeds, a sample of N examples, and
    each with each: the variance of the mean is the sum of both samples' own, less what was counted twice (two-way random
    effects; Owen 2007, "The pigeonhole bootstrap"), and t has Satterthwaite's (1946) degrees of freedom.

    In simulations (tests/test_verdict.py), 95 % intervals of differences held the truth in 94 to 99 % of experiments with five
    seeds or more, and in 88 to 98 % with two or three. Of a mean close to its own limits the interval is too narrow: it held an
    accuracy of 0.97, on 100 examples, in 90 %.

    Raises:
      ValueError: for another shape, values that are not finite, or a confidence out of range.
    """
    values = np.asarray(values, float)
    problems = []
    if values.ndim not in (1, 2) or not values.size or values.shape[1:] == (1,):
        problems.append(f"values must have shape (seeds,) or (seeds, examples) with 2 examples or more, got {values.shape}")
    if not np.isfinite(values).all():
        problems.append(f"values must be finite, got {np.sum(~np.isfinite(values))} that are not")
    if not 0 < confidence < 1:
        problems.append(f"confidence must be between 0 and 1, got {confidence}")
    if problems:
        raise ValueError("; ".join(problems))

    mean, num_seeds = float(values.mean()), len(values)
    if num_seeds == 1:
        return Interval(mean, math.nan, math.nan)
    by_seed = values.reshape(num_seeds, -1).mean(1)
    variance, freedom = by_seed.var(ddof=1) / num_seeds, num_seeds - 1
    if values.ndim == 2:
        variance, freedom = _with_examples(values, by_seed, variance)
    if variance == 0:
        return Interval(mean, mean, mean)
    half = float(stats.t.ppf((1 + confidence) / 2, freedom) * math.sqrt(variance))
    return Interval(mean, mean - half, mean + half)


def _with_examples(values: np.ndarray, by_seed: np.ndarray, of_seeds: float) -> tuple[float, float]:
    """The variance of a mean over seeds and examples, and its degrees of freedom; `of_seeds` is the variance over seeds."""
    num_seeds, num_examples = values.shape
    by_example = values.mean(0)
    of_examples = by_example.var(ddof=1) / num_examples
    rest = values - by_seed[:, None] - by_example + values.mean()
    of_both = (rest**2).mean() / ((num_seeds - 1) * (num_examples - 1))  # is part of either
    variance = max(of_seeds + of_examples - of_both, of_seeds, of_examples)
    scale = of_seeds**2 / (num_seeds - 1) + of_examples**2 / (num_examples - 1)
    return variance, variance**2 / scale if scale else math.inf


def difference(first: ArrayLike, second: ArrayLike) -> Interval:
    """How much greater the mean of `first` is than that of `second`, [S] or [S, N] of the same seeds and examples, in pairs.

    Raises:
      ValueError: for unlike shapes, and as `interval`.
    """
    if np.shape(first) != np.shape(second):
        raise ValueError(f"expected the same seeds and examples for both, got shapes {np.shape(first)} and {np.shape(second)}")
    return interval(np.subtract(first, second, dtype=float))


def judge(
    found: Contender,
    baselines: Sequence[Contender],
    validation_accuracy: float | None = None,
    *,
    transferred: bool = False,
) -> Verdict:
    """Says whether a mask that a search found beats baselines, by 95 % intervals of the differences in test accuracy.

    The outcome is
      "better" if it is more accurate than every baseline, each interval being above 0. All of them must be, so there is no
        correction for their number (an intersection-union test; Berger 1982): of masks that are no better than some
        baseline, about 2.5 % at most are called better.
      "cheaper" if no interval is below 0, and its training costs less than that of any baseline whose interval holds 0. The
        same rule for both sides: a baseline that is equal within noise and costs no more leaves the search no merit.
      "not better" otherwise, also if it is one of the baselines itself, or if there is one seed only. That it is worse than a
        baseline is said by one interval below 0, each at its own 95 %, which is strict towards the search.

    Args:
      baselines: chosen on validation data, as `found` was, and retrained with the same seeds.
      validation_accuracy: of the found mask, by which it was chosen.
      transferred: whether the mask was found on other data, so that the sentence is not about a search.

    Raises:
      ValueError: for finalists that cannot be compared, with all reasons.
    """
    _check(found, baselines, validation_accuracy)
    accuracy = interval(found.correct)
    accuracy = Interval(accuracy.mean, max(accuracy.low, 0.0), min(accuracy.high, 1.0))
    finalists = (found, *baselines)
    differences = {
        one.name: {other.name: difference(one.correct, other.correct) for other in finalists if other is not one}
        for one in finalists
    }
    gap = None if validation_accuracy is None else validation_accuracy - accuracy.mean
    outcome, sentence = _words(found, baselines, accuracy, differences[found.name], transferred)
    return Verdict(outcome, sentence, accuracy, differences, gap)


def as_json(verdict: Verdict) -> dict[str, Any]:
    """What `result.json` says of a verdict, in shares of 1."""
    differences = {
        name: {other: interval_as_json(given) for other, given in own.items()} for name, own in verdict.differences.items()
    }
    return verdict._asdict() | {"accuracy": interval_as_json(verdict.accuracy), "differences": differences}


def interval_as_json(given: Interval) -> dict[str, float | None]:
    """Bounds that are unknown are null."""
    return {key: value if math.isfinite(value) else None for key, value in given._asdict().items()}


def _words(
    found: Contender,
    baselines: Sequence[Contender],
    accuracy: Interval,
    differences: Mapping[str, Interval],
    transferred: bool,
) -> tuple[Literal["better", "cheaper", "not better"], str]:
    """Outcome and sentence."""
    mask, seeds = f"found mask {found.genome}", f"{len(found.correct)} seeds"
    not_beaten, nothing_better, gained = "The search did not beat", "The search found nothing better than", "The"
    if transferred:
        not_beaten = nothing_better = "The mask does not transfer, as it does not beat"
        gained = "The mask transfers: the"
    ranked = sorted(baselines, key=lambda baseline: differences[baseline.name].mean)  # the most accurate first
    unbeaten = [baseline for baseline in ranked if not differences[baseline.name].low > 0]

    def noted(baseline: Contender) -> str:
        return f"({_points(differences[baseline.name], '+')}, {seeds})"

    for baseline in unbeaten:
        if differences[baseline.name].high < 0:
            return "not better", f"{not_beaten} {baseline.name}: the {mask} is worse {noted(baseline)}."
    for baseline in ranked:
        if baseline.genome == found.genome:
            return "not better", f"{nothing_better} {baseline.name}: the {mask} is the same mask."
    if len(found.correct) == 1:
        best, points = ranked[0].name, f"{100 * differences[ranked[0].name].mean:+z.1f} points"
        return "not better", f"One seed cannot tell whether the {mask} beats {best} ({points}): retrain with 5 seeds or more."
    if not unbeaten:
        percent = f"{100 * accuracy.mean:z.1f} % {_bounds(accuracy)}"
        more = f"{_points(differences[ranked[0].name])} more than the best of them, {ranked[0].name}"
        return "better", f"{gained} {mask} is better than all baselines: test accuracy {percent} over {seeds}, {more}."
    for baseline in unbeaten:
        if baseline.cost <= found.cost:
            equal = f"the {mask} is equal within noise {noted(baseline)} and costs no less to train"
            return "not better", f"{not_beaten} {baseline.name}: {equal}."
    rival = unbeaten[0]
    share = f"{100 * found.cost / rival.cost:.1f} % of its training FLOPs"
    return "cheaper", f"{gained} {mask} is equal to {rival.name} within noise {noted(rival)} at {share}."


def _points(given: Interval, sign: str = "") -> str:
    return f"{100 * given.mean:{sign}z.1f} points {_bounds(given)}"


def _bounds(given: Interval) -> str:
    return f"[{100 * given.low:z.1f}, {100 * given.high:z.1f}]"


def _check(found: Contender, baselines: Sequence[Contender], validation_accuracy: float | None) -> None:
    """Raises a ValueError with all that is wrong."""
    problems = []
    names = [baseline.name for baseline in baselines]
    if not names:
        problems.append("expected one baseline or more, got none")
    if len(set(names)) < len(names):
        problems.append(f"baselines must have different names, got {', '.join(names)}")
    shape = np.shape(found.correct)
    for name, genome, correct, cost in (found, *baselines):
        if np.ndim(correct) != 2 or np.shape(correct)[0] < 1 or np.shape(correct)[1] < 2:
            problems.append(
                f"{name}: correct must have shape (seeds, examples) with 2 examples or more, got {np.shape(correct)}"
            )
        elif np.shape(correct) != shape:
            problems.append(f"{name}: expected the same seeds and examples as {found.name}, {shape}, got {np.shape(correct)}")
        elif not ((np.asarray(correct) >= 0) & (np.asarray(correct) <= 1)).all():
            problems.append(f"{name}: correct must hold True and False, or shares from 0 to 1")
        if genome and (len(genome) != len(found.genome) or set(genome) - set("01")):
            problems.append(f"{name}: expected a genome of {len(found.genome)} genes, 0 or 1, got {genome!r}")
        if not 0 <= cost < math.inf:
            problems.append(f"{name}: cost must be a number of FLOPs, got {cost}")
    if validation_accuracy is not None and not 0 <= validation_accuracy <= 1:
        problems.append(f"validation_accuracy must be between 0 and 1, got {validation_accuracy}")
    if problems:
        raise ValueError("; ".join(problems))
