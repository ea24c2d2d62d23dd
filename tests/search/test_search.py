"""The search on tables of what training would give: a member is looked up in place of being trained."""

import functools
import itertools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_genetic import space_of

from gafreeze_jax.search import genetic, nsga2
from gafreeze_jax.search.halving import SHARE, Settings
from gafreeze_jax.search.history import Ledger
from gafreeze_jax.search.loop import ASKS, Found, Search
from gafreeze_jax.space import as_genome, digits

pytestmark = pytest.mark.usefixtures("quick_compilation")

NUM_GENES = 6
SPACE = space_of(NUM_GENES)
ALL = SPACE.all_genomes()
PREFIXES = SPACE.prefixes()
GROUPS = {"train all": PREFIXES[:1], "head only": PREFIXES[-1:], "prefix": PREFIXES[1:-1]}
RUNGS = (6, 12, 24)
PER_GENOME = 6 + 6 * SHARE + 12 * SHARE**2  # steps that a new genome takes, about
NOBODY = SPACE.stack([])
make_ga = functools.cache(genetic.make_ga)  # compiled once


def genome(text):
    return tuple(map(int, text))


def index(genome):
    return int(space_of(len(genome)).index(genome))


def make_table(seed=0, num_genes=NUM_GENES, noise=(0.02, 0.01, 0.005), effect=0.03):
    """Accuracies [2^G, R]: additive in the genes, better and less noisy with each rung."""
    rng = np.random.default_rng(seed)
    truth = 0.7 + effect * (space_of(num_genes).all_genomes() - 0.5) @ rng.normal(size=num_genes)
    gains = np.linspace(-0.1, 0.0, len(noise)) if len(noise) > 1 else np.zeros(1)
    return truth[:, None] + gains + noise * rng.normal(size=(len(truth), len(noise)))


TABLE = make_table()


class Member(NamedTuple):
    genome: np.ndarray
    score: float
    loss: float
    train_loss: float
    seconds: float
    state: object = None


class Lookup:
    """An evaluator that looks accuracies up, and returns members in an order of its own.

    Args:
      tables: [2^G, R] of each seed.
      diverges: whether a genome has diverged by a rung.

    Attributes:
      asked: genome, seed and steps of each evaluation.
      resumed: each member that was resumed, and the one that had been given last for its genome.
    """

    def __init__(self, tables, rungs, diverges):
        self.tables, self.rungs, self.diverges = tables, rungs, diverges
        self.asked, self.resumed, self.given = [], [], {}

    def evaluate(self, genomes, seed, until):
        return self._look_up([(genome, object()) for genome in genomes], seed, until)

    def resume(self, members, seed, until):
        self.resumed += [(member, self.given[as_genome(member.genome)]) for member in members]
        return self._look_up([(member.genome, member.state) for member in members], seed, until)

    def _look_up(self, genomes, seed, until):
        for genome, state in reversed(genomes):
            key = as_genome(genome)
            self.asked.append((key, seed, until))
            accuracy = self.tables[seed][index(key), self.rungs.index(until)]
            loss = math.nan if self.diverges(genome, until) else 1 - accuracy
            self.given[key] = Member(genome, float(accuracy), loss, 0.5, 1.0, state)
            yield [self.given[key]]


class Outcome(NamedTuple):
    found: Found
    ledger: Ledger
    lookup: Lookup
    generations: list
    told: list  # the genomes that the GA was told in each generation

    def at(self, rung, number=None):
        """Genomes that got to a rung, in one generation or in all."""
        return {one.genome for one in self.ledger if one.steps == rung and number in (None, one.generation)}


def nobody(genome, steps):
    return False


def run(
    key=0, *, table=TABLE, ga=None, population=7, initial=PREFIXES, groups=GROUPS, diverges=nobody, fitness=None,
    allowed=lambda genome: True, **settings,
):  # fmt: skip
    """Searches a table of accuracies [2^G, R]."""
    settings = Settings(**{"rungs": RUNGS, "generations": 6, "screen": False, **settings})
    lookup = Lookup([table, table[::-1]], settings.rungs, diverges)
    ledger, generations, told, now = Ledger(settings.rungs[-1]), [], [], []

    def tell(genome):
        now.append(genome)
        return (fitness or ledger.fitness)(genome)

    def on_generation(generation):
        generations.append(generation)
        told.append(set(now))
        now.clear()

    found = Search(
        space=space_of(initial.shape[1]),
        ga=ga or make_ga(space_of(initial.shape[1]), population),
        evaluator=lookup,
        ledger=ledger,
        settings=settings,
        initial=initial,
        count_trainable=lambda genome: genome.count(0),
        groups=groups,
        fitness=tell,
        allowed=allowed,
        on_generation=on_generation,
    ).run(jax.random.key(key))
    return Outcome(found, ledger, lookup, generations, told)


