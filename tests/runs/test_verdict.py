import functools
import json
import math

import numpy as np
import pytest
from test_intervals import DEVIATION, simulate

from gafreeze_jax.intervals import difference, interval
from gafreeze_jax.metrics import ACCURACY
from gafreeze_jax.report.metric_format import MetricFormat
from gafreeze_jax.runs.verdict import Contender
from gafreeze_jax.runs.verdict import judge as judge_by

judge = functools.partial(judge_by, metric=MetricFormat(**ACCURACY.facts()))

# Error rates of verdicts

NAMES = ("train all", "head only", "best prefix mask", "best random mask")


def outcomes(accuracies, cost=1.0, **effects):
    """Outcome and sentence of verdicts on a found mask, by its and the baselines' true accuracies."""
    for found, *others in simulate(accuracies, **effects):
        named = zip(NAMES, others, strict=False)
        yield judge(Contender("found", "1", found, cost), [Contender(name, "0", correct, 1.0) for name, correct in named])[:2]


@pytest.mark.parametrize("accuracies", [(0.8, 0.8, 0.8, 0.8), (0.8, 0.8, 0.5, 0.5)], ids=["all_equal", "one_equal"])
@pytest.mark.parametrize("effects", [{}, {"seed": 0.4}], ids=["small_seed_effects", "large_seed_effects"])
def test_a_mask_that_is_no_better_is_rarely_called_better(accuracies, effects):
    share = np.mean([outcome == "better" for outcome, _ in outcomes(accuracies, **effects)])
    assert share < 0.025 + 3 * DEVIATION


def test_a_better_mask_is_found():
    """By about 4.5 standard errors: 10 points."""
    assert np.mean([outcome == "better" for outcome, _ in outcomes((0.87, 0.77, 0.77), num_examples=200)]) > 0.92


def test_a_worse_mask_is_told_so():
    told = list(outcomes((0.77, 0.77, 0.87), cost=0.5, num_examples=200))
    assert np.mean([sentence.startswith("The search did not beat head only: ") for _, sentence in told]) > 0.92
    assert not any(outcome == "better" for outcome, _ in told)


# Sentences


def finalist(name, genome, right, cost=4.0):
    """Scores of 5 like seeds on 100 examples, of which the first `right` are answered right."""
    return Contender(name, genome, np.tile(np.arange(100) < right, (5, 1)), cost)


TRAIN_ALL, HEAD_ONLY, PREFIX = "0000000", "1111111", "1100000"
FOUND = finalist("found", "1101001", 80, 2.0)
CASES = {
    # Of an accuracy of 0.8 the standard error is sqrt(0.8 * 0.2 / 99), of 10 examples more sqrt(0.1 * 0.9 / 99); t is 1.984.
    "better": (
        [finalist("head only", HEAD_ONLY, 60, 1.0), finalist("train all", TRAIN_ALL, 70)],
        "better",
        "The found mask 1101001 is better than all baselines: test accuracy 80.0 % [72.0, 88.0] over 5 seeds, "
        "10.0 points [4.0, 16.0] more than the best of them, train all.",
    ),
    # Two examples of 100: sqrt(0.02 * 0.98 / 99) = 1.407 points. Head only is cheaper, but beaten.
    "cheaper": (
        [finalist("head only", HEAD_ONLY, 60, 1.0), finalist("train all", TRAIN_ALL, 82), finalist("prefix", PREFIX, 79, 3.0)],
        "cheaper",
        "The found mask 1101001 is equal to train all within noise (-2.0 points [-4.8, 0.8], 5 seeds) "
        "at 50.0 % of its training FLOPs.",
    ),
    "cheaper_and_more_accurate": (
        [finalist("train all", TRAIN_ALL, 78, 6.0)],
        "cheaper",
        "The found mask 1101001 is equal to train all within noise (+2.0 points [-0.8, 4.8], 5 seeds) "
        "at 33.3 % of its training FLOPs.",
    ),
    "no_difference_at_all": (
        [finalist("train all", TRAIN_ALL, 80)],
        "cheaper",
        "The found mask 1101001 is equal to train all within noise (+0.0 points [0.0, 0.0], 5 seeds) "
        "at 50.0 % of its training FLOPs.",
    ),
    "a_baseline_costs_as_little": (
        [finalist("train all", TRAIN_ALL, 81), finalist("best prefix mask", PREFIX, 79, 2.0)],
        "not better",
        "The search did not beat best prefix mask: the found mask 1101001 is equal within noise (+1.0 points [-1.0, 3.0], "
        "5 seeds) and costs no less to train.",
    ),
    "worse": (
        [finalist("train all", TRAIN_ALL, 82), finalist("head only", HEAD_ONLY, 90, 1.0)],
        "not better",
        "The search did not beat head only: the found mask 1101001 is worse (-10.0 points [-16.0, -4.0], 5 seeds).",
    ),
    "the_found_mask_is_a_baseline": (
        [finalist("head only", HEAD_ONLY, 60, 1.0), finalist("best prefix mask", "1101001", 80, 2.0)],
        "not better",
        "The search found nothing better than best prefix mask: the found mask 1101001 is the same mask.",
    ),
    "the_found_mask_is_a_baseline_and_worse_than_another": (
        [finalist("head only", HEAD_ONLY, 90, 1.0), finalist("best prefix mask", "1101001", 80, 2.0)],
        "not better",
        "The search did not beat head only: the found mask 1101001 is worse (-10.0 points [-16.0, -4.0], 5 seeds).",
    ),
}


