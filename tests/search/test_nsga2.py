import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_genetic import genomes, space_of

from gafreeze_jax.search.nsga2 import ParetoState, crowding_distance, front, make_nsga2, non_dominated_rank

pytestmark = pytest.mark.usefixtures("quick_compilation")
few = settings(max_examples=60, deadline=None)
NAN, INF = np.nan, np.inf
rank_of, crowding_of = jax.jit(non_dominated_rank), jax.jit(crowding_distance)


def tables(num, *values):
    """Strategy for `num` rows of two or three objectives."""
    rows = [st.lists(st.tuples(*[st.sampled_from(values)] * width), min_size=num, max_size=num) for width in (2, 3)]
    return st.one_of(rows).map(lambda table: np.array(table, np.float64))


def hypervolume(objectives, reference):
    """Volume that the members [N, M] dominate above a reference [M] (Zitzler and Thiele 1999), slice by slice."""
    objectives = np.asarray(objectives, np.float64)
    members = np.maximum(objectives[front(objectives)], reference)  # by the first objective
    depths = -np.diff(members[:, 0], append=reference[0])
    if len(reference) == 1:
        return float(depths.sum())
    slices = [hypervolume(members[: i + 1, 1:], reference[1:]) for i in range(len(members))]
    return float(depths @ slices)


# ---------------------------------------------------------------------------------------------------------------------
# Rank and front


def beats(ours, theirs):
    """Domination of one member by another, spelled out."""
    if np.isnan(ours).any():
        return False
    if np.isnan(theirs).any():
        return True
    pairs = list(zip(ours, theirs, strict=True))
    return all(a >= b for a, b in pairs) and any(a > b for a, b in pairs)


def brute_force_rank(objectives):
    left, ranks, rank = set(range(len(objectives))), [0] * len(objectives), 0
    while left:
        best = {i for i in left if not any(beats(objectives[j], objectives[i]) for j in left)}
        for i in best:
            ranks[i] = rank
        left, rank = left - best, rank + 1
    return ranks


@pytest.mark.parametrize(
    ("objectives", "ranks"),
    [
        ([[1, 5], [2, 4], [1, 4], [0, 9], [0, 0]], [0, 0, 1, 0, 2]),
        ([[0], [3], [1], [3]], [2, 0, 1, 0]),
        ([[1, 1, 1], [1, 1, 2], [1, 2, 1], [1, 2, 2]], [2, 1, 1, 0]),
        ([[1, 1], [1, 1], [1, 1]], [0, 0, 0]),
        ([[1, 1], [1, 2], [1, 2], [1, 3]], [2, 1, 1, 0]),
        ([[NAN, 9], [1, 1], [0, NAN], [0, 0]], [2, 0, 2, 1]),
        ([[NAN, NAN], [NAN, 1]], [0, 0]),
        ([[INF, 0], [0, INF], [-INF, -INF], [0, 0]], [0, 0, 2, 1]),
        ([[NAN, 9], [-INF, -INF], [-INF, 0]], [2, 1, 0]),
    ],
    ids=[
        "fronts",
        "one_objective",
        "three_objectives",
        "all_equal",
        "ties_in_one",
        "nan_is_worst",
        "all_nan",
        "infinities",
        "nan_is_worse_than_infinities",
    ],
)
def test_rank(objectives, ranks):
    found = rank_of(np.array(objectives, np.float32))
    assert found.dtype == jnp.int32
    assert found.tolist() == ranks


@few
@given(tables(9, NAN, -INF, -1.0, 0.0, 2.0, INF))
def test_rank_by_brute_force(objectives):
    assert rank_of(objectives).tolist() == brute_force_rank(objectives)


def test_rank_of_many():
    objectives = np.random.default_rng(0).integers(0, 30, (150, 3))
    ranks = rank_of(objectives).tolist()
    assert ranks == brute_force_rank(objectives)
    assert max(ranks) > 5


@pytest.mark.parametrize(
    ("objectives", "indices"),
    [
        ([[1, 5], [2, 4], [1, 4], [0, 9]], [1, 0, 3]),
        ([[1, 5], [2, 4], [2, 4], [1, 5]], [1, 0]),
        ([[1, 1], [1, 2], [0, 2]], [1]),
        ([[NAN, 9], [0, 0], [9, NAN]], [1]),
        ([[NAN, 9], [NAN, NAN]], []),
        ([[0.0, 1], [-0.0, 1]], [0]),
        ([[1, 2, 3]], [0]),
        ([[1, 1 + 1e-12], [1, 1]], [0]),
        (np.zeros((0, 2)), []),
    ],
    ids=["best_first", "copies_once", "tie_in_one", "nan_left_out", "all_nan", "signed_zeros", "single", "float64", "none"],
)
def test_front(objectives, indices):
    assert front(np.array(objectives)).tolist() == indices


