"""What a training step costs with a mask: seconds and floating-point operations, of gafreeze_jax and of PyTorch.

    python benchmarks/cost_of_a_mask.py

Needs torch. Takes about 6 minutes on 2 cores.

Prints, for each mask, milliseconds of a step (forward, backward, clipping, AdamW), the median of some rounds in which both take
turns on the CPU, and GFLOP of its matrix products. A step is 32 texts of 32 random tokens, so that there is no padding. What
our search does once is not timed: compiling, leaving out word vectors that no text uses, and running what is frozen at the
bottom.
"""

# pyright: reportMissingImports=false

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import pytorch_bert
import tyro
from steps import MOST_STEPS, NUM_CLASSES, make_texts, seconds_per_step, step_flops
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from gafreeze_jax.data import tokens
from gafreeze_jax.engine import process
from gafreeze_jax.engine.cohort import Replicate
from gafreeze_jax.engine.network import Batch, Dataset, Source
from gafreeze_jax.engine.optimizer import adamw_recipe
from gafreeze_jax.engine.population import Population
from gafreeze_jax.metrics import ACCURACY, cross_entropy
from gafreeze_jax.models import checkpoints, pretrained, vocabulary
from gafreeze_jax.runs import results

MASKS = {
    "train all": "0000000",
    "embeddings frozen": "1000000",
    "embeddings, layers 0-2 frozen": "1111000",
    "embeddings, layers 0-4 frozen": "1111110",
    "head only": "1111111",
    "embeddings, layers 3-5 frozen": "1000111",
}
NUM_TEXTS, NUM_TOKENS = 32, 32
NUM_BATCHES = 9
LEARNING_RATES = (1e-5, 1e-4)


@dataclass(frozen=True)
class Options:
    """Time a training step with some masks, in gafreeze_jax and in PyTorch."""

    rounds: int = 5
    """Measurements of each mask, of which the median is reported."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Of matrix products and activations; parameters are float32."""
    out: Path | None = None
    """JSON file to write."""


def main(options: Options) -> None:
    process.keep_memory()
    jax.config.update("jax_platforms", "cpu")
    folder = checkpoints.find_model("minilm")
    loaded = pretrained.load(folder, num_classes=NUM_CLASSES)
    config, params = loaded.config, loaded.params
    texts, one_text = (make_texts(num, NUM_TOKENS, config.vocab_size) for num in (NUM_BATCHES * NUM_TEXTS, 1))
    labels = np.zeros(NUM_BATCHES * NUM_TEXTS, np.int32)
    examples = np.resize(np.arange(len(labels)), (MOST_STEPS, NUM_TEXTS))

    finetuner = pytorch_bert.Finetuner(folder, params["head"], *LEARNING_RATES, options.dtype)
    batches = pytorch_bert.pad_batches(texts, labels, examples)

    trimmed, trimmed_params, used = vocabulary.trim(loaded.model, params, texts.inputs["ids"], one_text.inputs["ids"])
    members = Population(
        trimmed.make_network(dtype=jnp.dtype(options.dtype)),
        trimmed_params,
        adamw_recipe(learning_rate=LEARNING_RATES[0], head_learning_rate=LEARNING_RATES[1], num_steps=len(examples)),
        Source(Dataset(tokens.renumber(texts, used), labels), tokens.scoring_batches(texts)),
        Source(Dataset(tokens.renumber(one_text, used), labels[:1]), tokens.scoring_batches(one_text)),
        loss=cross_entropy,
        metric=ACCURACY,
    )
    steps: Batch = tokens.pack_batches(texts, examples, NUM_TOKENS)

    def train_ours(genome: np.ndarray, num_steps: int) -> None:
        run = Replicate(params["head"], jax.tree.map(lambda leaf: leaf[:num_steps], steps), jax.random.key(0))
        list(members.evaluate(genome[None], run))

    genomes = {name: np.array([gene == "1" for gene in genes]) for name, genes in MASKS.items()}
    ours: dict[str, list[float]] = {name: [] for name in genomes}
    pytorch: dict[str, list[float]] = {name: [] for name in genomes}
    for number in range(options.rounds + 1):
        for name, genome in genomes.items():
            ours[name].append(seconds_per_step(lambda num_steps, genome=genome: train_ours(genome, num_steps)))
            pytorch[name].append(seconds_per_step(lambda num_steps, genome=genome: finetuner.fit(genome, batches[:num_steps])))
        print(f"Round {number} of {options.rounds}" + ("" if number else ": compiling, not counted"), flush=True)

    rows = {}
    for name, genome in genomes.items():
        with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:  # it does not see fused attention
            finetuner.fit(genome, batches[:1])
        rows[name] = {
            "genome": MASKS[name],
            "seconds": {"ours": ours[name][1:], "pytorch": pytorch[name][1:]},
            "flops": {"ours": step_flops(config, genome, NUM_TEXTS, NUM_TOKENS), "pytorch": counter.get_total_flops()},
        }
    machine = pytorch_bert.describe_machine()
    print_result(machine, rows)
    if options.out is not None:
        results.write_json(options.out, {"options": dataclasses.asdict(options), "machine": machine, "masks": rows})


def print_result(machine: dict[str, Any], rows: dict[str, dict[str, Any]]) -> None:
    print(f"\n{pytorch_bert.machine_line(machine)}\n")
    print(f"{'':38} {'ms a step':^25}   {'GFLOP a step':^25}")
    print(f"{'':38} {'ours':>8} {'PyTorch':>8} {'ratio':>7}   {'ours':>8} {'PyTorch':>8} {'ratio':>7}")
    for name, row in rows.items():
        columns = []
        for values, unit in ((row["seconds"], 1e3), (row["flops"], 1e-9)):
            ours, pytorch = (float(np.median(values[side])) * unit for side in ("ours", "pytorch"))
            columns.append(f"{ours:8.2f} {pytorch:8.2f} {pytorch / ours:7.2f}")
        print(f"{name:30} {row['genome']} {'   '.join(columns)}")


if __name__ == "__main__":
    main(tyro.cli(Options))
