"""Whether a found mask is better than the baselines, judged on models retrained with fresh seeds, in one sentence.

Two things are random: the seeds (head, batches, dropout) and the test examples. All finalists share both, so they are compared
in pairs, seed by seed and example by example. Intervals cover what would change with other seeds and with other examples of the
same task (Bouthillier et al. 2021, "Accounting for variance in machine learning benchmarks"); intervals over seeds alone would
describe only this test set. They do not cover other training examples or another search.
"""

import math
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, Literal, NamedTuple

import numpy as np

from gafreeze_jax.intervals import Interval, difference, interval
from gafreeze_jax.listing import listed
from gafreeze_jax.report.metric_format import MetricFormat

Outcome = Literal["better", "cheaper", "not better"]
SEARCHED = {  # how a sentence begins
    "not beaten": "The search did not beat",
    "the same": "The search found nothing better than",
    "better": "The",
}
TRANSFERRED = {
    "not beaten": "The mask does not transfer, as it does not beat",
    "the same": "The mask does not transfer, as it does not beat",
    "better": "The mask transfers: the",
}
ROUNDING = 1e-9  # of means of contributions


class Contender(NamedTuple):
    """A mask, trained with S seeds and scored on N test examples; seeds and examples are the same for all contenders.

    Attributes:
      name: such as "train all".
      genome: as text, such as "1100"; empty for a baseline that is no mask, such as gradual unfreezing.
      scores: [S, N] contributions of the examples to the score, of which it is the mean; higher is better. For accuracy, bools
        or shares from 0 to 1, such as the share of a row's tokens that are right.
      cost: FLOPs of a training run.
    """

    name: str
    genome: str
    scores: np.ndarray
    cost: float


class Verdict(NamedTuple):
    """What the tests say about a found mask. All numbers are in the metric's own direction.

    Attributes:
      outcome: see `judge`.
      sentence: the outcome in words.
      metric: what is compared.
      value: the metric of the found mask on the test split.
      differences: {name: {other name: test metric of the first contender minus that of the other}}, for all pairs, both ways.
      gap: validation minus test metric of the found mask, or None if unknown. The best of many validation scores is optimistic.
    """

    outcome: Outcome
    sentence: str
    metric: MetricFormat
    value: Interval
    differences: Mapping[str, Mapping[str, Interval]]
    gap: float | None

    def as_json(self) -> dict[str, Any]:
        """The entry of `result.json`."""
        differences = {
            name: {other: interval.as_json() for other, interval in row.items()} for name, row in self.differences.items()
        }
        return {
            "outcome": self.outcome,
            "sentence": self.sentence,
            self.metric.key: self.value.as_json(),
            "differences": differences,
            "gap": self.gap,
        }


def judge(
    found: Contender,
    baselines: Sequence[Contender],
    *,
    metric: MetricFormat,
    validation_score: float | None = None,
    ablations: Sequence[Contender] = (),
    transferred: bool = False,
    classes: Mapping[str, np.ndarray] = MappingProxyType({}),
) -> Verdict:
    """Judges whether a found mask beats the baselines, by 95 % intervals of the differences in test scores.

    The outcome is
      "better" if each of these intervals is above 0. As every one of them must be, no correction for their number is needed (an
        intersection-union test; Berger 1982): of masks that are no better than some baseline, at most about 2.5 % are called
        better.
      "cheaper" if no interval is below 0, and training costs less than that of any baseline whose interval contains 0. So a
        baseline that is equal within noise and costs no more denies the search any merit.
      "not better" otherwise, also if the mask is one of the baselines itself, or if there is only one seed. One interval below
        0, at its own 95 %, suffices to call the mask worse, which is strict towards the search. Also if all models give every
        example a single class.

    Args:
      baselines: chosen on validation data, as `found` was, and retrained with the same seeds.
      validation_score: of the found mask, by which it was chosen.
      ablations: compared with it, too, without a say in the outcome.
      transferred: whether the mask was found on other data, so that the sentence is not about a search.
      classes: which test examples [N] belong to each class, the majority class first.

    Raises:
      ValueError: for contenders that cannot be compared, with all reasons.
    """
    _check(found, [*baselines, *ablations], metric, validation_score)
    contenders = (found, *baselines, *ablations)
    changes = {
        first.name: {other.name: difference(first.scores, other.scores) for other in contenders if other is not first}
        for first in contenders
    }
    differences = {
        name: {other: metric.shown_interval(change) for other, change in row.items()} for name, row in changes.items()
    }
    mean, low, high = metric.shown_interval(interval(found.scores))
    value = Interval(mean, *metric.limit(low, high))
    known = validation_score is not None and math.isfinite(validation_score)  # it is not if a seed diverged
    gap = metric.shown(validation_score) - value.mean if known else None
    openings = TRANSFERRED if transferred else SEARCHED
    outcome, sentence = _outcome(found, baselines, ahead=changes[found.name], value=value, metric=metric, openings=openings)
    if (constant := _constant(contenders, classes)) is not None:
        shares = f"test accuracies are that class's share; the found mask has {metric.write(value.mean)}"
        outcome, sentence = "not better", f"Nothing was learned: every model gives all test examples {constant}, so {shares}."
    return Verdict(outcome, sentence, metric, value, differences, gap)


