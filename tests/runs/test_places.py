"""Where a run's model, data and columns are: absolute paths, and contents that are compared when they are used again."""

import csv
import json
import shutil

import pytest
import small_models
import test_reuse
from safetensors.numpy import load_file, save_file
from test_reuse import gafreeze, read  # noqa: F401, a fixture

from gafreeze_jax.data import text
from gafreeze_jax.options import with_absolute_paths
from gafreeze_jax.runs.main import main
from gafreeze_jax.tasks import images as image_task
from gafreeze_jax.tasks import language_model as gpt2_task
from gafreeze_jax.tasks import text as bert_task

pytestmark = pytest.mark.usefixtures("quick_compilation")
GIVEN = {"model": "model", "data": "t.csv", **test_reuse.TINY}


@pytest.fixture
def here(small_bert, tmp_path, monkeypatch):
    """The current folder, with a model and data; beside it is a folder with others of the same names."""
    for name, first in (("here", 0), ("there", 80)):
        (tmp_path / name).mkdir()
        shutil.copytree(small_bert, tmp_path / name / "model")
        test_reuse.write_reviews(tmp_path / name / "t.csv", first, first + 80)
    change_model(tmp_path / "there" / "model")
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path / "here"


@pytest.fixture
def run(monkeypatch, capsys):
    """A command up to the training, which is left out; gives its error."""
    monkeypatch.setattr("gafreeze_jax.runs.main._run", lambda *args, **kwargs: None)

    def start(**options):
        capsys.readouterr()
        try:
            main("bert", bert_task.prepare, bert_task.Options(**options))
        except SystemExit:
            return capsys.readouterr().err
        return None

    return start


def change_model(folder):
    tensors = load_file(folder / "model.safetensors")
    tensors["bert.embeddings.LayerNorm.weight"] *= 2
    save_file(tensors, folder / "model.safetensors")


def options_of(run_folder):
    return json.loads((run_folder / "run.json").read_text())["options"]


@pytest.mark.parametrize(
    ("task", "words"),
    [
        (bert_task, [("model", "minilm"), ("data", "reviews"), ("data", "tfds:glue/sst2")]),
        (gpt2_task, [("model", "pydoc"), ("data", "pydoc"), ("data", "reviews")]),
        (image_task, [("model", "digits"), ("data", "digits"), ("data", "digits:5-9")]),
    ],
)
def test_paths_become_absolute_and_words_stay(task, words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    for name, word in words:
        (tmp_path / word).mkdir(parents=True, exist_ok=True)  # a folder that is called so changes nothing
        assert getattr(with_absolute_paths(task.Options(**{name: word})), name) == word
        assert getattr(with_absolute_paths(task.Options(**{name: "org/name"})), name) == "org/name"
    (tmp_path / "mine").mkdir()
    for name in ("model", "data", "mask"):
        for value in ("mine", "./mine", "~/mine", str(tmp_path / "mine")):
            assert getattr(with_absolute_paths(task.Options(**{name: value})), name) == str(tmp_path / "mine")


def test_a_run_is_resumed_from_another_folder(here, run, monkeypatch):
    assert run(**GIVEN, out="run") is None
    known = options_of(here / "run")
    assert (known["model"], known["data"]) == (str(here / "model"), str(here / "t.csv"))
    assert run(**GIVEN, out="run") is None  # the same command
    monkeypatch.chdir(here.parent / "there")
    assert run(resume=here / "run") is None
    assert run(resume="../here/run") is None


def test_the_same_words_elsewhere_are_another_run(here, run, monkeypatch):
    assert run(**GIVEN, out="run") is None
    monkeypatch.chdir(here.parent / "there")
    error = run(**GIVEN, out=here / "run")
    assert f"--model {here / 'model'} there, {here.parent / 'there' / 'model'} given" in error


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda here: change_model(here / "model"), "the model {here}/model has changed since this run started; choose a new"),
        (lambda here: test_reuse.write_reviews(here / "t.csv", 80, 160), "the data {here}/t.csv has changed since this run"),
    ],
)
def test_what_has_changed_is_named(change, message, here, run):
    assert run(**GIVEN, out="run") is None
    change(here)
    assert message.format(here=here) in run(resume="run")


