import json
import math
from statistics import NormalDist

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from gafreeze_jax.runs.verdict import Contender, Interval, as_json, difference, interval, judge

NUM_EXPERIMENTS = 2_000
DEVIATION = math.sqrt(0.025 * 0.975 / NUM_EXPERIMENTS)  # of a frequency of 2.5 %


def simulate(accuracies, num_seeds=5, num_examples=100, *, seed=0.1, common_seed=0.1, example=0.3, difficulty=1.0, noise=0.4):
    """Correctness [R, F, S, N] in R experiments of finalists whose true accuracies are known.

    An answer is right where a sum of normal effects exceeds a threshold. Finalists have `difficulty` of the examples and
    `common_seed` in common; `seed`, `example` and `noise` are each finalist's own.
    """
    rng = np.random.default_rng(0)

    def normal(num_finalists, num_seeds, num_examples):
        return rng.standard_normal((NUM_EXPERIMENTS, num_finalists, num_seeds, num_examples), dtype=np.float32)

    num = len(accuracies)
    effects = seed * normal(num, num_seeds, 1) + example * normal(num, 1, num_examples)
    effects = effects + (common_seed * normal(1, num_seeds, 1) + difficulty * normal(1, 1, num_examples))
    effects += noise * normal(num, num_seeds, num_examples)
    deviation = math.sqrt(seed**2 + common_seed**2 + example**2 + difficulty**2 + noise**2)
    thresholds = [deviation * NormalDist().inv_cdf(1 - accuracy) for accuracy in accuracies]
    return effects > np.array(thresholds, np.float32)[:, None, None]


def coverage(truth, intervals):
    return np.mean([low <= truth <= high for _, low, high in intervals])


# ---------------------------------------------------------------------------------------------------------------------
# Intervals

SETTINGS = {
    "all_effects": ((0.8, 0.8), {}),
    "a_true_difference": ((0.7, 0.65), {"num_examples": 400}),
    "no_seed_effects": ((0.8, 0.75), {"seed": 0.0}),
    "large_seed_effects": ((0.8, 0.8), {"seed": 0.4}),
    "examples_suit_one_of_them": ((0.8, 0.8), {"example": 1.0, "noise": 0.1}),
    "noisy_answers": ((0.8, 0.75), {"example": 0.0, "noise": 1.0}),
    "rarely_wrong": ((0.97, 0.96), {}),
    "ten_seeds": ((0.6, 0.65), {"num_seeds": 10, "num_examples": 200}),
}


@pytest.mark.parametrize(("accuracies", "effects"), SETTINGS.values(), ids=SETTINGS)
def test_intervals_of_differences_hold_the_truth(accuracies, effects):
    intervals = [difference(first, second) for first, second in simulate(accuracies, **effects)]
    truth = accuracies[0] - accuracies[1]
    assert 0.935 < coverage(truth, intervals) < 0.99
    assert max(np.mean([(low > truth, high < truth) for _, low, high in intervals], axis=0)) < 0.025 + 3 * DEVIATION


def test_intervals_of_shares_hold_the_truth():
    """Rows of text: shares of right tokens, of which examples explain more than seeds."""
    rng = np.random.default_rng(0)
    shapes = (2, 5, 1), (2, 1, 50), (2, 5, 50)
    parts = [rng.uniform(-size, size, (NUM_EXPERIMENTS, *shape)) for size, shape in zip((0.01, 0.1, 0.05), shapes, strict=True)]
    shares = sum(parts) + np.array([0.55, 0.5])[:, None, None]
    assert 0.935 < coverage(0.05, [difference(first, second) for first, second in shares]) < 0.99


@pytest.mark.parametrize("accuracy", [0.6, 0.85])
def test_intervals_of_accuracies_hold_the_truth(accuracy):
    correct = simulate((accuracy,), num_examples=200)[:, 0]
    assert 0.925 < coverage(accuracy, map(interval, correct)) < 0.99


@pytest.mark.parametrize("num_seeds", [2, 3])
def test_few_seeds_say_a_little_too_much(num_seeds):
    correct = simulate((0.8, 0.8), num_seeds, num_examples=400)
    assert 0.88 < coverage(0.0, [difference(first, second) for first, second in correct]) < 0.98


def test_accuracies_near_1_on_few_examples_have_narrow_intervals():
    assert 0.88 < coverage(0.97, map(interval, simulate((0.97,))[:, 0])) < 0.93


