"""Masks in files: JSON with the names of genes, leaves and a checkpoint's tensors."""

import json
import os
from collections.abc import Mapping

from gafreeze_jax.masking.genes import ALWAYS_TRAINS, Genes
from gafreeze_jax.masking.genomes import Mask, concrete_genome, shown

MASK_FORMAT = "gafreeze_jax mask"
MASK_VERSION = 1
NOTE = (
    "A frozen layer belongs in inference mode: its running statistics (BatchNorm) stay, and it has no dropout. The names here "
    "freeze parameters alone; in PyTorch, also call .eval() on frozen modules after each model.train()."
)


def write_mask(path: str | os.PathLike[str], genes: Genes, genome: Mask, tensors: Mapping[str, str] | None = None) -> None:
    """Writes a genome with the names of its genes and of the leaves that each one freezes, as JSON.

    The file lists parameters. A note in it says that frozen layers belong in inference mode, too.

    Args:
      tensors: what the leaves are called in a checkpoint, {path: name}; these names are then written as well.
    """
    genome = concrete_genome(genome, genes)
    leaves: dict[str, list[str]] = {name: [] for name in genes.names}
    always: list[str] = []
    for leaf, owner, axis in zip(genes.paths, genes.owners, genes.axes, strict=True):
        for row, gene in enumerate(owner if isinstance(owner, tuple) else (owner,)):
            of_gene = always if gene == ALWAYS_TRAINS else leaves[genes.names[gene]]
            of_gene.append(f"{leaf}[{':, ' * axis}{row}]" if isinstance(owner, tuple) else leaf)
    mask = {
        "format": MASK_FORMAT,
        "version": MASK_VERSION,
        "genome": [int(gene) for gene in genome],
        "frozen": {name: bool(gene) for name, gene in zip(genes.names, genome, strict=True)},
        "leaves": leaves,
        "always_trainable": always,
        "note": NOTE,
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
        raise ValueError(f"{path}: the mask has the genes {shown(list(frozen))}; the network has {shown(genes.names)}")
    return frozen
