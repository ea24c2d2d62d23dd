"""Tasks, problems and setups.

A task says what outputs mean. A problem joins it with a network and data. A setup adds what else a run needs.
"""

import functools
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal, NamedTuple

import jax
import numpy as np
import optax
from jax import Array

from gafreeze_jax import masking
from gafreeze_jax.data.batches import balanced_batches, cut, in_order, make_batches, make_sliced
from gafreeze_jax.engine.cohort import Replicate
from gafreeze_jax.engine.network import Batch, Dataset, Loss, Network, PyTree, Source, parameters
from gafreeze_jax.engine.optimizer import Recipe
from gafreeze_jax.engine.population import Population
from gafreeze_jax.metrics import ACCURACY, Metric, cross_entropy, exponential_mean
from gafreeze_jax.options import Options
from gafreeze_jax.space import Space

RATES_OF_KEPT_HEADS = (0.25, 1.0, 4.0)  # where good masks differ most in the rate that they bear (FreezeBench-Shift)
SCORING_BATCH = 100  # with 1,000 images, throughput halves on a CPU, in PyTorch as well
PerExample = Callable[[Array, Any], Array]
Columns = Mapping[str, Sequence[Any]]  # of a table, by title


class Task(NamedTuple):
    """What a network's outputs mean: what is minimized, what is reported, and how predictions are written.

    Attributes:
      loss: of each example; training minimizes its mean.
      metric: the search maximizes it (or its negative, if lower is better), and reports compare it.
      predict: `predict(outputs, targets) -> predictions` [B, ...] of a batch, on the device.
      write: from predictions [N, ...] to columns of a table. Most tasks have a row for each example.
      has_perplexity: whether the exponential of the mean loss is reported as perplexity.
      label_names: of the classes that targets are, by number; empty if they have no names. None = targets are no classes.
      probabilities: from predictions [N, ...] to a column for each class. None = predictions are no probabilities of classes.
      compare: `compare(predictions, targets, threshold) -> columns` for N test examples, among them "truth"; `threshold` is
        what the metric has chosen, or None. None = they are not written beside the truth.
    """

    loss: Loss
    metric: Metric
    predict: PerExample
    write: Callable[[np.ndarray], Columns]
    has_perplexity: bool = False
    label_names: Sequence[Any] | None = None
    probabilities: Callable[[np.ndarray], Columns] | None = None
    compare: Callable[[np.ndarray, np.ndarray, float | None], Columns] | None = None


def classification(label_names: Sequence[Any], metric: Metric = ACCURACY) -> Task:
    """One of C classes for each example, by logits [B, C]; predictions are written as a label and its probability."""

    def write(probabilities: np.ndarray) -> Columns:
        labels = [label_names[place] for place in probabilities.argmax(1)]
        return {"label": labels, "probability": probabilities.max(1)}

    def compare(probabilities: np.ndarray, targets: np.ndarray, threshold: float | None) -> Columns:
        names = label_names or range(probabilities.shape[1])
        return {
            "truth": [names[target] for target in targets],
            "label": [names[place] for place in probabilities.argmax(1)],
            "probability": [f"{probability:.6g}" for probability in probabilities.max(1)],
        }

    columns = functools.partial(probabilities_of, label_names)
    return Task(cross_entropy, metric, softmax, write, label_names=label_names, probabilities=columns, compare=compare)


def probabilities_of(names: Sequence[Any], probabilities: np.ndarray) -> Columns:
    """A column for each class, of probabilities [N, C]."""
    return {f"probability of {name}": column for name, column in zip(names, probabilities.T, strict=True)}


def softmax(logits: Array, targets: Any) -> Array:
    """Probabilities [B, C] of logits."""
    return jax.nn.softmax(logits)


def language_modelling(metric: Metric = ACCURACY) -> Task:
    """The next token, by logits [B, V]; of a text its perplexity is written."""
    return Task(cross_entropy, metric, cross_entropy, _write_perplexity, has_perplexity=True)


def _write_perplexity(losses: np.ndarray) -> Columns:
    return {"tokens": [len(losses)], "perplexity": [float(exponential_mean(np.asarray(losses, np.float64)))]}


CLASSIFICATION = classification(())  # for targets that are classes already


class Keys(NamedTuple):
    """A key for each use: what a seed decides besides the batches."""

    head: Array
    dropout: Array
    search: Array

    @classmethod
    def of(cls, seed: int) -> "Keys":
        return cls(*jax.random.split(jax.random.key(seed), 3))


