"""Early stopping: members are scored at rungs, and only the best train on to the next.

Successive halving (Jamieson & Talwalkar 2016), asynchronous like that of Li et al. (2020): a rung remembers all generations.
"""

import itertools
import math
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from gafreeze_jax.space import Genome

SHARE = 0.6  # of the genomes scored at a rung that may continue


class Settings(NamedTuple):
    """How to search, and when to stop.

    Attributes:
      rungs: training steps after which members are scored; the last is a full evaluation. With one rung none is stopped early.
      seed: of all evaluations.
      screen: whether a surrogate may pick among offspring.
      generations: at most.
      evaluations: at most, in training steps of full evaluations; a stopped evaluation counts for the steps that it took.
      seconds: of evaluations, after which no generation begins.
      patience: generations without a fitter genome after which the search stops; None = no limit.
    """

    rungs: tuple[int, ...]
    seed: int = 0
    screen: bool = True
    generations: float = math.inf
    evaluations: float = math.inf
    seconds: float = math.inf
    patience: int | None = None

    @property
    def steps_of_genome(self) -> float:
        """Training steps that a new genome takes, about."""
        first, *lengths = np.diff([0, *self.rungs])
        return float(first + sum(SHARE**rung * length for rung, length in enumerate(lengths, start=1)))

    def num_genomes(self, num_initial: int, population_size: int) -> float:
        """How many genomes can be evaluated, about, if `num_initial` of them are in any case."""
        by_steps = self.evaluations * self.rungs[-1] / self.steps_of_genome
        return max(num_initial, min(by_steps, self.generations * population_size))

    def enumerates(self, num_all: int, num_initial: int, population_size: int) -> bool:
        """Whether all genomes are evaluated instead of a search: if none is stopped early, and all are within the limits."""
        return len(self.rungs) == 1 and num_all <= self.num_genomes(num_initial, population_size) < math.inf


def promoted(
    ranked: Sequence[Genome],
    new: Collection[Genome],
    *,
    groups: Iterable[Collection[Genome]],
    allowed: Callable[[Genome], bool],
    has_leader: bool,
    steps_left: float,
    to_next: int,
    to_last: int,
) -> list[Genome]:
    """The new members that train on to the next rung, as far as the budget allows.

    A member continues if it ranks in the top 60 % of all allowed genomes scored at this rung. The best of each group always
    continues, and so does one allowed genome if none has been fully trained yet.

    Args:
      ranked: everything scored at this rung, the new members included, the fittest first.
      new: members that stand at this rung.
      groups: genomes of each group.
      allowed: whether a genome may lead.
      has_leader: whether an allowed genome has been fully trained.
      steps_left: training steps left in the budget.
      to_next, to_last: training steps from this rung to the next one and to the last.
    """
    best_of_groups = (next((genome for genome in ranked if genome in group), None) for group in groups)
    protected = list(dict.fromkeys(genome for genome in best_of_groups if genome is not None and genome in new))
    candidates = [genome for genome in ranked if allowed(genome)]
    top = [genome for genome in candidates[: math.ceil(SHARE * len(candidates))] if genome in new]
    affordable = (steps_left - len(protected) * to_last) / to_next
    num_others = max(0, int(min(len(top), affordable)))
    if not has_leader and not any(map(allowed, protected)):
        num_others = max(1, num_others)
    return list(dict.fromkeys([*protected, *top]))[: len(protected) + num_others]


class Correlation(NamedTuple):
    """Spearman's rank correlation of scores at one rung with those at the next, over the genomes that passed both."""

    steps: tuple[int, int]
    value: float
    num: int


def correlations(scores: Mapping[int, Mapping[Genome, float]]) -> tuple[Correlation, ...]:
    """Rank correlations between neighbouring rungs, where they are defined.

    Args:
      scores: by rung and genome; -inf if it diverged.
    """
    defined = []
    for earlier, later in itertools.pairwise(sorted(scores)):
        both = sorted(scores[earlier].keys() & scores[later].keys())
        first, second = ([scores[rung][genome] for genome in both] for rung in (earlier, later))
        if len(both) > 2 and min(len(set(first)), len(set(second))) > 1:
            from scipy.stats import spearmanr  # takes half a second

            result: Any = spearmanr(first, second)
            defined.append(Correlation((earlier, later), float(result.statistic), len(both)))
    return tuple(defined)


def estimates(scores: Mapping[int, Mapping[Genome, float]]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """What is known of each genome's score after all steps: genomes [N, K], estimates [N], and their weights [N].

    A score at an earlier rung is raised by the median gain of those that trained on from there, and weighted by its share of
    the steps.

    Args:
      scores: by rung, the last being all steps, and genome; -inf if it diverged.
    """
    last = max(scores)
    known: dict[Genome, tuple[float, float]] = {}
    for rung, at_rung in sorted(scores.items()):
        gains = [scores[last][genome] - at_rung[genome] for genome in at_rung.keys() & scores[last].keys()]
        gain = float(np.median([gain for gain in gains if math.isfinite(gain)] or [0.0]))
        known |= {genome: (score + gain, rung / last) for genome, score in at_rung.items()}
    values = np.array(list(known.values()))
    return np.array(list(known), np.int8), values[:, 0], values[:, 1]
