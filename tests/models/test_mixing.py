"""Equations that make the examples of a batch depend on each other are found, and no others."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from gafreeze_jax import masking
from gafreeze_jax.models.cutting import mixing
from gafreeze_jax.models.cutting.pieces import Traced

pytestmark = pytest.mark.usefixtures("quick_compilation")

SIZE, TOKENS, WIDTH = 4, 5, 2
X = np.random.default_rng(0).normal(size=(SIZE, TOKENS, WIDTH)).astype(np.float32)
TABLE = np.random.default_rng(1).normal(size=(9, WIDTH)).astype(np.float32)
KERNEL = np.random.default_rng(2).normal(size=(3, WIDTH, WIDTH)).astype(np.float32)


def mean_of_batch(x):
    return x - x.mean(0, keepdims=True)


@jax.custom_jvp
def with_derivative(x):
    return mean_of_batch(x)


with_derivative.defjvps(lambda tangent, *_: tangent)


def repeat_until_small(x):
    return lax.while_loop(lambda x: jnp.abs(x).max() > 1, lambda x: x / 2, x)


def flat(x):
    return x.reshape(-1, WIDTH)


def convolved(x, spec):
    return lax.conv_general_dilated(x, jnp.asarray(KERNEL), (1,), "SAME", dimension_numbers=(spec, "HIO", spec))


def windows(x, window):
    return lax.reduce_window(x, -jnp.inf, lax.max, window, (1, 1, 1), "SAME")


def recurrence(x, axis):
    x = jnp.moveaxis(x, axis, 0)
    return jnp.moveaxis(lax.scan(lambda h, row: (h + row, h * row), jnp.zeros_like(x[0]), x)[1], 0, axis)


ALONE = {
    "features": lambda x: jax.nn.softmax(x @ TABLE[:2], -1),
    "attention": lambda x: jax.nn.softmax(jnp.einsum("bsd,btd->bst", x, x)) @ x,
    "embedding": lambda x: jnp.asarray(TABLE)[jnp.clip(x[..., 0] * 2 + 4, 0, 8).astype(jnp.int32)],
    "take along tokens": lambda x: jnp.take_along_axis(x, jnp.argsort(x, 1), 1),
    "sorted tokens": lambda x: jnp.cumsum(jnp.sort(x, 1), 1)[:, ::-1],
    "tokens as rows": lambda x: jnp.tanh(flat(x) @ TABLE[:2]).reshape(x.shape),
    "tokens first": lambda x: jnp.cumsum(jnp.swapaxes(x, 0, 1), 0).sum(0),
    "convolution": lambda x: convolved(x, "NHC"),
    "pooling": lambda x: windows(x, (1, 3, 1)),
    "recurrence": lambda x: recurrence(x, 1),
    "top": lambda x: lax.top_k(x[..., 0], 2)[0],
    "condition": lambda x: lax.cond(TABLE[0, 0] > 0, jnp.tanh, jnp.sin, x),
    "a token is set": lambda x: x.at[:, 1].set(x[:, 0]),
    "last tokens": lambda x: x[jnp.arange(len(x)), jnp.argmax(x[..., 0], 1)],
    "first of the rows": lambda x: flat(x)[jnp.arange(len(x)) * TOKENS],
    "padded": lambda x: jnp.pad(x, ((0, 0), (1, 1), (0, 0))),
    "frequencies": lambda x: jnp.fft.fft2(x).real,
}
TOGETHER = {
    "mean": mean_of_batch,
    "softmax": lambda x: jax.nn.softmax(x, 0),
    "pairs": lambda x: jax.nn.softmax(flat(x[:, 0]) @ flat(x[:, 0]).T) @ x[:, 0],
    "sorted": lambda x: jnp.sort(x, 0),
    "accumulated": lambda x: jnp.cumsum(x, 0),
    "reversed": lambda x: x[::-1] + x,
    "rolled": lambda x: x + jnp.roll(x, 1, 0),
    "split": lambda x: jnp.concatenate(jnp.split(x, 2)[::-1]),
    "shifted": lambda x: jnp.pad(x, ((1, 0), (0, 0), (0, 0)))[:-1],
    "picked": lambda x: x[jnp.argsort(x[:, 0, 0])],
    "picked from the next": lambda x: x[(jnp.arange(len(x)) + 1) % len(x), jnp.argmax(x[..., 0], 1)],
    "neighbours": lambda x: jnp.repeat(x.reshape(-1, 2, TOKENS, WIDTH).mean(1), 2, 0),
    "misread": lambda x: jnp.moveaxis(x.reshape(TOKENS, -1, WIDTH), 1, 0),
    "added up": lambda x: jnp.zeros_like(x).at[jnp.argmax(x[:, :, 0] > 0, 1) % len(x)].add(x),
    "convolution": lambda x: convolved(x, "HNC"),
    "pooling": lambda x: windows(x, (3, 1, 1)),
    "recurrence": lambda x: recurrence(x, 0),
    "with a derivative": with_derivative,
    "condition": lambda x: lax.cond(TABLE[0, 0] > 0, jnp.tanh, mean_of_batch, x),
    "until all are done": repeat_until_small,
    "frequencies": lambda x: jnp.fft.fft(x[..., 0].T).real.T,
    "centred": lambda x: jnp.einsum("ij,jkl->ikl", jnp.eye(len(x)) - 1 / len(x), x),
    "ranked": lambda x: lax.top_k(x[:, :, 0].T, len(x))[0].T,
    "divided by their number": lambda x: jnp.tanh(x) / len(x),
}
IN_NUMBER_ALONE = ("condition", "divided by their number")  # the other branch depends on others; the number does, on how many


def mixes(function):
    params = {"a": np.ones(2, np.float32)}
    genes = masking.make_genes(params, {"a": "gene"})
    traced = Traced(lambda params, x, key: (function(x), ()), genes.leaves(params), genes, X)
    small, large = (traced.program(size, False) for size in (SIZE, SIZE + 2))
    return bool(mixing.find(small, large, SIZE))


def depends_on_others(function):
    """Whether the outputs of the first or of the last example change as the others do."""

    def changes(place):
        others = np.where(np.arange(SIZE)[:, None, None] == place, X, 5 * X[::-1] + 1)
        return not np.allclose(function(jnp.asarray(X))[place], function(jnp.asarray(others))[place], atol=1e-5)

    return changes(0) or changes(SIZE - 1)


@pytest.mark.parametrize("name", ALONE)
def test_examples_alone(name):
    assert not depends_on_others(ALONE[name])
    assert not mixes(ALONE[name])


@pytest.mark.parametrize("name", TOGETHER)
def test_examples_together(name):
    assert depends_on_others(TOGETHER[name]) or name in IN_NUMBER_ALONE
    assert mixes(TOGETHER[name])
