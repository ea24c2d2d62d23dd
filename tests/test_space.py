import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gafreeze_jax.space import Space, as_genome

few = settings(max_examples=30, deadline=None)
NAMES = ("embeddings", "layer_0", "layer_1", "layer_2")
TWO = Space(NAMES)
RATES = (1.0, 0.0, 0.5, 0.25, 2.0)

OF_ALL = [(1.0,), (0.5, 1.0), (0.25, 1.0, 4.0)]

spaces = st.builds(
    lambda num_genes, levels, rates: Space([f"gene_{i}" for i in range(num_genes)], levels, rates),
    st.integers(1, 4),
    st.integers(2, 5).flatmap(lambda num: st.permutations(RATES[:num])),
    st.sampled_from(OF_ALL),
)


@st.composite
def space_and_genomes(draw, num=2):
    space = draw(spaces)
    genomes = st.tuples(*(st.integers(0, num - 1) for num in space.choices))
    return space, *(draw(genomes) for _ in range(num))


def places(space, genome):
    """By definition: 0 = frozen, then the rates in ascending order."""
    return [sorted(space.levels).index(space.levels[level]) for level in genome[: space.num_genes]]


def test_two_levels_by_hand():
    assert (TWO.num_genes, TWO.size) == (4, 16)
    assert TWO.all_trained == (0, 0, 0, 0)
    assert TWO.all_frozen == (1, 1, 1, 1)
    assert TWO.text(np.array([True, False, False, True])) == TWO.text((1, 0, 0, 1)) == "1001"
    assert TWO.parse("1001") == (1, 0, 0, 1)
    assert TWO.frozen((1, 0, 0, 1)).tolist() == [True, False, False, True]
    assert TWO.frozen_names((1, 0, 0, 1)) == ["embeddings", "layer_2"]
    assert Space("abc").prefixes().tolist() == [[0, 0, 0], [1, 0, 0], [1, 1, 0], [1, 1, 1]]
    assert Space("ab").all_genomes().tolist() == [[0, 0], [0, 1], [1, 0], [1, 1]]
    assert TWO.distance([(0, 0, 1, 1)], [(0, 1, 1, 1), (0, 0, 1, 1), (1, 1, 0, 0)]).tolist() == [[0.25, 0, 1]]


def test_three_levels_by_hand():
    space = Space("abc", (1.0, 0.5, 0.0))
    assert space.size == 27
    assert space.prefixes().tolist() == [[0, 0, 0], [2, 0, 0], [2, 2, 0], [2, 2, 2]]
    assert space.distance([(0, 0, 0)], [(1, 0, 0), (2, 0, 0), (2, 2, 2)]).tolist() == pytest.approx(
        np.array([[1 / 6, 2 / 6, 1]])
    )


@pytest.mark.parametrize(
    ("genome", "words"),
    [
        ("0000", "train everything"),
        ("1111", "train the head only"),
        ("1110", "freeze embeddings to layer_1; train layer_2"),
        ("1011", "freeze embeddings, layer_1, layer_2; train layer_0"),
        ("0110", "freeze layer_0, layer_1; train embeddings, layer_2"),
        ("0001", "freeze layer_2; train embeddings to layer_1"),
    ],
)
def test_words(genome, words):
    assert TWO.describe(TWO.parse(genome)) == words


@pytest.mark.parametrize(
    ("genome", "words"),
    [
        ("1122", "freeze embeddings, layer_0; train layer_1, layer_2 at 0.5 times the learning rate"),
        ("2210", "freeze layer_1; train layer_2; train embeddings, layer_0 at 0.5 times the learning rate"),
        ("2222", "train everything at 0.5 times the learning rate"),
        ("0002", "train embeddings to layer_1; train layer_2 at 0.5 times the learning rate"),
        ("1111", "train the head only"),
    ],
)
def test_words_for_rates(genome, words):
    space = Space(NAMES, (1.0, 0.0, 0.5))
    assert space.describe(space.parse(genome)) == words


@pytest.mark.parametrize("text", ["", "101", "10101", "102 ", "1012", "10x1", "101\u0661"])
def test_text_of_another_length_or_alphabet(text):
    with pytest.raises(ValueError, match=r"expected a genome of 4 genes \(embeddings, .*\), each of 0, 1; got "):
        TWO.parse(text)


