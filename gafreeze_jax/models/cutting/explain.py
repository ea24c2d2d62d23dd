"""A network that was cut, as a table."""

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.extend.core import jaxpr_as_fun

from gafreeze_jax.engine.network import Network
from gafreeze_jax.models.cutting.pieces import Piece

TITLES = ("block", "equations", "parameters", "FLOPs", "bytes up", "code")


def explain(network: Network) -> str:
    """A table of the blocks of a network from `cut`: what each computes in inference mode for one example.

    The columns are the block's gene, the number of its equations, of its parameters and of its floating-point operations, bytes
    that go to the block above, and the block whose compiled code it shares. A gene that was not cut off has no block.

    Raises:
      ValueError: if the network does not come from `cut`.
    """
    head = network.head
    if not isinstance(head, Piece):
        raise ValueError("explain() takes a network from cut()")
    rows: list[tuple[str, ...]] = [TITLES]
    first: dict[Any, str] = {}
    for block in network.blocks:
        if isinstance(block.apply, Piece):
            name = first.setdefault(block.apply, block.name)
            rows.append((block.name, *_costs(block.apply), "its own" if name == block.name else f"as {name}"))
        else:
            rows.append((block.name, "", "", "", "", "in the head"))
    shared = ", ".join(name for name in network.shared if network.blocks[network.names.index(name)].apply is not None)
    rows.append(("head", *_costs(head), f"reads {shared}" if shared else "its own"))
    return _aligned(rows)


def _costs(piece: Piece) -> tuple[str, ...]:
    """Equations, parameters, FLOPs and bytes."""
    closed, *_ = piece.slice(piece.size, False)
    shapes = [jax.ShapeDtypeStruct(var.aval.shape, var.aval.dtype) for var in closed.jaxpr.invars]
    analysis: Any = jax.jit(jaxpr_as_fun(closed)).lower(*shapes).cost_analysis()
    flops = analysis.get("flops", 0.0) / piece.size
    crossing = sum(atom.aval.size * atom.aval.dtype.itemsize for atom in closed.jaxpr.outvars) // piece.size
    return f"{len(closed.jaxpr.eqns):,}", f"{piece.num_parameters:,}", f"{flops:,.0f}", f"{crossing:,}"


def _aligned(rows: Sequence[Sequence[str]]) -> str:
    """First and last column to the left, the others to the right."""
    widths = np.max([[len(cell) for cell in row] for row in rows], axis=0)
    lines = []
    for first, *middle, last in rows:
        numbers = (cell.rjust(width) for cell, width in zip(middle, widths[1:-1], strict=True))
        lines.append("  ".join([first.ljust(widths[0]), *numbers, last]).rstrip())
    return "\n".join(lines)
