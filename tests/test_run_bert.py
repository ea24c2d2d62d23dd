"""The real script, run for real with tiny options."""

import contextlib
import csv
import io
import json
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
import pytest
import run_bert
from command_line import words
from compared import COMPARED

from gafreeze_jax.data import tokens
from gafreeze_jax.data.text import load_text
from gafreeze_jax.models import pretrained

pytestmark = pytest.mark.usefixtures("quick_compilation")

SCRIPT = Path(run_bert.__file__)
TINY = {
    "gens": 2,
    "population": 2,
    "train_examples": 16,
    "validation_examples": 16,
    "epochs": 1,
    "batch_size": 8,
    "finalist_seeds": 2,
    "plan": "steps=0",
}
GENES = ["embeddings", "layer_0", "layer_1"]


def test_the_script_with_the_embedded_model_and_data(tmp_path, monkeypatch):
    monkeypatch.delenv("JAX_DISABLE_MOST_OPTIMIZATIONS")  # this model is not small
    monkeypatch.delenv("XLA_FLAGS")  # compiled as users have it
    out = tmp_path / "run"
    options = TINY | {"finalist_seeds": 1, "plan": "calls=2", "max_tokens": 16, "out": out}
    done = subprocess.run(
        [sys.executable, SCRIPT, *words(**options)], capture_output=True, text=True, cwd=tmp_path, check=False
    )
    assert done.returncode == 0, done.stderr
    lines = re.findall(
        r"^=== Generation (\d+) ===\nFittest chromosome: \[((?:[01](?:, )?){7})\] \| Fitness: (0\.\d{4}|1\.0000)$",
        done.stdout,
        re.M,
    )
    assert [number for number, _, _ in lines] == ["1", "2"]
    result = json.loads((out / "result.json").read_text())
    assert result["stages"] == ["embeddings", *(f"layer_{i}" for i in range(6))]
    assert set(result["results"]) == {"head only", *COMPARED}
    for row in result["results"].values():
        assert re.search(rf"{row['validation_accuracy']:.4f} +{row['test_accuracy']:.4f} +one seed ", done.stdout)
    assert result["verdict"]["sentence"] in done.stdout
    assert result["verdict"]["outcome"] in ("better", "cheaper", "not better")
    assert sorted(path.name for path in out.iterdir()) == [
        "SHA256SUMS",
        "evaluations.csv",
        "mask.json",
        "model",
        "plots",
        "report.html",
        "result.json",
        "run.json",
        "test_predictions.csv",
    ]


