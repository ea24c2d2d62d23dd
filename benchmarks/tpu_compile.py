"""Compiles training steps of a population for TPUs, without one, and says what they take there.

    pip install -e ".[tpu]" && python benchmarks/tpu_compile.py

XLA:TPU comes with libtpu and compiles on any CPU. The programs are those of `Population`, for a step in which everything
trains: its pieces, which Python hands out one by one, and where asked for the step in one program. Of pieces, memory is what
XLA says of each, beside the arrays that live while it runs. Prints for each slice and network, per device: memory against HBM,
GFLOP, collectives in the step, the largest population that fits, and how far off the planner is: block by block it counts
bytes from shapes, and of whole steps in one program it takes what XLA says for fewer members, here half as many, in proportion.
Takes about 10 minutes on 2 cores.
"""

import os

os.environ.update(
    JAX_PLATFORMS="cpu",
    TPU_WORKER_HOSTNAMES="localhost",
    TPU_WORKER_ID="0",
    TPU_ACCELERATOR_TYPE="v5litepod-8",
    TPU_SKIP_MDS_QUERY="1",
    ALLOW_MULTIPLE_LIBTPU_LOAD="1",
    TPU_LOG_DIR="disabled",
)

import dataclasses
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple
from unittest import mock

import jax
import jax.extend.core
import jax.numpy as jnp
import numpy as np
import tyro
from jax.experimental import topologies
from jax.sharding import AxisType, Mesh, NamedSharding
from members import BERT_BASE, MINILM
from steps import NUM_CLASSES, make_texts

from gafreeze_jax.data import tokens
from gafreeze_jax.engine import costs, devices
from gafreeze_jax.engine.cohort import Cohort, Plan, Replicate, make_cohorts, untrained
from gafreeze_jax.engine.network import Dataset, Source
from gafreeze_jax.engine.optimizer import adamw_recipe
from gafreeze_jax.engine.population import Population
from gafreeze_jax.metrics import ACCURACY, cross_entropy
from gafreeze_jax.models import base, bert
from gafreeze_jax.runs.results import versions, write_json

COLLECTIVE = re.compile(r"\b(?:all-reduce|all-gather|all-to-all|collective-permute|collective-broadcast|reduce-scatter)\b")
QUICKLY: Any = {"exec_time_optimization_effort": -1.0}  # a quarter of the time to compile


class Slice(NamedTuple):
    """A TPU slice: as JAX calls its topology, and GiB of memory of a device, as XLA names them when they are exceeded."""

    topology: str
    gib: float
    options: Mapping[str, Any] = MappingProxyType({})


SLICES = {
    "v5e-8": Slice("v5e:2x4", 15.75),
    "v4-32": Slice("v4:2x2x4", 30.75, {"chip_config_name": "megacore"}),
    "v6e-8": Slice("v6e:2x4", 31.25),
}
SHAPES = {
    "MiniLM, 16 x 32": (MINILM, 16, 32),  # about what run_bert.py packs by default
    "MiniLM, 32 x 128": (MINILM, 32, 128),
    "BERT-base, 32 x 128": (BERT_BASE, 32, 128),
}


@dataclass(frozen=True)
class Options:
    """Compile training steps for TPUs."""

    slices: tuple[str, ...] = tuple(SLICES)
    """Of v5e-8, v4-32 and v6e-8."""
    shapes: tuple[str, ...] = tuple(SHAPES)
    """Networks with texts x tokens of a step."""
    members: int = 4
    """On each device."""
    whole: tuple[str, ...] = ()
    """Slices for which the step is compiled in one program, too; takes minutes for each network."""
    out: Path | None = None
    """JSON file to write."""


class Step(NamedTuple):
    """What XLA says of a step, per device.

    Attributes:
      peak: bytes, at most at a time.
      flops: of all members there.
      collectives: in all its programs.
    """

    peak: float
    flops: float
    collectives: int


def make_population(config: bert.BertConfig, num_texts: int, length: int) -> tuple[Population, Replicate]:
    """Random texts, and parameters that are zero, as nothing is run."""
    model = base.Model(bert.FAMILY, config, num_classes=NUM_CLASSES)
    params = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), jax.eval_shape(model.init_params, jax.random.key(0)))
    texts = make_texts(num_texts, length, config.vocab_size)
    batches = tokens.pack_batches(texts, np.arange(num_texts)[None], length)
    source = Source(Dataset(texts.inputs, np.zeros(num_texts, np.int32)), batches)
    network = model.make_network(dtype=jnp.bfloat16)
    run = Replicate(params["head"], batches, jax.random.key(0))
    recipe = adamw_recipe(learning_rate=1e-5, head_learning_rate=1e-4, num_steps=100)
    return Population(network, params, recipe, source, source, loss=cross_entropy, metric=ACCURACY), run


def num_bytes(tree: Any) -> int:
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def is_variable(one: Any) -> bool:
    return isinstance(one, jax.extend.core.Var)


def compile_piece(equation: Any, arguments: list[jax.ShapeDtypeStruct]) -> Any:
    """A call of a jitted function, of the jaxpr in which it stands."""
    donated = [i for i, given in enumerate(equation.params["donated_invars"]) if given]
    function = jax.jit(jax.extend.core.jaxpr_as_fun(equation.params["jaxpr"]), donate_argnums=donated, keep_unused=True)
    return function.lower(*arguments).compile(QUICKLY)


