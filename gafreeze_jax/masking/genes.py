"""Which gene freezes which leaf of a parameter tree."""

import dataclasses
import functools
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

PyTree = Any

ALWAYS_TRAINS = -1  # in place of a gene's index


@dataclasses.dataclass(frozen=True)
class Stacked:
    """Target of a rule for a leaf that stacks layers along an axis, as `nn.scan` and `jax.vmap`ped inits do.

    Every index of that axis gets a gene of its own.

    Attributes:
      name: the gene's name with `{}` where the index goes, e.g. `"layer_{}"`; groups of the rule's pattern may be used
        as in `re.Match.expand`.
      axis: of the layers, e.g. 1 for `nn.scan(variable_axes={"params": 1})`.

    Raises:
      ValueError: for a name without `{}`.
    """

    name: str
    axis: int = 0

    def __post_init__(self) -> None:
        try:
            is_filled = self.name.format(0) != self.name.format(1)
        except (KeyError, IndexError, ValueError):
            is_filled = False
        if not is_filled:
            raise ValueError(f"The name of a stack must have {{}} where the index goes, as layer_{{}} has, got {self.name!r}.")


Target = str | Stacked | None
Rules = Mapping[str, Target] | Sequence[tuple[str, Target]]


@dataclasses.dataclass(frozen=True)
class Genes:
    """Which gene freezes which leaf of a parameter tree. Made by `make_genes`; hashable, so it can be a static argument.

    Attributes:
      names: the G genes' names, in the order of the genome.
      treedef: structure of the parameter tree.
      paths: path of every leaf, in the order of `treedef`.
      owners: for every leaf the index of its gene (-1 = always trainable), or, for a stacked leaf, one per index of the
        stack.
      ndims: number of axes of every leaf.
      axes: of every leaf the axis of the stack; 0 for other leaves.
    """

    names: tuple[str, ...]
    treedef: Any
    paths: tuple[str, ...]
    owners: tuple[int | tuple[int, ...], ...]
    ndims: tuple[int, ...]
    axes: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.names)

    @functools.cached_property
    def _places(self) -> dict[str, int]:
        return {plain_path(path): place for place, path in enumerate(self.paths)}

    def order(self, tree: PyTree) -> list[int] | None:
        """For each leaf of a tree its place among the genes' leaves; None if the tree has other leaves than the parameters.

        Only paths are compared: dict, `FrozenDict`, `OrderedDict`, `nnx.State` and dataclasses may stand for each other. An
        `optax.MaskedNode` counts as a leaf.
        """
        leaves = jax.tree.leaves(tree, is_leaf=is_masked)
        if len(leaves) != len(self.paths):
            return None
        if self.paths == ("",) and not is_masked(tree):  # one array: any array has its path
            return [0] if leaves[0] is tree and np.ndim(tree) == self.ndims[0] else None
        paths = [plain_path(path) for path in leaf_paths(tree, is_masked)]
        return [self._places[path] for path in paths] if set(paths) == self._places.keys() else None

    def fits(self, tree: PyTree) -> bool:
        """Whether a tree has the leaves of the parameters."""
        return self.order(tree) is not None

    def ordered(self, tree: PyTree) -> list[Any]:
        """Leaves of a tree that fits, in the order of the genes' leaves."""
        found = dict(zip(self.order(tree) or (), jax.tree.leaves(tree, is_leaf=is_masked), strict=True))
        return [found[place] for place in range(len(found))]

    def in_order(self, names: Sequence[str]) -> "Genes":
        """The same genes, numbered in another order.

        Raises:
          ValueError: unless `names` are those of the genes.
        """
        if sorted(names) != sorted(self.names):
            raise ValueError(f"expected the names {', '.join(self.names)} in another order, got {', '.join(names)}")
        number = {i: names.index(name) for i, name in enumerate(self.names)} | {ALWAYS_TRAINS: ALWAYS_TRAINS}
        owners = tuple(
            tuple(number[gene] for gene in owner) if isinstance(owner, tuple) else number[owner] for owner in self.owners
        )
        return dataclasses.replace(self, names=tuple(names), owners=owners)

    def leaves(self, tree: PyTree) -> list[Any]:
        """`ordered` for parameters.

        Raises:
          ValueError: if the tree has other leaves, or other lengths of stacks; the first is named.
        """
        if not self.fits(tree):
            raise ValueError(self._difference(tree))
        leaves = self.ordered(tree)
        for place, (path, leaf, owner) in enumerate(zip(self.paths, leaves, self.owners, strict=True)):
            if isinstance(owner, tuple) and not is_masked(leaf) and self.stack_axis(place, leaf) is None:
                raise ValueError(
                    f"leaf {path!r} has shape {np.shape(leaf)}, but make_genes() was called with {len(owner)} layers along "
                    f"axis {self.axes[place]} of {self.ndims[place]}"
                )
        return leaves

    def stack_axis(self, place: int, leaf: Any) -> int | None:
        """The axis of the stack in a leaf in the place of a stacked parameter; None if it has none of that length.

        The leaf may have more axes at the front than the parameter: gradients per example, or several leaves (L-BFGS).
        """
        owner, axis = self.owners[place], np.ndim(leaf) - self.ndims[place] + self.axes[place]
        fits = isinstance(owner, tuple) and axis >= self.axes[place] and np.shape(leaf)[axis] == len(owner)
        return axis if fits else None

    def _difference(self, tree: PyTree) -> str:
        paths = leaf_paths(tree, is_masked)
        plain = {plain_path(path) for path in paths}
        unknown = [path for path in paths if plain_path(path) not in self._places]
        missing = [path for path in self.paths if plain_path(path) not in plain]
        what = f"the leaf {unknown[0]!r}, which" if unknown else f"no leaf {missing[0]!r}, which"
        told = "was not in" if unknown else "was in"
        return (
            f"a tree with {len(paths)} leaves has {what} {told} the tree of {len(self.paths)} leaves that make_genes() was "
            "called with; call it again with these parameters"
        )


