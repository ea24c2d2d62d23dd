"""Small models that are pretrained on this machine, and kept: what there is to fine-tune where no checkpoint is at hand."""

from typing import Any

import numpy as np

from gafreeze_jax.engine.population import Member, Population, adamw_recipe
from gafreeze_jax.report.display import Display
from gafreeze_jax.runs.experiment import Options, Task


def facts_of(options: Options) -> dict[str, Any]:
    """Those options that decide what comes of training, for `user_cache.keep`."""
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
