"""Packages that not everybody needs: where one is missing, the error names the extra that brings it."""

import contextlib
import importlib.util
import sys
from collections.abc import Iterator


@contextlib.contextmanager
def needs(extra: str) -> Iterator[None]:
    """For imports of packages that come with an extra of `pyproject.toml`.

    Raises:
      ModuleNotFoundError: which package is missing, and how to install it.

    >>> with needs("text"):
    ...     import no_such_package
    Traceback (most recent call last):
    ModuleNotFoundError: needs no_such_package: pip install "gafreeze_jax[text]"
    """
    try:
        yield
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        raise ModuleNotFoundError(f'needs {package}: pip install "gafreeze_jax[{extra}]"', name=error.name) from None


def find(package: str) -> None:
    """Raises a ModuleNotFoundError if a package is missing, without importing it."""
    if importlib.util.find_spec(package) is None:
        raise ModuleNotFoundError(f"No module named {package!r}", name=package)


@contextlib.contextmanager
def script_needs(extra: str) -> Iterator[None]:
    """For the imports of a script: `needs`, which ends the program in one line."""
    try:
        with needs(extra):
            yield
    except ModuleNotFoundError as error:
        sys.exit(f"error: {error}")
