"""Searches which layers of a network of your own to freeze: a tutorial. Copy this file and put your network and data in.

    python experiments/run_custom.py                    # a dense network and scikit-learn's handwritten digits
    python experiments/run_custom.py --network cnn      # convolutions and dense layers
    python experiments/run_custom.py --data mock        # 10 random features, 3 classes: dense layers 10-32-16-8-3

Each is pretrained on one task (digits 0 to 4), and fine-tuned on another with few examples (digits 5 to 9). It ends in seconds.
"""

import dataclasses
import itertools
from dataclasses import dataclass
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from jax import Array

from gafreeze_jax.engine.network import Block, Dataset, Network
from gafreeze_jax.models import checkpoints
from gafreeze_jax.runs import experiment
from gafreeze_jax.tasks.pretraining import pretrain

PRETRAINING_EPOCHS = 20


@dataclass(frozen=True, kw_only=True)
class Options(experiment.Options):
    """Search which layers of a small network of your own to freeze."""

    network: Literal["dense", "cnn"] = "dense"
    """dense: three hidden layers of 32, 16 and 8 units; cnn: two convolutions and a dense layer, for images only."""
    data: Literal["digits", "mock"] = "digits"
    """digits: 8 x 8 images of handwritten digits; mock: random features whose classes a random network decides."""
    train_examples: int = 100
    """Train members on at most so many examples."""
    epochs: int = 5
    """Passes through the training examples."""
    learning_rate: float = 3e-3
    """Highest learning rate of the pretrained layers (AdamW, linear warm-up and decay)."""
    head_learning_rate: float = 1e-2
    """Highest learning rate of the last layer."""


# 1. A network is a chain of blocks. Each is a function of its own parameters and of what the block below gives; it has a gene.
#    `frozen` matters to layers such as dropout or batch normalisation, `key` to dropout; `context` holds what else a batch has.


def dense(params: dict, x: Array, context: dict, *, frozen: bool | Array, key: Array | None) -> Array:
    return jax.nn.relu(classifier(params, x, context, frozen=frozen, key=key))


def convolution(params: dict, x: Array, context: dict, *, frozen: bool | Array, key: Array | None) -> Array:
    """3 x 3, and the maximum of 2 x 2 pixels: [B, H, W, C] -> [B, H // 2, W // 2, F]."""
    layout = ("NHWC", "HWIO", "NHWC")
    y = jax.lax.conv_general_dilated(x, params["kernel"], (1, 1), "SAME", dimension_numbers=layout)
    y = jax.nn.relu(y + params["bias"][None, None, None])
    batch, height, width, features = y.shape
    return y.reshape(batch, height // 2, 2, width // 2, 2, features).max((2, 4))


def classifier(params: dict, x: Array, context: dict, *, frozen: bool | Array, key: Array | None) -> Array:
    return x.reshape(len(x), -1) @ params["kernel"] + params["bias"][None]


def make_network(kind: str, image: tuple[int, ...], num_classes: int, key: Array) -> tuple[Network, dict]:
    """The network and random parameters {block name: ..., "head": ...}; the head always trains, so it has no gene."""
    if kind == "dense":
        sizes = itertools.pairwise([int(np.prod(image)), 32, 16, 8])
        shapes: dict[str, tuple[int, ...]] = {f"dense_{i}": size for i, size in enumerate(sizes)}
    else:
        height, width, channels = image
        shapes = {"conv_0": (3, 3, channels, 16), "conv_1": (3, 3, 16, 32), "dense": (height // 4 * (width // 4) * 32, 32)}
    blocks = tuple(Block(name, dense if len(shape) == 2 else convolution) for name, shape in shapes.items())
    shapes["head"] = (shapes[blocks[-1].name][-1], num_classes)
    params = {}
    for name, shape in shapes.items():
        key, key_layer = jax.random.split(key)
        kernel = jax.nn.initializers.he_normal()(key_layer, shape, jnp.float32)
        params[name] = {"kernel": kernel, "bias": jnp.zeros(shape[-1])}
    return Network(blocks, classifier), params


# 2. Data are arrays: a row of inputs and a label for every example.


class Data(NamedTuple):
    """Two tasks with the same inputs: one to pretrain on, and one to fine-tune on."""

    pretraining: Dataset
    train: Dataset
    validation: Dataset
    test: Dataset
    num_classes: int


def load_digits(rng: np.random.Generator, num_train: int, num_validation: int) -> Data:
    """Scikit-learn's handwritten digits [N, 8, 8, 1]: 0 to 4 for pretraining, 5 to 9 for fine-tuning."""
    from sklearn.datasets import load_digits

    pixels, labels = load_digits(return_X_y=True)
    order = rng.permutation(len(labels))
    inputs, targets = (pixels[order].reshape(-1, 8, 8, 1) / 16).astype(np.float32), labels[order].astype(np.int32)
    low = targets < 5
    train, validation, test = split(inputs[~low], targets[~low] - 5, num_train, num_validation)
    return Data(Dataset(inputs[low], targets[low]), train, validation, test, num_classes=5)


def make_mock(rng: np.random.Generator, num_train: int, num_validation: int) -> Data:
    """10 random features and 3 classes. Both tasks have the same hidden features, read out differently."""
    inputs = rng.normal(size=(4000, 10)).astype(np.float32)
    hidden = np.tanh(inputs @ rng.normal(size=(10, 16)))
    first, second = ((hidden @ rng.normal(size=(16, 3))).argmax(1).astype(np.int32) for _ in range(2))
    train, validation, test = split(inputs[2000:], second[2000:], num_train, num_validation)
    return Data(Dataset(inputs[:2000], first[:2000]), train, validation, test, num_classes=3)


def split(inputs: np.ndarray, targets: np.ndarray, num_train: int, num_validation: int) -> list[Dataset]:
    """Training, validation and test set: the last has all that is left."""
    if (asked := num_train + num_validation) >= len(targets):
        raise ValueError(
            f"--train-examples and --validation-examples are {asked} together; there are {len(targets)}, of which some must be "
            "left for the test"
        )
    rows = np.split(np.arange(len(targets)), [num_train, asked])
    return [Dataset(inputs[part], targets[part]) for part in rows]


# 3. The search.


def prepare(options: Options) -> experiment.Prepared:
    if (options.network, options.data) == ("cnn", "mock"):
        raise ValueError("--network cnn needs images: take --data digits")
    load = load_digits if options.data == "digits" else make_mock
    data = load(np.random.default_rng(0), options.train_examples, options.validation_examples)
    image = data.train.inputs.shape[1:]
    network, params = make_network(options.network, image, data.num_classes, jax.random.key(options.seed))
    longer = dataclasses.replace(options, epochs=PRETRAINING_EPOCHS)
    first = experiment.make_task(network, params, data.pretraining, data.pretraining, longer)
    pretrained = pretrain(first, longer)

    def make_head(key: Array) -> dict:
        return make_network(options.network, image, data.num_classes, key)[1]["head"]

    return experiment.Prepared(
        experiment.make_task(network, pretrained.params, data.train, data.validation, options, make_head=make_head),
        [
            f"Model: {options.network}, genes {', '.join(network.names)}; the last layer always trains",
            f"Pretrained to {pretrained.score:.1%} accuracy on {len(data.pretraining.targets):,} examples of another task",
        ],
        network,
        experiment.Locked(experiment.make_source(data.test)),
        len(data.test.targets),
        restore=lambda params: params,
        save=checkpoints.write_tree,
    )


def main(options: Options) -> None:
    experiment.main("custom", prepare, options)


if __name__ == "__main__":
    main(tyro.cli(Options))
