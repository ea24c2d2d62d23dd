"""Both ways of `benchmarks/cut_search.py` search the same genes of the same network, all of it in blocks."""

import cut_search
import pytest

from gafreeze_jax import options

pytestmark = pytest.mark.usefixtures("quick_compilation")

SMALL = cut_search.Options(layers=2, hidden=16, tokens=8)


@pytest.mark.parametrize("make", [cut_search.bert_setup, cut_search.resnet_setup])
def test_both_ways_are_the_same_network(make):
    run = options.Options(epochs=1, batch_size=16)
    by_hand, cut = (make(SMALL, way)(run).problem for way in cut_search.WAYS)
    assert by_hand.genes.names == cut.genes.names
    for frozen in ([0] * len(cut.genes.names), [1] + [0] * (len(cut.genes.names) - 1)):
        assert by_hand.count_trainable(frozen) == cut.count_trainable(frozen)
