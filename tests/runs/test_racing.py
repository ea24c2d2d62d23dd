"""Racing, in simulations with known truth: who drops out, and what the verdict says then."""

import numpy as np
import pytest
from test_intervals import DEVIATION, NUM_EXPERIMENTS, simulate

from gafreeze_jax.engine.cohort import Member
from gafreeze_jax.intervals import leads
from gafreeze_jax.metrics import ACCURACY
from gafreeze_jax.report.metric_format import MetricFormat
from gafreeze_jax.runs import racing
from gafreeze_jax.runs.verdict import Contender, judge

EQUAL = (0.8,) * 8


def races(accuracies, **effects):
    """By experiment, which finalists drop out of a race with two seeds, which the first leads."""
    for correct in simulate(accuracies, racing.FIRST_SEEDS, **effects):
        yield [lead.low > 0 for lead in leads(correct.astype(float), racing.CONFIDENCE)]


@pytest.mark.parametrize(
    "effects",
    [{}, {"seed": 0.4}, {"seed": 0.0}, {"example": 1.0, "noise": 0.1}, {"example": 0.0, "noise": 1.0}],
    ids=["all_effects", "large_seed_effects", "no_seed_effects", "examples_suit_one_of_them", "noisy_answers"],
)
def test_who_is_as_good_as_the_leader_rarely_drops_out(effects):
    assert np.mean(list(races(EQUAL, **effects)), axis=0).max() < 0.01 + 3 * np.sqrt(0.01 / NUM_EXPERIMENTS)


def test_who_is_clearly_worse_drops_out():
    *_, by_10, by_20 = np.mean(list(races((*EQUAL, 0.7, 0.6), num_examples=256)), axis=0)
    assert by_10 > 0.4
    assert by_20 > 0.9


@pytest.mark.parametrize(("num_leaders", "most"), [(1, 0.025), (2, 0.04)])
@pytest.mark.parametrize("of_baselines", [(0.8,) * 3, (0.8, 0.5, 0.5)], ids=["all_equal", "one_equal"])
@pytest.mark.parametrize("effects", [{}, {"seed": 0.4}], ids=["small_seed_effects", "large_seed_effects"])
def test_after_a_race_a_mask_that_is_no_better_is_rarely_called_better(of_baselines, effects, num_leaders, most):
    """The first half of the examples is the validation split, on which the best of the search's leaders is named."""
    metric = MetricFormat(**ACCURACY.facts())
    better = 0
    for correct in simulate((0.8,) * num_leaders + of_baselines, num_examples=200, **effects):
        validation, test = np.split(correct.astype(float), 2, axis=-1)
        found = max(range(num_leaders), key=lambda leader, of=validation: of[leader].mean())
        order = [found, *range(num_leaders, len(test))]
        gaps = leads(validation[order, : racing.FIRST_SEEDS], racing.CONFIDENCE)
        best, *others = (Contender(str(i), "1", test[i], 1.0) for i in order)
        still_in = [other for other, gap in zip(others, gaps[1:], strict=True) if other is others[0] or gap.low <= 0]
        better += judge(best, [one._replace(genome="0") for one in still_in], metric=metric).outcome == "better"
    assert better / NUM_EXPERIMENTS < most + 3 * DEVIATION


def members(*shares):
    """Two members of each finalist, with that share of 100 examples right."""
    return [[Member((0,), {}, 0.0, share, 0.0, 1, values=np.arange(100) < 100 * share)] * 2 for share in shares]


def test_a_finalist_that_has_diverged_is_no_hindrance():
    *finalists, broken = members(0.9, 0.3, 0.88, 0.5)
    diverged = [member._replace(values=np.full(100, np.nan)) for member in broken]
    ahead, behind, *others = racing.race([*finalists, diverged], ACCURACY)
    assert 0 < behind.low < behind.mean < behind.high
    assert behind.mean == pytest.approx(0.6)
    assert [ahead, *others] == [None, None, None]


def test_examples_of_a_row_count_once():
    finalists = members(0.9, 0.7)
    alone, in_rows = (racing.race(finalists, ACCURACY, rows)[1] for rows in (None, np.arange(100) // 20))
    assert alone.low > 0
    assert in_rows is None  # five rows, of which one differs
