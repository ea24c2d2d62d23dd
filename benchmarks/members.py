"""How many training steps of members a device does in a second, by the number of members that are trained together.

    python benchmarks/members.py

Takes about 3 minutes on 2 cores. On an accelerator the network has the shape of BERT-base and a step is 32 texts of 128
tokens in bfloat16; on a CPU it has the shape of MiniLM and a step is 8 texts of 32 tokens in float32. Weights and tokens are
random, and all layers train. With `--pytorch`, and torch installed, a plain PyTorch loop does the same steps, too.

Prints a line for each number of members: milliseconds of a step of all of them, member-steps per second, TFLOP per second of
their matrix products and, on devices whose peak is known, its share. On a CPU one more line has two members that are not
stacked but trained by two threads.
"""

# pyright: reportMissingImports=false

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from steps import MOST_STEPS, NUM_CLASSES, make_texts, seconds_per_step, step_flops

from gafreeze_jax.data import tokens
from gafreeze_jax.engine import costs, planning, process
from gafreeze_jax.engine.cache import device_memory
from gafreeze_jax.engine.cohort import Plan, Replicate
from gafreeze_jax.engine.network import Dataset, Source
from gafreeze_jax.engine.optimizer import adamw_recipe
from gafreeze_jax.engine.population import Population
from gafreeze_jax.metrics import ACCURACY, cross_entropy
from gafreeze_jax.models import base, bert
from gafreeze_jax.runs import results

BERT_BASE = bert.BertConfig(30522, 768, 12, 12, 3072)
MINILM = bert.BertConfig(2000, 384, 6, 12, 1536)  # with so many words as a search leaves
PEAK_TFLOPS = {  # dense bfloat16 products, by the vendors' data sheets; a T4 has float16 only
    "NVIDIA B200": 2250.0,
    "NVIDIA H200": 989.4,
    "NVIDIA H100 80GB HBM3": 989.4,
    "NVIDIA H100 PCIe": 756.0,
    "NVIDIA A100-SXM4-80GB": 312.0,
    "NVIDIA A100-SXM4-40GB": 312.0,
    "NVIDIA A100-PCIE-40GB": 312.0,
    "NVIDIA L4": 121.0,
    "Tesla T4": 65.0,
    "TPU v4": 275.0,
    "TPU v5 lite": 197.0,
    "TPU v5": 459.0,
    "TPU v6 lite": 918.0,
}


@dataclass(frozen=True)
class Options:
    """Time training steps of 1 to 64 members at a time."""

    members: tuple[int, ...] = (1, 2, 4, 8, 16, 32, 64)
    """How many are trained together. What does not fit the device's memory is left out."""
    pytorch: bool = False
    """Time a PyTorch loop, too."""
    out: Path | None = None
    """JSON file to write."""


class Work(NamedTuple):
    """A training step: of which network, on how much, in what precision."""

    config: bert.BertConfig
    num_texts: int
    length: int
    dtype: str


class Timed(NamedTuple):
    """Seconds of a step of all members of a plan, and the memory that they take by the planner's estimate."""

    plan: Plan
    seconds: float
    num_bytes: int


def time_ours(work: Work, plans: Sequence[Plan]) -> Iterator[Timed]:
    """Times each plan, up to the first that does not fit."""
    config, num_texts, length, dtype = work
    texts = make_texts(num_texts, length, config.vocab_size)
    examples = np.tile(np.arange(num_texts), (MOST_STEPS, 1))
    model = base.Model(bert.FAMILY, config, num_classes=NUM_CLASSES)
    params = model.init_params(jax.random.key(0))
    source = Source(Dataset(texts.inputs, np.zeros(num_texts, np.int32)), tokens.pack_batches(texts, examples[:1], length))
    network = model.make_network(dtype=jnp.dtype(dtype))
    recipe = adamw_recipe(learning_rate=1e-5, head_learning_rate=1e-4, num_steps=MOST_STEPS)
    population = Population(network, params, recipe, source, source, loss=cross_entropy, metric=ACCURACY)
    batches = tokens.pack_batches(texts, examples, length)
    for plan in plans:
        population.plan = plan
        genomes = np.zeros((plan.members * plan.calls, config.num_hidden_layers + 1), bool)
        num_bytes = costs.bytes_of_cohort(
            population, plan, genomes[: plan.members], Replicate(params["head"], batches, jax.random.key(0))
        )
        if num_bytes > planning.SHARE_OF_MEMORY * device_memory():
            print(f"{planning.describe(plan)}: left out, as it takes {num_bytes / 2**30:.1f} GiB", flush=True)
            return

        def train(num_steps: int, genomes: np.ndarray = genomes) -> None:
            steps = jax.tree.map(lambda leaf: leaf[:num_steps], batches)
            for member in population.evaluate(genomes, Replicate(params["head"], steps, jax.random.key(0))):
                jax.block_until_ready(member.params)

        try:
            train(max(1, plan.steps))
            time = seconds_per_step(train)
        except MemoryError:
            return
        if population.plan != plan:  # memory ran out, and fewer were trained together
            return
        print(f"{planning.describe(plan)}: done", flush=True)
        yield Timed(plan, time, num_bytes)


