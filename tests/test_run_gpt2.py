"""The real script, run for real with tiny options."""

import contextlib
import io
import json
import math
import re
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
import run_gpt2
from command_line import words
from compared import COMPARED

from gafreeze_jax import user_cache
from gafreeze_jax.data import lm, tokens
from gafreeze_jax.data.text import load_text
from gafreeze_jax.engine.network import Source
from gafreeze_jax.engine.scoring import score
from gafreeze_jax.metrics import ACCURACY, cross_entropy
from gafreeze_jax.models import pretrained

pytestmark = pytest.mark.usefixtures("quick_compilation")

SCRIPT = Path(run_gpt2.__file__)
TINY = {
    "finalist_seeds": 1,
    "gens": 2,
    "population": 2,
    "train_examples": 8,
    "validation_examples": 8,
    "epochs": 1,
    "batch_size": 4,
    "max_tokens": 16,
}
GENES = ["embeddings", "block_0", "block_1", "final_norm"]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """A small text of the user's own."""
    path = tmp_path_factory.mktemp("corpus") / "text.txt"
    path.write_text(lm.load_corpus("reviews").train[:5000], encoding="utf-8")
    return path


def run(out, **options):
    run_gpt2.main(run_gpt2.Options(**TINY | {"plan": "steps=0", "out": out} | options))
    return json.loads((out / "result.json").read_text())


# Language modelling


@pytest.fixture(scope="module")
def finished(small_gpt2, corpus, tmp_path_factory, quick_compilation):
    """The folder of a run of the script, and what it has printed."""
    folder = tmp_path_factory.mktemp("finished")
    command = [sys.executable, SCRIPT, *words(**TINY, model=small_gpt2, data=corpus, out=folder / "run")]
    done = subprocess.run(command, capture_output=True, text=True, cwd=folder, check=False)
    assert done.returncode == 0, done.stderr
    return folder / "run", done.stdout


def test_the_script(finished):
    out, printed = finished
    lines = re.findall(
        r"^=== Generation (\d+) ===\nFittest chromosome: \[((?:[01](?:, )?){4})\] \| Fitness: (0\.\d{4})$", printed, re.M
    )
    assert [number for number, _, _ in lines] == ["1", "2"]
    result = json.loads((out / "result.json").read_text())
    assert result["stages"] == GENES
    assert set(result["results"]) == {"train nothing", *COMPARED}
    for row in result["results"].values():
        for split in ("validation", "test"):
            assert row[f"{split}_perplexity"] == pytest.approx(math.exp(row[f"{split}_loss"]))
        figures = row["validation_accuracy"], row["test_accuracy"]
        assert re.search(rf"{figures[0]:.4f} +{figures[1]:.4f} +one seed +{row['test_perplexity']:.2f} ", printed)
    assert result["results"]["train nothing"]["trainable_parameters"] == 0
    assert sorted(path.name for path in out.iterdir()) == [
        "SHA256SUMS",
        "evaluations.csv",
        "mask.json",
        "model",
        "plots",
        "report.html",
        "result.json",
        "run.json",
    ]


def test_the_small_model_is_pretrained_once(tmp_path, monkeypatch, capsys):
    """The default model and data, but less text."""
    load = lm.load_corpus

    def load_less(source):
        train, validation, test, notes = load(source)
        return lm.Corpus(train[:6000], validation[:1000], test[:1000], notes)

    monkeypatch.setattr(lm, "load_corpus", load_less)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    result = run(tmp_path / "a", gens=1)
    printed = capsys.readouterr().out
    assert re.search("Pretraining a GPT-2 of 842,496 parameters on 6,0.. bytes of Python's language reference, once", printed)
    assert result["stages"] == ["embeddings", *(f"block_{i}" for i in range(4)), "final_norm"]
    again = run(tmp_path / "b", gens=1)
    assert "Pretraining" not in capsys.readouterr().out
    assert again["results"] == result["results"]
    (kept,) = (tmp_path / "cache" / "gafreeze_jax").glob("gpt2-pydoc-*")
    start, trained = (pretrained.load(path, "lm").params for path in (kept, tmp_path / "a" / "model"))
    frozen = json.loads((tmp_path / "a" / "mask.json").read_text())["frozen"]
    for name in frozen:
        same = [np.array_equal(*pair) for pair in zip(*map(jax.tree.leaves, (trained[name], start[name])), strict=True)]
        assert all(same) == frozen[name]


