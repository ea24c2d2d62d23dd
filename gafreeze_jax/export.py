"""A mask in the forms that other libraries take: Flax NNX, Equinox, PyTorch and peft. For optax see `masking.freeze`.

Filters and `requires_grad` freeze parameters. Running statistics (BatchNorm) and dropout of frozen layers are a matter of the
forward pass: `nnx_frozen_modules` and `inference_in_frozen` put frozen modules into inference mode, as our engine has them;
PyTorch and peft need `.eval()` on them after each `model.train()` (docs/guide.md has the lines).

Filters say what trains at all. What it is multiplied by is `masking.rates_tree`, whose tree is an `nnx.State` or an Equinox
module where the genes were made from one.

None of them is imported here.
"""

import os
import re
from collections.abc import Callable, Container, Iterable, Mapping
from typing import Any

import jax

from gafreeze_jax.listing import listed
from gafreeze_jax.masking import Genes, Mask, PyTree, frozen_tree, leaf_paths
from gafreeze_jax.masking.genes import plain_path
from gafreeze_jax.masking.mask_file import load_mask


def _trainable_leaves(genome: Mask, genes: Genes) -> frozenset[str]:
    """Paths of the leaves that a genome leaves trainable.

    Raises:
      ValueError: if a stacked leaf is frozen in part, which only optax masks can say.
    """
    frozen = jax.tree.leaves(frozen_tree(genome, genes))
    if mixed := [path for path, flag in zip(genes.paths, frozen, strict=True) if flag.any() and not flag.all()]:
        raise ValueError(f"a stacked leaf must be frozen or trained as a whole here, not in part: {listed(mixed)}")
    return frozenset(path for path, flag in zip(genes.paths, frozen, strict=True) if not flag.any())


def nnx_filter(genome: Mask, genes: Genes) -> Callable[[tuple[Any, ...], Any], bool]:
    """A Flax NNX filter of the trainable parameters: `nnx.Optimizer(model, tx, wrt=nnx_filter(genome, genes))`.

    Gradients need it as well: `nnx.grad(loss, argnums=nnx.DiffState(0, nnx_filter(genome, genes)))`. Running statistics and
    dropout of frozen layers need `nnx_frozen_modules`.

    Args:
      genome: [G] bools, known in Python.
      genes: of `nnx.state(model, nnx.Param)`.
    """
    trainable = set(map(plain_path, _trainable_leaves(genome, genes)))
    return lambda path, value: "/".join(map(str, path)) in trainable


def nnx_frozen_modules(genome: Mask, genes: Genes) -> Callable[[tuple[Any, ...], Any], bool]:
    """A Flax NNX filter of the modules of which all parameters are frozen, and of everything inside them.

    `model.train()` also puts frozen layers into training mode. So after each call:

        frozen = nnx_frozen_modules(genome, genes)
        model.set_attributes(frozen, use_running_average=True, deterministic=True, raise_if_not_found=False)

    A dropout that lies beside a frozen layer, not inside a module with parameters, is not reached.

    Args:
      genome: [G] bools, known in Python.
      genes: of `nnx.state(model, nnx.Param)`.
    """
    frozen = _frozen_modules(genome, genes)
    return lambda path, module: _is_inside("/".join(map(str, path)), frozen)


def _frozen_modules(genome: Mask, genes: Genes) -> frozenset[str]:
    """Paths of the modules whose parameters, of which there are some, are all frozen."""
    trainable = _modules(_trainable_leaves(genome, genes))
    return frozenset(_modules(genes.paths) - trainable)


def _modules(leaves: Iterable[str]) -> set[str]:
    """Paths of all modules that contain these leaves; the root is ""."""
    steps = [plain_path(path).split("/")[:-1] for path in leaves]
    return {"/".join(step[:depth]) for step in steps for depth in range(len(step) + 1)}


def _is_inside(path: str, modules: Container[str]) -> bool:
    steps = path.split("/")
    return any("/".join(steps[:depth]) in modules for depth in range(len(steps) + 1))


def filter_spec(model: PyTree, genome: Mask, genes: Genes) -> PyTree:
    """An Equinox filter_spec, True for trainable arrays: `eqx.partition(model, filter_spec(model, genome, genes))`.

    Running statistics and dropout of frozen layers need `inference_in_frozen`.

    Args:
      model: a module, or any pytree.
      genome: [G] bools, known in Python.
      genes: of `eqx.filter(model, eqx.is_array)`.
    """
    trainable = _trainable_leaves(genome, genes)
    return jax.tree.unflatten(jax.tree.structure(model), [path in trainable for path in leaf_paths(model)])


