"""What a process is set to before it trains."""

import os
import platform
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
STEPS, BYTES = 16, 2048 * 2048 * 4
COUNT_FAULTS = f"""
import resource, sys
from concurrent.futures import ThreadPoolExecutor
from gafreeze_jax.engine import process
if sys.argv[1] == "keep":
    process.keep_memory()
import jax, jax.numpy as jnp
step = jax.jit(lambda x: (x @ x @ x)[0, 0])  # needs as much as x twice over
x = jnp.ones((2048, 2048))
def train(num):
    with ThreadPoolExecutor(2) as pool:  # as cohorts do
        list(pool.map(lambda _: step(x).block_until_ready(), range(num)))
train(8)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
train({STEPS})
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def count_faults(how, **variables):
    command = [sys.executable, "-c", COUNT_FAULTS, how]
    return int(subprocess.run(command, capture_output=True, text=True, check=True, env=os.environ | variables).stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library")
def test_a_step_gets_the_memory_that_the_last_one_has_freed():
    """By the function, and by the variable that the guide names."""
    variable = re.search(r"`(GLIBC_TUNABLES)=(.*)`", (ROOT / "docs" / "guide.md").read_text(encoding="utf-8"))
    given_back, kept = count_faults("give back"), count_faults("keep")
    assert given_back > STEPS * BYTES / 4096, "the system keeps it anyway, so this shows nothing"
    # A step that starts before the last one has freed everything asks the system for more: now and then, so not for all steps.
    assert kept < given_back / 2
    assert count_faults("give back", **{variable[1]: variable[2]}) < given_back / 2