@few
@given(tables(9, NAN, -INF, -1.0, 0.0, 1.0, 2.0))
def test_front_by_brute_force(objectives):
    indices = front(objectives).tolist()
    best = [
        i for i in range(9) if not np.isnan(objectives[i]).any() and not any(beats(row, objectives[i]) for row in objectives)
    ]
    firsts = {tuple(objectives[i] + 0.0): i for i in reversed(best)}
    assert sorted(indices) == sorted(firsts.values())
    assert objectives[indices, 0].tolist() == sorted(objectives[indices, 0], reverse=True)


# ---------------------------------------------------------------------------------------------------------------------
# Crowding


@pytest.mark.parametrize(
    ("objectives", "rank", "distance"),
    [
        ([[0, 10], [1, 5], [3, 4], [4, 0]], None, [INF, 3 / 4 + 6 / 10, 3 / 4 + 5 / 10, INF]),
        ([[3, 4], [0, 10], [4, 0], [1, 5]], None, [3 / 4 + 5 / 10, INF, INF, 3 / 4 + 6 / 10]),
        ([[0], [1], [4], [5]], None, [INF, 4 / 5, 4 / 5, INF]),
        ([[7, 7]], None, [INF]),
        ([[7, 7], [8, 6]], None, [INF, INF]),
        ([[7, 7], [7, 7], [7, 7]], None, [INF, 0, 0]),
        ([[0, 2], [1, 1], [1, 1], [2, 0]], None, [INF, 2, 0, INF]),
        ([[0, 2], [0, 2], [1, 1], [2, 0]], None, [INF, 0, 2, INF]),
        ([[0, 3, 5], [1, 2, 5], [3, 0, 5]], None, [INF, 2, INF]),
        ([[5, 0, 3], [5, 1, 2], [5, 3, 0]], None, [INF, 2, INF]),
        ([[1, 0, 3], [0, 1, 2], [0, 2, 1], [0, 3, 0]], None, [INF, INF, 2 / 3 + 2 / 3, INF]),
        ([[-INF, 3], [1, 2], [2, 1], [3, 0]], None, [INF, INF, 1 + 2 / 3, INF]),
        ([[-INF, 3], [5, 2], [INF, 0]], None, [INF, INF, INF]),
        ([[NAN, 3], [1, NAN], [NAN, 2]], None, [INF, 0, 0]),
        ([[0, 4], [1, 9], [2, 2], [4, 0], [9, 0], [1, 3]], [0, 1, 0, 0, 1, 0], [INF, INF, 3 / 4 + 3 / 4, INF, INF, 1]),
        ([[0, 4], [0, 4]], [0, 3], [INF, INF]),
    ],
    ids=[
        "by_hand",
        "any_order",
        "one_objective",
        "single",
        "two",
        "all_equal",
        "inner_copies",
        "copies_at_the_end",
        "constant_objective",
        "constant_first_objective",
        "ties_go_by_the_next",
        "infinite_end",
        "infinite_gaps",
        "nan",
        "two_fronts",
        "equal_but_of_two_fronts",
    ],
)
def test_crowding(objectives, rank, distance):
    rank = np.zeros(len(objectives), int) if rank is None else np.array(rank)
    found = crowding_of(np.array(objectives, np.float32), rank)
    assert found.dtype == jnp.float32
    np.testing.assert_allclose(found, distance, rtol=1e-6)


def test_crowding_is_that_of_the_paper_where_nothing_ties():
    rng = np.random.default_rng(0)
    objectives, rank = rng.normal(size=(60, 3)), rng.integers(0, 4, 60)
    expected = np.zeros(60)
    for level in range(4):
        members = np.flatnonzero(rank == level)
        for column in objectives.T:
            members = members[np.argsort(column[members])]
            expected[members[[0, -1]]] = INF
            extent = column[members[-1]] - column[members[0]]
            for before, i, after in zip(members, members[1:], members[2:], strict=False):
                expected[i] += (column[after] - column[before]) / extent
    np.testing.assert_allclose(crowding_of(objectives, rank), expected, rtol=1e-5)


