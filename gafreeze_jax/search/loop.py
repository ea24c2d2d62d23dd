"""The search: ask the genetic algorithm for genomes, have those evaluated that are new, tell it their fitness.

Three things make it need fewer training steps than a plain genetic algorithm. Poor genomes are stopped early: all new ones
train up to a first rung, and only those among the best that were ever seen there go on (successive halving, Jamieson &
Talwalkar 2016; asynchronous like that of Li et al. 2020, in that a rung remembers earlier generations). A surrogate picks
among many offspring once its cross-validated rank correlation has earned that. And no genome is evaluated twice.
"""

import functools
import itertools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Generic, NamedTuple, Protocol, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from scipy.stats import spearmanr

from gafreeze_jax.engine import devices
from gafreeze_jax.search import surrogate
from gafreeze_jax.search.genetic import GA, all_genomes
from gafreeze_jax.search.history import Evaluation, Ledger, genome_array, genome_text

SHARE = 0.6  # of the genomes seen at a rung that may go on
ASKS = 16  # populations of offspring among which the surrogate picks
ENUMERABLE = 2**12  # masks, of which all that are unseen can be listed


class Scored(Protocol):
    """A genome and how it did."""

    @property
    def genome(self) -> np.ndarray: ...
    @property
    def score(self) -> float: ...
    @property
    def loss(self) -> float: ...
    @property
    def train_loss(self) -> float: ...


class Trained(Scored, Protocol):
    """What an evaluator says of a genome, as `population.Member` does."""

    @property
    def seconds(self) -> float: ...


M = TypeVar("M", bound=Trained)


def evaluation_of(
    member: Trained, seed: int, steps: int, generation: int, count_trainable: Callable[[np.ndarray], int]
) -> Evaluation:
    """What the ledger says of a member."""
    scores = (member.score, member.loss, member.train_loss)
    return Evaluation(
        genome_text(member.genome), seed, steps, generation, *scores, count_trainable(member.genome), member.seconds
    )


class Evaluator(Protocol[M]):
    """Trains and scores genomes; those that are trained together come together, in any order."""

    def evaluate(self, genomes: np.ndarray, seed: int, until: int) -> Iterable[Sequence[M]]:
        """Genomes [N, G] bool from the start to a step."""
        ...

    def resume(self, members: Sequence[M], seed: int, until: int) -> Iterable[Sequence[M]]:
        """Members that stopped after an earlier step of the same seed."""
        ...


class Settings(NamedTuple):
    """How to search, and when to stop.

    Attributes:
      rungs: training steps after which members are scored; the last is a full evaluation. If it is the only one, none is
        stopped early.
      seed: of all evaluations.
      screen: whether a surrogate may pick among offspring.
      generations: at most so many.
      evaluations: at most so many, measured by the training steps of full ones; stopped ones count by what they took.
      seconds: no generation begins after so many of evaluations.
      patience: stop after so many generations without a fitter genome; None = don't.
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

    def num_genomes(self, first: int, others: int) -> float:
        """How many genomes can be evaluated, about, of `first` in the first generation and `others` in each one after it."""
        by_steps = self.evaluations * self.rungs[-1] / self.steps_of_genome
        return min(by_steps, first + (self.generations - 1) * others)

    def enumerates(self, num_genes: int, first: int, others: int) -> bool:
        """Whether all masks are evaluated in place of a search: if none is stopped early, and all are within the limits."""
        return len(self.rungs) == 1 and 2**num_genes <= self.num_genomes(first, others) < math.inf


class Generation(NamedTuple):
    """What happened in one generation.

    Attributes:
      number: from 1.
      best: the fittest evaluation so far, of an allowed genome if there is one.
      num_new: genomes that were evaluated.
      num_full: of which all steps were done.
      screened: whether the surrogate picked them.
      mean: accuracy of the population that the next one is bred from, without diverged ones.
      frozen_share: [G], share of that population that freezes each gene.
      steps_left: training steps that the search still takes, about.
    """

    number: int
    best: Evaluation
    num_new: int
    num_full: int
    screened: bool
    mean: float
    frozen_share: np.ndarray
    steps_left: float


class Correlation(NamedTuple):
    """Spearman's rank correlation of accuracies at one rung with those at the next, over the genomes that passed both."""

    steps: tuple[int, int]
    value: float
    num: int