@pytest.mark.parametrize("confidence", [0.5, 0.95])
def test_intervals_over_seeds_alone_hold_the_truth(confidence):
    values = np.random.default_rng(0).normal(3.0, 2.0, (NUM_EXPERIMENTS, 5))
    held = coverage(3.0, [interval(row, confidence) for row in values])
    assert held == pytest.approx(confidence, abs=0.025 if confidence == 0.95 else 0.05)


def test_seeds_alone_say_too_much_of_a_task():
    """Which is why intervals are over examples as well."""
    accuracies, effects = SETTINGS["examples_suit_one_of_them"]
    by_seed = simulate(accuracies, **effects).mean(-1)
    assert coverage(0.0, [difference(first, second) for first, second in by_seed]) < 0.7


def test_pairs_make_narrow_intervals():
    first, second = simulate((0.8, 0.8))[0]
    paired, apart = difference(first, second), (interval(first), interval(second))
    assert (paired.high - paired.low) < 0.7 * math.hypot(*(each.high - each.low for each in apart))


def test_two_ways_by_hand():
    # Means of seeds 2 and 5, variance 4.5 / 2; of examples 2, 3 and 5.5, variance 3.25 / 3; the rest, +-(1/2, 1/2, -1), has a
    # mean square of 3 / 2, of which 1 / 6 is in either.
    variance = 9 / 4 + 13 / 12 - 1 / 4
    freedom = variance**2 / ((9 / 4) ** 2 / 1 + (13 / 12) ** 2 / 2)
    half = stats.t.ppf(0.975, freedom) * math.sqrt(variance)
    assert interval([[1, 2, 3], [3, 4, 8]]) == pytest.approx((3.5, 3.5 - half, 3.5 + half))


def test_it_is_students_t_where_one_effect_is_missing():
    values = np.array([0.5, 0.25, 0.75, 0.5, 1.0])
    expected = stats.ttest_1samp(values, 0.0).confidence_interval(0.95)
    only_seeds, only_examples = values[:, None].repeat(7, 1), values[None].repeat(7, 0)
    for same in (values, only_seeds, only_examples):
        assert interval(same) == pytest.approx((0.6, expected.low, expected.high))
    wide, narrow = interval(values, 0.99), interval(values, 0.5)
    assert wide.low < expected.low < narrow.low < 0.6 < narrow.high < expected.high < wide.high


@pytest.mark.parametrize("values", [[0.25] * 5, np.full((5, 7), 0.25)])
def test_no_variance(values):
    assert interval(values) == Interval(0.25, 0.25, 0.25)


@pytest.mark.parametrize("values", [[0.25], [[0.0, 0.5]]])
def test_one_seed_has_no_interval(values):
    mean, low, high = interval(values)
    assert mean == 0.25
    assert math.isnan(low)
    assert math.isnan(high)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(2, 6), st.integers(2, 9))
def test_order_does_not_matter_and_a_difference_has_two_sides(seed, num_seeds, num_examples):
    rng = np.random.default_rng(seed)
    first, second = rng.random((2, num_seeds, num_examples)) < 0.5
    mean, low, high = difference(first, second)
    assert low <= mean <= high
    assert difference(second, first) == pytest.approx((-mean, -high, -low))
    rows, columns = rng.permutation(num_seeds)[:, None], rng.permutation(num_examples)
    assert difference(first[rows, columns], second[rows, columns]) == pytest.approx((mean, low, high))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([],), "values must have shape (seeds,) or (seeds, examples) with 2 examples or more, got (0,)"),
        (([[1], [0]],), "values must have shape (seeds,) or (seeds, examples) with 2 examples or more, got (2, 1)"),
        ((0.5,), "values must have shape (seeds,) or (seeds, examples) with 2 examples or more, got ()"),
        ((np.zeros((2, 3, 4)),), "values must have shape (seeds,) or (seeds, examples) with 2 examples or more, got (2, 3, 4)"),
        (([1, math.nan, math.inf], 1), "values must be finite, got 2 that are not; confidence must be between 0 and 1, got 1"),
    ],
)
def test_no_interval_of_wrong_values(arguments, message):
    with pytest.raises(ValueError, match="must") as error:
        interval(*arguments)
    assert str(error.value) == message


def test_no_difference_of_unlike_shapes():
    with pytest.raises(ValueError, match=r"expected the same seeds and examples for both, got shapes \(5, 9\) and \(4, 9\)"):
        difference(np.zeros((5, 9)), np.zeros((4, 9)))


# ---------------------------------------------------------------------------------------------------------------------
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


