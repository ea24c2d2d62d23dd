"""optax optimizers that move the trained part of a parameter tree as if the frozen part did not exist."""

import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from gafreeze_jax.masking.genes import Genes, PyTree, is_masked
from gafreeze_jax.masking.genomes import (
    Mask,
    Rates,
    as_genome,
    as_rates,
    concrete_genome,
    concrete_rates,
    frozen_leaves,
    rates_leaves,
)

# States of optimizers whose updates lead to a place that the state knows, or have a length that was searched for.
WHOLE_STEPS = {
    optax.LookaheadState: "lookahead moves parameters to its slow weights",
    optax.contrib.COCOBState: "cocob moves parameters to a place that it finds from the initial ones",
    optax.contrib.MadgradState: "madgrad averages parameters with a point in its state",
    optax.contrib.MechanicState: "mechanize moves parameters to a place that it finds from the initial ones",
    optax.contrib.SAMState: "sam moves parameters away and back",
    optax.contrib.ScheduleFreeState: "schedule_free keeps a second copy of the parameters in its state",
    optax.ScaleByBacktrackingLinesearchState: "a line search keeps the loss at the end of its step",
    optax.ScaleByZoomLinesearchState: "a line search keeps the loss at the end of its step",
}


def freeze(
    tx: optax.GradientTransformation, genes: Genes, genome: Mask | None = None, *, rates: Rates | None = None
) -> optax.GradientTransformationExtraArgs:
    """`tx` for the trainable leaves, nothing for the frozen ones: no update, no optimizer state, no part in clipping.

    For a genome known in Python; under `jax.jit` the weight gradients of frozen leaves are then never computed. `tx` gets
    the tree that `take_trained` gives: an `optax.MaskedNode` in place of each frozen leaf, and of a stacked leaf only the
    layers that train. So whatever `tx` computes from all its parameters, or from a whole leaf, is as if the frozen ones did
    not exist, and the state of `freeze` is that of `tx`.

    The whole of `tx`, clipping and weight decay included, belongs inside: a decay outside would still move frozen leaves.
    Trees inside `tx` (decay masks, labels) must be given as functions of the parameters, as it sees only its part.
    Functions among the keywords of `update`, such as the `value_fn` of a line search, get whole parameters.

    With `rates` in place of a genome, what comes out of `tx` is multiplied by the gene's rate, which scales the learning rate
    and a weight decay that it multiplies. Leaves with a rate of 0 are frozen; always trainable leaves have a rate of 1. With
    rates above 1 `optax.keep_params_nonnegative` keeps nothing so: it ends whole steps at zero.

    Args:
      tx: an optax optimizer, or `optax.MultiSteps`.
      genome: [G] bools known in Python (not traced).
      rates: [G] numbers from 0, known in Python.

    Raises:
      ValueError: from `init` and `update` for a tree with other leaves than `make_genes` got; containers may differ. From
        `update`, if rates other than 0 and 1 meet an optimizer whose updates cannot be scaled: line searches, `cocob`,
        `lookahead`, `madgrad`, `mechanize`, `sam` unless opaque, `schedule_free`.

    >>> from gafreeze_jax.masking import make_genes
    >>> params = {"body": jnp.ones(2), "head": jnp.ones(2)}
    >>> genes = make_genes(params, {"body": "body", "head": None})
    >>> tx = freeze(optax.adamw(0.1), genes, [True])
    >>> updates, _ = tx.update(params, tx.init(params), params)
    >>> updates["body"].tolist()  # x + -0.0 is x, also for -0.0
    [-0.0, -0.0]
    >>> tx = freeze(optax.sgd(1.0), genes, rates=[0.25])
    >>> updates, _ = tx.update(params, tx.init(params), params)
    >>> updates["body"].tolist(), updates["head"].tolist()
    ([-0.25, -0.25], [-1.0, -1.0])
    """
    _check_choice(genome, rates, "freeze(tx, genes, genome) or freeze(tx, genes, rates=rates)")
    multipliers = None
    if rates is not None:
        rates = concrete_rates(rates, genes)
        genome = rates == 0
        multipliers = None if np.isin(rates, (0, 1)).all() else rates_leaves(rates, genes)
    flags = frozen_leaves(concrete_genome(genome, genes), genes)
    return _restricted(tx, genes, lambda extra: (flags, multipliers, extra))