def rows(outcome):
    return [one._replace(seconds=0) for one in outcome.ledger]


@pytest.mark.parametrize("screen", [False, True])
def test_no_genome_is_evaluated_twice(screen):
    _, ledger, lookup, generations, _ = outcome = run(screen=screen, generations=8)
    assert len(lookup.asked) == len(set(lookup.asked)) == len(ledger)
    assert [generation.number for generation in generations] == list(range(1, 9))
    for generation in generations:
        assert generation.num_new == len(outcome.at(RUNGS[0], generation.number))
        assert generation.num_full == len(outcome.at(RUNGS[-1], generation.number))
    assert [generation.num_new for generation in generations] == 8 * [7]


@pytest.mark.parametrize("key", range(3))
def test_who_goes_on(key):
    """The better part of those that were ever seen at a rung, and the best of each group."""
    outcome = run(key)
    number_of = {one.genome: one.generation for one in outcome.ledger}
    num_remembered = 0
    for number, (rung, column) in itertools.product(range(1, 7), [(6, 0), (12, 1)]):
        accuracy = lambda genome, column=column: TABLE[index(genome), column]  # noqa: E731
        seen = sorted((genome for genome in outcome.at(rung) if number_of[genome] <= number), key=accuracy, reverse=True)
        best_of_groups = [max(outcome.at(rung) & set(map(as_genome, own)), key=accuracy) for own in GROUPS.values()]
        go_on = {*seen[: math.ceil(SHARE * len(seen))], *best_of_groups} & outcome.at(rung, number)
        assert outcome.at(2 * rung, number) == go_on
        num_remembered += len(go_on) != math.ceil(SHARE * len(outcome.at(rung, number)))
    assert num_remembered > 0, "earlier generations made no difference"


def test_a_group_that_is_not_all_there_at_first_keeps_its_best():
    """It goes on when it comes; who is worse than an earlier one of the group does not."""
    table = make_table()
    half = ALL[1::2]
    table[1::2] -= 0.3  # the group would never be among the best half
    outcome = run(3, table=table, groups={"half": half}, generations=8)
    course = [
        [one for one in outcome.ledger if one.genome in set(map(as_genome, half)) and one.steps == rung] for rung in RUNGS
    ]
    for lower, upper in itertools.pairwise(course):
        best = {
            number: max((one for one in lower if one.generation <= number), key=lambda one: one.fitness)
            for number in range(1, 9)
        }
        assert {one.genome for one in upper} == {one.genome for number, one in best.items() if one.generation == number}
    assert len(course[-1]) > 1
    assert outcome.found.groups == {"half": course[-1][-1].genome}


def test_the_promoted_go_on_with_the_state_that_they_had():
    lookup = run().lookup
    assert len(lookup.resumed) == len([steps for _, _, steps in lookup.asked if steps > RUNGS[0]]) > 0
    assert all(came is given for came, given in lookup.resumed)


def test_the_first_generation_holds_the_initial_genomes():
    given = np.concatenate([PREFIXES, ALL[40:45]])
    for population, initial_of_ga in ((2, None), (12, None), (12, given)):
        ga = genetic.make_ga(SPACE, population, initial=initial_of_ga)
        outcome = run(ga=ga._replace(ask=lambda key, state: state.population), generations=1)  # quick to compile
        assert outcome.at(RUNGS[0]) >= set(map(as_genome, PREFIXES))
        assert outcome.generations[0].num_new == len(outcome.at(RUNGS[0])) == max(population, len(PREFIXES))


