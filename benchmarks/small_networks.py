"""Genetic search over masks of small networks, by the loops people write in Keras and PyTorch, and by gafreeze_jax.

    python benchmarks/small_networks.py --images FOLDER --keras-python OTHER/bin/python

Needs torch. FOLDER has a train.npz with `images` (uint8 [N, 28, 28]) and `labels`, such as Fashion-MNIST; without it only the
first task is done. Keras and TensorFlow may be installed in another environment, whose interpreter is then given; without them
Keras is left out. Takes about 3 minutes on 2 cores, 1 without Keras.

Two tasks, of three genes each:

- dense: a network 10-32-16-8-3 on mock data, 5 epochs of 25 steps a member
- cnn: two convolutions and a dense layer, 1 epoch of 63 steps a member

A bare genetic algorithm drives PyTorch; its genomes are recorded and done once more by Keras and by gafreeze_jax, from the
same initial weights, with Adam. Imports are not counted, nor is a first step of PyTorch and Keras, which import much of
themselves on first use. Compiling is counted. Prints a table for each task, with the seconds of these arms:

- Keras, PyTorch: every member of every generation is trained
- ..., repeats not retrained: the seconds of each genome's first evaluation, summed
- gafreeze_jax: genomes seen before are not evaluated again
- gafreeze_jax, compiled before: the same once more in the same process
"""

# pyright: reportMissingImports=false

import collections
import copy
import dataclasses
import importlib.util
import json
import math
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import optax
import pytorch_bert
import torch
import tyro
from torch import nn

from gafreeze_jax.data.batches import NONE, balanced_batches, make_batches
from gafreeze_jax.engine import planning
from gafreeze_jax.engine.cohort import Replicate
from gafreeze_jax.engine.network import Dataset, Network
from gafreeze_jax.engine.optimizer import Recipe
from gafreeze_jax.engine.population import Population
from gafreeze_jax.metrics import ACCURACY, cross_entropy
from gafreeze_jax.models import plain
from gafreeze_jax.runs.results import write_json
from gafreeze_jax.space import digits
from gafreeze_jax.tasks.base import SCORING_BATCH, make_source

BATCH_SIZE, LEARNING_RATE = 32, 1e-3
ADAM = optax.flatten(optax.adam(LEARNING_RATE))  # one update for all leaves of a block, which XLA compiles faster
RECIPE = Recipe(ADAM, ADAM, max_norm=math.inf)


@dataclass(frozen=True)
class Options:
    """Time genetic searches over masks of small networks in Keras, PyTorch and gafreeze_jax."""

    images: Path | None = None
    """Folder with a train.npz of images and labels."""
    keras_python: Path | None = None
    """Interpreter that has keras and tensorflow. Default: this one, if it has them."""
    generations: int = 5
    """Generations of the genetic algorithm, the first one included."""
    population: int = 10
    """Members of a generation."""
    train_images: int = 2000
    """Train members on so many images."""
    validation_images: int = 1000
    """Score members on so many images."""
    seed: int = 0
    """Decides initial weights, mock data, batches and the genetic algorithm."""
    out: Path | None = None
    """JSON file to write."""


class Task(NamedTuple):
    """What all sides get.

    Attributes:
      params: initial parameters.
      batches: [steps, BATCH_SIZE], the training examples of each step; -1 = none.
    """

    network: Network
    params: dict[str, dict[str, np.ndarray]]
    train: Dataset
    validation: Dataset
    epochs: int
    batches: np.ndarray


class Evaluation(NamedTuple):
    """One member, trained and scored. Accuracy is a share of the validation set."""

    genome: str
    accuracy: float
    seconds: float


class Arm(NamedTuple):
    """What one side took, for how many evaluations, and the best accuracy among them."""

    seconds: float
    evaluations: int
    accuracy: float


