"""A genetic algorithm as pure functions: `init`, then `ask` and `tell` in turn.

The operators work on one individual and are mapped with `jax.vmap`. Fitness is higher-is-better; only its order counts.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Concatenate, Generic, NamedTuple, TypeVar

import jax
import jax.core
import jax.numpy as jnp
import numpy as np
from jax import Array

from gafreeze_jax.space import Space

S = TypeVar("S")


class State(NamedTuple):
    """What carries on between generations.

    Attributes:
      population: [P, K] int8, best first once it has been scored.
      generation: [] int32, how often `tell` was called.
    """

    population: Array
    generation: Array


class Info(NamedTuple):
    """Diagnostics of one `tell`.

    Attributes:
      order: [N] int32, the genomes told, best first; copies of a better placed genome come last.
      best: [K] int8, the fittest of them.
      frozen_share: [G] float32, share of them that freezes each gene.
    """

    order: Array
    best: Array
    frozen_share: Array


class GA(NamedTuple, Generic[S]):
    """The algorithm: three pure functions that can be jitted, on a state `S`.

    Attributes:
      init: `init(key) -> state`.
      ask: `ask(key, state) -> genomes` [P, K] int8, the next generation: the elite unchanged, then offspring. The first
        generation is the initial population.
      tell: `tell(state, genomes, fitness) -> (state, info)` for genomes [N, K], usually those asked for; arrays or lists.
        Any N >= P may be told; the best P are kept. Fitness is [N], or [N, K] for K criteria of which a later one only breaks
        ties. NaN counts as minus infinity.
    """

    init: Callable[[Array], S]
    ask: Callable[[Array, S], Array]
    tell: Callable[Concatenate[S, Array, Array, ...], tuple[S, Info]]


def make_ga(
    space: Space,
    population_size: int,
    *,
    initial: np.ndarray | Sequence[Sequence[int]] | None = None,
    num_elites: int | None = None,
    tournament_size: int = 3,
    crossover_rate: float = 0.9,
    mutation_rate: float | None = None,
) -> GA[State]:
    """A generational GA with elitism (Holland 1975; Goldberg 1989), tournaments and uniform crossover (Syswerda 1989).

    Args:
      space: of the genomes.
      population_size: P, at least 2.
      initial: [N, K] genomes of the initial population, as far as there is room. The others are random.
      num_elites: how many of the best pass into the next generation unchanged; fewer than P. Default: 2, or 1 of two members.
      tournament_size: how many members, drawn with replacement, compete to be a parent.
      crossover_rate: probability that offspring mix two parents; otherwise they are a copy of the first.
      mutation_rate: probability that a gene gets the next higher or lower level; 1 / K if None.

    Raises:
      ValueError: for arguments out of range, all of them at once.

    >>> ga = make_ga(Space(["layer_0", "layer_1", "layer_2"]), population_size=4)
    >>> key_init, key_ask = jax.random.split(jax.random.key(0))
    >>> state = ga.init(key_init)
    >>> genomes = ga.ask(key_ask, state)
    >>> state, info = ga.tell(state, genomes, fitness=genomes.sum(axis=1))
    """
    num_elites = min(2, population_size - 1) if num_elites is None else num_elites
    mutation_rate = 1 / len(space.choices) if mutation_rate is None else mutation_rate
    _check_options(
        space,
        population_size,
        initial=initial,
        num_elites=num_elites,
        tournament_size=tournament_size,
        rates={"crossover_rate": crossover_rate, "mutation_rate": mutation_rate},
    )

    def init(key: Array) -> State:
        given = space.stack(() if initial is None else initial)[:population_size]
        return State(jnp.concatenate([given, space.draw(key, population_size - len(given))]), jnp.zeros((), jnp.int32))

    def breed(key: Array, population: Array) -> Array:
        *draws, whether, how, mutation = jax.random.split(key, 5)
        parents = [population[tournament_selection(draw, population_size, tournament_size)] for draw in draws]
        mixed = jnp.where(jax.random.bernoulli(whether, crossover_rate), uniform_crossover(how, *parents), parents[0])
        return space.mutate(mutation, mixed, mutation_rate)

    def ask(key: Array, state: State) -> Array:
        keys, elite = jax.random.split(key, population_size - num_elites), state.population[:num_elites]
        bred = jnp.concatenate([elite, jax.vmap(breed, in_axes=(0, None))(keys, state.population)])
        return jnp.where(state.generation == 0, state.population, bred)

    def tell(state: State, genomes: Array, fitness: Array) -> tuple[State, Info]:
        return _keep_best(space, population_size, state, genomes, fitness)

    return GA(init, ask, tell)


def _check_options(
    space: Space,
    population_size: int,
    *,
    initial: np.ndarray | Sequence[Sequence[int]] | None,
    num_elites: int,
    tournament_size: int,
    rates: Mapping[str, float],
) -> None:
    problems = []
    if population_size < 2:
        problems.append(f"the population must have at least 2 members, got {population_size}")
    if not 0 <= num_elites < population_size:
        problems.append(f"num_elites must be at least 0 and below the population's {population_size}, got {num_elites}")
    if tournament_size < 1:
        problems.append(f"tournament_size must be at least 1, got {tournament_size}")
    for name, rate in rates.items():
        if not 0 <= rate <= 1:
            problems.append(f"{name} must be between 0 and 1, got {rate}")
    if initial is not None and np.shape(initial)[1:] != np.shape(space.choices):
        problems.append(f"initial must have shape (N, {len(space.choices)}), got {np.shape(initial)}")
    elif initial is not None and not _are_levels(space, initial):
        problems.append(f"initial must have levels from 0 to {len(space.levels) - 1}")
    if problems:
        raise ValueError("; ".join(problems))


def _are_levels(space: Space, genomes: Any) -> bool:
    """Whether genomes have levels of a space, as far as they are known: traced ones are taken as they are."""
    return isinstance(genomes, jax.core.Tracer) or space.contains(np.asarray(genomes))


def make_random(space: Space, population_size: int) -> GA[State]:
    """Random search as a GA: all genomes are equally likely, whatever their fitness."""

    def init(key: Array) -> State:
        return State(space.draw(key, population_size), jnp.zeros((), jnp.int32))

    def ask(key: Array, state: State) -> Array:
        return space.draw(key, population_size)

    def tell(state: State, genomes: Array, fitness: Array) -> tuple[State, Info]:
        return _keep_best(space, population_size, state, genomes, fitness)

    return GA(init, ask, tell)


def _keep_best(space: Space, num: int, state: State, genomes: Array, fitness: Array) -> tuple[State, Info]:
    """`tell`: the fittest `num` of the genomes told are the next population."""
    genomes, fitness = jnp.asarray(genomes), jnp.asarray(fitness)
    if genomes.ndim != 2 or genomes.shape[0] < num or genomes.shape[1] != len(space.choices):
        raise ValueError(f"expected at least {num} genomes of {len(space.choices)} genes, got shape {genomes.shape}")
    if fitness.shape[:1] != genomes.shape[:1]:
        raise ValueError(f"expected one fitness per genome ({genomes.shape[0]}), got shape {fitness.shape}")
    genomes = as_levels(space, genomes)
    order = ranking(genomes, fitness)
    info = Info(order, genomes[order[0]], space.frozen(genomes).mean(0, dtype=jnp.float32))
    return State(genomes[order[:num]], state.generation + 1), info


def as_levels(space: Space, genomes: Array) -> Array:
    """Genomes [N, K] as int8.

    Raises:
      ValueError: if they have other values than levels of the space.
    """
    if not _are_levels(space, genomes):
        raise ValueError(
            f"expected genomes with levels from 0 to {len(space.levels) - 1}; convert rates or scores to levels first"
        )
    return genomes.astype(jnp.int8)


def ranking(genomes: Array, fitness: Array) -> Array:
    """Indices of genomes [N, K] from best to worst: [N] int32. NaN is worst; equal ones keep their order.

    A copy of a better placed genome comes after all others, whatever its fitness, so that a population cannot fill up
    with copies of its elite.

    Args:
      fitness: [N] or [N, K]; later columns break ties of earlier ones.
    """
    fitness = jnp.asarray(fitness).reshape(genomes.shape[0], -1)
    fitness = jnp.where(jnp.isnan(fitness), -jnp.inf, fitness)
    columns = [-fitness[:, k] for k in reversed(range(fitness.shape[1]))]
    by_fitness = jnp.lexsort(columns)
    return by_fitness[jnp.argsort(is_copy(genomes[by_fitness]), stable=True)].astype(jnp.int32)


def is_copy(rows: Array) -> Array:
    """Whether an earlier one of the rows [N, K] is the same: [N] bool."""
    return jnp.tril((rows[:, None] == rows[None, :]).all(-1), -1).any(-1)


def tournament_selection(key: Array, num: int, size: int) -> Array:
    """Index [] of a parent among `num` sorted best-first: the best of `size` drawn with replacement."""
    return jax.random.randint(key, (size,), 0, num).min()


def uniform_crossover(key: Array, first: Array, second: Array) -> Array:
    """Every number [K] from either parent with probability 1/2."""
    return jnp.where(jax.random.bernoulli(key, shape=first.shape), first, second)
