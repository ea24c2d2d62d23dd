"""A prior mean helps the surrogate where the ranking is right, and not where it says nothing."""

import freezebench
import numpy as np
import ranking_prior
import test_freezebench
from tables import Table

from gafreeze_jax.space import Space

SCORES = np.array([0.4, 0.3, 0.2, 0.1, 0.0])


def make_table():
    """Fitness is the sum of the scores of what trains."""
    space = Space(tuple("abcde"))
    trained = ~np.array(space.frozen(space.all_genomes()), bool)
    accuracy = 0.5 + 0.4 * trained @ SCORES
    test = np.stack([accuracy, 1 - accuracy], -1)[:, None]
    return Table(space, (8,), test[:, :, None], test, np.ones(32), np.ones(32), {})


def test_a_ranking_that_is_right_helps_and_others_do_not():
    table = make_table()
    features = ranking_prior.features_of(table, {"right": SCORES, "equal": np.zeros(5)})
    found = ranking_prior.compare(table, features, seen=8, draws=20)
    assert found["right"][0] > 0.97 > found["none"][0]
    assert found["right"][1] >= found["none"][1]
    assert found["equal"] == found["none"]


def test_scores_of_genes_are_shares_of_what_their_blocks_have(monkeypatch, quick_compilation):
    """One gene of two blocks, one of one, and the head."""

    def rank(population, replicate):
        return {name: place for place, name in enumerate(population.space.names)}

    monkeypatch.setattr(ranking_prior, "RANKINGS", {"places": rank})
    monkeypatch.setitem(freezebench.BENCHES, "resnet14-digits_inversion", test_freezebench.make_bench(blocks_of_gene=2))
    (shares,) = ranking_prior.scores_of_genes(ranking_prior.Options(table="resnet14-digits_inversion")).values()
    np.testing.assert_allclose(shares, np.array([0.5, 2, 3]) / 5.5)
