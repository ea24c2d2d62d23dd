"""Replays keep to their budget, can be repeated and find what is to be found; what is said of them is right."""

import json
import re

import numpy as np
import pytest
import search_quality
from rivals import random_search
from search_quality import BUDGETS, MOST, OURS, SAME_STEPS, Course, Options, Variant, main, replay, run_ours, run_rival
from tables import TABLES, Table, save_table
from threadpoolctl import threadpool_limits

from gafreeze_jax.intervals import Interval
from gafreeze_jax.space import Space

pytestmark = pytest.mark.usefixtures("quick_compilation")

NUM_GENES = 8
SPACE = Space([f"layer_{i}" for i in range(NUM_GENES)])
EFFECTS = np.array([3, -1, 2, -4, 5, -2, 1, -3]) / 100
BEST = int("10101010", 2)
RATED = Space(["a", "b", "c", "d"], (1, 0, 1 / 2), (1 / 4, 1, 4), head="kept")


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
    return Table(SPACE, (2, 4, 8), validation, test, trainable.astype(float), trainable, {})


def make_rated_table(space=RATED):
    """The best genome, 0210@4, trains gene b at half of four times the rate, and freezes c; frozen it does not count."""
    genomes = space.all_genomes()
    wanted = np.array([4, 2, 0, 4])
    accuracy = 0.9 - 0.03 * np.abs(np.log2(1 + space.multipliers(genomes)) - np.log2(1 + wanted)).sum(1)
    scores = np.stack([accuracy, 1 - accuracy], -1)[:, None].astype(np.float32)
    trainable = 1.0 * (~space.frozen(genomes)).sum(1)
    return Table(space, (2, 4), np.repeat(scores[:, :, None], 2, 2), scores, trainable, trainable, {})


@pytest.mark.parametrize("variant", OURS.values(), ids=OURS)
@pytest.mark.parametrize("budget", [8, 32])
def test_ours_keeps_to_its_budget_and_can_be_repeated(variant, budget):
    table = make_table(noise=0.02)
    named, spent = run_ours(table, SPACE, 3, budget, variant)
    assert run_ours(table, SPACE, 3, budget, variant) == (named, spent)
    first = 0 if variant.halving else len(search_quality.first_genomes(SPACE, variant.start))  # is never cut short
    assert 0.9 * budget < spent <= max(budget, first)


@pytest.mark.parametrize("variant", [OURS["ours"], OURS["ours, random start"]])
def test_ours_finds_the_best_mask_where_there_is_no_noise(variant):
    assert [run_ours(make_table(), SPACE, seed, 64, variant)[0] for seed in range(4)] == [BEST] * 4


def test_ours_finds_the_best_genome_of_each_space():
    table = make_rated_table()
    quality = table.test[:, 0, 0]
    for name, space in search_quality.spaces_of(table).items():
        best = quality[table.rows(space, space.all_genomes())].max()
        assert quality[run_ours(table, space, 0, 64, Variant())[0]] == best, name
    assert RATED.text(RATED.all_genomes()[quality.argmax()]) == "0210@4"


def test_the_spaces_are_those_that_a_table_has():
    assert list(search_quality.spaces_of(make_table())) == ["masks"]
    spaces = search_quality.spaces_of(make_rated_table())
    assert {name: space.size for name, space in spaces.items()} == {
        "masks": 16,
        "masks x rate": 48,
        "levels": 81,
        "levels x rate": 243,
    }
    assert {space.head for space in spaces.values()} == {"kept"}


def test_the_first_generation_is_that_of_a_run():
    """The search itself gives these masks the rate at which training everything does best."""
    space = search_quality.spaces_of(make_rated_table())["masks x rate"]
    texts = set(map(space.text, search_quality.first_genomes(space, "baselines")))
    prefixes = set(map(space.text, search_quality.first_genomes(space, "prefixes")))
    assert prefixes == {"0000@1", "1000@1", "1100@1", "1110@1", "1111@1"}
    assert prefixes | {"0001@1", "0011@1", "0111@1"} <= texts
    assert not len(search_quality.first_genomes(space, "random"))


