"""What all labelled data sets share: train, validation and test splits that are always the same for the same source."""

import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Generic, NamedTuple, TypeVar

import numpy as np

from gafreeze_jax.listing import listed

SPLIT_NAMES = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val", "dev"),
    "test": ("test", "testing"),
}
TRUTH = {"false": "0", "true": "1"}
INVISIBLE = "\u200b\u2060\ufeff"  # characters without width that str.strip() leaves
UNBALANCED = 2  # times as many training examples of the most frequent class as of the least frequent one
HELD_OUT_SHARE = 0.2  # of the training rows, for each split that is missing
MIN_HELD_OUT = 2  # examples, so that a verdict on them says something

_FILLER = re.compile("(data|images?)?(set)?$")  # at the end of words

T = TypeVar("T")
Known = Callable[[], Iterable[str]]


class Rows(NamedTuple, Generic[T]):
    """Raw rows of one split: examples and labels as they came, the columns that hold the examples, and each row's place."""

    examples: list[T]
    labels: list[Any]
    columns: tuple[str, ...] = ()
    places: Sequence[str] = ()


class Labelled(NamedTuple, Generic[T]):
    """N examples and their labels [N] int32, indices into the data set's label names; or several labels [N, C] bool."""

    examples: list[T]
    labels: np.ndarray


class Splits(NamedTuple, Generic[T]):
    """Three splits, and the names of the C classes."""

    train: Labelled[T]
    validation: Labelled[T]
    test: Labelled[T]
    label_names: tuple[str, ...]


def named(names: Sequence[str]) -> dict[str, list[str]]:
    """Names of files or folders by the split that they are named after, as training_set and val2017 are; train first.

    Words that all names share do not count, as in seg_train and seg_test.
    """
    aliases = {alias: split for split, names in SPLIT_NAMES.items() for alias in names}
    words = [{_FILLER.sub("", word) for word in re.findall("[a-z]+", name.lower())} - {""} for name in names]
    shared = set.intersection(*words) - aliases.keys() if len(names) > 1 else set()
    found: dict[str, list[str]] = {}
    for name, of_name in zip(names, words, strict=True):
        if len(rest := of_name - shared) == 1 and (split := aliases.get(*rest)):
            found.setdefault(split, []).append(name)
    return {split: found[split] for split in SPLIT_NAMES if split in found}


def choose_splits(source: str, names: Sequence[str]) -> dict[str, str]:
    """Which of the names is each split; there must be one for train, and no two for one split."""
    found = named(names)
    if several := next((names for names in found.values() if len(names) > 1), None):
        raise ValueError(f"{source}: {listed(several)} are names of the same split; keep one, or rename the others")
    if "train" not in found:
        raise ValueError(f"{source}: no train split; it has {listed(names)}")
    return {split: of_split[0] for split, of_split in found.items()}


def plain(name: str) -> str:
    """A label's name for comparison.

    >>> plain(" Positive"), plain("LABEL_3"), plain("label_x")
    ('positive', '3', 'label_x')
    """
    return re.sub(r"^label_(\d+)$", r"\1", str(name).strip().casefold())


def are_known(names: Iterable[str], known: Iterable[str]) -> bool:
    """Whether a model that knows some classes knows each of these as another one."""
    wanted = [plain(name) for name in names]
    return len(set(wanted)) == len(wanted) and set(wanted) <= set(map(plain, known))


def complete(
    source: str, splits: Mapping[str, Rows[T]], notes: list[str], *, known: Known = tuple, unit: str = "rows"
) -> Splits[T]:
    """Numbers the labels, and cuts splits that are missing from the training rows, stratified by label.

    Args:
      splits: by name; "train" at least.
      notes: what was decided is added, a sentence each.
      known: gives the classes that the model tells apart already; if all labels are among them, some may be without training
        examples. It is asked only then, as the model may have to be made first.
      unit: what an example is called in messages.

    Raises:
      ValueError: if there are fewer than two classes or too many, labels that are not in train, or too few rows to cut.
    """
    splits, label_names = _unify_labels(without_unlabelled(splits, notes), notes)
    num_train = len(splits["train"].examples)
    classes, everywhere = set(splits["train"].labels), {label for rows in splits.values() for label in rows.labels}
    lacking = everywhere != classes or len(classes) > num_train / 2
    all_known = len(classes) > 1 and lacking and are_known((label_names[label] for label in everywhere), known())
    classes = everywhere if all_known else classes
    numeric = all(re.fullmatch(r"-?\d{1,18}", label) for label in classes)
    classes = sorted(classes, key=lambda label: (int(label) if numeric else 0, label))
    if len(classes) < 2:
        only = label_names[classes[0]]
        raise ValueError(f"{source}: the training {unit} have only one class, {listed([repr(only)])}; at least two are needed")
    if len(classes) > num_train / 2 and not all_known:
        raise ValueError(
            f"{source}: {len(classes)} different labels in {num_train} training {unit}; are the labels those of classes?"
        )
    index = {name: i for i, name in enumerate(classes)}
    encoded = {}
    for name, rows in splits.items():
        unseen = sorted(set(rows.labels) - set(classes))
        if unseen:
            raise ValueError(
                f"{source}: the {name} split has labels that are not in train: {listed(unseen[:5])}; train has "
                f"{listed(label_names[label] for label in classes)}"
            )
        encoded[name] = Labelled(rows.examples, np.array([index[label] for label in rows.labels], np.int32))

    encoded = cut_missing(source, encoded, notes, unit=unit)
    names = tuple(label_names[label] for label in classes)
    return Splits(encoded["train"], encoded["validation"], encoded["test"], names)


