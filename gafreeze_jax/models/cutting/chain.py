"""A function's blocks and head, in inference and training mode together."""

import itertools
from collections.abc import Sequence
from typing import NamedTuple

from jax.extend.core import Literal

from gafreeze_jax.listing import listed
from gafreeze_jax.masking.genes import Genes
from gafreeze_jax.models.cutting import batch, boundaries, levels, mixing
from gafreeze_jax.models.cutting.boundaries import Crossing
from gafreeze_jax.models.cutting.pieces import Piece, Traced, make_slice, value
from gafreeze_jax.models.cutting.program import HEAD, FlatProgram


class Cut(NamedTuple):
    """A function as a chain.

    Attributes:
      blocks: of the lowest genes, as many as could be cut off; equal ones are the same object.
      head: what is left.
      why: why the gene above the last block is left to the head; None if there is none, or if the function does not use it.
    """

    blocks: list[Piece]
    head: Piece
    why: str | None


class _Mode(NamedTuple):
    """The function in inference or in training mode, and where it may be cut.

    Attributes:
      above: the values that leave each block.
      why: for each gene that is left to the head, the reason.
      mixing: places in the user's code that mix the examples of a batch in inference mode.
    """

    program: FlatProgram
    above: list[tuple[Crossing, ...]]
    why: dict[str, str]
    mixing: frozenset[str] = frozenset()


def find(traced: Traced, genes: Genes, size: int, training_too: bool) -> Cut:
    """Cuts a function.

    Args:
      size: of the batches that are traced; those of `size` rows are compared with those of `size` // 2 more.
    """
    modes = [_find_mode(traced, genes.names, size)]
    if training_too:
        modes.append(_find_mode(traced, genes.names, size, modes[0].mixing))
    num, why = _agree(modes, genes.names)
    while True:
        pieces, head = _make_pieces(traced, genes, modes, num, size)
        lower, draw = _shared_draw([*pieces, head], modes, size)
        if draw is None:
            break
        num, why = lower, dict.fromkeys(genes.names[lower:], draw) | why
    equal = {piece.signature: piece for piece in pieces[::-1]}
    blocks = [equal[piece.signature] for piece in pieces]
    return Cut(blocks, head, next((why[name] for name in genes.names[num:] if name in why), None))


def _find_mode(traced: Traced, names: Sequence[str], size: int, mixing_in_inference: frozenset[str] | None = None) -> _Mode:
    """Inference mode; or, given what mixes examples there, training mode, of which nothing is kept for other batches."""
    training = mixing_in_inference is not None
    sizes = (size, size + size // 2)
    program, larger = (traced.program(rows, training) for rows in sizes)
    axes = batch.find(program, larger, sizes)
    if axes is None:
        reason = f"batches of {sizes[0]} and of {sizes[1]} rows differ from {_first_difference(program, larger)} on"
        return _Mode(program, [], dict.fromkeys(names, reason))
    if mixing_in_inference is None:
        mixed = mixing.find(program, larger, size)
        mixing_in_inference = frozenset(levels.place_in_code(program.equations[place]) for place in mixed)
    else:
        places = enumerate(map(levels.place_in_code, program.equations if mixing_in_inference else ()))
        mixed = {place for place, text in places if text in mixing_in_inference}
    of = levels.find(program, names, mixed)
    above, obstacle = boundaries.find(program, of, axes, len(names))
    why = dict.fromkeys(names[len(above) :] if obstacle else (), obstacle or "") | of.why
    for place, name in enumerate(names[: len(above)], start=1):
        new = [atom for atom in program.statistics.get(name, ()) if not isinstance(atom, Literal)]
        if any(of.of.get(atom, 0) > place for atom in new):
            above = above[: place - 1]
            why |= dict.fromkeys(names[place - 1 :], f"the running statistics of {name!r} depend on genes above it")
            break
    return _Mode(program, above, why, mixing_in_inference)


def _agree(modes: Sequence[_Mode], names: Sequence[str]) -> tuple[int, dict[str, str]]:
    """How many blocks all modes have, and why the others are left to the head."""
    why = {name: reason for mode in modes[::-1] for name, reason in mode.why.items()}
    num = 0
    for name, *of_modes in zip(names, *(mode.above for mode in modes), strict=False):
        shapes = [
            [(value(mode.program, crossing).aval.str_short(), crossing.batch) for crossing in above]
            for mode, above in zip(modes, of_modes, strict=True)
        ]
        if any(shape != shapes[0] for shape in shapes):
            texts = [_listed_places(mode.program, above) for mode, above in zip(modes, of_modes, strict=True)]
            reason = f"different values leave {name!r} in inference mode, {texts[0]}, and in training mode, {texts[-1]}"
            return num, dict.fromkeys(names[num:], reason)
        num += 1
    return num, why


def _first_difference(program: FlatProgram, other: FlatProgram) -> str:
    """Where two programs first have different operations."""
    pairs = itertools.zip_longest(program.operations, other.operations)
    place = next(place for place, (ours, theirs) in enumerate(pairs) if ours != theirs)
    return levels.place_in_code((program if place < len(program.equations) else other).equations[place])


def _listed_places(program: FlatProgram, above: tuple[Crossing, ...]) -> str:
    return listed(levels.place_in_code(program.equations[crossing.equation]) for crossing in above)


def _make_pieces(traced: Traced, genes: Genes, modes: Sequence[_Mode], num: int, size: int) -> tuple[list[Piece], Piece]:
    boundaries_of_modes = [[None, *mode.above[:num]] for mode in modes]
    pieces = []
    for place, name in enumerate(genes.names[:num]):
        below, above = ([of_mode[place + i] for of_mode in boundaries_of_modes] for i in range(2))
        pieces.append(Piece(traced, names=[name], below=below, above=above, size=size))
    top = [of_mode[-1] for of_mode in boundaries_of_modes]
    read = set().union(*(_genes_read(mode.program, above) for mode, above in zip(modes, top, strict=True)))
    shared = [name for place, name in enumerate(genes.names) if place >= num or name in read]
    return pieces, Piece(traced, names=[HEAD, *shared], below=top, above=[None] * len(modes), size=size)


def _genes_read(program: FlatProgram, below: tuple[Crossing, ...] | None) -> set[str]:
    """Genes whose parameters the head reads."""
    entering = [value(program, crossing) for crossing in below or ()]
    variables = {var: name for name, leaves in program.parameters.items() for var in leaves.values()}
    read = make_slice(program, [*variables, *entering, *program.inputs], program.outputs).read
    return {variables[var] for var in read if var in variables} - {HEAD}


def _shared_draw(pieces: Sequence[Piece], modes: Sequence[_Mode], size: int) -> tuple[int, str | None]:
    """The lowest of two pieces that use the same random numbers, and where these are drawn."""
    if len(modes) == 1:
        return 0, None
    draws = [piece.slice(size, True).draws for piece in pieces]
    for (lower, ours), (_, theirs) in itertools.combinations(enumerate(draws), 2):
        if common := ours & theirs:
            place = levels.place_in_code(modes[1].program.equations[min(common)])
            return lower, f"{place} draws random numbers for several genes"
    return 0, None
