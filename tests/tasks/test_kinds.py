"""Several labels, numbers and tags: what is trained, what predictions look like, and that PyTorch computes the same."""

import csv
import json

import jax
import numpy as np
import pytest
import run_bert
from test_targets import CONLL, conll, jsonl, table

from gafreeze_jax.cli import predict as predict_command
from gafreeze_jax.engine.scoring import each_batch, score
from gafreeze_jax.metrics import label_sets
from gafreeze_jax.models import checkpoints
from gafreeze_jax.runs import reuse
from gafreeze_jax.tasks import kinds, language_model, text

pytestmark = pytest.mark.usefixtures("quick_compilation")

NUMBERS = [f"{number / 7 + 3:.3f}" for number in range(20)]
DATA = {
    "label": (table, "label", ["good", "bad"]),
    "labels": (jsonl, [["joy"], ["anger", "joy"], [], ["fear"]]),
    "number": (table, "score", NUMBERS),
    "tags": (conll,),
}


def prepare(kind, folder, model, module=text, **given):
    """Options and setup for a kind of data, by a module of tasks."""
    make, *how = DATA[kind]
    small = {"train_examples": 16, "validation_examples": 8, "max_tokens": 64}
    small |= {"task": "classify"} if module is language_model else {}
    options = module.Options(model=str(model), data=make(folder, *how), **small | given)
    return options, module.prepare(options)


def with_random_head(setup):
    """Parameters of the whole network; logits are far from 0."""
    head = jax.tree.map(lambda leaf: 5 * leaf, setup.problem.make_head(jax.random.key(1)))
    return setup.restore({**setup.problem.params, "head": head})


@pytest.mark.parametrize("kind", DATA)
def test_pytorch_loads_a_saved_model_and_computes_the_same(kind, small_bert, tmp_path):
    assert_pytorch_computes_the_same(kind, small_bert, tmp_path)


def assert_pytorch_computes_the_same(kind, folder, tmp_path, module=text):
    """Of a saved model with a fresh head."""
    torch = pytest.importorskip("torch")
    import transformers

    options, setup = prepare(kind, tmp_path, folder, module, head="fresh")
    assert setup.facts["learned"] == {"task": kind}
    setup.save(tmp_path / "model", with_random_head(setup))
    path = tmp_path / ("set.conll" if kind == "tags" else "set.jsonl" if kind == "labels" else "set.tsv")
    labelled = module.load_unlabelled(options, tmp_path / "model", path, setup.facts["label_names"], task=kind)
    batches = each_batch(labelled.network, labelled.params, labelled.source, lambda logits, _: logits)
    rows, outputs = zip(*batches, strict=True)
    ours = np.concatenate(outputs)[np.argsort(np.concatenate(rows))]

    auto = transformers.AutoModelForTokenClassification if kind == "tags" else transformers.AutoModelForSequenceClassification
    model, report = auto.from_pretrained(tmp_path / "model", output_loading_info=True)
    assert not any(report[name] for name in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert model.config.problem_type == kinds.PROBLEM_TYPES[kind]
    assert list(model.config.id2label.values()) == list(setup.facts["label_names"])
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "model")
    theirs = []
    with torch.no_grad():
        for words in labelled.columns["tokens" if kind == "tags" else "text"]:
            given = words.split() if kind == "tags" else words
            encoded = tokenizer(given, is_split_into_words=kind == "tags", return_tensors="pt")
            logits = model(**encoded).logits[0]
            if kind == "tags":
                ids = encoded.word_ids()
                logits = logits[[i for i, word in enumerate(ids) if word is not None and word != ids[i - 1]]]
            theirs.append(np.atleast_2d(logits.numpy()))
    np.testing.assert_allclose(ours, np.concatenate(theirs), atol=1e-4)


@pytest.mark.parametrize("module", [text, language_model])
def test_saved_models_give_numbers_in_the_users_units(module, small_bert, small_gpt2, tmp_path):
    folder = small_bert if module is text else small_gpt2
    options, setup = prepare("number", tmp_path, folder, module, metric="rmse")
    params = with_random_head(setup)
    task = setup.problem.task
    train = setup.problem.train.data.targets
    if module is text:  # the other's head has no bias for the mean
        assert train.mean() == pytest.approx(0, abs=1e-6)
    assert train.std() == pytest.approx(1)
    tested = score(setup.network, params, setup.test, loss=task.loss, metric=task.metric)
    rmse = task.metric.shown(task.metric.score(tested.values))

    setup.save(tmp_path / "model", params)
    labelled = module.load_unlabelled(options, tmp_path / "model", tmp_path / "set.tsv", ("score",), task="number")
    rows, outputs = zip(*each_batch(labelled.network, labelled.params, labelled.source, labelled.task.predict), strict=True)
    predicted = labelled.task.write(np.concatenate(outputs)[np.argsort(np.concatenate(rows))])["score"]
    by_text = dict(zip(labelled.columns["text"], zip(predicted, NUMBERS * 2, strict=True), strict=True))
    data = text.load_data(options).test
    errors = [by_text[words][0] - float(by_text[words][1]) for (words,) in data.texts]
    assert np.sqrt(np.mean(np.square(errors))) == pytest.approx(rmse, rel=1e-4)


