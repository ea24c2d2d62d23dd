"""Plain text for language modelling, cut into windows in which every token predicts the next one."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from gafreeze_jax.data import files, layout, tokens
from gafreeze_jax.data.batches import balanced_batches, cut, make_sliced
from gafreeze_jax.data.tokens import Tokens, pack_batches
from gafreeze_jax.engine.network import Batch, Dataset

SUFFIXES = (".txt",)
HELD_OUT_SHARE = 0.1  # of the text, for each split that is missing
SCORING_TOKENS = 1024  # of a batch: logits over a large vocabulary take much memory


class Corpus(NamedTuple):
    """Three texts.

    Attributes:
      notes: what was decided on the way and is reported, a sentence each.
    """

    train: str
    validation: str
    test: str
    notes: tuple[str, ...]


class Windows(NamedTuple):
    """Text in windows of S tokens, the last one maybe shorter. A token's target is the one after it.

    Attributes:
      tokens: T in all, positions counted from the start of their window.
      targets: [T] int32.
      num_whole: windows that the whole text has.
    """

    tokens: Tokens
    targets: np.ndarray
    num_whole: int

    @property
    def dataset(self) -> Dataset:
        return Dataset(self.tokens.inputs, self.targets)


def load_corpus(source: str) -> Corpus:
    """Loads text, with splits that are always the same for the same source.

    Args:
      source: "pydoc" (the reference of the Python language that comes with Python), "reviews" (the texts of the embedded
        reviews), a .txt or .txt.gz file, or a folder with a train file and, where there are any, validation and test files
        of this kind. Splits that are missing are cut from the end of the training text.

    Raises:
      ValueError, FileNotFoundError: if the source cannot be used.
    """
    if source == "pydoc":
        from pydoc_data.topics import topics

        texts = {"train": "\n".join(topics.values())}
    elif source == "reviews":
        from gafreeze_jax.data.reviews import read_reviews

        texts = {split: "\n".join(row["text"] for row in rows) + "\n" for split, rows in read_reviews().items()}
    else:
        texts = _read_path(Path(source))
    notes = ()
    if missing := [name for name in ("validation", "test") if name not in texts]:
        num = int(HELD_OUT_SHARE * len(texts["train"]))
        notes = (
            f"No {' and no '.join(missing)} split: the last {num:,} of {len(texts['train']):,} characters of the training text "
            f"were cut off for {'each' if len(missing) > 1 else 'it'}.",
        )
        for name in reversed(missing):
            end = len(texts["train"]) - num
            texts |= {name: texts["train"][end:], "train": texts["train"][:end]}
    return Corpus(texts["train"], texts["validation"], texts["test"], notes)


def _read_path(path: Path) -> dict[str, str]:
    if not path.exists():
        raise FileNotFoundError(
            f"{path}: no such file or folder; expected a .txt file (or .gz), a folder with a train.txt, or the words reviews "
            "or pydoc"
        )
    paths = layout.find_splits(path, SUFFIXES) if path.is_dir() else {"train": [path]}
    return {split: "".join(map(read_text, of_split)) for split, of_split in paths.items()}


def read_text(path: Path) -> str:
    """The text of a .txt or .txt.gz file.

    Raises:
      ValueError, FileNotFoundError: if there is none.
    """
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such file; expected a .txt file, plain or .gz")
    if not files.kind(path, SUFFIXES):
        raise ValueError(f"{path}: unknown kind of file; expected .txt, plain or .gz, or a folder of them")
    return files.read_utf8(path)


def encode(tokenizer: Any, text: str, *, vocabulary: int, where: str = "text") -> np.ndarray:
    """Tokens of a text, [n] int32.

    Args:
      tokenizer: a Hugging Face one.
      vocabulary: number of word vectors that the model has.
      where: for errors.

    Raises:
      ValueError: if the tokenizer has more words than the model, or cannot encode the text.
    """
    how = {"add_special_tokens": False, "verbose": False}
    try:
        encoded = tokens.encode(tokenizer, [(text,)], where=where, **how)
    except ValueError:
        for number, line in enumerate(text.split("\n"), start=1):
            tokens.encode(tokenizer, [(line,)], where=f"{where}: line {number}", **how)
        raise
    ids = np.asarray(encoded["input_ids"][0], np.int32)
    tokens.check_ids(ids, vocabulary)
    return ids


def make_windows(ids: np.ndarray, length: int, limit: int | None = None, *, where: str = "text") -> Windows:
    """Cuts tokens [n] into windows; each token but the first is the target of one.

    Args:
      length: S, of a window.
      limit: use at most this many windows, spread evenly over the text.
      where: for errors.

    Raises:
      ValueError: if there is no token to predict.

    >>> windows = make_windows(np.array([5, 6, 7, 8, 9, 3]), length=3)
    >>> windows.tokens.inputs["ids"].tolist(), windows.targets.tolist(), windows.tokens.lengths.tolist()
    ([5, 6, 7, 8, 9], [6, 7, 8, 9, 3], [3, 2])
    """
    num_targets = len(ids) - 1
    if num_targets < 1:
        raise ValueError(f"{where}: {len(ids)} tokens leave none to predict; give a longer text")
    num_whole = -(-num_targets // length)
    num = num_whole if limit is None else min(limit, num_whole)
    starts = np.arange(num) * num_whole // num * length
    lengths = np.minimum(length, num_targets - starts)
    places = np.concatenate([np.arange(start, start + num) for start, num in zip(starts, lengths, strict=True)])
    ids = ids.astype(np.int32)
    inputs = {"ids": ids[places], "positions": (places % length).astype(np.int32)}
    return Windows(Tokens(inputs, np.cumsum(lengths) - lengths, lengths), ids[places + 1], num_whole)


def make_batches(windows: Windows, examples: np.ndarray) -> Batch:
    """Batches of whole windows, in which every token is an example.

    Args:
      examples: [steps, B] int, which windows form each batch; -1 = none (filling up).

    Returns:
      A `Batch` with leading axis `steps`: `elements` and `examples` [steps, B * S]; context `segments` [steps, B, S].
    """
    packed = pack_batches(windows.tokens, examples, int(windows.tokens.lengths.max()))
    return packed._replace(examples=packed.elements, context={"segments": packed.context["segments"]})


def batch_maker(
    windows: Windows, batch_size: int, num_epochs: int, *, micro_batch: int | None = None
) -> Callable[[np.random.Generator], Batch]:
    """A function that makes random batches for training.

    Args:
      micro_batch: windows of a slice; see `batches.cut`.
    """
    lengths = windows.tokens.lengths

    def make(examples: np.ndarray) -> Batch:
        return make_batches(windows, examples)

    return lambda rng: make_sliced(make, cut(balanced_batches(rng, lengths, batch_size, num_epochs), micro_batch))


def scoring_batches(windows: Windows) -> Batch:
    """Batches that run through all windows once."""
    lengths = windows.tokens.lengths
    size = max(1, min(len(lengths), SCORING_TOKENS // int(lengths.max())))
    return make_batches(windows, balanced_batches(np.random.default_rng(0), lengths, size))


def describe(source: str, splits: Sequence[Windows], notes: Sequence[str]) -> list[str]:
    """What was loaded, for people, a line each; splits for training, validation and test."""
    names = ("training", "validation", "test")
    sizes = {name: len(windows.tokens.lengths) for name, windows in zip(names, splits, strict=True)}
    used = [
        f"Uses {sizes[name]:,} of {windows.num_whole:,} {name} windows (--{name.removesuffix('ing')}-examples)."
        for name, windows in zip(names, splits, strict=True)
        if sizes[name] < windows.num_whole
    ]
    listed = ", ".join(f"{size:,} {name}" for name, size in sizes.items())
    return [f"Data: {source}, {listed} windows of {int(splits[0].tokens.lengths.max())} tokens", *notes, *used]