@pytest.mark.parametrize(("baselines", "outcome", "sentence"), CASES.values(), ids=CASES)
def test_the_sentence(baselines, outcome, sentence):
    for order in (baselines, baselines[::-1]):
        assert judge(FOUND, order)[:2] == (outcome, sentence)


TRANSFERS = {
    "better": "The mask transfers: the found mask 1101001 is better than all baselines: ",
    "cheaper": "The mask transfers: the found mask 1101001 is equal to train all within noise (-2.0 points",
    "a_baseline_costs_as_little": "The mask does not transfer, as it does not beat best prefix mask: the found mask",
    "worse": "The mask does not transfer, as it does not beat head only: the found mask 1101001 is worse (-10.0 points",
    "the_found_mask_is_a_baseline": "The mask does not transfer, as it does not beat best prefix mask: the found mask",
}  # fmt: skip


@pytest.mark.parametrize("case", TRANSFERS)
def test_the_sentence_on_a_mask_from_elsewhere(case):
    baselines, outcome, _ = CASES[case]
    verdict = judge(FOUND, baselines, transferred=True)
    assert verdict.outcome == outcome
    assert verdict.sentence.startswith(TRANSFERS[case])


def test_nothing_is_minus_nothing():
    almost = FOUND.scores.astype(float)
    almost[:, 0] = 0.99  # -0.01 points [-0.03, 0.01]
    verdict = judge(FOUND._replace(scores=almost), [finalist("train all", TRAIN_ALL, 80)])
    assert "(+0.0 points [0.0, 0.0], 5 seeds)" in verdict.sentence


def test_one_seed_says_little():
    found, baseline = (one._replace(scores=one.scores[:1]) for one in (FOUND, finalist("train all", TRAIN_ALL, 60)))
    verdict = judge(found, [baseline])
    assert verdict.outcome == "not better"
    assert verdict.sentence == (
        "One seed cannot tell whether the found mask 1101001 beats train all (+20.0 points): retrain with 5 seeds or more."
    )
    content = json.loads(json.dumps(verdict.as_json(), allow_nan=False))
    assert content["differences"]["found"]["train all"] == {"mean": pytest.approx(0.2), "low": None, "high": None}
    assert judge(found, [found._replace(name="train all")]).sentence.startswith(
        "The search found nothing better than train all"
    )


def test_a_verdict_holds_the_numbers():
    baselines = [finalist("train all", TRAIN_ALL, 70), finalist("head only", HEAD_ONLY, 60, 1.0)]
    verdict = judge(FOUND, baselines, validation_score=0.875)
    assert verdict.value == interval(FOUND.scores)
    assert verdict.differences == {
        one.name: {other.name: difference(one.scores, other.scores) for other in (FOUND, *baselines) if other is not one}
        for one in (FOUND, *baselines)
    }
    assert verdict.differences["head only"]["train all"].mean == pytest.approx(-0.1)
    assert verdict.gap == pytest.approx(0.075)
    assert judge(FOUND, baselines).gap is None
    assert json.loads(json.dumps(verdict.as_json(), allow_nan=False)) == {
        "outcome": "better",
        "sentence": verdict.sentence,
        "accuracy": verdict.value._asdict(),
        "differences": {
            name: {other: given._asdict() for other, given in own.items()} for name, own in verdict.differences.items()
        },
        "gap": verdict.gap,
    }


