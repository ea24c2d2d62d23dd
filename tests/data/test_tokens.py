import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gafreeze_jax.data import lm
from gafreeze_jax.data.batches import NONE
from gafreeze_jax.data.tokens import (
    SCORING_BATCH,
    Tokens,
    best_row_length,
    describe,
    load_tokenizer,
    make_byte_tokenizer,
    pack_batches,
    padding,
    renumber,
    scoring_batches,
    tokenize,
)
from gafreeze_jax.models.checkpoints import find_model

LIMITS = {"max_tokens": 64, "vocabulary": 30522, "types": 2}
CLS, SEP, UNKNOWN = 101, 102, 100


@pytest.fixture(scope="module")
def tokenizer():
    return load_tokenizer(find_model("minilm"))


def split(tokens: Tokens, name: str = "ids") -> list[list[int]]:
    return [tokens.inputs[name][start : start + n].tolist() for start, n in zip(tokens.starts, tokens.lengths, strict=True)]


# Tokens


def test_ids_of_known_texts(tokenizer):
    tokens = tokenize(tokenizer, [("Hello, World!",), ("",), ("Café 😭",), ("unaffable\n hello",)], **LIMITS)
    assert split(tokens) == [
        [CLS, 7592, 1010, 2088, 999, SEP],
        [CLS, SEP],
        [CLS, 7668, UNKNOWN, SEP],
        [CLS, 14477, 20961, 3468, 7592, SEP],
    ]
    assert split(tokens, "positions") == [[0, 1, 2, 3, 4, 5], [0, 1], [0, 1, 2, 3], [0, 1, 2, 3, 4, 5]]
    assert not tokens.inputs["types"].any()
    assert {name: array.dtype for name, array in tokens.inputs.items()} == dict.fromkeys(
        ("ids", "positions", "types"), np.int32
    )


def test_texts_come_back_from_ids(tokenizer):
    texts = ["not bad at all, for a dishwasher.", "the staff, who were kind, helped us.", "a"]
    tokens = tokenize(tokenizer, [(text,) for text in texts], **LIMITS)
    assert [tokenizer.decode(ids[1:-1]) for ids in split(tokens)] == texts


def test_pairs(tokenizer):
    tokens = tokenize(tokenizer, [("hello", "hello world"), ("hello world", "hello")], **LIMITS)
    assert split(tokens) == [[CLS, 7592, SEP, 7592, 2088, SEP], [CLS, 7592, 2088, SEP, 7592, SEP]]
    assert split(tokens, "types") == [[0, 0, 0, 1, 1, 1], [0, 0, 0, 0, 1, 1]]
    assert split(tokens, "positions") == [[0, 1, 2, 3, 4, 5]] * 2


def test_models_with_one_type(tokenizer):
    tokens = tokenize(tokenizer, [("hello", "hello world")], **LIMITS | {"types": 1})
    assert split(tokens, "types") == [[0] * 6]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (("hello " * 9,), [CLS, *[7592] * 6, SEP]),
        (("hello " * 6,), [CLS, *[7592] * 6, SEP]),
        (("hello " * 9, "world"), [CLS, *[7592] * 4, SEP, 2088, SEP]),
        (("hello", "world " * 9), [CLS, 7592, SEP, *[2088] * 4, SEP]),
    ],
)
def test_long_texts_are_cut(tokenizer, text, expected):
    assert split(tokenize(tokenizer, [text], **LIMITS | {"max_tokens": 8})) == [expected]


