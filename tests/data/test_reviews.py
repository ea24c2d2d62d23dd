import re
from collections import Counter

import numpy as np
import pytest

from gafreeze_jax.data.reviews import read_reviews
from gafreeze_jax.data.text import load_text

SPLITS = read_reviews()
ROWS = [row for rows in SPLITS.values() for row in rows]
TEXTS = [row["text"] for row in ROWS]
WORDS = [re.findall(r"[\w']+", text.lower()) for text in TEXTS]
NUM_WORDS = np.array([len(words) for words in WORDS])


def test_splits_have_known_sizes():
    assert {split: len(rows) for split, rows in SPLITS.items()} == {"train": 996, "validation": 400, "test": 592}
    assert all(
        row["split"] == split and tuple(row) == ("split", "domain", "label", "text")
        for split, rows in SPLITS.items()
        for row in rows
    )


@pytest.mark.parametrize("split", SPLITS)
def test_splits_are_balanced(split):
    num = len(SPLITS[split])
    labels = Counter(row["label"] for row in SPLITS[split])
    domains = Counter((row["domain"], row["label"]) for row in SPLITS[split])
    assert labels == {"negative": pytest.approx(num / 2, abs=1), "positive": pytest.approx(num / 2, abs=1)}
    assert {domain for domain, _ in domains} == {"films", "food", "gadgets", "hotels", "services"}
    assert len(domains) == 10
    assert max(domains.values()) - min(domains.values()) <= 2


def test_load_text_gives_the_reviews():
    data = load_text("reviews")
    assert data.label_names == ("negative", "positive")
    assert data.notes == ()
    for split, rows in SPLITS.items():
        found = getattr(data, split)
        assert found.texts == [(row["text"],) for row in rows]
        assert [data.label_names[label] for label in found.labels] == [row["label"] for row in rows]


def test_texts_are_clean():
    assert [text for text in TEXTS if re.search(r"[\x00-\x1f\x7f-\x9f]|  ", text) or text != text.strip()] == []
    assert NUM_WORDS.min() >= 4
    assert NUM_WORDS.max() <= 60


def test_no_text_occurs_twice():
    normal = Counter(" ".join(words) for words in WORDS)
    assert [text for text, count in normal.items() if count > 1] == []


def incidence(sets: list[set]) -> np.ndarray:
    """[N, number of members] float32, 1 where a set has a member that another has, too."""
    counts = Counter(member for members in sets for member in members)
    column = {member: i for i, member in enumerate(m for m, count in counts.items() if count > 1)}
    rows = np.zeros((len(sets), len(column)), np.float32)
    for i, members in enumerate(sets):
        rows[i, [column[member] for member in members if member in column]] = 1
    return rows


def assert_few_in_common(sets: list[set], least_words: int, share, limit: float):
    """`share(common, size, size)` of any two texts of so many words is below the limit."""
    rows = incidence(sets)
    sizes = np.array([len(members) for members in sets])
    shares = np.triu(share(rows @ rows.T, sizes[:, None], sizes[None]), 1)
    long = least_words <= NUM_WORDS
    too_much = np.argwhere((shares >= limit) & long[:, None] & long[None])
    assert [(TEXTS[i], TEXTS[j]) for i, j in too_much] == []


def test_no_two_texts_share_most_words():
    jaccard = lambda common, a, b: common / (a + b - common)  # noqa: E731
    assert_few_in_common([set(words) for words in WORDS], 5, jaccard, 0.6)


def test_no_two_texts_share_most_phrases():
    trigrams = [set(zip(words, words[1:], words[2:], strict=False)) for words in WORDS]
    of_shorter = lambda common, a, b: common / np.maximum(np.minimum(a, b), 1)  # noqa: E731
    assert_few_in_common(trigrams, 8, of_shorter, 0.5)


def test_no_template():
    openings = Counter(tuple(words[:5]) for words in WORDS if len(words) > 5)
    assert [opening for opening, count in openings.items() if count > 2] == []


@pytest.mark.parametrize("length", [NUM_WORDS, np.array([len(text) for text in TEXTS])], ids=["words", "characters"])
def test_length_does_not_tell_the_sentiment(length):
    positive = np.array([row["label"] == "positive" for row in ROWS])
    area = (1 + np.sign(length[positive, None] - length[None, ~positive]).mean()) / 2  # under the ROC curve
    assert 0.45 < area < 0.55