def freezable(tx: optax.GradientTransformation, genes: Genes) -> optax.GradientTransformationExtraArgs:
    """`tx` with the genome given, possibly traced, at each update: one compiled step serves every genome.

    Its `update(grads, state, params, genome=genome)` gives `tx` zeros for the gradients, parameters and state of frozen
    leaves, so that they contribute to no norm and no decay; afterwards frozen leaves and their state are as they were.
    Works with any optax optimizer and under `jax.vmap` over genomes, and the genome may change between updates. Saves no
    computation by itself; `engine.backprop` does. `update(grads, state, params, rates=rates)` takes rates as `freeze` does,
    [G] floats that may be traced; the optimizers that `freeze` names are then refused whatever the rates.

    Four things differ from `freeze`, as shapes and the initial state cannot depend on a traced genome. (1) A mean over a
    leaf of which some layers are frozen counts their zeros: with k of n layers trained, root mean squares are sqrt(k / n)
    of what they should be (`clip_by_block_rms`, `adafactor`, `scale_by_param_block_rms`). (2) State other than a copy of
    the parameters is made from all of them by `init`: `dog(init_step=("heuristic", r))` and
    `scale_by_distance_over_gradients` start at r (1 + norm of all) instead of r (1 + norm of the trained). (3) Random
    numbers (`add_noise`, `sophia`) come from another split of the key. (4) An optimizer that takes a stacked leaf [L, D] for
    one matrix sees its full shape: `muon` scales steps by sqrt(max(1, D / L)), not sqrt(max(1, D / k)), and `galore` may
    project the other side.

    >>> from gafreeze_jax.masking import make_genes
    >>> params = {"body": jnp.ones(2), "head": jnp.ones(2)}
    >>> genes = make_genes(params, {"body": "body", "head": None})
    >>> tx = freezable(optax.sgd(0.5), genes)
    >>> step = jax.vmap(lambda genome: tx.update(params, tx.init(params), params, genome=genome)[0]["body"])
    >>> step(jnp.array([[True], [False]])).tolist()
    [[-0.0, -0.0], [-0.5, -0.5]]
    """

    def split(extra: Mapping[str, Any]) -> tuple[list[Any], list[Any] | None, dict[str, Any]]:
        genome, rates = extra.get("genome"), extra.get("rates")
        _check_choice(genome, rates, "update(grads, state, params, genome=genome) or update(grads, state, params, rates=rates)")
        rest = {name: value for name, value in extra.items() if name not in ("genome", "rates")}
        if rates is None:
            return frozen_leaves(jnp.asarray(as_genome(genome, genes)), genes), None, rest
        rates = jnp.asarray(as_rates(rates, genes))
        return frozen_leaves(rates == 0, genes), rates_leaves(rates, genes), rest

    return _restricted(tx, genes, split, whole_state=True)


def take_trained(params: PyTree, genes: Genes, genome: Mask) -> PyTree:
    """The part of a parameter tree that `freeze` gives to its optimizer.

    Args:
      genome: [G] bools known in Python (not traced).

    Returns:
      The tree with an `optax.MaskedNode` for each frozen leaf and, of a stacked leaf, only the layers that train.
    """
    return _view(params, genes, frozen_leaves(concrete_genome(genome, genes), genes)).take(params)


def put_trained(part: PyTree, params: PyTree, genes: Genes, genome: Mask) -> PyTree:
    """A parameter tree with its trained part replaced; what is frozen stays to the bit.

    Some optimizers rebuild parameters from their state. With `freeze` the rebuilt tree is a part:

        part = schedule_free_eval_params(state, take_trained(params, genes, genome))

    With `freezable` it is whole, and rounding has moved frozen leaves: `schedule_free_eval_params(state, params)`.

    Args:
      part: of the structure that `take_trained` gives, or a whole parameter tree.
      genome: [G] bools; traced only for a whole tree.

    >>> from gafreeze_jax.masking import Stacked, make_genes
    >>> params = {"layers": jnp.zeros((3, 2)), "head": jnp.zeros(2)}
    >>> genes = make_genes(params, {"layers": Stacked("layer_{}"), "head": None})
    >>> part = take_trained(params, genes, [True, False, True])
    >>> put_trained(jax.tree.map(jnp.ones_like, part), params, genes, [True, False, True])["layers"].tolist()
    [[0.0, 0.0], [1.0, 1.0], [0.0, 0.0]]
    """
    view = _view(params, genes, frozen_leaves(genome, genes))
    return view.put(part, genes.leaves(params))


