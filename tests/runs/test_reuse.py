"""What is done with real, tiny runs afterwards: their models label files, their masks are tried on other data.

To be quick, these runs train with a given mask; they leave what a search leaves.
"""

import csv
import dataclasses
import io
import json
import shutil
import sys

import jax
import numpy as np
import pytest
import run_custom
import small_models
from PIL import Image

from gafreeze_jax import cli
from gafreeze_jax.data import images, lm, text
from gafreeze_jax.engine import cache, scoring
from gafreeze_jax.models import pretrained
from gafreeze_jax.runs.main import main
from gafreeze_jax.tasks import images as resnet_task
from gafreeze_jax.tasks import language_model as gpt2_task
from gafreeze_jax.tasks import text as bert_task

pytestmark = pytest.mark.usefixtures("quick_compilation")

TINY = {
    "train_examples": 16,
    "validation_examples": 12,
    "epochs": 2,
    "batch_size": 8,
    "finalist_seeds": 1,
    "plan": "steps=0",
}


def write_reviews(path, first, last, titles=("review", "sentiment")):
    """Some of the embedded reviews as the user's own table."""
    texts, labels = text.load_text("reviews").train
    with open(path, "w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(titles)
        writer.writerows(
            (*words, "good" if label else "bad") for words, label in zip(texts[first:last], labels[first:last], strict=True)
        )
    return path


@pytest.fixture(scope="module")
def runs(tmp_path_factory, quick_compilation):
    """Makes a run of each kind: its folder, and its test split as a file or folder without labels, and the labels."""
    made = {}

    def run(kind):
        if kind not in made:
            folder = tmp_path_factory.mktemp(kind)
            made[kind] = folder / "run", *MAKERS[kind](folder)
        return made[kind]

    return run


def start(kind, module, folder, **options):
    main(kind, module.prepare, module.Options(**TINY | options | {"out": folder / "run"}))


def write_mask(path, **frozen):
    mask = {"format": "gafreeze_jax mask", "version": 1, "genome": [int(flag) for flag in frozen.values()], "frozen": frozen}
    path.write_text(json.dumps(mask))
    return path


def write_test_texts(folder, data):
    """The test split's texts, and a row without text, which is left out."""
    with open(folder / "test.csv", "w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([["number", "review"], [0, " "], *enumerate((t for (t,) in data.test.texts), start=1)])
    return folder / "test.csv", [data.label_names[label] for label in data.test.labels]


def make_bert_run(folder):
    data = write_reviews(folder / "reviews.csv", 0, 80)
    mask = write_mask(folder / "mask.json", embeddings=True, layer_0=False, layer_1=False)
    start("bert", bert_task, folder, model=str(small_models.write_bert(folder)), data=str(data), mask=mask)
    return write_test_texts(folder, text.load_text(str(data)))


def options_of_gpt2(folder):
    mask = write_mask(folder / "mask.json", embeddings=True, block_0=True, block_1=False, final_norm=False)
    return {"model": str(small_models.write_gpt2(folder)), "max_tokens": 16, "mask": mask}


def make_classifying_run(folder):
    data = write_reviews(folder / "reviews.csv", 0, 80)
    start("gpt2", gpt2_task, folder, **options_of_gpt2(folder), task="classify", data=str(data))
    return write_test_texts(folder, text.load_text(str(data)))


def make_language_run(folder):
    (folder / "text.txt").write_text(lm.load_corpus("reviews").train[:5000], encoding="utf-8")
    start("gpt2", gpt2_task, folder, **options_of_gpt2(folder), data=str(folder / "text.txt"))
    (folder / "test.txt").write_text(lm.load_corpus(str(folder / "text.txt")).test, encoding="utf-8")
    return folder / "test.txt", None


def make_image_run(folder):
    """Dark and bright pictures of the model's size, in PNG files; the test split's in folders of their own."""
    rng = np.random.default_rng(0)
    for name, low in (("bright", 20), ("dark", 0)):
        (folder / "photos" / name).mkdir(parents=True)
        for i in range(30):
            pixels = rng.integers(low, low + 200, (8, 8, 3), np.uint8)
            Image.fromarray(pixels).save(folder / "photos" / name / f"{i}.png")
    (folder / "model").mkdir()
    small_models.write_resnet(folder / "model")
    mask = write_mask(folder / "mask.json", stem=True, layer1_0=False, layer2_0=False)
    start("resnet", resnet_task, folder, model=str(folder / "model"), data=str(folder / "photos"), mask=mask)
    test = images.load_images(str(folder / "photos"), images.Frame(8)).test
    for i, pixels in enumerate(test.images):
        (folder / "test" / str(i % 2)).mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(folder / "test" / str(i % 2) / f"{i:02}.png")
    order = np.argsort([f"{i % 2}/{i:02}" for i in range(len(test.labels))])
    return folder / "test", [("bright", "dark")[label] for label in test.labels[order]]


MAKERS = {"bert": make_bert_run, "classify": make_classifying_run, "lm": make_language_run, "resnet": make_image_run}


@pytest.fixture
def gafreeze(monkeypatch, capsys):
    """Runs the command with some words; gives its exit status, and what it printed to stdout and to stderr."""

    def run(*words):
        capsys.readouterr()
        monkeypatch.setattr(sys, "argv", ["gafreeze", *map(str, words)])
        code = 0
        try:
            cli.main()
        except SystemExit as stop:
            code = stop.code
        return code, *capsys.readouterr()

    return run


def read(table):
    return list(csv.DictReader(io.StringIO(table)))


@pytest.mark.parametrize("kind", ["bert", "classify", "resnet"])
def test_labels_are_as_right_as_the_run_says(kind, runs, gafreeze):
    folder, data, labels = runs(kind)
    code, printed, noted = gafreeze("predict", folder, "--data", data)
    assert code == 0
    rows = read(printed)
    right = np.mean([row["label"] == label for row, label in zip(rows, labels, strict=True)])
    assert right == pytest.approx(json.loads((folder / "result.json").read_text())["model"]["test_accuracy"])
    assert all(0.5 <= float(row["probability"]) <= 1 for row in rows)
    if kind != "resnet":
        assert noted.startswith(f"{data}: 1 row without text left out, at line 2.\n")
        assert "cut (--max-tokens)" in noted or kind == "bert"  # GPT-2 reads 16 bytes
        assert [row["row"] for row in rows] == [str(number) for number in range(2, len(labels) + 2)]
        assert [row["review"] for row in rows] == [row["review"] for row in read(data.read_text())[1:]]


def test_the_perplexity_of_a_text(runs, gafreeze):
    folder, data, _ = runs("lm")
    code, printed, _ = gafreeze("predict", folder, "--data", data)
    assert code == 0
    (row,) = read(printed)
    expected = json.loads((folder / "result.json").read_text())["results"]["found"]["test_perplexity"]
    assert (row["file"], row["tokens"]) == ("test.txt", str(len(data.read_bytes()) - 1))
    assert float(row["perplexity"]) == pytest.approx(expected, rel=1e-5)


def test_pytorch_gives_the_same_labels_and_probabilities(runs, gafreeze, tmp_path):
    torch = pytest.importorskip("torch")
    import transformers

    folder, data, _ = runs("bert")
    code, printed, noted = gafreeze("predict", folder, "--data", data, "--out", tmp_path / "out.csv")
    assert (code, printed) == (0, "")
    assert noted.startswith(f"{data}: 1 row without text left out, at line 2.\n")
    rows = read((tmp_path / "out.csv").read_text(encoding="utf-8"))
    model = transformers.AutoModelForSequenceClassification.from_pretrained(folder / "model")
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder / "model")
    words = [row["review"] for row in rows]
    with torch.no_grad():
        inputs = tokenizer(words, padding=True, truncation=True, max_length=64, return_tensors="pt")
        probabilities, labels = model(**inputs).logits.softmax(-1).max(-1)
    assert [row["label"] for row in rows] == [model.config.id2label[int(label)] for label in labels]
    np.testing.assert_allclose([float(row["probability"]) for row in rows], probabilities, atol=1e-5)


def test_unreadable_images_are_skipped_when_asked(runs, gafreeze, tmp_path):
    folder, data, labels = runs("resnet")
    photos = shutil.copytree(data, tmp_path / "photos")
    (photos / "7.png").write_bytes(b"")
    code, _, failed = gafreeze("predict", folder, "--data", photos)
    assert (code, failed.count("\n")) == (2, 1)
    assert "cannot be read as images: 7.png (cannot identify image file); --skip-broken leaves such files out" in failed
    code, printed, noted = gafreeze("predict", folder, "--data", photos, "--skip-broken")
    assert (code, len(read(printed))) == (0, len(labels))
    assert "skipped 1 unreadable image: 7.png (" in noted


def test_images_in_an_array_are_numbered(runs, gafreeze, tmp_path):
    folder, data, _ = runs("resnet")
    files = sorted(data.rglob("*.png"))
    np.savez(tmp_path / "images.npz", images=np.stack([np.asarray(Image.open(file)) for file in files]))
    of_files, of_array = (read(gafreeze("predict", folder, "--data", one)[1]) for one in (data, tmp_path / "images.npz"))
    assert [row["row"] for row in of_array] == [str(number) for number in range(1, len(files) + 1)]
    assert [row["file"] for row in of_files] == [str(file.relative_to(data)) for file in files]
    assert [row["probability"] for row in of_array] == [row["probability"] for row in of_files]


def test_what_does_not_fit_on_the_device_is_labelled_the_same(runs, monkeypatch):
    folder, data, _ = runs("bert")
    options = dataclasses.replace(bert_task.Options(), dtype="float32")
    network, params, source, *_ = bert_task.load_unlabelled(options, folder / "model", data, ("bad", "good"))

    def logits():
        return np.concatenate([batch for _, batch in scoring.each_batch(network, params, source, lambda logits, _: logits)])

    whole = logits()
    monkeypatch.setattr(scoring, "default_budget", lambda: cache.Budget(0, 0))
    np.testing.assert_array_equal(logits(), whole)


# apply


def test_a_mask_on_other_data(runs, gafreeze, tmp_path):
    folder, *_ = runs("bert")
    data, out = write_reviews(tmp_path / "other.csv", 100, 180, ("comment", "class")), tmp_path / "out"
    command = ["apply", folder, "--data", data, "--seeds", 2, "--epochs", 1, "--out", out]
    code, printed, _ = gafreeze(*command)
    assert code == 0
    result, of_run = (json.loads((path / "result.json").read_text()) for path in (out, folder))
    assert "=== Generation" not in printed
    assert result["verdict"]["sentence"] in printed
    assert list(result["results"]) == ["found", "train all", "train all, half rate", "train all, quarter rate"]
    assert result["best_genome"] == of_run["best_genome"]
    masks = [json.loads((path / "mask.json").read_text())["frozen"] for path in (out, folder)]
    assert masks[0] == masks[1]
    seeds = {path: {row["seed"] for row in read((path / "evaluations.csv").read_text())} for path in (out, folder)}
    assert seeds == {out: {"2", "3"}, folder: {"1"}}  # fresh ones
    kept = {name: value for name, value in of_run["options"].items() if result["options"][name] == value}
    changed = {"data", "out", "mask", "epochs", "seed", "finalist_seeds", "head"}
    assert of_run["options"].keys() - kept.keys() == changed
    names = ["SHA256SUMS", "evaluations.csv", "mask.json", "model", "plots", "report.html", "result.json", "run.json"]
    names += ["test_predictions.csv"]
    assert sorted(path.name for path in out.iterdir()) == names

    # What is frozen is what was loaded; the folder is a run's, which is finished, and labels texts.
    start = pretrained.load(folder.parent / "model", num_classes=2).params
    trained = pretrained.load(out / "model").params
    for name, frozen in masks[0].items():
        same = [np.array_equal(*pair) for pair in zip(*map(jax.tree.leaves, (trained[name], start[name])), strict=True)]
        assert all(same) if frozen else not any(same)
    assert "it is finished" in gafreeze(*command)[1]
    assert len(read(gafreeze("predict", out, "--data", data)[1])) == 80


def test_a_mask_given_to_a_script(tmp_path, gafreeze):
    mask = write_mask(tmp_path / "mask.json", dense_0=True, dense_1=False, dense_2=True)
    run_custom.main(run_custom.Options(mask=mask, out=tmp_path / "run", finalist_seeds=3, plan="steps=35"))
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert result["results"]["found"]["genome"] == [1, 0, 1]
    assert "transfer" in result["verdict"]["sentence"]
    for command in ("predict", "apply"):
        code, _, failed = gafreeze(command, tmp_path / "run", "--data", "other.csv")
        assert code == 2
        assert "is a run of run_custom.py, and only that script knows its network and data" in failed


# Errors: one line, exit code 2, before any training


def test_errors_end_in_one_line(runs, gafreeze, tmp_path):
    folder, data, _ = runs("bert")
    pictures, photos, _ = runs("resnet")
    unfinished, damaged, custom = (tmp_path / name for name in ("unfinished", "damaged", "custom"))
    for copy in (unfinished, damaged, custom):
        shutil.copytree(folder, copy)
    (unfinished / "SHA256SUMS").unlink()
    (damaged / "mask.json").write_text("{}")
    deeper = small_models.write_bert(tmp_path / "deeper", 3)
    labelled = write_reviews(tmp_path / "labelled.csv", 0, 40)
    cases = [
        (["predict", unfinished, "--data", data], "the run is not finished; to resume it: python experiments/run_bert.py"),
        (["apply", unfinished, "--data", data], "the run is not finished"),
        (["predict", damaged, "--data", data], "damaged or missing: mask.json"),
        (["apply", damaged, "--data", data], "damaged or missing: mask.json"),
        (["predict", tmp_path, "--data", data], "no run: expected run.json in it"),
        (["predict", folder, "--data", photos], "unknown kind of file; expected .csv"),
        (["predict", folder, "--data", tmp_path / "none.csv"], "no such file"),
        (["predict", folder, "--data", data, "--text-columns", "words"], "no column 'words'"),
        (["predict", folder, "--data", data, "--out", tmp_path / "none/out.csv"], "no such folder"),
        (["predict", pictures, "--data", data], "no images; expected a .npz file"),
        (["predict", pictures, "--data", photos, "--text-columns", "a"], "runs of run_resnet.py have no --text-columns"),
        (["predict", runs("lm")[0], "--data", data], "unknown kind of file; expected .txt"),
        (["apply", folder, "--data", photos], "no train file"),
        (["apply", folder, "--data", labelled, "--seeds", 0], "--seeds must be at least 1, got 0"),
        (["apply", folder, "--data", labelled, "--model", deeper], "the mask has the genes embeddings, layer_0, layer_1; the"),
        (["apply", folder, "--data", labelled, "--model", pictures.parent / "model"], "config.json"),
    ]
    for words, message in cases:
        out = [] if "--out" in words or words[0] == "predict" else ["--out", tmp_path / "out"]
        code, printed, failed = gafreeze(*words, *out)
        assert (code, failed.count("\n"), failed[:7]) == (2, 1, "error: "), words
        assert message in failed
        assert "Training" not in printed
        assert not (tmp_path / "out").exists()
