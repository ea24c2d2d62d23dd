"""Intervals, in simulations and by hand; main effects."""

import math
from statistics import NormalDist

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from gafreeze_jax.intervals import Interval, difference, interval, main_effects
from gafreeze_jax.space import Space

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


def test_intervals_over_seeds_alone_hold_the_truth():
    values = np.random.default_rng(0).normal(3.0, 2.0, (NUM_EXPERIMENTS, 5))
    assert coverage(3.0, map(interval, values)) == pytest.approx(0.95, abs=0.025)


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
        (([1, math.nan, math.inf],), "values must be finite, got 2 that are not"),
    ],
)
def test_no_interval_of_wrong_values(arguments, message):
    with pytest.raises(ValueError, match="must") as error:
        interval(*arguments)
    assert str(error.value) == message


def test_no_difference_of_unlike_shapes():
    with pytest.raises(ValueError, match=r"expected the same seeds and examples for both, got shapes \(5, 9\) and \(4, 9\)"):
        difference(np.zeros((5, 9)), np.zeros((4, 9)))


# Main effects


def all_genomes(num_genes):
    return Space([f"gene_{i}" for i in range(num_genes)]).all_genomes().astype(bool)


def test_main_effects_of_a_sum_are_its_terms():
    genomes = Space("abc").all_genomes()
    effects = main_effects(genomes, 0.5 + genomes @ [0.1, -0.2, 0.0], np.ones(8))
    np.testing.assert_allclose(effects, np.repeat([[0.1], [-0.2], [0.0]], 3, axis=1), atol=1e-12)


def test_of_all_masks_a_main_effect_is_a_difference_of_means():
    genomes, values = Space("abc").all_genomes(), np.random.default_rng(0).random(8)
    effects = main_effects(genomes, values, np.ones(8))
    for frozen, effect in zip(genomes.T == 1, effects, strict=True):
        assert effect.mean == pytest.approx(values[frozen].mean() - values[~frozen].mean())


def test_what_counts_more_moves_an_effect_more():
    genomes = np.array([[0], [1], [1]], bool)
    (effect,) = main_effects(genomes, np.array([0.0, 1.0, 4.0]), np.array([1.0, 2.0, 1.0]))
    assert effect.mean == pytest.approx(2.0)


def test_intervals_of_main_effects_hold_the_truth():
    rng = np.random.default_rng(0)
    truth, held = np.array([0.03, 0.0, -0.02, 0.0]), []
    for _ in range(1000):
        genomes = rng.random((12, 4)) < 0.5
        effects = main_effects(genomes, genomes @ truth + rng.normal(scale=0.02, size=12), np.ones(12))
        held += (
            [] if effects is None else [effect.low <= true <= effect.high for effect, true in zip(effects, truth, strict=True)]
        )
    assert 0.94 < np.mean(held) < 0.96


@pytest.mark.parametrize("genomes", [Space("ab").all_genomes()[:3], np.eye(5, 3, dtype=bool) | [True, False, False]])
def test_masks_that_do_not_tell_layers_apart_have_no_effects(genomes):
    assert main_effects(genomes, np.arange(float(len(genomes))), np.ones(len(genomes))) is None
