"""Genomes and parameter trees: which gene freezes which leaf, and the optax wrappers that hold frozen leaves still.

A genome is a vector of G bools, one per gene, True = frozen. `make_genes` says which leaf of a parameter tree belongs
to which gene. A genome known in Python restricts an optimizer to the trained part with `freeze`; a genome that is traced
(one compiled step for all genomes, or one per member under `jax.vmap`) goes through `freezable`.

Rates say more than a genome: a vector of G numbers that updates are multiplied by, 0 = frozen, 1 = trains as usual. Bits and
rates cannot be told apart by their values (1 freezes a gene in a genome), so rates always have an argument of their own.

Both freeze parameters. Running statistics (BatchNorm) and dropout are no parameters: a forward pass in training mode still
updates the first and draws the second in frozen layers. Frozen layers belong in inference mode, as `gafreeze_jax.engine` has
them; `gafreeze_jax.export` does it for Flax NNX and Equinox.

These files need jax, optax and numpy only, so that the folder can be taken into other projects.
"""

from gafreeze_jax.masking.genes import Genes, PyTree, Rules, Stacked, Target, join_genes, leaf_paths, make_genes, split_genes
from gafreeze_jax.masking.genomes import Mask, Rates, count_trainable, frozen_labels, frozen_tree, rates_labels, rates_tree
from gafreeze_jax.masking.mask_file import read_head, read_mask, read_rates, write_mask
from gafreeze_jax.masking.optimizers import freezable, freeze, put_trained, take_trained

__all__ = [
    "Genes",
    "Mask",
    "PyTree",
    "Rates",
    "Rules",
    "Stacked",
    "Target",
    "count_trainable",
    "freezable",
    "freeze",
    "frozen_labels",
    "frozen_tree",
    "join_genes",
    "leaf_paths",
    "make_genes",
    "put_trained",
    "rates_labels",
    "rates_tree",
    "read_head",
    "read_mask",
    "read_rates",
    "split_genes",
    "take_trained",
    "write_mask",
]
