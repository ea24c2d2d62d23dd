"""The benchmark of text tasks, on a task that a small network learns at once."""

import pytest

pytest.importorskip("torch")

import text_tasks
from test_targets import conll

pytestmark = pytest.mark.usefixtures("quick_compilation")


@pytest.mark.parametrize("side", ["train_ours", "train_pytorch"])
def test_both_learn_which_word_is_a_name(side, small_bert, tmp_path):
    sentences = ["Peter B-per\nsaid O\n", "the O\nhouse O\nof O\nPeter B-per\n", "he O\nsaid O\n"]
    data = conll(tmp_path, "\n".join(sentences * 20))
    given = text_tasks.text.Options(
        model=str(small_bert), data=data, train_examples=36, epochs=12, learning_rate=1e-2, head_learning_rate=3e-2
    )
    assert getattr(text_tasks, side)(given, text_tasks.text.load_data(given), seed=0) > 0.9
