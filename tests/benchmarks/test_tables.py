"""FreezeBench's tables are whole, and in the order that they claim."""

import numpy as np
import pytest
from tables import TABLES, Table, load_table, save_table

from gafreeze_jax.space import Space

NAMES = ("cnn-fashion_mnist", "minilm-sst2", "minilm-trec", "resnet20-cifar10", "resnet20-fashion_mnist")
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


def numbers(genomes):
    return genomes @ (2 ** np.arange(genomes.shape[1])[::-1])


def test_all_tables_are_here():
    assert sorted(path.stem for path in TABLES.glob("*.npz")) == sorted(NAMES)


def test_nothing_is_missing(table):
    num_masks, num_seeds, num_stops = 2 ** len(table.genes), table.test.shape[1], len(table.stops)
    assert num_seeds >= 3
    assert table.done.all()
    assert table.validation.shape == (num_masks, num_seeds, num_stops, 2)
    assert table.test.shape == (num_masks, num_seeds, 2)
    assert table.flops.shape == table.trainable.shape == (num_masks,)
    assert list(table.stops) == sorted(set(table.stops))
    for scores in (table.validation, table.test):
        assert np.isfinite(scores).all()
        assert ((scores[..., 0] >= 0) & (scores[..., 0] <= 1)).all()
        assert (scores[..., 1] > 0).all()
    assert (table.flops > 0).all()


def test_accuracies_are_whole_numbers_of_examples(table):
    for scores, num in (
        (table.validation, table.about["settings"]["validation_examples"]),
        (table.test, table.about["num_test"]),
    ):
        hits = scores[..., 0] * num
        np.testing.assert_allclose(hits, hits.round(), atol=1e-3)


def test_seeds_differ(table):
    for seed in range(1, table.test.shape[1]):
        assert (table.test[:, seed] != table.test[:, 0]).any(1).mean() > 0.9


def test_each_bit_freezes_one_gene(table):
    space = Space(table.genes)
    masks = space.all_genomes()
    np.testing.assert_array_equal(numbers(masks), np.arange(len(masks)))
    sizes = table.trainable[0] - table.trainable[numbers(np.eye(len(table.genes), dtype=bool))]
    assert (sizes > 0).all()
    np.testing.assert_array_equal(table.trainable, table.trainable[-1] + ~space.frozen(masks) @ sizes)


def test_the_bits_are_in_the_order_of_the_genes():
    table = load_table(TABLES / "cnn-fashion_mnist.npz")
    sizes = table.trainable[0] - table.trainable[numbers(np.eye(len(table.genes), dtype=bool))]
    assert dict(zip(table.genes, sizes.tolist(), strict=True)) == WEIGHTS_OF_CNN


def test_a_deeper_frozen_bottom_costs_less(table):
    flops = table.flops[numbers(Space(table.genes).prefixes())]
    assert (np.diff(flops) < 0).all()
    assert flops[-1] == table.flops.min()
    assert flops[0] == table.flops.max()


def test_a_table_comes_back_as_it_was_saved(tmp_path):
    rng = np.random.default_rng(0)
    validation, test = rng.random((8, 2, 2, 2), np.float32), rng.random((8, 2, 2), np.float32)
    test[3, 1] = np.nan
    table = Table(("a", "b", "c"), (4, 8), validation, test, np.full(8, np.nan), np.arange(8), {"device": "none"})
    path = tmp_path / "new" / "table.npz"
    save_table(path, table)
    again = load_table(path)
    for one, other in zip(again, table, strict=True):
        np.testing.assert_array_equal(one, other)
    assert (again.genes, again.stops, again.about) == (table.genes, table.stops, table.about)
    assert np.argwhere(~again.done).tolist() == [[3, 1]]
    assert [file.name for file in path.parent.iterdir()] == ["table.npz"]
