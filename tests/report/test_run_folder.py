import math

import pytest
from etils import epath

from gafreeze_jax.report import run_folder
from gafreeze_jax.runs.run_dir import RunDir
from gafreeze_jax.search.history import Evaluation, Journal
from gafreeze_jax.space import Space

OPTIONS = {"seed": 0, "population": 2}
FACTS = {"kind": "custom", "options": OPTIONS, "versions": {}, "device": "1 x cpu", "stages": ["a", "b"], "num_steps": 8}
FACTS |= {"fingerprint": "0"}
ROWS = [
    ("11", 0, 4, 1, 0.5, 0.9, 0.9, 10, 1.5),
    ("10", 0, 4, 1, 0.6, 0.8, 0.8, 20, 1.5),
    ("00", 0, 4, 1, 0.7, 0.7, 0.7, 30, 1.5),
    ("00", 0, 8, 1, 0.75, 0.6, 0.6, 30, 1.5),
    ("10", 0, 8, 1, 0.65, 0.7, 0.7, 20, 1.5),
    ("01", 0, 4, 2, 0.9, 0.5, 0.5, 20, 1.5),
    ("01", 0, 8, 2, 0.8, math.nan, 0.5, 20, 1.5),
    ("00", 1, 8, 2, 0.72, 0.6, 0.6, 30, 1.5),
]


def write(folder, rows=ROWS, phases=(*7 * ["search"], *3 * ["final"]), **facts):
    """The folder of an unfinished run."""
    saved = RunDir(epath.Path(folder), FACTS | facts)
    saved.add_facts(**FACTS | facts)
    for row, phase in zip(rows, phases, strict=False):
        saved.journal.write(phase, [Evaluation(tuple(map(int, row[0])), *row[1:])])
    return run_folder.RunFolder(folder)


def test_an_unfinished_run_is_read(tmp_path):
    run = write(tmp_path)
    assert (run.name, run.finished, list(run.genes), run.num_steps) == (tmp_path.name, False, ["a", "b"], 8)
    assert list(map(run.phase, run.rows)) == 7 * ["search"] + ["final"]
    assert [row.genome for row in run.full] == [(0, 0), (1, 0)]
    assert {name: row.genome for name, row in run.baselines.items()} == {"train all": (0, 0), "best prefix mask": (1, 0)}
    assert run.found == (0, 0)


def test_phases_are_told_apart(tmp_path):
    run = write(tmp_path, phases=[*5 * ["search"], "random", "random", "final"])
    assert list(map(run.phase, run.rows)) == 5 * ["search"] + 2 * ["random"] + ["final"]
    assert set(run.searched) == {(1, 1), (1, 0), (0, 0)}


def test_what_was_damaged_is_left_out(tmp_path):
    write(tmp_path)
    file = tmp_path / "evaluations.csv"
    file.write_text(file.read_text().replace("0.75", "0.95"))
    assert len(run_folder.RunFolder(tmp_path).rows) == 7


def test_a_generation_breeds_from_the_fittest_so_far(tmp_path):
    first, second = write(tmp_path, [*ROWS[:7], ("11", 0, 8, 2, 0.7, 0.6, 0.6, 20, 1.0)], 8 * ["search"]).generations
    assert [row.genome for row in first.population] == [(0, 0), (1, 0)]
    assert [row.genome for row in second.population] == [(0, 0), (1, 1)]
    assert [row.genome for row in second.new] == [(1, 1)]  # the other one diverged
    assert second.frozen_share.tolist() == [0.5, 0.5]


def test_with_several_objectives_it_breeds_from_the_front(tmp_path):
    rows = [("11", 0, 8, 1, 0.5, 1, 1, 10, 1), ("10", 0, 8, 1, 0.4, 1, 1, 20, 1), ("00", 0, 8, 1, 0.7, 1, 1, 30, 1)]
    run = write(tmp_path, rows, options=OPTIONS | {"objective": "pareto"})
    assert [row.genome for row in run.generations[0].population] == [(0, 0), (1, 1)] == [row.genome for row in run.front]


def test_how_a_search_went_on(tmp_path):
    done, best = write(tmp_path).trace
    assert done == [16 / 8, 20 / 8]
    assert best == [0.75, 0.75]


def test_what_training_took_and_what_was_spared(tmp_path):
    """Blocks cost 10 and 20 forwards, 100 and 200 with gradients; the head costs 1."""
    flops = {"above": [331, 221, 1], "spared": [0, 50], "kept": [10, 20]}
    rows = [("00", 0, 8, 1, 0.7, 1, 1, 30, 1), ("01", 0, 8, 1, 0.7, 1, 1, 30, 1), ("10", 0, 4, 1, 0.7, 1, 1, 30, 1)]
    spent = write(tmp_path, rows, step_flops=flops).spent
    assert spent == (3 * 8 * 331, 4 * 331, 8 * 50 + 4 * (331 - 231), 4 * 10)
    assert spent.spent == 8 * 331 + 8 * 281 + 4 * 221
    (tmp_path / "evaluations.csv").unlink()
    traced = write(tmp_path, rows, step_flops=flops, plan={"final": {"freezing": "traced"}}).spent
    assert traced == (3 * 8 * 331, 4 * 331, 0, 0)


def write_genome_of_three_levels(folder):
    journal = Journal(epath.Path(folder) / "evaluations.csv", Space("ab"))
    journal.write("search", [Evaluation((1, 2), *ROWS[0][1:])])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda folder: (folder / "run.json").unlink(), "no run: expected run.json in it"),
        (lambda folder: (folder / "run.json").write_text("{}"), "damaged"),
        (lambda folder: (folder / "result.json").write_text("{"), "cannot be read: JSONDecodeError"),
        (lambda folder: (folder / "result.json").write_text("[1]"), "cannot be read: TypeError"),
        (
            lambda folder: RunDir(epath.Path(folder), {"stages": ["a", "b"]}).add_facts(kind="bert"),
            "missing, or of another type: options",
        ),
        (
            lambda folder: RunDir(epath.Path(folder), {"stages": ["a", "b"]}).add_facts(**FACTS | {"options": {}}),
            "cannot be read: KeyError: 'seed'",
        ),
        (lambda folder: (folder / "evaluations.csv").write_text("a,b\n"), "expected the columns phase,genome"),
        (write_genome_of_three_levels, "expected a genome of 2 genes (a, b), each of 0, 1; got '12'"),
    ],
)
def test_what_is_no_run_is_refused(tmp_path, change, message):
    write(tmp_path)
    change(tmp_path)
    with pytest.raises(ValueError, match=rf"^{tmp_path}") as error:
        run_folder.RunFolder(tmp_path)
    assert message in str(error.value)
