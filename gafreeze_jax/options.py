"""The options that all experiments share, and their checks."""

import importlib.util
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Literal, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from gafreeze_jax.engine import planning
from gafreeze_jax.engine.network import PyTree
from gafreeze_jax.models import products
from gafreeze_jax.space import MAX_LEVELS

RATE_LIMITS = (1e-6, 1e6)  # of multiples of the learning rate, which float32 has to hold, and their products


@dataclass(frozen=True, kw_only=True)
class Options:
    """Options of all experiments.

    Attributes:
      places: names of the options that say where model and data are, with the words that are no paths there (up to a colon).
    """

    places: ClassVar[Mapping[str, tuple[str, ...]]] = {}

    gens: int = 10
    """Generations of the genetic algorithm."""
    population: int = 3
    """Members of a generation. Generations are larger if the masks that every search evaluates, such as all prefix masks, would
    not fit into --gens of them otherwise."""
    out: str | Path | None = None
    """Folder for the results, also such as gs://bucket/run. An unfinished run of the same options in it is resumed.
    Default: a new one under runs/."""
    resume: str | Path | None = None
    """Folder of a run to resume; its options need not be given again."""
    seed: int = 0
    """Decides the head's initialisation, the batches, dropout and the genetic algorithm."""
    train_examples: int = 128
    """Train members on at most this many examples, drawn stratified by label if they have labels."""
    validation_examples: int = 256
    """Score members on at most this many examples, drawn stratified by label if they have labels."""
    epochs: int = 2
    """Passes through the training examples."""
    batch_size: int = 16
    """Examples in a training step."""
    learning_rate: float = 4e-4
    """Highest learning rate of the pretrained layers (AdamW, linear warm-up and decay)."""
    head_learning_rate: float = 2e-3
    """Highest learning rate of the head."""
    rates: tuple[float, ...] = ()
    """Multiples of the learning rate that a genome may choose for all layers that it trains, 1 among them; each baseline is
    compared at the best of them as well. Default: 0.25 1 4 where the head is kept, else 1."""
    levels: tuple[float, ...] = (1.0,)
    """Multiples of the learning rate that a genome may choose for each layer besides freezing it, 1 among them, such as
    0.1 0.3 1."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Precision of activations and products; parameters that train are float32. auto: bfloat16 on GPUs and TPUs,
    and on processors with AMX for networks with wide layers; else float32."""
    objective: Literal["accuracy", "pareto"] = "accuracy"
    """accuracy: find the fittest mask. pareto: find masks that no other beats in accuracy, training FLOPs and optimizer bytes
    at once (NSGA-II)."""
    max_flops: float | None = None
    """Search for masks that take at most this share of the FLOPs of training everything, such as 0.4. The masks that every
    search evaluates, such as all prefix masks, are evaluated in any case."""
    halving: bool = True
    """Stop poor masks after a quarter or half of their steps, where that is 16 or more."""
    max_evaluations: float | None = None
    """Search for at most the training steps of this many full evaluations. The masks that every search evaluates, such as all
    prefix masks, are evaluated in any case."""
    max_minutes: float | None = None
    """Begin no further generation after this many minutes of evaluations, once the masks that every search evaluates are
    done."""
    patience: int | None = None
    """Stop after this many generations without a fitter mask, when the masks that every search evaluates are done."""
    finalist_seeds: int = 5
    """Fresh seeds with which the most promising masks and the baselines are trained at the end. After two of them, those that
    are clearly worse on the validation split drop out."""
    baselines: Literal["default", "all"] = "default"
    """default: those that say whether the search was worth it. all: also random masks, with as many training steps as the
    search, the best third, gradual unfreezing, auto-RGN, layer-wise decay of the learning rate, linear probing followed by
    fine-tuning, greedy selection, and layers chosen by signal-to-noise ratio or by gradients."""
    mask: str | Path | None = None
    """A mask.json, such as a run's: instead of searching, train with this mask, and everything at the full rate, half and a
    quarter of it, and the other --rates."""
    plan: str = "auto"
    """How members are trained. auto: measured. Or for example members=4,steps=0,freezing=static,calls=1: how many are stacked
    in a call, how many steps a compiled program does (0 = each program runs one layer), whether masks are compiled in or
    traced, and how many calls run at the same time."""
    micro_batch: int | None = None
    """How many examples go through the network at a time, which limits the memory needed: a step adds up the gradients of
    slices of its batch. Dropout, and batch normalisation, are then those of slices. Default: all of a batch."""
    remat: bool = False
    """Compute each layer again in the backward pass instead of keeping what that needs: less memory, about a third more time.
    A run does so by itself if no member fits otherwise."""
    coordinator: str | None = None
    """With several processes: HOST:PORT of the first one, which the others must reach. On Cloud TPU and under Slurm this option
    and the next two are not needed."""
    num_processes: int | None = None
    """Number of processes."""
    process_id: int | None = None
    """Index of this process, from 0; process 0 writes the results."""
    process_timeout: float = 300
    """Seconds to wait for the other processes to start."""
    quiet: bool = False
    """Print the generations, the verdict and the folder only."""
    verbose: bool = False
    """Also print the plans tried, what was compiled, and each evaluation."""
    tensorboard: bool = False
    """Also write TensorBoard's event files, to tensorboard/ in the folder of results."""

    @property
    def all_levels(self) -> tuple[float, ...]:
        """Levels of `Space`: as usual, frozen, and the others from the highest."""
        return (1.0, 0.0, *sorted(set(self.levels) - {0.0, 1.0}, reverse=True))


