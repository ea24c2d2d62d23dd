"""Masks in files: JSON with the names of genes, leaves and a checkpoint's tensors.

Version 2 adds rates, and whether the head was fresh.
"""

import json
import os
from collections.abc import Mapping, Sequence
from typing import Any

from gafreeze_jax.masking.genes import ALWAYS_TRAINS, Genes
from gafreeze_jax.masking.genomes import Mask, Rates, concrete_genome, concrete_rates, is_rate, shown

MASK_FORMAT = "gafreeze_jax mask"
MASK_VERSION = 2
HEADS = ("fresh", "kept", None)
NOTE = (
    "A frozen layer belongs in inference mode: its running statistics (BatchNorm) stay, and it has no dropout. The names here "
    "freeze parameters alone; in PyTorch, also call .eval() on frozen modules after each model.train()."
)


def write_mask(
    path: str | os.PathLike[str],
    genes: Genes,
    genome: Mask | None = None,
    tensors: Mapping[str, str | Sequence[str]] | None = None,
    *,
    rates: Rates | None = None,
    head: str | None = None,
) -> None:
    """Writes a genome, or rates, with the names of genes and of the leaves that belong to each, as JSON.

    The file lists parameters. A note in it says that frozen layers belong in inference mode, too.

    Args:
      genome: [G] bools; may be left out where rates are given.
      tensors: what the leaves are called in a checkpoint, {path: name}, or names; these are then written as well.
      rates: [G] numbers from 0 = frozen; without them, genes that train have a rate of 1.
      head: "fresh" if training started from a new head, "kept" if from the checkpoint's, None if that is not known.

    Raises:
      ValueError: for a bad genome, rates or head, without a genome and rates, and if they disagree on what is frozen.
    """
    if head not in HEADS:
        raise ValueError(f'The head is "fresh", "kept" or None, not {head!r:.60}.')
    if genome is None and rates is None:
        raise ValueError(
            "Expected a genome, rates or both: write_mask(path, genes, genome) or write_mask(path, genes, rates=rates)."
        )
    values = 1 - concrete_genome(genome, genes) if rates is None else concrete_rates(rates, genes)
    by_gene = {name: float(str(rate)) for name, rate in zip(genes.names, values, strict=True)}  # the shortest form of a float32
    frozen = {name: rate == 0 for name, rate in by_gene.items()}
    if genome is not None and rates is not None:
        _check_agreement(dict(zip(genes.names, concrete_genome(genome, genes).tolist(), strict=True)), by_gene)
    leaves, always = _leaves_by_gene(genes)
    mask: dict[str, Any] = {
        "format": MASK_FORMAT,
        "version": MASK_VERSION,
        "genome": [int(flag) for flag in frozen.values()],
        "frozen": frozen,
        "rates": by_gene,
        "head": head,
        "leaves": leaves,
        "always_trainable": always,
        "note": NOTE,
    }
    if tensors:
        called = {leaf: [names] if isinstance(names, str) else names for leaf, names in tensors.items()}
        rate_of = {tensor: by_gene[name] for name in genes.names for leaf in leaves[name] for tensor in called[leaf]}
        mask["tensors"] = {
            "frozen": [name for name, rate in rate_of.items() if rate == 0],
            "trainable": [name for names in called.values() for name in names if rate_of.get(name, 1) != 0],
            "rates": {name: rate for name, rate in rate_of.items() if rate not in (0, 1)},
        }
    with open(path, "w", encoding="utf-8") as file:
        json.dump(mask, file, indent=2)
        file.write("\n")


def _leaves_by_gene(genes: Genes) -> tuple[dict[str, list[str]], list[str]]:
    """Paths of the leaves of each gene, and of those that always train."""
    leaves: dict[str, list[str]] = {name: [] for name in genes.names}
    always: list[str] = []
    for leaf, owner, axis in zip(genes.paths, genes.owners, genes.axes, strict=True):
        for row, gene in enumerate(owner if isinstance(owner, tuple) else (owner,)):
            of_gene = always if gene == ALWAYS_TRAINS else leaves[genes.names[gene]]
            of_gene.append(f"{leaf}[{':, ' * axis}{row}]" if isinstance(owner, tuple) else leaf)
    return leaves, always