def is_masked(node: Any) -> bool:
    return isinstance(node, optax.MaskedNode)


def plain_path(path: str) -> str:
    """A path without the last step of Flax NNX, from a variable to its value."""
    return path.removesuffix("/value")


def leaf_paths(params: PyTree, is_leaf: Callable[[Any], bool] | None = None) -> list[str]:
    """Paths of all leaves, such as `"encoder/layer_0/kernel"`, in the tree's own order: what rules are matched with."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(params, is_leaf=is_leaf)
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
      ValueError: unless every leaf is matched by exactly one rule, every rule matches a leaf, and all leaves of a stack have
        the same length; all culprits at once. Also if two leaves have the same path, and for a bad regular expression.

    >>> params = {"embed": np.ones(3), "layers": [np.ones(2), np.ones(2)], "head": np.ones(2)}
    >>> make_genes(params, {"embed": "embed", r"layers/(\d+)": r"layer_\1", "head": None}).names
    ('embed', 'layer_0', 'layer_1')
    """
    pairs = list(rules.items()) if isinstance(rules, Mapping) else list(rules)
    leaves, treedef = jax.tree.flatten(params)
    paths = leaf_paths(params)
    if twice := [path for path, count in Counter(map(plain_path, paths)).items() if count > 1]:
        raise ValueError(f"Two leaves have the path {twice[0]!r}: rename one, such as a key with a slash in it.")
    try:
        owners = _match(pairs, paths, leaves)
    except re.error as error:
        raise ValueError(f"The rule or target {error.pattern!r} cannot be used: {error}.") from None
    by_rule = [(rule, name) for rule, genes, _ in owners for name in ((genes,) if isinstance(genes, str) else genes or ())]
    by_rule.sort(key=lambda gene: (gene[0], _natural(gene[1])))
    names = tuple(dict.fromkeys(name for _, name in by_rule))
    index: dict[Any, int] = {name: i for i, name in enumerate(names)} | {None: ALWAYS_TRAINS}
    indices = tuple(
        tuple(index[name] for name in genes) if isinstance(genes, tuple) else index[genes] for _, genes, _ in owners
    )
    ndims, axes = tuple(np.ndim(leaf) for leaf in leaves), tuple(axis for *_, axis in owners)
    return Genes(names, treedef, tuple(paths), indices, ndims, axes)


