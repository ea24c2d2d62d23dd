import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gafreeze_jax.search.genetic import State, make_ga, ranking, tournament_selection, uniform_crossover
from gafreeze_jax.space import Space

pytestmark = pytest.mark.usefixtures("quick_compilation")
few = settings(max_examples=30, deadline=None)
keys = st.integers(0, 2**32 - 1).map(jax.random.key)
parents = st.sampled_from([1, 2, 9]).flatmap(lambda num: st.tuples(*[st.lists(st.booleans(), min_size=num, max_size=num)] * 2))


def genomes(*rows):
    """genomes("10", "01") = [[1, 0], [0, 1]]"""
    return jnp.array([[int(gene) for gene in row] for row in rows], jnp.int8)


@functools.cache
def space_of(num_genes):
    return Space([f"gene_{i}" for i in range(num_genes)])


@functools.cache
def jitted(ga):
    """`ask` and `tell`, mapped over seeds."""
    return jax.jit(jax.vmap(ga.ask)), jax.jit(jax.vmap(ga.tell))


def run(ga, fitness, seeds, num_generations):
    """The genomes [T, S, P, G], fitness [T, S, P] and best genome [T, S, G] of T generations, for S seeds at once."""
    ask, tell = jitted(ga)
    keys = jax.vmap(lambda seed: jax.random.split(seed, num_generations + 1))(seeds)
    state = jax.vmap(ga.init)(keys[:, -1])
    history = []
    for number in range(num_generations):
        asked = ask(keys[:, number], state)
        scores = fitness(asked)
        state, info = tell(state, asked, scores)
        history.append((asked, scores, info.best))
    return [np.stack(part) for part in zip(*history, strict=True)]


def one_max(genomes):
    return genomes.sum(-1)


# ---------------------------------------------------------------------------------------------------------------------
# Problems that the algorithm must solve, with all seeds at once

SEEDS = jax.random.split(jax.random.key(2025), 10)


@functools.cache
def ga_of(num_genes):
    """The same object each time, so that it is compiled once."""
    return make_ga(space_of(num_genes), 50)


def test_one_max():
    _, _, best = run(ga_of(20), one_max, SEEDS, 50)
    assert best[-1].all()


def test_deceptive_trap():
    """Within a block each further 1 costs a point, but 111 is best: 000 = 2, one 1 = 1, two = 0, 111 = 3."""

    def trap(genomes):
        ones = genomes.reshape(*genomes.shape[:-1], 3, 3).sum(-1)
        return jnp.where(ones == 3, 3, 2 - ones).sum(-1)

    _, _, best = run(ga_of(9), trap, SEEDS, 60)
    assert best[-1].all()


def test_noisy_table():
    """4,096 genomes of 12 interacting genes, measured once each with an error of a fifth of their spread.

    The other 8 genes do nothing. A run sees 400 entries at most, among which the table's best would be in 10 % of all
    runs if they were random. 1,200 other runs ended at the best (median), the third (99 %) or the 6th (worst) of the
    table; free of error that was the second (median), the 19th (99 %) and the 34th (worst).
    """
    rng = np.random.default_rng(0)
    every = (np.arange(2**12)[:, None] >> np.arange(12)[None]) % 2
    effects = rng.normal(size=(12, 12)) * 0.3 + np.diag(rng.normal(size=12))
    true = np.einsum("ni,ij,nj->n", every, effects, every)
    measured = true + 0.2 * true.std() * rng.normal(size=(len(SEEDS), len(true)))  # another table for every seed
    rows = np.arange(len(SEEDS))

    def index(genomes):
        return np.asarray(genomes)[..., :12] @ 2 ** np.arange(12)

    ga = ga_of(20)
    _, _, best = run(ga, lambda asked: jnp.asarray(measured[rows[:, None], index(asked)]), SEEDS, 20)
    found = index(best[-1])
    places = (measured > measured[rows, found][:, None]).sum(1)
    true_places = (true[None] > true[found][:, None]).sum(1)
    assert np.median(places) == 0
    assert places.max() < 10
    assert true_places.max() < 50


def test_population_of_two():
    asked, scores, best = run(make_ga(space_of(6), 2), one_max, SEEDS, 150)
    assert asked.shape == (150, len(SEEDS), 2, 6)
    assert (np.diff(scores.max(-1), axis=0) >= 0).all()
    assert best[-1].all()


# ---------------------------------------------------------------------------------------------------------------------
# ask and tell

RUGGED = jnp.asarray(np.random.default_rng(1).normal(size=2**9), jnp.float32)


def rugged(genomes):
    return RUGGED[genomes @ (2 ** jnp.arange(9))]


