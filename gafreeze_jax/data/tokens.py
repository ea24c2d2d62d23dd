"""Texts as one flat array of tokens, and batches that pack short texts into shared rows.

A batch has R rows of S tokens. Padding, which costs as much as text, is left only at the ends of rows (Krell et al. 2021,
"Efficient Sequence Packing without Cross-contamination"). `segments` says which text of the batch a token belongs to, so
that attention stays within texts.
"""

import os
import shlex
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from gafreeze_jax.data import files
from gafreeze_jax.data.batches import balanced_batches, cut, make_sliced
from gafreeze_jax.engine.network import Batch
from gafreeze_jax.extras import needs
from gafreeze_jax.listing import reason, shorten

ROW_MULTIPLE = 8  # row lengths are rounded up to it
SCORING_BATCH = 64  # texts
BATCHES_TO_TRY = 100
NUM_BYTES = 256
TYPES = "token_type_ids"  # as a tokenizer calls them
MANY_UNKNOWN = 0.03  # share of tokens
INTERRUPTIONS = (KeyboardInterrupt, SystemExit, MemoryError)
FROM_PIECES = "import sys, transformers as t; d = sys.argv[1]; t.AutoTokenizer.from_pretrained(d).save_pretrained(d)"
TOKENIZER_FILES = ("tokenizer.json", "vocab.txt", "vocab.json")  # one of them holds the words


class Tokens(NamedTuple):
    """N texts, T tokens in all.

    Attributes:
      inputs: "ids", "positions" (in the text) and "types" (0, or 1 for a pair's second text), [T] int32 each.
      starts: [N] int64, each text's first token.
      lengths: [N] int64.
      num_cut: number of texts that are longer.
      num_words: number of tokens but those that the tokenizer adds to every text.
      num_unknown: how many of these stand for text that the vocabulary lacks.
      words: [T] int32, for texts that came as words: where a token is the first of a word, its number among those E words that
        have a token, else -1.
      kept: [E], the number of each of these among all words.
    """

    inputs: dict[str, np.ndarray]
    starts: np.ndarray
    lengths: np.ndarray
    num_cut: int = 0
    num_words: int = 0
    num_unknown: int = 0
    words: np.ndarray | None = None
    kept: np.ndarray | None = None


def load_tokenizer(folder: Path, vocabulary: int | None = None, *, as_words: bool = False) -> Any:
    """The Hugging Face tokenizer in a model's folder.

    Args:
      vocabulary: number of word vectors that the model has. With 256 of them and no tokenizer it models bytes.
      as_words: for texts that come as words. A tokenizer of bytes then takes each of them as if it stood after a space.

    Raises:
      ValueError: if there is none, or it is damaged.
    """
    if not any((folder / name).exists() for name in TOKENIZER_FILES):  # transformers makes an empty one then
        if vocabulary == NUM_BYTES:
            return make_byte_tokenizer()
        if pieces := sorted(path.name for path in folder.glob("*.model")):
            raise ValueError(
                f"{folder.name}: no tokenizer.json; {pieces[0]} is of SentencePiece. To convert it, with sentencepiece: "
                f'python -c "{FROM_PIECES}" {shlex.quote(str(folder))}'
            )
        raise ValueError(f"{folder}: no tokenizer files ({', '.join(TOKENIZER_FILES[:-1])} or {TOKENIZER_FILES[-1]})")
    for path in map(folder.joinpath, TOKENIZER_FILES):
        if path.is_file() and (hint := files.hint_at_pointer(path)):
            raise ValueError(f"{path}: not a tokenizer file{hint}")
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")  # "PyTorch was not found"
    with needs("text"):
        from transformers import AutoTokenizer  # takes a second to import

    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)  # None asks the user
    except INTERRUPTIONS:
        raise
    except BaseException as error:  # whatever a damaged file makes transformers and tokenizers raise; Rust's is no Exception
        raise ValueError(f"{folder}: the tokenizer files cannot be read: {reason(error)}") from None
    if as_words and is_of_bytes(tokenizer):
        of_bytes = tokenizer.backend_tokenizer.pre_tokenizer
        of_bytes.add_prefix_space = True
        tokenizer.backend_tokenizer.pre_tokenizer = of_bytes
    return tokenizer