@pytest.mark.parametrize(
    ("generations", "seeds", "sizes"),
    [(5, [3, 3, 1], [3, 3, 3, 3, 3]), (2, [4, 3], [4, 3]), (1, [7], [7]), (math.inf, [3, 3, 1], [3, 3, 3])],
)
def test_initial_genomes_come_in_several_generations(generations, seeds, sizes):
    """As many as the population has members, or more if there are few generations."""
    outcome = run(population=3, generations=generations, groups={})
    assert [generation.num_new for generation in outcome.generations][: len(sizes)] == sizes
    ends = np.cumsum(seeds)
    for number, (end, num) in enumerate(zip(ends, seeds, strict=True), start=1):
        assert outcome.at(RUNGS[0], number) >= set(map(as_genome, PREFIXES[end - num : end]))


@pytest.mark.parametrize("limit", [{"evaluations": 1}, {"seconds": 0}, {"patience": 1}], ids=str)
def test_no_limit_leaves_initial_genomes_out(limit):
    outcome = run(population=2, generations=math.inf, table=1 - frozen_is_better(), **limit)
    assert {as_genome(genome) for genome in PREFIXES} <= outcome.at(RUNGS[0])
    assert set(outcome.found.groups) == set(GROUPS)
    assert len(outcome.generations) == 4


def plain_loop(ga, key, table, generations):
    """Ask, evaluate, tell: what the search does without its savings. New genomes are the first unseen offspring."""
    init, ask, tell = ga.init, jax.jit(ga.ask), jax.jit(ga.tell)
    key, key_init, _ = jax.random.split(key, 3)
    state, known, course = init(key_init), {}, []
    for number in range(generations):
        key, key_ask = jax.random.split(key)
        size = len(state.population) if number else len(PREFIXES)
        asked = [PREFIXES, ask(key_ask, state)] if number == 0 else [ask(own, state) for own in jax.random.split(key_ask, ASKS)]
        new = list(dict.fromkeys(text for text in map(as_genome, np.concatenate(asked)) if text not in known))[:size]
        for text in new:
            accuracy = table[index(text), -1]
            known[text] = (accuracy, accuracy - 1, -text.count(0))
        told = list(dict.fromkeys([*map(as_genome, np.asarray(state.population)), *new])) if number else new
        fitness = jnp.array([known[text] for text in told], jnp.float32)
        state, _ = tell(state, np.array(told), fitness)
        course.append((new, set(told)))
    return known, course


@pytest.mark.parametrize("key", [0, 1])
def test_with_one_rung_and_no_surrogate_it_is_a_plain_loop(key):
    outcome = run(key, table=TABLE[:, -1:], rungs=(24,))
    known, course = plain_loop(make_ga(SPACE, len(PREFIXES)), jax.random.key(key), TABLE, 6)
    assert [(set(new), told) for new, told in course] == [
        (outcome.at(24, number), told) for number, told in enumerate(outcome.told, start=1)
    ]
    assert all(generation.num_full == generation.num_new for generation in outcome.generations)
    fittest = sorted(known, key=lambda text: known[text], reverse=True)
    assert outcome.found.leaders == fittest
    assert outcome.found.correlations == ()


@pytest.mark.parametrize("key", [0, 1])
@pytest.mark.parametrize("evaluations", [4, 9.5, 20])
def test_a_budget_is_spent_and_not_exceeded(evaluations, key):
    outcome = run(key, groups={}, evaluations=evaluations, generations=math.inf)
    left = evaluations * RUNGS[-1] - outcome.ledger.steps_trained
    assert 0 <= left < PER_GENOME
    assert outcome.found.why_stopped == f"after the training steps of {evaluations:g} evaluations"
    assert outcome.ledger.num_full >= evaluations / 4


@pytest.mark.parametrize("evaluations", [1, 4, 9.5, 20])
def test_only_groups_go_beyond_a_budget(evaluations):
    outcome = run(evaluations=evaluations, generations=math.inf)
    of_groups = RUNGS[0] * len(PREFIXES) + (RUNGS[-1] - RUNGS[0]) * len(GROUPS)
    budget = evaluations * RUNGS[-1]
    assert outcome.ledger.steps_trained <= max(budget, of_groups)
    assert set(outcome.found.groups) == set(GROUPS)
    if budget <= of_groups:
        assert outcome.ledger.steps_trained == of_groups


@pytest.mark.parametrize("initial", [NOBODY, PREFIXES], ids=len)
@pytest.mark.parametrize("rungs", [RUNGS, (3, 24), (24,)], ids=str)
def test_the_smallest_budget_has_a_leader(initial, rungs):
    outcome = run(table=TABLE[:, -len(rungs) :], rungs=rungs, initial=initial, groups={}, evaluations=1)
    assert len(outcome.found.leaders) == outcome.ledger.num_full >= 1


