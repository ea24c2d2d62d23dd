"""A network that was cut, as a table."""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import numpy as np

from gafreeze_jax.engine import costs
from gafreeze_jax.engine.network import Network, num_bytes
from gafreeze_jax.models.cutting.pieces import Piece
from gafreeze_jax.models.cutting.program import shaped

TITLES = ("block", "equations", "parameters", "FLOPs", "bytes up", "code")


class BlockCosts(NamedTuple):
    """What a block computes in inference mode for one example; all numbers are 0 if its gene was not cut off.

    Attributes:
      equations, parameters, flops: their numbers.
      bytes_up: that go to the block above.
      code: whose compiled code it has, in words.
    """

    block: str
    equations: int = 0
    parameters: int = 0
    flops: float = 0.0
    bytes_up: int = 0
    code: str = "in the head"


def explain(network: Network) -> str:
    """A table of the blocks of a network from `cut`: what each computes in inference mode for one example.

    The columns are the block's gene, the number of its equations, of its parameters and of its floating-point operations, bytes
    that go to the block above, and the block whose compiled code it shares. A gene that was not cut off has no block.
    Operations of a loop of unknown length count once.

    Raises:
      ValueError: if the network does not come from `cut`.
    """
    rows = [
        (row.block, *(f"{number:,.0f}" if row.equations else "" for number in row[1:-1]), row.code)
        for row in costs_of_blocks(network)
    ]
    return _aligned([TITLES, *rows])


def outputs_of(network: Network) -> jax.ShapeDtypeStruct:
    """The outputs of a network from `cut`, for a batch of some size."""
    head = network.head
    assert isinstance(head, Piece)
    return shaped(head.slice(head.size, False).closed.jaxpr.outvars[0])


def costs_of_blocks(network: Network) -> list[BlockCosts]:
    """The rows of `explain`: the blocks, lowest first, and the head.

    Raises:
      ValueError: if the network does not come from `cut`.
    """
    head = network.head
    if not isinstance(head, Piece):
        raise ValueError("explain() takes a network from cut()")
    rows: list[BlockCosts] = []
    first: dict[Piece, BlockCosts] = {}
    for name, piece in zip(network.names, (block.apply for block in network.blocks), strict=True):
        if not isinstance(piece, Piece):
            rows.append(BlockCosts(name))
        elif piece in first:
            rows.append(first[piece]._replace(block=name, code=f"as {first[piece].block}"))
        else:
            rows.append(first.setdefault(piece, _costs(name, piece, "its own")))
    shared = ", ".join(name for name in network.shared if network.blocks[network.names.index(name)].apply is not None)
    return [*rows, _costs("head", head, f"reads {shared}" if shared else "its own")]


def _costs(name: str, piece: Piece, code: str) -> BlockCosts:
    closed, *_ = piece.slice(piece.size, False)
    flops = costs.flops_of_piece(closed) / piece.size
    crossing = num_bytes(closed.out_avals) // piece.size
    return BlockCosts(name, len(closed.jaxpr.eqns), piece.num_parameters, flops, crossing, code)


def _aligned(rows: Sequence[Sequence[str]]) -> str:
    """First and last column to the left, the others to the right."""
    widths = np.max([[len(cell) for cell in row] for row in rows], axis=0)
    lines = []
    for first, *middle, last in rows:
        numbers = (cell.rjust(width) for cell, width in zip(middle, widths[1:-1], strict=True))
        lines.append("  ".join([first.ljust(widths[0]), *numbers, last]).rstrip())
    return "\n".join(lines)