# ---------------------------------------------------------------------------------------------------------------------
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
    almost = FOUND.correct.astype(float)
    almost[:, 0] = 0.99  # -0.01 points [-0.03, 0.01]
    verdict = judge(FOUND._replace(correct=almost), [finalist("train all", TRAIN_ALL, 80)])
    assert "(+0.0 points [0.0, 0.0], 5 seeds)" in verdict.sentence


def test_one_seed_says_little():
    found, baseline = (one._replace(correct=one.correct[:1]) for one in (FOUND, finalist("train all", TRAIN_ALL, 60)))
    verdict = judge(found, [baseline])
    assert verdict.outcome == "not better"
    assert verdict.sentence == (
        "One seed cannot tell whether the found mask 1101001 beats train all (+20.0 points): retrain with 5 seeds or more."
    )
    content = json.loads(json.dumps(as_json(verdict), allow_nan=False))
    assert content["differences"]["found"]["train all"] == {"mean": pytest.approx(0.2), "low": None, "high": None}
    assert judge(found, [found._replace(name="train all")]).sentence.startswith(
        "The search found nothing better than train all"
    )


def test_a_verdict_holds_the_numbers():
    baselines = [finalist("train all", TRAIN_ALL, 70), finalist("head only", HEAD_ONLY, 60, 1.0)]
    verdict = judge(FOUND, baselines, validation_accuracy=0.875)
    assert verdict.accuracy == interval(FOUND.correct)
    assert verdict.differences == {
        one.name: {other.name: difference(one.correct, other.correct) for other in (FOUND, *baselines) if other is not one}
        for one in (FOUND, *baselines)
    }
    assert verdict.differences["head only"]["train all"].mean == pytest.approx(-0.1)
    assert verdict.gap == pytest.approx(0.075)
    assert judge(FOUND, baselines).gap is None
    assert json.loads(json.dumps(as_json(verdict), allow_nan=False)) == {
        "outcome": "better",
        "sentence": verdict.sentence,
        "accuracy": verdict.accuracy._asdict(),
        "differences": {
            name: {other: given._asdict() for other, given in own.items()} for name, own in verdict.differences.items()
        },
        "gap": verdict.gap,
    }


@pytest.mark.parametrize(("right", "limit"), [(99, "high"), (1, "low")])
def test_an_accuracy_stays_within_its_limits(right, limit):
    verdict = judge(FOUND._replace(correct=finalist("", "", right).correct), [finalist("train all", TRAIN_ALL, 50)])
    assert getattr(verdict.accuracy, limit) == {"high": 1.0, "low": 0.0}[limit]
    assert verdict.accuracy.mean == pytest.approx(right / 100)


GOOD = finalist("train all", TRAIN_ALL, 70)


@pytest.mark.parametrize(
    ("baselines", "validation_accuracy", "message"),
    [
        ([], None, "expected one baseline or more, got none"),
        ([GOOD, GOOD], None, "baselines must have different names, got train all, train all"),
        (
            [GOOD._replace(correct=GOOD.correct[:4])],
            None,
            "train all: expected the same seeds and examples as found, (5, 100), got (4, 100)",
        ),
        (
            [GOOD._replace(correct=GOOD.correct.mean(1))],
            None,
            "train all: correct must have shape (seeds, examples) with 2 examples or more, got (5,)",
        ),
        (
            [GOOD._replace(correct=GOOD.correct[:0])],
            None,
            "train all: correct must have shape (seeds, examples) with 2 examples or more, got (0, 100)",
        ),
        (
            [GOOD._replace(correct=GOOD.correct * 100.0)],
            None,
            "train all: correct must hold True and False, or shares from 0 to 1",
        ),
        (
            [GOOD._replace(correct=np.full((5, 100), math.nan))],
            None,
            "train all: correct must hold True and False, or shares from 0 to 1",
        ),
        ([GOOD._replace(genome="000000")], None, "train all: expected a genome of 7 genes, 0 or 1, got '000000'"),
        ([GOOD._replace(genome="000000x")], None, "train all: expected a genome of 7 genes, 0 or 1, got '000000x'"),
        ([GOOD._replace(cost=math.nan)], None, "train all: cost must be a number of FLOPs, got nan"),
        (
            [GOOD._replace(cost=-1.0)],
            81.0,
            "train all: cost must be a number of FLOPs, got -1.0; validation_accuracy must be between 0 and 1, got 81.0",
        ),
    ],
)
def test_finalists_that_cannot_be_compared(baselines, validation_accuracy, message):
    with pytest.raises(ValueError, match=r"must|expected") as error:
        judge(FOUND, baselines, validation_accuracy)
    assert str(error.value) == message
