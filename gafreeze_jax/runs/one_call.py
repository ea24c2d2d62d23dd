"""A whole run in one call: any function or module, arrays in, a fine-tuned model out."""

import dataclasses
import difflib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from gafreeze_jax import masking
from gafreeze_jax.engine.network import Dataset, Loss, PyTree
from gafreeze_jax.listing import listed
from gafreeze_jax.masking import Genes, Rules
from gafreeze_jax.metrics import ACCURACY, Metric, cross_entropy
from gafreeze_jax.models import checkpoints, from_function, modules
from gafreeze_jax.models.cutting.explain import costs_of_blocks, outputs_of
from gafreeze_jax.options import Options
from gafreeze_jax.report.folder_format import FUNCTION, is_local
from gafreeze_jax.report.run_folder import RunFolder
from gafreeze_jax.runs.main import carry_out
from gafreeze_jax.tasks.base import CLASSIFICATION, Setup, Task, check_rows, make_problem, make_source


class Searched(NamedTuple):
    """What `search` found.

    Attributes:
      rates: {gene: by what its updates are multiplied}; 0 = frozen.
      model: the best model that was fine-tuned with these: a tree like the parameters given, a module, or a pair of a module
        and its state.
      verdict: the entry of `result.json`: its "sentence" compares the found mask with the baselines on the test set.
      folder: of the run.
    """

    rates: dict[str, float]
    model: Any
    verdict: Mapping[str, Any]
    folder: Path


def search(
    apply: Any,
    params: PyTree,
    genes: Genes | Rules,
    train: Any,
    validation: Any,
    test: Any = None,
    *,
    loss: Loss = cross_entropy,
    metric: Metric = ACCURACY,
    options: Options | Mapping[str, Any] | None = None,
) -> Searched:
    """Searches for the layers to freeze, and fine-tunes with them; see the guide for what a run does and leaves.

    Args:
      apply: a function as `models.from_function.cut` takes it, an `nn.Module`, an `nnx.Module` or an `eqx.Module`.
      params: of a function or an `nn.Module`; None for modules that hold their parameters, but of an `eqx.Module` its
        `eqx.nn.State`, if it has one. The head starts from them, too.
      genes: or the rules for `make_genes`. The genome has them in the order in which the model uses them.
      train, validation: `(inputs, targets)` of arrays [N, ...], all of which are used, or an iterable of such batches.
      test: opened once, at the end. Default: half of the validation set.
      loss: (outputs [B, ...], targets [B, ...]) -> losses [B].
      metric: what the search maximizes on the validation set.
      options: of a run, or a dict of some of its fields, such as `{"gens": 5, "out": "runs/mine"}`.

    Raises:
      ValueError: if an option, a rule or the data are wrong.
    """
    options = options if isinstance(options, Options) else _make_options(options or {})
    if elsewhere := [place for place in (options.out, options.resume) if not is_local(place)]:
        raise ValueError(f"a search reads its model back from a local folder, got {elsewhere[0]}")
    function = modules.as_function(apply, params)
    given = {"train": train, "validation": validation} | ({} if test is None else {"test": test})
    sets = [_as_dataset(data, name) for name, data in given.items()]
    sets += _halves(sets.pop(), options.seed) if test is None else []
    genes = genes if isinstance(genes, Genes) else masking.make_genes(function.params, genes)
    example = jax.tree.map(lambda leaf: leaf[:2], sets[0].inputs)
    genes = from_function.in_order_of_use(function.apply, function.params, genes, example)

    def prepare(options: Options) -> Setup:
        network = from_function.cut(function.apply, function.params, genes, example)
        if loss is cross_entropy:
            _check_classes(sets, outputs_of(network))
        num_blocks = sum(block.apply is not None for block in network.blocks)
        params = from_function.split(function.params, genes)
        return Setup(
            problem=make_problem(network, params, sets[0], sets[1], options, task=_task(loss, metric, sets[0]), genes=genes),
            about=[f"Model: a function, {num_blocks} of {len(genes)} genes cut into blocks"],
            network=network,
            test=make_source(sets[2]),
            num_test=len(sets[2].targets),
            restore=lambda params: params,
            save=lambda folder, params: checkpoints.write_tree(folder, from_function.join(params, genes)),
            facts={"blocks": [row._asdict() for row in costs_of_blocks(network)]},
        )

    folder = carry_out(FUNCTION, prepare, options)
    tuned = function.restore(_read_params(folder / "model", function.params, genes))
    return Searched(masking.read_rates(folder / "mask.json", genes), tuned, RunFolder(folder).facts["verdict"], folder)