def make_task(model: tuple[Network, plain.Shapes], train: Dataset, validation: Dataset, epochs: int, seed: int) -> Task:
    network, shapes = model
    params = plain.init_params(jax.random.key(seed), shapes)
    equal = np.ones(len(train.targets))
    return Task(
        network, params, train, validation, epochs, balanced_batches(np.random.default_rng(seed), equal, BATCH_SIZE, epochs)
    )


def make_dense_task(seed: int, num_train: int = 800, num_validation: int = 200) -> Task:
    """10 random features, of which a random network of another size makes one of 3 classes."""
    rng = np.random.default_rng(seed)
    inputs = rng.normal(size=(num_train + num_validation, 10)).astype(np.float32)
    targets = (np.tanh(inputs @ rng.normal(size=(10, 16))) @ rng.normal(size=(16, 3))).argmax(1).astype(np.int32)
    train, validation = (Dataset(inputs[rows], targets[rows]) for rows in np.split(np.arange(len(inputs)), [num_train]))
    return make_task(plain.make_dense([10, 32, 16, 8, 3]), train, validation, epochs=5, seed=seed)


def make_cnn_task(folder: Path, seed: int, num_train: int, num_validation: int) -> Task:
    arrays = np.load(folder / "train.npz")
    if (total := num_train + num_validation) > len(arrays["labels"]):
        raise ValueError(f"{folder / 'train.npz'} has {len(arrays['labels'])} images, fewer than the {total} asked for")
    inputs = (arrays["images"][:total, ..., None] / 255).astype(np.float32)
    targets = arrays["labels"][:total].astype(np.int32)
    train, validation = (Dataset(inputs[rows], targets[rows]) for rows in np.split(np.arange(total), [num_train]))
    return make_task(plain.make_cnn((28, 28, 1), (16, 32), 128, 10), train, validation, epochs=1, seed=seed)


def run_ga(
    rng: np.random.Generator, evaluate: Callable[[np.ndarray], float], num_genes: int, population: int, generations: int
) -> Iterator[np.ndarray]:
    """A bare genetic algorithm; yields the genomes [P, G] of each generation after they were evaluated.

    Tournaments of three, uniform crossover, and each gene flipped with probability 1 / G.
    """
    genomes = rng.random((population, num_genes)) < 0.5
    for _ in range(generations):
        fitness = np.array([evaluate(genome) for genome in genomes])
        yield genomes
        rivals = rng.integers(population, size=(2, population, 3))
        winners = np.take_along_axis(rivals, fitness[rivals].argmax(-1)[..., None], -1)[..., 0]
        first, second = genomes[winners]
        genomes = np.where(rng.random(genomes.shape) < 0.5, first, second) ^ (rng.random(genomes.shape) < 1 / num_genes)


class PyTorchLoop:
    """Fine-tunes a network again and again, each time from the initial weights.

    What a good user does: data in memory, images with channels last, the fused Adam, only trainable parameters in it.

    Attributes:
      model: holds the last member's weights.
      evaluations: all so far.
    """

    def __init__(self, task: Task):
        self.model = make_pytorch_model(task.params)
        self.evaluations: list[Evaluation] = []
        self._initial = copy.deepcopy(self.model.state_dict())
        self._batches = [torch.from_numpy(batch[batch != NONE]) for batch in task.batches]
        self._train, self._validation = (
            (torch.from_numpy(np.moveaxis(data.inputs, -1, 1)), torch.from_numpy(data.targets).long())  # a view
            for data in (task.train, task.validation)
        )
        self.fit(np.zeros(len(task.network.blocks), bool), num_steps=1)
        self.score()

    def __call__(self, genome: np.ndarray) -> float:
        start = time.perf_counter()
        self.fit(genome)
        accuracy = self.score()
        self.evaluations.append(Evaluation(digits(genome), accuracy, time.perf_counter() - start))
        return accuracy

    def fit(self, genome: np.ndarray, num_steps: int | None = None) -> None:
        """Trains the initial model with a genome [G]."""
        self.model.load_state_dict(self._initial)
        for layer, frozen in zip(self.model, (*genome, False), strict=True):
            layer.requires_grad_(not frozen)
        optimizer = torch.optim.Adam((p for p in self.model.parameters() if p.requires_grad), LEARNING_RATE, fused=True)
        inputs, targets = self._train
        for batch in self._batches[:num_steps]:
            optimizer.zero_grad()
            nn.functional.cross_entropy(self.model(inputs[batch]), targets[batch]).backward()
            optimizer.step()

    @torch.inference_mode()
    def score(self) -> float:
        """Validation accuracy of the model as it is."""
        inputs, targets = (tensor.split(SCORING_BATCH) for tensor in self._validation)
        right = sum(int((self.model(x).argmax(-1) == y).sum()) for x, y in zip(inputs, targets, strict=True))
        return right / len(self._validation[1])