def test_tuning_trains_leaders_at_other_rates():
    table, space = make_rated_table(), search_quality.spaces_of(make_rated_table())["masks x rate"]
    (tuned, more), (untuned, less) = (run_ours(table, space, 0, 8, Variant(tuning=tuning)) for tuning in (True, False))
    assert more > less
    assert table.test[tuned, 0, 0] >= table.test[untuned, 0, 0]


def test_ours_sees_one_training_seed_and_no_test_score():
    table = make_table(num_seeds=2)
    table.validation[:, 1] = table.validation[::-1, 1]  # what it freezes, the other trains
    table.test[:] = np.nan
    worst = 2**NUM_GENES - 1 - BEST
    assert [run_ours(table, SPACE, seed, 64, OURS["ours"])[0] for seed in range(4)] == [BEST, worst, BEST, worst]


def test_a_rival_names_the_highest_accuracy_so_far_and_keeps_its_choice():
    table = make_table(num_seeds=2)
    table.validation[:, :, -1, 0] = 0
    table.validation[[3, 9, 5], 0, -1, 0] = 0.5, 0.9, 0.5
    table.validation[20, 1, -1, 0] = 1
    asked = [*range(8), 2, 3, 8, 9, 10]

    def rival(seed, space, evaluate, num_evaluations):
        assert (space, num_evaluations) == (SPACE, MOST)
        for number in asked:
            evaluate(SPACE.all_genomes()[number])

    runs = run_rival(table, SPACE, 0, rival)
    assert len(runs) == MOST
    assert runs[:3] == [(0, 1), (0, 2), (0, 3)]
    assert runs[3:9] == [(3, 4), (3, 5), (3, 6), (3, 7), (3, 8), (3, 9)]
    assert set(runs[10:]) == {(9, 11)}
    asked = range(100)
    assert run_rival(table, SPACE, 1, rival)[31] == (20, 32)
    assert run_rival(table, SPACE, 1, rival)[-1] == (20, MOST)


def test_regret_is_in_points_below_the_best_mean_test_accuracy(tmp_path):
    table = make_table(num_seeds=2)
    table.test[BEST, :, 0] = 0.7, 0.8
    save_table(tmp_path / "table.npz", table)
    course = replay(tmp_path / "table.npz", "masks", "random search", range(5, 8))
    assert course.regrets.shape == course.spent.shape == (3, MOST)
    assert course.spent.tolist() == [list(range(1, MOST + 1))] * 3
    for seed, regrets in zip(range(5, 8), course.regrets, strict=True):
        named = [number for number, _ in run_rival(table, SPACE, seed, random_search)]
        np.testing.assert_allclose(regrets, 75 - 100 * table.test[named].mean(1)[:, 0], atol=1e-4)


def test_ours_among_masks_takes_as_many_steps_as_in_the_larger_space(tmp_path):
    save_table(tmp_path / "table.npz", make_rated_table())
    ours, masks = (replay(tmp_path / "table.npz", "levels x rate", name, range(2)) for name in ("ours", SAME_STEPS))
    assert (masks.spent <= 16).all()  # that many masks there are
    assert (masks.spent <= ours.spent + 1).all()
    assert (ours.regrets <= masks.regrets).all()


# ---------------------------------------------------------------------------------------------------------------------
# What they come to


def test_regret_of_all_masks_is_the_mean_over_seeds_and_ties():
    table = make_table(num_seeds=2)
    table.test[...] = 0.5
    table.test[[3, 9, 5], :, 0] = [[0.6], [0.7], [0.8]]
    table.validation[:, :, -1, 0] = 0
    table.validation[3, 0, -1, 0] = table.validation[[9, 5], 1, -1, 0] = 1
    assert search_quality.regret_of_all(table, SPACE) == pytest.approx(80 - (60 + 75) / 2, abs=1e-4)


