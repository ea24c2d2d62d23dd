"""Shifts are the same every time, and change what they say they change."""

import numpy as np
import pytest
import shifts


@pytest.fixture
def images():
    return np.random.default_rng(0).integers(60, 196, (4, 16, 16, 3)).astype(np.uint8)


@pytest.mark.parametrize("shift", shifts.OF_IMAGES.values(), ids=shifts.OF_IMAGES)
def test_images_stay_images_and_the_same_ones_come_out(shift, images):
    before = images.copy()
    shifted = shift(images)
    assert (shifted.shape, shifted.dtype) == (images.shape, np.uint8)
    assert (shifted != images).mean() > 0.5
    np.testing.assert_array_equal(images, before)
    np.testing.assert_array_equal(shift(images), shifted)


def test_noise_has_its_size_is_independent_and_is_cut_off():
    gray = np.full((8, 32, 32, 1), 128, np.uint8)
    added = shifts.noise(gray, sigma=20).astype(float) - 128
    assert added.mean() == pytest.approx(0, abs=1)
    assert added.std() == pytest.approx(20, abs=1)
    assert abs(np.corrcoef(added.reshape(8, -1))[0, 1:]).max() < 0.15
    assert (shifts.noise(gray, seed=1) != shifts.noise(gray, seed=0)).any()
    black = shifts.noise(0 * gray)
    assert (black == 0).mean() == pytest.approx(0.5, abs=0.05)  # 250 would mean that it wrapped around


def test_contrast_keeps_means_and_scales_distances(images):
    shifted = shifts.contrast(images, share=0.25).astype(float)
    means = images.mean((1, 2), keepdims=True)
    np.testing.assert_allclose(shifted, means + 0.25 * (images - means), atol=0.51)


def test_blur_keeps_channels_and_images_apart():
    images = np.zeros((2, 9, 9, 2), np.uint8)
    images[0, 4, 4, 0] = 255
    shifted = shifts.blur(images, sigma=1)
    assert not shifted[1].any()
    assert not shifted[0, :, :, 1].any()
    assert shifted[0, 4, 4, 0] == shifted.max() == pytest.approx(255 / (2 * np.pi), abs=3)
    assert shifted[0, 3, 4, 0] == shifted[0, 5, 4, 0] == shifted[0, 4, 3, 0] > 0


def test_inversion_is_its_own_inverse(images):
    np.testing.assert_array_equal(shifts.inversion(shifts.inversion(images)), images)
    assert shifts.inversion(np.uint8([[[[0, 255]]]])).tolist() == [[[[255, 0]]]]


def test_labels_are_renamed_one_by_one():
    assert shifts.labels(np.array([0, 1, 8, 9]), 10).tolist() == [1, 2, 9, 0]


def test_typing_errors_spoil_their_share_of_the_words():
    texts = [" ".join(["masterpiece", "a", "wonderful"] * 100)] * 3
    spoilt = shifts.typing_errors(texts, share=0.3)
    assert spoilt == shifts.typing_errors(texts, share=0.3) != shifts.typing_errors(texts, share=0.3, seed=1)
    words = [text.split(" ") for text in spoilt]
    assert all(len(row) == 300 and row[1::3] == ["a"] * 100 for row in words)
    changed = np.mean([word not in ("masterpiece", "wonderful") for row in words for word in row[::3] + row[2::3]])
    assert changed == pytest.approx(0.3, abs=0.06)
    lengths = {len(word) for row in words for word in row[::3]}
    assert lengths == {10, 11, 12}
    assert shifts.typing_errors(["I", "", "a b"], share=1) == ["I", "", "a b"]
