"""What there is to know about stacked members on an accelerator, in at most nine minutes.

    python benchmarks/gpu.py --out FILE.json

Needs torch for the parts that compare with it, and pygad for the last one; a part that cannot run says why, and the others go
on. Each part has a share of the time that is left when it begins; when that is over, it does no further row. FILE.json and
FILE.md are written anew after each row, so a run that is cut off leaves what it has measured.

- PyTorch: a plain loop (autocast, fused AdamW), eager and by `torch.compile`
- members: ours, with 1 to 64 members stacked; share of the device's peak; memory by the planner's estimate, and the most that
  has been in use until then
- programs: every block a program of its own, or three steps in one; masks static or traced
- attention: ours, with and without dropout, XLA's and cuDNN's; forward and backward, of one layer of stacked members
- optimizer: AdamW block by block, for all blocks in one program, and on one long vector
- search: a whole one, that of vs_pytorch.py on random weights and texts: seconds of both sides, compiling included

The network has random weights and the shape of BERT-base by default, the texts random tokens, 128 each; all layers train.
FreezeBench's tables are made by freezebench.py.
"""

# pyright: reportMissingImports=false

import dataclasses
import functools
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import machine
import numpy as np
import optax
import tyro
from jax import Array
from members import BERT_BASE, MINILM, PEAK_TFLOPS, Work, time_ours, time_pytorch
from steps import NUM_CLASSES, make_texts, step_flops

from gafreeze_jax.data import text, tokens
from gafreeze_jax.engine import planning
from gafreeze_jax.engine.cohort import Plan
from gafreeze_jax.engine.optimizer import Trainable, start_block, update_block
from gafreeze_jax.models import base, bert, layers, pretrained
from gafreeze_jax.runs import results
from gafreeze_jax.search.history import write_whole

Row = dict[str, Any]
NETWORKS = {"bert-base": BERT_BASE, "minilm": MINILM, "tiny": bert.BertConfig(100, 32, 2, 2, 64)}
ADAMW = optax.adamw(1e-5, weight_decay=0.01)
BYTES_OF_UPDATE = 28  # of a float32 parameter: itself and two moments are read and written, its gradient is read
DROPOUT = 0.1
LEAST_SECONDS = 0.2  # that are timed
GIB = 2**30


@dataclass(frozen=True)
class Options:
    """Measure stacked members on an accelerator, in a given time."""

    network: Literal["bert-base", "minilm", "tiny"] = "bert-base"
    """Shape of the network."""
    texts: int = 32
    """Texts of a step."""
    length: int = 128
    """Tokens of a text."""
    dtype: Literal["float32", "bfloat16"] = "bfloat16"
    """Of matrix products and activations; parameters are float32."""
    members: tuple[int, ...] = (1, 2, 4, 8, 16, 32, 64)
    """How many are trained together. What does not fit the device's memory is left out."""
    stacked: int = 8
    """Members of the other parts."""
    minutes: float = 8.5
    """After which no further row is begun."""
    parts: tuple[str, ...] = ()
    """Names of parts; default: all."""
    out: Path = Path("gpu.json")
    """JSON file to write; its table goes beside it as .md."""

    @property
    def work(self) -> Work:
        """A training step."""
        return Work(NETWORKS[self.network], self.texts, self.length, self.dtype)


# ---------------------------------------------------------------------------------------------------------------------
# The parts: each yields rows


def pytorch(options: Options) -> Iterator[Row]:
    for name, compiled in (("eager", False), ("torch.compile", True)):
        row = {"name": name, **of_steps(options, 1, time_pytorch(options.work, torch_device(), compiled=compiled))}
        yield row | torch_memory()


def members(options: Options) -> Iterator[Row]:
    for plan, seconds, num_bytes in time_ours(options.work, [Plan(num) for num in sorted(options.members)]):
        row = {"name": f"{plan.members} members", **of_steps(options, plan.members, seconds), "estimated_gib": num_bytes / GIB}
        in_use = jax.devices()[0].memory_stats() or {}
        yield row | ({"peak_gib": in_use["peak_bytes_in_use"] / GIB} if "peak_bytes_in_use" in in_use else {})


