"""A genetic algorithm on bit genomes, as pure functions: `init`, then `ask` and `tell` in turn.

The operators work on one individual and are mapped with `jax.vmap`. Fitness is higher-is-better; only its order counts.
"""

import itertools
from collections.abc import Callable
from typing import Concatenate, Generic, Literal, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

S = TypeVar("S")


class State(NamedTuple):
    """What carries on between generations.

    Attributes:
      population: [P, G] bool, best first once it has been scored.
      generation: [] int32, how often `tell` was called.
    """

    population: Array
    generation: Array


class Info(NamedTuple):
    """Diagnostics of one `tell`.

    Attributes:
      order: [N] int32, the genomes told, best first; copies of a better placed genome come last.
      best: [G] bool, the fittest of them.
      frozen_share: [G] float32, share of them that freezes each gene.
    """

    order: Array
    best: Array
    frozen_share: Array


class GA(NamedTuple, Generic[S]):
    """The algorithm: three pure functions that can be jitted, on a state `S`.

    Attributes:
      init: `init(key) -> state`.
      ask: `ask(key, state) -> genomes` [P, G] bool, the next generation: the elite unchanged, then offspring. The first
        generation is the initial population.
      tell: `tell(state, genomes, fitness) -> (state, info)` for genomes [N, G], usually those asked for, but any N >= P
        may be told, of which the best P are kept. Fitness is [N], or [N, K] for K criteria of which a later one only
        breaks ties. NaN counts as minus infinity.
    """

    init: Callable[[Array], S]
    ask: Callable[[Array, S], Array]
    tell: Callable[Concatenate[S, Array, Array, ...], tuple[S, Info]]


def make_ga(
    num_genes: int,
    population_size: int,
    *,
    initial: np.ndarray | None = None,
    num_elites: int | None = None,
    selection: Literal["tournament", "rank"] = "tournament",
    tournament_size: int = 3,
    crossover: Literal["uniform", "one_point"] = "uniform",
    crossover_rate: float = 0.9,
    mutation_rate: float | None = None,
) -> GA[State]:
    """A generational GA with elitism (Holland 1975; Goldberg 1989).

    Args:
      num_genes: G.
      population_size: P, at least 2.
      initial: [K, G] genomes that the initial population holds, as far as there is room; the rest is random, each gene
        frozen with probability 1/2.
      num_elites: how many of the best pass into the next generation unchanged; fewer than P. Default: 2, or 1 of two members.
      selection: "tournament" of `tournament_size` (with replacement), or linear "rank" selection (Baker 1985).
      crossover: "uniform" (Syswerda 1989) or "one_point", with probability `crossover_rate`, else a copy of one parent.
      mutation_rate: probability that a gene flips; 1 / G if None.

    Raises:
      ValueError: for arguments out of range, all of them at once.
    """
    num_elites = min(2, population_size - 1) if num_elites is None else num_elites
    problems = []
    if num_genes < 1:
        problems.append(f"num_genes must be at least 1, got {num_genes}")
    if population_size < 2:
        problems.append(f"the population must have at least 2 members, got {population_size}")
    if not 0 <= num_elites < population_size:
        problems.append(f"num_elites must be at least 0 and below the population's {population_size}, got {num_elites}")
    if tournament_size < 1:
        problems.append(f"tournament_size must be at least 1, got {tournament_size}")
    if not 0 <= crossover_rate <= 1:
        problems.append(f"crossover_rate must be between 0 and 1, got {crossover_rate}")
    if mutation_rate is not None and not 0 <= mutation_rate <= 1:
        problems.append(f"mutation_rate must be between 0 and 1, got {mutation_rate}")
    if selection not in ("tournament", "rank"):
        problems.append(f"selection must be 'tournament' or 'rank', got {selection!r}")
    if crossover not in ("uniform", "one_point"):
        problems.append(f"crossover must be 'uniform' or 'one_point', got {crossover!r}")
    if initial is not None and np.shape(initial)[1:] != (num_genes,):
        problems.append(f"initial must have shape (K, {num_genes}), got {np.shape(initial)}")
    if problems:
        raise ValueError("; ".join(problems))

    rate = 1 / num_genes if mutation_rate is None else mutation_rate
    cross = {"uniform": uniform_crossover, "one_point": one_point_crossover}[crossover]
    given = np.zeros((0, num_genes), bool) if initial is None else np.asarray(initial, bool)[:population_size]

    def init(key: Array) -> State:
        random = jax.random.bernoulli(key, shape=(population_size - len(given), num_genes))
        return State(jnp.concatenate([given, random]), jnp.zeros((), jnp.int32))

    def select(key: Array) -> Array:
        if selection == "tournament":
            return tournament_selection(key, population_size, tournament_size)
        return rank_selection(key, population_size)

    def breed(key: Array, population: Array) -> Array:
        first, second, whether, how, mutation = jax.random.split(key, 5)
        parent, other = population[select(first)], population[select(second)]
        child = jnp.where(jax.random.bernoulli(whether, crossover_rate), cross(how, parent, other), parent)
        return mutate(mutation, child, rate)

    def ask(key: Array, state: State) -> Array:
        keys = jax.random.split(key, population_size - num_elites)
        offspring = jax.vmap(breed, in_axes=(0, None))(keys, state.population)
        bred = jnp.concatenate([state.population[:num_elites], offspring])
        return jnp.where(state.generation == 0, state.population, bred)

    def tell(state: State, genomes: Array, fitness: Array) -> tuple[State, Info]:
        genomes = jnp.asarray(genomes, bool)
        if genomes.ndim != 2 or genomes.shape[0] < population_size or genomes.shape[1] != num_genes:
            raise ValueError(f"expected at least {population_size} genomes of {num_genes} genes, got shape {genomes.shape}")
        if fitness.shape[:1] != genomes.shape[:1]:
            raise ValueError(f"expected one fitness per genome ({genomes.shape[0]}), got shape {fitness.shape}")
        order = ranking(genomes, fitness)
        info = Info(order, genomes[order[0]], genomes.mean(0, dtype=jnp.float32))
        return State(genomes[order[:population_size]], state.generation + 1), info

    return GA(init, ask, tell)


