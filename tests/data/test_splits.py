from typing import NamedTuple

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from gafreeze_jax.data.splits import Labelled, stratified_cut
from gafreeze_jax.data.targets import describe_splits


@given(
    counts=st.lists(st.integers(1, 12), min_size=1, max_size=6),
    share=st.floats(0, 1),
    seed=st.integers(0, 5),
    order=st.randoms(use_true_random=False),
)
@settings(max_examples=50, deadline=None)
def test_stratified_cut(counts, share, seed, order):
    labels = [label for label, count in enumerate(counts) for _ in range(count)]
    order.shuffle(labels)
    num = round(share * len(labels))
    split = Labelled([f"{i}" for i in range(len(labels))], np.array(labels, np.int32))
    rest, cut = stratified_cut(split, num, seed)
    assert len(cut.examples) == num
    for part in (rest, cut):
        numbers = [int(example) for example in part.examples]
        assert numbers == sorted(numbers)
        assert part.labels.tolist() == [labels[i] for i in numbers]
    assert sorted(rest.examples + cut.examples) == sorted(split.examples)
    if num <= len(labels) - len(counts):
        assert set(rest.labels) == set(labels)
    if min(counts) > 1 and share < 0.5:  # else a label's last example may have to stay
        taken = np.bincount(cut.labels, minlength=len(counts))
        np.testing.assert_array_less(np.abs(taken - num * np.array(counts) / len(labels)), 1)
    again = stratified_cut(split, num, seed)
    assert again[1].examples == cut.examples


@given(num=st.integers(0, 120), seed=st.integers(0, 5))
@settings(max_examples=30, deadline=None)
def test_examples_with_several_labels_are_cut_iteratively(num, seed):
    chances = np.array([0.03, 0.1, 0.3, 0.6, 0.9])
    labels = np.random.default_rng(seed).random((120, 5)) < chances
    split = Labelled(list(range(120)), labels)
    rest, cut = stratified_cut(split, num, seed)
    assert len(cut.examples) == num
    for part in (rest, cut):
        assert part.examples == sorted(part.examples)
        np.testing.assert_array_equal(part.labels, labels[np.array(part.examples, int)])
    assert sorted(rest.examples + cut.examples) == split.examples
    expected = num / 120 * labels.sum(0)
    np.testing.assert_array_less(np.abs(cut.labels.sum(0) - expected), [1, 2, 3, 4, 4])  # at random, rare ones may all be cut
    assert stratified_cut(split, num, seed)[1].examples == cut.examples


class Described(NamedTuple):
    train: Labelled
    validation: Labelled
    test: Labelled
    label_names: tuple[str, ...]
    notes: tuple[str, ...] = ()
    kind: str = "label"


def described(*counts, names=("ham", "spam", "other")):
    """What is said of splits with these numbers of examples of each class."""
    labels = [np.repeat(np.arange(len(of_split)), of_split) for of_split in counts]
    return describe_splits("here", Described(*(Labelled(list(of_split), of_split) for of_split in labels), names))


def test_frequencies_of_classes_that_are_not_balanced():
    _, line = described([10, 40, 0], [3, 9, 0], [2, 10, 0])  # the third is known to a kept head alone
    assert line == "Classes are unbalanced; training/validation/test examples: spam 40/9/10, ham 10/3/2"
    assert len(described([10, 19], [3, 9], [2, 10])) == 1
    names = [f"class_{i}" for i in range(100)]
    _, line = described(*[range(1, 101)] * 3, names=names)
    assert line.startswith("Classes are unbalanced; training/validation/test examples: class_99 100/100/100, ")
    assert line.endswith(" more")
    assert len(line) < 300
