"""Genomes and parameter trees: which gene freezes which leaf, and the optax wrappers that hold frozen leaves still.

A genome is a vector of G bools, one per gene, True = frozen. `make_genes` says which leaf of a parameter tree belongs
to which gene. A genome known in Python becomes a plain `optax.multi_transform` with `freeze`; a genome that is traced
(one compiled step for all genomes, or one per member under `jax.vmap`) goes through `freezable`.

This file needs jax, optax and numpy only, so that it can be taken into other projects.
"""

import dataclasses
import json
import os
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.core
import jax.numpy as jnp
import numpy as np
import optax

from gafreeze_jax.listing import listed

PyTree = Any
Mask = Any  # [G] bools, True = frozen: a sequence, a numpy array or a (traced) jax array

_ALWAYS_TRAINS = -1  # in place of a gene's index
MASK_FORMAT = "gafreeze_jax mask"
MASK_VERSION = 1


@dataclasses.dataclass(frozen=True)
class Stacked:
    """Target of a rule for a leaf that stacks layers along its leading axis, as `nn.scan` and `jax.vmap`ped inits do.

    Every index of that axis gets a gene of its own.

    Attributes:
      name: the gene's name with `{}` where the index goes, e.g. `"layer_{}"`; groups of the rule's pattern may be used
        as in `re.Match.expand`.
    """

    name: str


Target = str | Stacked | None
Rules = Mapping[str, Target] | Sequence[tuple[str, Target]]


@dataclasses.dataclass(frozen=True)
class Genes:
    """Which gene freezes which leaf of a parameter tree. Made by `make_genes`; hashable, so it can be a static argument.

    Attributes:
      names: the G genes' names, in the order of the genome.
      treedef: structure of the parameter tree.
      paths: path of every leaf, in the order of `treedef`.
      owners: for every leaf the index of its gene (-1 = always trainable), or, for a stacked leaf, one per index of its
        leading axis.
      ndims: number of axes of every leaf.
    """

    names: tuple[str, ...]
    treedef: Any
    paths: tuple[str, ...]
    owners: tuple[int | tuple[int, ...], ...]
    ndims: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.names)