def is_of_bytes(tokenizer: Any) -> bool:
    """Whether a Hugging Face tokenizer takes texts apart into bytes and nothing else before, so it can begin with a space."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    return backend is not None and hasattr(backend.pre_tokenizer, "add_prefix_space")


def make_byte_tokenizer() -> Any:
    """A Hugging Face tokenizer whose tokens are the bytes of UTF-8, with their values as ids."""
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
    with needs("text"):
        from tokenizers import Tokenizer, decoders, models, pre_tokenizers
        from transformers import PreTrainedTokenizerFast

    # GPT-2's alphabet: a printable byte stands for itself, each other one for the next character from 256 on.
    printable = {*range(33, 127), *range(161, 173), *range(174, 256)}
    others = iter(range(NUM_BYTES, 2 * NUM_BYTES))
    alphabet = {chr(byte if byte in printable else next(others)): byte for byte in range(NUM_BYTES)}
    tokenizer = Tokenizer(models.BPE(alphabet, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer)


def padding(tokenizer: Any, vocabulary: int, texts: Sequence[Tokens] = ()) -> tuple[int, str]:
    """Id and text of a token for filling up batches: the tokenizer's own, that of a text's end or beginning, or the first.

    No text may end with it, since PyTorch classifies a text by its last token that is not this one.
    """
    ends = {int(end) for split in texts for end in split.inputs["ids"][split.starts + split.lengths - 1]}
    known = (tokenizer.pad_token_id, tokenizer.eos_token_id, tokenizer.bos_token_id, *range(vocabulary))
    number = next((number for number in known if number is not None and number < vocabulary and number not in ends), 0)
    return number, tokenizer.convert_ids_to_tokens(number)


def input_names(tokenizer: Any, texts: Sequence[Tokens]) -> tuple[str, ...]:
    """What a tokenizer has to return for a model that has learned types of tokens from pairs; () if it does so anyway."""
    names = tuple(tokenizer.model_input_names)
    has_types = any(split.inputs["types"].any() for split in texts)
    return (*names, TYPES) if has_types and TYPES not in names else ()


def tokenize(
    tokenizer: Any,
    texts: Sequence[tuple[str, ...]],
    *,
    max_tokens: int,
    vocabulary: int,
    types: int,
    where: str = "texts",
    as_words: bool = False,
) -> Tokens:
    """Tokens of texts, text pairs or texts that are cut into words.

    Args:
      tokenizer: a Hugging Face one.
      max_tokens: longer texts are cut; of a pair the longer one first.
      vocabulary, types: number of word and type vectors that the model has.
      where: the texts are from, for errors.
      as_words: whether each tuple of `texts` holds the words of one text.

    Raises:
      ValueError: if the tokenizer has more words than the model, no token for a text, or cannot encode it.
    """
    how: dict[str, Any] = {"truncation": True, "max_length": max_tokens, "return_token_type_ids": True}
    given: Any = [(list(text),) for text in texts] if as_words else texts  # a tokenizer takes words as a list
    how |= {"is_split_into_words": True} if as_words else {}
    encoded = encode(tokenizer, given, where=where, **how)
    lengths = np.array([len(ids) for ids in encoded["input_ids"]])
    if not lengths.all():
        raise ValueError(
            f"{where}: the tokenizer finds no token in the text {_quoted(texts[int(lengths.argmin())])}; leave it out"
        )

    def flat(rows: Sequence[Any]) -> np.ndarray:
        return np.concatenate([np.asarray(row, np.int32) for row in rows])

    inputs = {
        "ids": flat(encoded["input_ids"]),
        "positions": flat([np.arange(n) for n in lengths]),
        "types": np.minimum(flat(encoded[TYPES]), types - 1),
    }
    check_ids(inputs["ids"], vocabulary)
    words, kept = _first_tokens(encoded, texts, where) if as_words else (None, None)
    encodings = getattr(encoded, "encodings", None) or []  # of tokenizers in Rust, which all current families have
    return Tokens(
        inputs,
        np.cumsum(lengths) - lengths,
        lengths,
        num_cut=sum(bool(encoding.overflowing) for encoding in encodings),
        num_words=len(inputs["ids"]) - sum(sum(encoding.special_tokens_mask) for encoding in encodings),
        num_unknown=count_unknown(tokenizer, inputs["ids"]),
        words=words,
        kept=kept,
    )


def _first_tokens(encoded: Any, texts: Sequence[tuple[str, ...]], where: str) -> tuple[np.ndarray, np.ndarray]:
    """`words` and `kept` of `Tokens`."""
    if not getattr(encoded, "encodings", None):
        raise ValueError(f"{where}: the tokenizer does not say which word a token is of; give a model with a tokenizer.json")
    parts, num_words = [], 0
    for place, text in enumerate(texts):
        of_text = np.array([-1 if word is None else word for word in encoded.word_ids(place)], np.int64)
        is_first = (of_text >= 0) & (of_text != np.append(-1, of_text[:-1]))
        parts.append(np.where(is_first, of_text + num_words, -1))
        num_words += len(text)
    words = np.concatenate(parts)
    kept = np.unique(words[words >= 0])
    return np.where(words >= 0, np.searchsorted(kept, words), -1).astype(np.int32), kept


def encode(tokenizer: Any, texts: Sequence[tuple[str, ...]], *, where: str, **how: Any) -> Any:
    """What a Hugging Face tokenizer makes of texts or text pairs.

    Args:
      where: the texts are from, for errors.
      how: options of the tokenizer.

    Raises:
      ValueError: if it cannot encode a text, with that text.
    """
    try:
        return tokenizer(*map(list, zip(*texts, strict=True)), **how)
    except INTERRUPTIONS:
        raise
    except BaseException as error:  # whatever tokenizers raise; a panic of Rust is no Exception
        if len(texts) > 1:
            for text in texts:
                encode(tokenizer, [text], where=where, **how)
        raise ValueError(
            f"{where}: the tokenizer cannot encode the text {_quoted(texts[0])}: {reason(error)}; complete its vocabulary, or "
            "leave the text out"
        ) from None


def _quoted(text: tuple[Any, ...]) -> str:
    words = " ".join(part if isinstance(part, str) else " ".join(part) for part in text).split()
    return repr(shorten(" ".join(words), 100))


def check_ids(ids: np.ndarray, vocabulary: int) -> None:
    """Raises a ValueError if a token has no word vector."""
    if len(ids) and ids.max() >= vocabulary:
        raise ValueError(f"the tokenizer gives token {ids.max()}, but the model has only {vocabulary} word vectors")


def count_unknown(tokenizer: Any, ids: np.ndarray) -> int:
    """Number of tokens that stand for text that the vocabulary lacks; bytes lack none, and their tokenizers no such token."""
    unknown = getattr(tokenizer, "unk_token_id", None)
    others = [getattr(tokenizer, f"{name}_token_id", None) for name in ("bos", "eos", "cls", "sep", "pad")]
    return 0 if unknown is None or unknown in others else int(np.sum(ids == unknown))


def describe(splits: Sequence[Tokens], max_tokens: int) -> list[str]:
    """How many texts are cut and how many tokens unknown, a sentence each if there are any."""
    cut, num = (sum(numbers) for numbers in zip(*((split.num_cut, len(split.lengths)) for split in splits), strict=True))
    notes = [f"{cut:,} of {num:,} texts are longer than {max_tokens} tokens and are cut (--max-tokens)."] if cut else []
    return notes + describe_unknown(sum(split.num_unknown for split in splits), sum(split.num_words for split in splits))


def describe_unknown(unknown: int, num: int) -> list[str]:
    """How many of `num` tokens are unknown, in a sentence if there are any."""
    if not unknown:
        return []
    hint = "; the model may not fit the language of these texts" if unknown > MANY_UNKNOWN * num else ""
    return [f"{unknown:,} of {num:,} tokens ({100 * unknown / num:.2g} %) are unknown to the model's vocabulary{hint}."]


def renumber(tokens: Tokens, used: np.ndarray) -> dict[str, np.ndarray]:
    """Inputs with each id replaced by its place in the sorted ids `used`."""
    return tokens.inputs | {"ids": np.searchsorted(used, tokens.inputs["ids"]).astype(np.int32)}


def scoring_batches(tokens: Tokens) -> Batch:
    """Packed batches that run through all texts once, for scoring."""
    examples = balanced_batches(np.random.default_rng(0), tokens.lengths, min(SCORING_BATCH, len(tokens.lengths)))
    return _of_words(tokens, pack_batches(tokens, examples))


def _of_words(tokens: Tokens, batch: Batch) -> Batch:
    """A batch whose examples are words, where texts came as such: each at its first token, [steps, R * S]."""
    if tokens.words is None:
        return batch
    return batch._replace(examples=np.where(batch.elements >= 0, tokens.words[batch.elements], -1).astype(np.int32))


def best_row_length(tokens: Tokens, examples: np.ndarray) -> int:
    """The row length S with which batches cost least: at least the longest text, at most twice that.

    Longer rows leave fewer gaps, but attention compares every token of a row with every other; that is taken to cost as
    much as all else at 1,000 tokens, a rough estimate that only has to decide between nearly equal lengths.

    Args:
      examples: [steps, B], as for `pack_batches`.
    """
    longest = -(-int(tokens.lengths.max()) // ROW_MULTIPLE) * ROW_MULTIPLE

    def cost(length: int) -> float:
        num_rows = max(_pack(_lengths(tokens, batch), length)[0] for batch in examples[:BATCHES_TO_TRY])
        return num_rows * length * (1 + length / 1000)

    return min(range(longest, 2 * longest + 1, ROW_MULTIPLE), key=cost)


def batch_maker(
    tokens: Tokens, batch_size: int, num_epochs: int, *, micro_batch: int | None = None
) -> Callable[[np.random.Generator], Batch]:
    """A function that makes random packed batches for training, whose rows have the same length every time.

    Args:
      micro_batch: texts of a slice; see `batches.cut`.
    """
    size = min(batch_size, len(tokens.lengths))

    def make_examples(rng: np.random.Generator) -> np.ndarray:
        return cut(balanced_batches(rng, tokens.lengths, size, num_epochs), micro_batch)

    some = make_examples(np.random.default_rng(0))  # to choose a length; training draws its own
    length = best_row_length(tokens, some.reshape(-1, some.shape[-1]))

    def make(examples: np.ndarray) -> Batch:
        return _of_words(tokens, pack_batches(tokens, examples, length))

    return lambda rng: make_sliced(make, make_examples(rng))


def _lengths(tokens: Tokens, batch: np.ndarray) -> np.ndarray:
    return np.where(batch < 0, 0, tokens.lengths[batch])


def pack_batches(tokens: Tokens, examples: np.ndarray, length: int | None = None) -> Batch:
    """Packs the texts of each batch into rows, longest first into the first row with room.

    Args:
      examples: [steps, B] int, which texts form each batch; -1 = none (filling up).
      length: S, of a row; by default the best one.

    Returns:
      A `Batch` with leading axis `steps`: `elements` [steps, R * S]; context `segments` [steps, R, S] int32, the text's
      number in the batch or -1, and `firsts` and `lasts` [steps, B] int32, where in R * S the text begins and ends. R is
      the smallest number that serves all steps.
    """
    length = best_row_length(tokens, examples) if length is None else length
    packed = [_pack(_lengths(tokens, batch), length) for batch in examples]
    steps, batch_size = examples.shape
    num_rows = max(rows for rows, _ in packed)
    elements = np.full((steps, num_rows * length), -1, np.int32)
    segments = np.full((steps, num_rows * length), -1, np.int32)
    firsts, lasts = np.zeros((2, steps, batch_size), np.int32)
    for step, (batch, (_, places)) in enumerate(zip(examples, packed, strict=True)):
        for number, (example, place) in enumerate(zip(batch, places, strict=True)):
            if example >= 0:
                span = slice(place, place + tokens.lengths[example])
                elements[step, span] = tokens.starts[example] + np.arange(int(tokens.lengths[example]))
                segments[step, span] = number
                firsts[step, number], lasts[step, number] = span.start, span.stop - 1
    context = {"segments": segments.reshape(steps, num_rows, length), "firsts": firsts, "lasts": lasts}
    return Batch(elements, examples.astype(np.int32), context)


def _pack(lengths: np.ndarray, length: int) -> tuple[int, list[int]]:
    """Number of rows and each text's place in R * S."""
    room: list[int] = []
    places = [0] * len(lengths)
    for i in np.argsort(-lengths, kind="stable"):
        row = next((row for row, free in enumerate(room) if free >= lengths[i]), len(room))
        if row == len(room):
            room.append(length)
        places[i] = row * length + length - room[row]
        room[row] -= int(lengths[i])
    return len(room), places
