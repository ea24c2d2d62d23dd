"""Any model as a network: a function of all its parameters, with rules that name the genes.

`cut` finds the blocks of the genes in the function. With `make_network` it stays in one piece: nothing can be skipped below the
lowest trainable layer and kept between members; weight gradients of frozen parameters are left out all the same.
"""

import inspect
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from gafreeze_jax import masking
from gafreeze_jax.engine.network import STATISTICS, Block, Network, PyTree
from gafreeze_jax.listing import listed
from gafreeze_jax.masking import Genes
from gafreeze_jax.masking.genes import ALWAYS_TRAINS
from gafreeze_jax.models.cutting import chain, levels
from gafreeze_jax.models.cutting.pieces import ALWAYS, LEAVES, Traced, block_tree
from gafreeze_jax.models.cutting.program import HEAD, is_statistic

KEY_NAMES = ("key", "rng")  # of a function's third argument, if it has a default


def cut(apply: Callable[..., Any], params: PyTree, genes: Genes, inputs: PyTree) -> Network:
    """A function as a chain of blocks, one per gene; its parameters go through `split`.

    The function is traced. Each equation goes to the lowest block that can compute it, and as few bytes as possible go from
    block to block. What depends on parameters alone, or on inputs alone, is computed where it is used. Equal layers share
    compiled code. Genes are in the order of the genome, which should be that of use (see `in_order_of_use`).

    A frozen block runs in inference mode: as the function does without a key. There it is kept for other batches, so what makes
    the examples of a batch depend on each other, and all above, stays in the head.

    Args:
      apply: `apply(params, inputs)`, or `apply(params, inputs, key)` with a key for dropout, None in inference mode; it gives
        one array of outputs [B, ...]. If the tree has running statistics, at "batch_stats" beside "params" as in Flax, it gives
        `(outputs, new statistics)` with a key. A third argument that has a default is left alone, unless it is called `key` or
        `rng`.
      params: arrays of floats, or their shapes. Those narrower than float32 train as float32.
      genes: of `params`.
      inputs: an example batch, a tree of arrays [B, ...], or their shapes. Other batches may have any size.

    Returns:
      The network. Where genes cannot be cut off, they stay in the head in one piece, with a warning that names the equation.

    Raises:
      ValueError: if parameters are no floats, outputs no array, or running statistics belong to no block.
    """
    for path, leaf in zip(genes.paths, genes.leaves(params), strict=True):
        if not is_statistic(path) and not jnp.issubdtype(dtype := jnp.result_type(leaf), jnp.inexact):
            raise ValueError(
                f"{path}: {dtype} cannot be trained; leave it out of the parameters, for the function to close over"
            )
    with_statistics = {name for name, paths in _paths(genes).items() if any(map(is_statistic, paths))}
    if ALWAYS in with_statistics:
        raise ValueError("running statistics cannot be among what always trains: give each batch normalisation a gene")
    traced, size, training_too = _trace(apply, params, genes, inputs)
    found = chain.find(traced, genes, size, training_too)
    num, shared = len(found.blocks), found.head.names[1:]
    if found.why is not None:
        left = listed(genes.names[num:])
        warnings.warn(f"{left}: not cut into blocks, since {found.why}; they train in one piece with the head", stacklevel=2)
    if without_block := with_statistics.intersection(shared):
        why = found.why or "the head reads the parameters of the same gene"
        raise ValueError(f"running statistics of {listed(sorted(without_block))} need a block of their own, but {why}")
    blocks = [Block(name, piece) for name, piece in zip(genes.names, found.blocks, strict=False)]
    blocks += [Block(name, None) for name in genes.names[num:]]
    reads_inputs = any(piece.reads_inputs for piece in (*found.blocks, found.head))
    masters = jnp.float32 if any(map(_is_narrow, genes.leaves(params))) else None
    return Network(tuple(blocks), found.head, shared, reads_inputs, masters)


def _is_narrow(leaf: Any) -> bool:
    dtype = jnp.result_type(leaf)
    return jnp.issubdtype(dtype, jnp.floating) and jnp.finfo(dtype).bits < 32


def in_order_of_use(apply: Callable[..., Any], params: PyTree, genes: Genes, inputs: PyTree) -> Genes:
    """The genes in the order in which a function first brings their parameters together with its inputs; see `cut`."""
    traced, size, _ = _trace(apply, params, genes, inputs)
    return genes.in_order(levels.order_of_use(traced.program(size, False)))


