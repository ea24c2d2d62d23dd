"""Small models that are pretrained on this machine, and kept: what there is to fine-tune where no checkpoint is at hand."""

from typing import Any

from gafreeze_jax.engine.cohort import Member
from gafreeze_jax.engine.optimizer import adamw_recipe
from gafreeze_jax.engine.population import Population
from gafreeze_jax.report.display import Display
from gafreeze_jax.runs.experiment import Options, Task


def facts_of(options: Options) -> dict[str, Any]:
    """Those options that decide what comes of training, for `user_cache.keep`."""
    names = ("seed", "epochs", "batch_size", "learning_rate", "head_learning_rate")
    return {name: getattr(options, name) for name in names}


def pretrain(task: Task, options: Options) -> Member:
    """Trains all of a network, from the random parameters of its task, and shows the progress."""
    run = task.run(options.seed)
    recipe = adamw_recipe(
        learning_rate=options.learning_rate, head_learning_rate=options.head_learning_rate, num_steps=run.num_steps
    )
    with Display(quiet=options.quiet) as display:
        display.progress.expect({"pretraining": run.num_steps})
        display.progress.begin("pretraining")
        population = Population(
            task.network,
            task.params,
            recipe,
            task.train,
            task.validation,
            loss=task.loss,
            metric=task.metric,
            on_steps=display.progress.step,
        )
        (member,) = population.evaluate([population.space.all_trained], run)
    return member
