"""What others would do in place of our search, each driving a function that scores one genome.

A rival is `rival(seed, space, evaluate, num_evaluations)`. It asks `evaluate` for the fitness of genomes [K] of the space
(higher is better), until that raises `BudgetSpent`, or there is no genome left that it would ask for. The search algorithms
start from random genomes; greedy selection starts with everything frozen, and enumerations are in random order.
"""

# pyright: reportMissingImports=false

import collections
import functools
import types
from collections.abc import Callable, Iterable
from importlib import import_module
from typing import Protocol

import jax
import jax.numpy as jnp
import numpy as np

from gafreeze_jax.search import genetic
from gafreeze_jax.space import Genome, Space, as_genome

Evaluate = Callable[[Iterable[int]], float]


class BudgetSpent(BaseException):
    """Ends a rival. Not an Exception, which PyGAD would log."""


class Budget:
    """Scores genomes until so many different ones have been; known ones are answered from memory and cost nothing.

    Args:
      score: fitness of a genome.
      num_evaluations: different genomes that may be scored.
      calls_per_evaluation: after that many times as many calls the budget is spent as well: then an algorithm has converged
        and asks for what it knows.

    Attributes:
      genomes: those scored, in their order.
      fitness: of each.
    """

    def __init__(self, score: Callable[[Genome], float], num_evaluations: int, calls_per_evaluation: int = 10):
        self.genomes: list[Genome] = []
        self.fitness: list[float] = []
        self._score, self._num_evaluations = score, num_evaluations
        self._calls_left = calls_per_evaluation * num_evaluations
        self._known: dict[Genome, float] = {}

    def __call__(self, levels: Iterable[int]) -> float:
        genome = as_genome(levels)
        if self._calls_left == 0 or (genome not in self._known and len(self._known) == self._num_evaluations):
            raise BudgetSpent
        self._calls_left -= 1
        if genome not in self._known:
            self._known[genome] = self._score(genome)
            self.genomes.append(genome)
            self.fitness.append(self._known[genome])
        return self._known[genome]


class Rival(Protocol):
    def __call__(self, seed: int, space: Space, evaluate: Evaluate, num_evaluations: int) -> None: ...


def random_search(seed: int, space: Space, evaluate: Evaluate, num_evaluations: int) -> None:
    """Uniformly random genomes, none twice."""
    rng, seen = np.random.default_rng(seed), set()
    while len(seen) < min(num_evaluations, space.size):
        genome = as_genome(space.sample(rng, 1)[0])
        if genome not in seen:
            seen.add(genome)
            evaluate(genome)


def plain_ga(seed: int, space: Space, evaluate: Evaluate, num_evaluations: int, population: int = 12) -> None:
    """This project's genetic algorithm by itself, from a random population."""
    init, ask, tell = _compiled(space, population)
    key, key_init = jax.random.split(jax.random.key(seed))
    state = init(key_init)
    while True:
        key, key_ask = jax.random.split(key)
        genomes = ask(key_ask, state)
        fitness = [evaluate(genome) for genome in np.asarray(genomes)]
        state, _ = tell(state, genomes, jnp.array(fitness, jnp.float32))


@functools.cache
def _compiled(space: Space, population: int) -> genetic.GA:
    return genetic.GA(*map(jax.jit, genetic.make_ga(space, population)))


def pygad_ga(seed: int, space: Space, evaluate: Evaluate, num_evaluations: int) -> None:
    """PyGAD, with a population of 12 and the operators of vs_pytorch.py. It seeds NumPy's and Python's global generators."""
    pygad = _import("pygad")
    pygad.GA(
        num_generations=100 * num_evaluations,  # the budget ends it
        num_genes=len(space.choices),
        sol_per_pop=12,
        num_parents_mating=6,
        gene_space=[list(range(num)) for num in space.choices],
        gene_type=int,
        fitness_func=lambda ga, genome, index: evaluate(genome),
        parent_selection_type="tournament",
        K_tournament=3,
        keep_elitism=2,
        crossover_type="uniform",
        mutation_probability=1 / len(space.choices),
        random_seed=seed,
        suppress_warnings=True,
    ).run()


def optuna_tpe(seed: int, space: Space, evaluate: Evaluate, num_evaluations: int) -> None:
    """Optuna's tree-structured Parzen estimator (Bergstra et al. 2011) with its defaults."""
    _optuna(_import("optuna").samplers.TPESampler(seed=seed), space, evaluate)


def optuna_nsga2(seed: int, space: Space, evaluate: Evaluate, num_evaluations: int) -> None:
    """Optuna's NSGA-II on one objective, with a population of 12: its default of 50 is about a whole budget."""
    _optuna(_import("optuna").samplers.NSGAIISampler(seed=seed, population_size=12), space, evaluate)


def _optuna(sampler: object, space: Space, evaluate: Evaluate) -> None:
    optuna = _import("optuna")
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(sampler=sampler, direction="maximize")
    genes = {
        f"gene_{i:03}": optuna.distributions.CategoricalDistribution(tuple(range(num))) for i, num in enumerate(space.choices)
    }
    while True:
        trial = study.ask(genes)
        study.tell(trial, evaluate([trial.params[name] for name in genes]))


def regularized_evolution(seed: int, space: Space, evaluate: Evaluate, num_evaluations: int) -> None:
    """Aging evolution (Real et al. 2019): the fittest of 4 of the 16 youngest has a child with another value in one place."""
    rng = np.random.default_rng(seed)
    youngest = collections.deque(maxlen=16)
    while True:
        if len(youngest) < 16:
            child = space.sample(rng, 1)[0]
        else:
            parent = max((youngest[i] for i in rng.integers(16, size=4)), key=lambda member: member[1])[0]
            child = rng.choice(space.neighbours(as_genome(parent)))
        youngest.append((child, evaluate(child)))


def greedy(seed: int, space: Space, evaluate: Evaluate, num_evaluations: int) -> None:
    """SubTuning's greedy selection (Kaplun et al. 2023): from everything frozen, one gene more at a time, or another rate."""
    current, asked = space.all_frozen, {space.all_frozen}
    evaluate(current)
    while True:
        frozen = space.frozen(current).sum()
        steps = [as_genome(row) for row in space.neighbours(current) if space.frozen(row).sum() <= frozen]
        if not (steps := [step for step in steps if step not in asked]):
            break
        asked.update(steps)
        current = max(steps, key=evaluate)


def _enumerate(choose: Callable[[Space], np.ndarray]) -> "Rival":
    def enumerate_at_rates(seed: int, space: Space, evaluate: Evaluate, num_evaluations: int) -> None:
        for genome in np.random.default_rng(seed).permutation(space.at_rates(choose(space))):
            evaluate(genome)

    return enumerate_at_rates


def _import(name: str) -> types.ModuleType:
    try:
        return import_module(name)
    except ImportError as error:
        raise ImportError(f"this rival needs {name}: pip install {name}") from error


RIVALS: dict[str, Rival] = {
    "random search": random_search,
    "plain GA": plain_ga,
    "PyGAD": pygad_ga,
    "Optuna TPE": optuna_tpe,
    "Optuna NSGA-II": optuna_nsga2,
    "regularized evolution": regularized_evolution,
}
BY_HAND: dict[str, Rival] = {
    "greedy selection": greedy,
    "train all": _enumerate(lambda space: space.stack([space.all_trained])),
    "prefix masks": _enumerate(Space.prefixes),
    "suffix masks": _enumerate(Space.suffixes),
}
"""What people do without a search algorithm; the enumerations try each of their genomes at all rates of the space."""