def test_model_and_data_may_move(here, run):
    assert run(**GIVEN, out="run") is None
    shutil.move(here / "model", here / "moved")
    shutil.move(here / "t.csv", here / "moved.csv")
    assert f"the model {here / 'model'} of this run is gone; if it has moved, say where by --model" in run(resume="run")
    assert f"the data {here / 't.csv'} of this run is gone" in run(resume="run", model="moved")
    assert run(resume="run", model="moved", data="moved.csv") is None
    assert options_of(here / "run")["model"] == str(here / "moved")
    assert run(resume="run") is None


def test_another_model_in_another_place_is_named_with_both(here, run):
    assert run(**GIVEN, out="run") is None
    error = run(resume="run", model="../there/model")
    there = here.parent / "there" / "model"
    assert (
        f"the model (it was {here / 'model'}, it is {there}) has changed since this run started; choose a new folder" in error
    )
    assert options_of(here / "run")["model"] == str(here / "model")


# Finished runs


@pytest.fixture(scope="module")
def finished(tmp_path_factory, quick_compilation):
    """A run that was made with relative paths, and whose texts were found by convention in the column `title`."""
    folder = tmp_path_factory.mktemp("places")
    (folder / "bert").mkdir()
    model = small_models.write_bert(folder / "bert")
    rows = text.load_text("reviews").train
    with open(folder / "t.csv", "w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([["title", "label"], *((t, label) for (t,), label in zip(*rows, strict=True))][:81])
    test_reuse.write_mask(folder / "mask.json", embeddings=True, layer_0=True, layer_1=False)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        test_reuse.start("bert", bert_task, folder, model="bert/model", data="t.csv", mask="mask.json")
    return folder / "run", model


def test_predict_reads_the_columns_of_the_run(finished, gafreeze, tmp_path):  # noqa: F811
    path, _ = finished
    (tmp_path / "both.csv").write_text("text,title\nanother text,a title\nmore text,more titles\n")
    code, printed, _ = gafreeze("predict", path, "--data", tmp_path / "both.csv")
    assert code == 0
    assert [row["title"] for row in read(printed)] == ["a title", "more titles"]
    code, printed, _ = gafreeze("predict", path, "--data", tmp_path / "both.csv", "--text-columns", "text")
    assert [row["text"] for row in read(printed)] == ["another text", "more text"]
    (tmp_path / "other.csv").write_text("text,body\na,b\n")
    code, _, failed = gafreeze("predict", path, "--data", tmp_path / "other.csv")
    assert (code, failed.count("\n")) == (2, 1)
    assert "other.csv: no column 'title'; the columns are text, body; choose by --text-columns" in failed


def test_a_mask_is_applied_to_the_model_of_the_run(finished, gafreeze, here, monkeypatch):  # noqa: F811
    path, model = finished
    apply = ["apply", path, "--data", "t.csv", "--out", "out"]
    seen = []
    monkeypatch.setattr("gafreeze_jax.runs.main._run", lambda begun, options, **kw: seen.append(options))
    assert gafreeze(*apply)[0] == 0
    assert (seen[0].model, seen[0].data) == (str(model), str(here / "t.csv"))
    assert gafreeze(*apply[:-1], "out2", "--model", "model")[0] == 0
    assert seen[1].model == str(here / "model")
    whole = (model / "model.safetensors").read_bytes()
    change_model(model)
    code, _, failed = gafreeze(*apply[:-1], "out3")
    (model / "model.safetensors").write_bytes(whole)
    assert code == 2
    assert (
        f"{path}: the model {model} has changed since this run was made; to train it all the same, give it as --model" in failed
    )
    assert not (here / "out3").exists()


def test_a_finished_run_is_of_its_own_model_and_data(finished, run, here):
    path, _ = finished
    assert "holds a run with other options: --data" in run(resume=path, data="t.csv")


def test_the_saved_model_is_the_one_that_predicts(finished, gafreeze, tmp_path):  # noqa: F811
    path = shutil.copytree(finished[0], tmp_path / "run")
    change_model(path / "model")
    code, _, failed = gafreeze("predict", path, "--data", finished[0].parent / "t.csv")
    assert code == 2
    assert "damaged or missing: model/model.safetensors" in failed
