import csv
import itertools
import json
import math
from pathlib import Path

import numpy as np
import pytest
from etils import epath

from gafreeze_jax.search.history import Evaluation, Journal, Ledger
from gafreeze_jax.space import Space

DIVERGED = (-math.inf,) * 3
SPACE = Space(["a", "b"])


def genome(text):
    return tuple(map(int, text))


def make_evaluation(text="10", seed=0, steps=4, *, accuracy=0.5, loss=0.25, train_loss=0.125, trainable_parameters=10):
    return Evaluation(genome(text), seed, steps, 1, accuracy, loss, train_loss, trainable_parameters, 1.5)


def make_ledger(*evaluations, num_steps=8):
    ledger = Ledger(num_steps)
    for evaluation in evaluations:
        ledger.add(evaluation)
    return ledger


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
    assert (1, 0) in ledger
    assert (1, 1) not in ledger


@pytest.mark.parametrize("steps", [2, 4])
def test_nothing_is_evaluated_twice(steps, tmp_path):
    path = epath.Path(tmp_path / "evaluations.csv")
    ledger = Ledger(8, Journal(path, SPACE))
    ledger.add(make_evaluation())
    before = path.read_text()
    with pytest.raises(ValueError, match=rf"^genome \(1, 0\), seed 0 has been evaluated after {steps} steps already$"):
        ledger.add(make_evaluation(steps=steps, accuracy=0.75))
    assert list(ledger) == [make_evaluation()]
    assert path.read_text() == before
    for other in (make_evaluation(steps=5), make_evaluation(seed=1), make_evaluation("11")):
        ledger.add(other)
    assert len(ledger) == 4


CALLS = [
    [make_evaluation(), make_evaluation("01", loss=math.nan)],
    [make_evaluation("10", 3, 8, accuracy=1 / 3)],
    [make_evaluation("10", 0, 8), make_evaluation("11", 0, 8, train_loss=math.inf), make_evaluation("01", 0, 8)],
]


def write_journal(path):
    journal = Journal(epath.Path(path), SPACE)
    for calls, phase in zip(CALLS, ("search", "final", "search"), strict=True):
        journal.write(phase, calls)
    return journal


def test_rows_are_written_as_soon_as_they_are_there(tmp_path):
    path = tmp_path / "evaluations.csv"
    ledger = Ledger(8, Journal(epath.Path(path), SPACE), phase="random")
    for number, call in enumerate(CALLS, start=1):
        ledger.add(*call)
        assert len(path.read_text().splitlines()) == 1 + sum(map(len, CALLS[:number]))
    with open(path, encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    call = rows[0].pop("call")
    assert rows[0] == {
        "phase": "random", "genome": "10", "seed": "0", "steps": "4", "generation": "1", "accuracy": "0.5", "loss": "0.25",
        "train_loss": "0.125", "trainable_parameters": "10", "seconds": "1.5", "diverged": "False",
    }  # fmt: skip
    assert [row["diverged"] for row in rows] == ["False", "True", "False", "False", "True", "False"]
    assert [row["call"] == call for row in rows[1:]] == [True] + 4 * [False]
    assert [path.name for path in tmp_path.iterdir()] == ["evaluations.csv"]


def test_a_journal_is_read_as_it_was_written(tmp_path):
    before = write_journal(tmp_path / "evaluations.csv")
    text = (tmp_path / "evaluations.csv").read_text()
    journal = Journal(epath.Path(tmp_path / "evaluations.csv"), SPACE)
    assert repr(list(journal)) == repr(list(before))  # as NaN is not equal to itself
    assert journal.recall((1, 0), 3, 8) == CALLS[1][0]
    assert journal.recall((1, 0), 3, 4) is None
    assert journal.together((1, 1), 0, 8) == [(1, 0), (1, 1), (0, 1)]
    assert (journal.before((1, 0), 0, 8), journal.before((1, 0), 3, 8), journal.before((1, 1), 0, 8)) == (4, 0, 0)
    journal.write("final", [make_evaluation("00")])
    assert (tmp_path / "evaluations.csv").read_text().startswith(text)
    assert len(Journal(epath.Path(tmp_path / "evaluations.csv"), SPACE)) == 7


def test_any_damage_costs_the_rows_that_it_hits_and_nothing_else(tmp_path):
    """Every byte of the file is changed, in turn; the header's cannot be made up for."""
    path = tmp_path / "evaluations.csv"
    write_journal(path)
    text = path.read_bytes()
    header = text.index(b"\n") + 1
    rows = [repr(one) for call in CALLS for one in call]
    for i in range(header, len(text)):
        for byte in {text[i] ^ 1, text[i] ^ 16, ord("\n")} - {text[i]}:
            path.write_bytes(text[:i] + bytes([byte]) + text[i + 1 :])
            journal = Journal(epath.Path(path), SPACE)
            assert {repr(one) for one in journal} < set(rows)
            assert 0 < journal.num_damaged <= 4
    for length in range(header, len(text)):
        path.write_bytes(text[:length])
        assert {repr(one) for one in Journal(epath.Path(path), SPACE)} <= set(rows)


@pytest.mark.parametrize("content", [b"", b"of another run", b"genome,accuracy\n10,0.5\n", b"\xff\x00"])
def test_another_file_is_not_taken_for_a_journal(content, tmp_path):
    path = tmp_path / "evaluations.csv"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"evaluations\.csv: expected the columns phase,genome,seed,"):
        Journal(epath.Path(path), SPACE)
    assert path.read_bytes() == content