def frozen_is_better():
    """All else being equal, so that the fittest mask is among the initial ones."""
    return np.repeat(ALL.mean(1, keepdims=True), len(RUNGS), axis=1)


STOPS = {
    "generations": ({"generations": 3}, 3, "after 3 generations"),
    "one generation": ({"generations": 1}, 1, "after 1 generations"),
    "evaluations": ({"evaluations": 7}, 2, "after the training steps of 7 evaluations"),
    "seconds": ({"seconds": 0}, 1, "after 0 minutes"),
    "patience": ({"patience": 2}, 3, "after 2 generations without a fitter mask"),
    "what comes first": ({"generations": 4, "patience": 3, "evaluations": 100}, 4, "after 4 generations"),
    "no more masks": ({}, 10, "as all 64 masks have been evaluated"),
}


@pytest.mark.parametrize(("settings", "num_generations", "why"), STOPS.values(), ids=STOPS)
def test_why_it_stops(settings, num_generations, why):
    outcome = run(table=frozen_is_better(), **{"generations": math.inf, **settings})
    assert len(outcome.generations) == num_generations
    assert outcome.found.why_stopped == why
    assert outcome.found.leaders[0] == SPACE.all_frozen


def test_patience_waits_for_a_fitter_mask():
    outcome = run(1, patience=2, generations=math.inf, rungs=(24,), table=TABLE[:, -1:])
    best = [generation.best.genome for generation in outcome.generations]
    since = [len(list(same)) for _, same in itertools.groupby(best)]
    assert max(since[:-1]) <= 2
    assert since[-1] == 3
    assert len(since) > 1


def test_a_small_space_is_enumerated():
    table, rungs, enough = TABLE[:, -1:], (24,), len(ALL)
    outcome = run(table=table, rungs=rungs, evaluations=enough, generations=math.inf)
    (generation,) = outcome.generations
    assert generation.num_new == len(ALL) == len(outcome.at(24))
    assert outcome.found.why_stopped == "as all 64 masks have been evaluated"
    assert generation.best.score == table.max()
    for generations, evaluations in ((math.inf, enough - 1), (9, math.inf), (math.inf, math.inf)):
        first, *others = run(table=table, rungs=rungs, generations=generations, evaluations=evaluations).generations
        assert first.num_new == len(PREFIXES)
        assert others
    (generation,) = run(table=table, rungs=rungs, generations=10).generations
    assert generation.num_new == len(ALL)
    first, *_ = run(evaluations=enough).generations  # where masks are stopped early it is a search
    assert first.num_new == len(PREFIXES)


def test_offspring_come_first_and_are_filled_up_with_others():
    fixed = ALL[[62, 63, 61, 61, 62, 61, 63]]
    stubborn = make_ga(SPACE, len(fixed))._replace(ask=lambda key, state: jnp.asarray(fixed))
    outcome = run(ga=stubborn, generations=2)
    assert {as_genome(genome) for genome in fixed} <= outcome.at(RUNGS[0])
    assert outcome.generations[1].num_new == len(PREFIXES)
    others = [run(key, ga=stubborn, generations=2).at(RUNGS[0], 2) for key in range(3)]
    assert len(set.intersection(*others)) < len(PREFIXES), "those that fill up are random"


def test_a_large_space_is_not_exhausted_by_an_algorithm_that_has_converged():
    num_genes = 13  # too many masks to list
    stubborn = make_ga(space_of(num_genes), 4)._replace(ask=lambda key, state: jnp.ones((4, num_genes), jnp.int8))
    table = np.zeros((2**num_genes, 1))
    outcome = run(ga=stubborn, initial=space_of(num_genes).prefixes(), groups={}, table=table, rungs=(1,), generations=4)
    assert [generation.num_new for generation in outcome.generations] == [4, 4, 4, 4]
    assert outcome.found.why_stopped == "after 4 generations"


EIGHT = {"population": 8, "initial": space_of(8).prefixes(), "groups": {}, "generations": 8, "screen": True}


def test_the_surrogate_screens_where_it_has_earned_trust():
    later = []
    for key in range(3):
        outcome = run(key, table=make_table(key, 8, noise=(0.001, 0.001, 0.001)), **EIGHT)
        screened = [generation.screened for generation in outcome.generations]
        assert not screened[0]
        later += screened[3:]
    assert np.mean(later) > 0.9