def test_tokenizer_with_more_words_than_the_model(tokenizer):
    texts = [("Hello",)]
    tokenize(tokenizer, texts, **LIMITS | {"vocabulary": 7593})
    with pytest.raises(ValueError, match="the tokenizer gives token 7592, but the model has only 7592 word vectors"):
        tokenize(tokenizer, texts, **LIMITS | {"vocabulary": 7592})


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({}, r"no tokenizer files \(tokenizer.json, vocab.txt or vocab.json\)"),
        ({"config.json": '{"model_type": "bert"}'}, "no tokenizer files"),
        (
            {"spm.model": ""},
            r"no tokenizer.json; spm.model is of SentencePiece. To convert it, .*: python -c .*save_pretrained",
        ),
        (
            {"tokenizer.json": "version https://git-lfs.github.com/spec/v1"},
            "tokenizer.json: not a tokenizer file; it is a pointer",
        ),
        (
            {"vocab.txt": "version https://git-lfs.github.com/spec/v1"},
            "vocab.txt: not a tokenizer file; it is a pointer of Git",
        ),
        ({"tokenizer.json": "{"}, "the tokenizer files cannot be read: ."),
        ({"tokenizer.json": "{}", "tokenizer_config.json": "[]"}, "the tokenizer files cannot be read: ."),
    ],
)
def test_no_usable_tokenizer(tmp_path, files, message):
    for name, content in files.items():
        (tmp_path / name).write_text(content)
    with pytest.raises(ValueError, match=message) as error:
        load_tokenizer(tmp_path)
    assert "\n" not in str(error.value)


def test_a_text_without_tokens():
    encoded = {"input_ids": [[1], []], "token_type_ids": [[0], []]}
    with pytest.raises(ValueError, match="the tokenizer finds no token in the text '~'; leave it out"):
        tokenize(lambda *args, **kwargs: encoded, [("a",), ("~",)], **LIMITS)


AWKWARD = "naïve ☃ 😭\n\t x  don't\x00\x7f\u2028 <|endoftext|>"


def test_tokens_of_a_model_of_bytes(tmp_path):
    tokenizer = load_tokenizer(tmp_path, vocabulary=256)
    tokens = tokenize(tokenizer, [(AWKWARD,), (bytes(range(128)).decode(),)], **LIMITS | {"max_tokens": 200})
    assert [bytes(ids) for ids in split(tokens)] == [AWKWARD.encode(), bytes(range(128))]
    assert tokenizer.decode(split(tokens)[0]) == AWKWARD
    tokenizer.save_pretrained(tmp_path)
    assert load_tokenizer(tmp_path)(AWKWARD)["input_ids"] == list(AWKWARD.encode())


def test_padding_is_the_tokenizers_own_if_it_has_one_and_the_model_knows_it(tokenizer, tmp_path):
    assert padding(tokenizer, 30522) == (0, "[PAD]")
    of_bytes = load_tokenizer(tmp_path, vocabulary=256)
    assert padding(of_bytes, 256) == (0, "Ā")
    of_bytes.eos_token = "a"
    assert padding(of_bytes, 256) == (97, "a")
    of_bytes.pad_token = "b"
    assert padding(of_bytes, 256) == (98, "b")
    assert padding(of_bytes, 98) == (97, "a")


def test_no_text_ends_with_the_padding(tmp_path):
    of_bytes = load_tokenizer(tmp_path, vocabulary=256)
    of_bytes.pad_token, of_bytes.eos_token, of_bytes.bos_token = "b", "a", "c"
    of_b, of_all = (tokenize(of_bytes, [(end,) for end in ends], **LIMITS) for ends in (["xb"], ["b", "xa", "bc", "\0"]))
    assert padding(of_bytes, 256, [of_b]) == (97, "a")
    assert padding(of_bytes, 256, [of_b, of_all]) == (1, "ā")


def make_tokens(lengths) -> Tokens:
    """Texts of these lengths, the ids all different."""
    lengths = np.array(lengths)
    starts = np.cumsum(lengths) - lengths
    positions = np.concatenate([np.arange(n) for n in lengths])
    ids = np.arange(lengths.sum()) * 3 + 5
    return Tokens({"ids": ids, "positions": positions, "types": positions * 0}, starts, lengths)


