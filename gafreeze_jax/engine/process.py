"""What a process is set to before it trains."""

import ctypes
import sys

import jax

from gafreeze_jax import user_cache

MOST_ARENAS, MOST_MAPPED, MOST_FREE = -8, -4, -1  # parameters of glibc's mallopt


def keep_memory() -> None:
    """Has the C library keep freed memory for what is allocated next, instead of giving it back to the system.

    Each training step on a CPU allocates again what the last one has freed. Pages that come from the system are cleared first,
    one by one, which took a quarter of the time of a ResNet's step. To be called before JAX starts its threads. It does
    nothing where the C library is not glibc.
    """
    if sys.platform == "linux" and hasattr(library := ctypes.CDLL(None), "mallopt"):
        library.mallopt(MOST_ARENAS, 1)  # freed parts of others go back to the system in any case
        library.mallopt(MOST_MAPPED, 0)
        library.mallopt(MOST_FREE, -1)


def keep_compiled_programs() -> None:
    """Has JAX keep compiled programs on disk, so that later runs needn't compile them again.

    They lie in `user_cache.folder()`; a folder set by JAX's own `JAX_COMPILATION_CACHE_DIR` takes precedence, and
    `JAX_ENABLE_COMPILATION_CACHE=false` switches it off.
    """
    if jax.config.values["jax_compilation_cache_dir"] is None:
        jax.config.update("jax_compilation_cache_dir", str(user_cache.folder()))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)
