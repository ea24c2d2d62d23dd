"""The search: ask the genetic algorithm for genomes, have those evaluated that are new, tell it their fitness."""

import time
from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple, Protocol, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from gafreeze_jax.genetic import GA
from gafreeze_jax.ledger import Evaluation, Ledger, genome_text


class Trained(Protocol):
    """What an evaluator says of a genome, as `population.Member` does."""

    @property
    def genome(self) -> np.ndarray: ...
    @property
    def accuracy(self) -> float: ...
    @property
    def loss(self) -> float: ...
    @property
    def train_loss(self) -> float: ...


M = TypeVar("M", bound=Trained)


class Generation(NamedTuple):
    """What happened in one generation.

    Attributes:
      number: from 1.
      best: the fittest evaluation so far.
      num_new: genomes that were evaluated.
      num_known: genomes that had been evaluated before, or that the generation holds twice.
      frozen_share: [G], share of the generation's genomes that freezes each gene.
    """

    number: int
    best: Evaluation
    num_new: int
    num_known: int
    frozen_share: np.ndarray


def search(
    ga: GA,
    key: Array,
    evaluate: Callable[[np.ndarray], Iterable[M]],
    ledger: Ledger,
    *,
    num_generations: int,
    initial: np.ndarray,
    count_trainable: Callable[[np.ndarray], int],
    groups: Mapping[str, np.ndarray],
    on_generation: Callable[[Generation], None] = lambda generation: None,
) -> dict[str, tuple[Evaluation, M]]:
    """Runs a genetic search; no genome is evaluated twice.

    Args:
      evaluate: trains and scores genomes [N, G] bool and yields them in any order.
      ledger: where evaluations are recorded.
      initial: [K, G] genomes that the first generation holds, beside those of the GA.
      count_trainable: number of parameters that a genome leaves trainable.
      groups: names of sets of genomes [N, G] of which the fittest is to be kept as well.
      on_generation: called after each generation.

    Returns:
      The fittest genome of all, as "found", and that of each group: its evaluation and what `evaluate` gave for it.
    """
    members = {name: {genome_text(genome) for genome in genomes} for name, genomes in groups.items()}
    fittest: dict[str, tuple[Evaluation, M]] = {}
    ask, tell = jax.jit(ga.ask), jax.jit(ga.tell)
    key, key_init = jax.random.split(key)
    state = ga.init(key_init)
    for number in range(1, num_generations + 1):
        key, key_ask = jax.random.split(key)
        genomes = np.asarray(ask(key_ask, state))
        if number == 1:
            genomes = np.array(list(dict.fromkeys(map(tuple, np.concatenate([initial, genomes])))), bool)
            genomes = _filled(genomes, len(state.population))
        unseen = ledger.unseen(genomes)
        clock = time.perf_counter()
        for trained in evaluate(unseen):
            evaluation = Evaluation(
                genome_text(trained.genome),
                number,
                trained.accuracy,
                trained.loss,
                trained.train_loss,
                count_trainable(trained.genome),
                time.perf_counter() - clock,
            )
            ledger.add(evaluation)
            for name in ("found", *(name for name, texts in members.items() if evaluation.genome in texts)):
                if name not in fittest or evaluation.fitness > fittest[name][0].fitness:
                    fittest[name] = (evaluation, trained)
            clock = time.perf_counter()
        fitness = jnp.array([ledger[genome].fitness for genome in genomes], jnp.float32)
        state, info = tell(state, genomes, fitness)
        share = np.asarray(info.frozen_share)
        on_generation(Generation(number, fittest["found"][0], len(unseen), len(genomes) - len(unseen), share))
    return {name: fittest[name] for name in ("found", *groups)}


def _filled(genomes: np.ndarray, num: int) -> np.ndarray:
    """Repeats the first genomes until there are `num`."""
    return genomes[np.arange(max(num, len(genomes))) % len(genomes)]