def test_renumber():
    tokens = make_tokens([2, 3])
    used = np.array([0, 5, 8, 9, 11, 14, 17])
    inputs = renumber(tokens, used)
    assert inputs["ids"].tolist() == [1, 2, 4, 5, 6]
    assert inputs["ids"].dtype == np.int32
    assert inputs["positions"] is tokens.inputs["positions"]
    assert tokens.inputs["ids"].tolist() == [5, 8, 11, 14, 17]


@pytest.mark.parametrize(
    ("lengths", "length"),
    [
        ([8], 8),
        ([17], 24),
        ([3, 8], 8),  # two rows of 8, as one of 16 has as many tokens and more pairs of them
        ([24, 24, 8], 32),  # two rows with one gap of 8, against three of 24 = 72 tokens
        ([40, 24, 24, 24], 64),  # two full rows of 128 tokens, against three of 48 or four of 40
    ],
)
def test_the_row_length_that_costs_least(lengths, length):
    assert best_row_length(make_tokens(lengths), np.arange(len(lengths))[None]) == length


# Packing


@st.composite
def batches(draw):
    """Texts, a [steps, B] choice of them and the length of a row."""
    lengths = draw(st.lists(st.integers(1, 10), min_size=1, max_size=15))
    steps, batch_size = draw(st.integers(1, 4)), draw(st.integers(1, 8))
    chosen = [draw(st.permutations(range(len(lengths)))) for _ in range(steps)]
    examples = np.array([(order + [NONE] * batch_size)[:batch_size] for order in chosen])
    examples = np.stack([draw(st.permutations(list(row))) for row in examples])
    return make_tokens(lengths), examples, max(lengths) + draw(st.integers(0, 6))


@given(batches())
@settings(max_examples=50, deadline=None)
def test_packing(case):
    tokens, examples, length = case
    packed = pack_batches(tokens, examples, length)
    segments, firsts, lasts = (packed.context[name] for name in ("segments", "firsts", "lasts"))
    steps, batch_size = examples.shape
    num_rows = segments.shape[1]
    assert segments.shape == (steps, num_rows, length)
    assert packed.elements.shape == (steps, num_rows * length)
    assert firsts.shape == lasts.shape == examples.shape
    np.testing.assert_array_equal(packed.examples, examples)
    for array in (packed.elements, segments, firsts, lasts, packed.examples):
        assert array.dtype == np.int32
    for step in range(steps):
        flat = segments[step].ravel()
        np.testing.assert_array_equal(packed.elements[step] < 0, flat < 0)  # padding
        for number, example in enumerate(examples[step]):
            places = np.flatnonzero(flat == number)
            if example == NONE:
                assert (len(places), firsts[step, number], lasts[step, number]) == (0, 0, 0)
                continue
            n, start = tokens.lengths[example], tokens.starts[example]
            np.testing.assert_array_equal(places, firsts[step, number] + np.arange(n))  # whole, in one piece
            assert lasts[step, number] == places[-1]
            assert places[0] // length == places[-1] // length  # in one row
            np.testing.assert_array_equal(packed.elements[step, places], start + np.arange(n))
        assert set(flat) <= {NONE, *range(batch_size)}
        for row in segments[step]:
            assert (np.diff((row < 0).astype(int)) >= 0).all()  # padding only at the end


@given(batches())
@settings(max_examples=50, deadline=None)
def test_packing_wastes_little(case):
    """First fit: whatever stands in two rows of a step does not fit into one; some step needs all rows."""
    packed = pack_batches(*case)
    used = (packed.context["segments"] >= 0).sum(axis=2)
    for step in used:
        filled = np.sort(step[step > 0])
        assert len(filled) < 2 or filled[0] + filled[1] > case[2]
    assert (used > 0).all(axis=1).any() or (case[1] == NONE).all()


