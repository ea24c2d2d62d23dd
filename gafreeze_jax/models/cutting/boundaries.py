"""Where to cut: the values that go from one block to the next, with the fewest bytes.

Equations that read the parameters of a gene belong into its block, together with all that leads to them. The others, between
the last of one block and the first of the next, may be computed on either side: a minimum cut of the graph of equations
decides (Ford & Fulkerson 1956). For instance, the mean of a layer normalisation stays out of the block below, whose output is
needed anyway.
"""

from collections.abc import Mapping
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jax.extend.core import Literal, Var

from gafreeze_jax.models.cutting.batch import BatchAxis
from gafreeze_jax.models.cutting.levels import Levels, place_in_code
from gafreeze_jax.models.cutting.program import FlatProgram, shaped

NEVER = 2**26  # capacity of what cannot be cut; 32 of them still are an int32


class Crossing(NamedTuple):
    """A value that goes from a block to the next.

    Attributes:
      equation, result: index of its equation, and of the value among that equation's results.
      batch: where it has the examples.
    """

    equation: int
    result: int
    batch: BatchAxis


class Boundaries(NamedTuple):
    """Where a program is cut.

    Attributes:
      above: the values that leave each block, from the lowest; up to the last block that can be cut off.
      why: why there are no more, or None.
    """

    above: list[tuple[Crossing, ...]]
    why: str | None


def find(program: FlatProgram, levels: Levels, axes: Mapping[Var, BatchAxis], num_genes: int) -> Boundaries:
    used = max((level for level in levels.of.values() if level <= num_genes), default=0)
    graph = _Graph(program, levels, axes)
    below: set[int] = set()
    above: list[tuple[Crossing, ...]] = []
    for level in range(1, used + 1):
        below, crossing = graph.cut(level, below)
        if not crossing:
            return Boundaries(above, "the function does not use the genes in their order")
        for var in crossing:
            if graph.bytes(var) == NEVER:
                what = f"{place_in_code(program.equations[graph.producer[var]])} gives {var.aval.str_short()}"
                return Boundaries(above, f"{what}, and only floats with a row per example can go from block to block")
        above.append(tuple(graph.crossing(var) for var in crossing))
    return Boundaries(above, None)


class _Graph:
    """Equations whose results depend on parameters and inputs, by their places in the program."""

    def __init__(self, program: FlatProgram, levels: Levels, axes: Mapping[Var, BatchAxis]):
        self.program, self.levels = program, levels
        self.axes = axes
        self.producer: dict[Var, int] = {}
        self.consumers: dict[Var, list[int]] = {}
        self.level: dict[int, int] = {}
        last = len(program.equations)  # stands for whoever reads the outputs
        for place, equation in enumerate(program.equations):
            if not any(var in levels.of for var in equation.outvars):
                continue
            self.level[place] = levels.of[equation.outvars[0]]
            for var in equation.outvars:
                self.producer[var], self.consumers[var] = place, []
            for var in self.operands(place):
                self.consumers[var].append(place)
        for atom in program.outputs:
            if not isinstance(atom, Literal) and atom in self.consumers:
                self.consumers[atom].append(last)

    def operands(self, place: int) -> set[Var]:
        atoms = self.program.equations[place].invars
        return {atom for atom in atoms if not isinstance(atom, Literal) and atom in self.producer}

    def with_all_below(self, places: set[int]) -> set[int]:
        """Equations and all that lead to them."""
        closed = set(places)
        for place in sorted(self.level, reverse=True):
            if place in closed:
                closed |= {self.producer[var] for var in self.operands(place)}
        return closed

    def bytes(self, var: Var) -> int:
        """Of one example; `NEVER` for values that have no batch axis, or no gradient."""
        aval = shaped(var)
        if var not in self.axes or not jnp.issubdtype(aval.dtype, jnp.inexact):
            return NEVER
        num_rows = aval.shape[self.axes[var].axis] // self.axes[var].times
        return min(NEVER - 1, aval.size // num_rows * aval.dtype.itemsize)

    def crossing(self, var: Var) -> Crossing:
        place = self.producer[var]
        return Crossing(place, list(self.program.equations[place].outvars).index(var), self.axes[var])

    def cut(self, level: int, below: set[int]) -> tuple[set[int], list[Var]]:
        """Cuts above a gene.

        Args:
          below: equations below the last cut.

        Returns:
          The equations below this cut, and the variables that cross it.
        """
        reachable = {place for place, of_place in self.level.items() if of_place <= level}
        anchored = {place for place in reachable if any(read <= level for read in self.levels.reads[place])}
        fixed = self.with_all_below(anchored | below)
        free = sorted(reachable - fixed)
        kept = fixed | self._minimum(free, fixed)
        crossing = [
            var
            for var, place in self.producer.items()
            if place in kept and any(consumer not in kept for consumer in self.consumers[var])
        ]
        return kept, crossing

    def _minimum(self, free: list[int], fixed: set[int]) -> set[int]:
        """Which free equations belong below the cut; as many as possible among equally good answers."""
        if not free:
            return set()
        from scipy.sparse import csr_array  # part of what jax needs; takes a quarter of a second
        from scipy.sparse.csgraph import breadth_first_order, maximum_flow

        among = set(free)
        values = [
            var
            for var, place in self.producer.items()
            if place in among or (place in fixed and among.intersection(self.consumers[var]))
        ]
        source, sink = 0, 1
        node = {place: 2 + i for i, place in enumerate(free)}
        edges: dict[tuple[int, int], int] = {}
        for i, var in enumerate(values):
            value, producer = 2 + len(free) + i, node.get(self.producer[var], source)
            edges[producer, value] = self.bytes(var)
            for consumer in self.consumers[var]:
                if consumer in fixed:
                    continue
                edges[value, node.get(consumer, sink)] = NEVER
                if consumer in among and producer != source:
                    edges[node[consumer], producer] = NEVER  # who is below the cut has its operands below it
        size = 2 + len(free) + len(values)
        rows, columns = np.array(list(edges), np.int32).T
        capacity = csr_array((np.array(list(edges.values()), np.int32), (rows, columns)), shape=(size, size))
        rest = csr_array(capacity - maximum_flow(capacity, source, sink).flow)
        rest.eliminate_zeros()
        above = set(breadth_first_order(csr_array(rest.T), sink, return_predecessors=False).tolist())
        return {place for place in free if node[place] not in above}