@pytest.mark.parametrize(
    ("names", "levels", "message"),
    [
        ([], (1.0, 0.0), "at least one gene"),
        (["a", "a"], (1.0, 0.0), "all different"),
        (["a"], (1.0, 0.0, 0.0), "different rates"),
        (["a"], (1.0, 0.0, -0.5), "at least 0"),
        (["a"], (1.0, 0.0, float("nan")), "at least 0"),
        (["a"], (1.0, 0.5), "0 and 1 among them"),
        (["a"], (0.0,), "0 and 1 among them"),
        (["a"], range(11), "at most 10 rates"),
    ],
)
def test_arguments_out_of_range(names, levels, message):
    with pytest.raises(ValueError, match=message):
        Space(names, levels)


def test_equal_spaces_are_the_same_key():
    assert len({Space("ab"), Space(["a", "b"], [1, 0]), Space("abc")}) == 2


@few
@given(space_and_genomes())
def test_text_is_parsed_back(case):
    space, *genomes = case
    for genome in genomes:
        assert space.parse(space.text(genome)) == genome
        assert as_genome(space.stack([genome])[0]) == genome
        assert {type(level) for level in as_genome(np.array(genome))} == {int}


@few
@given(spaces)
def test_all_genomes_count_up(space):
    genomes = space.all_genomes()
    texts = [space.text(genome) for genome in genomes]
    assert genomes.dtype == np.int8
    assert texts == sorted(set(texts))
    assert len(texts) == space.size
    np.testing.assert_array_equal(space.index(genomes), np.arange(space.size))


@few
@given(spaces)
def test_genomes_that_train_differently(space):
    assert space.num_different == len(space.unique(space.all_genomes()))


@few
@given(space_and_genomes())
def test_distance_by_definition(case):
    space, first, second = case
    steps = np.abs(np.subtract(places(space, first), places(space, second)))
    expected = steps.mean() / (len(space.levels) - 1)
    if space.has_rate:
        expected += 0.5 * abs(first[-1] - second[-1]) / (len(space.rates) - 1)
    np.testing.assert_allclose(space.distance([first], [second, first]), [[expected, 0]], atol=1e-12)


@few
@given(space_and_genomes(num=1))
def test_frozen_is_rate_zero(case):
    space, genome = case
    expected = [space.levels[level] == 0 for level in genome[: space.num_genes]]
    assert (space.multipliers(genome) == 0).tolist() == expected
    assert space.frozen(genome).tolist() == expected
    assert jax.jit(space.frozen)(jnp.array([genome])).tolist() == [expected]
    assert (space.frozen(space.all_frozen).all(), space.frozen(space.all_trained).any()) == (True, False)


def test_no_genomes():
    assert TWO.stack([]).shape == (0, 4)
    assert TWO.frozen(TWO.stack([])).shape == (0, 4)
    assert TWO.distance(TWO.stack([]), TWO.stack([])).shape == (0, 0)


@pytest.mark.parametrize("num_levels", [2, 3, 5])
def test_random_genomes_are_equally_likely(num_levels):
    space = Space(NAMES, RATES[:num_levels])
    for genomes in (
        space.sample(np.random.default_rng(0), 5000),
        jax.jit(space.draw, static_argnums=1)(jax.random.key(0), 5000),
    ):
        assert (genomes.shape, genomes.dtype) == ((5000, 4), np.int8)
        shares = np.stack([np.mean(genomes == level, axis=0) for level in range(num_levels)])
        np.testing.assert_allclose(shares, 1 / num_levels, atol=0.035)  # 5 standard deviations


@few
@given(st.integers(0, 2**32 - 1), st.sampled_from([0.0, 1 / 12, 0.3, 1.0]))
def test_two_levels_draw_as_bits_did(seed, rate):
    """Searches with a seed go as they went when genomes were bits."""
    key, rng = jax.random.key(seed), np.random.default_rng
    np.testing.assert_array_equal(TWO.draw(key, 7), jax.random.bernoulli(key, shape=(7, 4)))
    np.testing.assert_array_equal(TWO.sample(rng(seed), 7), rng(seed).random((7, 4)) < 0.5)
    genome = TWO.draw(key, 1)[0]
    np.testing.assert_array_equal(TWO.mutate(key, genome, rate), genome.astype(bool) ^ jax.random.bernoulli(key, rate, (4,)))


@pytest.mark.parametrize(("levels", "rates"), [(2, OF_ALL[0]), (3, OF_ALL[0]), (5, OF_ALL[1]), (2, OF_ALL[2])])
def test_mutation_gives_a_neighbouring_value_at_its_rate(levels, rates):
    space = Space("abc", RATES[:levels], rates)
    genome = jnp.array([0, 1, levels - 1, 1][: len(space.choices)], jnp.int8)
    mutants = jax.jit(jax.vmap(lambda key: space.mutate(key, genome, 0.4)))(jax.random.split(jax.random.key(0), 5000))
    assert mutants.dtype == jnp.int8
    values = [space.levels] * 3 + [space.rates]
    for place, num in enumerate(space.choices):
        by_rate = sorted(values[place])
        rank = by_rate.index(values[place][genome[place]])
        near = [values[place].index(by_rate[at]) for at in (rank - 1, rank + 1) if 0 <= at < num]
        expected = np.zeros(num)
        expected[genome[place]] = 0.6
        expected[near] = 0.4 / len(near)
        shares = np.bincount(mutants[:, place], minlength=num) / 5000
        np.testing.assert_allclose(shares, expected, atol=0.035)  # 5 standard deviations