def test_what_is_kept_is_whole_or_not_there(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    calls = []

    def make(folder, fail):
        calls.append(fail)
        (folder / "file").write_text("content")
        if fail:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        user_cache.keep("model", {"a": 1}, lambda folder: make(folder, True))
    assert list((tmp_path / "gafreeze_jax").iterdir()) == []
    made = [user_cache.keep("model", {"a": 1}, lambda folder: make(folder, False)) for _ in range(2)]
    assert made[0] == made[1]
    assert (made[0] / "file").read_text() == "content"
    assert calls == [True, False]
    assert user_cache.keep("model", {"a": 2}, lambda folder: make(folder, False)) != made[0]


@pytest.mark.parametrize("granularity", ["layer", "sublayer"])
def test_the_saved_model_scores_in_pytorch_what_the_table_says(granularity, finished, small_gpt2, corpus, tmp_path):
    if granularity == "layer":
        out, _ = finished
        result = json.loads((out / "result.json").read_text())
    else:
        out = tmp_path / "run"
        result = run(out, model=str(small_gpt2), data=str(corpus), granularity=granularity)
    found = result["model"]
    loaded = pretrained.load(out / "model", "lm")
    tokenizer = tokens.load_tokenizer(out / "model")
    test = lm.make_windows(lm.encode(tokenizer, lm.load_corpus(str(corpus)).test, vocabulary=256), TINY["max_tokens"])
    scores = score(
        loaded.model.make_network(),
        loaded.params,
        Source(test.dataset, lm.scoring_batches(test)),
        loss=cross_entropy,
        metric=ACCURACY,
    )
    scores = scores.values.mean(), scores.losses.mean()
    assert scores == pytest.approx((found["test_accuracy"], found["test_loss"]), rel=1e-5)
    if granularity == "sublayer":
        assert result["stages"][1:3] == ["block_0/attention", "block_0/mlp"]

    torch = pytest.importorskip("torch")
    import transformers

    model = transformers.AutoModelForCausalLM.from_pretrained(out / "model")
    parts = zip(test.tokens.starts, test.tokens.lengths, strict=True)
    losses = []
    for start, num in parts:
        ids, targets = (
            torch.tensor(row[start : start + num], dtype=torch.long) for row in (test.tokens.inputs["ids"], test.targets)
        )
        losses.append(torch.nn.functional.cross_entropy(model(ids[None]).logits[0], targets, reduction="sum").item())
    assert math.exp(sum(losses) / len(test.targets)) == pytest.approx(math.exp(found["test_loss"]), rel=1e-4)


# Classification


@pytest.fixture(scope="module")
def classified(small_gpt2, reviews, tmp_path_factory, quick_compilation):
    """A run's folder, its result and what it has printed."""
    out, printed = tmp_path_factory.mktemp("classified") / "run", io.StringIO()
    with contextlib.redirect_stdout(printed):
        result = run(out, task="classify", model=str(small_gpt2), data=str(reviews))
    return out, result, printed.getvalue()


def test_pytorch_scores_the_saved_classifier_the_same(classified, reviews):
    out, result, printed = classified
    assert "12 of the 60 training rows were cut for each" in printed
    assert result["stages"] == GENES
    assert set(result["results"]) == {"head only", *COMPARED}
    assert "test_perplexity" not in result["results"]["found"]
    assert json.loads((out / "model" / "config.json").read_text())["id2label"] == {"0": "bad", "1": "good"}

    torch = pytest.importorskip("torch")
    import transformers

    model = transformers.AutoModelForSequenceClassification.from_pretrained(out / "model")
    tokenizer = transformers.AutoTokenizer.from_pretrained(out / "model")
    data = load_text(str(reviews))
    texts = [text for (text,) in data.test.texts]
    encoded = tokenizer(texts, padding=True, truncation=True, max_length=TINY["max_tokens"], return_tensors="pt")
    with torch.no_grad():
        predicted = model(**encoded).logits.argmax(-1).numpy()
    assert np.mean(predicted == data.test.labels) == pytest.approx(result["model"]["test_accuracy"])


def test_a_model_of_bytes_needs_no_tokenizer(classified, small_gpt2, reviews, tmp_path):
    folder = shutil.copytree(small_gpt2, tmp_path / "model")
    _, expected, _ = classified
    for path in folder.glob("tokenizer*"):
        path.unlink()
    result = run(tmp_path / "b", task="classify", model=str(folder), data=str(reviews))
    assert result["results"] == expected["results"]
    assert sorted(path.name for path in (tmp_path / "b" / "model").iterdir()) == ["config.json", "model.safetensors"]
    assert json.loads((tmp_path / "b" / "model" / "config.json").read_text())["pad_token_id"] == 0
