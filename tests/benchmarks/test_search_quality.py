"""Replays keep to their budget, can be repeated and find what is to be found; what is said of them is right."""

import json
import re

import numpy as np
import pytest
import search_quality
from rivals import random_search
from search_quality import BUDGETS, OURS, Course, Options, compare, main, replay, run_ours, run_rival
from tables import TABLES, Table, save_table
from threadpoolctl import threadpool_limits

from gafreeze_jax.intervals import Interval
from gafreeze_jax.space import Space

pytestmark = pytest.mark.usefixtures("quick_compilation")

NUM_GENES = 8
SPACE = Space([f"layer_{i}" for i in range(NUM_GENES)])
EFFECTS = np.array([3, -1, 2, -4, 5, -2, 1, -3]) / 100
BEST = int("10101010", 2)


@pytest.fixture(autouse=True, scope="module")
def _one_thread():
    """As in the script's workers."""
    with threadpool_limits(1):
        yield


def make_table(num_seeds=2, noise=0.0):
    """Accuracies to which each gene adds its own part, and that grow from stop to stop."""
    rng = np.random.default_rng(0)
    masks = SPACE.all_genomes()
    accuracy = 0.5 + masks @ EFFECTS
    validation = np.empty((len(masks), num_seeds, 3, 2), np.float32)
    for stop, share in enumerate((0.5, 0.75, 1)):
        validation[:, :, stop, 0] = share * accuracy[:, None] + noise * rng.normal(size=(len(masks), num_seeds))
    validation[..., 1] = 1 - validation[..., 0]
    test = np.repeat(np.stack([accuracy, 1 - accuracy], -1)[:, None], num_seeds, 1).astype(np.float32)
    trainable = (1 - masks).sum(1) + 1
    return Table(tuple(SPACE.names), (2, 4, 8), validation, test, trainable.astype(float), trainable, {})


@pytest.mark.parametrize("variant", OURS.values(), ids=OURS)
@pytest.mark.parametrize("budget", [8, 32])
def test_ours_keeps_to_its_budget_and_can_be_repeated(variant, budget):
    table = make_table(noise=0.02)
    named, spent = run_ours(table, 3, budget, variant)
    assert run_ours(table, 3, budget, variant) == (named, spent)
    first_generation = NUM_GENES + 1 if variant.prefixes and not variant.halving else 0  # is never cut short
    assert 0.9 * budget < spent <= max(budget, first_generation)


@pytest.mark.parametrize("variant", [OURS["ours"], OURS["ours, no prefixes"]])
def test_ours_finds_the_best_mask_where_there_is_no_noise(variant):
    assert [run_ours(make_table(), seed, 64, variant)[0] for seed in range(4)] == [BEST] * 4


def test_ours_sees_one_training_seed_and_no_test_score():
    table = make_table(num_seeds=2)
    table.validation[:, 1] = table.validation[::-1, 1]  # what it freezes, the other trains
    table.test[:] = np.nan
    worst = 2**NUM_GENES - 1 - BEST
    assert [run_ours(table, seed, 64, OURS["ours"])[0] for seed in range(4)] == [BEST, worst, BEST, worst]


def test_a_rival_names_the_highest_accuracy_so_far_and_keeps_its_choice():
    table = make_table(num_seeds=2)
    table.validation[:, :, -1, 0] = 0
    table.validation[[3, 9, 5], 0, -1, 0] = 0.5, 0.9, 0.5
    table.validation[20, 1, -1, 0] = 1
    asked = [*range(8), 2, 3, 8, 9, 10]

    def rival(seed, num_genes, evaluate, num_evaluations):
        assert (num_genes, num_evaluations) == (NUM_GENES, 64)
        for number in asked:
            evaluate(SPACE.all_genomes()[number])

    assert run_rival(table, 0, rival) == [(3, 8), (9, 11), (9, 11), (9, 11)]
    asked = range(100)
    assert run_rival(table, 1, rival) == [(0, 8), (0, 16), (20, 32), (20, 64)]


def test_regret_is_in_points_below_the_best_mean_test_accuracy(tmp_path):
    table = make_table(num_seeds=2)
    table.test[BEST, :, 0] = 0.7, 0.8
    save_table(tmp_path / "table.npz", table)
    course = replay(tmp_path / "table.npz", "random search", range(5, 8))
    assert course.regrets.shape == course.spent.shape == (3, len(BUDGETS))
    assert course.spent.tolist() == [list(BUDGETS)] * 3
    for seed, regrets in zip(range(5, 8), course.regrets, strict=True):
        named = [number for number, _ in run_rival(table, seed, random_search)]
        np.testing.assert_allclose(regrets, 75 - 100 * table.test[named].mean(1)[:, 0], atol=1e-4)


# ---------------------------------------------------------------------------------------------------------------------
# What they come to


def test_regret_of_all_masks_is_the_mean_over_seeds_and_ties():
    table = make_table(num_seeds=2)
    table.test[...] = 0.5
    table.test[[3, 9, 5], :, 0] = [[0.6], [0.7], [0.8]]
    table.validation[:, :, -1, 0] = 0
    table.validation[3, 0, -1, 0] = table.validation[[9, 5], 1, -1, 0] = 1
    assert search_quality.regret_of_all(table) == pytest.approx(80 - (60 + 75) / 2, abs=1e-4)


