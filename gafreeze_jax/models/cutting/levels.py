"""How far up a chain of genes each equation belongs.

Genes are numbered 1 to G from the bottom; the head is G + 1. An equation belongs at the highest gene that its values depend on.
A block has the parameters of its own gene only, so an equation that also reads those of a lower gene (a tied output layer, a
layer that is used twice) belongs in the head, which may read them all, and so does everything above it. What makes the
examples of a batch depend on each other belongs there, too, as nothing above it can be kept for other batches.
"""

import os
from collections.abc import Collection, Sequence
from typing import NamedTuple

from jax.extend import source_info_util
from jax.extend.core import JaxprEqn, Literal, Var

from gafreeze_jax.models.cutting.program import HEAD, FlatProgram

LIKE_BATCH_NORM = "as batch normalisation does in training mode"


class Levels(NamedTuple):
    """Where the equations of a program belong.

    Attributes:
      of: the level of each variable that depends on both parameters and inputs. Others have none: what depends on parameters
        alone, or on inputs alone, is computed by each block that reads it.
      reads: for each equation of those variables, the levels of the genes that it reads.
      why: for each gene that is left to the head, the reason.
    """

    of: dict[Var, int]
    reads: list[frozenset[int]]
    why: dict[str, str]


def find(program: FlatProgram, names: Sequence[str], mixing: Collection[int] = ()) -> Levels:
    """Levels for a chain of genes.

    Args:
      names: of the genes, lowest first.
      mixing: places of the equations that mix the examples of a batch; see `mixing.find`.
    """
    number = {name: place for place, name in enumerate((*names, HEAD), start=1)}
    head = number[HEAD]
    of: dict[Var, int] = {}
    reads: list[frozenset[int]] = []
    why: dict[str, str] = {}
    reasons: dict[Var, str] = {}
    for place, equation in enumerate(program.equations):
        read, below = operands(program, equation)
        reads.append(frozenset(number[name] for name in read))
        reason = next((reasons[var] for var in below if var in reasons), None)
        if place in mixing and reason is None:
            reason = f"{place_in_code(equation)} makes the examples of a batch depend on each other, {LIKE_BATCH_NORM}"
        if below and (read or any(var in of for var in below)):
            lowest = max((of.get(var, 0) for var in below), default=0)
            level = max(lowest, *reads[-1], 0) if reason is None else head
            if level == head and reason is None:
                reason = f"{place_in_code(equation)} reads parameters that always train"
            elif level < head and min(reads[-1], default=level) < level:
                again = names[min(reads[-1]) - 1]
                reason = f"{place_in_code(equation)} reads {again!r} above {names[level - 1]!r}"
                level = head
            for name in read:
                if reason and number[name] == max(reads[-1]):
                    why.setdefault(name, reason)
            of |= dict.fromkeys(equation.outvars, level)
        if reason is not None:
            reasons |= dict.fromkeys(equation.outvars, reason)
    return Levels(of, reads, why)


def operands(program: FlatProgram, equation: JaxprEqn) -> tuple[set[str], list[Var]]:
    """Names of the genes of which an equation reads parameters, and the operands that depend on the inputs."""
    atoms = [atom for atom in equation.invars if not isinstance(atom, Literal)]
    below = [atom for atom in atoms if program.origins[atom].inputs]
    return set().union(*(program.origin(atom).genes for atom in atoms if not program.origins[atom].inputs)), below


def order_of_use(program: FlatProgram) -> list[str]:
    """Names of the genes in the order in which the function first brings them together with its inputs; others come last."""
    order: dict[str, None] = {}
    for equation in program.equations:
        read, below = operands(program, equation)
        if below:
            order |= dict.fromkeys(name for name in program.parameters if name in read)
    return [name for name in (order | dict.fromkeys(program.parameters)) if name != HEAD]


def place_in_code(equation: JaxprEqn) -> str:
    """An equation and its line in the user's code."""
    frames = source_info_util.summarize(equation.source_info, num_frames=100).split("\n")[::-1]
    line = next((frame for frame in frames if "site-packages" not in frame), frames[0])
    line = os.path.relpath(line) if line.startswith(os.getcwd() + os.sep) else line
    return f"{equation.primitive.name} at {line}" if line else equation.primitive.name
