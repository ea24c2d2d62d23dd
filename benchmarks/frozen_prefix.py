"""What does the frozen prefix save in a plain training loop?

    python benchmarks/frozen_prefix.py [--layers 6] [--frozen 2 4 5 6] [--examples 256] [--epochs 3]

A Flax transformer with random parameters, its lowest layers frozen, trained by a loop over batches: once as usual, with
gradients of everything and an optimizer that leaves frozen layers as they are, and once from `frozen_prefix`. Printed are the
seconds of processor time for the epochs, without those of compiling, and for computing the prefix.
"""

import time
from dataclasses import dataclass
from typing import Any

import flax.linen as nn
import jax
import numpy as np
import optax
import tyro
from machine import describe_machine

from gafreeze_jax import cut, freeze, frozen_prefix, make_genes, value_and_grad
from gafreeze_jax.metrics import cross_entropy
from gafreeze_jax.models import from_function

BATCH, VOCABULARY, NUM_CLASSES = 16, 1000, 4


@dataclass(frozen=True, kw_only=True)
class Options:
    layers: int = 6
    width: int = 256
    tokens: int = 64
    frozen: tuple[int, ...] = (2, 4, 5, 6)
    """Layers above the embeddings that are frozen as well as these."""
    examples: int = 256
    epochs: int = 3


class Layer(nn.Module):
    width: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = x + nn.MultiHeadDotProductAttention(4)(nn.LayerNorm()(x))
        return x + nn.Dense(self.width)(nn.gelu(nn.Dense(4 * self.width)(nn.LayerNorm()(x))))


class Transformer(nn.Module):
    layers: int
    width: int

    @nn.compact
    def __call__(self, ids: jax.Array) -> jax.Array:
        x = nn.Embed(VOCABULARY, self.width, name="embeddings")(ids)
        for i in range(self.layers):
            x = Layer(self.width, name=f"layer_{i}")(x)
        return nn.Dense(NUM_CLASSES, name="head")(x.mean(1))


def seconds_of_epochs(step: Any, state: Any, data: Any, options: Options) -> float:
    """A loop over batches; the first epoch compiles and does not count."""
    start = 0.0
    for epoch in range(options.epochs + 1):
        for first in range(0, options.examples, BATCH):
            state = step(state, jax.tree.map(lambda leaf, first=first: leaf[first : first + BATCH], data))
        jax.block_until_ready(state)
        start = start if epoch else time.process_time()
    return time.process_time() - start


def measure(options: Options, frozen: int) -> tuple[float, float, float]:
    """Seconds of the epochs as usual, from the prefix, and of computing that."""
    rng = np.random.default_rng(0)
    ids = rng.integers(0, VOCABULARY, (options.examples, options.tokens)).astype(np.int32)
    targets = rng.integers(0, NUM_CLASSES, options.examples)
    model = Transformer(options.layers, options.width)
    params = jax.jit(model.init)(jax.random.key(0), ids[:2])["params"]
    genes = make_genes(params, {"(embeddings)/.*": r"\1", r"(layer_\d+)/.*": r"\1", "head/.*": None})
    mask = [i <= frozen for i in range(options.layers + 1)]
    tx = optax.adamw(1e-4)

    def apply(params: Any, ids: jax.Array) -> Any:
        return model.apply({"params": params}, ids)

    of_trained = freeze(tx, genes, mask)

    @jax.jit
    def plain(state, batch):
        (params, optimizer), (ids, targets) = state, batch
        gradients = jax.grad(lambda params: cross_entropy(apply(params, ids), targets).mean())(params)
        updates, optimizer = of_trained.update(gradients, optimizer, params)
        return optax.apply_updates(params, updates), optimizer

    network, parts = cut(apply, params, genes, ids[:2]), from_function.split(params, genes)
    prefix = frozen_prefix(network, parts, mask)
    gradients_for = value_and_grad(network, mask, cross_entropy)

    @jax.jit
    def from_prefix(state, batch):
        (parts, optimizer), (rows, targets) = state, batch
        trained = prefix.trained(parts)
        updates, optimizer = tx.update(gradients_for(parts, rows, targets).gradients, optimizer, trained)
        updated: Any = optax.apply_updates(trained, updates)
        return prefix.merge(parts, updated), optimizer

    usual = seconds_of_epochs(plain, (params, of_trained.init(params)), (ids, targets), options)
    jax.block_until_ready(prefix(ids[:100]))  # compiles
    start = time.process_time()
    rows = jax.block_until_ready(prefix.cache(ids))
    caching = time.process_time() - start
    kept = seconds_of_epochs(from_prefix, (parts, tx.init(prefix.trained(parts))), (rows, targets), options)
    return usual, kept, caching


def main(options: Options) -> None:
    print(describe_machine())
    print("| frozen layers | an epoch as usual, s | from the prefix, s | computing it, s | times as fast |")
    print("| --- | ---: | ---: | ---: | ---: |")
    for frozen in options.frozen:
        usual, kept, caching = measure(options, frozen)
        usual, kept = usual / options.epochs, kept / options.epochs
        print(f"| {frozen} of {options.layers} | {usual:.2f} | {kept:.2f} | {caching:.2f} | {usual / kept:.1f} |")


if __name__ == "__main__":
    main(tyro.cli(Options))
