"""What a process runs on, and what it is set to before it trains."""

import ctypes
import functools
import os
import sys
from pathlib import Path

import jax

from gafreeze_jax import user_cache

M_ARENA_MAX, M_MMAP_MAX, M_TOP_PAD, M_TRIM_THRESHOLD = -8, -4, -2, -1  # as in glibc's malloc.h


@functools.cache
def processor_features() -> frozenset[str]:
    """What Linux lists of the processor's instructions, such as avx512f and amx_bf16; none on other systems."""
    path = Path("/proc/cpuinfo")
    return frozenset(path.read_text().split() if path.exists() else ())


def keep_memory() -> None:
    """Has the C library keep freed memory for what is allocated next, instead of giving it back to the system.

    Each training step on a CPU allocates again what the last one freed. Pages that come from the system are cleared first, one
    by one, which took a quarter of the time of a ResNet's step. The process then never shrinks. To be called before JAX starts
    its threads. It does nothing where the C library is not glibc.
    """
    if sys.platform == "linux" and hasattr(library := ctypes.CDLL(None), "mallopt"):
        library.mallopt(M_MMAP_MAX, 0)
        library.mallopt(M_TRIM_THRESHOLD, -1)
        library.mallopt(M_TOP_PAD, 2**27)  # above the 64 MiB of a thread's heap, which is given back otherwise
        # Each arena keeps what it once had. With a single one threads wait for each other; compiling takes half as long again.
        library.mallopt(M_ARENA_MAX, 2 * (os.cpu_count() or 1))


def keep_compiled_programs() -> None:
    """Has JAX keep compiled programs on disk, so that later runs needn't compile them again.

    They lie in `user_cache.folder()`; a folder set by JAX's own `JAX_COMPILATION_CACHE_DIR` takes precedence, and
    `JAX_ENABLE_COMPILATION_CACHE=false` switches it off.
    """
    if jax.config.values["jax_compilation_cache_dir"] is None:
        jax.config.update("jax_compilation_cache_dir", str(user_cache.folder()))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)
