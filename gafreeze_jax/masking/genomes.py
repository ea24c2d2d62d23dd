"""What a genome says of each leaf of a parameter tree."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.core
import jax.numpy as jnp
import numpy as np

from gafreeze_jax.masking.genes import Genes, PyTree

Mask = Any  # [G] bools, or 0 and 1; True = frozen: a sequence, a numpy array or a (traced) jax array

_SHOWN_NAMES = 8  # in messages


def as_genome(genome: Mask, genes: Genes) -> np.ndarray | jax.Array:
    """A genome as bools [G]: a jax array if it is one, traced or not, else a numpy array.

    All genomes pass here; it is the only place that knows which values a gene can have.

    Raises:
      ValueError: for other values than bools, 0 and 1, and for another shape. Of a traced genome the values are unknown; it
        must have bools or integers.
    """
    traced = isinstance(genome, jax.core.Tracer)
    values = genome if traced else _as_array(genome)
    if values.shape != (len(genes),):
        raise ValueError(
            f"Expected a genome of shape ({len(genes)},), one gene for each of {shown(genes.names)}; got {values.shape}."
            + (" Use jax.vmap for a population." if values.ndim == 2 else "")
            + (" Of a mask that read_mask() gave, pass list(mask.values())." if isinstance(genome, dict) else "")
        )
    if traced and not (jnp.issubdtype(values.dtype, jnp.integer) or values.dtype == bool):
        raise ValueError(
            f"A traced genome must have bools or integers (1 = frozen), got {values.dtype}: compare it first, x > 0.5."
        )
    named = [] if traced else zip(genes.names, values.tolist(), strict=True)
    bad = [(name, value) for name, value in named if not _is_flag(value)]
    if bad:
        raise ValueError(
            f"A genome has bools, or 0 and 1 (1 = frozen), but the gene {bad[0][0]!r} is {bad[0][1]!r}. "
            + ("Convert text first: int(x)." if isinstance(bad[0][1], str) else "Round or compare first: x > 0.5.")
        )
    return jnp.asarray(genome, bool) if isinstance(genome, jax.Array) else values.astype(bool)


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


def frozen_leaves(genome: Mask, genes: Genes) -> list[Any]:
    """The leaves of `frozen_tree`, in the order of the genes' leaves."""
    genome = as_genome(genome, genes)
    xp = jnp if isinstance(genome, jax.Array) else np
    padded = xp.concatenate([genome, xp.zeros(1, bool)])  # ALWAYS_TRAINS = -1 picks the last entry, False
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


def count_trainable(params: PyTree, genes: Genes, genome: Mask) -> int:
    """Number of parameters that a genome leaves trainable."""
    flags = frozen_leaves(concrete_genome(genome, genes), genes)
    return int(sum(np.size(leaf) // flag.size * np.sum(~flag) for flag, leaf in zip(flags, genes.leaves(params), strict=True)))