def course(*means, spent=BUDGETS):
    """Three replays, around means with each budget; in all of them, two such courses differ by the same."""
    return Course(np.array(means) + np.array([[-0.5], [0.0], [0.5]]), np.tile(np.array(spent, float), (3, 1)))


def courses(ours, random, tpe, nsga2, plain):
    names = ("ours", "random search", "Optuna TPE", "Optuna NSGA-II", "plain GA")
    return dict(zip(names, (ours, random, tpe, nsga2, plain), strict=True))


def test_goals_reached():
    high = course(4.0, 3.5, 3.0, 2.5)
    goals = compare(courses(course(3, 2, 1, 1, spent=(8, 15, 31, 63)), high, high, high, course(4, 3, 2.5, 2.5)))
    assert goals.steps_of_plain == 15 / 64
    assert goals.at_half == Interval(-1.5, -1.5, -1.5)
    assert goals.minus["Optuna TPE"] == [Interval(mean, mean, mean) for mean in (-1, -1.5, -2, -1.5)]
    assert goals.lines == [
        "reached: the plain GA's last regret with 50% of its steps or less: with 23%; "
        "difference with half its budget -1.50 ±0.00",
        "reached: never worse than random search: better at 8 16 32 64",
        "reached: always better than Optuna's samplers: TPE better at 8 16 32 64; NSGA-II better at 8 16 32 64",
    ]


def test_goals_missed():
    ours = course(3, 3, 2, 1)
    noisy = Course(ours.regrets + np.array([[0.4], [-0.1], [0.1]]), ours.spent)
    goals = compare(courses(ours, course(4, 2, 3, 3), course(4, 4, 4, 0), noisy, course(2, 2, 2, 0.5)))
    assert goals.steps_of_plain is None
    assert goals.lines == [
        "MISSED:  the plain GA's last regret with 50% of its steps or less: never; difference with half its budget 1.50 ±0.00",
        "MISSED:  never worse than random search: better at 8 32 64, worse at 16",
        "MISSED:  always better than Optuna's samplers: TPE better at 8 16 32, worse at 64; "
        "NSGA-II equal within noise at 8 16 32 64",
    ]


def test_equal_within_noise_is_not_worse():
    random = course(3, 3, 2, 1)
    ours = Course(random.regrets + np.array([[0.4], [-0.1], [0.1]]), random.spent)
    goals = compare(courses(ours, random, random, random, course(5, 5, 4, 3)))
    assert goals.lines[1] == "reached: never worse than random search: equal within noise at 8 16 32 64"


def test_more_than_half_of_the_steps_misses_the_goal():
    high = course(9, 9, 9, 9)
    goals = compare(
        courses(course(3, 3, 3, 1, spent=(8, 16, 32, 63)), high, high, high, course(9, 9, 9, 2, spent=(8, 16, 32, 60)))
    )
    assert goals.steps_of_plain == 63 / 60
    assert goals.lines[0].startswith("MISSED:  the plain GA's last regret with 50% of its steps or less: with 105%")


# ---------------------------------------------------------------------------------------------------------------------
# The script


def test_it_runs(tmp_path, capsys, monkeypatch):
    for needed in ("optuna", "pygad", "matplotlib"):
        pytest.importorskip(needed)
    monkeypatch.setattr(search_quality.os, "environ", dict(search_quality.os.environ))
    save_table(tmp_path / "tables" / "toy.npz", make_table(noise=0.02))
    main(Options(tmp_path / "tables", seeds=2, workers=1, out=tmp_path / "out.json", plot=tmp_path / "out.png"))
    printed = capsys.readouterr().out
    assert "toy: 256 masks, best 10101010 with 0.6100 on the test set\n" in printed
    table = json.loads((tmp_path / "out.json").read_text())["tables"]["toy"]
    assert list(table["algorithms"]) == [*OURS, *search_quality.RIVALS]
    for name, own in table["algorithms"].items():
        means = [mean for mean, low, high in own["regret"] if low <= mean <= high]
        assert re.search(rf"\n{re.escape(name)} +" + r" ±[\d.]+ +".join(f"{mean:.2f}" for mean in means), printed)
    assert (tmp_path / "out.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (Options(seeds=1, workers=0), r"--seeds must be at least 2, got 1; --workers must be at least 1, got 0"),
        (Options(tables=TABLES / "none"), r"--tables: no \.npz files in .*none; freezebench\.py makes them"),
    ],
)
def test_wrong_options_end_it_in_a_line(options, message, capsys):
    with pytest.raises(SystemExit):
        main(options)
    assert re.search(message, capsys.readouterr().err)


def test_what_is_missing_is_told(tmp_path, capsys, monkeypatch):
    find_spec = search_quality.importlib.util.find_spec
    monkeypatch.setattr(
        search_quality.importlib.util, "find_spec", lambda name: None if name == "matplotlib" else find_spec(name)
    )
    table = make_table()
    table.test[7, 1] = np.nan
    save_table(tmp_path / "part.npz", table)
    with pytest.raises(SystemExit):
        main(Options(tmp_path, plot=tmp_path / "out.png"))
    told = capsys.readouterr().err
    assert "matplotlib is missing: pip install matplotlib; " in told
    assert "part.npz: 1 of 512 trainings are missing; freezebench.py goes on with them" in told
