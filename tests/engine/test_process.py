"""What a process is set to before it trains."""

import platform
import subprocess
import sys

import pytest

STEPS = 8
COUNT_FAULTS = f"""
import resource, sys
from gafreeze_jax.engine import process
if sys.argv[1] == "keep":
    process.keep_memory()
import jax, jax.numpy as jnp
step = jax.jit(lambda x: (jnp.sort(jnp.sin(x), -1) @ x)[0, 0])  # needs as much as x twice over
x = jnp.ones((2048, 2048))
for _ in range(3):
    step(x).block_until_ready()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range({STEPS}):
    step(x).block_until_ready()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def count_faults(how):
    return int(subprocess.run([sys.executable, "-c", COUNT_FAULTS, how], capture_output=True, text=True, check=True).stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library")
def test_a_step_gets_the_memory_that_the_last_one_has_freed():
    given_back, kept = count_faults("give back"), count_faults("keep")
    assert given_back > STEPS * 2048 * 2048 * 4 / 4096, "the system keeps it anyway, so this shows nothing"
    assert kept < given_back / 20
