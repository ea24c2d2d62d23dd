"""What training with a genome costs, from counts that are made once for all genomes."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np


class StepFlops(NamedTuple):
    """Floating-point operations of a training step, as a function of which genes [G] are frozen.

    A frozen block above the lowest trained one saves the same in all genomes: the gradient of its weights and their update.

    Attributes:
      above: [G + 1], by the index of the lowest trained block: of a step from cached activations that
        trains all blocks from there up.
      spared: [G], FLOPs saved by freezing a block above the lowest trained one.
      kept: [G], saved by caching the activations of a frozen block below it; 0 where they are computed again all the same.
    """

    above: Sequence[float]
    spared: Sequence[float]
    kept: Sequence[float]

    def __call__(self, frozen: np.ndarray) -> float:
        """FLOPs of a step from cached activations."""
        depth = _depth(frozen)
        return self.above[depth] - sum(self.spared[i] for i in range(depth + 1, len(frozen)) if frozen[i])

    def from_scratch(self, frozen: np.ndarray) -> float:
        """FLOPs of a step that also computes the activations of the frozen prefix."""
        return self(frozen) + sum(self.kept[: _depth(frozen)])


def _depth(frozen: np.ndarray) -> int:
    """Index of the lowest trained block; G if there is none."""
    return int(np.append(frozen, False).argmin())