def test_elitism_never_loses_the_best():
    asked, scores, best = run(ga_of(9), rugged, SEEDS, 15)
    assert (np.diff(scores.max(-1), axis=0) >= 0).all()
    np.testing.assert_array_equal(rugged(best), scores.max(-1))
    np.testing.assert_array_equal(asked[1:, :, 0], best[:-1])  # the elite is asked for first, unchanged


def test_same_seed_same_run():
    ga = ga_of(9)
    first, again = run(ga, rugged, SEEDS, 5)[0], run(ga, rugged, SEEDS, 5)[0]
    np.testing.assert_array_equal(first, again)
    assert len(np.unique(first.swapaxes(0, 1).reshape(len(SEEDS), -1), axis=0)) == len(SEEDS)


def test_elites_pass_and_all_others_are_mutated():
    ga = make_ga(space_of(6), 5, num_elites=3, crossover_rate=0.0, mutation_rate=1.0)
    population = genomes("000000", "000001", "000011", "000111", "001111")
    asked = jax.jit(ga.ask)(jax.random.key(0), State(population, jnp.array(1)))
    chex.assert_trees_all_equal(asked[:3], population[:3])
    inverted = {tuple(row) for row in (1 - population).tolist()}
    assert {tuple(row) for row in asked[3:].tolist()} <= inverted


def offspring_of_halves(**options):
    """1,000 offspring of 500 genomes of ones, the better half, and 500 of zeros, without mutation."""
    ga = make_ga(space_of(20), 1000, num_elites=0, mutation_rate=0.0, **options)
    population = jnp.repeat(jnp.array([[1], [0]], jnp.int8), 500, axis=0).repeat(20, axis=1)
    return np.asarray(jax.jit(ga.ask)(jax.random.key(0), State(population, jnp.array(1)))).astype(bool)


def test_parents_come_from_tournaments():
    offspring = offspring_of_halves(tournament_size=3, crossover_rate=0.0)
    better = offspring.all(1)
    assert (better | ~offspring.any(1)).all()
    assert better.mean() == pytest.approx(1 - 1 / 2**3, abs=0.08)  # 5 standard deviations


def test_offspring_mix_two_parents():
    offspring = offspring_of_halves(tournament_size=1, crossover_rate=0.5)
    mixed = offspring[offspring.any(1) & ~offspring.all(1)]
    assert len(mixed) == pytest.approx(250, abs=70)  # crossed and of unlike parents; 5 standard deviations
    assert np.diff(mixed, axis=1).sum(1).mean() == pytest.approx(19 / 2, abs=0.7)  # 5 standard deviations


def test_first_generation_is_the_initial_population():
    initial = np.array([[1, 1, 1, 0, 0, 0], [1, 0, 1, 0, 1, 0]])
    ga = make_ga(space_of(6), 5, initial=initial)
    state = jax.jit(ga.init)(jax.random.key(0))
    asked = jax.jit(ga.ask)(jax.random.key(1), state)
    assert state.generation == 0
    chex.assert_trees_all_equal(asked, state.population)
    chex.assert_trees_all_equal(asked[:2], genomes("111000", "101010"))


def test_initial_population_beyond_what_is_given_is_half_frozen():
    ga = make_ga(space_of(100), 100, initial=np.ones((20, 100), bool))
    population = ga.init(jax.random.key(0)).population
    assert population[:20].all()
    assert population[20:].mean() == pytest.approx(0.5, abs=0.03)  # 5 standard deviations


def test_initial_genomes_beyond_the_population_are_left_out():
    initial = [[0, 0], [0, 1], [1, 0], [1, 1]]
    state = make_ga(space_of(2), 3, initial=initial).init(jax.random.key(0))
    chex.assert_trees_all_equal(state.population, genomes("00", "01", "10"))


def test_tell_by_hand():
    ga = make_ga(space_of(3), 3)
    told = genomes("000", "111", "011", "110", "101")
    state, info = jax.jit(ga.tell)(State(genomes("000", "000", "000"), jnp.array(4)), told, jnp.array([1, 5, 2, np.nan, 9]))
    chex.assert_trees_all_equal(state, State(genomes("101", "111", "011"), jnp.array(5)))
    chex.assert_trees_all_equal(info.order, jnp.array([4, 1, 2, 0, 3]))
    chex.assert_trees_all_equal(info.best, genomes("101")[0])
    chex.assert_trees_all_close(info.frozen_share, jnp.array([0.6, 0.6, 0.6]))


def test_ask_and_tell_are_compiled_once():
    chex.clear_trace_counter()
    ga = make_ga(space_of(6), 5)
    ask, tell = (jax.jit(chex.assert_max_traces(function, n=1)) for function in (ga.ask, ga.tell))
    key, state = jax.random.key(0), ga.init(jax.random.key(1))
    for number in range(3):
        assert state.generation == number
        asked = ask(jax.random.fold_in(key, number), state)
        state, _ = tell(state, asked, one_max(asked))


