"""The search algorithms that others would use for masks, each driving a function that scores one genome.

A rival is `rival(seed, num_genes, evaluate, num_evaluations)`. It asks `evaluate` for the fitness of genomes [G] bool (higher
is better), until that raises `BudgetSpent`, or there is no genome left to ask for. All start from random genomes.
"""

# pyright: reportMissingImports=false

import collections
import functools
import types
from collections.abc import Callable
from importlib import import_module
from typing import Protocol

import jax
import jax.numpy as jnp
import numpy as np

from gafreeze_jax.search import genetic
from gafreeze_jax.space import Space

Evaluate = Callable[[np.ndarray], float]


class BudgetSpent(BaseException):
    """Ends a rival. Not an Exception, which PyGAD would log."""


class Budget:
    """Scores genomes until so many different ones have been; known ones are answered from memory and cost nothing.

    Args:
      score: fitness of a genome [G] bool.
      num_evaluations: different genomes that may be scored.
      calls_per_evaluation: after that many times as many calls the budget is spent as well: then an algorithm has converged
        and asks for what it knows.

    Attributes:
      genomes: those scored, in their order.
      fitness: of each.
    """

    def __init__(self, score: Evaluate, num_evaluations: int, calls_per_evaluation: int = 10):
        self.genomes: list[np.ndarray] = []
        self.fitness: list[float] = []
        self._score, self._num_evaluations = score, num_evaluations
        self._calls_left = calls_per_evaluation * num_evaluations
        self._known: dict[bytes, float] = {}

    def __call__(self, genome: np.ndarray) -> float:
        genome = np.asarray(genome, bool)
        name = genome.tobytes()
        if self._calls_left == 0 or (name not in self._known and len(self._known) == self._num_evaluations):
            raise BudgetSpent
        self._calls_left -= 1
        if name not in self._known:
            self._known[name] = self._score(genome)
            self.genomes.append(genome)
            self.fitness.append(self._known[name])
        return self._known[name]


class Rival(Protocol):
    def __call__(self, seed: int, num_genes: int, evaluate: Evaluate, num_evaluations: int) -> None: ...


def random_search(seed: int, num_genes: int, evaluate: Evaluate, num_evaluations: int) -> None:
    """Uniformly random genomes, none twice."""
    rng, seen = np.random.default_rng(seed), set()
    while len(seen) < min(num_evaluations, 2**num_genes):
        genome = rng.random(num_genes) < 0.5
        if genome.tobytes() not in seen:
            seen.add(genome.tobytes())
            evaluate(genome)


def plain_ga(seed: int, num_genes: int, evaluate: Evaluate, num_evaluations: int, population: int = 12) -> None:
    """This project's genetic algorithm by itself, from a random population."""
    init, ask, tell = _compiled(num_genes, population)
    key, key_init = jax.random.split(jax.random.key(seed))
    state = init(key_init)
    while True:
        key, key_ask = jax.random.split(key)
        genomes = ask(key_ask, state)
        fitness = [evaluate(genome) for genome in np.asarray(genomes)]
        state, _ = tell(state, genomes, jnp.array(fitness, jnp.float32))


@functools.cache
def _compiled(num_genes: int, population: int) -> genetic.GA:
    return genetic.GA(*map(jax.jit, genetic.make_ga(Space([f"gene_{i}" for i in range(num_genes)]), population)))


def pygad_ga(seed: int, num_genes: int, evaluate: Evaluate, num_evaluations: int) -> None:
    """PyGAD, with a population of 12 and the operators of vs_pytorch.py. It seeds NumPy's and Python's global generators."""
    pygad = _import("pygad")
    pygad.GA(
        num_generations=100 * num_evaluations,  # the budget ends it
        num_genes=num_genes,
        sol_per_pop=12,
        num_parents_mating=6,
        gene_space=[0, 1],
        gene_type=int,
        fitness_func=lambda ga, genome, index: evaluate(genome.astype(bool)),
        parent_selection_type="tournament",
        K_tournament=3,
        keep_elitism=2,
        crossover_type="uniform",
        mutation_probability=1 / num_genes,
        random_seed=seed,
        suppress_warnings=True,
    ).run()


def optuna_tpe(seed: int, num_genes: int, evaluate: Evaluate, num_evaluations: int) -> None:
    """Optuna's tree-structured Parzen estimator (Bergstra et al. 2011) with its defaults."""
    _optuna(_import("optuna").samplers.TPESampler(seed=seed), num_genes, evaluate)


def optuna_nsga2(seed: int, num_genes: int, evaluate: Evaluate, num_evaluations: int) -> None:
    """Optuna's NSGA-II on one objective, with a population of 12: its default of 50 is about a whole budget."""
    _optuna(_import("optuna").samplers.NSGAIISampler(seed=seed, population_size=12), num_genes, evaluate)


def _optuna(sampler: object, num_genes: int, evaluate: Evaluate) -> None:
    optuna = _import("optuna")
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(sampler=sampler, direction="maximize")
    genes = {f"gene_{i:03}": optuna.distributions.CategoricalDistribution((0, 1)) for i in range(num_genes)}
    while True:
        trial = study.ask(genes)
        study.tell(trial, evaluate(np.array([trial.params[name] for name in genes], bool)))


def regularized_evolution(seed: int, num_genes: int, evaluate: Evaluate, num_evaluations: int) -> None:
    """Aging evolution (Real et al. 2019): the fittest of 4 of the 16 youngest has a child with one gene flipped."""
    rng = np.random.default_rng(seed)
    youngest = collections.deque(maxlen=16)
    while True:
        if len(youngest) < 16:
            child = rng.random(num_genes) < 0.5
        else:
            parent = max((youngest[i] for i in rng.integers(16, size=4)), key=lambda member: member[1])[0]
            child = parent ^ (np.arange(num_genes) == rng.integers(num_genes))
        youngest.append((child, evaluate(child)))


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