def inference_in_frozen(model: PyTree, genome: Mask, genes: Genes) -> PyTree:
    """An Equinox model of which the frozen layers are in inference mode: without dropout, and with fixed running statistics.

    As `eqx.nn.inference_mode`, it sets the fields called `inference`, of all modules inside a module whose parameters are all
    frozen. A dropout that lies beside a frozen layer is not reached.

    Args:
      genome: [G] bools, known in Python.
      genes: of `eqx.filter(model, eqx.is_array)`.
    """
    frozen = _frozen_modules(genome, genes)
    leaves = [
        True if path.split("/")[-1] == "inference" and _is_inside(path.rpartition("/")[0], frozen) else leaf
        for path, leaf in zip(leaf_paths(model), jax.tree.leaves(model), strict=True)
    ]
    return jax.tree.unflatten(jax.tree.structure(model), leaves)


def requires_grad(path: str | os.PathLike[str]) -> dict[str, bool]:
    """What a `mask.json` says of PyTorch's parameters: {name: trainable?}.

        for name, parameter in model.named_parameters():
            parameter.requires_grad = trainable[name]

    This freezes parameters alone: under `model.train()` a frozen BatchNorm still normalises by the batch and updates its
    running statistics, and dropout goes on. Call `.eval()` on frozen modules after each `model.train()`
    (docs/guide.md).

    Raises:
      ValueError: if the file is no mask, or is about a network without names in PyTorch.
    """
    return {name: rate > 0 for name, rate in _tensor_rates(path).items()}


def parameter_groups(path: str | os.PathLike[str], learning_rate: float) -> list[dict[str, Any]]:
    """Groups of PyTorch's parameters that a `mask.json` trains at the same rate, from frozen to the highest.

        parameters = dict(model.named_parameters())
        for group in (groups := parameter_groups("mask.json", learning_rate=2e-5)):
            names = [name for name in group.pop("names") if name in parameters]  # without running statistics
            group["params"] = [parameters[name].requires_grad_(not group["frozen"]) for name in names]
        optimizer = torch.optim.AdamW(groups)

    An optimizer skips parameters without gradients, so frozen ones get no state and no weight decay. A scheduler scales all
    groups alike. As for `requires_grad`, call `.eval()` on frozen modules after each `model.train()`.

    Args:
      learning_rate: of parameters with a rate of 1, such as those that always train.

    Returns:
      Dicts with "names" of parameters, "lr" = rate times learning rate, and "frozen".

    Raises:
      ValueError: as `requires_grad`.
    """
    rates = _tensor_rates(path)
    return [
        {
            "names": [name for name in rates if rates[name] == level],
            "lr": level * learning_rate,
            "frozen": level == 0,
        }
        for level in sorted(set(rates.values()))
    ]


def _tensor_rates(path: str | os.PathLike[str]) -> dict[str, float]:
    """The rate of each tensor that a mask file names."""
    tensors = load_mask(path).get("tensors")
    if tensors is None:
        raise ValueError(f"{path}: no names of tensors in it; only masks of networks that come from a checkpoint have them")
    rates = tensors.get("rates", {})  # version 1 has none
    return dict.fromkeys(tensors["frozen"], 0.0) | {name: rates.get(name, 1.0) for name in tensors["trainable"]}


def layers_to_transform(frozen: Mapping[str, bool]) -> list[int]:
    """The layers that peft is to adapt, those which train: `LoraConfig(layers_to_transform=...)`.

    peft freezes all other parameters. It leaves running statistics and dropout as `model.train()` sets them, so call `.eval()`
    on the layers that are not in this list after each `model.train()`.

    Args:
      frozen: {gene: frozen?}, as `masking.read_mask` gives it. Layers are the genes `layer_3` or `block_3`, and half layers
        such as `layer_3/mlp`.

    Raises:
      ValueError: if there are no such genes.

    >>> layers_to_transform({"embeddings": True, "layer_0": True, "layer_1": False, "layer_2": False})
    [1, 2]
    """
    numbers = {name: match for name in frozen if (match := re.match(r"(?:layer|block)_(\d+)(?:/|$)", name))}
    if not numbers:
        raise ValueError(f"no gene is a numbered layer or block; the genes are {listed(frozen)}")
    return sorted({int(match[1]) for name, match in numbers.items() if not frozen[name]})