@few
@given(tables(6, -INF, -1.0, 0.0, 1.0, 2.0, INF), st.permutations(range(6)))
def test_crowding_does_not_depend_on_the_order(objectives, order):
    rank = np.zeros(6, int)
    before, after = (np.asarray(crowding_of(rows, rank)) for rows in (objectives, objectives[order]))
    assert not np.isnan(before).any()
    assert (before >= 0).all()
    for values in np.unique(objectives, axis=0):  # of equal members, any may stand for all
        same = (objectives == values).all(1)
        np.testing.assert_allclose(sorted(before[same]), sorted(after[same[order]]), rtol=1e-6)
        assert (before[same] > 0).sum() <= 1


# ---------------------------------------------------------------------------------------------------------------------
# Hypervolume


@pytest.mark.parametrize(
    ("objectives", "volume"),
    [
        ([[1, 2], [2, 1]], 3),
        ([[1, 2], [2, 1], [1, 1], [2, 1]], 3),
        ([[1, 2], [-5, 9], [9, -5], [0, 0]], 2),
        ([[NAN, 9]], 0),
        (np.zeros((0, 2)), 0),
        ([[3], [2]], 3),
        ([[1, 2, 3], [3, 2, 1]], 10),
    ],
    ids=["staircase", "dominated_and_copies", "beyond_the_reference", "nan", "none", "one_objective", "three_objectives"],
)
def test_hypervolume(objectives, volume):
    assert hypervolume(np.array(objectives), np.zeros(np.shape(objectives)[1])) == volume


@few
@given(tables(8, -2, -1, 0, 1, 2, 3, 4))
def test_hypervolume_counts_cells(points):
    num_objectives = points.shape[1]
    cells = np.array(list(np.ndindex((5,) * num_objectives))) - 1  # of side 1, by their lower corner
    covered = (points[:, None] > cells[None]).all(-1).any(0)
    assert hypervolume(points, np.full(num_objectives, -1)) == covered.sum()


# ---------------------------------------------------------------------------------------------------------------------
# NSGA-II on a table: accuracy with interacting genes against how many genes train

G, P = 8, 12
MASKS = np.array(list(np.ndindex((2,) * G)), bool)
TRAINABLE = (~MASKS).sum(1)
SEEDS = jax.random.split(jax.random.key(2025), 10)
BUDGET = 96  # of 256 masks


@functools.cache
def problem(number):
    """Objectives [256, 2]."""
    rng = np.random.default_rng(number)
    effects, pairs = rng.normal(size=G) * 0.03 - 0.02, np.triu(rng.normal(size=(G, G)) * 0.01, 1)
    accuracy = 0.8 + MASKS @ effects + np.einsum("ni,ij,nj->n", MASKS, pairs, MASKS)
    return np.stack([accuracy, -TRAINABLE], 1).astype(np.float32)


make = functools.cache(make_nsga2)


def index(genomes):
    return np.asarray(genomes) @ 2 ** np.arange(G)[::-1]


@functools.cache
def jitted(population_size):
    """`init`, `ask` and `tell`, mapped over seeds."""
    return [jax.jit(jax.vmap(function)) for function in make(space_of(G), population_size)]


def run(objectives, num_generations, population_size=P):
    """Indices of the masks asked for [T, S, P], and of the best of each generation [T, S]; the last states."""
    init, ask, tell = jitted(population_size)
    keys = jax.vmap(lambda seed: jax.random.split(seed, num_generations + 1))(SEEDS)
    state = init(keys[:, -1])
    asked, best = [], []
    for number in range(num_generations):
        genomes = ask(keys[:, number], state)
        asked.append(index(genomes))
        state, info = tell(state, genomes, objectives[asked[-1]])
        best.append(index(info.best))
    return np.stack(asked), np.stack(best), state


def first_distinct(asked):
    """The first masks of a run [T, P] that the budget allows."""
    return list(dict.fromkeys(asked.ravel().tolist()))[:BUDGET]


@pytest.mark.parametrize("number", range(3))
def test_nsga2_finds_most_of_the_front(number):
    """96 masks of 256 hold 38 % of a front of 6 if they are random.

    NSGA-II asks for about 290 to come by 96 distinct ones. In 400 other runs on each table they held 93, 85 and 96 % of it,
    and at least 66 % in 95 % of the runs; the lowest mean of ten runs was 73 %.
    """
    objectives = problem(number)
    best = set(front(objectives).tolist())
    reference = objectives.min(0)
    asked, _, _ = run(objectives, 24)
    found = [first_distinct(asked[:, s]) for s in range(len(SEEDS))]
    shares = [len(best & set(masks)) / len(best) for masks in found]
    assert min(shares) >= 0.5
    assert np.mean(shares) >= 0.7
    rng = np.random.default_rng(0)
    random = [hypervolume(objectives[rng.permutation(256)[:BUDGET]], reference) for _ in range(100)]
    assert np.mean([hypervolume(objectives[masks], reference) for masks in found]) > np.quantile(random, 0.9)


