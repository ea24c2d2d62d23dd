"""Text for language modelling: where it comes from, how it is cut, and that every token is predicted once."""

import gzip

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gafreeze_jax.data import lm
from gafreeze_jax.data.batches import balanced_batches
from gafreeze_jax.data.reviews import read_reviews
from gafreeze_jax.data.tokens import make_byte_tokenizer

# Sources


def test_the_reference_of_python_is_cut_in_three_parts_one_after_the_other():
    from pydoc_data.topics import topics

    corpus = lm.load_corpus("pydoc")
    whole = "\n".join(topics.values())
    assert corpus.train + corpus.validation + corpus.test == whole
    assert len(corpus.validation) == len(corpus.test) == len(whole) // 10
    assert corpus == lm.load_corpus("pydoc")
    assert corpus.notes == (
        f"No validation and no test split: the last {len(whole) // 10:,} of {len(whole):,} characters of the training text "
        "were cut off for each.",
    )


def test_the_reviews_keep_their_splits():
    corpus = lm.load_corpus("reviews")
    assert corpus.notes == ()
    for split, rows in read_reviews().items():
        assert getattr(corpus, split).splitlines() == [row["text"] for row in rows]


def test_a_file_plain_or_gzipped(tmp_path):
    text = "".join(chr(ord("a") + i % 26) for i in range(99)) + "\N{SNOWMAN}"
    (tmp_path / "a.txt").write_text(text, encoding="utf-8")
    (tmp_path / "b.TXT.gz").write_bytes(gzip.compress(text.encode()))
    for name in ("a.txt", "b.TXT.gz"):
        corpus = lm.load_corpus(str(tmp_path / name))
        assert (corpus.train, corpus.validation, corpus.test) == (text[:80], text[80:90], text[90:])


def test_a_folder_with_some_splits(tmp_path):
    (tmp_path / "train.txt").write_text("a" * 90 + "b" * 10)
    (tmp_path / "dev.txt").write_text("validation")
    (tmp_path / "README").write_text("not a split")
    corpus = lm.load_corpus(str(tmp_path))
    assert (corpus.train, corpus.validation, corpus.test) == ("a" * 90, "validation", "b" * 10)
    assert corpus.notes == (
        "No test split: the last 10 of 100 characters of the training text were cut off for it.",
    )  # fmt: skip


@pytest.mark.parametrize(
    ("files", "source", "message"),
    [
        ({}, "no.txt", r"no such file or folder; expected a .txt file \(or .gz\), a folder with a train.txt, or the words"),
        ({"a.csv": b"text,label"}, "a.csv", "unknown kind of file; expected .txt, plain or .gz, or a folder of them"),
        ({"a.txt": b" \n"}, "a.txt", "the file is empty"),
        ({"a.txt": b"one\ntw\xffo"}, "a.txt", r"line 2 is not UTF-8 \(byte 0xff\); convert the file to UTF-8"),
        ({"a.txt.gz": b"text"}, "a.txt.gz", "not a whole gzip file"),
        ({"test.txt": b"text"}, "", "no train file; expected train.txt, plain or .gz"),
        ({"train.txt": b"a", "train.txt.gz": b"b"}, "", "more than one train file: train.txt, train.txt.gz; keep one"),
    ],
)
def test_sources_that_cannot_be_used(files, source, message, tmp_path):
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    with pytest.raises((ValueError, FileNotFoundError), match=message) as error:
        lm.load_corpus(str(tmp_path / source))
    assert "\n" not in str(error.value)


# Tokens


def test_a_tokenizer_with_more_words_than_the_model():
    tokenizer = make_byte_tokenizer()
    assert lm.encode(tokenizer, "a~", vocabulary=127).tolist() == [97, 126]
    with pytest.raises(ValueError, match="the tokenizer gives token 126, but the model has only 126 word vectors"):
        lm.encode(tokenizer, "a~", vocabulary=126)


@pytest.mark.parametrize("num", [0, 1])
def test_a_text_with_nothing_to_predict(num):
    with pytest.raises(ValueError, match=f"a.txt: {num} tokens leave none to predict; give a longer text"):
        lm.make_windows(np.zeros(num, np.int32), 8, where="a.txt")


def test_a_limit_takes_windows_from_all_over_the_text():
    windows = lm.make_windows(np.arange(101), 10, limit=4)
    assert windows.tokens.starts.tolist() == [0, 10, 20, 30]
    assert windows.tokens.inputs["ids"].reshape(4, 10)[:, 0].tolist() == [0, 20, 50, 70]
    np.testing.assert_array_equal(windows.targets, windows.tokens.inputs["ids"] + 1)
    assert len(lm.make_windows(np.arange(101), 10, limit=11).targets) == 100


@given(st.integers(2, 200), st.integers(1, 40), st.integers(1, 6))
@settings(max_examples=50, deadline=None)
def test_every_target_is_scored_once_from_earlier_tokens_of_its_window(num, length, batch_size):
    ids = np.random.default_rng(0).permutation(num)
    windows = lm.make_windows(ids, length)
    np.testing.assert_array_equal(windows.tokens.inputs["ids"], ids[:-1])
    np.testing.assert_array_equal(windows.targets, ids[1:])
    np.testing.assert_array_equal(windows.tokens.inputs["positions"], np.arange(num - 1) % length)
    assert {array.dtype for array in (*windows.dataset.inputs.values(), windows.targets)} == {np.dtype(np.int32)}

    order = balanced_batches(np.random.default_rng(0), windows.tokens.lengths, batch_size)
    for batches in (lm.make_batches(windows, order), lm.scoring_batches(windows)):
        np.testing.assert_array_equal(batches.elements, batches.examples)
        assert list(batches.context) == ["segments"]
        assert batches.context["segments"].size == batches.elements.size
        real = batches.elements[batches.elements >= 0]
        assert sorted(real) == list(range(num - 1))
        for elements, segments in zip(batches.elements, batches.context["segments"], strict=True):
            for segment in set(segments.ravel()) - {-1}:
                own = elements[segments.ravel() == segment]
                assert own[0] % length == 0
                np.testing.assert_array_equal(own, own[0] + np.arange(len(own)))


def test_scoring_batches_have_few_tokens():
    windows = lm.make_windows(np.zeros(10_001, np.int32), 100)
    assert lm.scoring_batches(windows).elements.shape == (10, 1000)
    windows = lm.make_windows(np.zeros(10_001, np.int32), 5000)
    assert lm.scoring_batches(windows).elements.shape == (2, 5000)


def test_what_people_are_told():
    windows = [lm.make_windows(np.arange(num), 10, limit) for num, limit in ((101, 4), (31, 3), (21, None))]
    assert lm.describe("a.txt", windows, ("A note.",)) == [
        "Data: a.txt, 4 training, 3 validation, 2 test windows of 10 tokens",
        "A note.",
        "Uses 4 of 10 training windows (--train-examples).",
    ]