def test_a_saved_model_of_a_number_goes_on_with_its_head(small_bert, tmp_path):
    _, setup = prepare("number", tmp_path, small_bert)
    setup.save(tmp_path / "model", with_random_head(setup))
    _, again = prepare("number", tmp_path, tmp_path / "model")
    assert again.problem.head == "kept"
    assert again.problem.train.data.targets.min() >= 3  # not standardised
    again.save(tmp_path / "again", again.restore(again.problem.params))
    first, second = (checkpoints.read_file(tmp_path / name / "model.safetensors") for name in ("model", "again"))
    jax.tree.map(np.testing.assert_array_equal, first, second)


@pytest.mark.parametrize("kind", ["labels", "tags"])
def test_a_kept_head_has_the_labels_at_its_own_places(kind, small_bert, tmp_path):
    _, setup = prepare(kind, tmp_path, small_bert)
    names = setup.facts["label_names"]
    assert setup.problem.head == "fresh"
    setup.save(tmp_path / "model", with_random_head(setup))
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    order = [*names[1:], names[0]]
    (tmp_path / "model" / "config.json").write_text(json.dumps(config | {"id2label": dict(enumerate(order))}))
    _, moved = prepare(kind, tmp_path, tmp_path / "model")
    assert moved.problem.head == "kept"
    before, after = (each.problem.train.data.targets for each in (setup, moved))
    if kind == "labels":
        np.testing.assert_array_equal(after, before[:, [*range(1, len(names)), 0]])
    else:
        np.testing.assert_array_equal(after[:, 0], (before[:, 0] - 1) % len(names))


def test_long_sentences_are_cut(small_bert, tmp_path):
    options, setup = prepare("tags", tmp_path, small_bert, max_tokens=8)
    conll(tmp_path, "\n".join(f"w{i} B-per" for i in range(9)) + "\n\n" + CONLL, name="long.conll")
    setup.save(tmp_path / "model", with_random_head(setup))
    names = setup.facts["label_names"]
    labelled = text.load_unlabelled(options, tmp_path / "model", tmp_path / "long.conll", names, task="tags")
    assert "1 of 3 texts are longer than 8 tokens and are cut (--max-tokens)." in labelled.notes
    kept = labelled.source.num_examples
    chances = np.tile(np.eye(4)[2], (kept, 1))  # B-per
    written = labelled.task.write(chances)
    tags = written["tags"][0].split()
    assert len(tags) == 9
    assert tags[-1] == "O"
    assert json.loads(written["entities"][0])[0] == {"type": "per", "start": 0, "end": 1, "text": "w0"}


def test_metrics_of_other_kinds(small_bert, tmp_path):
    with pytest.raises(
        ValueError, match="--metric spearman is not for one of two labels; choose accuracy or balanced-accuracy"
    ):
        prepare("label", tmp_path, small_bert, metric="spearman")
    with pytest.raises(ValueError, match="--metric accuracy is not for a number for each text; choose spearman or pearson"):
        prepare("number", tmp_path, small_bert, metric="accuracy")
    with pytest.raises(ValueError, match="--metric roc-auc is not for one of 3 labels"):
        kinds.metric_of_classes("roc-auc", 3)
    with pytest.raises(ValueError, match="--metric entity-f1 is not for a tag for each word; choose token-accuracy"):
        kinds.make_task("tags", ("NOUN", "VERB"), metric="entity-f1")


@pytest.fixture(scope="module")
def finished(small_bert, tmp_path_factory):
    """The folder of a run on several labels."""
    folder = tmp_path_factory.mktemp("labels")
    sizes = {"gens": 1, "population": 2, "train_examples": 16, "validation_examples": 8, "epochs": 1, "batch_size": 8}
    how = {"finalist_seeds": 2, "plan": "steps=0", "quiet": True}
    data = jsonl(folder, DATA["labels"][1])
    options = run_bert.Options(model=str(small_bert), data=data, out=folder / "run", **sizes, **how)
    run_bert.main(options)
    return folder


def test_a_run_on_several_labels(finished):
    result = json.loads((finished / "run" / "result.json").read_text())
    assert result["metric"]["name"] == "macro-F1"
    assert result["learned"]["threshold"] in label_sets.THRESHOLDS
    for row in result["results"].values():
        assert 0 <= row["test_macro-F1"] <= 1
    assert "macro-F1" in (finished / "run" / "report.html").read_text()
    config = json.loads((finished / "run" / "model" / "config.json").read_text())
    assert config["problem_type"] == "multi_label_classification"


def test_predicted_labels_are_those_at_the_threshold(finished, tmp_path):
    threshold = json.loads((finished / "run" / "result.json").read_text())["learned"]["threshold"]
    predict_command(finished / "run", finished / "set.jsonl", out=tmp_path / "out.csv", all_probabilities=True)
    with open(tmp_path / "out.csv", encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 40
    for row in rows:
        chances = {name: float(row[f"probability of {name}"]) for name in ("anger", "fear", "joy")}
        assert row["labels"] == ",".join(name for name, chance in chances.items() if chance >= threshold)
    assert "probability of joy" not in reuse.predict(finished / "run", finished / "set.jsonl")