def _match(
    rules: Sequence[tuple[str, Target]], paths: Sequence[str], leaves: Sequence[Any]
) -> list[tuple[int, str | tuple[str, ...] | None, int]]:
    """For each leaf the index of its rule, the name of its gene (one for each index of a stack), and the axis of the stack.

    Raises:
      ValueError: as `make_genes`.
    """
    owners, errors, unused = [], [], set(range(len(rules)))
    stacks: dict[str, dict[str, int]] = {}  # by name, {path: length}
    for path, leaf in zip(paths, leaves, strict=True):
        matches = [(rule, match) for rule, (pattern, _) in enumerate(rules) if (match := re.fullmatch(pattern, path))]
        unused -= {rule for rule, _ in matches}
        if len(matches) != 1:
            patterns = " and ".join(repr(rules[rule][0]) for rule, _ in matches) or "no rule"
            errors.append(f"leaf {path!r} is matched by {patterns}")
            continue
        ((rule, match),) = matches
        target, ndim = rules[rule][1], np.ndim(leaf)
        if not isinstance(target, Stacked):
            owners.append((rule, None if target is None else match.expand(target), 0))
        elif -ndim <= target.axis < ndim and np.shape(leaf)[target.axis] == 0:
            errors.append(f"leaf {path!r} is a stack of no layers")
        elif not -ndim <= target.axis < ndim:
            shape = f"has shape {np.shape(leaf)}, without axis {target.axis}," if ndim else "is a scalar"
            errors.append(f"leaf {path!r} {shape} and cannot be stacked as {target.name!r}")
        else:
            axis, name = target.axis % ndim, match.expand(target.name)
            stacks.setdefault(name, {})[path] = np.shape(leaf)[axis]
            owners.append((rule, tuple(name.format(i) for i in range(np.shape(leaf)[axis])), axis))
    errors += [f"rule {rules[rule][0]!r} matches no leaf" for rule in sorted(unused)]
    if errors:
        raise ValueError(
            "Every leaf needs exactly one rule (give leaves that always train the target None), but:\n  "
            + "\n  ".join(errors)
            + ("\nThe tree's leaves are: " + ", ".join(paths) if unused else "")
        )
    _check_lengths(stacks)
    return owners


def _check_lengths(stacks: Mapping[str, Mapping[str, int]]) -> None:
    for name, lengths in stacks.items():
        first = {length: path for path, length in list(lengths.items())[::-1]}  # the first leaf of each length
        if len(first) > 1:
            shown = ", ".join(f"{path!r} has {length}" for length, path in sorted(first.items())[:3])
            raise ValueError(
                f"leaves of the stack {name!r} have different numbers of layers: {shown}. Give leaves that the layers share a "
                "rule of their own, and stacks along another axis Stacked(name, axis=1)"
            )


def _natural(name: str) -> list[str | int]:
    return [int(part) if part.isdecimal() else part for part in re.split(r"(\d+)", name)]  # text and numbers in turn


def layer_of_stack(leaf: Any, axis: int, index: Any) -> Any:
    """Layers of a stacked leaf: those of `index`, an int or an array of ints, along `axis`."""
    return leaf[(slice(None),) * axis + (index,)]


def split_genes(params: PyTree, genes: Genes) -> tuple[dict[str, dict[str, Any]], dict[str, Any]]:
    """A parameter tree cut into one dict of leaves for each gene, and one of those that always train.

    Returns:
      {gene: {path: leaf}} and {path: leaf}. Of a stacked leaf each gene has its index, without the axis of the stack.

    >>> params = {"layers": jnp.array([[1, 2], [3, 4]]), "head": jnp.ones(2)}
    >>> genes = make_genes(params, {"layers": Stacked("layer_{}"), "head": None})
    >>> parts, always = split_genes(params, genes)
    >>> parts["layer_1"]["layers"].tolist(), list(always)
    ([3, 4], ['head'])
    """
    parts: dict[str, dict[str, Any]] = {name: {} for name in genes.names}
    always: dict[str, Any] = {}
    for leaf, path, owner, axis in zip(genes.leaves(params), genes.paths, genes.owners, genes.axes, strict=True):
        if isinstance(owner, tuple):
            for index, gene in enumerate(owner):
                parts[genes.names[gene]][path] = layer_of_stack(leaf, axis, index)
        else:
            (always if owner == ALWAYS_TRAINS else parts[genes.names[owner]])[path] = leaf
    return parts, always


def join_genes(parts: Mapping[str, Mapping[str, Any]], always: Mapping[str, Any], genes: Genes) -> PyTree:
    """The reverse of `split_genes`."""

    def leaf(path: str, owner: int | tuple[int, ...], axis: int) -> Any:
        if isinstance(owner, tuple):
            return jnp.stack([parts[genes.names[gene]][path] for gene in owner], axis)
        return always[path] if owner == ALWAYS_TRAINS else parts[genes.names[owner]][path]

    return jax.tree.unflatten(genes.treedef, list(map(leaf, genes.paths, genes.owners, genes.axes)))
