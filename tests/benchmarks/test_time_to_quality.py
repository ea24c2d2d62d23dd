"""Seconds of whole searches follow from those of measured masks, and from what replays evaluate."""

import numpy as np
import pytest
import search_quality
from threadpoolctl import threadpool_limits

pytest.importorskip("torch")
pytest.importorskip("pygad")

import time_to_quality as bench
from test_search_quality import SPACE, make_table

from gafreeze_jax.space import Space, as_genome

pytestmark = pytest.mark.usefixtures("quick_compilation")

WEIGHTS = np.array([4.0, 1.0, 2.0])
THREE = Space(["a", "b", "c"])


@pytest.fixture(autouse=True, scope="module")
def _one_thread():
    with threadpool_limits(1):
        yield


def seconds_of(mask, num_steps, scoring=10.0):
    """A step passes the blocks from the lowest trained one up, and updates what trains; scoring passes them as well."""
    mask = np.array(mask, bool)
    depth = int(np.append(mask, False).argmin())
    passed = WEIGHTS[depth:].sum()
    return num_steps * (passed + WEIGHTS[~mask].sum()) + scoring * passed + 0.5


def costs_of(space, **given):
    masks = [as_genome(mask) for mask in (*space.prefixes(), *np.eye(space.num_genes, dtype=int))]
    least = {("ours", mask, num): seconds_of(mask, num, **given) for mask in masks for num in (bench.FEW, bench.MORE)}
    return bench.make_costs(space, "ours", least, compiling=7)


def test_costs_of_all_masks_follow_from_a_few():
    costs = costs_of(THREE)
    for mask in THREE.all_genomes():
        for num_steps in (2, 64):
            assert costs(THREE.frozen(mask), num_steps) == pytest.approx(seconds_of(mask, num_steps)), mask


def test_measured_seconds_are_those_of_a_member_in_turns(monkeypatch):
    now, calls = [0.0], []

    def take(side, members):
        def evaluate(genome, num_steps):
            calls.append((side, as_genome(genome), num_steps))
            now[0] += members * seconds_of(genome, num_steps) + 3 * (len(calls) < 40)  # others disturb the first ones

        return evaluate

    monkeypatch.setattr(bench.time, "process_time", lambda: 0.0)
    costs = bench.measure(bench.Sides(THREE, take("ours", 2), take("PyTorch", 1), 2, "a plan"), 3, lambda: now[0])
    masks = list(dict.fromkeys(mask for _, mask, _ in calls))
    assert len(masks) >= 6  # prefix masks, and those that freeze one gene alone
    first_round = calls[1 + 2 * len(masks) :]
    assert [side for side, _, _ in first_round[:4]] == ["ours", "ours", "PyTorch", "PyTorch"]
    assert [mask for _, mask, _ in first_round[: 4 * len(masks) : 4]] == masks
    assert costs["ours"].compiling == costs["PyTorch"].compiling == 0
    assert costs["ours"]((0, 0, 0), 64) == pytest.approx(seconds_of((0, 0, 0), 64))


def test_a_resumed_member_costs_its_further_steps_and_a_score():
    table = make_table()
    costs = bench.Costs(bench.StepFlops([1.0] * 9, [0.0] * 8, [0.0] * 8), [0.1] * 9, 5.0)
    clocked = bench.Clocked(table, SPACE, costs)
    genomes = SPACE.all_genomes()[:2]
    members = clocked.evaluate(genomes, 0, 2)[0]
    assert clocked.seconds == pytest.approx(5 + 2 * (2 + 0.1))
    clocked.resume(members[:1], 0, 8)
    assert clocked.seconds == pytest.approx(5 + 2 * (2 + 0.1) + 6 + 0.1)
    assert [member.score for member in members] == [
        member.score for member in search_quality.Replayed(table, SPACE).evaluate(genomes, 0, 2)[0]
    ]


def test_points_count_what_is_evaluated(monkeypatch):
    monkeypatch.setattr(bench, "OUR_BUDGETS", (8, 32))
    table = make_table()
    costs = bench.Costs(bench.StepFlops([1.0] * 9, [0.0] * 8, [0.0] * 8), [0.0] * 9, 0.0)
    pygad = bench.pygad_points(table, SPACE, costs, replays=2)
    assert [point.budget for point in pygad] == list(search_quality.BUDGETS)
    assert [point.seconds for point in pygad[:3]] == [8 * 8, 16 * 8, 32 * 8]  # a step takes a second; 8 are an evaluation
    assert [point.regret for point in pygad] == sorted((point.regret for point in pygad), reverse=True)
    ours = bench.our_points(table, SPACE, costs, replays=2)
    for point, budget in zip(ours, (8, 32), strict=True):
        spent = [search_quality.run_ours(table, SPACE, seed, budget, bench.Variant())[1] for seed in range(2)]
        assert point.seconds == pytest.approx(8 * np.mean(spent))


def test_the_quickest_that_is_as_good_counts(capsys):
    pygad = [bench.Point(8, 2.0, 100.0), bench.Point(16, 0.1, 200.0)]
    ours = [bench.Point(1, 2.5, 5.0), bench.Point(2, 2.0, 20.0), bench.Point(4, 1.0, 40.0)]
    rows = bench.compare(pygad, ours)
    assert (rows[0]["ours"], rows[0]["times"]) == ({"budget": 2, "regret": 2.0, "seconds": 20.0}, 5)
    assert (rows[1]["ours"], rows[1]["times"]) == (None, None)
    bench.print_rows("table", rows, goal=5)
    printed = capsys.readouterr().out
    assert "5.00" in printed
    assert "never as good" in printed
    assert "goal, 5 times: missed at 16\n" in printed
    bench.print_rows("table", rows[:1], goal=5)
    assert "goal, 5 times: reached\n" in capsys.readouterr().out
