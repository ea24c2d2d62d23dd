"""The search: ask the genetic algorithm for genomes, evaluate those that are new, tell it their fitness.

Three things make it need fewer training steps than a plain genetic algorithm. Poor genomes are stopped early (see `halving`).
A surrogate picks among many offspring once its cross-validated rank correlation has earned that. And no genome is evaluated
twice.
"""

import functools
import itertools
import math
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Generic, NamedTuple, Protocol, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from gafreeze_jax.search import surrogate
from gafreeze_jax.search.genetic import GA
from gafreeze_jax.search.halving import Correlation, Settings, correlations, estimates, promoted
from gafreeze_jax.search.history import Evaluation, Ledger
from gafreeze_jax.space import Genome, Space, as_genome

ASKS = 16  # populations of offspring among which the surrogate picks
ENUMERABLE = 4096  # genomes, of which all that are unseen can be listed
DRAWS = 64  # populations of random genomes, at most, among which unseen ones are looked for


class Scored(Protocol):
    """A genome and how it did."""

    @property
    def genome(self) -> Any: ...
    @property
    def score(self) -> float: ...
    @property
    def loss(self) -> float: ...
    @property
    def train_loss(self) -> float: ...


class Trained(Scored, Protocol):
    """What an evaluator returns of a genome, such as `population.Member`."""

    @property
    def seconds(self) -> float: ...


M = TypeVar("M", bound=Trained)


def evaluation_of(
    member: Trained, seed: int, steps: int, generation: int, count_trainable: Callable[[Genome], int]
) -> Evaluation:
    """What the ledger records of a member."""
    genome = as_genome(member.genome)
    scores = (member.score, member.loss, member.train_loss)
    return Evaluation(genome, seed, steps, generation, *scores, count_trainable(genome), member.seconds)


class Evaluator(Protocol[M]):
    """Trains and scores genomes; yields what was trained together, in any order."""

    def evaluate(self, genomes: np.ndarray, seed: int, until: int) -> Iterable[Sequence[M]]:
        """Trains genomes [N, K] int8 from the start to a step."""
        ...

    def resume(self, members: Sequence[M], seed: int, until: int) -> Iterable[Sequence[M]]:
        """Trains members that stopped after an earlier step of the same seed."""
        ...


class Generation(NamedTuple):
    """Diagnostics of a generation.

    Attributes:
      number: from 1.
      best: the fittest evaluation so far, of an allowed genome if there is one.
      num_new: genomes that were evaluated.
      num_full: genomes that were fully trained.
      screened: whether the surrogate picked them.
      mean: score of the population that the next one is bred from, without diverged ones.
      frozen_share: [G], share of that population that freezes each gene.
      steps_left: estimate of the training steps still to come.
    """

    number: int
    best: Evaluation
    num_new: int
    num_full: int
    screened: bool
    mean: float
    frozen_share: np.ndarray
    steps_left: float


class Found(NamedTuple):
    """What a search has found.

    Attributes:
      leaders: all allowed and fully evaluated genomes, the fittest first.
      groups: the first of the leaders in each group, by name.
      why_stopped: in words.
      correlations: between rungs.
    """

    leaders: list[Genome]
    groups: dict[str, Genome]
    why_stopped: str
    correlations: tuple[Correlation, ...]


