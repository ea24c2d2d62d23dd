"""Lets another optimizer, Nevergrad, find which layers to freeze: it is asked for masks, and told how well they trained.

    pip install --no-deps nevergrad
    python examples/nevergrad_search.py

It ends in seconds. Put your own model, pretrained parameters and arrays in the place of these.
"""

import sys

import jax
import numpy as np
from sklearn.datasets import load_digits

from gafreeze_jax import Space, masking
from gafreeze_jax.engine.cohort import Plan
from gafreeze_jax.engine.network import Dataset
from gafreeze_jax.engine.optimizer import adamw_recipe
from gafreeze_jax.engine.population import Population
from gafreeze_jax.models import from_function
from gafreeze_jax.options import Options
from gafreeze_jax.space import as_genome
from gafreeze_jax.tasks.base import make_problem

try:
    import nevergrad as ng
except ImportError:
    sys.exit("This example needs Nevergrad: pip install --no-deps nevergrad")


def apply(params, x):
    for layer in params["layers"]:
        x += jax.nn.relu(x @ layer)
    return x @ params["classifier"]


digits = load_digits()
inputs = (digits.data / 16).astype("float32")
train, validation = (Dataset(inputs[rows], digits.target[rows]) for rows in (slice(0, 300), slice(300, 600)))

rng = np.random.default_rng(0)
normal = lambda *shape: rng.normal(size=shape, scale=0.1).astype("float32")  # noqa: E731
params = {"layers": [normal(64, 64) for _ in range(6)], "classifier": normal(64, 10)}  # in place of pretrained ones
genes = masking.make_genes(params, {r"layers/(\d)": r"layer_\1", "classifier": None})  # None = always trains
network = from_function.make_network(lambda params, x, key: apply(params, x), genes)
problem = make_problem(network, from_function.split(params, genes), train, validation, Options(epochs=6), genes=genes)
replicate = problem.replicate(seed=0)
recipe = adamw_recipe(learning_rate=3e-3, head_learning_rate=1e-2, num_steps=replicate.num_steps)
task, sources = problem.task, (problem.train, problem.validation)
population = Population(network, problem.params, recipe, *sources, loss=task.loss, metric=task.metric)
population.plan = Plan(members=8, steps=replicate.num_steps, freezing="traced")  # one program trains any eight masks

space = Space(genes.names)
choices = ng.p.Choice((0, 1), repetitions=space.num_genes)  # 1 = frozen
choices.random_state.seed(0)
optimizer = ng.optimizers.DiscreteOnePlusOne(choices, budget=32, num_workers=8)
genome_of = lambda candidate: as_genome(candidate.value)  # noqa: E731
accuracies = {}
for _ in range(4):
    candidates = [optimizer.ask() for _ in range(8)]
    new = sorted(set(map(genome_of, candidates)) - accuracies.keys())  # none is trained twice
    if new:
        members = population.evaluate(new, replicate)
        accuracies |= {member.genome: member.score for member in members}
    for candidate in candidates:
        optimizer.tell(candidate, -accuracies[genome_of(candidate)])  # it minimises

best = max(accuracies, key=lambda genome: accuracies[genome])
print(f"{len(accuracies)} of {space.size} masks trained")
print(f"{space.describe(best)}: accuracy {accuracies[best]:.3f}")
