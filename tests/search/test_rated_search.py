"""The search where genes have several levels, and a genome a rate: known optima are found, and leaders are tuned."""

import jax
import numpy as np
import pytest
from test_search import Member

from gafreeze_jax.search import genetic
from gafreeze_jax.search.halving import Settings
from gafreeze_jax.search.history import Ledger
from gafreeze_jax.search.loop import Search
from gafreeze_jax.space import Space, as_genome

pytestmark = pytest.mark.usefixtures("quick_compilation")

NUM_GENES, STEPS = 5, 24
LEVELS = {2: (1, 0), 3: (1, 0, 0.3), 4: (1, 0, 0.3, 0.1), 5: (1, 0, 2, 0.3, 0.1)}
RATES = (0.25, 0.5, 1, 2)


def space_of(num_levels, rates=RATES):
    return Space([f"gene_{i}" for i in range(NUM_GENES)], LEVELS[num_levels], rates)


class Landscape:
    """A level is best for each gene, and a rate for all; each step away from these costs."""

    def __init__(self, space, seed=0):
        rng = np.random.default_rng(seed)
        self.space, (self.best,) = space, space.unique(space.sample(rng, 1).tolist())
        self.weights = rng.uniform(0.02, 0.06, NUM_GENES)
        self.asked = []

    def score(self, genome):
        levels, rate = np.argsort(np.argsort(self.space.levels)), len(self.space.rates) > 1
        steps = np.abs(levels[list(genome[:NUM_GENES])] - levels[self.best[:NUM_GENES]])
        return 0.9 - self.weights @ steps - (0.03 * abs(int(genome[-1]) - int(self.best[-1])) if rate else 0)

    def evaluate(self, genomes, seed, until):
        for genome in genomes:
            self.asked.append(as_genome(genome))
            yield [self.member(genome)]

    def resume(self, members, seed, until):
        for member in members:
            yield [self.member(member.genome)]

    def member(self, genome):
        score = self.score(genome)
        return Member(genome, float(score), 1 - float(score), 0.5, 1.0)


def make_search(landscape, *, allowed=lambda genome: True, make_ga=genetic.make_ga, screen=True, rungs=(STEPS,), **settings):
    space = landscape.space
    groups = {"prefix": space.at_rates(space.prefixes()[1:-1]), "suffix": space.at_rates(space.suffixes()[1:-1])}
    return Search(
        space=space,
        ga=make_ga(space, 8),
        evaluator=landscape,
        ledger=Ledger(STEPS),
        settings=Settings(rungs=rungs, screen=screen, **settings),
        initial=space.unique([*space.prefixes(), *space.suffixes()]),
        count_trainable=lambda genome: int((~np.asarray(space.frozen(genome))).sum()),
        groups=groups,
        allowed=allowed,
    )


def regret(landscape, leader):
    return landscape.score(landscape.best) - landscape.score(leader)


@pytest.mark.parametrize(
    ("num_levels", "rates"), [(2, RATES), (3, (1,)), (4, RATES), (5, (1,))], ids=["2, rates", "3", "4, rates", "5"]
)
def test_known_optima_are_found(num_levels, rates):
    """Or missed by a step of a gene, in at most 150 evaluations of up to 4,096 genomes."""
    found, random = [], []
    for seed in range(3):
        for gaps, make_ga, screen in ((found, genetic.make_ga, True), (random, genetic.make_random, False)):
            landscape = Landscape(space_of(num_levels, rates), seed)
            search = make_search(landscape, make_ga=make_ga, screen=screen, generations=100, evaluations=150)
            gaps.append(regret(landscape, search.run(jax.random.key(seed)).leaders[0]))
            assert len(set(landscape.asked)) == len(landscape.asked) <= 150
    assert sum(gap == 0 for gap in found) >= 2
    assert max(found) <= 0.06  # one step of one gene
    if landscape.space.size > 1000:
        assert np.mean(found) < np.mean(random) / 2


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("rungs", [(STEPS,), (6, STEPS)])
def test_first_genomes_take_the_rate_at_which_training_everything_does_best_and_the_next(rungs, seed):
    """No rate is stopped early; no genome is trained twice."""
    landscape = Landscape(space := space_of(2), seed)
    search = make_search(landscape, generations=1, rungs=rungs)
    search.run(jax.random.key(seed))
    everything = list(map(as_genome, space.at_rates([space.all_trained])))
    best = max(everything, key=landscape.score)
    first = [*space.prefixes(), *space.suffixes()]
    others = {as_genome(mask) for rate in (best, space.at_higher_rate(best)) for mask in space.at_rate_of(rate, first)}
    in_full = [evaluation.genome for evaluation in search.ledger.at(STEPS, 0)]
    assert landscape.asked[: len(RATES)] == everything
    assert set(landscape.asked) == others | set(everything)
    assert len(landscape.asked) == len(set(landscape.asked))
    assert set(everything) <= set(in_full)