def evaluations(out):
    with open(out / "evaluations.csv", encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def run_small(small_bert, reviews, out, seed=0):
    run_bert.main(run_bert.Options(**TINY, seed=seed, model=str(small_bert), data=str(reviews), out=out))


@pytest.fixture(scope="module")
def finished(small_bert, reviews, tmp_path_factory, quick_compilation):
    """The folder of a run, and what it has printed."""
    out, printed = tmp_path_factory.mktemp("finished") / "run", io.StringIO()
    with contextlib.redirect_stdout(printed):
        run_small(small_bert, reviews, out)
    return out, printed.getvalue()


def test_what_is_left_on_disk(finished, small_bert, reviews):
    out, printed = finished
    assert "No validation and no test split: 12 of the 60 training rows were cut for each" in printed
    assert "Uses 16 of 36 training examples" in printed
    rows = evaluations(out)
    result = json.loads((out / "result.json").read_text())
    for row in result["results"].values():
        interval = " to ".join(f"{bound:.4f}" for bound in np.clip(row["test_accuracy_interval"], 0, 1))
        assert re.search(rf"{row['validation_accuracy']:.4f} +{row['test_accuracy']:.4f} +{interval} ", printed)
    keys = [(row["genome"], row["seed"], row["steps"]) for row in rows]
    assert len(keys) == len(set(keys)) == result["num_evaluations"]
    assert {"000", "100", "110", "111"} <= {row["genome"] for row in rows if row["seed"] == "0"}

    # The winner is named by fresh seeds, which all finalists share.
    fresh = {
        genome: np.mean([float(row["accuracy"]) for row in rows if (row["genome"], row["seed"] != "0") == (genome, True)])
        for genome in {row["genome"] for row in rows if row["seed"] != "0"}
    }
    assert {row["seed"] for row in rows} == {"0", "1", "2"}
    found = "".join(map(str, result["best_genome"]))
    assert result["fitness"] == pytest.approx(fresh[found])
    assert result["fitness"] == result["results"]["found"]["validation_accuracy"]
    assert result["stages"] == GENES
    assert result["options"]["model"] == str(small_bert)
    mask = json.loads((out / "mask.json").read_text())
    assert mask["genome"] == result["best_genome"]
    assert list(mask["frozen"]) == GENES

    # The saved model scores on the test set what the table says, and what is frozen is what was loaded.
    data = load_text(str(reviews))
    loaded = pretrained.load(out / "model")
    params = loaded.params
    assert not loaded.fresh
    test = tokens.tokenize(tokens.load_tokenizer(out / "model"), data.test.texts, max_tokens=64, vocabulary=30522, types=2)
    batch = jax.tree.map(lambda leaf: leaf[0], tokens.pack_batches(test, np.arange(12)[None]))
    network = loaded.model.make_network()

    @jax.jit
    def apply(params, x):
        for block in network.blocks:
            x = block.apply(params[block.name], x, batch.context, frozen=True, key=None)
        return network.head(params["head"], x, batch.context, frozen=True, key=None)

    logits = apply(params, jax.tree.map(lambda leaf: leaf[batch.elements], test.inputs))
    assert result["model"]["test_accuracy"] == pytest.approx(np.mean(logits.argmax(-1) == data.test.labels))
    with open(out / "test_predictions.csv", encoding="utf-8", newline="") as file:
        predicted = list(csv.DictReader(file))
    assert [(row["Review"],) for row in predicted] == data.test.texts
    assert [row["truth"] for row in predicted] == [data.label_names[label] for label in data.test.labels]
    assert [row["label"] for row in predicted] == [data.label_names[label] for label in logits.argmax(-1)]
    probabilities = [float(row["probability"]) for row in predicted]
    np.testing.assert_allclose(probabilities, jax.nn.softmax(logits).max(-1), rtol=1e-4)
    start = pretrained.load(small_bert).params
    for name, frozen in mask["frozen"].items():
        same = [np.array_equal(*pair) for pair in zip(*map(jax.tree.leaves, (params[name], start[name])), strict=True)]
        assert all(same) if frozen else not any(same)
    assert json.loads((out / "model" / "config.json").read_text())["id2label"] == {"0": "bad", "1": "good"}


def test_same_seed_same_result(finished, small_bert, reviews, tmp_path):
    outs = [finished[0], tmp_path / "b", tmp_path / "c"]
    for seed, out in enumerate(outs[1:]):
        run_small(small_bert, reviews, out, seed)
    results = []
    for out in outs:
        rows = [{key: value for key, value in row.items() if key not in ("seconds", "call")} for row in evaluations(out)]
        results.append((rows, json.loads((out / "result.json").read_text())["results"]))
    assert results[0] == results[1]
    assert results[0] != results[2]


def test_pytorch_scores_the_saved_model_the_same(finished, reviews):
    torch = pytest.importorskip("torch")
    import transformers

    out, _ = finished
    model = transformers.AutoModelForSequenceClassification.from_pretrained(out / "model")
    tokenizer = transformers.AutoTokenizer.from_pretrained(out / "model")
    data = load_text(str(reviews))
    with torch.no_grad():
        encoded = tokenizer(
            [text for (text,) in data.test.texts], padding=True, truncation=True, max_length=64, return_tensors="pt"
        )
        predicted = model(**encoded).logits.argmax(-1).numpy()
    names = [model.config.id2label[label] for label in predicted]
    right = np.mean([name == data.label_names[label] for name, label in zip(names, data.test.labels, strict=True)])
    assert right == pytest.approx(json.loads((out / "result.json").read_text())["results"]["found"]["test_accuracy"])


def test_pairs_of_texts(small_bert, tmp_path, capsys):
    path = tmp_path / "pairs.jsonl"
    rows = [
        {"sentence1": f"it is {i}", "sentence2": f"it is {i % 2}", "label": "\x1b[1myes" if i < 2 else "no"} for i in range(40)
    ]
    path.write_text("\n".join(json.dumps(row) for row in rows * 2))
    options = replace(run_bert.Options(**TINY), gens=1, model=str(small_bert), data=str(path), out=tmp_path / "run")
    options = replace(options, class_weights="balanced", finalist_seeds=1)
    run_bert.main(options)
    assert json.loads((tmp_path / "run" / "result.json").read_text())["results"]["found"]["test_accuracy"] >= 0.5
    printed = capsys.readouterr().out
    assert r"2 classes (\x1b[1myes, no)" in printed
    assert r"examples: no 15/15/15, \x1b[1myes 1/1/1" in printed
    assert r"Class weights: \x1b[1myes 8, no 0.533" in printed
    assert "\x1b" not in printed


def test_an_unknown_option():
    done = subprocess.run([sys.executable, SCRIPT, "--genz", "3"], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "--gens" in done.stderr
