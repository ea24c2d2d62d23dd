"""The competitor as Keras users write it: for each genome build the model, freeze layers, compile, fit, evaluate.

    python benchmarks/keras_loop.py ARRAYS.npz SPEC.json

small_networks.py runs this, where need be with an interpreter of its own: it needs keras and tensorflow, but no gafreeze_jax.
Takes one to three seconds per genome.

ARRAYS.npz has `train_inputs` [N, ...], `train_targets` [N], `validation_inputs`, `validation_targets`, and the initial weights:
`dense_0/kernel`, `dense_0/bias`, ..., of which the last layer is the classifier; kernels with four axes are convolutions, each
followed by pooling. SPEC.json has `genomes` ("101": 1 = frozen), `epochs`, `batch_size`, `scoring_batch`, `learning_rate`.

Prints a line of JSON: seconds and validation accuracy of every genome, in their order, and versions.
"""

# pyright: reportMissingImports=false, reportMissingModuleSource=false

import json
import os
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

os.environ["KERAS_BACKEND"] = "tensorflow"

import keras
import numpy as np
import tensorflow


def build_model(arrays: Mapping[str, np.ndarray]) -> keras.Model:
    names = [name.removesuffix("/kernel") for name in arrays if name.endswith("/kernel")]
    inputs = x = keras.Input(arrays["train_inputs"].shape[1:])
    for name in names:
        kernel = arrays[f"{name}/kernel"]
        activation = None if name == names[-1] else "relu"
        if kernel.ndim == 4:
            x = keras.layers.Conv2D(kernel.shape[-1], kernel.shape[0], padding="same", activation=activation, name=name)(x)
            x = keras.layers.MaxPooling2D()(x)
        else:
            x = keras.layers.Flatten()(x) if len(x.shape) > 2 else x
            x = keras.layers.Dense(kernel.shape[-1], activation=activation, name=name)(x)
    model = keras.Model(inputs, x)
    for name in names:
        model.get_layer(name).set_weights([arrays[f"{name}/kernel"], arrays[f"{name}/bias"]])
    return model


def evaluate(arrays: Mapping[str, np.ndarray], spec: Mapping[str, Any], genome: str) -> float:
    """Validation accuracy after fine-tuning with a genome."""
    keras.utils.clear_session()
    model = build_model(arrays)
    layers = [layer for layer in model.layers if layer.weights]
    for layer, gene in zip(layers[:-1], genome, strict=True):
        layer.trainable = gene == "0"
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(spec["learning_rate"]), loss, metrics=["accuracy"])
    model.fit(arrays["train_inputs"], arrays["train_targets"], batch_size=spec["batch_size"], epochs=spec["epochs"], verbose=0)
    scores = model.evaluate(
        arrays["validation_inputs"], arrays["validation_targets"], batch_size=spec["scoring_batch"], verbose=0, return_dict=True
    )
    return scores["accuracy"]


def main(arrays_file: Path, spec_file: Path) -> None:
    arrays = dict(np.load(arrays_file))
    spec = json.loads(spec_file.read_text(encoding="utf-8"))
    keras.utils.set_random_seed(0)
    tensorflow.get_logger().setLevel("ERROR")  # or it warns of tracing each model anew, as these loops do
    few = {name: array[: spec["batch_size"]] if "/" not in name else array for name, array in arrays.items()}
    evaluate(few, spec | {"epochs": 1}, spec["genomes"][0])  # TensorFlow imports and starts much of itself on first use
    seconds, accuracies = [], []
    for genome in spec["genomes"]:
        start = time.perf_counter()
        accuracies.append(evaluate(arrays, spec, genome))
        seconds.append(time.perf_counter() - start)
    versions = {"keras": keras.__version__, "tensorflow": tensorflow.__version__}
    print(json.dumps({"seconds": seconds, "accuracies": accuracies, "versions": versions}))


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
