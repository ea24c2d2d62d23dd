"""Small models that are pretrained on this machine, and kept: something to fine-tune where no checkpoint is at hand."""

import time
from collections.abc import Callable
from typing import Any

import optax

from gafreeze_jax.engine.cohort import Member
from gafreeze_jax.engine.network import PyTree
from gafreeze_jax.engine.optimizer import adamw_recipe
from gafreeze_jax.options import Options
from gafreeze_jax.report.display import Display
from gafreeze_jax.tasks.base import Problem


def facts_of(options: Options) -> dict[str, Any]:
    """The options that decide how a model is pretrained, for `user_cache.keep`."""
    names = ("seed", "epochs", "batch_size", "learning_rate", "head_learning_rate")
    return {name: getattr(options, name) for name in names}


def pretrain(problem: Problem, options: Options) -> Member:
    """Trains all of a network, from the random parameters of its problem, and shows the progress."""
    replicate = problem.replicate(options.seed)
    recipe = adamw_recipe(
        learning_rate=options.learning_rate,
        head_learning_rate=options.head_learning_rate,
        num_steps=replicate.num_steps,
    )
    with Display(quiet=options.quiet) as display:
        display.progress.expect({"pretraining": replicate.num_steps})
        display.progress.begin("pretraining")
        population = problem.make_population(recipe, on_steps=display.progress.step)
        (member,) = population.evaluate([population.space.all_trained], replicate)
    return member


def pretrain_aloud(
    title: str, data: str, problem: Problem, options: Options, *, describe: Callable[[Member], str]
) -> dict[str, PyTree]:
    """`pretrain` between two lines that say what is pretrained on what, and how well; the parameters.

    Args:
      title: of the network, such as "a GPT-2".
      data: in words, with its amount.
      describe: the trained member in words.
    """

    def say(text: str) -> None:
        if not options.quiet:
            print(text, flush=True)

    say(f"Pretraining {title} of {optax.tree.size(problem.params):,} parameters on {data}, once, as it is kept ...")
    start = time.perf_counter()
    member = pretrain(problem, options)
    say(f"It took {time.perf_counter() - start:.0f} s, and {describe(member)}")
    return dict(member.params)
