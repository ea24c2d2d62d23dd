"""What a person should know about texts and a model is said when a run is prepared, and when its model labels a file."""

import shutil

import numpy as np
import pytest
import run_bert
import run_gpt2

from gafreeze_jax.runs.remarks import majority
from gafreeze_jax.tasks import text

pytestmark = pytest.mark.usefixtures("quick_compilation")

LONG = "word " * 300 + "good"


def write(path, rows):
    path.write_text("text,label\n" + "".join(f"{text},{label}\n" for text, label in rows))
    return str(path)


def prepare(model, data, script=run_bert, **options):
    return script.prepare(script.Options(model=str(model), data=data, **options))


def test_texts_that_are_cut(small_bert, tmp_path):
    data = write(tmp_path / "a.csv", [(LONG, "yes"), ("short", "no"), (LONG, "no")] * 5)
    assert "10 of 15 texts are longer than 64 tokens and are cut (--max-tokens)." in prepare(small_bert, data).about
    assert not any("cut (" in line for line in prepare(small_bert, data, max_tokens=512).about)
    labelled = text.load_unlabelled(run_bert.Options(), small_bert, tmp_path / "a.csv", ("no", "yes"))
    assert "10 of 15 texts are longer than 64 tokens and are cut (--max-tokens)." in labelled.notes


def test_texts_that_are_cut_for_another_family(small_gpt2, tmp_path):
    data = write(tmp_path / "a.csv", [(LONG, "yes"), ("short", "no")] * 5)
    about = prepare(small_gpt2, data, run_gpt2, task="classify", max_tokens=16).about
    assert "5 of 10 texts are longer than 16 tokens and are cut (--max-tokens)." in about
    assert not any("unknown" in line for line in about)


def test_a_language_that_the_model_does_not_know(small_bert, tmp_path):
    data = write(tmp_path / "a.csv", [("😭 😭 ok", "yes"), ("😭 no", "no")] * 5)
    (note,) = [line for line in prepare(small_bert, data).about if "unknown" in line]
    assert note.startswith("15 of 25 tokens (60 %) are unknown to the model's vocabulary; the model may not fit the language")


@pytest.mark.parametrize("script", [run_bert])
def test_a_vocabulary_without_a_token_for_what_is_unknown(script, small_bert, tmp_path):
    folder = shutil.copytree(small_bert, tmp_path / "model")
    (folder / "tokenizer.json").unlink()
    (folder / "tokenizer_config.json").unlink()
    (folder / "vocab.txt").write_text("\n".join(["[PAD]", "[CLS]", "[SEP]", "[MASK]", "good", "bad"]))
    data = write(tmp_path / "a.csv", [("good", "yes"), ("bad", "no")] * 5)
    prepare(folder, data)
    data = write(tmp_path / "a.csv", [("good", "yes"), ("bad", "no")] * 5 + [("good 😭", "yes")])
    with pytest.raises(
        ValueError, match=r"a.csv: the tokenizer cannot encode the text 'good 😭': WordPiece error: Missing \[UNK\]"
    ):
        prepare(folder, data)
    with pytest.raises(ValueError, match=r"a.csv: the tokenizer cannot encode the text 'good 😭'"):
        text.load_unlabelled(run_bert.Options(), folder, tmp_path / "a.csv", ("no", "yes"))


def test_the_share_of_the_majority_class(small_bert, tmp_path):
    data = write(tmp_path / "a.csv", [(f"text {i}", "yes" if i % 30 == 7 else "no") for i in range(300)])
    setup = prepare(small_bert, data)
    shares = majority(setup.problem, validation=setup.problem.validation.data.targets, test=setup.test.data.targets)["majority"]
    assert shares["label"] == "no"
    np.testing.assert_allclose([shares["validation_accuracy"], shares["test_accuracy"]], 58 / 60)