def compile_pieces(population: Population, call: Cohort, run: Replicate) -> Step:
    """A step that is handed out block by block. Arrays are followed through it: they live until they are last used."""
    (scan,) = [one for one in population.trainer.trace(call, run).jaxpr.eqns if one.primitive.name == "scan"]
    step = scan.params["jaxpr"].jaxpr
    mesh = jax.sharding.get_mesh()
    of_members, shared = (NamedSharding(mesh, spec) for spec in (devices.MEMBERS, devices.SHARED))
    carried = step.invars[scan.params["num_consts"] :][: scan.params["num_carry"]]
    shardings = dict.fromkeys(step.invars, shared) | dict.fromkeys(carried, of_members)
    last_use = {one: i for i, equation in enumerate(step.eqns) for one in equation.invars if is_variable(one)}
    kept = {*step.invars, *filter(is_variable, step.outvars)}

    def bytes_of(variable: Any) -> float:
        return num_bytes(variable.aval) / (mesh.size if shardings[variable].spec == devices.MEMBERS else 1)

    live = {variable: bytes_of(variable) for variable in step.invars}
    compiled_before: dict[Any, Any] = {}
    peak, flops, collectives = 0.0, 0.0, 0
    for i, equation in enumerate(step.eqns):
        if equation.primitive.name != "jit":  # of a key or a number
            shardings |= dict.fromkeys(equation.outvars, shared)
            continue
        arguments = [
            jax.ShapeDtypeStruct(one.aval.shape, one.aval.dtype, sharding=shardings[one] if is_variable(one) else shared)
            for one in equation.invars
        ]
        key = str(equation.params["jaxpr"]), *(argument.sharding for argument in arguments)
        compiled = compiled_before[key] = compiled_before.get(key) or compile_piece(equation, arguments)
        memory = compiled.memory_analysis()
        flops += compiled.cost_analysis().get("flops", 0.0)
        collectives += len(COLLECTIVE.findall(compiled.as_text()))
        shardings |= zip(equation.outvars, compiled.output_shardings, strict=True)
        for one, given in zip(equation.invars, equation.params["donated_invars"], strict=True):
            if given:
                live.pop(one, None)
        results = {variable: bytes_of(variable) for variable in equation.outvars}
        padding = memory.output_size_in_bytes / max(1.0, sum(results.values()))
        live |= {variable: padding * size for variable, size in results.items()}
        peak = max(peak, sum(live.values()) + memory.temp_size_in_bytes)
        live = {variable: size for variable, size in live.items() if variable in kept or last_use.get(variable, -1) > i}
    return Step(peak, flops, collectives)


def compile_whole(population: Population, call: Cohort, run: Replicate) -> Step:
    """A step in one program, where XLA is free to compute again what it would else keep."""
    compiled: Any = population.trainer.trace(call, run).lower().compile(QUICKLY)
    flops = compiled.cost_analysis()["flops"]
    return Step(compiled.memory_analysis().peak_memory_in_bytes, flops, len(COLLECTIVE.findall(compiled.as_text())))


def measure(population: Population, run: Replicate, where: Slice, num: int, *, whole: bool) -> dict[str, dict[str, Any]]:
    """Rows of the table: the step in pieces with `num` members on each device and, perhaps, in one program."""
    topology = topologies.get_topology_desc(platform="tpu", topology_name=where.topology, **where.options)
    mesh = Mesh(np.array(topology.devices), (devices.AXIS,), axis_types=(AxisType.Auto,))

    def compiled_with(per_device: int, compile_step: Callable[[Population, Cohort, Replicate], Step]) -> tuple[Step, int]:
        plan = Plan(per_device * mesh.size)
        genomes = [population.space.all_trained] * plan.members
        (call,) = make_cohorts(plan, population.space, untrained(genomes))
        with jax.set_mesh(mesh):
            return compile_step(population, call, run), costs.bytes_of_cohort(population, plan, genomes, run)

    rows = {}
    for form, compile_step in {"in pieces": compile_pieces, "in one": compile_whole}.items():
        if form == "in one" and not whole:
            continue
        (few, _), (many, by_shapes) = (compiled_with(size, compile_step) for size in (num // 2, num))
        ours = by_shapes if form == "in pieces" else few.peak * num / (num // 2)
        of_member = (many.peak - few.peak) / (num - num // 2)
        fit = int((where.gib * 2**30 - (many.peak - num * of_member)) // of_member)
        rows[form] = {
            "gib": many.peak / 2**30,
            "of_hbm": many.peak / 2**30 / where.gib,
            "gflop_of_member": many.flops / num / 1e9,
            "collectives": few.collectives + many.collectives,
            "fit_on_device": fit,
            "fit": fit * mesh.size,
            "planner": ours / many.peak,
        }
    return rows


def main(options: Options) -> None:
    num = options.members
    results: dict[str, dict[str, Any]] = {}
    print(f"{num} members on each device, bfloat16; the planner's estimate of memory as a share of XLA's")
    print(f"{'':37} {'GiB':>6} {'of HBM':>7} {'GFLOP':>7} {'collectives':>12} {'members fit':>12} {'planner':>8}")
    for name in options.shapes:
        population, run = make_population(*SHAPES[name])
        for where in options.slices:
            with mock.patch.object(jax, "default_backend", return_value="tpu"):  # some layers have forms for it
                rows = measure(population, run, SLICES[where], num, whole=where in options.whole)
            for form, row in rows.items():
                results[f"{name}, {where}, {form}"] = row
                print(
                    f"{name:20} {where:6} {form:9} {row['gib']:6.2f} {row['of_hbm']:7.1%} {row['gflop_of_member']:7.1f} "
                    f"{row['collectives']:12} {row['fit']:12} {row['planner']:8.0%}",
                    flush=True,
                )
    if options.out is not None:
        facts = {"options": dataclasses.asdict(options), "versions": versions() | {"libtpu": version("libtpu")}}
        write_json(options.out, facts | {"rows": results})


if __name__ == "__main__":
    main(tyro.cli(Options))