class Found(NamedTuple):
    """What a search has found.

    Attributes:
      leaders: all allowed and fully evaluated genomes as text, the fittest first.
      groups: the first of the leaders in each group, by name.
      why_stopped: in words.
      correlations: between rungs.
    """

    leaders: list[str]
    groups: dict[str, str]
    why_stopped: str
    correlations: tuple[Correlation, ...]


class Search(Generic[M]):
    """A genetic search; `run` does it.

    Args:
      evaluator: trains and scores genomes.
      ledger: where evaluations are recorded.
      initial: [K, G] genomes that the first generation holds, beside those of the GA.
      count_trainable: number of parameters that a genome leaves trainable.
      groups: names of sets of genomes [N, G], some of each in `initial`; the fittest of each is never stopped early.
      fitness: what the GA is told of a genome (text) that has been evaluated; default: `ledger.fitness`.
      allowed: whether a genome [G] may be evaluated, and lead; those in `initial` are evaluated in any case.
      on_generation: called after each generation.
    """

    def __init__(
        self,
        ga: GA,
        evaluator: Evaluator[M],
        ledger: Ledger,
        settings: Settings,
        *,
        initial: np.ndarray,
        count_trainable: Callable[[np.ndarray], int],
        groups: Mapping[str, np.ndarray],
        fitness: Callable[[str], tuple[float, ...]] | None = None,
        allowed: Callable[[np.ndarray], bool] = lambda genome: True,
        on_generation: Callable[[Generation], None] = lambda generation: None,
    ):
        self.evaluator, self.ledger, self.settings, self.initial = evaluator, ledger, settings, initial
        self.count_trainable, self.on_generation = count_trainable, on_generation
        self.fitness, self.allowed = fitness or ledger.fitness, allowed
        self.groups = {name: set(map(genome_text, genomes)) for name, genomes in groups.items()}
        self._init, self._ask, self._tell = ga.init, _jitted(ga.ask), _jitted(ga.tell)

    def run(self, key: Array) -> Found:
        """Searches until one of the settings says stop, or until all genomes have been seen."""
        ledger, num_genes = self.ledger, self.initial.shape[1]
        key, key_init, key_rng = jax.random.split(key, 3)
        state = self._init(key_init)
        size = len(state.population)
        size_of_first = max(len(self.initial), size)
        rng = np.random.default_rng(int(jax.random.bits(key_rng)))
        best, since_best, why = "", 0, ""
        for number in itertools.count(1):
            if number > 1 and (why := self._why_stop(number, since_best)):
                break
            key, key_ask = jax.random.split(key)
            screened = False
            if number > 1:
                genomes, screened = self._offspring(key_ask, state, size, rng)
            elif self.settings.enumerates(num_genes, size_of_first, size):
                genomes = np.concatenate([self.initial, self._allowed(all_genomes(num_genes))])
            else:
                asked = np.asarray(self._ask(key_ask, state))
                genomes = ledger.unseen(np.concatenate([self.initial, self._allowed(asked)]))[:size_of_first]
            least = len(self.initial) if number == 1 else 1
            new = ledger.unseen(genomes)[: max(least, int(min(self._genomes_left, len(genomes))))]
            if not len(new):
                why = "as all allowed masks have been evaluated"
                break
            num_full = self._climb(new, number)
            told = np.concatenate([np.asarray(state.population), new]) if number > 1 else new
            told = told[np.arange(max(len(told), 2 * size)) % len(told)]
            fitness = jnp.array([self.fitness(genome_text(genome)) for genome in told], jnp.float32)
            state, _ = self._tell(state, told, fitness)
            full = ledger.at(self.settings.rungs[-1], self.settings.seed)
            fittest = next((one for one in full if self.allowed(genome_array(one.genome))), full[0])
            best, since_best = fittest.genome, 0 if fittest.genome != best else since_best + 1
            bred = np.asarray(state.population)
            steps_left = self._steps_to_come(number, size)
            self.on_generation(
                Generation(number, fittest, len(new), num_full, screened, self._mean(bred), bred.mean(0), steps_left)
            )
        ranked = [one.genome for one in ledger.at(self.settings.rungs[-1], self.settings.seed)]
        groups = {name: next(genome for genome in ranked if genome in own) for name, own in self.groups.items()}
        leaders = [genome for genome in ranked if self.allowed(genome_array(genome))]
        return Found(leaders, groups, why, self._correlations())

    @property
    def _steps_left(self) -> float:
        return self.settings.evaluations * self.settings.rungs[-1] - self.ledger.steps_trained

    @property
    def _genomes_left(self) -> float:
        return self._steps_left / self.settings.steps_of_genome

    def _steps_to_come(self, number: int, size: int) -> float:
        """Training steps of the generations after one, about: as many for a genome, and as fast, as so far."""
        ledger, settings = self.ledger, self.settings
        num_seen, trained = len(ledger.at(settings.rungs[0], settings.seed)), ledger.steps_trained
        num_genomes = min((settings.generations - number) * size, 2 ** self.initial.shape[1] - num_seen)
        in_time = trained * (settings.seconds / max(ledger.seconds, 1e-9) - 1)
        return max(0.0, min(num_genomes * trained / num_seen, self._steps_left, in_time))

    def _mean(self, genomes: np.ndarray) -> float:
        """Of the accuracies of genomes that have been evaluated; NaN if all diverged."""
        accuracies = [self.ledger.fitness(genome_text(genome))[1] for genome in genomes]
        return float(np.mean([one for one in accuracies if math.isfinite(one)] or [math.nan]))

    def _why_stop(self, number: int, since_best: int) -> str:
        """Why no other generation is to begin, in words; empty if one is."""
        settings, num_masks = self.settings, 2 ** self.initial.shape[1]
        if len(self.ledger.at(settings.rungs[0], settings.seed)) == num_masks:
            return f"as all {num_masks} masks have been evaluated"
        if number > settings.generations:
            return f"after {settings.generations} generations"
        if self._genomes_left < 1:
            return f"after the training steps of {settings.evaluations:g} evaluations"
        if devices.of_first(self.ledger.seconds) > settings.seconds:
            return f"after {settings.seconds / 60:g} minutes"
        if settings.patience is not None and since_best >= settings.patience:
            return f"after {since_best} generations without a fitter mask"
        return ""

    def _offspring(self, key: Array, state: Any, num: int, rng: np.random.Generator) -> tuple[np.ndarray, bool]:
        """New genomes [num, G], or all that are left, and whether the surrogate picked them."""
        asked = [np.asarray(self._ask(own, state)) for own in jax.random.split(key, ASKS)]
        candidates = self._allowed(self.ledger.unseen(np.concatenate(asked)))
        if len(candidates) < num:
            num_genes = candidates.shape[1]
            others = (
                rng.permutation(all_genomes(num_genes)) if 2**num_genes <= ENUMERABLE else rng.random((num, num_genes)) < 0.5
            )
            return self._allowed(self.ledger.unseen(np.concatenate([candidates, others])))[:num], False
        if self.settings.screen and len(candidates) > num:
            model = surrogate.fit(*estimates({rung: self._accuracies(rung) for rung in self.settings.rungs}))
            if model.earns_trust:
                return candidates[surrogate.screen(model, rng, candidates, num)], True
        return candidates[:num], False

    def _allowed(self, genomes: np.ndarray) -> np.ndarray:
        return genomes[[bool(self.allowed(genome)) for genome in genomes]]

    def _climb(self, genomes: np.ndarray, number: int) -> int:
        """Evaluates genomes rung by rung, and returns how many got to the last one."""
        first, *_ = rungs = self.settings.rungs
        seed = self.settings.seed
        members = self._record(self.evaluator.evaluate(genomes, seed, first), first, number)
        for steps, until in itertools.pairwise(rungs):
            if not (members := self._promoted(members, steps, until)):
                return 0
            members = self._record(self.evaluator.resume(members, seed, until), until, number)
        return len(members)

    def _promoted(self, members: list[M], steps: int, until: int) -> list[M]:
        """Those that go on: the best of each group, and who is among the best allowed that were seen at this rung."""
        known = [one.genome for one in self.ledger.at(steps, self.settings.seed)]
        here = {genome_text(member.genome): member for member in members}
        best_of_groups = [next((genome for genome in known if genome in own), "") for own in self.groups.values()]
        protected = dict.fromkeys(genome for genome in best_of_groups if genome in here)
        allowed = [genome for genome in known if self.allowed(genome_array(genome))]
        among_best = [genome for genome in allowed[: math.ceil(SHARE * len(allowed))] if genome in here]
        chosen = list(dict.fromkeys([*protected, *among_best]))
        steps_spare = self._steps_left - len(protected) * (self.settings.rungs[-1] - steps)
        num_others = int(max(0, min(len(among_best), steps_spare / (until - steps))))
        full = [one.genome for one in self.ledger.at(self.settings.rungs[-1], self.settings.seed)]
        least = not any(self.allowed(genome_array(genome)) for genome in [*protected, *full])  # someone must lead
        return [here[genome] for genome in chosen[: len(protected) + max(least, num_others)]]

    def _record(self, calls: Iterable[Sequence[M]], steps: int, number: int) -> list[M]:
        """Puts members into the ledger as they come."""
        recorded, seed = [], self.settings.seed
        for members in calls:
            self.ledger.add(*(evaluation_of(one, seed, steps, number, self.count_trainable) for one in members))
            recorded += members
        return recorded

    def _accuracies(self, rung: int) -> dict[str, float]:
        """Of all genomes that got there; -inf if one diverged."""
        return {one.genome: one.fitness[0] for one in self.ledger.at(rung, self.settings.seed)}

    def _correlations(self) -> tuple[Correlation, ...]:
        found = []
        for steps in itertools.pairwise(self.settings.rungs):
            at = [self._accuracies(rung) for rung in steps]
            both = sorted(at[0].keys() & at[1].keys())
            first, second = ([own[genome] for genome in both] for own in at)
            if len(both) > 2 and min(len(set(first)), len(set(second))) > 1:  # else it is undefined
                value: Any = spearmanr(first, second)
                found.append(Correlation(steps, float(value.statistic), len(both)))
        return tuple(found)


def estimates(accuracies: Mapping[int, Mapping[str, float]]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """What is known of each genome's accuracy after all steps: genomes [N, G], estimates [N], and their weights [N].

    To the accuracy at an earlier rung is added what the others gained from there on; it counts by its share of the steps.

    Args:
      accuracies: by rung, the last one being all steps, and genome; -inf if it diverged.
    """
    last = max(accuracies)
    found: dict[str, tuple[float, float]] = {}
    for rung, at in sorted(accuracies.items()):
        gains = [accuracies[last][genome] - at[genome] for genome in at.keys() & accuracies[last].keys()]
        gain = float(np.median([one for one in gains if math.isfinite(one)] or [0.0]))
        found |= {genome: (accuracy + gain, rung / last) for genome, accuracy in at.items()}
    values = np.array(list(found.values()))
    return np.array([genome_array(genome) for genome in found]), values[:, 0], values[:, 1]


_jitted = functools.cache(jax.jit)  # searches with the same GA share compiled code
