"""Racing: finalists that are clearly worse than the leader drop out before all seeds are spent on them.

All train with two seeds first (Maron & Moore 1994, "Hoeffding races"; Birattari et al. 2002, "A racing algorithm for
configuring metaheuristics"). Finalists that are behind the leader on the validation split then, by a 98 % interval of the
difference in pairs, train with no further seed and are not scored on the test split. In simulations (tests/runs/test_racing.py)
a baseline as good as the leader drops out in less than 1 % of races, and the verdict's error rates stay as `verdict.judge`
states them, or below 4 % where the better of two leaders that are equally good is named and seeds matter much.
"""

from collections.abc import Sequence

import numpy as np

from gafreeze_jax.engine.cohort import Member
from gafreeze_jax.intervals import Interval, leads
from gafreeze_jax.metrics import Metric

FIRST_SEEDS = 2
CONFIDENCE = 0.98


def by_row(contributions: np.ndarray, rows: np.ndarray | None) -> np.ndarray:
    """Contributions [S, E] as means over the rows [E] that examples belong to: [S, number of rows]; unchanged without rows."""
    if rows is None:
        return contributions
    counts = np.bincount(rows)
    return np.stack([np.bincount(rows, of_member) / counts for of_member in contributions])


def race(finalists: Sequence[Sequence[Member]], metric: Metric, rows: np.ndarray | None = None) -> list[Interval | None]:
    """By how much each finalist's validation score is lower than the first one's, if it clearly is, else None.

    Args:
      finalists: the members of each, of the same seeds.
      rows: as in `Source`, of the validation split.
    """
    of_examples = [np.stack([metric.contributions(member.values) for member in members]) for members in finalists]
    scores = np.stack([by_row(of_finalist, rows) for of_finalist in of_examples])
    behind: list[Interval | None] = [None] * len(finalists)
    finite = np.flatnonzero(np.isfinite(scores).all((1, 2)))  # the others have diverged
    if 0 in finite and min(len(finite), *scores.shape[1:]) > 1:
        for place, lead in zip(finite, leads(scores[finite], CONFIDENCE), strict=True):
            behind[place] = lead if lead.low > 0 else None
    return behind