def make_pytorch_model(params: dict[str, dict[str, np.ndarray]]) -> nn.Sequential:
    """The same network: a module per block, and the head."""
    layers = {}
    channels = 1
    for name, layer in params.items():
        kernel = torch.from_numpy(layer["kernel"])
        if kernel.ndim == 4:
            _, _, inputs, channels = kernel.shape
            linear = nn.Conv2d(inputs, channels, plain.KERNEL, padding="same")
            layers[name] = nn.Sequential(linear, nn.ReLU(), nn.MaxPool2d(2))
            weight = kernel.permute(3, 2, 0, 1)
        else:
            inputs, outputs = kernel.shape
            linear = nn.Linear(inputs, outputs)
            layers[name] = linear if name == "head" else nn.Sequential(nn.Flatten(), linear, nn.ReLU())
            weight = kernel.unflatten(0, (-1, channels)).transpose(0, 1).flatten(0, 1).T  # PyTorch flattens channels first
            channels = 1
        linear.load_state_dict({"weight": weight, "bias": torch.from_numpy(layer["bias"])})
    model = nn.Sequential(collections.OrderedDict(layers))
    return model.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]


def run_keras(task: Task, genomes: Sequence[str], python: Path) -> tuple[list[Evaluation], dict[str, str]]:
    """Has keras_loop.py evaluate genomes; returns versions as well."""
    arrays: dict[str, Any] = {f"{name}/{leaf}": array for name, layer in task.params.items() for leaf, array in layer.items()}
    for name, data in (("train", task.train), ("validation", task.validation)):
        arrays |= {f"{name}_inputs": data.inputs, f"{name}_targets": data.targets}
    spec = {"genomes": genomes, "epochs": task.epochs, "learning_rate": LEARNING_RATE}
    spec |= {"batch_size": BATCH_SIZE, "scoring_batch": SCORING_BATCH}
    with tempfile.TemporaryDirectory() as folder:
        arrays_file, spec_file = Path(folder, "arrays.npz"), Path(folder, "spec.json")
        np.savez(arrays_file, **arrays)
        spec_file.write_text(json.dumps(spec), encoding="utf-8")
        command = [python, Path(__file__).with_name("keras_loop.py"), arrays_file, spec_file]
        printed = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    result = json.loads(printed.splitlines()[-1])
    return list(map(Evaluation, genomes, result["accuracies"], result["seconds"])), result["versions"]


def run_ours(task: Task, generations: Sequence[np.ndarray]) -> list[Evaluation]:
    """Evaluates the genomes [P, G] of each generation that are new."""
    start = time.perf_counter()
    train, validation = make_source(task.train), make_source(task.validation)
    population = Population(task.network, task.params, RECIPE, train, validation, loss=cross_entropy, metric=ACCURACY)
    run = Replicate(task.params["head"], make_batches(task.batches), jax.random.key(0))
    population.plan = planning.choose(population, generations[0], run, sum(map(len, generations))).plan
    done: dict[str, Evaluation] = {}
    for genomes in generations:
        new = {digits(genome): genome for genome in genomes if digits(genome) not in done}
        for member in population.evaluate(np.array(list(new.values()), bool).reshape(-1, genomes.shape[1]), run):
            seconds, start = time.perf_counter() - start, time.perf_counter()
            text = digits(member.genome)
            done[text] = Evaluation(text, member.score, seconds)
    return list(done.values())