def without_unlabelled(splits: Mapping[str, Rows[T]], notes: list[str]) -> dict[str, Rows[T]]:
    """Leaves out a validation or test split of which all labels are -1, as hubs publish test splits, unless train has -1."""
    kept = dict(splits)
    for name in ("validation", "test"):
        if name not in kept or not all(map(_is_none, kept[name].labels)):
            continue
        if any(map(_is_none, splits["train"].labels)):
            notes.append(f"All labels of the {name} split are -1, which train has, too: it is taken for a class.")
        else:
            notes.append(f"The {name} split has no labels (all are -1) and is not used.")
            del kept[name]
    return kept


def _is_none(label: Any) -> bool:
    """Whether a label is -1, as hubs mark examples without one."""
    return _class_of(_spell(label)) == "-1"


def cut_missing(
    source: str, given: Mapping[str, Labelled[T]], notes: list[str], *, unit: str = "rows"
) -> dict[str, Labelled[T]]:
    """Cuts the validation and test splits that are missing from the training rows, stratified by label.

    Raises:
      ValueError: if there are too few rows to cut.
    """
    encoded, num_train = dict(given), len(given["train"].examples)
    missing = [name for name in ("validation", "test") if name not in encoded]
    num_held_out = int(HELD_OUT_SHARE * num_train)
    if missing and num_held_out < MIN_HELD_OUT:
        raise ValueError(
            f"{source}: {num_train} training {unit} are too few to cut a {missing[0]} split of two or more from; give "
            f"{MIN_HELD_OUT / HELD_OUT_SHARE:.0f} or more, or files for {' and '.join(missing)}"
        )
    for salt, name in enumerate(missing, start=1):
        encoded["train"], encoded[name] = stratified_cut(encoded["train"], num_held_out, seed=salt)
    if missing:
        notes.append(
            f"No {' and no '.join(missing)} split: {num_held_out} of the {num_train} training {unit} were cut for "
            f"{'each' if len(missing) > 1 else 'it'}, stratified by label, always the same ones."
        )
    return encoded


def _unify_labels(splits: Mapping[str, Rows[T]], notes: list[str]) -> tuple[dict[str, Rows[T]], dict[str, str]]:
    """The same labels for all spellings of a class, and for each of them the most frequent spelling, of train if it occurs."""
    spelled = {name: [_spell(label) for label in rows.labels] for name, rows in splits.items()}
    counts = {name: Counter(labels) for name, labels in spelled.items()}
    spellings = sorted({spelling for count in counts.values() for spelling in count})
    class_of = {spelling: _class_of(spelling) for spelling in spellings}
    if set(class_of.values()) <= {*TRUTH, *TRUTH.values()}:
        class_of = {spelling: TRUTH.get(label, label) for spelling, label in class_of.items()}
    members: dict[str, list[str]] = {}
    for spelling in spellings:
        members.setdefault(class_of[spelling], []).append(spelling)
    if several := [" = ".join(group) for group in members.values() if len(group) > 1]:
        notes.append(f"Labels that are spelled in several ways: {listed(several)}.")
    looks = {label: _looks(label) for label in members}
    num_looking_so = Counter(looks.values())
    if alike := [label for label in members if num_looking_so[looks[label]] > 1]:
        notes.append(f"These labels look alike and are different classes: {listed(alike)}.")
    order = {label: max(group, key=lambda s: [count[s] for count in counts.values()]) for label, group in members.items()}
    return {name: rows._replace(labels=[class_of[s] for s in spelled[name]]) for name, rows in splits.items()}, order


def _spell(label: Any) -> str:
    text = str(label).lower() if isinstance(label, bool) else str(label)
    return unicodedata.normalize("NFC", text).strip().strip(INVISIBLE).strip()