def programs(options: Options) -> Iterator[Row]:
    plans = [Plan(options.stacked, steps, freezing) for freezing in ("static", "traced") for steps in (0, 3)]
    for plan, seconds, num_bytes in time_ours(options.work, plans):
        yield {
            "name": planning.describe(plan) if plan.steps else f"{planning.describe(plan)}, masks {plan.freezing}",
            **of_steps(options, plan.members, seconds),
            "estimated_gib": num_bytes / GIB,
        }


class Attention(nn.Module):
    """`layers.attend` of a layer: [R, S, H, D / H] three times -> [R * S, D]."""

    @nn.compact
    def __call__(self, query: Array, key: Array, value: Array, segments: Array) -> Array:
        num_heads, size = query.shape[2:]
        queries, keys, values = (x.reshape(-1, num_heads * size) for x in (query, key, value))
        return layers.attend(
            self, queries, keys, values, segments, None,
            num_heads=num_heads, scale=size**-0.5, causal=False, dropout_rate=DROPOUT, frozen=False,
        )  # fmt: skip


def attention(options: Options) -> Iterator[Row]:
    config, rows = options.work.config, options.stacked * options.texts
    size = config.hidden_size // config.num_attention_heads
    shape = rows, options.length, config.num_attention_heads, size
    inputs = tuple(jax.random.normal(key, shape, jnp.dtype(options.dtype)) for key in jax.random.split(jax.random.key(0), 3))
    segments = jnp.zeros((rows, options.length), jnp.int32)
    mask = jnp.ones((rows, 1, options.length, options.length), bool)
    library = functools.partial(jax.nn.dot_product_attention, mask=mask)
    key = jax.random.key(0)
    kinds: dict[str, Callable[..., Any]] = {
        "ours": lambda *qkv: Attention().apply({}, *qkv, segments),
        "ours, dropout": lambda *qkv: Attention().apply({}, *qkv, segments, rngs={"dropout": key}),
        "XLA": functools.partial(library, implementation="xla"),
        "cuDNN": functools.partial(library, implementation="cudnn"),
        "cuDNN, no mask": functools.partial(jax.nn.dot_product_attention, implementation="cudnn"),
        "cuDNN, no mask, dropout": functools.partial(cudnn_dropout, scale=size**-0.5),
    }
    flops = 12.0 * rows * options.length**2 * config.hidden_size  # two products forwards, four backwards
    for name, function in kinds.items():
        gradient = jax.jit(jax.grad(lambda qkv, function=function: function(*qkv).astype(jnp.float32).sum()))
        try:
            seconds = time_call(lambda gradient=gradient: gradient(inputs))
        except Exception as error:  # cuDNN is for some devices and dtypes only, and XLA says so in many ways
            yield {"name": name, "left_out": reason(error)}
        else:
            yield {"name": name, "milliseconds": seconds * 1e3, **of_peak(flops / seconds)}


def cudnn_dropout(query: Array, key: Array, value: Array, *, scale: float) -> Any:
    """JAX offers cuDNN's dropout in no public function."""
    from jax._src.cudnn.fused_attention_stablehlo import dot_product_attention

    if jax.default_backend() != "gpu":
        raise ValueError("cuDNN needs a GPU")
    return dot_product_attention(query, key, value, scale=scale, dropout_rate=DROPOUT)