# ---------------------------------------------------------------------------------------------------------------------
# ranking

NAN, INF = np.nan, np.inf
DISTINCT = ["000", "001", "010", "011"]


@pytest.mark.parametrize(
    ("rows", "fitness", "order"),
    [
        (DISTINCT, [0.3, 0.1, 0.4, 0.2], [2, 0, 3, 1]),
        (DISTINCT, [3, 1, 4, 2], [2, 0, 3, 1]),
        (DISTINCT, [NAN, -7.0, NAN, -8.0], [1, 3, 0, 2]),
        (DISTINCT, [-INF, -7.0, INF, -8.0], [2, 1, 3, 0]),
        (DISTINCT, [NAN, -INF, -1e30, NAN], [2, 0, 1, 3]),
        (DISTINCT, [NAN, NAN, NAN, NAN], [0, 1, 2, 3]),
        (DISTINCT, [1.0, 2.0, 1.0, 2.0], [1, 3, 0, 2]),
        (DISTINCT, [[1, 5], [2, 0], [1, 6], [2, 1]], [3, 1, 2, 0]),
        (DISTINCT, [[0.0, 1], [-0.0, 4], [0.0, 3], [-0.0, 2]], [1, 2, 3, 0]),
        (DISTINCT, [[1, 2, 3], [1, 2, 4], [1, 3, 0], [0, 9, 9]], [2, 1, 0, 3]),
        (DISTINCT, [[1, NAN], [1, -5], [NAN, 9], [1, -INF]], [1, 0, 3, 2]),
        (["000", "000", "001", "000"], [3.0, 4.0, 1.0, 2.0], [1, 2, 0, 3]),
        (["000", "001", "001", "000"], [1.0, 2.0, 2.0, 1.0], [1, 0, 2, 3]),
        (["000", "001", "000", "001"], [NAN, 2.0, 1.0, NAN], [1, 2, 0, 3]),
    ],
    ids=[
        "distinct",
        "integers",
        "nan",
        "infinity",
        "nan_is_minus_infinity",
        "all_nan",
        "ties_keep_their_order",
        "ties_broken",
        "ties_of_signed_zeros",
        "ties_broken_twice",
        "nan_breaks_no_tie",
        "copies_last",
        "tied_copies",
        "nan_copies",
    ],
)
def test_ranking(rows, fitness, order):
    found = jax.jit(ranking)(genomes(*rows), jnp.array(fitness))
    chex.assert_trees_all_equal(found, jnp.array(order))


@few
@given(st.lists(st.tuples(st.integers(0, 7), st.sampled_from([NAN, -INF, -1.0, 0.0, 2.0])), min_size=6, max_size=6))
def test_ranking_of_any_population(members):
    codes, fitness = zip(*members, strict=True)
    order = ranking(genomes(*(f"{code:03b}" for code in codes)), jnp.array(fitness)).tolist()
    assert sorted(order) == list(range(6))
    num_distinct = len(set(codes))
    firsts, copies = order[:num_distinct], order[num_distinct:]
    assert {codes[i] for i in firsts} == set(codes)
    value = [-INF if np.isnan(f) else f for f in fitness]
    assert [value[i] for i in firsts] == sorted((value[i] for i in firsts), reverse=True)
    for copy in copies:
        assert value[copy] <= max(value[i] for i in firsts if codes[i] == codes[copy])


# ---------------------------------------------------------------------------------------------------------------------
# Operators

MANY = jax.random.split(jax.random.key(0), 20_000)  # frequencies below have standard deviations of at most 0.0036


def frequencies(select, num):
    return np.bincount(jax.jit(jax.vmap(select))(MANY), minlength=num) / len(MANY)


def test_tournament_of_one_is_uniform():
    np.testing.assert_allclose(frequencies(lambda key: tournament_selection(key, 4, 1), 4), [0.25] * 4, atol=0.015)


def test_tournament_of_two():
    # Both draws must be at least i for the winner to be: ((4 - i)^2 - (3 - i)^2) / 4^2
    expected = np.array([7, 5, 3, 1]) / 16
    np.testing.assert_allclose(frequencies(lambda key: tournament_selection(key, 4, 2), 4), expected, atol=0.015)


def test_big_tournament_is_mostly_won_by_the_best():
    best, *others = frequencies(lambda key: tournament_selection(key, 10, 50), 10)
    assert best == pytest.approx(1 - 0.9**50, abs=0.003)  # 0.995
    assert max(others) > 0


@few
@given(keys, parents)
def test_uniform_crossover_takes_each_gene_from_a_parent(key, parents):
    first, second = map(jnp.array, parents)
    child = uniform_crossover(key, first, second)
    assert child.shape == first.shape
    assert ((child == first) | (child == second)).all()