def leaf_paths(params: PyTree) -> list[str]:
    """Paths of all leaves, such as `"encoder/layer_0/kernel"`, in the tree's own order: what rules are matched with."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(params)
    return [jax.tree_util.keystr(path, simple=True, separator="/") for path, _ in leaves]


def make_genes(params: PyTree, rules: Rules) -> Genes:
    r"""Names the genes of a parameter tree by rules on the paths of its leaves.

    Genes are numbered in the order of their rules and, within a rule, by natural order of their names (`layer_2` before
    `layer_10`). Two rules may feed one gene.

    Args:
      params: any pytree of arrays: nested dicts, a Flax `FrozenDict` or `nnx.State`, an `eqx.filter`ed module, tuples.
      rules: pairs of a regular expression, which must match the whole path of a leaf, and what it belongs to: a gene's
        name, in which groups of the match are expanded (`r"layer_\1"`), `Stacked(name)`, or None = always trainable.

    Raises:
      ValueError: unless every leaf is matched by exactly one rule and every rule matches a leaf; all culprits at once.

    >>> params = {"embed": np.ones(3), "layers": [np.ones(2), np.ones(2)], "head": np.ones(2)}
    >>> make_genes(params, {"embed": "embed", r"layers/(\d+)": r"layer_\1", "head": None}).names
    ('embed', 'layer_0', 'layer_1')
    """
    pairs = list(rules.items()) if isinstance(rules, Mapping) else list(rules)
    leaves, treedef = jax.tree.flatten(params)
    paths = leaf_paths(params)
    owners = _match(pairs, paths, leaves)
    by_rule = [(rule, name) for rule, genes in owners for name in ((genes,) if isinstance(genes, str) else genes or ())]
    by_rule.sort(key=lambda gene: (gene[0], _natural(gene[1])))
    names = tuple(dict.fromkeys(name for _, name in by_rule))
    index: dict[Any, int] = {name: i for i, name in enumerate(names)} | {None: _ALWAYS_TRAINS}
    indices = tuple(tuple(index[name] for name in genes) if isinstance(genes, tuple) else index[genes] for _, genes in owners)
    return Genes(names, treedef, tuple(paths), indices, tuple(np.ndim(leaf) for leaf in leaves))


def _match(
    rules: Sequence[tuple[str, Target]], paths: Sequence[str], leaves: Sequence[Any]
) -> list[tuple[int, str | tuple[str, ...] | None]]:
    """For each leaf, the index of its rule and the name of its gene; for a stacked leaf, a name for each index of the stack.

    Raises:
      ValueError: as `make_genes`.
    """
    owners, errors, unused = [], [], set(range(len(rules)))
    for path, leaf in zip(paths, leaves, strict=True):
        matches = [(rule, match) for rule, (pattern, _) in enumerate(rules) if (match := re.fullmatch(pattern, path))]
        unused -= {rule for rule, _ in matches}
        if len(matches) != 1:
            patterns = " and ".join(repr(rules[rule][0]) for rule, _ in matches) or "no rule"
            errors.append(f"leaf {path!r} is matched by {patterns}")
            continue
        ((rule, match),) = matches
        target = rules[rule][1]
        if not isinstance(target, Stacked):
            owners.append((rule, None if target is None else match.expand(target)))
        elif np.ndim(leaf) == 0:
            errors.append(f"leaf {path!r} is a scalar and cannot be stacked as {target.name!r}")
        else:
            owners.append((rule, tuple(match.expand(target.name).format(i) for i in range(np.shape(leaf)[0]))))
    errors += [f"rule {rules[rule][0]!r} matches no leaf" for rule in sorted(unused)]
    if errors:
        raise ValueError(
            "Every leaf needs exactly one rule (give leaves that always train the target None), but:\n  "
            + "\n  ".join(errors)
            + ("\nThe tree's leaves are: " + ", ".join(paths) if unused else "")
        )
    return owners


def _natural(name: str) -> list[tuple[int, str]]:
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", name)]


def frozen_tree(genome: Mask, genes: Genes) -> PyTree:
    """The tree of "is this leaf frozen?" that a genome stands for.

    Args:
      genome: [G] bools; numpy (or a sequence) gives numpy bools, a jax array, traced or not, gives jax arrays.

    Returns:
      A tree of the parameters' structure with a scalar bool per leaf; for a stacked leaf [L, 1, ...], which broadcasts
      against it.
    """
    genome = _check_length(genome, genes)
    xp = jnp if isinstance(genome, jax.Array) else np
    padded = xp.concatenate([genome, xp.zeros(1, bool)])  # _ALWAYS_TRAINS = -1 picks the last entry, False
    leaves = [
        padded[np.asarray(owner)].reshape((-1,) + (1,) * (ndim - 1)) if isinstance(owner, tuple) else padded[owner]
        for owner, ndim in zip(genes.owners, genes.ndims, strict=True)
    ]
    return jax.tree.unflatten(genes.treedef, leaves)


def frozen_labels(genome: Mask, genes: Genes) -> PyTree:
    """Labels for `optax.multi_transform`: "frozen" for leaves that are frozen as a whole, else "trainable".

    Args:
      genome: [G] bools known in Python (not traced).
    """
    frozen = frozen_tree(_check_concrete(genome), genes)
    return jax.tree.map(lambda leaf: "frozen" if np.all(leaf) else "trainable", frozen)


def _hold(frozen: PyTree, updates: PyTree) -> PyTree:
    """Zero where frozen. `jnp.where`, not a product: NaN and infinity in a frozen leaf must not pass."""

    def hold(flag, update):
        if isinstance(update, optax.MaskedNode):
            return update
        return update if isinstance(flag, np.ndarray | np.bool_) and not flag.any() else jnp.where(flag, 0, update)

    return jax.tree.map(hold, frozen, updates)


def freeze(tx: optax.GradientTransformation, genes: Genes, genome: Mask) -> optax.GradientTransformationExtraArgs:
    """`tx` for the trainable leaves, nothing for the frozen ones: no update, no optimizer state, no part in clipping.

    For a genome known in Python; under `jax.jit` the weight gradients of frozen leaves are then never computed. The
    whole of `tx`, clipping and weight decay included, belongs inside: a decay outside would still move frozen leaves.
    Trees inside `tx` (decay masks, labels) must be given as functions of the parameters, as it sees only its part.

    Args:
      genome: [G] bools known in Python (not traced).

    >>> params = {"body": jnp.ones(2), "head": jnp.ones(2)}
    >>> genes = make_genes(params, {"body": "body", "head": None})
    >>> tx = freeze(optax.adamw(0.1), genes, [True])
    >>> updates, _ = tx.update(params, tx.init(params), params)
    >>> updates["body"].tolist()
    [0.0, 0.0]
    """
    labels = frozen_labels(genome, genes)
    frozen = frozen_tree(_check_concrete(genome), genes)
    mixed = any(np.any(flag) and not np.all(flag) for flag in jax.tree.leaves(frozen))
    inner = _held(tx, lambda _: frozen) if mixed else tx
    # As a function: where the labels are an Equinox module that can be called, optax would call them.
    return optax.multi_transform({"trainable": inner, "frozen": optax.set_to_zero()}, lambda _: labels)


def freezable(tx: optax.GradientTransformation, genes: Genes) -> optax.GradientTransformationExtraArgs:
    """`tx` with the genome given, possibly traced, at each update: one compiled step serves every genome.

    Its `update(grads, state, params, genome=genome)` zeroes the gradients of frozen leaves *before* `tx` and their
    updates *after* it, so that clipping norms count trainable leaves only, moments of frozen leaves stay zero and weight
    decay does not leak. Works with any optax optimizer and under `jax.vmap` over genomes. Saves no computation by
    itself; `engine.backprop` does.

    >>> params = {"body": jnp.ones(2), "head": jnp.ones(2)}
    >>> genes = make_genes(params, {"body": "body", "head": None})
    >>> tx = freezable(optax.sgd(0.5), genes)
    >>> step = jax.vmap(lambda genome: tx.update(params, tx.init(params), params, genome=genome)[0]["body"])
    >>> step(jnp.array([[True], [False]])).tolist()
    [[0.0, 0.0], [-0.5, -0.5]]
    """

    def frozen_from(extra: Mapping[str, Any]) -> PyTree:
        if "genome" not in extra:
            raise ValueError("freezable() needs the genome at each update: update(grads, state, params, genome=genome)")
        return frozen_tree(jnp.asarray(extra["genome"], bool), genes)

    return _held(tx, frozen_from)


def _held(
    tx: optax.GradientTransformation, frozen_from: Callable[[Mapping[str, Any]], PyTree]
) -> optax.GradientTransformationExtraArgs:
    tx = optax.with_extra_args_support(tx)

    def update(updates, state, params=None, **extra):
        frozen = frozen_from(extra)
        updates, state = tx.update(_hold(frozen, updates), state, params, **extra)
        return _hold(frozen, updates), state

    return optax.GradientTransformationExtraArgs(tx.init, update)


def count_trainable(params: PyTree, genes: Genes, genome: Mask) -> int:
    """Number of parameters that a genome leaves trainable."""
    frozen = frozen_tree(_check_concrete(genome), genes)
    counts = jax.tree.map(lambda flag, leaf: np.size(leaf) // np.size(flag) * np.sum(~flag), frozen, params)
    return int(sum(jax.tree.leaves(counts)))


def split_genes(params: PyTree, genes: Genes) -> tuple[dict[str, dict[str, Any]], dict[str, Any]]:
    """A parameter tree cut into one dict of leaves for each gene, and one of those that always train.

    Returns:
      {gene: {path: leaf}} and {path: leaf}. Of a stacked leaf each gene has its index, without the leading axis.

    >>> params = {"layers": jnp.array([[1, 2], [3, 4]]), "head": jnp.ones(2)}
    >>> genes = make_genes(params, {"layers": Stacked("layer_{}"), "head": None})
    >>> parts, always = split_genes(params, genes)
    >>> parts["layer_1"]["layers"].tolist(), list(always)
    ([3, 4], ['head'])
    """
    parts: dict[str, dict[str, Any]] = {name: {} for name in genes.names}
    always: dict[str, Any] = {}
    for leaf, path, owner in zip(genes.treedef.flatten_up_to(params), genes.paths, genes.owners, strict=True):
        if isinstance(owner, tuple):
            for index, gene in enumerate(owner):
                parts[genes.names[gene]][path] = leaf[index]
        else:
            (always if owner == _ALWAYS_TRAINS else parts[genes.names[owner]])[path] = leaf
    return parts, always


def join_genes(parts: Mapping[str, Mapping[str, Any]], always: Mapping[str, Any], genes: Genes) -> PyTree:
    """The reverse of `split_genes`."""

    def leaf(path: str, owner: int | tuple[int, ...]) -> Any:
        if isinstance(owner, tuple):
            return jnp.stack([parts[genes.names[gene]][path] for gene in owner])
        return always[path] if owner == _ALWAYS_TRAINS else parts[genes.names[owner]][path]

    return jax.tree.unflatten(genes.treedef, [leaf(path, owner) for path, owner in zip(genes.paths, genes.owners, strict=True)])


def write_mask(path: str | os.PathLike[str], genes: Genes, genome: Mask, tensors: Mapping[str, str] | None = None) -> None:
    """Writes a genome with the names of its genes and of the leaves that each one freezes, as JSON.

    Args:
      tensors: what the leaves are called in a checkpoint, {path: name}; these names are then written as well.
    """
    genome = _check_concrete(_check_length(genome, genes))
    leaves: dict[str, list[str]] = {name: [] for name in genes.names}
    always: list[str] = []
    for leaf, owner in zip(genes.paths, genes.owners, strict=True):
        for row, gene in enumerate(owner if isinstance(owner, tuple) else (owner,)):
            of_gene = always if gene == _ALWAYS_TRAINS else leaves[genes.names[gene]]
            of_gene.append(f"{leaf}[{row}]" if isinstance(owner, tuple) else leaf)
    mask = {
        "format": MASK_FORMAT,
        "version": MASK_VERSION,
        "genome": [int(gene) for gene in genome],
        "frozen": {name: bool(gene) for name, gene in zip(genes.names, genome, strict=True)},
        "leaves": leaves,
        "always_trainable": always,
    }
    if tensors:
        frozen = [tensors[leaf] for name, gene in zip(genes.names, genome, strict=True) if gene for leaf in leaves[name]]
        mask["tensors"] = {"frozen": frozen, "trainable": [name for name in tensors.values() if name not in set(frozen)]}
    with open(path, "w", encoding="utf-8") as file:
        json.dump(mask, file, indent=2)
        file.write("\n")


def read_mask(path: str | os.PathLike[str], genes: Genes | None = None) -> dict[str, bool]:
    """Reads a mask that `write_mask` wrote: gene name -> frozen?, in the order of the genome.

    Args:
      genes: if given, the genes that the mask must be about.

    Raises:
      ValueError: if the file is not such a mask, or is about other genes.
    """
    try:
        with open(path, encoding="utf-8") as file:
            mask = json.load(file)
        frozen = mask["frozen"]
        known = mask["format"] == MASK_FORMAT and mask["version"] == MASK_VERSION
        if not known or not frozen or not all(isinstance(flag, bool) for flag in frozen.values()):
            raise ValueError("unknown format")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{path}: expected a mask file of version {MASK_VERSION}, as written by write_mask(): {error}"
        ) from None
    if genes is not None and tuple(frozen) != genes.names:
        raise ValueError(f"{path}: the mask has the genes {listed(frozen)}; the network has {listed(genes.names)}")
    return frozen


def _check_length(genome: Mask, genes: Genes) -> Any:
    genome = genome if isinstance(genome, jax.Array) else np.asarray(genome, bool)
    if genome.shape != (len(genes),):
        raise ValueError(
            f"Expected a genome of shape ({len(genes)},), one gene for each of {listed(genes.names)}; got {genome.shape}."
            + (" Use jax.vmap for a population." if genome.ndim == 2 else "")
        )
    return genome.astype(bool)


def _check_concrete(genome: Mask) -> np.ndarray:
    if isinstance(genome, jax.core.Tracer):
        raise ValueError("The genome is traced, so it cannot choose what is compiled: use freezable() in place of freeze().")
    return np.asarray(genome, bool)
