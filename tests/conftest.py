"""Tests run offline, on the CPU, and forbid silent rank promotion."""

import csv
import ctypes
import gc
import os
import sys
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
# Test processes, scripts that they start and later sessions share what they compile.
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(Path(__file__).parent.parent / ".pytest_cache" / "compiled"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
os.environ.setdefault("JAX_TRACEBACK_IN_LOCATIONS_LIMIT", "0")  # programs that say where each operation stands take longer
# XLA's older code for fusions takes half the time to compile; small programs are not worth compiling in parts, side by side.
os.environ["XLA_FLAGS"] = (
    f"--xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1 {os.environ.get('XLA_FLAGS', '')}"
)

import jax
import pytest
import small_models

from gafreeze_jax.data.text import load_text
from gafreeze_jax.report import charts

save_chart = charts.save
MOST_MAPPINGS = 10_000
jax.config.update("jax_numpy_rank_promotion", "raise")


@pytest.hookimpl(wrapper=True)
def pytest_collection():
    """Imports and parameters make millions of objects, none of which is garbage: to look for some took a third of the time."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.enable()


def pytest_make_parametrize_id(val, argname):
    """Bytes are no names: those of a compressed file may differ from one test process to the next."""
    return argname if isinstance(val, bytes) else None


@pytest.fixture(autouse=True, scope="module")
def _forget_compiled_programs():
    """Each takes several of the memory mappings that a process may have, 65,530 on Linux; all tests together need more.

    What has been freed goes back to the system: it may be a gigabyte, and a script that is started next needs as much.
    """
    yield
    if sys.platform == "linux" and Path("/proc/self/maps").read_bytes().count(b"\n") > MOST_MAPPINGS:
        jax.clear_caches()
        gc.collect()
        ctypes.CDLL("libc.so.6").malloc_trim(0)


@pytest.fixture(scope="module")
def quick_compilation():
    """For small programs, here and in scripts that are started, whose optimization takes ten times as long as running them."""
    before = jax.config.read("jax_disable_most_optimizations")
    jax.config.update("jax_disable_most_optimizations", True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
        yield
    jax.config.update("jax_disable_most_optimizations", before)


@pytest.fixture(autouse=True, scope="session")
def _charts_are_not_saved():
    """To files beside a run's page, which has them, too: it takes as long as the page."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(charts, "save", lambda figure, path: None)
        yield


@pytest.fixture(scope="module")
def saved_charts():
    """For tests that look at these files."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(charts, "save", save_chart)
        yield


@pytest.fixture(scope="session")
def small_bert(tmp_path_factory):
    return small_models.write_bert(tmp_path_factory.mktemp("bert"))


@pytest.fixture(scope="session")
def small_gpt2(tmp_path_factory):
    return small_models.write_gpt2(tmp_path_factory.mktemp("gpt2"))


@pytest.fixture(scope="session")
def small_resnet(tmp_path_factory):
    return small_models.write_resnet(tmp_path_factory.mktemp("resnet"))


@pytest.fixture(scope="session")
def reviews(tmp_path_factory):
    """A small CSV of the user's own."""
    path = tmp_path_factory.mktemp("reviews") / "reviews.csv"
    split = load_text("reviews", max_train=60).train
    with open(path, "w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["Review", "Sentiment"])
        writer.writerows((text, "good" if label else "bad") for (text,), label in zip(split.texts, split.labels, strict=True))
    return path
