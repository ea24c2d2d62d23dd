"""Does a chain that was cut from a function cost more than one that was written by hand?

    python benchmarks/cut_bert.py [--layers 6] [--hidden 384] [--batch-size 16] [--tokens 64] [--repeats 5]

BERT of this project with random parameters, as the chain of its family and as one function of it that `cut` takes apart.
Printed are seconds for cutting, and for masks of the lowest layers the seconds of a forward and backward pass from kept inputs,
block by block, the median of some. Seconds are of processor time, on which other programs have little influence.
"""

import statistics
import time
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from machine import describe_machine

from gafreeze_jax import cut, masking
from gafreeze_jax.engine import backprop, process
from gafreeze_jax.engine.network import INPUTS, Network, Step
from gafreeze_jax.engine.passes import infer
from gafreeze_jax.metrics import cross_entropy
from gafreeze_jax.models import base, bert, from_function

RULES = {"embeddings/.*": "embeddings", r"(layer_\d+)/.*": r"\1", "head/.*": None}  # for the genes of the chain


@dataclass(frozen=True, kw_only=True)
class Options:
    layers: int = 6
    hidden: int = 384
    heads: int = 12
    batch_size: int = 16
    tokens: int = 64
    repeats: int = 5


def packed(ids: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """What enters the chain, and its context, for texts of equal length."""
    size, length = ids.shape
    positions = jnp.broadcast_to(jnp.arange(length), ids.shape)
    x = {"ids": ids.reshape(-1), "positions": positions.reshape(-1), "types": jnp.zeros(size * length, jnp.int32)}
    return x, {"segments": jnp.zeros(ids.shape, jnp.int32), "firsts": jnp.arange(size) * length}


def as_function(network: Network) -> Any:
    """The chain as one function of all its parameters."""

    def apply(params, ids, key):
        x, context = packed(ids)
        for i, block in enumerate(network.blocks):
            assert block.apply is not None
            of_block = None if key is None else jax.random.fold_in(key, i)
            x = block.apply(params[block.name], x, context, frozen=key is None, key=of_block)
        return network.head(params["head"], x, context, frozen=key is None, key=key)

    return apply


def seconds(network: Network, params: Any, x: Any, context: Any, depth: int, repeats: int) -> float:
    """Of a forward and backward pass from what enters the block at a depth; the median of some."""
    num = len(network.blocks)
    for block in network.blocks[:depth]:
        assert block.apply is not None
        x = infer(block.apply, (None, None), params[block.name], x, context)
    step = Step(x, targets := jnp.arange(len(context["firsts"])) % 2, jnp.ones(len(targets)), context)
    gradients_for = backprop.value_and_grad(network, cross_entropy, [i < depth for i in range(num)], start=depth)
    taken = []
    for i in range(repeats + 1):
        start = time.process_time()
        jax.block_until_ready(gradients_for(params, step, jax.random.key(i)))
        taken.append(time.process_time() - start)
    return statistics.median(taken[1:])


def main(options: Options) -> None:
    process.keep_memory()
    config = bert.BertConfig(
        vocab_size=1000,
        hidden_size=options.hidden,
        num_hidden_layers=options.layers,
        num_attention_heads=options.heads,
        intermediate_size=4 * options.hidden,
    )
    model = base.Model(bert.FAMILY, config, num_classes=2)
    by_hand, params = model.make_network(), model.init_params(jax.random.key(0))
    ids = np.random.default_rng(0).integers(0, 1000, (options.batch_size, options.tokens)).astype(np.int32)
    genes = masking.make_genes(params, RULES)
    start = time.process_time()
    network = cut(as_function(by_hand), params, genes, ids)
    print(describe_machine())
    print(f"cut in {time.process_time() - start:.1f} s; {len({block.apply for block in network.blocks})} different blocks")
    x, context = packed(jnp.asarray(ids))
    split = jax.tree.map(jnp.asarray, from_function.split(params, genes))
    for depth in range(0, options.layers + 1, 2):
        ours = seconds(network, split, jnp.asarray(ids), {INPUTS: jnp.asarray(ids), **context}, depth, options.repeats)
        theirs = seconds(by_hand, params, x, context, depth, options.repeats)
        print(f"lowest {depth} frozen: by hand {theirs:.4f} s, cut {ours:.4f} s, {ours / theirs:.2f} times")


if __name__ == "__main__":
    main(tyro.cli(Options))
