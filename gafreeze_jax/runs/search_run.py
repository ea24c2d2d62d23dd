"""Runs a search end to end: a plan, the search, random masks beside it, and finalists with fresh seeds."""

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from gafreeze_jax.engine import devices, planning
from gafreeze_jax.engine.cohort import Member, Plan
from gafreeze_jax.engine.optimizer import adamw_recipe
from gafreeze_jax.engine.planning import Choice
from gafreeze_jax.engine.population import Population
from gafreeze_jax.options import OptionError, Options
from gafreeze_jax.report.display import Display
from gafreeze_jax.runs.baselines import BASELINES, FURTHER, TRAIN_ALL, Baseline, Trials, initial_genomes, train_all_at
from gafreeze_jax.runs.evaluator import JournaledEvaluator, train_and_name_fittest
from gafreeze_jax.runs.finalists import Finalist, Result, Retraining, candidates, retrain
from gafreeze_jax.runs.mask_costs import MaskCosts, find_front, pareto_fitness
from gafreeze_jax.runs.narrator import FINALISTS, RANDOM_MASKS, SEARCHING, Narrator, num_overlapping
from gafreeze_jax.runs.remarks import remarks_on_search
from gafreeze_jax.runs.run_dir import RunDir
from gafreeze_jax.search import genetic, nsga2
from gafreeze_jax.search.halving import Settings
from gafreeze_jax.search.history import BASELINE, FINAL, RANDOM, SEARCH, Ledger
from gafreeze_jax.search.loop import Found, Generation, Search, evaluation_of
from gafreeze_jax.space import Genome, Space, as_genome
from gafreeze_jax.tasks.base import Keys, Problem

LEAST_STEPS = 16  # after which a member is scored
NUM_LEADERS = 2  # of a search, that are trained again