def test_the_surrogate_seldom_screens_on_noise():
    screened = []
    for key in range(6):
        outcome = run(key, table=make_table(key, 8, effect=0.0), **EIGHT)
        screened += [generation.screened for generation in outcome.generations[1:]]
    assert np.mean(screened) < 0.2


def test_screening_can_be_switched_off_and_is_worth_having():
    regrets = {True: [], False: []}
    for key, screen in itertools.product(range(6), regrets):
        table = make_table(key, 8, noise=(0.01,))
        outcome = run(key, table=table, **EIGHT | {"rungs": (24,), "screen": screen, "generations": 5})
        assert any(generation.screened for generation in outcome.generations) == screen
        regrets[screen].append(table.max() - max(one.score for one in outcome.ledger))
    assert np.mean(regrets[True]) < np.mean(regrets[False])


def test_it_comes_close_to_the_best_mask_of_a_table():
    regrets = []
    for key in range(5):
        table = make_table(key)
        leader = run(key, table=table, screen=True).found.leaders[0]
        regrets.append(table[:, -1].max() - table[index(leader), -1])
    assert np.mean(regrets) < 0.01
    assert np.median([np.ptp(make_table(key)[:, -1]) for key in range(5)]) > 0.1


def test_groups_have_their_first_leader():
    found = run(screen=True).found
    ranks = {
        name: [found.leaders.index(text) for text in map(as_genome, own) if text in found.leaders]
        for name, own in GROUPS.items()
    }
    assert found.groups == {name: found.leaders[min(own)] for name, own in ranks.items()}
    assert found.groups["train all"] == SPACE.all_trained


def test_the_best_so_far_is_never_lost():
    outcome = run()
    course = [generation.best for generation in outcome.generations]
    assert [one.score for one in course] == sorted(one.score for one in course)
    assert course[-1].score == max(one.score for one in outcome.ledger if one.steps == RUNGS[-1])
    assert all(one.steps == RUNGS[-1] for one in course)


def test_mean_and_frozen_share_are_those_of_the_population():
    (generation,) = (outcome := run(generations=1, population=2)).generations
    fitness = outcome.ledger.fitness
    fittest = sorted({one.genome for one in outcome.ledger}, key=fitness)[-2:]
    np.testing.assert_allclose(generation.frozen_share, np.mean(fittest, axis=0))
    assert generation.mean == pytest.approx(np.mean([fitness(genome)[1] for genome in fittest]))


def test_diverged_members_are_no_part_of_the_mean():
    (generation,) = run(generations=1, diverges=lambda genome, steps: any(genome)).generations
    assert generation.mean == pytest.approx(TABLE[0, -1])


THREE_GENES = {"population": 6, "initial": space_of(3).prefixes(), "groups": {}, "table": make_table(num_genes=3)}


@pytest.mark.parametrize(
    ("settings", "steps"),
    [
        ({"generations": 3}, lambda trained: [2 * trained[0], trained[1] / 2, 0]),
        ({"evaluations": 5}, lambda trained: [5 * 24 - one for one in trained]),
        ({"seconds": 0.0}, lambda trained: [0]),
        (THREE_GENES, lambda trained: [2 * trained[0] / 6, 0]),
    ],
    ids=["generations", "evaluations", "seconds", "all masks"],
)
def test_the_steps_that_are_left(settings, steps):
    """Of new genomes as many as so far, on average; no more than there are, or than the limits leave."""
    outcome = run(**settings)
    trained = []
    for generation in outcome.generations:
        reached = {one.genome: one.steps for one in outcome.ledger if one.generation <= generation.number}
        trained.append(sum(reached.values()))
    assert [generation.steps_left for generation in outcome.generations] == pytest.approx(steps(trained))


def test_same_key_same_search():
    assert rows(run(3, screen=True)) == rows(run(3, screen=True))
    assert {one.genome for one in run(3).ledger} != {one.genome for one in run(4).ledger}


def test_the_seed_is_that_of_all_evaluations():
    first, second = run(), run(seed=1)
    assert {one.seed for one in second.ledger} == {seed for _, seed, _ in second.lookup.asked} == {1}
    accuracies = [{one.genome: one.score for one in outcome.ledger if one.generation == 1} for outcome in (first, second)]
    assert accuracies[0] != accuracies[1]


