"""The tutorial and the examples, run for real."""

import json
import runpy
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
import run_custom
import tyro
from safetensors.numpy import load_file

from gafreeze_jax import masking
from gafreeze_jax.runs import one_call

pytestmark = pytest.mark.usefixtures("quick_compilation")

SCRIPT = Path(run_custom.__file__)
EXAMPLES = [
    path for path in sorted((SCRIPT.parents[1] / "examples").glob("*.py")) if "gafreeze_jax.search(" in path.read_text()
]


@pytest.fixture
def run(tmp_path, monkeypatch, capsys):
    """Runs a script with some words in `tmp_path`, here or in a process of its own; gives what it prints."""

    def run(path, *words, here):
        words = [str(path), *map(str, words)]
        if here:
            with monkeypatch.context() as patch:
                patch.chdir(tmp_path)
                patch.setattr(sys, "argv", words)
                runpy.run_path(words[0], run_name="__main__")
            return capsys.readouterr().out
        done = subprocess.run([sys.executable, *words], capture_output=True, text=True, cwd=tmp_path, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout

    jax.config.update("jax_numpy_rank_promotion", "allow")  # as users have it
    yield run
    jax.config.update("jax_numpy_rank_promotion", "raise")


@pytest.mark.parametrize("kind", [["--network", "dense"], ["--network", "cnn"], ["--data", "mock"]], ids=" ".join)
def test_the_tutorial(run, tmp_path, kind):
    out = tmp_path / "out"
    words = [*kind, "--gens", 2, "--population", 6, "--epochs", 1, "--out", out]
    printed = run(SCRIPT, *words, here="dense" not in kind)
    assert "All 8 masks fit the budget" in printed
    assert "=== Generation 1 ===\nFittest chromosome: [" in printed
    result = json.loads((out / "result.json").read_text())
    tensors = load_file(out / "model" / "model.safetensors")
    names = ("conv_0", "conv_1", "dense") if "cnn" in kind else ("dense_0", "dense_1", "dense_2")
    assert set(tensors) == {f"{name}/{leaf}" for name in (*names, "head") for leaf in ("kernel", "bias")}
    if "mock" in kind:
        assert [tensors[f"{name}/kernel"].shape for name in (*names, "head")] == [(10, 32), (32, 16), (16, 8), (8, 3)]
    assert sum(tensor.size for tensor in tensors.values()) == result["results"]["train all"]["trainable_parameters"]
    assert list(masking.read_mask(out / "mask.json").values()) == [bool(gene) for gene in result["best_genome"]]


def search_in_process(out, *words):
    tiny = ["--gens", "2", "--population", "3", "--epochs", "1", "--finalist-seeds", "1"]
    run_custom.main(
        tyro.cli(run_custom.Options, args=[*tiny, "--plan", "members=4,steps=9,freezing=traced", *words, "--out", str(out)])
    )
    return json.loads((out / "result.json").read_text())


@pytest.mark.usefixtures("saved_charts")
def test_the_front_is_left_as_masks_and_plot(tmp_path, capsys):
    out = tmp_path / "run"
    result = search_in_process(out, "--objective", "pareto")
    objectives = lambda one: (one["validation_accuracy"], -one["flops"], -one["optimizer_bytes"])  # noqa: E731
    points = list(map(objectives, result["front"]["evaluated"]))
    beaten = lambda point: any(np.all(np.array(other) >= point) and other != point for other in points)  # noqa: E731
    expected = {point for point in points if not beaten(point)}
    masks = result["front"]["masks"]
    assert set(map(objectives, masks)) == expected
    for one in result["front"]["evaluated"]:  # two moments of each parameter in float32, and counts
        assert 0 < one["optimizer_bytes"] - 8 * one["trainable_parameters"] <= 8 * 4
    assert {path.stem for path in (out / "masks").iterdir()} == {one["genome"] for one in masks}
    for one in masks:
        frozen = masking.read_mask(out / "masks" / f"{one['genome']}.json").values()
        assert "".join("1" if gene else "0" for gene in frozen) == one["genome"]
    assert (out / "plots" / "trade_off.png").read_bytes().startswith(b"\x89PNG")
    assert "Also in masks/" in capsys.readouterr().out


def test_a_limit_of_flops_is_kept(tmp_path):
    """Also where less memory is asked for."""
    result = search_in_process(tmp_path / "run", "--max-flops", "0.5", "--micro-batch", "7", "--remat")
    assert (result["options"]["micro_batch"], result["plan"]["final"]["remat"]) == (7, True)
    costs = {name: row["training_flops"] for name, row in result["results"].items()}
    assert costs["found"] <= 0.5 * costs["train all"]


@pytest.fixture
def one_seed_for_finalists(monkeypatch):
    """Where an example does not say how many it wants."""
    search = one_call.search
    with_one = lambda *data, options: search(*data, options={"finalist_seeds": 1} | options)  # noqa: E731
    monkeypatch.setattr(one_call, "search", with_one)


@pytest.mark.usefixtures("one_seed_for_finalists")
@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_every_example_runs_and_writes_a_mask(path, run, tmp_path):
    """One in a process of its own, as it is."""
    if "equimo" in path.stem:
        pytest.importorskip("equimo", reason="Equimo is not installed: pip install equimo")
    printed = run(path, here=path.stem != "plain_function")
    (folder,) = (tmp_path / "runs").iterdir()
    assert f"See {folder.relative_to(tmp_path)}/report.html" in printed
    result = json.loads((folder / "result.json").read_text())
    assert result["model"]["test_accuracy"] > 0.4
    num_genes = 4 if path.stem in ("own_vit", "scanned_linen") else 3
    assert len(masking.read_mask(folder / "mask.json")) == num_genes
    assert f"{num_genes} of {num_genes} genes cut into blocks" in (folder / "run.json").read_text()


def test_there_is_an_example_of_each_kind():
    assert [path.stem for path in EXAMPLES] == [
        "equimo_vit",
        "equinox_module",
        "equinox_state",
        "haiku_function",
        "linen_module",
        "nnx_module",
        "own_vit",
        "plain_function",
        "scanned_linen",
    ]


def test_mock_tasks_share_their_features():
    data = run_custom.make_mock(np.random.default_rng(0), 100, 100)
    assert data.train.inputs.shape == (100, 10)
    assert set(np.unique(data.test.targets)) == {0, 1, 2}