def make_random(num_genes: int, population_size: int) -> GA[State]:
    """Random search as a GA: each gene of every genome is frozen with probability 1/2, whatever has been told."""

    def init(key: Array) -> State:
        return State(jax.random.bernoulli(key, shape=(population_size, num_genes)), jnp.zeros((), jnp.int32))

    def ask(key: Array, state: State) -> Array:
        return jax.random.bernoulli(key, shape=(population_size, num_genes))

    def tell(state: State, genomes: Array, fitness: Array) -> tuple[State, Info]:
        order = ranking(jnp.asarray(genomes, bool), fitness)
        share = genomes.mean(0, dtype=jnp.float32)
        return State(genomes[order[:population_size]], state.generation + 1), Info(order, genomes[order[0]], share)

    return GA(init, ask, tell)


def ranking(genomes: Array, fitness: Array) -> Array:
    """Indices of genomes [N, G] from best to worst: [N] int32. NaN is worst; equal ones keep their order.

    A copy of a better placed genome comes after all others, whatever its fitness, so that a population cannot fill up
    with copies of its elite.

    Args:
      fitness: [N] or [N, K]; later columns break ties of earlier ones.
    """
    fitness = jnp.asarray(fitness).reshape(genomes.shape[0], -1)
    fitness = jnp.where(jnp.isnan(fitness), -jnp.inf, fitness)
    columns = [-fitness[:, k] for k in reversed(range(fitness.shape[1]))]
    by_fitness = jnp.lexsort(columns)
    ranked = genomes[by_fitness]
    same = (ranked[:, None, :] == ranked[None, :, :]).all(-1)
    is_copy = jnp.tril(same, -1).any(-1)
    return by_fitness[jnp.argsort(is_copy, stable=True)].astype(jnp.int32)


def tournament_selection(key: Array, num: int, size: int) -> Array:
    """Index [] of a parent among `num` sorted best-first: the best of `size` drawn with replacement."""
    return jax.random.randint(key, (size,), 0, num).min()


def rank_selection(key: Array, num: int) -> Array:
    """Index [] of a parent among `num` sorted best-first, with probability falling linearly to zero beyond the last."""
    return jax.random.categorical(key, jnp.log(jnp.arange(num, 0, -1, dtype=jnp.float32)))


def uniform_crossover(key: Array, first: Array, second: Array) -> Array:
    """Every gene [G] from either parent with probability 1/2."""
    return jnp.where(jax.random.bernoulli(key, shape=first.shape), first, second)


def one_point_crossover(key: Array, first: Array, second: Array) -> Array:
    """The genes [G] of `first` below a random cut, those of `second` from it on; both give some where G > 1."""
    cut = jax.random.randint(key, (), 1, max(first.shape[0], 2))
    return jnp.where(jnp.arange(first.shape[0]) < cut, first, second)


def mutate(key: Array, genome: Array, rate: float) -> Array:
    """Flips every gene [G] with probability `rate`."""
    return genome ^ jax.random.bernoulli(key, rate, genome.shape)


def all_genomes(num_genes: int) -> np.ndarray:
    """All 2^G genomes [2^G, G] bool, counting up as their texts do."""
    return np.array(list(itertools.product([False, True], repeat=num_genes)))
