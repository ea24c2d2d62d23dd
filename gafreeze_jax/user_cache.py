"""The user's cache folder: compiled programs, small pretrained models, the fetched model."""

import hashlib
import json
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any


def folder() -> Path:
    """`$XDG_CACHE_HOME/gafreeze_jax`, by default `~/.cache/gafreeze_jax`."""
    return Path(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")) / "gafreeze_jax"


def keep(kind: str, facts: Any, make: Callable[[Path], None]) -> Path:
    """A folder in the cache that `make` fills the first time, whole or not at all.

    Args:
      kind: what its name begins with.
      facts: all that decides the content, as JSON can say it.

    Raises:
      OSError: if the cache cannot be written.
    """
    digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]
    kept = folder() / f"{kind}-{digest}"
    if kept.is_dir():
        return kept
    try:
        kept.parent.mkdir(parents=True, exist_ok=True)
        partial = tempfile.TemporaryDirectory(dir=kept.parent, prefix=f"{kind}-partial-")
    except OSError as error:
        raise OSError(
            f"{kept.parent}: cannot be written: {error.strerror or error}; set XDG_CACHE_HOME to another folder"
        ) from None
    with partial as name:
        made = Path(name) / "made"
        made.mkdir()
        make(made)
        try:
            made.rename(kept)
        except OSError:  # another process may have been faster
            if not kept.is_dir():
                raise
    return kept
