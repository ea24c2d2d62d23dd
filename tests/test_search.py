import csv
import functools
import math
from typing import NamedTuple

import jax
import numpy as np
import pytest

from gafreeze_jax import genetic, masking
from gafreeze_jax.ledger import Evaluation, Ledger, genome_text
from gafreeze_jax.search import search

NUM_GENES = 6
PREFIXES = masking.prefix_genomes(NUM_GENES)
EFFECTS, NOISE = np.split(np.random.default_rng(0).normal(size=NUM_GENES + 2**NUM_GENES), [NUM_GENES])
MASKS = np.array(list(np.ndindex((2,) * NUM_GENES)))
TABLE = 0.7 + 0.03 * MASKS @ EFFECTS + 0.01 * NOISE  # accuracy of every mask
make_ga = functools.cache(genetic.make_ga)  # compiled once


class Trained(NamedTuple):
    genome: np.ndarray
    accuracy: float
    loss: float = 0.5
    train_loss: float = 0.5


def accuracy(genome):
    return float(TABLE[int(genome_text(genome), 2)])


def run(seed=0, population=6, gens=8, evaluate=None, ledger=None, groups=None):
    """Searches the table; returns the result, the ledger, all that was evaluated, and the generations."""
    evaluated, generations = [], []

    def look_up(genomes):
        evaluated.extend(map(genome_text, genomes))
        return [Trained(genome, accuracy(genome)) for genome in reversed(genomes)]

    ledger = Ledger() if ledger is None else ledger
    fittest = search(
        make_ga(NUM_GENES, population),
        jax.random.key(seed),
        evaluate or look_up,
        ledger,
        num_generations=gens,
        initial=PREFIXES,
        count_trainable=lambda genome: int((~genome).sum()),
        groups=groups or {},
        on_generation=generations.append,
    )
    return fittest, ledger, evaluated, generations


def test_no_genome_is_evaluated_twice():
    _, ledger, evaluated, generations = run()
    assert len(evaluated) == len(set(evaluated)) == len(ledger)
    assert sum(generation.num_new for generation in generations) == len(ledger)
    assert [generation.number for generation in generations] == list(range(1, 9))
    assert sum(generation.num_known for generation in generations) > 0


@pytest.mark.parametrize("population", [2, 6, 12])
def test_the_first_generation_holds_the_usual_answers(population):
    _, ledger, evaluated, generations = run(population=population, gens=1)
    assert {genome_text(genome) for genome in PREFIXES} <= set(evaluated)
    assert all(evaluation.generation == 1 for evaluation in ledger)
    assert generations[0].num_new == len(ledger) >= len(PREFIXES)


def test_the_best_evaluation_is_found_and_never_lost():
    fittest, ledger, _, generations = run()
    best = max(ledger, key=lambda evaluation: evaluation.accuracy)
    assert fittest["found"][0] == best
    assert genome_text(fittest["found"][1].genome) == best.genome
    assert best.accuracy == accuracy(fittest["found"][1].genome)
    course = [generation.best.accuracy for generation in generations]
    assert course == sorted(course)


def test_it_comes_close_to_the_best_mask_of_the_table():
    better = [(run(seed=seed, population=8, gens=10)[0]["found"][0].accuracy < TABLE).sum() for seed in range(5)]
    assert max(better) <= 3, "of 64 masks"
    assert min(better) == 0


def test_groups_keep_their_own_fittest():
    fittest, _, _, _ = run(groups={"prefix": PREFIXES[1:-1], "train all": PREFIXES[:1]})
    assert fittest["train all"][0].genome == "000000"
    assert fittest["prefix"][0].accuracy == max(accuracy(genome) for genome in PREFIXES[1:-1])


def test_same_seed_same_search():
    assert run(seed=3)[2] == run(seed=3)[2]
    assert run(seed=3)[2] != run(seed=4)[2]


def test_ties_go_to_lower_loss_and_then_to_fewer_trainable_parameters():
    def evaluate(genomes):
        return [Trained(genome, 0.5, loss=0.1 if genome[0] else 0.2) for genome in genomes]

    fittest, _, _, _ = run(evaluate=evaluate)
    assert fittest["found"][0].genome == "111111"


def test_a_diverged_member_never_wins():
    def evaluate(genomes):
        return [
            Trained(genome, accuracy(genome) if genome.any() else 1.0, math.nan if not genome.any() else 0.5)
            for genome in genomes
        ]

    fittest, ledger, _, _ = run(evaluate=evaluate)
    assert fittest["found"][0].genome != "000000"
    assert [evaluation.genome for evaluation in ledger if evaluation.diverged] == ["000000"]


def test_frozen_share_is_that_of_the_generation():
    _, _, evaluated, generations = run(gens=1, population=2)
    genomes = np.array([[gene == "1" for gene in text] for text in evaluated])
    assert len(genomes) == generations[0].num_new
    np.testing.assert_allclose(generations[0].frozen_share, genomes.mean(0), rtol=1e-6)


def test_the_ledger_writes_each_evaluation_as_it_comes(tmp_path):
    path = tmp_path / "evaluations.csv"
    ledger = Ledger(path)
    for number, text in enumerate(("10", "01"), start=1):
        ledger.add(Evaluation(text, 1, 0.5, 0.25 if number == 1 else math.nan, 0.125, 10, 1.5))
        with open(path, encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file))
        assert len(rows) == number
    assert rows[0] == {
        "evaluation": "1", "genome": "10", "generation": "1", "accuracy": "0.5", "loss": "0.25", "train_loss": "0.125",
        "trainable_parameters": "10", "seconds": "1.5", "diverged": "False",
    }  # fmt: skip
    assert rows[1]["diverged"] == "True"
    with pytest.raises(ValueError, match="genome 10 has been evaluated"):
        ledger.add(next(iter(ledger)))
    with pytest.raises(FileExistsError):
        Ledger(path)


def test_unseen_leaves_out_what_is_known_and_copies():
    ledger = Ledger()
    ledger.add(Evaluation("10", 1, 0.5, 0.5, 0.5, 1, 1.0))
    unseen = ledger.unseen(np.array([[1, 0], [0, 1], [0, 1], [1, 1]], bool))
    assert unseen.tolist() == [[False, True], [True, True]]
    assert ledger.unseen(np.array([[1, 0]], bool)).shape == (0, 2)
