"""The rivals keep to their budget, can be repeated, and search."""

import contextlib
import random
import sys

import numpy as np
import pytest
import rivals
from rivals import RIVALS, Budget, BudgetSpent

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


def additive(genome):
    return float(genome @ WEIGHTS)


def run(rival, seed=0, num_evaluations=32, num_genes=NUM_GENES, score=additive):
    budget = Budget(score, num_evaluations)
    with contextlib.suppress(BudgetSpent):
        rival(seed, num_genes, budget, num_evaluations)
    return budget


def test_the_budget_is_used_and_not_exceeded(rival):
    scored = []
    budget = run(rival, score=lambda genome: scored.append(genome.tobytes()) or additive(genome))
    assert len(scored) == len(set(scored)) == len(budget.genomes) == 32
    assert [genome.tobytes() for genome in budget.genomes] == scored
    assert budget.fitness == [additive(genome) for genome in budget.genomes]
    assert all(genome.dtype == bool and genome.shape == (NUM_GENES,) for genome in budget.genomes)


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
    budget = run(rival, num_genes=2, num_evaluations=20, score=lambda genome: float(genome.sum()))
    assert max(budget.fitness) == 2
    assert len(budget.genomes) <= 4


def test_diverged_members_are_no_obstacle(rival):
    budget = run(rival, num_evaluations=40, score=lambda genome: -np.inf if genome[2] else additive(genome))
    assert len(budget.genomes) == 40
    assert max(budget.fitness) > 8


def test_the_budget_remembers():
    scored = []
    budget = Budget(lambda genome: scored.append(genome) or float(genome.sum()), num_evaluations=2, calls_per_evaluation=3)
    first, second, third = np.array([[0, 0], [0, 1], [1, 1]])
    assert [budget(first), budget(first), budget(second), budget(first)] == [0, 0, 1, 0]
    with pytest.raises(BudgetSpent):
        budget(third)
    assert [budget(second), budget(second)] == [1, 1]
    with pytest.raises(BudgetSpent):  # after six calls
        budget(second)
    assert len(scored) == 2


@pytest.mark.parametrize(("name", "package"), NEEDS.items())
def test_a_missing_package_is_named(monkeypatch, name, package):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ImportError, match=f"this rival needs {package}: pip install {package}"):
        run(RIVALS[name])
