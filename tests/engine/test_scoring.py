"""Networks that share pretrained blocks score as each does by itself."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_population import ALL_MASKS, TASKS

from gafreeze_jax.engine import cache, scoring
from gafreeze_jax.engine.cache import Activations, Budget
from gafreeze_jax.engine.scoring import MemberParams, score, score_each, score_members
from gafreeze_jax.metrics import ACCURACY, classes, cross_entropy
from gafreeze_jax.space import Space

pytestmark = pytest.mark.usefixtures("quick_compilation")

MEASURES = {"loss": cross_entropy, "metric": ACCURACY}
BUDGETS = {"on the device": Budget(10**9, 0), "on the host": Budget(0, 10**9), "nothing is kept": Budget(10**4, 0)}


def changed(names, params, genome):
    """Other parameters in the head and in what a genome trains, and copies of those that it freezes."""
    frozen = dict(zip(names, genome, strict=True)) | {"head": False}

    def change(leaf):  # by other numbers at each place, as normalisation may take away what is equal
        return leaf + 0.1 * np.sin(np.arange(leaf.size, dtype=np.float32)).reshape(leaf.shape)

    return {name: jax.tree.map(jnp.copy if frozen[name] else change, tree) for name, tree in params.items()}


@pytest.fixture
def blocks_run(monkeypatch):
    """Names of functions of blocks, once for each batch that they see."""
    seen = []
    for module in (cache, scoring):
        infer = module.infer
        monkeypatch.setattr(module, "infer", lambda apply, *rest, infer=infer: (seen.append(apply), infer(apply, *rest))[1])
    return seen


@pytest.mark.parametrize("budget", BUDGETS)
@pytest.mark.parametrize("name", TASKS)
def test_scores_are_those_of_each_by_itself(name, budget, monkeypatch):
    network, params, source, _ = TASKS[name]
    members = [changed(network.names, params, genome) for genome in ALL_MASKS]
    expected = [score(network, member, source, **MEASURES) for member in members]
    monkeypatch.setattr(scoring, "default_budget", lambda: BUDGETS[budget])
    for ours, theirs in zip(score_each(network, members, source, pretrained=params, **MEASURES), expected, strict=True):
        np.testing.assert_allclose(ours.losses, theirs.losses, rtol=1e-5)
        np.testing.assert_array_equal(ours.values, theirs.values)
    assert len({round(float(scores.losses.mean()), 5) for scores in expected}) == len(ALL_MASKS)


@pytest.mark.parametrize("scan", [False, True])
def test_several_numbers_an_example_keep_their_order(scan):
    network, params, source, _ = TASKS["bert"]
    other = changed(network.names, params, (1,) * len(network.names))
    heads = jax.tree.map(lambda *leaves: np.stack(leaves), params["head"], other["head"])
    members = MemberParams({**params, "head": heads}, frozenset({"head"}), len(network.names))
    activations = Activations(network, params, source, BUDGETS["on the device"])
    both = score_members(network, members, activations, loss=cross_entropy, metric=classes.MACRO_F1, scan=scan)
    assert both.values.shape == (2, 2, source.num_examples)
    np.testing.assert_array_equal(both.values[0, 1], source.data.targets)
    for ours, tree in zip(both.values, (params, other), strict=True):
        alone = score(network, tree, source, loss=cross_entropy, metric=classes.MACRO_F1)
        np.testing.assert_array_equal(ours, alone.values)
        right = score(network, tree, source, **MEASURES)
        np.testing.assert_array_equal(ours[0] == ours[1], right.values)


def test_pretrained_blocks_run_once(blocks_run):
    network, params, source, _ = TASKS["bert"]
    genomes = [*Space(network.names).prefixes(), (1, 0, 1)]
    members = [changed(network.names, params, genome) for genome in genomes]
    list(score_each(network, members, source, pretrained=params, **MEASURES))
    alone = [3, 2, 1, 0, 2]  # blocks above the frozen prefix
    assert len(blocks_run) == (sum(alone) + 3) * len(source.batches.examples)