def make_arm(evaluations: Sequence[Evaluation]) -> Arm:
    accuracies = [evaluation.accuracy for evaluation in evaluations]
    return Arm(sum(evaluation.seconds for evaluation in evaluations), len(evaluations), max(accuracies))


def first_of_each(evaluations: Sequence[Evaluation]) -> list[Evaluation]:
    """Without repeated genomes."""
    return list({evaluation.genome: evaluation for evaluation in reversed(evaluations)}.values())


def compare(task: Task, options: Options, keras_python: Path | None) -> dict[str, Any]:
    """Runs all loops on a task."""
    pytorch = PyTorchLoop(task)
    rng = np.random.default_rng(options.seed)
    generations = list(run_ga(rng, pytorch, len(task.network.blocks), options.population, options.generations))
    evaluations = {
        "PyTorch": pytorch.evaluations,
        "gafreeze_jax": run_ours(task, generations),
        "gafreeze_jax, compiled before": run_ours(task, generations),
    }
    versions = {}
    if keras_python is not None:
        genomes = [evaluation.genome for evaluation in pytorch.evaluations]
        keras, versions = run_keras(task, genomes, keras_python)
        evaluations = {"Keras": keras, **evaluations}
    arms = {}
    for name, done in evaluations.items():
        arms[name] = make_arm(done)
        if len(first := first_of_each(done)) < len(done):
            arms[f"{name}, repeats not retrained"] = make_arm(first)
    return {
        "steps": len(task.batches),
        "arms": {name: arm._asdict() for name, arm in arms.items()},
        "evaluations": {name: [evaluation._asdict() for evaluation in done] for name, done in evaluations.items()},
        "versions": versions,
    }


def has_keras() -> bool:
    return all(importlib.util.find_spec(name) for name in ("keras", "tensorflow"))


def main(options: Options) -> None:
    jax.config.update("jax_platforms", "cpu")
    keras_python = options.keras_python or (Path(sys.executable) if has_keras() else None)
    tasks = {"dense": make_dense_task(options.seed)}
    if options.images is not None:
        tasks["cnn"] = make_cnn_task(options.images, options.seed, options.train_images, options.validation_images)
    machine = pytorch_bert.describe_machine()
    print(f"{machine['processor']}, {machine['cores']} cores")
    results = {}
    for name, task in tasks.items():
        results[name] = compare(task, options, keras_python)
        print_result(name, results[name], machine["versions"])
    if options.out is not None:
        write_json(options.out, {"options": dataclasses.asdict(options), "machine": machine, "tasks": results})


def print_result(name: str, result: dict[str, Any], versions: dict[str, str]) -> None:
    used = {
        key: value for key, value in (versions | result["versions"]).items() if key in ("jax", "torch", "keras", "tensorflow")
    }
    print(f"\n{name}, {result['steps']} steps a member; {', '.join(f'{key} {value}' for key, value in used.items())}")
    print(f"{'':32} {'seconds':>9} {'evaluations':>12} {'s each':>8} {'times ours':>11} {'best':>7}")
    for arm_name, arm in result["arms"].items():
        columns = f"{arm['seconds']:9.2f} {arm['evaluations']:12} {arm['seconds'] / arm['evaluations']:8.3f}"
        times = arm["seconds"] / result["arms"]["gafreeze_jax"]["seconds"]
        print(f"{arm_name:32} {columns} {times:11.2f} {arm['accuracy']:7.4f}", flush=True)


if __name__ == "__main__":
    main(tyro.cli(Options))