def _check_choice(genome: Mask | None, rates: Rates | None, usage: str) -> None:
    if (genome is None) == (rates is None):
        raise ValueError(f"Expected either a genome or rates, got {'neither' if genome is None else 'both'}: {usage}.")


def _check_scalable(state: Any) -> None:
    """Refuses optimizers whose updates cannot be multiplied by rates, by the parts of their state.

    Raises:
      ValueError: with the reason.
    """
    for node in jax.tree.leaves(state, is_leaf=lambda node: type(node) in WHOLE_STEPS):
        opaque = isinstance(node, optax.contrib.SAMState) and node.cache is None  # moves away and back within an update
        if type(node) in WHOLE_STEPS and not opaque:
            raise ValueError(
                f"Rates multiply what an optimizer returns, but {WHOLE_STEPS[type(node)]}, so its updates cannot be scaled. "
                "Give each level an optimizer: optax.multi_transform({label: optimizer}, rates_labels(rates, genes))."
            )


def _restricted(
    tx: optax.GradientTransformation,
    genes: Genes,
    split: Callable[[Mapping[str, Any]], tuple[list[Any], list[Any] | None, Mapping[str, Any]]],
    *,
    whole_state: bool = False,
) -> optax.GradientTransformationExtraArgs:
    """`tx` on the trained part.

    Args:
      split: from the keywords of an update to "is it frozen?" for each leaf, the rate of each leaf (None: updates stay as
        they are), and the keywords of `tx`.
      whole_state: the state covers frozen leaves as well.
    """
    tx = optax.with_extra_args_support(tx.gradient_transformation() if isinstance(tx, optax.MultiSteps) else tx)

    def init(params):
        if whole_state or not jax.tree.leaves(params):  # none: the placeholder of optax.tree_map_params
            return tx.init(params)
        return tx.init(_view(params, genes, split({})[0]).take(params))

    def update(updates, state, params=None, **extra):
        flags, rates, extra = split(extra)
        if rates is not None:
            _check_scalable(state)
        view = _view(updates if params is None else params, genes, flags)
        zeros = [_zeros(leaf, ndim) for leaf, ndim in zip(genes.leaves(updates), genes.ndims, strict=True)]
        known = None if params is None else view.take(params)
        extra = {name: view.take_argument(value) for name, value in extra.items()}
        part, new = tx.update(view.take(updates), view.take(state) if whole_state else view.adopt(state), known, **extra)
        moved = view.put(part, zeros)
        return moved if rates is None else view.scale(moved, rates), view.keep(new, state) if whole_state else new

    return optax.GradientTransformationExtraArgs(init, update)


def _zeros(update: Any, ndim: int) -> Any:
    """The update of a frozen parameter of `ndim` axes; gradients per example have one more in front.

    Floats get -0.0, which leaves every number as it is; -0.0 + 0.0 would be 0.0.
    """
    if is_masked(update):
        return update
    zeros = jnp.zeros_like(update, shape=np.shape(update)[np.ndim(update) - ndim :])
    return -zeros if jnp.issubdtype(zeros.dtype, jnp.inexact) else zeros


def _view(tree: PyTree, genes: Genes, flags: list[Any]) -> "_View":
    """The view of the first parameter tree in a tree, such as the parameters themselves.

    Raises:
      ValueError: if there is none.
    """
    params = next((node for node in jax.tree.leaves(tree, is_leaf=genes.fits) if genes.fits(node)), tree)
    genes.leaves(params)  # checks them
    return _View(genes, flags, params)


