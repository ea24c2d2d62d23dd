from collections import Counter
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gafreeze_jax.data.batches import NONE, balanced_batches


@given(
    lengths=st.lists(st.integers(1, 9), min_size=1, max_size=40),
    batch_size=st.integers(1, 12),
    num_epochs=st.integers(1, 3),
    seed=st.integers(0, 9),
)
@settings(max_examples=50, deadline=None)
def test_every_example_once_an_epoch(lengths, batch_size, num_epochs, seed):
    batches = balanced_batches(np.random.default_rng(seed), np.array(lengths), batch_size, num_epochs)
    steps = -(-len(lengths) // batch_size)
    assert batches.shape == (num_epochs * steps, batch_size)
    num_none = steps * batch_size - len(lengths)
    for epoch in batches.reshape(num_epochs, steps * batch_size):
        assert sorted(epoch) == [NONE] * num_none + list(range(len(lengths)))
    assert (batches != NONE).any(axis=1).all()  # a step without examples would divide by zero


def test_same_generator_same_batches():
    lengths = np.arange(50) % 7
    first, same, other = (balanced_batches(np.random.default_rng(seed), lengths, 8, 2) for seed in (0, 0, 1))
    np.testing.assert_array_equal(first, same)
    assert (first != other).any()
    assert (first[:7] != first[7:]).any()  # epochs differ, too


def test_batches_have_about_the_same_number_of_tokens():
    rng = np.random.default_rng(0)
    lengths = np.minimum(rng.geometric(0.05, size=512), 128)
    balanced = lengths[balanced_batches(rng, lengths, 16)].sum(axis=1)
    shuffled = lengths[rng.permutation(512).reshape(32, 16)].sum(axis=1)
    assert np.std(balanced) < 0.35 * np.std(shuffled)
    assert balanced.sum() == shuffled.sum()


def test_equal_lengths_are_shuffled_plainly():
    """Any two of six examples meet in a batch of two with probability 1/5, and stand anywhere with probability 1/6."""
    num_epochs = 5000
    batches = balanced_batches(np.random.default_rng(0), np.full(6, 3), 2, num_epochs)
    pairs = Counter(tuple(sorted(batch.tolist())) for batch in batches)
    assert sorted(pairs) == list(combinations(range(6), 2))
    # 4.5 standard deviations of a binomial
    assert list(pairs.values()) == [pytest.approx(num_epochs / 5, abs=130)] * 15
    places = [np.bincount(place, minlength=6) for place in batches.reshape(num_epochs, 6).T]
    np.testing.assert_allclose(places, num_epochs / 6, atol=120)