def test_ties_go_to_lower_loss_and_then_to_fewer_trainable_parameters():
    outcome = run(table=np.full_like(TABLE, 0.5))
    assert outcome.generations[0].best.genome == outcome.found.leaders[0] == SPACE.all_frozen


def test_the_ga_can_be_told_another_fitness():
    """Here the number of trained genes: offspring become such, and the leaders are still the most accurate."""
    table = frozen_is_better()
    plain, other = run(table=table), run(table=table, fitness=lambda genome: (genome.count(0),))
    shares = [outcome.generations[-1].frozen_share.mean() for outcome in (plain, other)]
    assert shares[1] < 0.4 < 0.6 < shares[0]
    assert other.found.leaders[0] == SPACE.all_frozen


@pytest.mark.parametrize("population", [6, 12])
def test_only_allowed_masks_are_evaluated_and_lead(population):
    """Here those that freeze four genes or more, 22 of 64; the initial ones are evaluated in any case."""
    allowed = lambda genome: sum(genome) >= 4  # noqa: E731
    outcome = run(allowed=allowed, population=population, generations=math.inf)
    assert outcome.at(RUNGS[0]) == {as_genome(genome) for genome in [*ALL[ALL.sum(1) >= 4], *PREFIXES]}
    assert outcome.found.why_stopped == "as all allowed masks have been evaluated"
    assert outcome.found.leaders
    assert all(map(allowed, outcome.found.leaders))
    assert outcome.found.groups["train all"] == SPACE.all_trained


def search_large(num_genes, num_frozen, *, key=0, ga=make_ga, initial=None, **settings):
    """A space that cannot be listed, where only masks that freeze some genes are allowed, and to freeze fewer is better."""
    space = space_of(num_genes)
    ledger = Ledger(STEPS)
    found = Search(
        space=space,
        ga=ga(space, 3),
        evaluator=FewFrozen(),
        ledger=ledger,
        settings=Settings((STEPS,), **{"generations": 40, "screen": False, **settings}),
        initial=space.stack([] if initial is None else initial),
        count_trainable=lambda genome: genome.count(0),
        groups={},
        allowed=lambda genome: sum(genome) >= num_frozen,
    ).run(jax.random.key(key))
    return found, {one.genome for one in ledger}


STEPS = 4


class FewFrozen:
    def evaluate(self, genomes, seed, until):
        return [[Member(genome, 1 - float(np.mean(genome)), float(np.mean(genome)), 0.5, 1.0, None) for genome in genomes]]


@pytest.mark.parametrize("key", range(3))
@pytest.mark.parametrize(("num_frozen", "least"), [(9, 110), (12, 100)])
def test_a_search_goes_on_among_the_masks_that_are_allowed(key, num_frozen, least):
    """Of 14 genes: 3,473 masks freeze nine or more, 106 twelve or more; the fittest of the initial ones are not allowed."""
    initial = space_of(14).prefixes()
    found, evaluated = search_large(14, num_frozen, key=key, initial=initial)
    others = evaluated - set(map(as_genome, initial))
    assert len(others) >= least - len(initial)
    assert all(sum(genome) >= num_frozen for genome in others)
    assert sum(found.leaders[0]) == num_frozen
    assert found.why_stopped in ("after 40 generations", "as no other allowed mask was found")


def test_masks_that_are_not_allowed_are_not_bred_from():
    """They are fitter, and the three that are allowed fill the population."""
    outcome = run(table=1 - frozen_is_better(), allowed=lambda genome: sum(genome) >= 4, population=3, generations=3)
    assert set(map(as_genome, PREFIXES)) <= outcome.at(RUNGS[0])
    assert outcome.generations[-1].frozen_share.sum() >= 4


@pytest.mark.parametrize("key", range(6))
def test_random_masks_are_allowed_ones(key):
    found, evaluated = search_large(14, 12, key=key, ga=genetic.make_random, generations=2)
    assert found.leaders
    assert len(evaluated) == 6
    assert all(sum(genome) >= 12 for genome in evaluated)


def test_more_genes_than_a_float_can_count_masks_of():
    found, evaluated = search_large(1100, 0, ga=genetic.make_random, generations=math.inf, evaluations=6)
    assert len(evaluated) == 6
    assert found.leaders