def test_a_file_about_other_genes_is_refused(tmp_path):
    write_journal(tmp_path / "evaluations.csv")
    with pytest.raises(ValueError, match=r"evaluations\.csv: expected a genome of 3 genes \(a, b, c\), each of 0, 1; got '10'"):
        Journal(epath.Path(tmp_path / "evaluations.csv"), Space("abc"))


def test_scores_have_the_metrics_name_in_the_file(tmp_path):
    path = epath.Path(tmp_path / "evaluations.csv")
    Journal(path, SPACE, metric="f1").write("search", CALLS[1])
    assert path.read_text().startswith("phase,genome,seed,steps,generation,f1,loss,")
    assert list(Journal(path, SPACE, metric="f1")) == CALLS[1]
    with pytest.raises(ValueError, match=r"expected the columns .*,accuracy,.*; got .*,f1,"):
        Journal(path, SPACE)


@pytest.mark.parametrize("run", ["finished", "interrupted"])
def test_files_of_version_0_1_are_read_and_written_the_same(run, tmp_path):
    old = Path(__file__).parents[1] / "old_runs" / run
    space = Space(json.loads((old / "run.json").read_text())["stages"])
    before = Journal(epath.Path(old / "evaluations.csv"), space, write=False)
    assert before.num_damaged == 0
    assert len(before) == len((old / "evaluations.csv").read_text().splitlines()) - 1
    again = Journal(epath.Path(tmp_path / "evaluations.csv"), space)
    for _, call in itertools.groupby(before, key=lambda evaluation: id(before.together(*evaluation[:3]))):
        evaluations = list(call)
        again.write(before.phase(*evaluations[0][:3]), evaluations)
    assert (tmp_path / "evaluations.csv").read_bytes() == (old / "evaluations.csv").read_bytes()


def test_what_the_journal_knows_is_not_written_again(tmp_path):
    journal = write_journal(tmp_path / "evaluations.csv")
    text = (tmp_path / "evaluations.csv").read_text()
    ledger = Ledger(8, journal)
    for call in CALLS:
        ledger.add(*call)
    assert (tmp_path / "evaluations.csv").read_text() == text
    assert len(ledger) == 6


def test_unseen_leaves_out_copies_and_what_is_known_with_any_seed():
    ledger = make_ledger(make_evaluation("10", seed=5))
    assert ledger.unseen(genomes := np.array([[1, 0], [1, 1], [0, 1], [1, 1]], np.int8)).tolist() == genomes[1:3].tolist()
    assert ledger.unseen(genomes[:1]).shape == (0, 2)
    assert ledger.unseen(genomes[:0]).shape == (0, 2)


def test_the_longest_evaluations_with_each_seed():
    first, second, other = make_evaluation(steps=4), make_evaluation(steps=8), make_evaluation(seed=1, steps=4)
    assert make_ledger(first, second, other).furthest((1, 0)) == {0: second, 1: other}


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
        make_evaluation("1000", accuracy=math.nan),
    ]
    others = [make_evaluation("1100", steps=8, accuracy=0.9), make_evaluation("1110", seed=1, accuracy=0.9)]
    ledger = make_ledger(*(ranked[i] for i in (5, 6, 2, 7, 8, 3, 4, 0, 1)), *others)
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
    assert ledger.fitness((1, 0)) == (8, 0.375, -0.75, -10)
    assert ledger.fitness((0, 1)) == (4, 0.75, -0.5, -10)


def test_who_diverged_is_less_fit_than_who_was_stopped_early():
    ledger = make_ledger(
        make_evaluation("10", 0, 8, loss=math.nan), make_evaluation("01", 0, 4), make_evaluation("11", 0, 8),
        make_evaluation("11", 1, 8, loss=math.inf),
    )  # fmt: skip
    assert ledger.fitness((1, 0)) == ledger.fitness((1, 1)) == (-math.inf, *DIVERGED)
    assert ledger.fitness((0, 1)) > ledger.fitness((1, 0))


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