def _trace(apply: Callable[..., Any], params: PyTree, genes: Genes, inputs: PyTree) -> tuple[Traced, int, bool]:
    """The function, a batch size to cut it at, and whether it has a training mode."""
    _check_names(genes)
    leaves, inputs = jax.eval_shape(lambda *trees: jax.tree.map(jnp.asarray, trees), genes.leaves(params), inputs)
    arrays = jax.tree.leaves(inputs)
    if not arrays or any(array.ndim == 0 for array in arrays):
        raise ValueError("inputs must be arrays [B, ...], a row for each example; let the function close over single numbers")
    takes_key, has_statistics = _takes_key(apply), any(map(is_statistic, genes.paths))

    def normal_form(leaves, inputs, key):
        params = jax.tree.unflatten(genes.treedef, leaves)
        results = apply(params, inputs, key) if takes_key else apply(params, inputs)
        if not has_statistics:
            return _checked_outputs(results), ()
        outputs, new = results if isinstance(results, tuple) else (results, None)
        return _checked_outputs(outputs), () if key is None else _checked_statistics(new, params[STATISTICS])

    return Traced(normal_form, leaves, genes, inputs), 2 * arrays[0].shape[0], takes_key


def _takes_key(apply: Callable[..., Any]) -> bool:
    signature = inspect.signature(apply)
    try:
        third = list(signature.bind(None, None, None).arguments)[2:]
    except TypeError:
        return False
    return any(signature.parameters[name].default is inspect.Parameter.empty or name in KEY_NAMES for name in third)


def _checked_outputs(outputs: Any) -> Any:
    if outputs is None:
        raise ValueError("the function must give one array of outputs, got None")
    if not jax.tree_util.treedef_is_leaf(jax.tree.structure(outputs)):
        places = [jax.tree_util.keystr(path) for path, _ in jax.tree.leaves_with_path(outputs)]
        raise ValueError(f"the function must give one array of outputs, got {listed(places)}; return what the loss reads")
    return outputs


def _checked_statistics(new: Any, old: PyTree) -> PyTree:
    new = new[STATISTICS] if isinstance(new, Mapping) and set(new) == {STATISTICS} else new
    ours, theirs = ([leaf.shape for leaf in jax.tree.leaves(tree)] for tree in (old, new))
    if ours != theirs:
        raise ValueError(
            f"with a key, apply() must return (outputs, new {STATISTICS}), {len(ours)} arrays as in params; got {len(theirs)}"
        )
    return new


def make_network(
    apply: Callable[[PyTree, PyTree, Array | None], Array],
    genes: Genes,
) -> Network:
    """The network of a function `apply(params, inputs, key) -> output`, in one piece; its parameters go through `split`.

    Args:
      apply: takes the user's own parameter tree, a batch of inputs [B, ...] and a key for dropout, None when scoring.
      genes: of that tree.
    """

    def head(params, x, context, *, frozen, key):
        return apply(join(params | {"head": params}, genes), x, key)

    return Network(tuple(Block(name, None) for name in genes.names), head, shared=genes.names)


def split(params: PyTree, genes: Genes) -> dict[str, PyTree]:
    """The user's parameters as those of the network: {gene: ..., "head": ...}.

    Raises:
      ValueError: if a gene is called "head" or "always", which are taken.
    """
    _check_names(genes)
    parts, always = masking.split_genes(params, genes)
    return {**{name: block_tree(leaves) for name, leaves in parts.items()}, HEAD: {ALWAYS: always}}


def _check_names(genes: Genes) -> None:
    if taken := sorted({HEAD, ALWAYS} & set(genes.names)):
        raise ValueError(f"a gene cannot be called {' or '.join(taken)}; give it another name, or None for what always trains")


def join(params: Mapping[str, PyTree], genes: Genes) -> PyTree:
    """The reverse of `split`."""
    parts = {}
    for name, paths in _paths(genes).items():
        if name != ALWAYS:
            tree = params[name]
            kinds = {kind: iter(tree.get(kind, ())) for kind in (LEAVES, STATISTICS)}
            parts[name] = {path: next(kinds[STATISTICS if is_statistic(path) else LEAVES]) for path in paths}
    return masking.join_genes(parts, params["head"][ALWAYS], genes)


def _paths(genes: Genes) -> dict[str, list[str]]:
    """Paths of the leaves of each gene, and of those that always train, in the tree's order."""
    by_name: dict[str, list[str]] = {name: [] for name in (*genes.names, ALWAYS)}
    for path, owner in zip(genes.paths, genes.owners, strict=True):
        for gene in dict.fromkeys(owner) if isinstance(owner, tuple) else [owner]:
            by_name[ALWAYS if gene == ALWAYS_TRAINS else genes.names[gene]].append(path)
    return by_name