def test_fewer_masks_than_the_population_are_enough_for_a_front():
    """What has not been evaluated is not bred from."""
    objectives = lambda genome: (float(np.mean(genome)), -float(genome.count(0)))  # noqa: E731
    ga = nsga2.make_nsga2(SPACE, 20, num_objectives=2)
    outcome = run(ga=ga, population=20, fitness=objectives, evaluations=9, generations=4)
    assert 0 < len(outcome.at(RUNGS[0])) < 20
    assert outcome.told[0] <= outcome.at(RUNGS[0])


def test_masks_that_are_not_allowed_take_no_places_among_the_best():
    """All that are allowed are worse, and still the better part of them goes on."""
    table = 1 - frozen_is_better()
    outcome = run(table=table, allowed=lambda genome: sum(genome) >= 2, groups={}, generations=1)
    assert outcome.at(RUNGS[1]) == set(map(genome, ("110000", "111000", "111100")))
    assert outcome.at(RUNGS[-1]) == set(map(genome, ("110000", "111000")))
    assert outcome.generations[0].best.genome == outcome.found.leaders[0] == genome("110000")


def test_the_smallest_budget_has_a_leader_that_is_allowed():
    """The group's best, which is protected, may not lead."""
    outcome = run(allowed=lambda genome: sum(genome) >= 4, groups={"prefix": PREFIXES[1:4]}, evaluations=1)
    best = max(map(genome, ("111100", "111110", "111111")), key=lambda genome: TABLE[index(genome), 0])
    assert outcome.found.leaders == [best]
    assert len(outcome.at(RUNGS[-1])) == 2


A_THIRD = np.random.default_rng(0).random(len(ALL)) < 1 / 3
DIVERGE = {
    "from the start": lambda genome, steps: genome[0],
    "at the end": lambda genome, steps: genome[0] and steps == RUNGS[-1],
    "most": lambda genome, steps: any(genome[:2]),
    "at random": lambda genome, steps: A_THIRD[index(genome)] and steps == RUNGS[-1],
}


@pytest.mark.parametrize("diverges", DIVERGE.values(), ids=DIVERGE)
@pytest.mark.parametrize("screen", [False, True])
def test_who_diverged_never_leads(diverges, screen):
    table = make_table()
    table[len(table) // 2 :] += 0.2  # just those would be the best
    outcome = run(table=table, diverges=diverges, screen=screen, generations=8)
    full = {one.genome: one.diverged for one in outcome.ledger if one.steps == RUNGS[-1]}
    assert set(full.values()) == {False, True}  # "head only" is protected
    in_order = [full[genome] for genome in outcome.found.leaders]
    assert in_order == sorted(in_order)
    assert not any(generation.best.diverged for generation in outcome.generations)
    for name, own in GROUPS.items():
        assert full[outcome.found.groups[name]] == all(full.get(text, True) for text in map(as_genome, own))


def test_those_told_to_the_ga_rank_by_their_fitness_and_the_diverged_last():
    outcome = run(diverges=DIVERGE["at the end"], groups=GROUPS, generations=8)
    diverged = {one.genome for one in outcome.ledger if one.diverged}
    kept = set.intersection(*outcome.told[-2:])
    assert diverged
    assert not diverged & kept


@pytest.mark.parametrize("screen", [False, True])
def test_all_may_diverge(screen):
    outcome = run(diverges=lambda genome, steps: True, screen=screen)
    assert len(outcome.generations) == 6
    assert set(outcome.found.groups) == set(GROUPS)
    assert outcome.found.leaders
    assert outcome.found.correlations == (), "undefined"


def test_rank_correlation_of_rungs():
    """Of four genomes: neighbours swap, 1 - 6 * 4 / (4 * 15); then all are reversed."""
    table = np.array([[0.1, 0.2, 0.8], [0.2, 0.1, 0.9], [0.3, 0.4, 0.6], [0.4, 0.3, 0.7]])
    all_of_two = space_of(2).all_genomes()
    groups = {digits(genome): genome[None] for genome in all_of_two}
    outcome = run(ga=make_ga(space_of(2), 2), initial=all_of_two, table=table, groups=groups)
    assert [(one.steps, one.num) for one in outcome.found.correlations] == [((6, 12), 4), ((12, 24), 4)]
    assert [one.value for one in outcome.found.correlations] == pytest.approx([0.6, -1])