def test_a_rate_for_all_genes_by_hand():
    space = Space("abc", (1.0, 0.0, 0.5), (0.25, 1.0, 4.0))
    assert (space.size, space.choices) == (81, (3, 3, 3, 3))
    assert (space.all_trained, space.all_frozen) == ((0, 0, 0, 1), (1, 1, 1, 1))
    assert space.text((0, 1, 2, 2)) == "012@4"
    assert space.parse("012@4") == (0, 1, 2, 2)
    assert space.parse("012") == (0, 1, 2, 1)
    assert space.multipliers((0, 1, 2, 2)).tolist() == [4, 0, 2]
    assert space.multipliers([(0, 1, 2, 0), (0, 1, 2, 1)]).tolist() == [[0.25, 0, 0.125], [1, 0, 0.5]]
    assert space.frozen([(0, 1, 2, 2)]).tolist() == [[False, True, False]]
    assert space.describe((0, 1, 2, 2)) == (
        "freeze b; train a; train c at 0.5 times the learning rate; all at 4 times the learning rate"
    )
    assert space.describe((0, 0, 0, 0)) == "train everything at 0.25 times the learning rate"
    assert space.at_rates([(0, 0, 0, 1), space.all_frozen]).tolist() == [[0, 0, 0, 0], [0, 0, 0, 1], [0, 0, 0, 2], [1, 1, 1, 1]]


@pytest.mark.parametrize("text", ["012@3", "012@", "012@4.0", "01@4", "013@4"])
def test_text_with_another_rate(text):
    with pytest.raises(ValueError, match="expected a genome"):
        Space("abc", (1.0, 0.0, 0.5), (0.25, 1.0, 4.0)).parse(text)


@pytest.mark.parametrize("rates", [(0.5, 2.0), (1.0, 0.5), (0.0, 1.0), (1.0, 1.0), (-1.0, 1.0), (1.0, float("inf"))])
def test_rates_out_of_range(rates):
    with pytest.raises(ValueError, match="rates must be"):
        Space("abc", rates=rates)


def test_rates_that_read_alike():
    with pytest.raises(ValueError, match=r"rates must differ where they are written, got 1, 1"):
        Space("abc", rates=(1.0, 1.0000001))


def test_at_the_rate_of_another():
    space = Space("ab", rates=(0.5, 1.0))
    genomes = [(0, 0, 1), (0, 1, 1), (1, 0, 0), (0, 0, 0), space.all_frozen]
    assert space.at_rate_of((1, 0, 0), genomes).tolist() == [[0, 0, 0], [0, 1, 0], [1, 0, 0], [1, 1, 1]]
    assert Space("ab").at_rate_of((1, 0), [(0, 1), (0, 1), (1, 1)]).tolist() == [[0, 1], [1, 1]]
    assert [space.at_higher_rate((1, 0, rate)) for rate in range(2)] == [(1, 0, 1), (1, 0, 1)]
    assert Space("ab").at_higher_rate((1, 0)) == (1, 0)


def test_masks_from_above_and_single_thirds():
    assert Space("abc").suffixes().tolist() == [[0, 0, 0], [0, 0, 1], [0, 1, 1], [1, 1, 1]]
    assert Space("abcdefg").thirds().tolist() == [[0, 0, 0, 1, 1, 1, 1], [1, 1, 1, 0, 0, 1, 1], [1, 1, 1, 1, 1, 0, 0]]
    assert Space("ab").thirds().tolist() == [[0, 1], [1, 0]]


def test_where_nothing_but_a_gene_could_train():
    assert Space("abc", head="kept").describe((1, 1, 1)) == "train nothing"


@few
@given(space_and_genomes(num=1))
def test_neighbours_differ_in_one_gene(case):
    space, genome = case
    neighbours = list(map(as_genome, space.neighbours(genome)))
    everything = itertools.product(*map(range, space.choices))
    expected = {other for other in everything if sum(np.not_equal(other, genome)) == 1}
    assert set(neighbours) == expected
    assert len(neighbours) == len(expected)
