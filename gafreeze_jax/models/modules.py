"""Modules of Flax Linen, Flax NNX and Equinox as functions `apply(params, inputs, key)`, for `from_function.cut`."""

import importlib
import inspect
import sys
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
from jax import Array

from gafreeze_jax.engine.network import STATISTICS, PyTree

TRAINING = ("train", "training", "is_training")  # names of a module's argument that is True in training mode
INFERENCE = ("deterministic", "use_running_average", "inference")  # and of one that is False then


class Function(NamedTuple):
    """A model as a function of its parameters.

    Attributes:
      apply: as `from_function.cut` takes it.
      params: its parameters; {"params": ..., "batch_stats": ...} if there are running statistics.
      restore: from such a tree to what the user has: a tree like the one given, a module, or a module and its state.
    """

    apply: Callable[..., Any]
    params: PyTree
    restore: Callable[[PyTree], Any]


def as_function(model: Any, params: PyTree = None) -> Function:
    """A function and its parameters, from a function, an `nn.Module` with parameters, an `nnx.Module` or an `eqx.Module`.

    In training mode an `nn.Module` is called with train=True or deterministic=False, if its `__call__` has such an argument
    (see `TRAINING` and `INFERENCE`), an `nnx.Module` after `train()`, and an `eqx.Module`, which is mapped over examples,
    with a key, if it takes one. A module with an `eqx.nn.State` is called as `model(x, state)`.

    Args:
      params: of a function or an `nn.Module`: its variables, or only the collection "params". Modules that hold their
        parameters have none; an `eqx.Module` with an `eqx.nn.State` needs this.
    """
    if _is_a(model, "flax.linen"):
        return _from_linen(model, params)
    if _is_a(model, "equinox") and (params is None or isinstance(params, sys.modules["equinox"].nn.State)):
        return _from_equinox(model, params)
    if params is not None:
        return Function(model, params, lambda tree: tree)
    if _is_a(model, "flax.nnx"):
        return _from_nnx(model)
    raise ValueError(f"{type(model).__name__}: a function needs its parameters; give params")


def _is_a(model: Any, library: str) -> bool:
    """Whether a model is a module of a library, which is loaded then."""
    return library in sys.modules and isinstance(model, sys.modules[library].Module)


def _from_linen(model: Any, params: PyTree) -> Function:
    is_whole = isinstance(params, Mapping) and "params" in params
    arguments = inspect.signature(type(model).__call__).parameters
    switch = {name: True for name in TRAINING if name in arguments} | {name: False for name in INFERENCE if name in arguments}

    def apply(variables: Any, inputs: PyTree, key: Array | None = None) -> Any:
        variables = variables if is_whole else {"params": variables}
        if key is None:
            return model.apply(variables, inputs, **{name: not value for name, value in switch.items()})
        mutable = [STATISTICS] if STATISTICS in variables else False
        return model.apply(variables, inputs, rngs={"dropout": key}, mutable=mutable, **switch)

    def without_key(variables: Any, inputs: PyTree) -> Any:
        return apply(variables, inputs)

    return Function(apply if switch else without_key, params, lambda tree: tree)


def _from_nnx(model: Any) -> Function:
    nnx = importlib.import_module("flax.nnx")
    graph, params, statistics, rest = nnx.split(model, nnx.Param, nnx.BatchStat, ...)
    has_statistics = bool(jax.tree.leaves(statistics))

    def apply(variables: Any, inputs: PyTree, key: Array | None) -> Any:
        states = (variables["params"], variables[STATISTICS]) if has_statistics else (variables, statistics)
        module = nnx.merge(graph, *states, rest, copy=True)
        if key is None:
            module.eval()
            return module(inputs)
        module.train()
        nnx.reseed(module, default=key, dropout=key)
        outputs = module(inputs)
        return (outputs, nnx.state(module, nnx.BatchStat)) if has_statistics else outputs

    def restore(tree: PyTree) -> Any:
        module = nnx.merge(graph, params, statistics, rest, copy=True)
        for state in (tree["params"], tree[STATISTICS]) if has_statistics else (tree,):
            nnx.update(module, state)
        return module

    return Function(apply, {"params": params, STATISTICS: statistics} if has_statistics else params, restore)


def _from_equinox(model: Any, state: Any) -> Function:
    eqx = importlib.import_module("equinox")
    params, static = eqx.partition(model, eqx.is_inexact_array)
    takes_key = "key" in inspect.signature(type(model).__call__).parameters
    axis_name = _axis_of_batch_norm(model)

    def run(model: Any, state: Any, inputs: PyTree, keys: Array | None) -> Any:
        def of_example(x: PyTree, key: Array | None) -> Any:
            return model(x, *([] if state is None else [state]), **({} if key is None else {"key": key}))

        axes = (0, None if keys is None else 0), 0 if state is None else (0, None)
        return jax.vmap(of_example, *axes, axis_name=axis_name)(inputs, keys)

    def of_variables(variables: Any) -> tuple[Any, Any]:
        if state is None:
            return eqx.combine(variables, static), None
        # Both have the values in the order of the module's leaves.
        values = jax.tree.unflatten(jax.tree.structure(state), jax.tree.leaves(variables[STATISTICS]))
        return eqx.combine(variables["params"], static), values

    def infer(variables: Any, inputs: PyTree) -> Any:
        module, values = of_variables(variables)
        outputs = run(eqx.nn.inference_mode(module), values, inputs, None)
        return outputs if state is None else outputs[0]

    def apply(variables: Any, inputs: PyTree, key: Array | None) -> Any:
        if key is None:
            return infer(variables, inputs)
        keys = jax.random.split(key, len(jax.tree.leaves(inputs)[0])) if takes_key else None
        return run(*of_variables(variables), inputs, keys)

    if state is None:
        return Function(apply if takes_key else infer, params, lambda tree: of_variables(tree)[0])
    is_index = lambda leaf: isinstance(leaf, eqx.nn.StateIndex)  # noqa: E731
    statistics = jax.tree.map(lambda leaf: state.get(leaf) if is_index(leaf) else None, model, is_leaf=is_index)
    return Function(apply, {"params": params, STATISTICS: statistics}, of_variables)


def _axis_of_batch_norm(model: Any) -> Any:
    """The name of the batch's axis in an `eqx.nn.BatchNorm`; of the first, if there are several."""
    modules = jax.tree.leaves(model, is_leaf=lambda module: hasattr(module, "axis_name"))
    return next((module.axis_name for module in modules if hasattr(module, "axis_name")), "batch")
