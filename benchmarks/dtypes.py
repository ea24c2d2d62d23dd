"""Whether bfloat16 is faster than float32 on this processor, and how sure a measurement of 50 milliseconds is of it.

    python benchmarks/dtypes.py

Takes half a minute. Times the forward and backward products of a layer of MiniLM with 1,024 tokens, in both dtypes in turn, for
25 ms each, and does so many times. Prints by how much bfloat16 was faster each time: the least, the median and the most, how
often it was faster, and which of the processor's bfloat16 units Linux lists.
"""

import dataclasses
import functools
import re
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import machine
import numpy as np
import tyro
from jax import Array

from gafreeze_jax.engine import process
from gafreeze_jax.models.products import matmul
from gafreeze_jax.runs import results

NUM_TOKENS, WIDTH, HIDDEN = 1024, 384, 1536
SECONDS = 0.025
UNITS = r"\b(amx_bf16|avx512_bf16)\b"


@dataclass(frozen=True)
class Options:
    """Time float32 and bfloat16 products, again and again."""

    decisions: int = 100
    """Measurements of both."""
    out: Path | None = None
    """JSON file to write."""


@functools.partial(jax.jit, static_argnums=0)
def step(dtype: str, x: Array, up: Array, down: Array) -> Any:
    """Both products of an MLP without what lies between them, and all gradients."""

    def loss(x: Array, up: Array, down: Array) -> Array:
        return matmul(jnp.dtype(dtype), matmul(jnp.dtype(dtype), x, up), down).sum()

    return jax.grad(loss, (0, 1, 2))(x, up, down)


def time_step(dtype: str, inputs: tuple[Array, ...]) -> float:
    """Seconds of a call, from as many as fit."""
    num, start, seconds = 0, time.perf_counter(), 0.0
    while not num or seconds < SECONDS:
        jax.block_until_ready(step(dtype, *inputs))
        num, seconds = num + 1, time.perf_counter() - start
    return seconds / num


def main(options: Options) -> None:
    process.keep_memory()
    shapes = (NUM_TOKENS, WIDTH), (WIDTH, HIDDEN), (HIDDEN, WIDTH)
    keys = jax.random.split(jax.random.key(0), len(shapes))
    inputs = tuple(jax.random.normal(key, shape) / 20 for key, shape in zip(keys, shapes, strict=True))
    dtypes = ("float32", "bfloat16")
    for dtype in dtypes:
        time_step(dtype, inputs)
    seconds = np.array([[time_step(dtype, inputs) for dtype in dtypes] for _ in range(options.decisions)])
    faster = seconds[:, 0] / seconds[:, 1]
    cpuinfo = Path("/proc/cpuinfo")
    units = sorted(set(re.findall(UNITS, cpuinfo.read_text()))) if cpuinfo.exists() else []
    described = machine.describe_machine()
    print(f"{described['processor']}, {described['cores']} cores; bfloat16 units: {', '.join(units) or 'none'}")
    least, median, most = np.quantile(faster, (0, 0.5, 1))
    print(f"bfloat16 takes 1/{median:.2f} of float32's time; single measurements say 1/{least:.2f} to 1/{most:.2f}")
    print(f"bfloat16 was faster in {np.mean(faster > 1):.0%} of {options.decisions} measurements")
    if options.out is not None:
        facts = {"options": dataclasses.asdict(options), "machine": described, "units": units, "dtypes": dtypes}
        results.write_json(options.out, facts | {"seconds": seconds.tolist()})


if __name__ == "__main__":
    jax.config.update("jax_platforms", "cpu")
    main(tyro.cli(Options))
