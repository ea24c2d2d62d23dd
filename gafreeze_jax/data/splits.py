"""What all labelled data sets share: train, validation and test splits that are always the same for the same source."""

import re
from collections.abc import Mapping, Sequence
from typing import Any, Generic, NamedTuple, TypeVar

import numpy as np

from gafreeze_jax.listing import listed

SPLIT_NAMES = {"train": ("train",), "validation": ("validation", "valid", "val", "dev"), "test": ("test",)}
HELD_OUT_SHARE = 0.2  # of the training rows, for each split that is missing

T = TypeVar("T")


class Rows(NamedTuple, Generic[T]):
    """Raw rows of one split: examples and labels as they came (an int, or a string), and the columns that hold the examples."""

    examples: list[T]
    labels: list[Any]
    columns: tuple[str, ...] = ()


class Labelled(NamedTuple, Generic[T]):
    """N examples and their labels [N] int32, indices into the data set's label names."""

    examples: list[T]
    labels: np.ndarray


class Splits(NamedTuple, Generic[T]):
    """Three splits, and the names of the C classes."""

    train: Labelled[T]
    validation: Labelled[T]
    test: Labelled[T]
    label_names: tuple[str, ...]


def choose_splits(source: str, names: Sequence[str]) -> dict[str, str]:
    """Which of the names is each split; there must be one for train."""
    chosen = {split: next((name for name in names if name in aliases), None) for split, aliases in SPLIT_NAMES.items()}
    if chosen["train"] is None:
        raise ValueError(f"{source}: no train split; it has {listed(names)}")
    return {split: name for split, name in chosen.items() if name}


def complete(source: str, splits: Mapping[str, Rows[T]], notes: list[str], *, unit: str = "rows") -> Splits[T]:
    """Numbers the labels, and cuts splits that are missing from the training rows, stratified by label.

    Args:
      splits: by name; "train" at least.
      notes: what was decided is added, a sentence each.
      unit: what an example is called in messages.

    Raises:
      ValueError: if there are fewer than two classes or too many, labels that are not in train, or too few rows to cut.
    """
    splits = dict(splits)
    for name in ("validation", "test"):
        if name in splits and all(str(label) == "-1" for label in splits[name].labels):
            notes.append(f"The {name} split has no labels (all are -1) and is not used.")
            del splits[name]
    all_labels = {str(label) for label in splits["train"].labels}
    numeric = all(re.fullmatch(r"-?\d{1,18}", label) for label in all_labels)
    label_names = tuple(sorted(all_labels, key=lambda label: (int(label) if numeric else 0, label)))
    num_train = len(splits["train"].examples)
    if len(all_labels) < 2:
        raise ValueError(f"{source}: the training {unit} have only one class, {label_names[0]!r}; at least two are needed")
    if len(label_names) > num_train / 2:
        raise ValueError(
            f"{source}: {len(label_names)} different labels in {num_train} training {unit}; are the labels those of classes?"
        )
    index = {name: i for i, name in enumerate(label_names)}
    encoded = {}
    for name, rows in splits.items():
        unseen = sorted({str(label) for label in rows.labels} - all_labels)
        if unseen:
            raise ValueError(
                f"{source}: the {name} split has labels that are not in train: {listed(unseen[:5])}; train has "
                f"{listed(label_names)}"
            )
        encoded[name] = Labelled(rows.examples, np.array([index[str(label)] for label in rows.labels], np.int32))

    missing = [name for name in ("validation", "test") if name not in encoded]
    num_held_out = int(HELD_OUT_SHARE * num_train)
    for salt, name in enumerate(missing, start=1):
        encoded["train"], encoded[name] = stratified_cut(encoded["train"], num_held_out, seed=salt)
        if not encoded[name].examples:
            raise ValueError(f"{source}: {num_train} training {unit} are too few to cut a {name} split from them")
    if missing:
        notes.append(
            f"No {' and no '.join(missing)} split: {num_held_out} of the {num_train} training {unit} were cut for "
            f"{'each' if len(missing) > 1 else 'it'}, stratified by label, always the same ones."
        )
    return Splits(encoded["train"], encoded["validation"], encoded["test"], label_names)


def limit(source: str, splits: Splits[T], notes: list[str], max_train: int | None, max_validation: int | None) -> Splits[T]:
    """Takes at most this many examples, drawn stratified by label.

    Raises:
      ValueError: if that leaves no training example of a class.
    """
    for most, name, split in ((max_train, "training", splits.train), (max_validation, "validation", splits.validation)):
        if most is not None and most < len(split.examples):
            notes.append(f"Uses {most:,} of {len(split.examples):,} {name} examples (--{name.removesuffix('ing')}-examples).")
    train = _at_most(splits.train, max_train)
    absent = [name for i, name in enumerate(splits.label_names) if i not in train.labels]
    if absent:
        raise ValueError(f"{source}: {len(train.examples)} training examples leave none of class {absent[0]!r}; use more")
    return splits._replace(train=train, validation=_at_most(splits.validation, max_validation))


def _at_most(split: Labelled[T], most: int | None) -> Labelled[T]:
    if most is None or most >= len(split.examples):
        return split
    return stratified_cut(split, len(split.examples) - most, seed=0)[0]


def stratified_cut(split: Labelled[T], num: int, seed: int) -> tuple[Labelled[T], Labelled[T]]:
    """Cuts `num` examples off, of every label its share (largest remainders), and leaves the order as it was.

    Returns:
      The examples that remain and those that were cut. If there is room, some of every label remain.
    """
    rng = np.random.default_rng(seed)
    classes, counts = np.unique(split.labels, return_counts=True)
    quota = num * counts / counts.sum()
    most = counts - 1 if num <= counts.sum() - len(counts) else counts
    take = np.minimum(quota.astype(int), most)
    while take.sum() < num:
        take[np.argmax(np.where(take < most, quota - take, -np.inf))] += 1
    cut = np.zeros(len(split.examples), bool)
    for label, count, size in zip(classes, counts, take, strict=True):
        cut[rng.permutation(np.flatnonzero(split.labels == label))[count - size :]] = True

    def pick(mask: np.ndarray) -> Labelled[T]:
        return Labelled([split.examples[i] for i in np.flatnonzero(mask)], split.labels[mask])

    return pick(~cut), pick(cut)


def describe(source: str, splits: Any) -> list[str]:
    """What was loaded, for people, a line each; of anything that has the three splits, `label_names` and `notes`."""
    train, validation, test = (f"{len(split.labels):,}" for split in splits[:3])
    sizes = f"{train} training, {validation} validation, {test} test"
    names = ", ".join(splits.label_names[:8]) + (", ..." if len(splits.label_names) > 8 else "")
    return [f"Data: {source}, {sizes} examples, {len(splits.label_names)} classes ({names})", *splits.notes]
