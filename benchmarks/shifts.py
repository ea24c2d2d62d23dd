"""Shifts: what a deployed model meets that its training data did not have. The same input and seed give the same output.

Those of images take and return uint8 [N, H, W, C]; after Hendrycks & Dietterich (2019).
"""

from collections.abc import Callable, Sequence

import numpy as np
from scipy.ndimage import gaussian_filter

SIGMA_OF_NOISE = 45.0  # of 255
SHARE_OF_CONTRAST = 0.12
SIGMA_OF_BLUR = 1.5  # in pixels
SHARE_OF_TYPING_ERRORS = 0.3  # of the words


def noise(images: np.ndarray, sigma: float = SIGMA_OF_NOISE, seed: int = 0) -> np.ndarray:
    """Adds normal noise to every value, independently."""
    return _as_bytes(images + np.random.default_rng(seed).normal(0, sigma, images.shape))


def contrast(images: np.ndarray, share: float = SHARE_OF_CONTRAST) -> np.ndarray:
    """Keeps a share of each value's distance from its image's and channel's mean."""
    mean = images.mean((1, 2), keepdims=True)
    return _as_bytes(mean + share * (images - mean))


def blur(images: np.ndarray, sigma: float = SIGMA_OF_BLUR) -> np.ndarray:
    """Blurs by a Gaussian kernel; at the margins pixels are mirrored."""
    return _as_bytes(gaussian_filter(images.astype(float), (0, sigma, sigma, 0)))


def inversion(images: np.ndarray) -> np.ndarray:
    """Swaps black and white."""
    return 255 - images


def _as_bytes(values: np.ndarray) -> np.ndarray:
    return np.clip(np.rint(values), 0, 255).astype(np.uint8)


def labels(labels: np.ndarray, num_classes: int) -> np.ndarray:
    """Renames the classes: each takes the number of the next one, and the last that of the first."""
    return (labels + 1) % num_classes


def typing_errors(texts: Sequence[str], share: float = SHARE_OF_TYPING_ERRORS, seed: int = 0) -> list[str]:
    """Spoils a share of the words of two letters or more: a letter is left out, doubled, or swapped with the next one.

    >>> typing_errors(["the film is a small masterpiece"], share=1)
    ['te ilm iis a small masterpiiece']
    """
    rng = np.random.default_rng(seed)

    def spoil(word: str) -> str:
        if len(word) < 2 or rng.random() >= share:
            return word
        place, kind = rng.integers(len(word) - 1), rng.integers(3)
        first, second = word[place], word[place + 1]
        return word[:place] + (second, first + first + second, second + first)[kind] + word[place + 2 :]

    return [" ".join(map(spoil, text.split(" "))) for text in texts]


OF_IMAGES: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "noise": noise,
    "contrast": contrast,
    "blur": blur,
    "inversion": inversion,
}
