"""Compiles training steps of a population for TPUs, without one, and says what they take there.

    pip install -e ".[tpu]" && python benchmarks/tpu_compile.py

XLA:TPU comes with libtpu and compiles on any CPU. The programs are those of `Population`, for a step in which everything
trains: its pieces, which Python hands out one by one, and where asked for the step in one program. Of pieces, memory is what
XLA says of each, beside the arrays that live while it runs. Prints for each slice and network, per device: memory against HBM,
GFLOP, collectives in the step, the largest population that fits, and how far off the planner is: block by block it counts
bytes from shapes, and of whole steps in one program it takes what XLA says for fewer members, here half as many, in proportion.
Takes about 10 minutes on 2 cores. Llamas, of which several devices hold parts of each member, are compiled where asked for:

    python benchmarks/tpu_compile.py --slices v5e-16 v5p-64 --shapes "Llama 1B, 8 x 1024" "Llama 8B, 8 x 1024" --members 2
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
import math
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
from gafreeze_jax.models import base, bert, llama
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
    "v5e-16": Slice("v5e:4x4", 15.75),
    "v5p-64": Slice("v5p:2x4x4", 95.74),
}
LLAMA_1B = llama.LlamaConfig(
    vocab_size=128256, hidden_size=2048, num_hidden_layers=16, num_attention_heads=32, intermediate_size=8192,
    num_key_value_heads=8, tie_word_embeddings=True, rope_theta=500_000.0,
)  # fmt: skip
LLAMA_8B = dataclasses.replace(
    LLAMA_1B, hidden_size=4096, num_hidden_layers=32, intermediate_size=14336, tie_word_embeddings=False
)
SHAPES = {
    "MiniLM, 16 x 32": (MINILM, 16, 32),  # about what run_bert.py packs by default
    "MiniLM, 32 x 128": (MINILM, 32, 128),
    "BERT-base, 32 x 128": (BERT_BASE, 32, 128),
    "Llama 1B, 8 x 1024": (LLAMA_1B, 8, 1024),
    "Llama 8B, 8 x 1024": (LLAMA_8B, 8, 1024),
}
PARTS = {LLAMA_1B: 4, LLAMA_8B: 16}  # devices that share a member


@dataclass(frozen=True)
class Options:
    """Compile training steps for TPUs."""

    slices: tuple[str, ...] = ("v5e-8", "v4-32", "v6e-8")
    """Of these, v5e-16 and v5p-64."""
    shapes: tuple[str, ...] = tuple(name for name, (config, _, _) in SHAPES.items() if config not in PARTS)
    """Networks with texts x tokens of a step."""
    members: int = 4
    """On each device, or on those that share a member."""
    remat: bool = False
    """Compute blocks again in the backward pass."""
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


def make_population(config: Any, num_texts: int, length: int) -> tuple[Population, Replicate]:
    """Random texts, and parameters that are zero and take no memory, as nothing is run; bfloat16 for a Llama."""
    is_llama = isinstance(config, llama.LlamaConfig)
    model = base.Model(llama.FAMILIES[0] if is_llama else bert.FAMILY, config, num_classes=NUM_CLASSES)
    zero = np.zeros((), jnp.bfloat16 if is_llama else np.float32)
    shapes = jax.eval_shape(model.init_params, jax.random.key(0))
    params = jax.tree.map(lambda leaf: np.broadcast_to(zero, leaf.shape), shapes)
    texts = make_texts(num_texts, length, config.vocab_size)
    batches = tokens.pack_batches(texts, np.arange(num_texts)[None], length)
    source = Source(Dataset(texts.inputs, np.zeros(num_texts, np.int32)), batches)
    network = model.make_network(dtype=jnp.bfloat16)
    run = Replicate(params["head"], batches, jax.random.key(0))
    recipe = adamw_recipe(learning_rate=1e-5, head_learning_rate=1e-4, num_steps=100)
    with mock.patch.object(devices, "spread", lambda tree: tree):
        return Population(network, params, recipe, source, source, loss=cross_entropy, metric=ACCURACY), run


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
    shared = NamedSharding(mesh, devices.SHARED)
    carried = step.invars[scan.params["num_consts"] :][: scan.params["num_carry"]]
    axes = dict.fromkeys(step.invars) | {one: call.axis if one.aval.ndim else None for one in carried}
    shardings = {one: NamedSharding(mesh, devices.spec_of(one.aval, axis)) for one, axis in axes.items()}
    last_use = {one: i for i, equation in enumerate(step.eqns) for one in equation.invars if is_variable(one)}
    kept = {*step.invars, *filter(is_variable, step.outvars)}

    def bytes_of(variable: Any) -> float:
        return math.prod(shardings[variable].shard_shape(variable.aval.shape)) * variable.aval.dtype.itemsize

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


def measure(
    population: Population, run: Replicate, where: Slice, num: int, *, parts: int, remat: bool, whole: bool
) -> dict[str, dict[str, Any]]:
    """Rows of the table: the step in pieces with `num` members on each `parts` devices and, perhaps, in one program."""
    topology = topologies.get_topology_desc(platform="tpu", topology_name=where.topology, **where.options)
    grid = np.array(topology.devices).reshape(-1, parts)
    mesh = Mesh(grid, (devices.AXIS, devices.DATA), axis_types=2 * (AxisType.Auto,))

    def compiled_with(per_device: int, compile_step: Callable[[Population, Cohort, Replicate], Step]) -> tuple[Step, int]:
        plan = Plan(per_device * len(grid), remat=remat)
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
            "fit": fit * len(grid),
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
        parts = PARTS.get(SHAPES[name][0], 1)
        for where in options.slices:
            with mock.patch.object(jax, "default_backend", return_value="tpu"):  # some layers have forms for it
                whole = where in options.whole
                rows = measure(population, run, SLICES[where], num, parts=parts, remat=options.remat, whole=whole)
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