def test_uniform_crossover_takes_either_parent_half_of_the_time():
    first, second = genomes("0000", "1111")
    children = jax.jit(jax.vmap(uniform_crossover, in_axes=(0, None, None)))(MANY, first, second)
    np.testing.assert_allclose(children.mean(0), [0.5] * 4, atol=0.015)
    np.testing.assert_allclose(jnp.cov(children.T.astype(jnp.float32)), np.eye(4) / 4, atol=0.015)  # independent genes


@few
@given(keys, parents)
def test_mutation_of_none_and_all(key, parents):
    genome = jnp.array(parents[0], jnp.int8)
    mutate = space_of(len(genome)).mutate
    chex.assert_trees_all_equal(mutate(key, genome, 0.0), genome)
    chex.assert_trees_all_equal(mutate(key, genome, 1.0), 1 - genome)


def test_mutation_rate_is_per_gene():
    flipped = jax.jit(jax.vmap(lambda key: space_of(4).mutate(key, genomes("0101")[0], 0.2)))(MANY) != genomes("0101")
    np.testing.assert_allclose(flipped.mean(0), [0.2] * 4, atol=0.015)
    assert (flipped.sum(1) == 2).mean() == pytest.approx(6 * 0.2**2 * 0.8**2, abs=0.015)  # genes flip independently


def test_default_mutation_rate_is_one_over_the_number_of_genes():
    ask, _ = jitted(ga_of(20))
    num_seeds, num_offspring = len(SEEDS), 48  # beside 2 elites
    state = State(jnp.zeros((num_seeds, 50, 20), jnp.int8), jnp.ones(num_seeds, jnp.int32))
    flips = ask(SEEDS, state).sum()
    assert flips / (num_seeds * num_offspring * 20) == pytest.approx(1 / 20, abs=0.012)  # 5 standard deviations


# ---------------------------------------------------------------------------------------------------------------------
# Errors


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"population_size": 1}, "the population must have at least 2 members, got 1"),
        ({"num_elites": -1}, "num_elites must be at least 0 and below the population's 4, got -1"),
        ({"num_elites": 4}, "num_elites must be at least 0 and below the population's 4, got 4"),
        ({"tournament_size": 0}, "tournament_size must be at least 1, got 0"),
        ({"crossover_rate": -0.1}, "crossover_rate must be between 0 and 1, got -0.1"),
        ({"crossover_rate": 1.1}, "crossover_rate must be between 0 and 1, got 1.1"),
        ({"mutation_rate": -0.1}, "mutation_rate must be between 0 and 1, got -0.1"),
        ({"mutation_rate": 1.1}, "mutation_rate must be between 0 and 1, got 1.1"),
        ({"mutation_rate": NAN}, "mutation_rate must be between 0 and 1, got nan"),
        ({"initial": np.zeros((2, 4))}, "initial must have shape (N, 3), got (2, 4)"),
        ({"initial": np.zeros(3)}, "initial must have shape (N, 3), got (3,)"),
        (
            {"tournament_size": 0, "crossover_rate": 2},
            "tournament_size must be at least 1, got 0; crossover_rate must be between 0 and 1, got 2",
        ),
    ],
)
def test_arguments_out_of_range(arguments, message):
    with pytest.raises(ValueError, match="must") as error:
        make_ga(**({"space": space_of(3), "population_size": 4} | arguments))
    assert str(error.value) == message


@pytest.mark.parametrize(
    ("num_told", "num_genes", "fitness", "message"),
    [
        (3, 3, (3,), r"expected at least 4 genomes of 3 genes, got shape \(3, 3\)"),
        (4, 2, (4,), r"expected at least 4 genomes of 3 genes, got shape \(4, 2\)"),
        (4, 3, (5,), r"expected one fitness per genome \(4\), got shape \(5,\)"),
        (4, 3, (), r"expected one fitness per genome \(4\), got shape \(\)"),
        (4, 3, (2, 4), r"expected one fitness per genome \(4\), got shape \(2, 4\)"),
    ],
    ids=["few_genomes", "few_genes", "more_fitness", "one_fitness", "transposed_fitness"],
)
def test_tell_wants_enough_genomes_and_their_fitness(num_told, num_genes, fitness, message):
    ga = make_ga(space_of(3), 4)
    with pytest.raises(ValueError, match=message):
        jax.jit(ga.tell)(ga.init(jax.random.key(0)), jnp.zeros((num_told, num_genes), jnp.int8), jnp.zeros(fitness))


def test_tell_wants_a_table_of_genomes():
    ga = make_ga(space_of(3), 4)
    with pytest.raises(ValueError, match=r"expected at least 4 genomes of 3 genes, got shape \(12,\)"):
        ga.tell(ga.init(jax.random.key(0)), jnp.zeros(12, jnp.int8), jnp.zeros(12))