def test_training_everything_has_its_best_rate_by_validation():
    table = make_rated_table()
    everything = table.rows(RATED, RATED.at_rates([RATED.all_trained]))
    table.validation[everything, 0, -1, 0] = 0.1, 0.3, 0.2
    table.test[everything, 0, 0] = 0.6, 0.5, 0.7  # what the test set says does not choose
    best = 100 * table.test[..., 0].max()
    ours = Course(np.full((3, len(BUDGETS)), best - 58.0), np.full((3, len(BUDGETS)), 8.0))
    ahead = search_quality.ahead_of_training_everything(table, ours)
    np.testing.assert_allclose([value.mean for value in ahead], 8, atol=1e-4)


def course(*means, spent=BUDGETS):
    """Three replays, around means with each budget; in all of them, two such courses differ by the same."""
    return Course(np.array(means) + np.array([[-0.5], [0.0], [0.5]]), np.tile(np.array(spent, float), (3, 1)))


def test_a_rival_is_compared_after_as_many_training_steps():
    rival = course(*np.arange(100, 0, -1), spent=range(1, 101))
    assert rival.after(np.array([[1, 2.0, 2.1, 200]] * 3))[1].tolist() == [100, 99, 98, 1]
    assert rival.at_budgets[1].tolist() == [101 - budget for budget in BUDGETS]
    ours = course(80, 80, 80, 80, spent=(20, 20.5, 30, 70))
    assert [value.mean for value in search_quality.minus(ours, rival)] == [-1, 0, 9, 49]
    assert [value.mean for value in search_quality.minus(ours, course(1, 2, 3, 4))] == [79, 78, 77, 76]


def test_the_verdict_names_what_is_better():
    even, worse, better = (Interval(mean, mean - 1, mean + 1) for mean in (0.5, 2.0, -2.0))
    assert search_quality.told([worse, even, better, worse]) == "worse at 8 64, equal within noise at 16, better at 32"
    assert search_quality.verdict({"a": [even] * 4, "b": [better] * 4}) == "reached: never worse than a rival beyond noise"
    assert search_quality.verdict({"a": [even, worse, better, worse], "b": [even] * 4}) == (
        "MISSED:  worse than a at 16 (2.00 ±1.00), 64 (2.00 ±1.00)"
    )


# ---------------------------------------------------------------------------------------------------------------------
# The script


def test_it_runs(tmp_path, capsys, monkeypatch):
    for needed in ("optuna", "pygad", "matplotlib"):
        pytest.importorskip(needed)
    monkeypatch.setattr(search_quality.os, "environ", dict(search_quality.os.environ))
    toy = make_rated_table(Space(RATED.names, rates=RATED.rates, head="kept"))
    save_table(tmp_path / "tables" / "toy.npz", toy)
    save_table(tmp_path / "tables" / "another.npz", make_table())
    main(
        Options(
            tmp_path / "tables",
            only=("toy",),
            ablations=False,
            seeds=2,
            workers=1,
            out=tmp_path / "out.json",
            plot=tmp_path / "out.png",
        )
    )
    printed = capsys.readouterr().out
    assert "toy: 48 genomes of 1 seeds, best 0010@4 with 87.79, for confirmation\n" in printed
    (table,) = json.loads((tmp_path / "out.json").read_text())["tables"].values()
    assert list(table["spaces"]) == ["masks", "masks x rate"]
    for name, space in table["spaces"].items():
        assert list(space["algorithms"]) == search_quality.algorithms(name, ablations=False)
        for algorithm, own in space["algorithms"].items():
            means = [mean for mean, low, high in own["regret"] if low <= mean <= high]
            assert re.search(rf"\n{re.escape(algorithm)} +" + r" ±[\d.]+ +".join(f"{mean:.2f}" for mean in means), printed)
    assert (tmp_path / "out.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (Options(seeds=1, workers=0), r"--seeds must be at least 2, got 1; --workers must be at least 1, got 0"),
        (Options(only=("mnist",)), r"--only: mnist not in .*tables; it has cnn-fashion_mnist, "),
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