class Problem(NamedTuple):
    """A network and the data to fine-tune it with.

    Attributes:
      params: {block name: pretrained parameters, ...}.
      make_head: initial parameters of the head from a key.
      make_batches: all training steps, with a leading axis.
      genes: which leaf of the pretrained tree, as the user knows it, belongs to which gene; for `mask.json`.
      count_trainable: number of parameters that train where genes [G] are frozen, the head's included.
      tensors: for `mask.json`, what PyTorch may call that tree's leaves: {path: names}.
      head: as in `Space`.
    """

    network: Network
    params: PyTree
    train: Source
    validation: Source
    make_head: Callable[[Array], PyTree]
    make_batches: Callable[[np.random.Generator], Batch]
    genes: masking.Genes
    count_trainable: Callable[[Sequence[int] | np.ndarray], int]
    tensors: Mapping[str, Sequence[str]] = MappingProxyType({})
    task: Task = CLASSIFICATION
    head: Literal["fresh", "kept", "none"] = "fresh"

    def space(self, options: Options) -> Space:
        """The genomes that options ask for."""
        rates = options.rates or (RATES_OF_KEPT_HEADS if self.head == "kept" else (1.0,))
        return Space(self.network.names, options.all_levels, sorted(rates), head=self.head)

    def replicate(self, seed: int) -> Replicate:
        """What a seed decides: the head's initialisation, the batches and dropout."""
        keys = Keys.of(seed)
        return Replicate(self.make_head(keys.head), self.make_batches(np.random.default_rng(seed)), keys.dropout)

    def make_population(self, recipe: Recipe, **given: Any) -> Population:
        """What trains and scores its genomes; `given` are further arguments of `Population`."""
        data, task = (self.train, self.validation), self.task
        return Population(self.network, self.params, recipe, *data, loss=task.loss, metric=task.metric, **given)


def make_source(data: Dataset) -> Source:
    """Arrays in their order, in batches for scoring."""
    num_rows = len(jax.tree.leaves(data.inputs)[0])
    return Source(data, make_batches(in_order(num_rows, SCORING_BATCH)))


def make_problem(
    network: Network,
    params: PyTree,
    train: Dataset,
    validation: Dataset,
    options: Options,
    *,
    task: Task = CLASSIFICATION,
    genes: masking.Genes | None = None,
    make_head: Callable[[Array], PyTree] | None = None,
) -> Problem:
    """A problem on arrays, in which an example is one row of the inputs.

    Args:
      params: {block name: ..., "head": ...}; all of them may belong to blocks.
      genes: of the user's own tree, if that is another one.
      make_head: initial parameters of the head from a key; by default, `params` has them for every seed.

    Raises:
      ValueError: if inputs and targets differ in length, or there are none.
    """
    check_rows("train", train)
    check_rows("validation", validation)
    equal = np.ones(len(train.targets))
    batch_size = min(options.batch_size, len(equal))
    sizes = {name: optax.tree.size(parameters(tree)) for name, tree in params.items()}

    def count_trainable(frozen: Sequence[int] | np.ndarray) -> int:
        return sizes["head"] + sum(sizes[name] for name, held in zip(network.names, frozen, strict=True) if not held)

    return Problem(
        network=network,
        params=params,
        train=make_source(train),
        validation=make_source(validation),
        make_head=make_head or (lambda key: params["head"]),
        make_batches=lambda rng: make_sliced(
            make_batches, cut(balanced_batches(rng, equal, batch_size, options.epochs), options.micro_batch)
        ),
        genes=genes or block_genes(network, params),
        count_trainable=count_trainable,
        task=task,
        head="fresh" if jax.tree.leaves(params["head"]) else "none",
    )


def check_rows(name: str, data: Dataset) -> None:
    """Raises a ValueError unless a split has rows, as many of inputs as of targets."""
    if {len(leaf) for leaf in jax.tree.leaves(data.inputs)} != {len(data.targets)}:
        rows = ", ".join(str(len(leaf)) for leaf in jax.tree.leaves(data.inputs))
        raise ValueError(f"{name}: expected a row of inputs for each of {len(data.targets)} targets, got {rows}")
    if not len(data.targets):
        raise ValueError(f"{name}: there are no examples")


def block_genes(network: Network, params: PyTree) -> masking.Genes:
    """Genes of a network's own tree, {block name: ..., "head": ...}; the head always trains."""
    rules = {f"{re.escape(name)}/.*": name for name in network.names}
    return masking.make_genes(params, rules | ({"head/.*": None} if jax.tree.leaves(params["head"]) else {}))


class Setup(NamedTuple):
    """All that an experiment says about a run before it begins.

    Attributes:
      about: model and data in words, one line each.
      network: scores the test split.
      test: that split; nothing may be chosen on it.
      num_test: number of test examples, counted in texts or images, not in tokens.
      restore: from the problem's parameters to those of `network`.
      save: writes these to a folder, in the checkpoint's own layout.
      facts: further entries of `result.json`.
      pretrained: the arrays that were read as the model, by which a run knows it again; by default the problem's.
      test_columns: what tells the test examples apart, {title: [num_test]}, such as their texts.
    """

    problem: Problem
    about: Sequence[str]
    network: Network
    test: Source
    num_test: int
    restore: Callable[[PyTree], PyTree]
    save: Callable[[Path, PyTree], None]
    facts: Mapping[str, Any] = MappingProxyType({})
    pretrained: PyTree = None
    test_columns: Columns = MappingProxyType({})


class Unlabelled(NamedTuple):
    """A saved model and N inputs that it is to label; one text, for a language model.

    Attributes:
      source: the inputs; with targets only where the task predicts from them, as a language model does.
      columns: what tells the inputs apart, {title: [N]}.
      notes: what was decided on the way, a sentence each.
    """

    network: Network
    params: PyTree
    source: Source
    task: Task
    columns: Columns
    notes: Sequence[str] = ()