def optimizer(options: Options) -> Iterator[Row]:
    model = base.Model(bert.FAMILY, options.work.config, num_classes=NUM_CLASSES)
    params = model.init_params(jax.random.key(0))
    gradients = jax.tree.map(lambda leaf: jnp.ones((options.stacked, *leaf.shape)), params)
    in_vector = optax.flatten(ADAMW)

    def update(tx: optax.GradientTransformation, block: Trainable, gradients: Any) -> Trainable:
        return update_block(
            tx=tx,
            max_norm=1.0,
            axis=0,
            block=block,
            gradients=gradients,
            square_norm=jnp.ones(options.stacked),
            frozen=None,
            rate=None,
            statistics=None,
        )

    def start_all() -> dict[str, Trainable]:
        return {name: start_block(ADAMW, 0, options.stacked, tree) for name, tree in params.items()}

    def update_all(blocks: dict[str, Trainable], gradients: Any) -> dict[str, Trainable]:
        return {name: update(ADAMW, block, gradients[name]) for name, block in blocks.items()}

    kinds: dict[str, tuple[Callable[[], Any], Callable[[Any, Any], Any]]] = {
        "block by block": (start_all, update_all),
        "one program": (start_all, jax.jit(update_all, donate_argnums=0)),
        "one vector": (lambda: start_block(in_vector, 0, options.stacked, params), functools.partial(update, in_vector)),
    }
    num_bytes = BYTES_OF_UPDATE * optax.tree.size(gradients)
    for name, (start, function) in kinds.items():
        state = [start()]  # is donated

        def step(function: Callable[[Any, Any], Any] = function, state: list[Any] = state) -> Any:
            state[0] = function(state[0], gradients)
            return state[0]

        seconds = time_call(step)
        yield {"name": name, "milliseconds": seconds * 1e3, "gb_per_second": num_bytes / seconds / 1e9}


def search(options: Options) -> Iterator[Row]:
    import vs_pytorch

    config = options.work.config
    with tempfile.TemporaryDirectory() as folder:
        given = vs_pytorch.Options(
            data="random", generations=4, population=12, train_examples=16 * options.texts, epochs=1,
            dtype=options.dtype, device=torch_device(),
        )  # fmt: skip
        result = vs_pytorch.search(random_task(Path(folder), config, given, options.length), given)
    for name, arm in result["arms"].items():
        yield {"name": name, **arm}


