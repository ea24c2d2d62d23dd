"""Which examples form each batch."""

from collections.abc import Iterator

import numpy as np

from gafreeze_jax.engine.network import Batch

NONE = -1  # fills batches that are not full


def make_batches(examples: np.ndarray) -> Batch:
    """Batches of data in which an example is one row, such as an image.

    Args:
      examples: [steps, B] int, `NONE` where there is none.

    Returns:
      Context: `weights` [steps, B] float32, 0 where there is none, for batch normalisation.
    """
    examples = examples.astype(np.int32)
    return Batch(examples, examples, {"weights": (examples != NONE).astype(np.float32)})


def in_order(num: int, batch_size: int) -> np.ndarray:
    """Examples 0 to `num` - 1 in their order, [steps, B]; for scoring."""
    size = min(num, batch_size)
    return np.pad(np.arange(num), (0, -num % size), constant_values=NONE).reshape(-1, size)


def orders_by_length(rng: np.random.Generator, lengths: np.ndarray, num_epochs: int) -> Iterator[np.ndarray]:
    """For every epoch all N examples by length, those of equal length in random order."""
    for _ in range(num_epochs):
        order = rng.permutation(len(lengths))
        yield order[np.argsort(lengths[order], kind="stable")]


def balanced_batches(rng: np.random.Generator, lengths: np.ndarray, batch_size: int, num_epochs: int = 1) -> np.ndarray:
    """Random batches of about the same number of tokens, so that they pack into the same number of rows.

    Examples are sorted by length into `batch_size` equal strata, and every batch gets a random example of each. Each
    example occurs once an epoch. With equal lengths this is plain shuffling.

    Args:
      lengths: [N].

    Returns:
      [steps, batch_size] int64 indices of examples; `NONE` where N is not a multiple of the batch size.
    """
    num = len(lengths)
    steps = -(-num // batch_size)
    epochs = []
    for order in orders_by_length(rng, lengths, num_epochs):
        strata = np.concatenate([np.full(steps * batch_size - num, NONE), order]).reshape(batch_size, steps)
        epochs.append(rng.permuted(strata, axis=1).T)
    return np.concatenate(epochs)