def _task(loss: Loss, metric: Metric, train: Dataset) -> Task:
    task = CLASSIFICATION._replace(loss=loss, metric=metric)
    has_classes = loss is cross_entropy and np.ndim(train.targets) == 1
    return task if has_classes else task._replace(label_names=None, compare=None)


def _make_options(fields: Mapping[str, Any]) -> Options:
    known = [field.name for field in dataclasses.fields(Options)]
    for name in fields:
        if name not in known:
            near = difflib.get_close_matches(name, known, 1)
            raise ValueError(f"no option {name}; did you mean {near[0]}?" if near else f"no option {name}")
    return Options(**fields)


def _read_params(folder: Path, like: PyTree, genes: Genes) -> PyTree:
    """The parameters that a run has saved, with the structure and types of others."""
    tensors = checkpoints.read_tensors(folder)
    leaves = [jnp.asarray(tensors[path], leaf.dtype) for path, leaf in zip(genes.paths, genes.leaves(like), strict=True)]
    return jax.tree.unflatten(genes.treedef, leaves)


def _as_dataset(data: Any, name: str) -> Dataset:
    """Arrays from a pair, or from batches one after the other.

    Raises:
      ValueError: if it is neither, or inputs and targets differ in length.
    """
    dataset = _read(data, name)
    check_rows(name, dataset)
    return dataset


def _read(data: Any, name: str) -> Dataset:
    are_batches = isinstance(data, tuple) and all(isinstance(part, tuple) and len(part) == 2 for part in data)
    if isinstance(data, tuple) and len(data) == 2 and not are_batches:
        return _of_arrays(data, f"{name}: expected arrays [N, ...] of inputs and targets; got single numbers, as in lists")
    batches = list(data) if isinstance(data, Iterable) else []
    if batches and isinstance(batches[0], Mapping):
        raise ValueError(f"{name}: expected batches (inputs, targets); got dicts with {listed(map(str, batches[0]))}")
    if not batches or any(not isinstance(batch, Sequence) or len(batch) != 2 for batch in batches):
        raise ValueError(f"{name}: expected (inputs, targets), or an iterable of such batches; got {type(data).__name__}")
    batches = [
        _of_arrays(batch, f"{name}: expected batches of several examples each, [B, ...]; got single ones") for batch in batches
    ]
    return Dataset(*jax.tree.map(lambda *leaves: np.concatenate(leaves), *batches))


def _of_arrays(pair: Any, otherwise: str) -> Dataset:
    arrays = jax.tree.map(np.asarray, tuple(pair))
    if any(leaf.ndim == 0 for leaf in jax.tree.leaves(arrays)):
        raise ValueError(otherwise)
    return Dataset(*arrays)


def _check_classes(sets: Iterable[Dataset], outputs: jax.ShapeDtypeStruct) -> None:
    """Raises a ValueError if targets are not the classes that the default loss takes."""
    num_outputs = outputs.shape[-1]
    for data in sets:
        if not np.issubdtype(kind := data.targets.dtype, np.integer):
            raise ValueError(
                f"targets are {kind}, and the default loss takes numbers of classes; give loss= and metric= for others"
            )
        if data.targets.ndim != outputs.ndim - 1:
            raise ValueError(
                f"targets have {data.targets.ndim} axes, and outputs {outputs.ndim}; the default loss takes one class for each "
                "row of outputs"
            )
        if (highest := data.targets.max(initial=0)) >= num_outputs:
            raise ValueError(f"a target is class {highest}, and the function gives {num_outputs} outputs; classes start at 0")
        if (lowest := data.targets.min(initial=0)) < 0:
            raise ValueError(f"a target is class {lowest}; classes start at 0")


def _halves(data: Dataset, seed: int) -> list[Dataset]:
    """Two halves of the validation set, drawn at random."""
    if len(data.targets) < 4:
        raise ValueError(f"validation: {len(data.targets)} examples are too few to test on half of them; give more, or test=")
    order = np.random.default_rng(seed).permutation(len(data.targets))
    return [jax.tree.map(lambda leaf, rows=rows: leaf[rows], data) for rows in np.array_split(order, 2)]
