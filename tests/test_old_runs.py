"""Two runs of version 0.1.0, a finished and an interrupted one, made by tests/old_runs/make.py: they stay readable."""

import csv
import json
import re
import shutil
import sys
from pathlib import Path

import jax
import pytest
import run_bert
from etils import epath

from gafreeze_jax import cli, masking
from gafreeze_jax.report.run_folder import RunFolder
from gafreeze_jax.runs import main, run_dir
from gafreeze_jax.tasks import images
from gafreeze_jax.tasks import text as bert

HERE = Path(__file__).parent / "old_runs"


@pytest.fixture
def old_runs(tmp_path, monkeypatch):
    """A copy of the runs, where their options say that model and data are."""
    monkeypatch.chdir(tmp_path)
    return shutil.copytree(HERE, Path("tests/old_runs"))


@pytest.fixture
def gafreeze(monkeypatch, capsys):
    """Runs `gafreeze` with some words; gives what it prints."""

    def run(*words):
        monkeypatch.setattr(sys, "argv", ["gafreeze", *map(str, words)])
        cli.main()
        return capsys.readouterr().out

    return run


def rows(folder):
    return list(csv.DictReader((folder / "evaluations.csv").read_text().splitlines()))


def test_a_finished_run_is_shown(old_runs, gafreeze):
    printed = gafreeze("show", old_runs / "finished")
    result = json.loads((old_runs / "finished" / "result.json").read_text())
    assert "Found mask: freeze embeddings, layer_0, layer_2; train layer_1, layer_3\n" in printed
    assert result["verdict"]["sentence"] in printed
    assert re.search(r"train all, quarter rate +0\.\d{4} +0\.\d{4} +0\.0000 to 1\.0000 +100% +7,666 \(100%\)", printed)
    gap = 100 * result["verdict"]["gap"]
    assert f"Validation minus test accuracy of the found mask: {gap:+.1f} points" in printed


def test_a_finished_run_has_a_page(old_runs, gafreeze):
    path = old_runs / "finished" / "report.html"
    assert gafreeze("report", old_runs / "finished") == f"{path}\n"
    text = path.read_text()
    assert "Validation accuracy over generations" in text
    assert text.count("<td>none</td>") == 4  # the baselines that are no masks


def test_an_interrupted_run_has_a_page(old_runs, gafreeze):
    gafreeze("report", old_runs / "interrupted")
    assert "with a validation accuracy of 68.8 %" in (old_runs / "interrupted" / "report.html").read_text()


def test_the_model_of_a_finished_run_predicts(old_runs, gafreeze):
    lines = gafreeze("predict", old_runs / "finished", "--data", old_runs / "reviews.csv").splitlines()
    labels = [line["label"] for line in csv.DictReader(lines)]
    assert len(labels) == len((old_runs / "reviews.csv").read_text().splitlines()) - 1
    assert set(labels) <= {"good", "bad"}


def test_a_finished_run_is_left_alone(old_runs, capsys):
    before = {path: path.read_bytes() for path in old_runs.rglob("*") if path.is_file()}
    run_bert.main(bert.Options(resume=old_runs / "finished"))
    assert "it is finished, nothing is left to do" in capsys.readouterr().out
    assert {path: path.read_bytes() for path in old_runs.rglob("*") if path.is_file()} == before


@pytest.fixture
def quick_compilation_once_begun(monkeypatch):
    """Not before: how the head's initial values are rounded decides the fingerprint."""
    run = main._run

    def run_quickly(*arguments, **options):
        jax.config.update("jax_disable_most_optimizations", True)
        try:
            return run(*arguments, **options)
        finally:
            jax.config.update("jax_disable_most_optimizations", False)

    monkeypatch.setattr(main, "_run", run_quickly)


@pytest.mark.usefixtures("quick_compilation_once_begun")
def test_an_interrupted_run_goes_on(old_runs, capsys):
    """With the recorded evaluations. Its first generation holds more masks now, so the search may end elsewhere."""
    folder = old_runs / "interrupted"
    recorded = rows(folder)
    try:
        run_bert.main(bert.Options(resume=folder))
    except SystemExit:
        error = capsys.readouterr().err
        if "model or data have changed" in error:
            pytest.skip("this processor rounds the head's initial values differently, so the fingerprint differs")
        raise
    printed = capsys.readouterr().out
    assert f"Resuming with {len(recorded)} recorded evaluations" in printed
    after = rows(folder)
    assert after[: len(recorded)] == recorded
    evaluated = [(row["phase"], row["genome"], row["seed"], row["steps"]) for row in after]
    assert len(set(evaluated)) == len(evaluated)  # none of these masks was trained again

    ended = RunFolder(folder)
    assert not (epath.Path(folder) / "members").exists()
    assert ended.facts["search"]["ended"]
    assert ended.facts["verdict"]["sentence"]
    assert list(masking.read_mask(folder / "mask.json").values()) == [level == 1 for level in ended.facts["best_genome"]]
    last = max(int(row["steps"]) for row in after)
    searched = [row for row in after if row["phase"] == "search" and int(row["steps"]) == last]
    best = max(searched, key=lambda row: (float(row["accuracy"]), -float(row["loss"])))
    assert float(best["accuracy"]) >= max(float(row["accuracy"]) for row in recorded if int(row["steps"]) == last)
    trained = {row["genome"] for row in after if row["phase"] == "final"}
    assert {best["genome"], "".join(map(str, ended.facts["best_genome"]))} <= trained


def test_a_mask_of_version_1_loads(old_runs):
    mask = json.loads((old_runs / "finished" / "mask.json").read_text())
    assert mask["version"] == 1
    assert list(masking.read_mask(old_runs / "finished" / "mask.json").values()) == [True, True, False, True, False]


def test_options_that_a_run_has_not_recorded_are_what_it_did(old_runs):
    options = run_dir.with_options(images.Options(), {"seed": 3})
    assert (options.seed, options.head, options.rates, options.levels) == (3, "fresh", (1.0,), (1.0,))
    _, path, _ = run_dir.choose_folder("bert", bert.Options(resume=old_runs / "interrupted"))
    assert path == epath.Path(old_runs / "interrupted")