def _constant(contenders: Sequence[Contender], classes: Mapping[str, np.ndarray]) -> str | None:
    """What all models predict for every example, in words; None if one of them predicts several classes.

    Also None if the examples are all of one class: models that are always right have learned to tell classes apart.
    """
    if sum(bool(np.any(members)) for members in classes.values()) < 2:
        return None
    predicted = set()
    for scores in (row for contender in contenders for row in contender.scores):
        label = next((label for label, members in classes.items() if np.array_equal(scores, members)), None)
        if label is None:
            return None
        predicted.add(label)
    return f"the majority class, {next(iter(predicted))}" if predicted == {next(iter(classes))} else "a single class"


def _outcome(
    found: Contender,
    baselines: Sequence[Contender],
    *,
    ahead: Mapping[str, Interval],
    value: Interval,
    metric: MetricFormat,
    openings: Mapping[str, str],
) -> tuple[Outcome, str]:
    """The outcome and its sentence.

    Args:
      ahead: by how much the found mask's score is higher than that of each baseline.
      value: the metric of the found mask.
    """
    mask, seeds = f"found mask {found.genome}", f"{len(found.scores)} seeds"

    def write(name: str) -> str:
        return f"({metric.write_difference(metric.shown_interval(ahead[name]), unit=metric.unit)}, {seeds})"

    ranked = sorted(baselines, key=lambda baseline: ahead[baseline.name].mean)  # the best first
    unbeaten = [baseline for baseline in ranked if not ahead[baseline.name].low > 0]
    for baseline in unbeaten:
        if ahead[baseline.name].high < 0:
            return "not better", f"{openings['not beaten']} {baseline.name}: the {mask} is worse {write(baseline.name)}."
    for baseline in ranked:
        if baseline.genome == found.genome:
            return "not better", f"{openings['the same']} {baseline.name}: the {mask} is the same mask."
    if len(found.scores) == 1:
        best = ranked[0].name
        change = f"{metric.write_change(metric.shown(ahead[best].mean))}{metric.unit}"
        return "not better", f"One seed cannot tell whether the {mask} beats {best} ({change}): retrain with 5 seeds or more."
    if not unbeaten:
        more = "more" if metric.higher_is_better else "less"
        lead = f"{metric.write_difference(ahead[ranked[0].name], '-', metric.unit)} {more}"
        test = f"test {metric.name} {metric.write(value.mean)} {metric.write_bounds(value.low, value.high)} over {seeds}"
        better = f"the best of them, {ranked[0].name}"
        return "better", f"{openings['better']} {mask} is better than all baselines: {test}, {lead} than {better}."
    for baseline in unbeaten:
        if baseline.cost <= found.cost:
            equal = f"the {mask} is equal within noise {write(baseline.name)} and costs no less to train"
            return "not better", f"{openings['not beaten']} {baseline.name}: {equal}."
    rival = unbeaten[0]
    share = f"{100 * found.cost / rival.cost:.1f} % of its training FLOPs"
    return "cheaper", f"{openings['better']} {mask} is equal to {rival.name} within noise {write(rival.name)} at {share}."


def _check(found: Contender, baselines: Sequence[Contender], metric: MetricFormat, validation_score: float | None) -> None:
    """Raises a ValueError with everything that is wrong."""
    problems = []
    names = [baseline.name for baseline in baselines]
    if not names:
        problems.append("expected one baseline or more, got none")
    if len(set(names)) < len(names):
        problems.append(f"baselines must have different names, got {listed(names)}")
    for contender in (found, *baselines):
        problems += [f"{contender.name}: {problem}" for problem in _problems(contender, found, metric)]
    if metric.is_share and validation_score not in (None, -math.inf) and not 0 <= metric.shown(validation_score) <= 1:
        problems.append(f"validation {metric.name} must be between 0 and 1, got {metric.shown(validation_score)}")
    if problems:
        raise ValueError("; ".join(problems))


def _problems(contender: Contender, found: Contender, metric: MetricFormat) -> list[str]:
    """Why a contender cannot be compared with the found mask."""
    problems = []
    scores, shape, expected = np.asarray(contender.scores, float), np.shape(contender.scores), np.shape(found.scores)
    if len(shape) != 2 or shape[0] < 1 or shape[1] < 2:
        problems.append(f"scores must have shape (seeds, examples) with 2 examples or more, got {shape}")
    elif shape != expected:
        problems.append(f"expected the same seeds and examples as {found.name}, {expected}, got {shape}")
    elif metric.is_share and not all(-ROUNDING <= mean <= 1 + ROUNDING for mean in metric.shown(scores.mean(1))):
        problems.append("scores must be True and False, or shares from 0 to 1")
    elif not np.isfinite(scores).all():
        problems.append("scores must be finite")
    genes, expected_genes = (finalist.genome.partition("@")[0] for finalist in (contender, found))
    if contender.genome and (len(genes) != len(expected_genes) or not genes.isdecimal()):
        problems.append(f"expected a genome of {len(expected_genes)} digits, got {contender.genome!r}")
    if not 0 <= contender.cost < math.inf:
        problems.append(f"cost must be a number of FLOPs, got {contender.cost}")
    return problems