class Apart(Landscape):
    """Training everything does best at rate 1, prefix masks at a quarter of it."""

    def score(self, genome):
        prefix = as_genome(genome[:NUM_GENES]) in {as_genome(row[:NUM_GENES]) for row in self.space.prefixes()[1:-1]}
        return 0.5 - 0.02 * sum(genome[:NUM_GENES]) - 0.1 * abs(RATES[genome[-1]] - (0.25 if prefix else 1))


def test_a_group_is_tried_at_the_rate_that_suits_its_fittest():
    landscape = Apart(space := space_of(2))
    make_search(landscape, generations=5).run(jax.random.key(0))
    fittest = [(1, 0, 0, 0, 0), (0, 0, 0, 0, 1)]  # of prefix and suffix masks
    others = [as_genome(mask[:NUM_GENES]) for mask in space.prefixes()[2:-1]]
    first, at_rates, groups = (
        [landscape.asked.index((*genome, rate)) for genome in genomes for rate in rates]
        for genomes, rates in ((others + fittest, [2, 3]), (fittest, [0, 1]), (others, [0]))
    )
    assert max(first) < min(at_rates) < max(at_rates) < min(groups)
    suffixes = {(*as_genome(mask[:NUM_GENES]), 0) for mask in space.suffixes()[2:-1]}
    assert not suffixes <= set(landscape.asked)  # rate 1 suits these


@pytest.mark.parametrize("num_levels", [2, 4])
@pytest.mark.parametrize("seed", range(3))
def test_no_leader_is_left_without_its_rates(num_levels, seed):
    landscape = Landscape(space := space_of(num_levels), seed)
    search = make_search(landscape, generations=2)
    found = search.run(jax.random.key(seed))
    num_before = len(landscape.asked)
    tuned = search.tune(found, 2)
    evaluated = set(landscape.asked)
    assert num_before < len(evaluated) == len(landscape.asked)  # some were missing, and none was evaluated twice
    assert len(evaluated) - num_before <= (2 + len(found.groups)) * (len(RATES) - 1)
    for leader in (*tuned.leaders[:2], *tuned.groups.values()):
        assert set(map(as_genome, space.at_rates([leader]))) <= evaluated
    for name, genomes in search.groups.items():
        assert tuned.groups[name] == max(genomes & evaluated, key=landscape.score)
    assert tuned.leaders == sorted(tuned.leaders, key=landscape.score, reverse=True)
    assert set(tuned.leaders) == evaluated
    assert tuned.why_stopped == found.why_stopped


def test_what_is_not_allowed_is_not_tuned():
    landscape = Landscape(space_of(3))
    at_least_half = lambda genome: landscape.space.rate(genome) >= 0.5  # noqa: E731
    search = make_search(landscape, generations=1, allowed=at_least_half)
    found = search.run(jax.random.key(0))
    first = set(map(as_genome, [*search.initial, *landscape.space.at_rates([landscape.space.all_trained])]))
    tuned = search.tune(found, 2)
    assert all(map(at_least_half, set(landscape.asked) - first))
    assert all(map(at_least_half, tuned.leaders))


def test_tuning_again_evaluates_nothing():
    landscape = Landscape(space_of(3))
    search = make_search(landscape, generations=1)
    tuned = search.tune(search.run(jax.random.key(0)), 2)
    num = len(landscape.asked)
    assert search.tune(tuned, 2).leaders == tuned.leaders
    assert len(landscape.asked) == num
