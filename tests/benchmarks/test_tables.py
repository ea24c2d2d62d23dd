"""FreezeBench's tables are whole, and in the order that they claim."""

import dataclasses
import typing

import freezebench
import numpy as np
import pytest
from tables import TABLES, Table, load_table, save_table

from gafreeze_jax.space import Space

NAMES = tuple(sorted(path.stem for path in TABLES.glob("*.npz")))
FRESH_MASKS = ("cnn-fashion_mnist", "minilm-sst2", "minilm-trec", "resnet20-cifar10", "resnet20-fashion_mnist")
WEIGHTS_OF_CNN = {  # 3 x 3 kernels and biases; dense ones
    "conv_0": 9 * 1 * 8 + 8,
    "conv_1": 9 * 8 * 16 + 16,
    "conv_2": 9 * 16 * 16 + 16,
    "conv_3": 9 * 16 * 32 + 32,
    "conv_4": 9 * 32 * 32 + 32,
    "dense_0": 49 * 32 * 64 + 64,
    "dense_1": 64 * 32 + 32,
}


@pytest.fixture(params=NAMES)
def table(request):
    return load_table(TABLES / f"{request.param}.npz")


def rows_of_masks(table, frozen):
    """Of masks [..., G] at the learning rate itself."""
    space = Space(table.space.names, head=table.space.head)
    return table.rows(space, space.masks(np.atleast_2d(frozen)))


def sizes_of_genes(table):
    only = rows_of_masks(table, np.eye(table.space.num_genes, dtype=bool))
    return table.trainable[rows_of_masks(table, np.zeros(table.space.num_genes, bool))] - table.trainable[only]


def test_all_tables_are_here_and_can_be_made():
    assert set(FRESH_MASKS) <= set(NAMES) <= set(freezebench.BENCHES)
    (table,) = (field for field in dataclasses.fields(freezebench.Options) if field.name == "table")
    assert set(typing.get_args(typing.get_args(table.type)[0])) == set(freezebench.BENCHES)


def test_nothing_is_missing(table):
    num, num_seeds, num_stops = table.space.size, table.num_seeds, len(table.stops)
    assert table.done.all()
    assert table.validation.shape == (num, num_seeds, num_stops, 2)
    assert table.test.shape == (num, num_seeds, 2)
    assert table.flops.shape == table.trainable.shape == (num,)
    assert list(table.stops) == sorted(set(table.stops))
    for scores in (table.validation, table.test):
        assert np.isfinite(scores).all()
        assert ((scores[..., 0] >= 0) & (scores[..., 0] <= 1)).all()
        assert (scores[..., 1] > 0).all()
    assert (table.flops >= 0).all()


def test_tables_are_of_the_spaces_that_they_are_made_with(table):
    bench = freezebench.BENCHES[table.about["table"]]
    assert (table.space.levels, table.space.rates) == (bench.levels, bench.rates)
    assert table.stops == bench.stops
    assert table.about["settings"] == {name: getattr(bench.settings, name) for name in freezebench.COUNTED}


def test_accuracies_are_whole_numbers_of_examples(table):
    for scores, num in (
        (table.validation, table.about["settings"]["validation_examples"]),
        (table.test, table.about["num_test"]),
    ):
        hits = scores[..., 0] * num
        np.testing.assert_allclose(hits, hits.round(), atol=1e-3)


def test_seeds_differ(table):
    trained = ~table.space.frozen(table.space.all_genomes()).all(1)
    for seed in range(1, table.num_seeds):
        assert (table.test[trained, seed] != table.test[trained, 0]).any(1).mean() > 0.9


def test_a_kept_head_that_is_frozen_with_all_else_is_the_same_with_every_seed(table):
    (nothing,) = table.test[rows_of_masks(table, np.ones(table.space.num_genes, bool))]
    assert len(set(nothing[:, 0].tolist())) == 1 or table.space.head == "fresh"


def test_each_gene_that_is_frozen_takes_its_own_parameters(table):
    space = table.space
    sizes = sizes_of_genes(table)
    assert (sizes > 0).all()
    genomes = space.all_genomes()
    nothing = table.trainable[rows_of_masks(table, np.ones(space.num_genes, bool))]
    np.testing.assert_array_equal(table.trainable, nothing + ~space.frozen(genomes) @ sizes)
    assert nothing == 0 or space.head == "fresh"


def test_the_places_are_in_the_order_of_the_genes():
    table = load_table(TABLES / "cnn-fashion_mnist.npz")
    assert dict(zip(table.space.names, sizes_of_genes(table).tolist(), strict=True)) == WEIGHTS_OF_CNN


def test_a_deeper_frozen_bottom_costs_less(table):
    space = Space(table.space.names, head=table.space.head)
    flops = table.flops[table.rows(space, space.prefixes())]
    assert (np.diff(flops) < 0).all()
    assert flops[-1] == table.flops.min()
    assert flops[0] == table.flops.max()


def test_genomes_of_smaller_spaces_are_found():
    names = ("a", "b")
    whole = Space(names, (1, 0, 1 / 2), (1 / 4, 1, 4), head="kept")
    table = Table(whole, (4,), *[np.empty(0)] * 4, about={})
    assert table.rows(whole, whole.all_genomes()).tolist() == list(range(27))
    for space, texts in (
        (Space(names), ["00@1", "01@1", "10@1", "11@1"]),
        (Space(names, (0, 1)), ["11@1", "10@1", "01@1", "00@1"]),  # the other way round
        (Space(names, rates=(1, 4)), [f"{mask}@{rate}" for mask in ("00", "01", "10", "11") for rate in (1, 4)]),
        (Space(names, (1, 0, 1 / 2)), [f"{first}{second}@1" for first in range(3) for second in range(3)]),
    ):
        rows = table.rows(space, space.all_genomes())
        assert [whole.text(whole.all_genomes()[row]) for row in rows] == texts


def test_room_for_more_seeds():
    space = Space(("a", "b"))
    table = Table(space, (4,), np.zeros((4, 1, 1, 2)), np.zeros((4, 1, 2)), np.zeros(4), np.zeros(4), {})
    wider = table.with_seeds(3)
    assert wider.done.tolist() == [[True, False, False]] * 4
    assert wider.validation.shape == (4, 3, 1, 2)
    assert wider.with_seeds(2).num_seeds == 3


def test_a_table_comes_back_as_it_was_saved(tmp_path):
    rng = np.random.default_rng(0)
    validation, test = rng.random((8, 2, 2, 2), np.float32), rng.random((8, 2, 2), np.float32)
    test[3, 1] = np.nan
    space = Space(("a", "b"), rates=(1, 4), head="kept")
    table = Table(space, (4, 8), validation, test, np.full(8, np.nan), np.arange(8), {"device": "none"})
    path = tmp_path / "new" / "table.npz"
    save_table(path, table)
    again = load_table(path)
    for one, other in zip(again[1:], table[1:], strict=True):
        np.testing.assert_array_equal(one, other)
    assert (again.space, again.stops, again.about) == (table.space, table.stops, table.about)
    assert np.argwhere(~again.done).tolist() == [[3, 1]]
    assert [file.name for file in path.parent.iterdir()] == ["table.npz"]