def run_search(
    problem: Problem, options: Options, run_dir: RunDir, display: Display, *, baselines: Sequence[Baseline] | None = None
) -> Result:
    """Searches for the fittest mask, showing progress, and trains leaders and baselines with fresh seeds.

    Args:
      run_dir: the run's folder; evaluations and finalists in it are reused.
      display: where the progress is shown.
      baselines: the found mask is compared with them, and with the best random mask. Default: what the options say.
    """
    if baselines is None:
        baselines = BASELINES + FURTHER if options.baselines == "all" else BASELINES
    space = problem.space(options)
    with devices.over_all_devices(planning.num_at_a_time(problem.params, options.population)):
        run = SearchRun(problem, options, space=space, run_dir=run_dir, baselines=baselines, narrator=Narrator(display))
        run.narrator.comparing = run.compares_random
        run.narrator.expect(search=run.steps_of_search, finalists=run.steps_of_finalists())
        run.populate(run.first_genomes(), run.steps_of_search // run.num_steps, run.settings.rungs[0])
        found = run.search()
        masks = run.masks_of(found)
        facts = run.facts_of_search(found)
        run.narrator.remark(facts["remarks"])
        if run.compares_random:
            masks["best random mask"], facts["random_masks"] = run.search_random_masks()
        for baseline in run.baselines:
            if baseline.search is not None:
                run.narrator.begin(baseline.name)
                masks[baseline.name] = run.search_of(baseline.search)
        schedules = [baseline for baseline in run.baselines if baseline.schedules is not None]
        leaders = found.leaders[:NUM_LEADERS]
        run.narrator.retraining(leaders, [*masks, *schedules], run.fresh_seeds)
        genomes = candidates(space, leaders, filter(run.is_allowed, found.groups.values()))
        winner, rivals, dropped = run.retrain(genomes, masks, schedules)
        entries = {"search": facts | {"finalist_seeds": list(run.fresh_seeds)}}
        if options.objective == "pareto":
            entries["front"] = find_front(run.ledger, run.costs, problem.task.metric, options.seed)
        return Result(winner, rivals, list(run.run_dir.journal), run.facts_of_engine() | entries, space, dropped)


def space_of_mask(problem: Problem, rates: Sequence[float]) -> tuple[Space, Genome]:
    """A space with the rates [G] of a mask as its levels, and the mask in it."""
    levels = (1.0, 0.0, *sorted(set(rates) - {0.0, 1.0}, reverse=True))
    return Space(problem.network.names, levels, head=problem.head), as_genome(map(levels.index, rates))


def train_mask(problem: Problem, rates: Sequence[float], options: Options, run_dir: RunDir, display: Display) -> Result:
    """Trains with a mask, and everything at several rates, with fresh seeds; no search, otherwise like `run_search`.

    Args:
      rates: [G], by which updates are multiplied; 0 = frozen.
    """
    space, genome = space_of_mask(problem, rates)
    everything = space.all_trained
    genomes, baselines = list(dict.fromkeys([everything, genome])), train_all_at(problem.space(options).rates)
    with devices.over_all_devices(planning.num_at_a_time(problem.params, len(genomes))):
        run = SearchRun(problem, options, space=space, run_dir=run_dir, baselines=baselines, narrator=Narrator(display))
        num_runs = (len(genomes) + len(baselines)) * len(run.fresh_seeds)
        run.narrator.expect(finalists=num_runs * run.num_steps)
        run.populate(run.space.stack([everything, genome]), num_runs)
        run.narrator.training_mask(run.fresh_seeds)
        found, rivals, dropped = run.retrain([genome], {TRAIN_ALL.name: everything}, baselines)
        return Result(found, rivals, list(run.run_dir.journal), run.facts_of_engine(), space, dropped)


def make_settings(options: Options, num_steps: int) -> Settings:
    """How to search. Members are scored after a quarter and half of their steps, unless that is too early to tell."""
    early = options.halving and options.objective == "accuracy"  # a cheap mask need not be accurate
    rungs = [steps for steps in (num_steps // 4, num_steps // 2) if early and steps >= LEAST_STEPS]
    return Settings(
        rungs=(*rungs, num_steps),
        seed=options.seed,
        screen=options.objective == "accuracy",
        generations=options.gens,
        evaluations=math.inf if options.max_evaluations is None else options.max_evaluations,
        seconds=math.inf if options.max_minutes is None else 60 * options.max_minutes,
        patience=options.patience,
    )


class SearchRun:
    """The parts of a run, which `run_search` and `train_mask` put together.

    Attributes:
      fresh_seeds: for retraining finalists; the search uses none of them.
      initial: genomes that the search evaluates first, such as prefix masks; see `baselines.initial_genomes`.
      baselines: those that make sense here.
      enumerates: whether all masks are evaluated instead of a search.
      population, evaluator, choice, costs: set by `populate`.
      ledger: of the search.
    """

    population: Population
    evaluator: JournaledEvaluator
    choice: Choice
    costs: MaskCosts

    def __init__(
        self,
        problem: Problem,
        options: Options,
        *,
        space: Space,
        run_dir: RunDir,
        baselines: Sequence[Baseline],
        narrator: Narrator,
    ):
        self.problem, self.options, self.run_dir, self.narrator, self.space = problem, options, run_dir, narrator, space
        self.baselines = [baseline for baseline in baselines if baseline.fits(space)]
        self.make_replicate = functools.cache(problem.replicate)
        self.replicate = self.make_replicate(options.seed)
        self.num_steps = self.replicate.num_steps
        self.fresh_seeds = range(options.seed + 1, options.seed + 1 + options.finalist_seeds)
        self.ledger = self._ledger(SEARCH)
        self.genomes_of_baselines = self._genomes_of_baselines()
        by_name = {baseline.name: baseline for baseline in (*BASELINES, *FURTHER, *baselines) if baseline.fits(space)}
        self.initial = initial_genomes(space, by_name.values())  # whichever of them are compared
        self.key, self.key_random = jax.random.split(Keys.of(options.seed).search)
        settings = make_settings(options, self.num_steps)
        in_full = settings._replace(rungs=settings.rungs[-1:])
        self.enumerates = in_full.enumerates(self.space.num_different, len(self.initial), options.population)
        self.settings = in_full if self.enumerates else settings

    def _ledger(self, phase: str) -> Ledger:
        return Ledger(self.num_steps, self.run_dir.journal, phase=phase, on_add=self.narrator.display.evaluation)

    # How much there is to do

    @property
    def compares_random(self) -> bool:
        return self.options.baselines == "all" and not self.enumerates

    @property
    def steps_of_search(self) -> int:
        """Approximate number of training steps."""
        num_genomes = self.settings.num_genomes(len(self.initial), self.options.population)
        return int(min(self.space.num_different, num_genomes) * self.settings.steps_of_genome)

    def steps_of_finalists(self) -> int:
        """Upper bound of training steps."""
        variants = [len(baseline.schedules) * len(self.space.rates) for baseline in self.baselines if baseline.schedules]
        num_runs = len(self.fresh_seeds) * (NUM_LEADERS + len(self.baselines) + self.compares_random)
        return (num_runs + sum(num for num in variants if num > 1)) * self.num_steps

    def first_genomes(self) -> np.ndarray:
        """Genomes like those that come first, for timing."""
        random = self.space.sample(np.random.default_rng(self.options.seed), self.options.population)
        return np.concatenate([self.initial, random])[: max(len(self.initial), self.options.population)]

    # Training

    def populate(self, genomes: np.ndarray, num_evaluations: int, at_a_time: int | None = None) -> None:
        """Makes the population. Its plan is the run's, or that of `--plan`, or else the fastest that is timed."""
        options = self.options
        recipe = adamw_recipe(
            learning_rate=options.learning_rate, head_learning_rate=options.head_learning_rate, num_steps=self.num_steps
        )
        self.population = self.problem.make_population(
            recipe, plan=Plan(remat=options.remat), space=self.space, on_steps=self.narrator.display.progress.step
        )
        self.evaluator = JournaledEvaluator(self.population, self.make_replicate, self.run_dir.journal)
        if "plan" in self.run_dir.facts:
            self.choice = planning.from_json(self.run_dir.facts["plan"])
        elif options.plan == "auto":
            self.narrator.begin("choosing a plan", training=False)
            self.choice = planning.choose(self.population, genomes, self.replicate, num_evaluations, at_a_time)
        else:
            self.choice = Choice(planning.parse(options.plan)._replace(remat=options.remat), "given by --plan")
        self.population.plan = self.choice.plan
        self.run_dir.add_facts(plan=planning.as_json(self.choice, self.choice.plan))
        self.narrator.plan(self.choice, self.problem.network.dtype, len(self.run_dir.journal))
        self.costs = MaskCosts(self.population, self.replicate)

    def search(self) -> Found:
        """The search itself, or all masks instead of it."""
        if self.enumerates:
            self.narrator.enumerating(self.space.num_different)
        self._check_limit()
        in_pareto = self.options.objective == "pareto"
        make_ga = functools.partial(nsga2.make_nsga2, num_objectives=3) if in_pareto else genetic.make_ga
        search = self._make_search(  # where there are several rates, it chooses that of the first genomes
            ga=make_ga(self.space, self.options.population, initial=None if self.space.has_rate else self.initial),
            ledger=self.ledger,
            settings=self.settings,
            initial=self.initial,
            groups=self._groups(),
            fitness=functools.partial(pareto_fitness, self.ledger, self.costs) if in_pareto else None,
            on_generation=self._on_generation,
        )
        self.narrator.begin(SEARCHING)
        found = search.run(self.key)
        self.narrator.searched(found, self.ledger, self.spent)
        return search.tune(found, NUM_LEADERS)

    def _on_generation(self, generation: Generation) -> None:
        if generation.best.diverged:  # and so has every mask that was trained to the end, head only among them
            rates = f"--learning-rate {self.options.learning_rate:g}, --head-learning-rate {self.options.head_learning_rate:g}"
            raise OptionError(f"{rates}: all masks diverged; choose lower rates, and a new folder if you gave --out")
        self.narrator.generation(generation, self.ledger)

    def _remarks(self) -> list[str]:
        return remarks_on_search(
            list(self.ledger),
            num_steps=self.num_steps,
            num_validation=self.problem.validation.num_examples,
            num_leaders=NUM_LEADERS,
            metric=self.narrator.display.metric,
            learning_rate=self.options.learning_rate,
        )

    @property
    def spent(self) -> float:
        """Training steps of the search, in full evaluations."""
        return self.ledger.steps_trained / self.num_steps

    def search_random_masks(self) -> tuple[Genome, Mapping[str, int]]:
        """The best of random masks with about as many training steps, and how many were looked up."""
        self.narrator.begin(RANDOM_MASKS, self.ledger.steps_trained)
        ledger = self._ledger(RANDOM)
        budget = max(1.0, self.spent - NUM_LEADERS * (len(self.space.rates) - 1))  # the rest is for the leaders' other rates
        search = self._make_search(
            ga=genetic.make_random(self.space, self.options.population),
            ledger=ledger,
            settings=self.settings._replace(generations=math.inf, evaluations=budget, patience=None, screen=False),
            initial=self.space.stack([]),
            groups={},
        )
        found = search.tune(search.run(self.key_random), NUM_LEADERS)
        self.narrator.compared(ledger)
        return found.leaders[0], num_overlapping(ledger, self.ledger)

    def search_of(self, search: Callable[[Trials], Genome]) -> Genome:
        """The genome that a baseline's own search ends with."""
        ledger = self._ledger(BASELINE)
        fittest = functools.partial(train_and_name_fittest, self.evaluator, ledger, self.options.seed, self.count_trainable)
        return search(Trials(self.population, self.replicate, fittest))

    def _make_search(self, *, ledger: Ledger, **given: Any) -> Search:
        return Search(
            space=self.space,
            evaluator=self.evaluator,
            ledger=ledger,
            count_trainable=self.count_trainable,
            allowed=self.is_allowed,
            elapsed=lambda: float(devices.of_first(ledger.seconds)),
            **given,
        )

    def count_trainable(self, genome: Genome) -> int:
        """Number of parameters that train, the head's included."""
        return self.problem.count_trainable(self.space.frozen(genome))

    def is_allowed(self, genome: Genome) -> bool:
        return self.options.max_flops is None or self.costs.share(genome) <= self.options.max_flops

    def _check_limit(self) -> None:
        limit = self.options.max_flops
        if limit is not None and limit < math.inf and (least := self.costs.share(self.space.all_frozen)) > limit:
            raise OptionError(f"--max-flops {limit}: no mask costs so little; training the head alone costs {least:.4f}")

    # Baselines and finalists

    def _genomes_of_baselines(self) -> dict[str, np.ndarray]:
        """The genomes [N, K] of baselines that have some, at all rates, by name."""
        genomes = {baseline.name: baseline.genomes(self.space) for baseline in self.baselines if baseline.genomes is not None}
        return {name: self.space.at_rates(rows) for name, rows in genomes.items() if len(rows)}

    def _groups(self) -> dict[str, np.ndarray]:
        """Sets of genomes of which the search names the fittest."""
        return {name: rows for name, rows in self.genomes_of_baselines.items() if len(rows) > 1}

    def masks_of(self, found: Found) -> dict[str, Genome]:
        """The genome of each baseline that is a mask."""
        genomes = self.genomes_of_baselines
        return {name: found.groups.get(name) or as_genome(rows[0]) for name, rows in genomes.items()}

    def retrain(
        self, genomes: Sequence[Genome], masks: Mapping[str, Genome], schedules: Sequence[Baseline]
    ) -> tuple[Finalist, list[Finalist], list[Finalist]]:
        """The winner, the others that are still in at the end, and those that are not; see `finalists.retrain`."""
        self.narrator.begin(FINALISTS, self.steps_of_finalists())
        retraining = Retraining(
            self.population,
            self.make_replicate,
            self.fresh_seeds,
            tuning_seed=self.options.seed,
            num_epochs=self.options.epochs,
            store=self.run_dir.finalists,
            record=self._recorder(),
            rows=self.problem.validation.rows,
            is_thorough=self.options.baselines == "all" or self.options.mask is not None,
            on_race=self.narrator.raced,
        )
        found, others = retrain(retraining, genomes, masks, schedules)
        return found, [other for other in others if other.is_in], [other for other in others if not other.is_in]

    def _recorder(self) -> Callable[[Sequence[Member], int], None]:
        """A function that records finalists in the journal."""
        ledger = self._ledger(FINAL)
        generation = len(self.narrator.screened)

        def record(members: Sequence[Member], seed: int) -> None:
            steps, count = self.num_steps, self.count_trainable
            ledger.add(*(evaluation_of(member, seed, steps, generation, count) for member in members))

        return record

    # Facts for the result

    def facts_of_search(self, found: Found) -> dict[str, Any]:
        return {
            "rungs": self.settings.rungs,
            "full_evaluations": self.spent,
            "ended": found.why_stopped,
            "generations_screened": sum(self.narrator.screened),
            "remarks": self._remarks(),
            "correlations": [correlation._asdict() for correlation in found.correlations],
        }

    def facts_of_engine(self) -> dict[str, Any]:
        self.narrator.begin("counting FLOPs", training=False)
        dtype = self.problem.network.dtype
        return {
            "dtype": dtype and dtype.name,
            "step_flops": self.costs.step_flops._asdict(),
            "plan": planning.as_json(self.choice, self.population.plan),
        }