@pytest.mark.parametrize(("right", "limit"), [(99, "high"), (1, "low")])
def test_an_accuracy_stays_within_its_limits(right, limit):
    verdict = judge(FOUND._replace(scores=finalist("", "", right).scores), [finalist("train all", TRAIN_ALL, 50)])
    assert getattr(verdict.value, limit) == {"high": 1.0, "low": 0.0}[limit]
    assert verdict.value.mean == pytest.approx(right / 100)


GOOD = finalist("train all", TRAIN_ALL, 70)


@pytest.mark.parametrize(
    ("baselines", "validation_score", "message"),
    [
        ([], None, "expected one baseline or more, got none"),
        ([GOOD, GOOD], None, "baselines must have different names, got train all, train all"),
        (
            [GOOD._replace(scores=GOOD.scores[:4])],
            None,
            "train all: expected the same seeds and examples as found, (5, 100), got (4, 100)",
        ),
        (
            [GOOD._replace(scores=GOOD.scores.mean(1))],
            None,
            "train all: scores must have shape (seeds, examples) with 2 examples or more, got (5,)",
        ),
        (
            [GOOD._replace(scores=GOOD.scores[:0])],
            None,
            "train all: scores must have shape (seeds, examples) with 2 examples or more, got (0, 100)",
        ),
        (
            [GOOD._replace(scores=GOOD.scores * 100.0)],
            None,
            "train all: scores must be True and False, or shares from 0 to 1",
        ),
        (
            [GOOD._replace(scores=np.full((5, 100), math.nan))],
            None,
            "train all: scores must be True and False, or shares from 0 to 1",
        ),
        ([GOOD._replace(genome="000000")], None, "train all: expected a genome of 7 digits, got '000000'"),
        ([GOOD._replace(genome="000000x")], None, "train all: expected a genome of 7 digits, got '000000x'"),
        ([GOOD._replace(cost=math.nan)], None, "train all: cost must be a number of FLOPs, got nan"),
        (
            [GOOD._replace(cost=-1.0)],
            81.0,
            "train all: cost must be a number of FLOPs, got -1.0; validation accuracy must be between 0 and 1, got 81.0",
        ),
    ],
)
def test_finalists_that_cannot_be_compared(baselines, validation_score, message):
    with pytest.raises(ValueError, match=r"must|expected") as error:
        judge(FOUND, baselines, validation_score=validation_score)
    assert str(error.value) == message


# A metric that is no share, and lower is better

ERROR = MetricFormat("mean error", higher_is_better=False, is_share=False)


def by_error(name, error, cost=4.0):
    """Five seeds on 100 examples with errors around a mean, as scores."""
    return Contender(name, "1100" if name == "found" else "0000", -error - np.tile(np.linspace(-0.1, 0.1, 100), (5, 1)), cost)


def test_a_lower_error_is_better():
    verdict = judge_by(by_error("found", 2.5), [by_error("train all", 3.0)], metric=ERROR, validation_score=-2.25)
    assert verdict.sentence == (
        "The found mask 1100 is better than all baselines: test mean error 2.5 [2.488, 2.512] over 5 seeds, "
        "0.5 [0.5, 0.5] less than the best of them, train all."
    )
    assert verdict.outcome == "better"
    assert verdict.gap == pytest.approx(-0.25)
    written = json.loads(json.dumps(verdict.as_json(), allow_nan=False))
    assert written["mean_error"]["mean"] == pytest.approx(2.5)
    assert written["differences"]["found"]["train all"]["mean"] == pytest.approx(-0.5)


def test_a_higher_error_is_worse():
    verdict = judge_by(by_error("found", 3.5), [by_error("train all", 3.0)], metric=ERROR)
    assert verdict.outcome == "not better"
    assert verdict.sentence == ("The search did not beat train all: the found mask 1100 is worse (+0.5 [0.5, 0.5], 5 seeds).")