def time_pytorch(work: Work, device: str, *, compiled: bool = False) -> float:
    """Seconds of a step of one model: forward, backward, clipping and fused AdamW; eager, or by `torch.compile`."""
    import torch
    from transformers import BertConfig, BertForSequenceClassification

    config, num_texts, length, dtype = work
    shared = {name: value for name, value in dataclasses.asdict(config).items() if value is not None}
    model: Any = BertForSequenceClassification(BertConfig(**shared))  # of two classes by default
    model.to(device).train()
    optimizer = torch.optim.AdamW(model.parameters(), 1e-5, weight_decay=0.01, fused=True)
    run: Any = torch.compile(model) if compiled else model
    ids = make_texts(num_texts, length, config.vocab_size).inputs["ids"].astype(np.int64).reshape(num_texts, length)
    batch = {"input_ids": torch.from_numpy(ids).to(device), "labels": torch.zeros(num_texts, dtype=torch.long, device=device)}

    def train(num_steps: int) -> None:
        loss = torch.zeros(())
        for _ in range(num_steps):
            optimizer.zero_grad()
            with torch.autocast(device, torch.bfloat16, enabled=dtype == "bfloat16"):
                loss = run(**batch).loss
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
        float(loss.detach())  # waits for the device

    train(1)
    return seconds_per_step(train)


def main(options: Options) -> None:
    process.keep_memory()
    device = jax.devices()[0]
    on_cpu = device.platform == "cpu"
    work = Work(MINILM, 8, 32, "float32") if on_cpu else Work(BERT_BASE, 32, 128, "bfloat16")
    print(f"{device.device_kind}; {work.num_texts} texts of {work.length} tokens a step, {work.dtype}", flush=True)
    plans = [Plan(members) for members in sorted(options.members)]
    measured: dict[str, tuple[int, float]] = {
        f"{plan.members} members" if plan.calls == 1 else "2 threads": (plan.members * plan.calls, seconds)
        for plan, seconds, _ in time_ours(work, [Plan(calls=2)] * on_cpu + plans)
    }
    if options.pytorch:
        measured["PyTorch"] = 1, time_pytorch(work, "cpu" if on_cpu else "cuda")
    flops = step_flops(work.config, np.zeros(work.config.num_hidden_layers + 1, bool), work.num_texts, work.length)
    peak = PEAK_TFLOPS.get(device.device_kind)
    rows = {}
    print(f"\n{'':12} {'ms a step':>10} {'member-steps/s':>15} {'TFLOP/s':>9} {'of peak':>8}")
    for name, (members, time) in measured.items():
        rate = members / time
        rows[name] = {"milliseconds": time * 1e3, "member_steps_per_second": rate, "tflops": rate * flops / 1e12}
        share = f"{rows[name]['tflops'] / peak:8.1%}" if peak else f"{'':8}"
        print(f"{name:12} {time * 1e3:10.2f} {rate:15.2f} {rows[name]['tflops']:9.3f} {share}")
    if options.out is not None:
        machine = {"device": device.device_kind, "versions": results.versions()}
        step = work._replace(config=dataclasses.asdict(work.config))._asdict()
        results.write_json(
            options.out, {"options": dataclasses.asdict(options), "machine": machine, "step": step, "rows": rows}
        )


if __name__ == "__main__":
    main(tyro.cli(Options))