def _class_of(spelling: str) -> str:
    """What the spellings of a class have in common: 1 and 1.0 are the same number, True and true the same value."""
    if number := re.fullmatch(r"(-?\d{1,18})\.0*", spelling):
        return number[1]
    return spelling.lower() if spelling.lower() in TRUTH else spelling


def _looks(label: str) -> str:
    """What labels have in common that people may take for the same: Spam and spam, 01 and 1."""
    text = " ".join(unicodedata.normalize("NFKC", label).casefold().split())
    return re.sub(r"^(-?)0+(\d+)$", r"\1\2", text)


def limit(
    source: str,
    splits: Splits[T],
    notes: list[str],
    max_train: int | None,
    max_validation: int | None,
    *,
    known: Known = tuple,
) -> Splits[T]:
    """Takes at most this many examples, drawn stratified by label.

    Args:
      known: as in `complete`.

    Raises:
      ValueError: if that leaves no training example of a class.
    """
    for most, name, split in ((max_train, "training", splits.train), (max_validation, "validation", splits.validation)):
        if most is not None and most < len(split.examples):
            notes.append(f"Uses {most:,} of {len(split.examples):,} {name} examples (--{name.removesuffix('ing')}-examples).")
    train = _at_most(splits.train, max_train)
    if absent := without_examples(train.labels, splits.label_names, known):
        raise ValueError(f"{source}: {len(train.examples)} training examples leave none of class {absent[0]!r}; use more")
    return splits._replace(train=train, validation=_at_most(splits.validation, max_validation))


def without_examples(labels: np.ndarray, label_names: Sequence[str], known: Known) -> list[str]:
    """Classes that none of the training labels [N] has and that must have one, as the model does not know all classes."""
    absent = [name for i, name in enumerate(label_names) if i not in labels]
    return [] if absent and are_known(label_names, known()) else absent


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
    cut = (_choose_by_class if split.labels.ndim == 1 else _choose_iteratively)(split.labels, num, rng)

    def pick(mask: np.ndarray) -> Labelled[T]:
        return Labelled([split.examples[i] for i in np.flatnonzero(mask)], split.labels[mask])

    return pick(~cut), pick(cut)


def _choose_by_class(labels: np.ndarray, num: int, rng: np.random.Generator) -> np.ndarray:
    """Which examples are cut off, [N] bool."""
    classes, counts = np.unique(labels, return_counts=True)
    quota = num * counts / counts.sum()
    most = counts - 1 if num <= counts.sum() - len(counts) else counts
    take = np.minimum(quota.astype(int), most)
    while take.sum() < num:
        take[np.argmax(np.where(take < most, quota - take, -np.inf))] += 1
    cut = np.zeros(len(labels), bool)
    for label, count, size in zip(classes, counts, take, strict=True):
        cut[rng.permutation(np.flatnonzero(labels == label))[count - size :]] = True
    return cut


def _choose_iteratively(labels: np.ndarray, num: int, rng: np.random.Generator) -> np.ndarray:
    """Which examples are cut off, [N] bool, where each may have several of C labels, [N, C] bool.

    Iterative stratification (Sechidis et al. 2011, "On the stratification of multi-label data"): the label with the fewest
    examples left comes first, and each of these goes to the part that lacks most of the label, then to the one that lacks most
    examples. A part that is full gets no more, so that the sizes are exact.
    """
    total = len(labels)
    order = rng.permutation(total)
    labels = labels[order].astype(int)
    room = np.array([total - num, num])  # of what remains, and of what is cut
    lacking = room[:, None] / total * labels.sum(0)
    left, cut = np.ones(total, bool), np.zeros(total, bool)
    while (remaining := labels[left].sum(0)).any():
        label = np.argmin(np.where(remaining, remaining, total + 1))
        for place in np.flatnonzero(left & (labels[:, label] > 0)):
            side = max((0, 1), key=lambda side: (room[side] > 0, lacking[side, label], room[side]))
            cut[place], left[place] = side == 1, False
            room[side] -= 1
            lacking[side] -= labels[place]
    cut[np.flatnonzero(left)[: room[1]]] = True  # examples without labels
    return cut[np.argsort(order)]


def describe_frequencies(splits: Any) -> list[str]:
    """How many examples each class has in each split, the most frequent first, if they are not balanced in training."""
    counts = np.stack([np.bincount(split.labels, minlength=len(splits.label_names)) for split in splits[:3]], axis=1)
    occurring = sorted(np.flatnonzero(counts.any(1)), key=lambda label: -counts[label, 0])
    if counts[occurring[0], 0] < UNBALANCED * counts[occurring[-1], 0]:
        return []
    words = [f"{splits.label_names[label]} {'/'.join(map(str, counts[label]))}" for label in occurring]
    return [f"Classes are unbalanced; training/validation/test examples: {listed(words)}"]