def random_task(folder: Path, config: bert.BertConfig, given: Any, length: int) -> Any:
    """A `vs_pytorch.Task` of random weights, texts and labels."""
    import transformers
    import vs_pytorch

    shared = {name: value for name, value in dataclasses.asdict(config).items() if value is not None}
    transformers.BertForSequenceClassification(transformers.BertConfig(**shared)).save_pretrained(folder)
    loaded = pretrained.load(folder, num_classes=NUM_CLASSES, key=jax.random.key(given.seed))
    rng = np.random.default_rng(given.seed)

    def split(num: int) -> tuple[tokens.Tokens, text.TextSplit]:
        texts = make_texts(num, length, config.vocab_size)
        shorter = texts._replace(lengths=rng.integers(length // 4, length + 1, num))
        return shorter, text.TextSplit([], rng.integers(NUM_CLASSES, size=num).astype(np.int32))

    parts = [split(num) for num in (given.train_examples, given.validation_examples, given.validation_examples)]
    data = text.TextData(*(labels for _, labels in parts), label_names=("no", "yes"), notes=())
    return vs_pytorch.Task(folder, loaded.model, loaded.params, data, *(texts for texts, _ in parts))


# ---------------------------------------------------------------------------------------------------------------------
# What they share


class Part(NamedTuple):
    """A part, and its share of the time, in relation to those after it."""

    measure: Callable[[Options], Iterator[Row]]
    share: float


PARTS = {
    "PyTorch": Part(pytorch, 2),
    "members": Part(members, 4),
    "programs": Part(programs, 2),
    "attention": Part(attention, 1),
    "optimizer": Part(optimizer, 1),
    "search": Part(search, 3),
}


def torch_device() -> Literal["cpu", "cuda"]:
    """Where PyTorch computes beside JAX."""
    platform = jax.devices()[0].platform
    if platform not in ("cpu", "gpu"):
        raise ValueError(f"PyTorch is compared on CPUs and GPUs, not on a {platform}")
    return "cuda" if platform == "gpu" else "cpu"


def torch_memory() -> Row:
    """The most that PyTorch has had in use on a GPU, and gives back now."""
    if torch_device() == "cpu":
        return {}
    import torch

    peak = torch.cuda.max_memory_allocated() / GIB
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    return {"peak_gib": peak}


def of_steps(options: Options, num_members: int, seconds: float) -> Row:
    """What a training step of so many members in so many seconds comes to."""
    config, num_texts, length, _ = options.work
    flops = step_flops(config, np.zeros(config.num_hidden_layers + 1, bool), num_texts, length)
    rate = num_members / seconds
    return {"milliseconds": seconds * 1e3, "member_steps_per_second": rate, **of_peak(rate * flops)}


def of_peak(flops_per_second: float) -> Row:
    """In TFLOP/s, and the share of the device's peak where it is known."""
    peak = PEAK_TFLOPS.get(jax.devices()[0].device_kind)
    tflops = flops_per_second / 1e12
    return {"tflops": tflops} | ({"of_peak": tflops / peak} if peak else {})


def time_call(function: Callable[[], Any]) -> float:
    """Seconds of a call; the first two are not timed."""
    for _ in range(2):
        jax.block_until_ready(function())
    num, seconds = 1, 0.0
    while True:
        start = time.perf_counter()
        result = None
        for _ in range(num):
            result = function()
        jax.block_until_ready(result)
        seconds = time.perf_counter() - start
        if seconds > LEAST_SECONDS:
            return seconds / num
        num *= 4


def reason(error: Exception) -> str:
    """An error in one short line."""
    return f"{type(error).__name__}: {' '.join(str(error).split())}"[:200]


def best_against_pytorch(parts: dict[str, list[Row]]) -> Iterator[str]:
    """How many times as many member-steps a second as each PyTorch loop ours does at best."""
    rate = "member_steps_per_second"
    theirs, ours = ([row for row in parts.get(part, ()) if rate in row] for part in ("PyTorch", "members"))
    for row in theirs if ours else ():
        best = max(ours, key=lambda row: row[rate])
        yield f"{best['name']}: {best[rate] / row[rate]:.2f} times the member-steps a second of PyTorch, {row['name']}"


def as_markdown(described: Row, parts: dict[str, list[Row]]) -> str:
    """A table for each part."""
    lines = [f"# {described['device']}", "", f"{described['processor']}, {described['cores']} cores", ""]
    lines += [f"- {line}" for line in best_against_pytorch(parts)] + [""]
    for name, rows in parts.items():
        columns = list(dict.fromkeys(column for row in rows for column in row))
        lines += [f"## {name}", "", f"| {' | '.join(columns)} |", f"|{' --- |' * len(columns)}"]
        lines += [f"| {' | '.join(cell(row.get(column)) for column in columns)} |" for row in rows] + [""]
    return "\n".join(lines)


def cell(value: Any) -> str:
    return "" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)


def main(options: Options) -> None:
    end = time.monotonic() + 60 * options.minutes
    if unknown := set(options.parts) - set(PARTS):
        raise SystemExit(f"--parts: no part {', '.join(sorted(unknown))}; there are {', '.join(PARTS)}")
    described = machine.describe_machine()
    wanted = {name: part for name, part in PARTS.items() if not options.parts or name in options.parts}
    measured: dict[str, list[Row]] = {}

    def write() -> None:
        facts = {"options": dataclasses.asdict(options), "machine": described, "parts": measured}
        results.write_json(options.out, facts)
        write_whole(options.out.with_suffix(".md"), as_markdown(described, measured))

    for number, (name, part) in enumerate(wanted.items()):
        left = end - time.monotonic()
        until = time.monotonic() + left * part.share / sum(later.share for later in list(wanted.values())[number:])
        rows = measured[name] = []
        print(f"\n{name}, for {max(0, until - time.monotonic()):.0f} s", flush=True)
        try:
            for row in part.measure(options) if left > 0 else ():
                rows.append(row)
                print("  " + ", ".join(f"{key} {cell(value)}" for key, value in row.items()), flush=True)
                write()
                if time.monotonic() > until:
                    rows.append({"name": "cut off", "left_out": "no time left"})
                    break
        except Exception as error:  # one part's trouble must not cost the others
            rows.append({"name": "failed", "left_out": reason(error)})
            print(f"  {rows[-1]['left_out']}", flush=True)
        write()


if __name__ == "__main__":
    main(tyro.cli(Options))
