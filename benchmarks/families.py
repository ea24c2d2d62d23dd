"""Milliseconds of a training step of one model of each family, ours and PyTorch's eager one, side by side.

    python benchmarks/families.py

Networks have 4 layers of width 128 and random weights; a step is 8 texts of 32 tokens, or 8 images of 32 x 32 pixels, in
float32. Both sides do the same: forward, backward, clipping by the norm, AdamW; once with everything trained, once with the
embeddings and the lower half of the layers frozen. The four take turns, and of each the best of several rounds counts, as other
work on the machine only adds to it. Both sides share a process that keeps freed memory. Needs torch. Takes about 20 minutes on
2 cores.

Prints a line for each family. Families that compute as another one does are left out.
"""

# pyright: reportMissingImports=false

import json
import re
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
import tyro
from machine import describe_machine
from steps import make_texts

from gafreeze_jax.data import tokens
from gafreeze_jax.data.batches import make_batches
from gafreeze_jax.engine import planning, process
from gafreeze_jax.engine.cohort import Plan, Replicate
from gafreeze_jax.engine.network import Batch, Dataset, Source
from gafreeze_jax.engine.optimizer import adamw_recipe
from gafreeze_jax.engine.population import Population
from gafreeze_jax.metrics import ACCURACY, cross_entropy
from gafreeze_jax.models import base, configs, pretrained
from gafreeze_jax.runs import results

NUM_CLASSES, NUM_EXAMPLES, LENGTH, IMAGE_SIZE = 2, 8, 32, 32
FEW, MANY = 16, 64  # steps
TRAIN_ALL, LOWER_HALF = "train all", "lower half frozen"
Train = Callable[[int], None]  # a number of steps
LAYERS = {"hidden_size": 128, "num_hidden_layers": 4, "num_attention_heads": 4}
TEXTS = LAYERS | {"intermediate_size": 512, "vocab_size": 1000, "max_position_embeddings": 64, "pad_token_id": 0}
IMAGES = LAYERS | {"image_size": IMAGE_SIZE, "patch_size": 8}
CONFIGS: dict[str, dict[str, Any]] = {
    **dict.fromkeys(("bert", "roberta", "electra", "modernbert", "llama", "gpt_neox"), TEXTS),
    "albert": TEXTS | {"embedding_size": 64},
    "mpnet": TEXTS,
    "deberta-v2": TEXTS
    | {
        "relative_attention": True,
        "position_buckets": 32,
        "norm_rel_ebd": "layer_norm",
        "share_att_key": True,
        "pos_att_type": ["p2c", "c2p"],
        "position_biased_input": False,
    },
    "distilbert": {
        "dim": 128,
        "n_layers": 4,
        "n_heads": 4,
        "hidden_dim": 512,
        "vocab_size": 1000,
        "max_position_embeddings": 64,
    },
    "gpt2": {"n_embd": 128, "n_layer": 4, "n_head": 4, "vocab_size": 1000, "n_positions": 64, "pad_token_id": 0},
    "mistral": TEXTS | {"num_key_value_heads": 2},
    "qwen3": TEXTS | {"num_key_value_heads": 2, "head_dim": 32},
    "vit": IMAGES | {"intermediate_size": 512},
    "dinov2": IMAGES,
    "convnext": {"hidden_sizes": [64, 128], "depths": [2, 2], "num_stages": 2, "image_size": IMAGE_SIZE},
    "resnet": {"embedding_size": 32, "hidden_sizes": [64, 128], "depths": [2, 2], "layer_type": "basic"},
}


@dataclass(frozen=True)
class Options:
    """Time a training step of each family, ours and PyTorch's."""

    families: tuple[str, ...] = tuple(CONFIGS)
    """By their model_type."""
    rounds: int = 5
    """In each of which all four take their turn."""
    plan: str = "steps=0"
    """Of ours, as the scripts' --plan: block by block, as a search of large networks trains, or "steps=16", in one program."""
    out: Path | None = None
    """JSON file to write. Of families that it has already, and that are not timed, figures are kept."""


def make_ours(model_type: str) -> tuple[base.Model, Dataset, Callable[[np.ndarray], Batch]]:
    """A model, its data, and batches of examples [steps, B]."""
    family = next(family for family in pretrained.FAMILIES if family.model_type == model_type)
    values, problems = configs.check(CONFIGS[model_type], family.config)
    if problems:
        raise ValueError(f"{model_type}: {problems}")
    model = base.Model(family, family.config(**values), num_classes=NUM_CLASSES)
    labels = np.zeros(NUM_EXAMPLES, np.int32)
    if family.kind == "images":
        return model, Dataset(make_images(), labels), make_batches
    texts = make_texts(NUM_EXAMPLES, LENGTH, model.config.vocab_size)
    return model, Dataset(texts.inputs, labels), lambda examples: tokens.pack_batches(texts, examples, LENGTH)


def make_images() -> np.ndarray:
    shape = (NUM_EXAMPLES, IMAGE_SIZE, IMAGE_SIZE, 3)
    return np.random.default_rng(0).integers(256, size=shape).astype(np.uint8)


