"""Members of other families than BERT train like the plain static run, with dropout, stacked and in one program."""

import jax
import numpy as np
import parity
import pytest
import test_population as tasks

from gafreeze_jax.data import tokens
from gafreeze_jax.data.batches import make_batches
from gafreeze_jax.engine.cohort import Plan
from gafreeze_jax.engine.network import Dataset, Source
from gafreeze_jax.models import base, configs, pretrained

pytestmark = pytest.mark.usefixtures("quick_compilation")

STEPS = np.array([[1, 0, 2], [3, 5, 4], [2, 0, -1]])
RATES = {
    "albert": {"hidden_dropout_prob": 0.2, "attention_probs_dropout_prob": 0.2},
    "modernbert": {"attention_dropout": 0.2, "mlp_dropout": 0.2, "classifier_pooling": "mean"},
    "deberta-v2": {"hidden_dropout_prob": 0.2, "attention_probs_dropout_prob": 0.2},
    "mpnet": {"hidden_dropout_prob": 0.2, "attention_probs_dropout_prob": 0.2},
    "llama": {"attention_dropout": 0.2},
    "gpt_neox": {"hidden_dropout": 0.2, "attention_dropout": 0.2},
    "dinov2": {"hidden_dropout_prob": 0.2, "drop_path_rate": 0.2},
    "convnext": {"drop_path_rate": 0.2},
}
# Layers, one of each kind.
FEWER = {"convnext": {"depths": [1, 1]}, "modernbert": {"num_hidden_layers": 3, "global_attn_every_n_layers": 2}}


@pytest.fixture(params=RATES)
def task(request):
    """A network, its parameters, data and training steps."""
    known = next(family for family in pretrained.FAMILIES if family.model_type == request.param)
    raw = parity.CONFIGS[request.param][0] | RATES[request.param] | FEWER.get(request.param, {}) | {"initializer_range": 0.3}
    values, problems = configs.check(raw, known.config)
    assert not problems
    model = base.Model(known, known.config(**values), num_classes=3)
    rng = np.random.default_rng(0)
    targets = rng.integers(3, size=6).astype(np.int32)
    if known.kind == "images":
        data, batch = Dataset(rng.integers(256, size=(6, 12, 12, 3)).astype(np.uint8), targets), make_batches
    else:
        texts = parity.make_texts(raw)
        data, batch = Dataset(texts.inputs, targets), lambda examples: tokens.pack_batches(texts, examples, 16)
    source = Source(data, batch(np.arange(6)[None]))
    return model.make_network(), model.init_params(jax.random.key(0)), source, batch(STEPS)


def test_masks_train_like_the_plain_static_run(task):
    network, recipe = task[0], tasks.RECIPES["sgd"]
    genomes = np.zeros((2, len(network.names)), bool)
    genomes[0, ::2], genomes[1, :2] = True, True
    expected = [tasks.plain_run(task, recipe, genome) for genome in genomes]
    for plan, some in ((Plan(members=2), genomes), (Plan(steps=len(STEPS)), genomes[:1])):
        members = list(tasks.make_population(task, recipe, plan=plan).evaluate(some, tasks.make_run(task)))
        assert len(members) == len(some)
        for member in members:
            (place,) = np.flatnonzero((genomes == member.genome).all(1))
            tasks.assert_same_training(task, member, expected[place])
