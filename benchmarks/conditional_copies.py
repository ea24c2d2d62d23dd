"""What it costs to skip an optimizer step by `lax.cond`: XLA copies what passes through a conditional.

    python benchmarks/conditional_copies.py

Prints milliseconds of one AdamW-like update of 12 M parameters (the word embeddings of MiniLM): without a condition, done
under a condition, skipped by a condition; the median of 10, taken in turn.
"""

import functools
import time

import jax
import jax.numpy as jnp
import numpy as np

NUM_PARAMETERS, NUM_ROUNDS = 12_000_000, 10


def move(params, mean, square, gradient):
    mean, square = 0.9 * mean + 0.1 * gradient, 0.999 * square + 0.001 * gradient**2
    return params - 1e-3 * mean / (jnp.sqrt(square) + 1e-8), mean, square


@functools.partial(jax.jit, donate_argnums=(0, 1, 2))
def plain(params, mean, square, gradient):
    return move(params, mean, square, gradient)


@functools.partial(jax.jit, donate_argnums=(1, 2, 3))
def conditional(skip, params, mean, square, gradient):
    return jax.lax.cond(skip, lambda *state: state[:3], move, params, mean, square, gradient)


def main() -> None:
    gradient = jnp.ones(NUM_PARAMETERS)
    cases = {"plain": plain, "done": functools.partial(conditional, False), "skipped": functools.partial(conditional, True)}
    states = {name: tuple(jnp.full(NUM_PARAMETERS, value) for value in (0.0, 1.0, 2.0)) for name in cases}
    seconds: dict[str, list[float]] = {name: [] for name in cases}
    for _ in range(NUM_ROUNDS + 1):
        for name, step in cases.items():
            start = time.perf_counter()
            states[name] = jax.block_until_ready(step(*states[name], gradient))
            seconds[name].append(time.perf_counter() - start)
    print(f"{jax.devices()[0].device_kind}, jax {jax.__version__}")
    for name, times in seconds.items():
        print(f"{name:8} {np.median(times[1:]) * 1e3:6.1f} ms")  # the first includes compiling


if __name__ == "__main__":
    main()