OptionsT = TypeVar("OptionsT", bound=Any)


def with_absolute_paths(options: OptionsT) -> OptionsT:
    """Options whose relative paths of a mask, model or data are absolute, to be found from other folders as well."""
    return replace(
        options,
        **{
            name: type(value)(os.path.abspath(os.path.expanduser(value)))
            for name, words in {"mask": (), **getattr(options, "places", {})}.items()
            if (value := getattr(options, name, None)) is not None
            and str(value).partition(":")[0] not in words
            and os.path.exists(os.path.expanduser(value))
        },
    )


class OptionError(ValueError):
    """An option that turns out to be wrong when model and data are known."""


def check(options: Options, **smallest: int) -> None:
    """Raises a ValueError if an option is out of range; `smallest` are least values of options that others lack."""
    common = {
        "gens": 1,
        "population": 2,
        "seed": 0,
        "train_examples": 2,
        "validation_examples": 2,
        "epochs": 1,
        "batch_size": 1,
        "micro_batch": 1,
        "max_evaluations": 1,
        "patience": 1,
        "finalist_seeds": 1,
    }
    for name, least in (common | smallest).items():
        if (value := getattr(options, name)) is not None and not value >= least:  # NaN is not, either
            raise ValueError(f"--{name.replace('_', '-')} must be at least {least}, got {value}")
    for name in ("max_evaluations", "max_minutes"):
        if getattr(options, name) == math.inf:
            raise ValueError(f"--{name.replace('_', '-')} must be a finite number; leave it out for no limit")
    if options.seed >= 2**32:
        raise ValueError(f"--seed must be below 2**32, got {options.seed}")
    if options.max_flops is not None and not 0 < options.max_flops <= 1:
        raise ValueError(f"--max-flops must be above 0 and at most 1, got {options.max_flops}")
    if options.max_minutes is not None and not options.max_minutes > 0:
        raise ValueError(f"--max-minutes must be above 0, got {options.max_minutes}")
    if options.rates:
        _check_rates("--rates", options.rates)
    _check_rates("--levels", options.levels)
    for name in ("learning_rate", "head_learning_rate"):
        if not 0 < getattr(options, name) < 1:
            raise ValueError(f"--{name.replace('_', '-')} must be between 0 and 1, got {getattr(options, name)}")
    if options.plan != "auto" and planning.parse(options.plan).calls > 1 < jax.device_count():
        raise ValueError(f"--plan: with {jax.device_count()} devices calls run one by one; leave out calls")
    if options.quiet and options.verbose:
        raise ValueError("--quiet and --verbose contradict each other: give one of them")
    if options.tensorboard and importlib.util.find_spec("tensorboardX") is None:
        raise ValueError('--tensorboard needs tensorboardX: pip install "gafreeze_jax[tensorboard]"')


def _check_rates(name: str, values: Sequence[float]) -> None:
    """Raises a ValueError for multiples of the learning rate that cannot be used; they are told apart by their texts."""
    texts, (low, high) = [f"{value:g}" for value in values], RATE_LIMITS
    if not all(0 < value < math.inf for value in values) or 1 not in values or len(set(texts)) < len(texts):
        raise ValueError(f"{name} must be different numbers above 0, 1 among them, got {' '.join(texts) or 'none'}")
    if not low <= min(values) <= max(values) <= high:
        raise ValueError(f"{name} must be numbers from {low:g} to {high:g}, got {' '.join(texts)}")
    if len(values) > MAX_LEVELS - 1:
        raise ValueError(f"{name} must be at most {MAX_LEVELS - 1} numbers, got {len(values)}")


def compute_dtype(name: str, params: PyTree) -> np.dtype:
    """What `--dtype` means on this machine for a network with these parameters."""
    return products.fastest_dtype(params) if name == "auto" else jnp.dtype(name)
