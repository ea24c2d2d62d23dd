"""Scikit-learn's handwritten digits, as they are or shifted: something to fine-tune on without a download.

One half of the images, chosen once, serves to pretrain a model on clean digits; the other half is shifted to adapt it to. Of
these, few are for training and most for validation and testing, so that accuracies are measured well.
"""

import re
from collections.abc import Callable
from typing import Any

import numpy as np

from gafreeze_jax.data.splits import Rows
from gafreeze_jax.extras import needs

NOISE = 80.0  # standard deviation, of 255
CONTRAST = 0.12  # of the range that is left
NUM_TRAIN, NUM_VALIDATION = 149, 250  # of the 899 shifted images; the other 500 test

SHIFTS: dict[str, Callable[[np.ndarray, np.random.Generator], np.ndarray]] = {
    "noisy": lambda images, rng: images + rng.normal(0, NOISE, images.shape),
    "faint": lambda images, rng: 128 + CONTRAST * (images - 128),
    "inverted": lambda images, rng: 255 - images,
}
_FORM = re.compile(rf"digits(?::(?:(\d)-(\d)|(clean|{'|'.join(SHIFTS)})))?")

EXPECTED = f"{', '.join(f'digits:{shift}' for shift in SHIFTS)}, digits or some of them such as digits:5-9"


def is_digits(source: str) -> bool:
    return _FORM.fullmatch(source) is not None


def is_shifted(source: str) -> bool:
    return source.partition(":")[2] in SHIFTS


def read(source: str) -> dict[str, Rows[Any]]:
    """The splits of a source.

    "digits" (all), "digits:5-9" (some of them) and "digits:clean" (one half of the images) have one, to train on;
    "digits:noisy", "digits:faint" and "digits:inverted" (the other half, shifted) have all three.

    Raises:
      ValueError: for digits from a higher to a lower one.
    """
    with needs("images"):
        from sklearn.datasets import load_digits  # takes a second to import

    match = _FORM.fullmatch(source)
    assert match
    digits: Any = load_digits()
    images, labels = np.rint(digits.images * (255 / 16)), digits.target
    if kind := match[3]:
        first_half = np.random.default_rng(0).permutation(len(labels)) < len(labels) // 2
        chosen = first_half == (kind == "clean")
        images, labels = images[chosen], labels[chosen]
        images = images if kind == "clean" else SHIFTS[kind](images, np.random.default_rng(1))
    else:
        first, last = (int(digit) for digit in (match[1] or 0, match[2] or 9))
        if first > last:
            raise ValueError(f"{source}: no digits from {first} to {last}; expected digits, or some of them such as digits:5-9")
        chosen = (first <= labels) & (labels <= last)
        images, labels = images[chosen], labels[chosen]
    pixels, rows = np.clip(np.rint(images), 0, 255).astype(np.uint8), {"train": np.arange(len(labels))}
    if is_shifted(source):
        earlier = [np.count_nonzero(labels[:row] == label) for row, label in enumerate(labels)]
        turns = np.lexsort((labels, earlier))  # one of each class, again and again
        parts = np.split(turns, np.cumsum([NUM_TRAIN, NUM_VALIDATION]))
        rows = dict(zip(("train", "validation", "test"), parts, strict=True))
    return {name: Rows(list(pixels[chosen]), labels[chosen].tolist()) for name, chosen in rows.items()}
