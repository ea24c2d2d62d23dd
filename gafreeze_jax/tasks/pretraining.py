"""Small models that are pretrained on this machine, and kept: what there is to fine-tune where no checkpoint is at hand."""

import hashlib
import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from gafreeze_jax.engine.planning import cache_folder
from gafreeze_jax.engine.population import Member, Population, adamw_recipe
from gafreeze_jax.report.display import Display
from gafreeze_jax.runs.experiment import Options, Task


def keep(kind: str, facts: Any, make: Callable[[Path], None]) -> Path:
    """A folder in the cache that `make` fills the first time, whole or not at all.

    Args:
      kind: what its name begins with.
      facts: all that decides the content, as JSON can say it.

    Raises:
      OSError: if the cache cannot be written.
    """
    digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]
    folder = cache_folder() / f"{kind}-{digest}"
    if folder.is_dir():
        return folder
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        partial = tempfile.TemporaryDirectory(dir=folder.parent, prefix=f"{kind}-partial-")
    except OSError as error:
        raise OSError(
            f"{folder.parent}: cannot be written: {error.strerror or error}; set XDG_CACHE_HOME to another folder"
        ) from None
    with partial as name:
        made = Path(name) / "made"
        made.mkdir()
        make(made)
        try:
            made.rename(folder)
        except OSError:  # another process may have been faster
            if not folder.is_dir():
                raise
    return folder


def facts_of(options: Options) -> dict[str, Any]:
    """Those options that decide what comes of training, for `keep`."""
    names = ("seed", "epochs", "batch_size", "learning_rate", "head_learning_rate")
    return {name: getattr(options, name) for name in names}


def pretrain(task: Task, options: Options) -> Member:
    """Trains all of a network, from the random parameters of its task, and shows the progress."""
    run = task.run(options.seed)
    num_steps = len(run.batches.examples)
    recipe = adamw_recipe(options.learning_rate, options.head_learning_rate, num_steps)
    with Display(quiet=options.quiet) as display:
        display.progress.expect({"pretraining": num_steps})
        display.progress.begin("pretraining")
        members = Population(task.network, task.params, recipe, task.train, task.validation, on_steps=display.progress.step)
        (member,) = members.evaluate(np.zeros((1, len(task.network.blocks)), bool), run)
    return member