class Search(Generic[M]):
    """A genetic search; `run` does it.

    Args:
      space: of the genomes.
      ga: that breeds them.
      evaluator: trains and scores genomes.
      ledger: where evaluations are recorded; empty.
      settings: how to search, and when to stop.
      initial: [N, K] genomes that are evaluated first, in their order and whatever the budget: in as many generations as they
        fill, or in fewer if there are fewer. Where there are several rates for all genes, training everything is tried at each,
        and they take the one that does best, and then the next higher one, since a mask that freezes more tolerates more. Then
        the fittest of each group is tried at each rate, and where another one suits it better, the group's initial genomes at
        that.
      count_trainable: number of parameters that a genome leaves trainable.
      groups: genomes [N, K] of each group, by name, some of them in `initial`; the fittest of each is never stopped early.
      fitness: what the GA is told of an evaluated genome; default: `ledger.fitness`. The first number is -inf if the genome is
        not allowed.
      allowed: whether a genome may be evaluated, and lead; those in `initial` are evaluated in any case. Of other genomes that
        may not, genes are frozen at random until they may.
      elapsed: seconds of evaluations so far; default: those in the ledger. It must agree among processes.
      on_generation: called after each generation.
    """

    def __init__(
        self,
        *,
        space: Space,
        ga: GA,
        evaluator: Evaluator[M],
        ledger: Ledger,
        settings: Settings,
        initial: np.ndarray,
        count_trainable: Callable[[Genome], int],
        groups: Mapping[str, np.ndarray],
        fitness: Callable[[Genome], tuple[float, ...]] | None = None,
        allowed: Callable[[Genome], bool] = lambda genome: True,
        elapsed: Callable[[], float] | None = None,
        on_generation: Callable[[Generation], None] = lambda generation: None,
    ):
        self.space, self.evaluator, self.ledger, self.settings, self.initial = space, evaluator, ledger, settings, initial
        self.count_trainable, self.on_generation = count_trainable, on_generation
        self.fitness, self.allowed = fitness or ledger.fitness, allowed
        self.elapsed = elapsed or (lambda: ledger.seconds)
        self.groups = {name: set(map(as_genome, genomes)) for name, genomes in groups.items()}
        self._init, self._ask, self._tell = ga.init, _jitted(ga.ask), _jitted(ga.tell)

    def run(self, key: Array) -> Found:
        """Searches until a limit in the settings is reached, or all genomes have been evaluated."""
        key, key_init, key_rng = jax.random.split(key, 3)
        state, rng = self._init(key_init), np.random.default_rng(int(jax.random.bits(key_rng)))
        best, since_best, why = None, 0, ""
        tried = self._try_rates()
        for number in itertools.count(1):
            if number > 1 and (why := self._why_stop(number, since_best)):
                break
            key, key_ask = jax.random.split(key)
            initial = self._initial_of(number, len(state.population))
            asked, screened = self._ask_for(number, initial, key_ask, state, rng)
            genomes = asked[: self._num_affordable(len(asked), len(initial))]
            if not len(genomes):
                all_seen = self.space.size <= ENUMERABLE
                why = "as all allowed masks have been evaluated" if all_seen else "as no other allowed mask was found"
                break
            num_full = self._climb(genomes, number)
            if number == 1:
                genomes, num_full = np.concatenate([tried, genomes]), len(tried) + num_full
            state = self._breed_from(genomes, state, number)
            fittest = self._fittest()
            best, since_best = fittest.genome, 0 if fittest.genome != best else since_best + 1
            self._report(number, fittest, state, num_new=len(genomes), num_full=num_full, screened=screened)
        return self._found(why)

    def tune(self, found: Found, num_leaders: int) -> Found:
        """Evaluates leaders, and the fittest of each group, at all other rates, and returns what has been found then."""
        known = set(self._ranked())
        several = self.space.at_rates([*found.leaders[:num_leaders], *found.groups.values()])
        unknown = self._allowed(self.space.stack(genome for genome in several.tolist() if as_genome(genome) not in known))
        if len(unknown):
            last, number = self.settings.rungs[-1], max(evaluation.generation for evaluation in self.ledger)
            self._record(self.evaluator.evaluate(unknown, self.settings.seed, last), last, number)
        return self._found(found.why_stopped)

    # Which genomes

    def _try_rates(self) -> np.ndarray:
        """Trains everything at each rate [N, K], if there are any; initial genomes take the best and the next higher one."""
        if not (self.space.has_rate and len(self.initial)):
            return self.space.stack([])
        everything = self.space.at_rates([self.space.all_trained])
        self._climb(everything, 1, stops_early=False)
        best = self._ranked()[0]
        several = [self.space.at_rate_of(genome, self.initial) for genome in (best, self.space.at_higher_rate(best))]
        self.initial = self.space.unique(np.concatenate(several).tolist())
        return everything

    def _initial_of(self, number: int, population_size: int) -> np.ndarray:
        """The initial genomes [N, K] of a generation."""
        if number > 1 and self.space.has_rate and not len(self.ledger.unseen(self.initial)):
            self.initial = np.concatenate([self.initial, self._groups_at_rates()])
        unseen = self.ledger.unseen(self.initial)
        share = math.ceil(len(unseen) / max(1, self.settings.generations - number + 1))
        return unseen[: max(population_size, share)]

    def _groups_at_rates(self) -> np.ndarray:
        """The fittest of each group at all rates; if known, initial genomes of the group at its rate: unseen ones, [N, K]."""
        fittest = self._fittest_of_groups()
        unseen = self.ledger.unseen(self._allowed(self.space.at_rates(fittest.values())))
        if len(unseen):
            return unseen
        initial = list(map(as_genome, self.initial))
        at_rates = (
            self.space.at_rate_of(fittest[name], filter(group.__contains__, initial)) for name, group in self.groups.items()
        )
        return self.ledger.unseen(self._allowed(self.space.unique(itertools.chain.from_iterable(at_rates))))

    def _ask_for(
        self, number: int, initial: np.ndarray, key: Array, state: Any, rng: np.random.Generator
    ) -> tuple[np.ndarray, bool]:
        """Genomes [N, K] of a generation, initial ones first, and whether the surrogate picked the others."""
        population_size = len(state.population)
        if number == 1 and self.settings.enumerates(self.space.num_different, len(self.initial), population_size):
            everything = self._allowed(self.space.unique(self.space.all_genomes()))
            return self.ledger.unseen(np.concatenate([self.initial, everything])), False
        if len(initial) >= population_size:
            return initial, False
        if number == 1:
            others, screened = self._candidates(np.asarray(self._ask(key, state)), rng), False
        else:
            others, screened = self._offspring(key, state, rng)
        return self.ledger.unseen(np.concatenate([initial, others]))[:population_size], screened

    def _offspring(self, key: Array, state: Any, rng: np.random.Generator) -> tuple[np.ndarray, bool]:
        """New genomes [P, K], or all that are left, and whether the surrogate picked them."""
        num = len(state.population)
        asked = [np.asarray(self._ask(key_ask, state)) for key_ask in jax.random.split(key, ASKS)]
        candidates = self._candidates(np.concatenate(asked), rng)
        if len(candidates) < num:
            return self._with_random(candidates, num, rng), False
        if self.settings.screen and len(candidates) > num:
            model = surrogate.fit(self.space, *estimates(self._scores()))
            if model.earns_trust:
                return candidates[surrogate.screen(model, rng, candidates, num)], True
        return candidates[:num], False

    def _with_random(self, candidates: np.ndarray, num: int, rng: np.random.Generator) -> np.ndarray:
        """Candidates and random ones, `num` in all or, where fewer are left or found, fewer."""
        if self.space.size <= ENUMERABLE:
            others = self._allowed(rng.permutation(self.space.all_genomes()))
            return self.ledger.unseen(self.space.unique(np.concatenate([candidates, others])))[:num]
        for _ in range(DRAWS):
            candidates = self._candidates(np.concatenate([candidates, self.space.sample(rng, num)]), rng)
            if len(candidates) >= num:
                break
        return candidates[:num]

    def _candidates(self, genomes: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Different unseen genomes [N, K] that are allowed, made from genomes that may not be."""
        repaired = [self.space.freeze_until(self.allowed, rng, genome) for genome in self.space.unique(genomes)]
        return self._allowed(self.ledger.unseen(self.space.unique(repaired)))

    def _allowed(self, genomes: np.ndarray) -> np.ndarray:
        return genomes[[self.allowed(as_genome(genome)) for genome in genomes]]

    def _num_affordable(self, num: int, num_initial: int) -> int:
        """How many of `num` new genomes the budget allows: the initial ones at least, else one."""
        affordable = max(0.0, self._steps_left / self.settings.steps_of_genome)
        return max(1, num_initial + int(min(affordable, num - num_initial)))

    # Training

    def _climb(self, genomes: np.ndarray, number: int, *, stops_early: bool = True) -> int:
        """Evaluates genomes rung by rung, and returns how many were fully trained."""
        settings = self.settings
        members = self._record(self.evaluator.evaluate(genomes, settings.seed, settings.rungs[0]), settings.rungs[0], number)
        for rung, until in itertools.pairwise(settings.rungs):
            if stops_early and not (members := self._promoted(members, rung, until)):
                return 0
            members = self._record(self.evaluator.resume(members, settings.seed, until), until, number)
        return len(members)

    def _record(self, calls: Iterable[Sequence[M]], steps: int, number: int) -> list[M]:
        """Puts members into the ledger as they come."""
        recorded, seed = [], self.settings.seed
        for members in calls:
            self.ledger.add(*(evaluation_of(member, seed, steps, number, self.count_trainable) for member in members))
            recorded += members
        return recorded

    def _promoted(self, members: Sequence[M], rung: int, until: int) -> list[M]:
        new = {as_genome(member.genome): member for member in members}
        genomes = promoted(
            self._ranked(rung),
            new,
            groups=self.groups.values(),
            allowed=self.allowed,
            has_leader=any(map(self.allowed, self._ranked())),
            steps_left=self._steps_left,
            to_next=until - rung,
            to_last=self.settings.rungs[-1] - rung,
        )
        return [new[genome] for genome in genomes]

    def _breed_from(self, new: np.ndarray, state: Any, number: int) -> Any:
        """Tells the GA the fitness of the population and of new genomes; returns its next state."""
        num = len(state.population)
        if number == 1:  # what has been evaluated is the initial population
            state = state._replace(population=jnp.asarray(new[np.arange(num) % len(new)]))
        genomes = np.concatenate([np.asarray(state.population), new]) if number > 1 else new
        # Always as many, so that `tell` is compiled once; copies count as one.
        genomes = genomes[np.arange(max(len(genomes), 2 * num)) % len(genomes)]
        fitness = jnp.array([self._fitness_to_breed(as_genome(genome)) for genome in genomes], jnp.float32)
        return self._tell(state, genomes, fitness)[0]

    def _fitness_to_breed(self, genome: Genome) -> tuple[float, ...]:
        """What the GA is told of a genome; the first number is the lowest if the genome is not allowed."""
        first, *others = self.fitness(genome)
        return (first if self.allowed(genome) else -math.inf, *others)

    # What is known

    def _ranked(self, rung: int | None = None) -> list[Genome]:
        """Genomes scored at a rung, by default the last, the fittest first."""
        steps = self.settings.rungs[-1] if rung is None else rung
        return [evaluation.genome for evaluation in self.ledger.at(steps, self.settings.seed)]

    def _scores(self) -> dict[int, dict[Genome, float]]:
        """By rung and genome; -inf if it diverged."""
        at = {rung: self.ledger.at(rung, self.settings.seed) for rung in self.settings.rungs}
        return {rung: {row.genome: row.fitness[0] for row in evaluations} for rung, evaluations in at.items()}

    def _fittest(self) -> Evaluation:
        """The fittest full evaluation, of an allowed genome if there is one."""
        full = self.ledger.at(self.settings.rungs[-1], self.settings.seed)
        return next((evaluation for evaluation in full if self.allowed(evaluation.genome)), full[0])

    def _fittest_of_groups(self) -> dict[str, Genome]:
        """By the group's name; at least one of each is trained to the end."""
        ranked = self._ranked()
        return {name: next(genome for genome in ranked if genome in group) for name, group in self.groups.items()}

    def _found(self, why: str) -> Found:
        return Found(list(filter(self.allowed, self._ranked())), self._fittest_of_groups(), why, correlations(self._scores()))

    def _report(self, number: int, fittest: Evaluation, state: Any, *, num_new: int, num_full: int, screened: bool) -> None:
        bred = np.asarray(state.population)
        scores = [self.ledger.fitness(as_genome(genome))[1] for genome in bred]
        mean = float(np.mean([score for score in scores if math.isfinite(score)] or [math.nan]))
        share, left = self.space.frozen(bred).mean(0), self._steps_to_come(number, len(bred))
        self.on_generation(Generation(number, fittest, num_new, num_full, screened, mean, share, left))

    # When to stop

    @property
    def _steps_left(self) -> float:
        """Training steps that the budget leaves, apart from those that initial genomes will take at least."""
        to_come = len(self.ledger.unseen(self.initial)) * self.settings.rungs[0]
        return self.settings.evaluations * self.settings.rungs[-1] - self.ledger.steps_trained - to_come

    def _steps_to_come(self, number: int, size: int) -> float:
        """Training steps of later generations, about: as many for a genome, and as fast, as so far."""
        settings, num_seen, trained = self.settings, len(self._ranked(self.settings.rungs[0])), self.ledger.steps_trained
        num_genomes = min((settings.generations - number) * size, self.space.num_different - num_seen, sys.maxsize)
        in_time = trained * (settings.seconds / max(self.ledger.seconds, 1e-9) - 1)
        return max(0.0, min(num_genomes * trained / num_seen, self._steps_left, in_time))

    def _why_stop(self, number: int, since_best: int) -> str:
        """Why no other generation begins, in words; empty if one does."""
        settings = self.settings
        if len(self._ranked(settings.rungs[0])) == self.space.num_different:
            return f"as all {self.space.num_different} masks have been evaluated"
        if number > settings.generations:
            return f"after {settings.generations} generations"
        if len(self.ledger.unseen(self.initial)):
            return ""
        if self._steps_left < settings.steps_of_genome:
            return f"after the training steps of {settings.evaluations:g} evaluations"
        if self.elapsed() > settings.seconds:
            return f"after {settings.seconds / 60:g} minutes"
        if settings.patience is not None and since_best >= settings.patience:
            return f"after {since_best} generations without a fitter mask"
        return ""


_jitted = functools.cache(jax.jit)  # searches with the same GA share compiled code
