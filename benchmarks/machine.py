"""What a benchmark ran on."""

import os
import platform
from pathlib import Path
from typing import Any

from gafreeze_jax.runs import results


def describe_machine() -> dict[str, Any]:
    """Processor, cores, JAX's devices and versions."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    models = [line.split(":")[1].strip() for line in lines if "model name" in line]
    return {
        "processor": models[0] if models else platform.processor(),
        "cores": len(os.sched_getaffinity(0)),
        "device": results.device(),
        "versions": results.versions(),
    }
