import csv
import math

import numpy as np
import pytest

from gafreeze_jax.ledger import Evaluation, Ledger, genome_array, genome_text

DIVERGED = (-math.inf,) * 3


def make_evaluation(genome="10", seed=0, steps=4, *, accuracy=0.5, loss=0.25, train_loss=0.125, trainable_parameters=10):
    return Evaluation(genome, seed, steps, 1, accuracy, loss, train_loss, trainable_parameters, 1.5)


def make_ledger(*evaluations, num_steps=8):
    ledger = Ledger(num_steps)
    for evaluation in evaluations:
        ledger.add(evaluation)
    return ledger


def test_genomes_as_text():
    assert genome_text(np.array([True, False, False])) == "100"
    np.testing.assert_array_equal(genome_array("100"), [True, False, False])
    assert genome_array("100").dtype == bool


def test_evaluations_are_kept_in_their_order():
    evaluations = [
        make_evaluation("10", 0, 4),
        make_evaluation("01", 0, 4),
        make_evaluation("10", 0, 8),
        make_evaluation("10", 1, 8),
    ]
    ledger = make_ledger(*evaluations)
    assert list(ledger) == evaluations
    assert len(ledger) == 4
    assert genome_array("10") in ledger
    assert genome_array("11") not in ledger


@pytest.mark.parametrize("steps", [2, 4])
def test_nothing_is_evaluated_twice(steps, tmp_path):
    path = tmp_path / "evaluations.csv"
    ledger = Ledger(8, path)
    ledger.add(make_evaluation())
    before = path.read_text()
    with pytest.raises(ValueError, match=f"^genome 10, seed 0 has been evaluated after {steps} steps already$"):
        ledger.add(make_evaluation(steps=steps, accuracy=0.75))
    assert list(ledger) == [make_evaluation()]
    assert path.read_text() == before
    for other in (make_evaluation(steps=5), make_evaluation(seed=1), make_evaluation("11")):
        ledger.add(other)
    assert len(ledger) == 4


def test_a_row_is_written_as_soon_as_it_is_there(tmp_path):
    path = tmp_path / "evaluations.csv"
    ledger = Ledger(8, path)
    evaluations = [make_evaluation(), make_evaluation("01", loss=math.nan), make_evaluation("10", 3, 8)]
    for number, evaluation in enumerate(evaluations):
        assert len(path.read_text().splitlines()) == 1 + number
        ledger.add(evaluation)
    with open(path, encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert rows[0] == {
        "evaluation": "1", "genome": "10", "seed": "0", "steps": "4", "generation": "1", "accuracy": "0.5", "loss": "0.25",
        "train_loss": "0.125", "trainable_parameters": "10", "seconds": "1.5", "diverged": "False",
    }  # fmt: skip
    assert [row["diverged"] for row in rows] == ["False", "True", "False"]
    assert [(row["evaluation"], row["seed"], row["steps"]) for row in rows[1:]] == [("2", "0", "4"), ("3", "3", "8")]


def test_a_file_that_exists_is_not_overwritten(tmp_path):
    path = tmp_path / "evaluations.csv"
    path.write_text("of another run")
    with pytest.raises(FileExistsError):
        Ledger(8, path)
    assert path.read_text() == "of another run"


def test_unseen_leaves_out_copies_and_what_is_known_with_any_seed():
    ledger = make_ledger(make_evaluation("10", seed=5))
    assert ledger.unseen(genomes := np.array([[1, 0], [1, 1], [0, 1], [1, 1]], bool)).tolist() == genomes[1:3].tolist()
    assert ledger.unseen(genomes[:1]).shape == (0, 2)
    assert ledger.unseen(genomes[:0]).shape == (0, 2)


def test_the_longest_evaluations_with_each_seed():
    first, second, other = make_evaluation(steps=4), make_evaluation(steps=8), make_evaluation(seed=1, steps=4)
    assert make_ledger(first, second, other).furthest("10") == {0: second, 1: other}


def test_at_a_rung_the_fittest_come_first():
    """Accuracy first, then the loss, then the number of trainable parameters; who diverged last; others by their order."""
    ranked = [
        make_evaluation("1110", accuracy=0.75, loss=0.5),
        make_evaluation("0011", loss=0.125, trainable_parameters=30),
        make_evaluation("0110", trainable_parameters=10),
        make_evaluation("1001", trainable_parameters=20),
        make_evaluation("0001", trainable_parameters=20),
        make_evaluation("1100", accuracy=0.25),
        make_evaluation("1111", accuracy=1.0, loss=math.nan),
        make_evaluation("0000", accuracy=1.0, train_loss=math.inf),
    ]
    others = [make_evaluation("1100", steps=8, accuracy=0.9), make_evaluation("1110", seed=1, accuracy=0.9)]
    ledger = make_ledger(*(ranked[i] for i in (5, 6, 2, 7, 3, 4, 0, 1)), *others)
    assert ledger.at(4, 0) == ranked
    assert ledger.at(8, 0) == others[:1]
    assert ledger.at(4, 1) == others[1:]
    assert ledger.at(6, 0) == []


def test_fitness_is_that_of_the_longest_evaluations_the_mean_over_their_seeds():
    ledger = make_ledger(
        make_evaluation("10", 0, 4, accuracy=0.75),
        make_evaluation("10", 0, 8, accuracy=0.5, loss=0.5),
        make_evaluation("10", 1, 8, accuracy=0.25, loss=1.0),
        make_evaluation("10", 2, 4, accuracy=1.0),
        make_evaluation("01", 0, 4, accuracy=0.75, loss=0.5),
    )
    assert ledger.fitness("10") == (8, 0.375, -0.75, -10)
    assert ledger.fitness("01") == (4, 0.75, -0.5, -10)


def test_who_diverged_is_less_fit_than_who_was_stopped_early():
    ledger = make_ledger(
        make_evaluation("10", 0, 8, loss=math.nan), make_evaluation("01", 0, 4), make_evaluation("11", 0, 8),
        make_evaluation("11", 1, 8, loss=math.inf),
    )  # fmt: skip
    assert ledger.fitness("10") == ledger.fitness("11") == (-math.inf, *DIVERGED)
    assert ledger.fitness("01") > ledger.fitness("10")


def test_steps_are_counted_once():
    """An evaluation that goes on from an earlier one takes only the steps in between."""
    ledger = make_ledger(
        make_evaluation("10", 0, 2), make_evaluation("10", 0, 4), make_evaluation("10", 0, 8), make_evaluation("10", 1, 8),
        make_evaluation("01", 0, 2),
    )  # fmt: skip
    assert ledger.steps_trained == 8 + 8 + 2
    assert ledger.num_full == 2


def test_an_empty_ledger():
    ledger = Ledger(8)
    assert len(ledger) == ledger.steps_trained == ledger.num_full == 0
    assert ledger.at(8, 0) == []


def test_recall():
    known = make_evaluation(seed=1, steps=4)
    ledger = make_ledger(known, make_evaluation(seed=1, steps=8))
    assert ledger.recall("10", 1, 4) == known
    assert ledger.recall("10", 0, 4) is ledger.recall("10", 1, 6) is ledger.recall("11", 1, 4) is None
