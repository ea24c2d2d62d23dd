"""Which examples form each batch."""

from collections.abc import Callable, Iterator

import jax
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


def cut(examples: np.ndarray, size: int | None) -> np.ndarray:
    """Cuts each step's batch into slices, whose gradients are added up: [steps, B] -> [steps, slices, `size`].

    A slice has every `slices`-th example, so that long and short ones are spread, and `NONE` where B is not a multiple of
    `size`. Not cut, [steps, B], if the size is None or at least B.

    >>> cut(np.array([[4, 5, 6, 7, 8]]), 2).tolist()
    [[[4, 7], [5, 8], [6, -1]]]
    """
    steps, batch_size = examples.shape
    if size is None or size >= batch_size:
        return examples
    slices = -(-batch_size // size)
    filled = np.pad(examples, ((0, 0), (0, slices * size - batch_size)), constant_values=NONE)
    return filled.reshape(steps, size, slices).swapaxes(1, 2)


def make_sliced(make: Callable[[np.ndarray], Batch], examples: np.ndarray) -> Batch:
    """Batches from what `cut` returns, by a function that makes them of examples [steps, B]; each slice is one of these."""
    if examples.ndim == 2:
        return make(examples)
    batches = make(examples.reshape(-1, examples.shape[-1]))
    return jax.tree.map(lambda leaf: leaf.reshape(*examples.shape[:2], *leaf.shape[1:]), batches)


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