def read_mask(path: str | os.PathLike[str], genes: Genes | None = None) -> dict[str, bool]:
    """Reads a mask that `write_mask` wrote: gene name -> frozen?, in the order of the genome.

    Args:
      genes: if given, the genes that the mask must be about.

    Raises:
      ValueError: if the file is not such a mask, or is about other genes.
    """
    return load_mask(path, genes)["frozen"]


def read_rates(path: str | os.PathLike[str], genes: Genes | None = None) -> dict[str, float]:
    """`read_mask` for rates: gene name -> what its updates are multiplied by. Files of version 1 have 0.0 and 1.0 only."""
    return load_mask(path, genes)["rates"]


def read_head(path: str | os.PathLike[str]) -> str | None:
    """Whether training with a mask started from a "fresh" head or from the checkpoint's, "kept"; None if the file does not say.

    Raises:
      ValueError: if the file is not a mask.
    """
    return load_mask(path)["head"]


def load_mask(path: str | os.PathLike[str], genes: Genes | None = None) -> dict[str, Any]:
    """All entries of a mask file, with those that later versions added.

    Raises:
      ValueError: as `read_mask`.
    """
    try:
        with open(path, encoding="utf-8") as file:
            mask = json.load(file)
        _check(mask)
    except IsADirectoryError:
        raise ValueError(f"{path}: expected a mask file, got a folder; give the mask.json in it") from None
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: expected a mask file of version 1 or 2, as written by write_mask(): {error}") from None
    frozen = mask["frozen"]
    if genes is not None and tuple(frozen) != genes.names:
        raise ValueError(f"{path}: the mask has the genes {shown(list(frozen))}; the network has {shown(genes.names)}")
    rates = mask["rates"] if mask["version"] > 1 else {name: not flag for name, flag in frozen.items()}
    return {**mask, "rates": {name: float(rates[name]) for name in frozen}, "head": mask.get("head")}


def _check(mask: Any) -> None:
    """Raises a ValueError for JSON that is not a mask."""
    if not isinstance(mask, dict) or mask.get("format") != MASK_FORMAT:
        raise ValueError("unknown format")
    if mask.get("version") not in (1, MASK_VERSION):
        raise ValueError(f"its version is {mask.get('version')!r:.60}")
    frozen, rates = mask.get("frozen"), mask.get("rates")
    if not isinstance(frozen, dict) or not frozen or not all(isinstance(flag, bool) for flag in frozen.values()):
        raise ValueError('its entry "frozen" must be true or false for each gene')
    if "tensors" in mask:
        _check_tensors(mask["tensors"])
    if mask["version"] == 1:
        return
    if not isinstance(rates, dict) or rates.keys() != frozen.keys():
        raise ValueError('its entry "rates" must have a number for each gene of "frozen"')
    if bad := [name for name, rate in rates.items() if not is_rate(rate)]:
        raise ValueError(f"the rate of the gene {bad[0]!r} is {rates[bad[0]]!r:.60}, not a finite number, 0 or more")
    _check_agreement(frozen, rates)
    if mask.get("head") not in HEADS:
        raise ValueError(f'the head is "fresh", "kept" or null, not {mask["head"]!r:.60}')


def _check_tensors(tensors: Any) -> None:
    """Raises a ValueError unless this is what `write_mask` writes of a checkpoint's tensors; version 1 has no rates of them."""
    entries = tensors if isinstance(tensors, dict) else {}
    names, rates = [entries.get(name) for name in ("frozen", "trainable")], entries.get("rates", {})
    if not all(isinstance(of_kind, list) and all(isinstance(name, str) for name in of_kind) for of_kind in names):
        raise ValueError('its entry "tensors" must have the names of tensors that are "frozen" and "trainable"')
    if not isinstance(rates, dict) or not all(map(is_rate, rates.values())):
        raise ValueError('the "rates" of its "tensors" must be finite numbers, 0 or more')


def _check_agreement(frozen: Mapping[str, bool], rates: Mapping[str, float]) -> None:
    for name, flag in frozen.items():
        if flag != (rates[name] == 0):
            raise ValueError(f"the gene {name!r} {'is frozen' if flag else 'trains'}, but has a rate of {rates[name]}")
