"""A class counts as much as any other, however few examples it has."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import run_resnet

from gafreeze_jax.metrics import cross_entropy
from gafreeze_jax.tasks import images
from gafreeze_jax.tasks.base import classification
from gafreeze_jax.tasks.class_weights import weigh

LABELS = np.array([0] * 6 + [2] * 2)  # of three classes, one of which occurs in a kept head alone
TASK = classification(("ham", "other", "spam"))


def test_weights_are_balanced():
    task, words = weigh(TASK, LABELS, "balanced")
    assert words == ["Class weights: ham 0.667, spam 2"]
    logits = jax.random.normal(jax.random.key(0), (8, 3))
    losses = task.loss(logits, jnp.array(LABELS))
    expected = cross_entropy(logits, jnp.array(LABELS)) * np.array([8 / (2 * 6)] * 6 + [8 / (2 * 2)] * 2)
    np.testing.assert_allclose(losses, expected, rtol=1e-6)
    of_classes = [cross_entropy(logits, jnp.array(LABELS))[label == LABELS].mean() for label in (0, 2)]
    np.testing.assert_allclose(losses.mean(), np.mean(of_classes), rtol=1e-6)
    assert task._replace(loss=TASK.loss) == TASK


def test_equal_weights_share_programs():
    first, second, other = (weigh(TASK, labels, "balanced")[0].loss for labels in (LABELS, LABELS[::-1], LABELS[1:]))
    assert (first, hash(first)) == (second, hash(second))
    assert first != other


def test_by_default_there_are_none():
    assert weigh(TASK, LABELS, "none") == (TASK, [])


@pytest.mark.parametrize("class_weights", ["none", "balanced"])
def test_weights_are_those_of_what_is_trained_on(small_resnet, tmp_path, class_weights):
    path = tmp_path / "images.npz"
    np.savez(path, images=np.zeros((100, 8, 8, 3), np.uint8), labels=(np.arange(100) % 5 == 0).astype(int))
    given = run_resnet.Options(model=str(small_resnet), data=str(path), train_examples=20, class_weights=class_weights)
    setup = images.prepare(given)
    counts = np.bincount(np.asarray(setup.problem.train.data.targets))
    weights = 20 / (2 * counts) if class_weights == "balanced" else np.ones(2)
    losses = setup.problem.task.loss(jnp.zeros((2, 2)), jnp.arange(2))
    np.testing.assert_allclose(losses, weights * np.log(2), rtol=1e-6)
    assert ("Class weights: 0 0.625, 1 2.5" in setup.about) == (class_weights == "balanced")
    assert "Classes are unbalanced; training/validation/test examples: 0 16/16/16, 1 4/4/4" in setup.about
