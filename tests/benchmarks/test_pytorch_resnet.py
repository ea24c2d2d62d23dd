"""The PyTorch competitor for images trains what we do."""

import jax
import numpy as np
import pytest
import small_models
from test_population import assert_same_params

from gafreeze_jax.engine.network import Dataset
from gafreeze_jax.engine.optimizer import adamw_recipe
from gafreeze_jax.engine.population import Population
from gafreeze_jax.models import checkpoints, pretrained, resnet
from gafreeze_jax.options import Options
from gafreeze_jax.tasks.base import make_problem

pytest.importorskip("torch")
pytorch_resnet = pytest.importorskip("pytorch_resnet")

pytestmark = pytest.mark.usefixtures("quick_compilation")

RATES = (1e-3, 3e-3)


@pytest.fixture(scope="module")
def task(tmp_path_factory):
    """Three genes, and 18 images of two classes."""
    path = small_models.write_resnet(tmp_path_factory.mktemp("resnet"), "padding") / "model.safetensors"
    loaded = pretrained.load(path, num_classes=2, key=jax.random.key(1))
    rng = np.random.default_rng(0)
    data = Dataset(rng.integers(256, size=(18, 8, 8, 3)).astype(np.uint8), rng.integers(2, size=18).astype(np.int32))
    options = Options(batch_size=6, epochs=2)
    problem = make_problem(loaded.model.make_network(), loaded.params, data, data, options, make_head=loaded.make_head)
    return path, loaded, data, problem


@pytest.mark.parametrize("genome", ["000", "101"])
def test_training_equals_ours(task, genome):
    path, loaded, data, problem = task
    genome = np.array([gene == "1" for gene in genome])
    run = problem.replicate(0)
    recipe = adamw_recipe(learning_rate=RATES[0], head_learning_rate=RATES[1], num_steps=run.num_steps)
    sources = problem.train, problem.validation
    population = Population(
        problem.network, problem.params, recipe, *sources, loss=problem.task.loss, metric=problem.task.metric
    )
    (member,) = population.evaluate(genome[None], run)

    finetuner = pytorch_resnet.make_finetuner(path, run.head, learning_rates=RATES)
    pixels = loaded.model.pixels
    examples = np.asarray(run.batches.examples)
    train_loss = finetuner.fit(genome, pytorch_resnet.make_batches(data.inputs, data.targets, examples, pixels))
    scores = finetuner.score(pytorch_resnet.scoring_batches(data.inputs, data.targets, pixels))
    assert train_loss == pytest.approx(member.train_loss, rel=1e-4)
    assert scores == pytest.approx((member.score, member.loss), rel=1e-3)

    state = finetuner.model.state_dict().items()
    tensors = {name: tensor.contiguous().numpy() for name, tensor in state if not name.endswith("num_batches_tracked")}
    theirs = checkpoints.to_tree(tensors, resnet.CIFAR.table, loaded.params, ignore=resnet.CIFAR.ignored)
    start = dict(problem.params) | {"head": run.head}
    assert_same_params(problem.network.names, genome, theirs, member.params, start, rtol=1e-3, atol=1e-4)
