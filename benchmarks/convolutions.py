"""Times the convolutions of two ResNets, forwards and backwards, in the ways of `models/convolutions.py` and by XLA.

    python benchmarks/convolutions.py

Takes about 5 minutes on 2 cores. Prints, for each network, the milliseconds of all its convolutions, one after the other:
alone, in one of four turns of a loop (`lax.map`), and for one of four members that are stacked by `jax.vmap`. CIFAR's ResNet-20
gets 32 images of 32 x 32 pixels, ResNet-18 16 of 64 x 64.
"""

import functools
import time
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from gafreeze_jax.engine import process
from gafreeze_jax.engine.network import ALONE
from gafreeze_jax.models import convolutions

ROUNDS = 5  # of which the fastest counts
PLACES = ("alone", "in a loop", "stacked")
SEVERAL = 4  # members, or turns of the loop


class Shape(NamedTuple):
    """Convolutions of a network that are alike: how many times there is one, and what it takes and gives."""

    times: int
    image: int
    inputs: int
    outputs: int
    kernel: int = 3
    stride: int = 1


NETWORKS = {
    "ResNet-20": (32, [
        Shape(1, 32, 3, 16), Shape(6, 32, 16, 16), Shape(1, 32, 16, 32, 3, 2), Shape(5, 16, 32, 32),
        Shape(1, 16, 32, 64, 3, 2), Shape(5, 8, 64, 64),
    ]),
    "ResNet-18": (16, [
        Shape(1, 64, 3, 64, 7, 2), Shape(4, 16, 64, 64), Shape(1, 16, 64, 128, 3, 2), Shape(1, 16, 64, 128, 1, 2),
        Shape(3, 8, 128, 128), Shape(1, 8, 128, 256, 3, 2), Shape(1, 8, 128, 256, 1, 2), Shape(3, 4, 256, 256),
        Shape(1, 4, 256, 512, 3, 2), Shape(1, 4, 256, 512, 1, 2), Shape(3, 2, 512, 512),
    ]),
}  # fmt: skip


def by_patches(x: Array, kernel: Array, stride: int) -> Array:
    return convolutions.convolve_by_patches(x, kernel, *convolutions.centred_window(len(kernel), stride))


WAYS: dict[str, Callable[..., Array]] = {
    "by XLA": convolutions.convolve_by_xla,
    "by patches": by_patches,
    "as chosen": convolutions.convolve,
}


def seconds(way: Callable[..., Array], batch: int, shape: Shape, place: str) -> float:
    """Of a forward and a backward run, per member or turn of the loop."""
    convolve = functools.partial(way, stride=shape.stride)

    def step(x: Array, kernel: Array) -> tuple[Array, ...]:
        y, pullback = jax.vjp(convolve, x, kernel)
        return y, *pullback(y)

    def in_a_loop(xs: Array, kernels: Array) -> tuple[Array, ...]:
        return jax.lax.map(lambda pair: step(*pair), (xs, kernels))

    rng = np.random.default_rng(0)
    num = 1 if place == "alone" else SEVERAL
    several = () if place == "alone" else (num,)
    x = jnp.array(rng.normal(size=(*several, batch, shape.image, shape.image, shape.inputs)), jnp.float32)
    kernel = jnp.array(rng.normal(size=(*several, shape.kernel, shape.kernel, shape.inputs, shape.outputs)), jnp.float32)
    compiled = jax.jit({"alone": step, "in a loop": in_a_loop, "stacked": jax.vmap(step)}[place])
    measured = []
    with ALONE(place == "alone"):
        jax.block_until_ready(compiled(x, kernel))
        for _ in range(ROUNDS):
            start = time.perf_counter()
            jax.block_until_ready(compiled(x, kernel))
            measured.append(time.perf_counter() - start)
    return min(measured) / num


def main() -> None:
    process.keep_memory()
    print(f"{'milliseconds':22}" + "".join(f"{way:>12}" for way in WAYS))
    for name, (batch, shapes) in NETWORKS.items():
        for place in PLACES:
            totals = [sum(shape.times * seconds(way, batch, shape, place) for shape in shapes) for way in WAYS.values()]
            print(f"{name:12}{place:10}" + "".join(f"{1e3 * total:12.1f}" for total in totals), flush=True)


if __name__ == "__main__":
    main()
