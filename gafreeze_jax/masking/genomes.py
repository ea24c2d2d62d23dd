"""What a genome says of each leaf of a parameter tree."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.core
import jax.numpy as jnp
import numpy as np

from gafreeze_jax.masking.genes import Genes, PyTree

Mask = Any  # [G] bools, or 0 and 1; True = frozen: a sequence, a numpy array or a (traced) jax array
Rates = Any  # [G] numbers, what updates are multiplied by; 0 = frozen, 1 = trains as usual: in the same containers

_SHOWN_NAMES = 8  # in messages
_MAX_RATE = float(np.finfo(np.float32).max)


def as_genome(genome: Mask, genes: Genes) -> np.ndarray | jax.Array:
    """A genome as bools [G]: a jax array if it is one, traced or not, else a numpy array.

    All genomes pass here; it is the only place that knows which values a gene can have.

    Raises:
      ValueError: for other values than bools, 0 and 1, and for another shape. Of a traced genome the values are unknown; it
        must have bools or integers.
    """
    values, traced = _vector(genome, genes, "a genome", "gene")
    if traced and not (jnp.issubdtype(values.dtype, jnp.integer) or values.dtype == bool):
        raise ValueError(
            f"A traced genome must have bools or integers (1 = frozen), got {values.dtype}: compare it first, x > 0.5, or pass "
            "learning rates as rates=."
        )
    for name, value in () if traced else _wrong(values, genes, _is_flag):
        raise ValueError(
            f"A genome has bools, or 0 and 1 (1 = frozen), but the gene {name!r} is {value!r:.60}. "
            + (
                "Convert text first: int(x)."
                if isinstance(value, str)
                else "Round or compare first, x > 0.5, or pass learning rates as rates=."
            )
        )
    return jnp.asarray(genome, bool) if isinstance(genome, jax.Array) else values.astype(bool)


def as_rates(rates: Rates, genes: Genes) -> np.ndarray | jax.Array:
    """Rates as float32 [G]: a jax array if they are one, traced or not, else a numpy array. All rates pass here.

    Raises:
      ValueError: for values that are negative, no finite numbers of float32, or bools (True would be a rate of 1, and means
        frozen in a genome), and for another shape. Of traced rates the values are unknown.
    """
    values, traced = _vector(rates, genes, "rates", "rate")
    if values.dtype == bool:
        raise ValueError(
            "Rates are numbers (0 = frozen, 1 = trains as usual), got bools: pass a mask, True = frozen, as genome."
        )
    for name, value in () if traced else _wrong(values, genes, is_rate):
        raise ValueError(
            f"A rate is a finite number, 0 (frozen) or more, but that of the gene {name!r} is {value!r:.60}."
            + (" Convert text first: float(x)." if isinstance(value, str) else "")
        )
    return jnp.asarray(rates, jnp.float32) if isinstance(rates, jax.Array) else values.astype(np.float32)


def is_rate(value: Any) -> bool:
    """Whether a number from Python or JSON is a rate."""
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= _MAX_RATE


def _vector(given: Any, genes: Genes, what: str, entry: str) -> tuple[Any, bool]:
    """A genome or rates as an array of unknown values [G], and whether it is traced."""
    traced = isinstance(given, jax.core.Tracer)
    values = given if traced else _as_array(given)
    if values.shape != (len(genes),):
        raise ValueError(
            f"Expected {what} of shape ({len(genes)},), one {entry} for each of {shown(genes.names)}; got {values.shape}."
            + (" Use jax.vmap for a population." if values.ndim == 2 else "")
            + (" Of a dict, such as read_mask() gives, pass list(mask.values())." if isinstance(given, dict) else "")
        )
    return values, traced


def _wrong(values: np.ndarray, genes: Genes, is_right: Callable[[Any], bool]) -> Iterator[tuple[str, Any]]:
    """Gene and value where a vector [G] has something else than it may have."""
    named = zip(genes.names, values.tolist(), strict=True)
    return ((name, value) for name, value in named if not is_right(value))


def shown(names: Sequence[str]) -> str:
    """Names for a message: the first few, and how many more there are."""
    num_more = len(names) - _SHOWN_NAMES
    return ", ".join(names[:_SHOWN_NAMES]) + (f" and {num_more} more" if num_more > 0 else "")


def _as_array(genome: Mask) -> np.ndarray:
    try:
        values = np.asarray(genome)
    except ValueError:  # lists of different lengths
        return np.empty((), object)
    return np.asarray(values.tolist()) if values.dtype == object and values.ndim == 1 else values


def _is_flag(value: Any) -> bool:
    return not isinstance(value, str) and value in (0, 1)


def concrete_genome(genome: Mask, genes: Genes) -> np.ndarray:
    """The same for a genome that chooses what is compiled: always a numpy array.

    Raises:
      ValueError: also if the genome is traced.
    """
    if isinstance(genome, jax.core.Tracer):
        raise ValueError("The genome is traced, so it cannot choose what is compiled: use freezable() in place of freeze().")
    return np.asarray(as_genome(genome, genes))


def concrete_rates(rates: Rates, genes: Genes) -> np.ndarray:
    """`concrete_genome` for rates."""
    if isinstance(rates, jax.core.Tracer):
        raise ValueError("The rates are traced, so they cannot choose what is compiled: use freezable() in place of freeze().")
    return np.asarray(as_rates(rates, genes))


def frozen_leaves(genome: Mask, genes: Genes) -> list[Any]:
    """The leaves of `frozen_tree`, in the order of the genes' leaves."""
    return _spread(as_genome(genome, genes), False, genes)


