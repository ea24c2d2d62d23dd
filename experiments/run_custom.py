"""Finds which layers of a network of your own to freeze: a tutorial. Copy this file and put your network and data in.

    python experiments/run_custom.py                    # a dense network and scikit-learn's handwritten digits
    python experiments/run_custom.py --network cnn      # convolutions and dense layers
    python experiments/run_custom.py --data mock        # 10 random features, 3 classes: dense layers 10-32-16-8-3

Each is pretrained on one task and fine-tuned on another with few examples (of the digits, 0 to 4 and 5 to 9). It ends in
seconds.
"""

import dataclasses
from dataclasses import dataclass
from typing import Literal, NamedTuple

import jax
import numpy as np

from gafreeze_jax.extras import needs, script_needs

with script_needs("images"):
    import tyro

    from gafreeze_jax import options
    from gafreeze_jax.engine.network import Dataset
    from gafreeze_jax.models import checkpoints, plain
    from gafreeze_jax.runs.main import main as run
    from gafreeze_jax.tasks.base import Setup, make_problem, make_source
    from gafreeze_jax.tasks.pretraining import pretrain

PRETRAINING_EPOCHS = 5


@dataclass(frozen=True, kw_only=True)
class Options(options.Options):
    """Find which layers of a small network of your own to freeze."""

    network: Literal["dense", "cnn"] = "dense"
    """dense: three hidden layers of 32, 16 and 8 units; cnn: two convolutions and a dense layer, for images only."""
    data: Literal["digits", "mock"] = "digits"
    """digits: 8 x 8 images of handwritten digits; mock: random features whose classes a random network decides."""
    train_examples: int = 100
    """Train members on at most this many examples."""
    epochs: int = 5
    """Passes through the training examples."""
    learning_rate: float = 3e-3
    """Highest learning rate of the pretrained layers (AdamW, linear warm-up and decay)."""
    head_learning_rate: float = 1e-2
    """Highest learning rate of the last layer."""


# 1. A network is a chain of blocks, one per gene, and a head, which always trains. Here they come from `models/plain.py`, which
#    is the file to copy for layers of your own. A block is a function `apply(params, x, context, *, frozen, key)` of its own
#    parameters and of the output of the block below. A function that cannot be cut into blocks becomes a network by
#    `models/from_function.py` (see examples/).


def make_network(kind: str, image: tuple[int, ...], num_classes: int):
    """The network, and the shapes of its kernels by block."""
    if kind == "dense":
        return plain.make_dense([int(np.prod(image)), 32, 16, 8, num_classes])
    return plain.make_cnn(image, channels=(16, 32), dense=32, num_classes=num_classes)


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
    with needs("images"):
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


# 3. A setup says all that there is to know before the search begins.


def prepare(given: Options) -> Setup:
    if (given.network, given.data) == ("cnn", "mock"):
        raise ValueError("--network cnn needs images: take --data digits")
    load = load_digits if given.data == "digits" else make_mock
    data = load(np.random.default_rng(0), given.train_examples, given.validation_examples)
    network, shapes = make_network(given.network, data.train.inputs.shape[1:], data.num_classes)
    usual = {"learning_rate": Options.learning_rate, "head_learning_rate": Options.head_learning_rate}
    longer = dataclasses.replace(given, epochs=PRETRAINING_EPOCHS, **usual)
    initial = plain.init_params(jax.random.key(given.seed), shapes)
    pretrained = pretrain(make_problem(network, initial, data.pretraining, data.pretraining, longer), longer)
    return Setup(
        problem=make_problem(
            network,
            pretrained.params,
            data.train,
            data.validation,
            given,
            make_head=lambda key: plain.init_head(key, shapes),
        ),
        about=[
            f"Model: {given.network}, genes {', '.join(network.names)}; the last layer always trains",
            f"Pretrained to {pretrained.score:.1%} accuracy on {len(data.pretraining.targets):,} examples of another task",
        ],
        network=network,
        test=make_source(data.test),
        num_test=len(data.test.targets),
        restore=lambda params: params,
        save=checkpoints.write_tree,
    )


def main(given: Options) -> None:
    run("custom", prepare, given)


if __name__ == "__main__":
    main(tyro.cli(Options))
