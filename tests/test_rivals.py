"""The rivals keep to their budget, can be repeated, and search."""

import contextlib
import random
import sys

import numpy as np
import pytest
import rivals
from rivals import BY_HAND, RIVALS, Budget, BudgetSpent

from gafreeze_jax.space import Space

pytestmark = pytest.mark.usefixtures("quick_compilation")

NUM_GENES = 7
EVERY = np.array(list(np.ndindex((2,) * NUM_GENES)), bool)
WEIGHTS = np.array([5, 3, -2, 4, -1, 2, -3])
BEST = WEIGHTS[WEIGHTS > 0].sum()
NEEDS = {"PyGAD": "pygad", "Optuna TPE": "optuna", "Optuna NSGA-II": "optuna"}


@pytest.fixture(params=RIVALS)
def rival(request):
    if request.param in NEEDS:
        pytest.importorskip(NEEDS[request.param])
    return RIVALS[request.param]


def make_space(num_genes=NUM_GENES, **given):
    return Space([f"gene_{i}" for i in range(num_genes)], **given)


def additive(genome):
    return float(np.array(genome) @ WEIGHTS)


def run(rival, seed=0, num_evaluations=32, num_genes=NUM_GENES, score=additive, space=None):
    budget = Budget(score, num_evaluations)
    with contextlib.suppress(BudgetSpent):
        rival(seed, space or make_space(num_genes), budget, num_evaluations)
    return budget


def test_the_budget_is_used_and_not_exceeded(rival):
    scored = []
    budget = run(rival, score=lambda genome: scored.append(genome) or additive(genome))
    assert len(scored) == len(set(scored)) == len(budget.genomes) == 32
    assert budget.genomes == scored
    assert budget.fitness == [additive(genome) for genome in budget.genomes]
    assert make_space().contains(np.array(budget.genomes))


def test_the_seed_decides(rival):
    np.random.seed(1)  # what a rival may leave behind or find, such as NumPy's global generator, does not
    random.seed(1)
    first = run(rival, seed=3)
    again, other = run(rival, seed=3), run(rival, seed=4)
    np.testing.assert_array_equal(first.genomes, again.genomes)
    assert not np.array_equal(first.genomes, other.genomes)


def test_it_searches(rival):
    found, at_random = ([max(run(one, seed).fitness) for seed in range(16)] for one in (rival, rivals.random_search))
    assert min(found) > np.median(EVERY @ WEIGHTS) + 4
    assert rival is rivals.random_search or np.mean(found) > np.mean(at_random) + 0.5


def test_the_first_genomes_are_random(rival):
    first = np.array([run(rival, seed, num_evaluations=5).genomes for seed in range(20)])
    assert first.mean() == pytest.approx(0.5, abs=0.1)  # 5 standard deviations


def test_a_space_smaller_than_the_budget_ends_it(rival):
    budget = run(rival, num_genes=2, num_evaluations=20, score=lambda genome: float(sum(genome)))
    assert max(budget.fitness) == 2
    assert len(budget.genomes) <= 4


def test_diverged_members_are_no_obstacle(rival):
    budget = run(rival, num_evaluations=40, score=lambda genome: -np.inf if genome[2] else additive(genome))
    assert len(budget.genomes) == 40
    assert max(budget.fitness) > 8


def test_the_budget_remembers():
    scored = []
    budget = Budget(lambda genome: scored.append(genome) or float(sum(genome)), num_evaluations=2, calls_per_evaluation=3)
    first, second, third = [0, 0], np.array([0, 1], bool), (1, 1)
    assert [budget(first), budget(first), budget(second), budget(first)] == [0, 0, 1, 0]
    with pytest.raises(BudgetSpent):
        budget(third)
    assert [budget(second), budget(second)] == [1, 1]
    with pytest.raises(BudgetSpent):  # after six calls
        budget(second)
    assert len(scored) == 2


@pytest.mark.parametrize(
    "given", [{"levels": (1, 0, 1 / 2)}, {"rates": (1 / 4, 1, 4)}, {"levels": (1, 0, 1 / 2, 1 / 4), "rates": (1 / 2, 1)}]
)
def test_levels_and_rates_are_searched_for_as_well(rival, given):
    space = make_space(4, **given)
    target = np.array([0, 1, 1, 0, *[0] * space.has_rate])
    budget = run(rival, num_evaluations=60, space=space, score=lambda genome: -float(np.abs(genome - target).sum()))
    genomes = np.array(budget.genomes)
    assert space.contains(genomes)
    assert all(len(set(values)) > 1 for values in genomes.T.tolist())
    assert genomes.max() == max(space.choices) - 1
    assert max(budget.fitness) >= -2


@pytest.mark.parametrize(("name", "texts"), [("train all", ["000@"]), ("prefix masks", ["000@", "100@", "110@"])])
def test_enumerations_try_each_genome_at_every_rate(name, texts):
    space = make_space(3, rates=(1 / 4, 1, 4))
    orders = [list(map(space.text, run(BY_HAND[name], seed, score=len, space=space).genomes)) for seed in range(4)]
    nothing = {"111@1"} if name == "prefix masks" else set()  # no rate counts there
    assert all(set(order) == {text + rate for text in texts for rate in ("0.25", "1", "4")} | nothing for order in orders)
    assert len(set(map(tuple, orders))) > 1


def test_suffix_masks_freeze_from_the_top():
    assert set(run(BY_HAND["suffix masks"], num_genes=2, score=len).genomes) == {(0, 0), (0, 1), (1, 1)}


def test_greedy_selection_trains_the_best_gene_more_at_a_time_and_tries_other_rates():
    space = make_space(3, rates=(1, 4))
    gains = np.array([-1.0, -3.0, 2.0, 0.5])  # of freezing each, and of the higher rate
    budget = run(BY_HAND["greedy selection"], score=lambda genome: float(genome @ gains), space=space)
    texts = list(map(space.text, budget.genomes))
    assert texts[0] == "111@1"
    assert set(texts[1:5]) == {"011@1", "101@1", "110@1", "111@4"}
    assert set(texts[5:8]) == {"001@1", "100@1", "101@4"}
    assert set(texts[8:]) == {"000@1", "001@4", "000@4"}


@pytest.mark.parametrize(("name", "package"), NEEDS.items())
def test_a_missing_package_is_named(monkeypatch, name, package):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ImportError, match=f"this rival needs {package}: pip install {package}"):
        run(RIVALS[name])
