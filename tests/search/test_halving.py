import math

import numpy as np
import pytest

from gafreeze_jax.search.halving import Settings, correlations, estimates, promoted

RANKED = [(0, 0, 0), (0, 0, 1), (0, 1, 0), (0, 1, 1), (1, 0, 0), (1, 0, 1), (1, 1, 0), (1, 1, 1)]  # the fittest first


def everyone(genome):
    return True


def promote(new=RANKED, *, ranked=RANKED, groups=(), allowed=everyone, has_leader=True, steps_left=math.inf):
    """From the rung after 6 of 24 steps to that after 12."""
    return promoted(
        ranked, new, groups=groups, allowed=allowed, has_leader=has_leader, steps_left=steps_left, to_next=6, to_last=18
    )


def test_the_top_60_percent_continue():
    assert promote() == RANKED[:5]  # 4.8, rounded up
    assert promote(RANKED[:1], ranked=RANKED[:1]) == RANKED[:1]
    assert promote([], ranked=[]) == []


def test_earlier_generations_count_at_a_rung():
    assert promote(RANKED[4:]) == [RANKED[4]]
    assert promote(RANKED[5:]) == []


def test_the_best_of_each_group_continues_once_and_comes_first():
    assert promote(groups=[{RANKED[7]}, {RANKED[2], RANKED[5]}]) == [RANKED[7], RANKED[2], *RANKED[:2], *RANKED[3:5]]
    assert promote(RANKED[5:], groups=[{RANKED[6], RANKED[7]}]) == [RANKED[6]]
    assert promote(RANKED[5:], groups=[{RANKED[0], RANKED[7]}]) == [], "an earlier one is better"
    assert promote(RANKED[5:], groups=[set(), {(9, 9, 9)}]) == []


def test_what_may_not_lead_takes_no_place():
    odd = lambda genome: genome[2] == 1  # noqa: E731
    assert promote(allowed=odd) == [RANKED[1], RANKED[3], RANKED[5]]
    assert promote(allowed=odd, groups=[{RANKED[0]}]) == [RANKED[0], RANKED[1], RANKED[3], RANKED[5]]


@pytest.mark.parametrize(("steps_left", "num"), [(100, 5), (30, 5), (29.9, 4), (6, 1), (5.9, 0), (0, 0), (-7, 0)])
def test_the_budget_limits_how_many_continue(steps_left, num):
    assert promote(steps_left=steps_left) == RANKED[:num]


@pytest.mark.parametrize(("steps_left", "num"), [(18 + 12, 2), (18 + 11, 1), (18, 0), (0, 0)])
def test_a_groups_best_continues_at_any_price_and_is_reckoned_to_the_end(steps_left, num):
    assert promote(groups=[{RANKED[7]}], steps_left=steps_left) == [RANKED[7], *RANKED[:num]]


def test_somebody_must_lead():
    odd = lambda genome: genome[2] == 1  # noqa: E731
    assert promote(steps_left=0, has_leader=False) == RANKED[:1]
    assert promote(steps_left=0, has_leader=False, groups=[{RANKED[7]}]) == [RANKED[7]]
    assert promote(steps_left=0, has_leader=False, groups=[{RANKED[6]}], allowed=odd) == [RANKED[6], RANKED[1]]


def test_what_a_search_will_take():
    settings = Settings((6, 12, 24), generations=4, evaluations=10)
    assert settings.steps_of_genome == pytest.approx(6 + 0.6 * 6 + 0.36 * 12)
    assert settings.num_genomes(7, 3) == 4 * 3
    assert settings.num_genomes(20, 3) == 20
    assert settings._replace(generations=math.inf).num_genomes(7, 3) == pytest.approx(240 / settings.steps_of_genome)
    assert not settings.enumerates(8, 7, 3)
    assert Settings((24,), evaluations=8).enumerates(8, 7, 3)
    assert not Settings((24,), evaluations=7).enumerates(8, 7, 3)
    assert not Settings((24,)).enumerates(8, 7, 3), "a search without limits is asked for"


def test_estimates_add_the_median_gain():
    scores = {6: {(0,): 0.5, (1,): 0.4, (2,): 0.1}, 12: {(0,): 0.7, (1,): 0.5}, 24: {(0,): 0.8}}
    genomes, values, weights = estimates(scores)
    assert genomes.tolist() == [[0], [1], [2]]
    np.testing.assert_allclose(values, [0.8, 0.5 + 0.1, 0.1 + 0.3])
    np.testing.assert_allclose(weights, [1, 0.5, 0.25])


def test_correlations_where_they_are_defined():
    first = {(number,): float(number) for number in range(4)}
    reversed_, constant = {genome: -score for genome, score in first.items()}, dict.fromkeys(first, 0.5)
    assert [(one.steps, one.num) for one in correlations({6: first, 12: reversed_, 24: constant})] == [((6, 12), 4)]
    assert correlations({6: first, 12: reversed_})[0].value == pytest.approx(-1)
    assert correlations({6: first, 12: {(0,): 1.0, (1,): 2.0}}) == ()
    assert correlations({24: first}) == ()