class _View(NamedTuple):
    """The trained part of parameter trees, wherever they occur: in updates, in states, in `optax.LookaheadParams`.

    Attributes:
      flags: for each leaf "is it frozen?": numpy bools, or (traced) jax arrays. The first are cut out, the second are zeroed.
      params: the parameters at hand, in whose containers all results are.
    """

    genes: Genes
    flags: list[Any]
    params: PyTree

    def take(self, tree: PyTree) -> PyTree:
        """A tree in which every parameter tree is cut to its trained part."""
        return self._each(self._take, tree)

    def adopt(self, tree: PyTree) -> PyTree:
        """A tree in which every parameter tree has the containers of `params`."""
        return self._each(lambda place, leaf: leaf, tree)

    def put(self, tree: PyTree, base: list[Any]) -> PyTree:
        """The reverse of `take`, with the frozen part from the leaves `base`."""
        return self._each(lambda place, leaf: self._put(place, leaf, base[place]), tree)

    def keep(self, new: PyTree, old: PyTree) -> PyTree:
        """A new state of which the frozen part is that of the old one."""
        return self._each(self._put, new, old)

    def scale(self, tree: PyTree, rates: list[Any]) -> PyTree:
        """A tree in which the leaves of every parameter tree are multiplied by their rates."""

        def scaled(place, leaf):
            return leaf if is_masked(leaf) else leaf * jnp.asarray(rates[place], jnp.result_type(leaf))

        return self._each(scaled, tree)

    def take_argument(self, value: Any) -> Any:
        """A keyword of an update; a function of parameters, such as a line search's `value_fn`, still gets whole ones."""
        if not callable(value) or self.genes.fits(value):
            return self.take(value)

        @functools.wraps(value)  # optax looks at its signature
        def function(*args, **kwargs):
            args, kwargs = self.put((args, kwargs), self.genes.leaves(self.params))
            return self.take(value(*args, **kwargs))

        return function

    def _each(self, function: Callable[..., Any], tree: PyTree, *others: PyTree) -> PyTree:
        """Applies `function(place, *leaves)` to each leaf of each parameter tree in a tree; all else stays."""
        order, outline = self.genes.order(self.params) or (), jax.tree.structure(self.params, is_leaf=is_masked)

        def inside(*trees):
            leaves = [function(place, *row) for place, row in enumerate(zip(*map(self.genes.ordered, trees), strict=True))]
            return jax.tree.unflatten(outline, [leaves[place] for place in order])

        fits = self.genes.fits
        nodes, outer = jax.tree.flatten(tree, is_leaf=fits)
        rows = zip(nodes, *map(outer.flatten_up_to, others), strict=True)
        return jax.tree.unflatten(outer, [inside(*row) if fits(row[0]) else row[0] for row in rows])

    def _flag(self, place: int, leaf: Any) -> Any:
        """Which entries of a leaf are frozen; those of a leaf of the state whose shape does not tell are not."""
        flag = self.flags[place]
        if flag.ndim == 0:
            return flag
        axis = self.genes.stack_axis(place, leaf)
        return np.False_ if axis is None else flag.reshape((1,) * (np.ndim(leaf) - flag.ndim) + flag.shape)

    def _take(self, place: int, leaf: Any) -> Any:
        """The trained part of a leaf."""
        if is_masked(leaf):
            return leaf
        flag = self._flag(place, leaf)
        if isinstance(flag, jax.Array):
            return jnp.where(flag, 0, leaf)
        if flag.any() and not flag.all():
            return leaf[_trained(flag)]
        return optax.MaskedNode() if flag.all() else leaf

    def _put(self, place: int, leaf: Any, base: Any) -> Any:
        """A leaf of which the frozen part is that of `base`, and the trained part is `leaf`, or is in it."""
        if is_masked(leaf) or is_masked(base):
            return base
        flag = self._flag(place, base)
        if not isinstance(flag, jax.Array) and not flag.any():
            return leaf
        if isinstance(flag, jax.Array) or np.shape(leaf) == np.shape(base):
            return jnp.where(flag, base, leaf)
        return jnp.asarray(base, jnp.result_type(base, leaf)).at[_trained(flag)].set(leaf)


def _trained(flag: np.ndarray) -> tuple[Any, ...]:
    """The index of the trained layers of a stacked leaf."""
    axis = flag.shape.index(flag.size)
    return (slice(None),) * axis + (np.flatnonzero(~flag),)