def test_the_best_are_never_lost():
    objectives = problem(0)
    asked, best, state = run(objectives, 12)
    for s in range(len(SEEDS)):
        seen = np.unique(asked[:, s])
        assert (best[:, s] == [max(asked[: t + 1, s].ravel(), key=lambda i: tuple(objectives[i])) for t in range(12)]).all()
        population = index(state.population[s])
        np.testing.assert_array_equal(state.objectives[s], objectives[population])
        distinct = np.unique(objectives[seen[front(objectives[seen])]], axis=0)
        assert len(distinct) <= P
        kept = np.unique(objectives[population[front(objectives[population])]], axis=0)
        np.testing.assert_array_equal(kept, distinct)


def test_population_has_no_copies():
    _, _, state = run(problem(1), 4)
    for population in np.asarray(state.population):
        assert len(np.unique(population, axis=0)) == P


def test_same_seed_same_run():
    first, again = run(problem(0), 5)[0], run(problem(0), 5)[0]
    np.testing.assert_array_equal(first, again)
    assert len(np.unique(first.swapaxes(0, 1).reshape(len(SEEDS), -1), axis=0)) == len(SEEDS)


def test_jit_changes_nothing():
    ga, objectives = make(space_of(G), 4), problem(0)

    def play(init, ask, tell):
        state = init(jax.random.key(0))
        for number in range(4):
            asked = ask(jax.random.key(number), state)
            state, info = tell(state, asked, objectives[index(asked)])
        return state, info

    chex.assert_trees_all_equal(play(*ga), play(*map(jax.jit, ga)))


def test_ask_and_tell_are_compiled_once():
    chex.clear_trace_counter()
    ga = make_nsga2(space_of(G), 4)
    ask, tell = (jax.jit(chex.assert_max_traces(function, n=1)) for function in (ga.ask, ga.tell))
    state = ga.init(jax.random.key(0))
    for number in range(3):
        assert state.generation == number
        asked = ask(jax.random.key(number), state)
        state, _ = tell(state, asked, problem(0)[index(asked)])


# ---------------------------------------------------------------------------------------------------------------------
# ask and tell


def told(population, told, objectives, before=None):
    """State and info after telling a population of known objectives about other genomes."""
    ga = make(space_of(len(population[0])), len(population))
    before = np.full((len(population), 2), NAN) if before is None else before
    state = ParetoState(genomes(*population), jnp.array(3), jnp.array(before, jnp.float32))
    return jax.jit(ga.tell)(state, genomes(*told), np.array(objectives, float))


def test_parents_and_offspring_compete():
    state, info = told(
        ["000", "001", "010"],
        ["100", "101", "110", "111"],
        [[0, 9], [3, 3], [2, 2], [9, 1]],
        before=[[1, 7], [1, 1], [4, 2]],
    )
    # Front 0 holds 111 and 100 at its ends, 000 (crowding 3/9 + 6/8), 101 (3/9 + 5/8) and 010 (6/9 + 2/8)
    expected = ParetoState(genomes("111", "100", "000"), jnp.array(4), jnp.array([[9.0, 1], [0, 9], [1, 7]]))
    chex.assert_trees_all_equal(state, expected)
    chex.assert_trees_all_equal(info.best, genomes("111")[0])
    chex.assert_trees_all_equal(info.order, jnp.array([3, 0, 1, 2]))
    chex.assert_trees_all_close(info.frozen_share, jnp.array([1, 0.5, 0.5]))


def test_first_generation_is_the_initial_population():
    initial = np.array([[1, 1, 1, 0], [1, 0, 1, 0]])
    ga = make_nsga2(space_of(4), 5, initial=initial, num_objectives=3)
    state = ga.init(jax.random.key(0))
    chex.assert_trees_all_equal(ga.ask(jax.random.key(1), state), state.population)
    chex.assert_trees_all_equal(state.population[:2], genomes("1110", "1010"))
    assert state.objectives.shape == (5, 3)
    assert jnp.isnan(state.objectives).all()