def test_packing_by_hand():
    packed = pack_batches(make_tokens([2, 5, 3, 1]), np.array([[0, 1, 2], [3, NONE, 0]]), 6)
    assert packed.context["segments"].tolist() == [
        [[1, 1, 1, 1, 1, -1], [2, 2, 2, 0, 0, -1]],
        [[2, 2, 0, -1, -1, -1], [-1] * 6],
    ]
    assert packed.context["firsts"].tolist() == [[9, 0, 6], [2, 0, 0]]
    assert packed.context["lasts"].tolist() == [[10, 4, 8], [2, 0, 1]]
    assert packed.elements.tolist() == [[2, 3, 4, 5, 6, -1, 7, 8, 9, 0, 1, -1], [0, 1, 10, *[-1] * 9]]


@pytest.mark.parametrize("num", [1, 5, SCORING_BATCH, SCORING_BATCH + 1, 200])
def test_scoring_goes_once_through_all_texts(num):
    tokens = make_tokens(np.random.default_rng(0).integers(1, 30, num))
    packed = scoring_batches(tokens)
    assert sorted(packed.examples[packed.examples != NONE]) == list(range(num))
    assert sorted(packed.elements[packed.elements != NONE]) == list(range(len(tokens.inputs["ids"])))
    assert packed.examples.shape == (-(-num // SCORING_BATCH), min(num, SCORING_BATCH))


# What a person should know


def write_vocabulary(folder, *words):
    (folder / "vocab.txt").write_text("\n".join(words))
    (folder / "config.json").write_text('{"model_type": "bert"}')
    return load_tokenizer(folder)


def test_a_text_that_cannot_be_encoded_is_named(tmp_path):
    tokenizer = write_vocabulary(tmp_path, "[PAD]", "[CLS]", "[SEP]", "[MASK]", "a")
    texts = [("a",), ("a a",), ("a 😭\n" + 100 * "a ",), ("😭",)]
    with pytest.raises(
        ValueError, match=r"^new.csv: the tokenizer cannot encode the text 'a 😭 a .*Missing \[UNK\] token"
    ) as error:
        tokenize(tokenizer, texts, **LIMITS, where="new.csv")
    assert len(str(error.value)) < 300
    with pytest.raises(ValueError, match=r"^a.txt: line 3: the tokenizer cannot encode the text '😭': WordPiece error"):
        lm.encode(tokenizer, "a\na a\n😭\na", vocabulary=9, where="a.txt")


class Panic(BaseException):
    """As Rust's panics reach Python."""


def test_so_is_a_panic():
    def panic(*args, **kwargs):
        raise Panic("index out of\nbounds")

    with pytest.raises(ValueError, match=r"^texts: the tokenizer cannot encode the text 'a': index out of bounds; complete"):
        tokenize(panic, [("a",), ("b",)], **LIMITS)


def test_texts_that_are_cut_and_unknown_tokens_are_counted(tokenizer):
    texts = [("hello " * 62,), ("hello " * 63,), ("hello world", "hello " * 60), ("hello 😭",)]
    singles = tokenize(tokenizer, [texts[i] for i in (0, 1, 3)], **LIMITS)
    assert (singles.num_cut, singles.num_words, singles.num_unknown) == (1, 62 + 62 + 2, 1)
    pairs = tokenize(tokenizer, [texts[2]], **LIMITS)
    assert (pairs.num_cut, pairs.num_words, pairs.num_unknown) == (1, 61, 0)
    assert describe([singles, singles], 64) == [
        "2 of 6 texts are longer than 64 tokens and are cut (--max-tokens).",
        "2 of 252 tokens (0.79 %) are unknown to the model's vocabulary.",
    ]
    foreign = tokenize(tokenizer, [("😭 😭 hello",)], **LIMITS)
    assert describe([foreign], 64) == [
        "2 of 3 tokens (67 %) are unknown to the model's vocabulary; the model may not fit the language of these texts."
    ]
    assert describe([pairs._replace(num_cut=0)], 64) == []


def test_bytes_are_never_unknown():
    tokens = tokenize(make_byte_tokenizer(), [(AWKWARD,)], **LIMITS | {"vocabulary": 256})
    assert tokens.num_unknown == 0
    assert tokens.num_cut == (len(AWKWARD.encode()) > 64)
