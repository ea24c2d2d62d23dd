"""Finds out which layers of a pretrained network to freeze when fine-tuning it.

Masks: which leaves of a parameter tree are frozen
  make_genes        names the genes of a parameter tree, by rules on the paths of its leaves
  Genes             which gene freezes which leaf
  Stacked           a rule's target for leaves that stack layers along an axis
  freeze            an optax optimizer for the leaves that a genome trains, at the rates of their genes
  freezable         the same, with the genome or rates given at each update: one compiled step serves all
  frozen_tree       whether each leaf is frozen
  frozen_labels     labels for `optax.multi_transform`
  rates_tree        what the updates of each leaf are multiplied by
  rates_labels      labels for `optax.multi_transform`, one for each level
  count_trainable   number of parameters that a genome trains
  write_mask        writes a genome or rates with the names of their genes and leaves, as JSON
  read_mask         reads which genes are frozen
  read_rates        reads the rates of the genes
  read_head         reads whether the head was fresh or kept

Genomes
  Space             the alphabet of genomes: text, words, distance, random genomes
  make_ga           makes a genetic algorithm: init, ask, tell
  GA                what `make_ga` returns

Any function or module
  search            searches for the layers to freeze and fine-tunes with them, in one call
  cut               makes a function a network: a chain of blocks, one per gene
  split, join       parameters of the function as those of that network, and back
  explain           that network as a table
  frozen_prefix     computes the frozen layers once, for a training loop of your own
  value_and_grad    loss and gradients in such a loop, for a mask

Training and searching
  Block             one gene's part of a network
  Network           a chain of blocks and a head
  Dataset           inputs and targets
  Population        trains and scores many genomes
  Search            evolves genomes, with early stopping and a surrogate

Importing this package loads jax, optax and numpy only; the last two groups are loaded when they are first used.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from gafreeze_jax.masking import (
    Genes,
    Stacked,
    count_trainable,
    freezable,
    freeze,
    frozen_labels,
    frozen_tree,
    make_genes,
    rates_labels,
    rates_tree,
    read_head,
    read_mask,
    read_rates,
    write_mask,
)
from gafreeze_jax.search.genetic import GA, make_ga
from gafreeze_jax.space import Space

if TYPE_CHECKING:
    from gafreeze_jax.engine.network import Block, Dataset, Network
    from gafreeze_jax.engine.population import Population
    from gafreeze_jax.engine.prefix import frozen_prefix, value_and_grad
    from gafreeze_jax.models.cutting.explain import explain
    from gafreeze_jax.models.from_function import cut, join, split
    from gafreeze_jax.runs.one_call import search
    from gafreeze_jax.search.loop import Search

__all__ = [  # noqa: RUF022  by subject
    "make_genes", "Genes", "Stacked", "freeze", "freezable", "frozen_tree", "frozen_labels", "rates_tree", "rates_labels",
    "count_trainable", "write_mask", "read_mask", "read_rates", "read_head",
    "Space", "make_ga", "GA",
    "search", "cut", "split", "join", "explain", "frozen_prefix", "value_and_grad",
    "Block", "Network", "Dataset", "Population", "Search",
]  # fmt: skip

_LAZY = {
    "Block": "gafreeze_jax.engine.network",
    "Network": "gafreeze_jax.engine.network",
    "Dataset": "gafreeze_jax.engine.network",
    "Population": "gafreeze_jax.engine.population",
    "cut": "gafreeze_jax.models.from_function",
    "split": "gafreeze_jax.models.from_function",
    "join": "gafreeze_jax.models.from_function",
    "explain": "gafreeze_jax.models.cutting.explain",
    "frozen_prefix": "gafreeze_jax.engine.prefix",
    "value_and_grad": "gafreeze_jax.engine.prefix",
    "Search": "gafreeze_jax.search.loop",
}

if not TYPE_CHECKING:

    def search(*args, **kwargs):
        """See `gafreeze_jax.runs.one_call.search`. (The package `gafreeze_jax.search` has this name, too.)"""
        return import_module("gafreeze_jax.runs.one_call").search(*args, **kwargs)


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_LAZY[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
