"""Finds out which layers of a pretrained network to freeze when fine-tuning it.

The names here need jax, optax and numpy alone. The search stands in `gafreeze_jax.search`, the training of a population in
`gafreeze_jax.population`, networks in `gafreeze_jax.models`.
"""

from gafreeze_jax.masking import (
    Genes,
    Stacked,
    count_trainable,
    freezable,
    freeze,
    frozen_labels,
    frozen_tree,
    make_genes,
    prefix_genomes,
    read_mask,
    write_mask,
)
from gafreeze_jax.search.genetic import GA, make_ga

__all__ = [
    "GA",
    "Genes",
    "Stacked",
    "count_trainable",
    "freezable",
    "freeze",
    "frozen_labels",
    "frozen_tree",
    "make_ga",
    "make_genes",
    "prefix_genomes",
    "read_mask",
    "write_mask",
]