def ours(model_type: str, plan: Plan) -> dict[str, Train]:
    """Trains everything, or the upper half."""
    model, data, batch = make_ours(model_type)
    network, params = model.make_network(), model.init_params(jax.random.key(0))
    examples = np.tile(np.arange(NUM_EXAMPLES), (MANY, 1))
    source, batches = Source(data, batch(examples[:1])), batch(examples)
    recipe = adamw_recipe(learning_rate=1e-5, head_learning_rate=1e-4, num_steps=MANY)
    population = Population(network, params, recipe, source, source, loss=cross_entropy, metric=ACCURACY, plan=plan)
    layers = [name for name in network.names if re.search(r"\d", name)]
    num_lower = network.names.index(layers[len(layers) // 2])

    def train_with(genome: np.ndarray) -> Train:
        def train(num_steps: int) -> None:
            steps = jax.tree.map(lambda leaf: leaf[:num_steps], batches)
            for member in population.evaluate(genome, Replicate(params["head"], steps, jax.random.key(0))):
                jax.block_until_ready(member.params)

        return train

    places = np.arange(len(network.names))[None]
    return {TRAIN_ALL: train_with(places < 0), LOWER_HALF: train_with(places < num_lower)}


def pytorch(model_type: str) -> dict[str, Train]:
    """The same of PyTorch."""
    import torch
    import transformers

    images = next(family for family in pretrained.FAMILIES if family.model_type == model_type).kind == "images"
    auto = transformers.AutoModelForImageClassification if images else transformers.AutoModelForSequenceClassification
    config = transformers.AutoConfig.for_model(model_type, num_labels=NUM_CLASSES, **CONFIGS[model_type])
    labels = torch.zeros(NUM_EXAMPLES, dtype=torch.long)
    if images:
        pixels = torch.from_numpy(make_images().transpose(0, 3, 1, 2).astype(np.float32) / 255)
        batch = {"pixel_values": pixels, "labels": labels}
    else:
        ids = make_texts(NUM_EXAMPLES, LENGTH, 1000).inputs["ids"].astype(np.int64).reshape(NUM_EXAMPLES, LENGTH)
        batch = {"input_ids": torch.from_numpy(np.maximum(ids, 2)), "labels": labels}

    def train_with(half: bool) -> Train:
        model: Any = auto.from_config(config).train()
        for name, parameter in model.named_parameters():
            parameter.requires_grad = not (half and _is_lower(name, model_type))
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        optimizer = torch.optim.AdamW(trained, 1e-5, weight_decay=0.01, fused=True)

        def train(num_steps: int) -> None:
            for _ in range(num_steps):
                optimizer.zero_grad()
                model(**batch).loss.backward()
                torch.nn.utils.clip_grad_norm_(trained, 1.0)
                optimizer.step()

        return train

    return {TRAIN_ALL: train_with(False), LOWER_HALF: train_with(True)}


def _is_lower(name: str, model_type: str) -> bool:
    """Whether a parameter of PyTorch's is in the embeddings or in the lower half of the layers (ALBERT's are one)."""
    number = re.search(r"\.(\d+)\.", name)
    half = {"albert": 0, "convnext": 1, "resnet": 1}.get(model_type, 2)  # counted in stages
    return re.search(r"embed|relative|\bw[tp]e\b", name) is not None or (number is not None and int(number[1]) < half)


def milliseconds_per_step(sides: dict[str, dict[str, Train]], rounds: int) -> dict[str, dict[str, float]]:
    """For each mask what a step takes on each side, by turns: the longer of two runs less the shorter, each the best of all."""
    best: dict[tuple[str, str, int], float] = {}
    for number in range(rounds + 1):
        for mask in (TRAIN_ALL, LOWER_HALF):
            for side, trains in sides.items():
                for num_steps in (FEW, MANY):
                    start = time.perf_counter()
                    trains[mask](num_steps)
                    seconds = time.perf_counter() - start
                    if number:  # the first round compiles
                        best[mask, side, num_steps] = min(seconds, best.get((mask, side, num_steps), seconds))
    return {
        mask: {side: 1e3 * (best[mask, side, MANY] - best[mask, side, FEW]) / (MANY - FEW) for side in sides}
        for mask in (TRAIN_ALL, LOWER_HALF)
    }


def main(options: Options) -> None:
    process.keep_memory()
    print(f"{'':12} {'everything trained':>28} {'lower half frozen':>28}")
    print(f"{'ms a step':12} {'ours':>9} {'PyTorch':>9} {'ratio':>8} {'ours':>9} {'PyTorch':>9} {'ratio':>8}")
    rows = {}
    for name in options.families:
        sides = {"ours": ours(name, planning.parse(options.plan)), "pytorch": pytorch(name)}
        rows[name] = milliseconds_per_step(sides, options.rounds)
        cells = (f"{row['ours']:9.2f} {row['pytorch']:9.2f} {row['ours'] / row['pytorch']:8.2f}" for row in rows[name].values())
        print(f"{name:12}", *cells, flush=True)
    if options.out is not None:
        before = json.loads(options.out.read_text(encoding="utf-8"))["rows"] if options.out.exists() else {}
        rows = {name: (before | rows)[name] for name in CONFIGS if name in before | rows}
        facts = {"options": asdict(options) | {"families": list(rows)}, "machine": describe_machine()}
        results.write_json(options.out, facts | {"rows": rows})


if __name__ == "__main__":
    main(tyro.cli(Options))