def test_a_genome_counts_once_by_what_was_told_last():
    state, info = told(
        ["00", "01"],
        ["00", "10", "10", "11"],
        [[0, 0], [1, 1], [9, 9], [0.5, 0.5]],
        before=[[7, 7], [NAN, NAN]],
    )
    chex.assert_trees_all_equal(state.population, genomes("10", "11"))
    chex.assert_trees_all_equal(state.objectives, jnp.array([[1.0, 1], [0.5, 0.5]]))
    chex.assert_trees_all_equal(info.order, jnp.array([1, 3, 0, 2]))


def test_fewer_may_be_told_than_the_population_holds():
    state, info = told(["00", "01", "10"], ["11"], [[2, 2]], before=[[0, 3], [1, 1], [3, 0]])
    chex.assert_trees_all_equal(state.population, genomes("10", "00", "11"))
    chex.assert_trees_all_equal(info.order, jnp.array([0]))
    chex.assert_trees_all_equal(info.best, genomes("10")[0])


def test_diverged_members_never_survive_others():
    state, info = told(["00", "01"], ["10", "11", "00"], [[NAN, 9], [1, 1], [-INF, 0]])
    chex.assert_trees_all_equal(state.population, genomes("11", "00"))
    chex.assert_trees_all_equal(info.order, jnp.array([1, 2, 0]))


def test_all_are_offspring_of_binary_tournaments():
    """Of 500 better genomes of ones and 500 of zeros, either draw must be of ones: 3/4. Then all genes flip."""
    ga = make_nsga2(space_of(4), 1000, mutation_rate=1.0, crossover_rate=0.0)
    population = jnp.repeat(jnp.array([[1], [0]], jnp.int8), 500, axis=0).repeat(4, axis=1).at[0, 0].set(0)
    state = ParetoState(population, jnp.array(1), jnp.zeros((1000, 2)))
    asked = jax.jit(ga.ask)(jax.random.key(0), state)
    assert (asked[:, 1:] == 0).all(1).mean() == pytest.approx(3 / 4, abs=0.07)  # 5 standard deviations
    assert not (asked == population[:1]).all(1).any()  # the best is not asked for again


# ---------------------------------------------------------------------------------------------------------------------
# Errors


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_objectives": 0}, "num_objectives must be at least 1, got 0"),
        ({"population_size": 1}, "the population must have at least 2 members, got 1"),
        ({"mutation_rate": 2}, "mutation_rate must be between 0 and 1, got 2"),
        ({"initial": np.zeros((2, 4))}, "initial must have shape (N, 3), got (2, 4)"),
    ],
)
def test_arguments_out_of_range(arguments, message):
    with pytest.raises(ValueError, match="must") as error:
        make_nsga2(**({"space": space_of(3), "population_size": 4} | arguments))
    assert str(error.value) == message


@pytest.mark.parametrize(
    ("genomes", "objectives", "message"),
    [
        ((4, 2), (4, 2), "expected genomes of 3 genes, got shape (4, 2)"),
        ((12,), (12, 2), "expected genomes of 3 genes, got shape (12,)"),
        ((4, 3), (4,), "expected objectives of shape (4, 2), got (4,)"),
        ((4, 3), (4, 3), "expected objectives of shape (4, 2), got (4, 3)"),
        ((4, 2), (2, 4), "expected genomes of 3 genes, got shape (4, 2); expected objectives of shape (4, 2), got (2, 4)"),
    ],
)
def test_tell_wants_genomes_and_their_objectives(genomes, objectives, message):
    ga = make(space_of(3), 4)
    with pytest.raises(ValueError, match="expected") as error:
        ga.tell(ga.init(jax.random.key(0)), jnp.zeros(genomes), jnp.zeros(objectives))
    assert str(error.value) == message


@pytest.mark.parametrize(
    ("function", "shapes", "message"),
    [
        (non_dominated_rank, [(4,)], "expected objectives of shape (N, M), got (4,)"),
        (non_dominated_rank, [(4, 0)], "expected objectives of shape (N, M), got (4, 0)"),
        (crowding_distance, [(4,), (4,)], "expected objectives of shape (N, M), got (4,)"),
        (crowding_distance, [(4, 2), (4, 1)], "expected ranks of shape (4,), got (4, 1)"),
        (front, [(4,)], "expected objectives of shape (N, M), got (4,)"),
    ],
)
def test_wrong_shapes(function, shapes, message):
    with pytest.raises(ValueError, match="expected") as error:
        function(*map(np.zeros, shapes))
    assert str(error.value) == message
