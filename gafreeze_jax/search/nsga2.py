"""Several objectives: who dominates whom, and NSGA-II, as pure functions.

Objectives are [N, M], a row for each member, higher is better. A member with a NaN among its objectives is worst: everyone
without one dominates it. JAX functions compare in float32, where large counts may seem equal: better give those as shares.

Deb, Pratap, Agarwal, Meyarivan (2002): A fast and elitist multiobjective genetic algorithm: NSGA-II. IEEE Transactions on
Evolutionary Computation 6(2).
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from gafreeze_jax.search import genetic
from gafreeze_jax.search.genetic import GA, Info
from gafreeze_jax.space import Space


class ParetoState(NamedTuple):
    """What carries on between generations.

    Attributes:
      population: [P, K] int8, best first by rank and crowding once it has been scored.
      generation: [] int32, how often `tell` was called.
      objectives: [P, M] float32 of the population, NaN before they are told.
    """

    population: Array
    generation: Array
    objectives: Array


def make_nsga2(
    space: Space,
    population_size: int,
    *,
    num_objectives: int = 2,
    initial: np.ndarray | None = None,
    crossover_rate: float = 0.9,
    mutation_rate: float | None = None,
) -> GA[ParetoState]:
    """NSGA-II (Deb et al. 2002): the best of parents and offspring survive, by rank and then by crowding.

    `init` and `ask` are those of `genetic.make_ga` with binary tournaments, but a generation is offspring only: `tell` keeps
    the elite, which need not be asked for again.

    `tell(state, genomes, objectives) -> (state, info)` takes any number of genomes [N, K], with objectives [N, M]. Told again,
    a genome's objectives replace the older ones; of copies in one call the first counts. Equally crowded members are placed by
    the first objective, then by the next ones. `info.best` leads the population: of all members, parents included, it is the
    best in the first objective.

    Args:
      space: of the genomes.
      population_size: P, at least 2.
      num_objectives: M.
      initial, crossover_rate, mutation_rate: as in `genetic.make_ga`.

    Raises:
      ValueError: for arguments out of range.
    """
    if num_objectives < 1:
        raise ValueError(f"num_objectives must be at least 1, got {num_objectives}")
    breeding = genetic.make_ga(
        space,
        population_size,
        initial=initial,
        num_elites=0,
        tournament_size=2,
        crossover_rate=crossover_rate,
        mutation_rate=mutation_rate,
    )

    def init(key: Array) -> ParetoState:
        unknown = jnp.full((population_size, num_objectives), jnp.nan, jnp.float32)
        return ParetoState(*breeding.init(key), unknown)

    def ask(key: Array, state: ParetoState) -> Array:
        return breeding.ask(key, genetic.State(state.population, state.generation))

    def tell(state: ParetoState, genomes: Array, objectives: Array) -> tuple[ParetoState, Info]:
        genomes, objectives = jnp.asarray(genomes), jnp.asarray(objectives, jnp.float32)
        _check_told(genomes, objectives, expected=(len(space.choices), num_objectives))
        genomes = genetic.as_levels(space, genomes)
        order, survivors = _survive(state, genomes, objectives)
        order_told = jnp.argsort(jnp.argsort(order)[: len(genomes)]).astype(jnp.int32)
        info = Info(order_told, survivors.population[0], space.frozen(genomes).mean(0, dtype=jnp.float32))
        return survivors, info

    return GA(init, ask, tell)


def _check_told(genomes: Array, objectives: Array, *, expected: tuple[int, int]) -> None:
    num, (num_genes, num_objectives) = len(genomes), expected
    problems = []
    if genomes.shape != (num, num_genes):
        problems.append(f"expected genomes of {num_genes} genes, got shape {genomes.shape}")
    if objectives.shape != (num, num_objectives):
        problems.append(f"expected objectives of shape {(num, num_objectives)}, got {objectives.shape}")
    if problems:
        raise ValueError("; ".join(problems))


def _survive(state: ParetoState, genomes: Array, objectives: Array) -> tuple[Array, ParetoState]:
    """The order [N + P] of offspring and parents, by rank and crowding, and the best P."""
    genomes = jnp.concatenate([genomes, state.population])
    objectives = jnp.concatenate([objectives, state.objectives])
    objectives = jnp.where(genetic.is_copy(genomes)[:, None], jnp.nan, objectives)
    rank = non_dominated_rank(objectives)
    criteria = [-rank[:, None].astype(jnp.float32), crowding_distance(objectives, rank)[:, None], objectives]
    order = genetic.ranking(genomes, jnp.concatenate(criteria, axis=1))
    kept = order[: len(state.population)]
    return order, ParetoState(genomes[kept], state.generation + 1, objectives[kept])


def non_dominated_rank(objectives: Array) -> Array:
    """The front that each member [N, M] belongs to: [N] int32, 0 = dominated by none, 1 = only by front 0, and so on.

    Deb et al. 2002, section III-A.

    Raises:
      ValueError: for another shape.
    """
    objectives = jnp.asarray(objectives)
    _check_table(objectives)
    is_nan = jnp.isnan(objectives).any(1)
    dominates = (~is_nan[:, None] & is_nan[None, :]) | _dominates(jnp.where(is_nan[:, None], -jnp.inf, objectives))

    def peel(carry: tuple[Array, Array]) -> tuple[Array, Array]:
        left, rank = carry
        left &= (dominates & left[:, None]).any(0)
        return left, rank + left

    start = jnp.ones(len(objectives), bool), jnp.zeros(len(objectives), jnp.int32)
    return jax.lax.while_loop(lambda carry: carry[0].any(), peel, start)[1]


def crowding_distance(objectives: Array, rank: Array) -> Array:
    """How far apart the neighbours of each member are within its front: [N] float32, infinite at the ends.

    Deb et al. 2002, section III-B: the gaps between next lower and next higher member, over the front's extent, summed over
    objectives. Members with equal objectives share a place: the first has its distance, the others 0 (compare Fortin and
    Parizeau 2013, GECCO). Other ties in an objective are ordered by the next ones. An extent is that of finite values, and a
    gap to an infinite one is infinite.

    Args:
      objectives: [N, M].
      rank: [N] int, at least 0, as from `non_dominated_rank`.

    Raises:
      ValueError: for other shapes.
    """
    objectives, rank = jnp.asarray(objectives, jnp.float32), jnp.asarray(rank)
    _check_table(objectives)
    num, num_objectives = objectives.shape
    if rank.shape != (num,):
        raise ValueError(f"expected ranks of shape {(num,)}, got {rank.shape}")

    objectives = jnp.where(jnp.isnan(objectives).any(1)[:, None], -jnp.inf, objectives)
    same_front = rank[:, None] == rank[None, :]
    of_front = same_front[:, :, None] & jnp.isfinite(objectives)[None, :, :]
    extents = jnp.where(of_front, objectives[None], -jnp.inf).max(1) - jnp.where(of_front, objectives[None], jnp.inf).min(1)
    is_copy = genetic.is_copy(jnp.concatenate([objectives, rank[:, None]], axis=1))
    place = jnp.where(is_copy, -1, rank)

    def along(m: int) -> Array:
        """Distances [N] in one objective."""
        columns = jnp.roll(objectives, -m, axis=1)  # it decides, then the next ones
        order = jnp.lexsort([*columns.T[::-1], place])
        values = jnp.pad(columns[order, 0], 1)
        places = jnp.pad(place[order], 1, constant_values=-2)
        is_inner = (places[:-2] == places[1:-1]) & (places[1:-1] == places[2:])
        gap = values[2:] - values[:-2]
        gap = jnp.where(jnp.isnan(gap), 0, gap)  # between equal infinities
        extent = extents[order, m]
        distance = jnp.where(is_inner, gap / jnp.where(extent > 0, extent, 1), jnp.inf)
        return jnp.zeros(num, jnp.float32).at[order].set(distance)

    distance = jnp.stack([along(m) for m in range(num_objectives)]).sum(0)
    return jnp.where(is_copy, 0, distance)


def front(objectives: np.ndarray) -> np.ndarray:
    """Indices of the members [N, M] that none dominates, best in the first objective first.

    Of members with equal objectives the first is kept; those with a NaN are left out.

    >>> front(np.array([[0.8, -3], [0.9, -7], [0.7, -5], [0.8, -3]]))
    array([1, 0])

    Raises:
      ValueError: for another shape.
    """
    objectives = np.asarray(objectives, np.float64)
    _check_table(objectives)
    known = np.flatnonzero(~np.isnan(objectives).any(1))
    values, first = np.unique(objectives[known], axis=0, return_index=True)  # in ascending order
    return known[first[~_dominates(values).any(0)]][::-1]


def _dominates(values):
    """Whether i is nowhere worse than j and somewhere better: [N, N] for values [N, M] without NaN, of JAX or numpy."""
    not_worse = (values[:, None] >= values[None, :]).all(-1)
    return not_worse & ~not_worse.T


def _check_table(objectives) -> None:
    if objectives.ndim != 2 or objectives.shape[1] == 0:
        raise ValueError(f"expected objectives of shape (N, M), got {objectives.shape}")
