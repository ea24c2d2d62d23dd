"""Weights of classes in the loss, for classes that are not equally frequent."""

from typing import Literal, NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import Array

from gafreeze_jax.engine.network import Loss
from gafreeze_jax.listing import listed
from gafreeze_jax.tasks.base import Task

ClassWeights = Literal["none", "balanced"]


class WeightedLoss(NamedTuple):
    """A loss that counts each example as its class does. Equal ones share compiled programs.

    Attributes:
      loss: of each example.
      weights: of the C classes.
    """

    loss: Loss
    weights: tuple[float, ...]

    def __call__(self, outputs: Array, labels: Array) -> Array:
        return jnp.array(self.weights, jnp.float32)[labels] * self.loss(outputs, labels)


def weigh(task: Task, labels: np.ndarray, class_weights: ClassWeights) -> tuple[Task, list[str]]:
    """A task whose loss, on every split, counts classes as asked, and what was done in words.

    Balanced weights are N / (C n) for each of the C classes that occur, with n of the N training labels (King & Zeng 2001,
    "Logistic regression in rare events data"). Over the training examples their mean is 1, so learning rates need no change.

    Args:
      labels: [N] of training.

    Raises:
      ValueError: if examples have no class.
    """
    if class_weights == "none":
        return task, []
    if task.label_names is None:
        raise ValueError(f"--class-weights {class_weights} is for examples with one label each")
    counts = np.bincount(labels, minlength=len(task.label_names))
    weights = np.where(counts > 0, len(labels) / (np.count_nonzero(counts) * np.maximum(counts, 1)), 0)
    words = [f"{name} {weight:.3g}" for name, weight in zip(task.label_names, weights, strict=True) if weight]
    return task._replace(loss=WeightedLoss(task.loss, tuple(weights.tolist()))), [f"Class weights: {listed(words)}"]