def rates_leaves(rates: Rates, genes: Genes) -> list[Any]:
    """The leaves of `rates_tree`, in the order of the genes' leaves."""
    return _spread(as_rates(rates, genes), 1, genes)


def _spread(values: np.ndarray | jax.Array, of_others: int, genes: Genes) -> list[Any]:
    """For each leaf the value of its gene, or that of leaves which always train."""
    xp = jnp if isinstance(values, jax.Array) else np
    padded = xp.concatenate([values, xp.full(1, of_others, values.dtype)])  # ALWAYS_TRAINS = -1 picks the last entry
    return [
        padded[np.asarray(owner)].reshape((1,) * axis + (-1,) + (1,) * (ndim - axis - 1))
        if isinstance(owner, tuple)
        else padded[owner]
        for owner, ndim, axis in zip(genes.owners, genes.ndims, genes.axes, strict=True)
    ]


def frozen_tree(genome: Mask, genes: Genes) -> PyTree:
    """The tree of "is this leaf frozen?" that a genome stands for.

    Args:
      genome: [G] bools; numpy (or a sequence) gives numpy bools, a jax array, traced or not, gives jax arrays.

    Returns:
      A tree of the structure that `make_genes` was called with, with a scalar bool per leaf; for a stacked leaf [L, 1, ...],
      or with L at the axis of the stack, which broadcasts against it.
    """
    return jax.tree.unflatten(genes.treedef, frozen_leaves(genome, genes))


def frozen_labels(genome: Mask, genes: Genes) -> PyTree:
    """Labels for `optax.multi_transform`: "frozen" for leaves that are frozen as a whole, else "trainable".

    Args:
      genome: [G] bools known in Python (not traced).
    """
    frozen = frozen_tree(concrete_genome(genome, genes), genes)
    return jax.tree.map(lambda leaf: "frozen" if np.all(leaf) else "trainable", frozen)


def rates_tree(rates: Rates, genes: Genes) -> PyTree:
    """The tree of multipliers that rates stand for: `jax.tree.map(jnp.multiply, updates, rates_tree(rates, genes))`.

    Args:
      rates: [G] numbers, 0 = frozen; numpy (or a sequence) gives numpy floats, a jax array, traced or not, gives jax arrays.

    Returns:
      A tree of the structure that `make_genes` was called with (an `nnx.State`, an Equinox module ...), with a scalar per
      leaf, which is 1 for leaves that always train; for a stacked leaf an array that broadcasts against it, as in
      `frozen_tree`.
    """
    return jax.tree.unflatten(genes.treedef, rates_leaves(rates, genes))


def rates_labels(rates: Rates, genes: Genes) -> PyTree:
    """Labels for `optax.multi_transform`, one for each level: "frozen" (0), "trainable" (1), or such as "rate 0.3".

    Args:
      rates: [G] numbers known in Python (not traced).

    Raises:
      ValueError: if the layers of a stacked leaf have different rates, which only `freeze` can give them.

    >>> import optax
    >>> from gafreeze_jax.masking import make_genes
    >>> params = {"body": jnp.ones(2), "neck": jnp.ones(2), "head": jnp.ones(2)}
    >>> genes = make_genes(params, {"body": "body", "neck": "neck", "head": None})
    >>> levels = {"frozen": optax.set_to_zero(), "rate 0.5": optax.adamw(0.05), "trainable": optax.adamw(0.1)}
    >>> tx = optax.multi_transform(levels, rates_labels([0, 0.5], genes))
    >>> updates, _ = tx.update(params, tx.init(params), params)
    >>> {name: round(float(update[0]), 2) for name, update in updates.items()}
    {'body': 0.0, 'head': -0.1, 'neck': -0.05}
    """
    leaves = [np.unique(leaf) for leaf in rates_leaves(concrete_rates(rates, genes), genes)]
    if mixed := [place for place, levels in enumerate(leaves) if len(levels) > 1]:
        raise ValueError(
            f"The leaf {genes.paths[mixed[0]]!r} stacks layers with the rates {', '.join(map(str, leaves[mixed[0]]))}, and a "
            "label is for a whole leaf: use freeze(tx, genes, rates=rates)."
        )
    names = {0.0: "frozen", 1.0: "trainable"}
    labels = [names.get(float(level), f"rate {level!s}") for (level,) in leaves]
    return jax.tree.unflatten(genes.treedef, labels)


def count_trainable(params: PyTree, genes: Genes, genome: Mask) -> int:
    """Number of parameters that a genome leaves trainable."""
    flags = frozen_leaves(concrete_genome(genome, genes), genes)
    return int(sum(np.size(leaf) // flag.size * np.sum(~flag) for flag, leaf in zip(flags, genes.leaves(params), strict=True)))
