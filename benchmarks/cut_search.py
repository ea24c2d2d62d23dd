"""How long does a whole search take with a network that `cut` took apart, beside the same network as a chain made by hand?

    python benchmarks/cut_search.py [--rounds 3]

The networks are a BERT (6 layers of width 384, 64 tokens a text), whose chain is composed into one function and cut again,
and CIFAR's ResNet-20, an ordinary Flax module where it is cut. Images and texts are of equal length, so that there is no
padding; the parameters are random, and made before the clock starts. Each search runs in a process of its own with an empty
compile cache, by turns; of several rounds the fastest counts, as other work on the machine only adds to it. Printed are the
seconds of the whole run and of its phases, and how many members were evaluated and how many finalists there were. A round
takes about 5 minutes on 2 cores.
"""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import cut_bert
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import tyro
from jax import Array
from machine import describe_machine
from steps import make_texts

from gafreeze_jax import cut, masking, metrics, options
from gafreeze_jax.data import tokens
from gafreeze_jax.engine import process
from gafreeze_jax.engine.network import Dataset, Source
from gafreeze_jax.models import base, bert, from_function, modules, resnet
from gafreeze_jax.runs import results
from gafreeze_jax.runs.main import carry_out
from gafreeze_jax.tasks.base import Problem, Setup, block_genes, make_problem

NUM_TRAIN, NUM_SCORED, NUM_CLASSES = 128, 64, 2
NetworkName = Literal["bert", "resnet"]
Way = Literal["by hand", "cut"]
WAYS: tuple[Way, ...] = ("by hand", "cut")


@dataclass(frozen=True, kw_only=True)
class Options:
    """Time searches."""

    networks: tuple[NetworkName, ...] = ("bert", "resnet")
    rounds: int = 3
    layers: int = 6
    """Of the BERT; ResNet has three blocks for each two of them."""
    hidden: int = 384
    tokens: int = 64
    gens: int = 3
    only: Way | None = None
    """Search once, in this process, and print the seconds as JSON."""
    out: Path | None = None
    """JSON file to write."""


Prepare = Callable[[options.Options], Setup]


def bert_setup(given: Options, way: Way) -> Prepare:
    config = bert.BertConfig(
        vocab_size=1000,
        hidden_size=given.hidden,
        num_hidden_layers=given.layers,
        num_attention_heads=4,
        intermediate_size=4 * given.hidden,
    )
    model = base.Model(bert.FAMILY, config, num_classes=NUM_CLASSES)
    params = model.init_params(jax.random.key(0))
    train, validation = (make_texts(num, given.tokens, config.vocab_size) for num in (NUM_TRAIN, NUM_SCORED))
    rows = [Dataset(texts.inputs["ids"].reshape(-1, given.tokens), _labels(texts.lengths)) for texts in (train, validation)]

    def prepare(run: options.Options) -> Setup:
        by_hand = model.make_network()
        if way == "cut":
            return as_setup(cut_problem(cut_bert.as_function(by_hand), params, cut_bert.RULES, rows[0], rows[1], run))
        genes = block_genes(by_hand, params)
        problem = Problem(
            network=by_hand,
            params=params,
            train=_source(train),
            validation=_source(validation),
            make_head=model.init_head,
            make_batches=tokens.batch_maker(train, run.batch_size, run.epochs),
            genes=genes,
            count_trainable=lambda mask: masking.count_trainable(params, genes, mask),
        )
        return as_setup(problem)

    return prepare


def _source(texts: tokens.Tokens) -> Source:
    return Source(Dataset(texts.inputs, _labels(texts.lengths)), tokens.scoring_batches(texts))


def _labels(examples: Any) -> np.ndarray:
    return np.arange(len(examples), dtype=np.int32) % NUM_CLASSES


def resnet_setup(given: Options, way: Way) -> Prepare:
    rng = np.random.default_rng(0)
    images = [rng.integers(0, 256, (num, 32, 32, 3)).astype(np.uint8) for num in (NUM_TRAIN, NUM_SCORED)]
    train, validation = (Dataset(pixels, _labels(pixels)) for pixels in images)
    if way == "by hand":
        model = base.Model(resnet.FAMILY, resnet.cifar_config(2 + 3 * given.layers), num_classes=NUM_CLASSES)
        params = model.init_params(jax.random.key(0))
        return lambda run: as_setup(make_problem(model.make_network(), params, train, validation, run))
    module = ResNet(given.layers // 2)
    function = modules.as_function(module, module.init(jax.random.key(0), images[0][:1]))
    rules = {r".*/(stem|layer\d_\d)[_/].*": r"\1", ".*/head/.*": None}
    return lambda run: as_setup(cut_problem(function.apply, function.params, rules, train, validation, run))


class ResidualBlock(nn.Module):
    """Of CIFAR's ResNets, as anybody would write it."""

    features: int
    stride: int

    @nn.compact
    def __call__(self, x, train):
        h = x
        for number, stride in enumerate((self.stride, 1), start=1):
            h = nn.relu(h) if number > 1 else h
            h = nn.Conv(self.features, (3, 3), stride, padding=1, use_bias=False, name=f"conv{number}")(h)
            h = nn.BatchNorm(not train, momentum=0.9, name=f"norm{number}")(h)
        missing = (self.features - x.shape[-1]) // 2
        return nn.relu(h + jnp.pad(x[:, :: self.stride, :: self.stride], ((0, 0), (0, 0), (0, 0), (missing, missing))))


class ResNet(nn.Module):
    """CIFAR's ResNet with a number of blocks in each stage."""

    depth: int

    @nn.compact
    def __call__(self, images, train=False):
        x = images.astype(jnp.float32) / 127.5 - 1
        x = nn.Conv(16, (3, 3), padding=1, use_bias=False, name="stem_conv")(x)
        x = nn.relu(nn.BatchNorm(not train, momentum=0.9, name="stem_norm")(x))
        for stage, features in enumerate((16, 32, 64), start=1):
            for number in range(self.depth):
                stride = 2 if stage > 1 and number == 0 else 1
                x = ResidualBlock(features, stride, name=f"layer{stage}_{number}")(x, train)
        return nn.Dense(NUM_CLASSES, name="head")(x.mean((1, 2)))


def cut_problem(
    function: Any, params: Any, rules: Mapping[str, str | None], train: Dataset, validation: Dataset, run: options.Options
) -> Problem:
    example = jax.tree.map(lambda leaf: leaf[:2], train.inputs)
    genes = from_function.in_order_of_use(function, params, masking.make_genes(params, rules), example)
    network = cut(function, params, genes, example)
    assert all(block.apply is not None for block in network.blocks)
    return make_problem(network, from_function.split(params, genes), train, validation, run, genes=genes)


def as_setup(problem: Problem) -> Setup:
    """All members are level, so that no rounding leads the two searches different ways; nothing less is computed."""

    def zeros(outputs: Array, targets: Array) -> Array:
        return 0 * outputs.sum(-1)

    level = problem.task._replace(loss=zeros, metric=metrics.ACCURACY._replace(per_example=zeros))
    problem = problem._replace(task=level)
    return Setup(
        problem=problem,
        about=[],
        network=problem.network,
        test=problem.validation,
        num_test=NUM_SCORED,
        restore=lambda params: params,
        save=lambda folder, params: None,
    )


def search(given: Options, way: Way) -> dict[str, float]:
    """Seconds of a search, of the whole run and of its phases, and how many members there were."""
    prepare = {"bert": bert_setup, "resnet": resnet_setup}[given.networks[0]](given, way)
    with tempfile.TemporaryDirectory() as folder:
        run = options.Options(
            gens=given.gens,
            epochs=2,
            batch_size=16,
            train_examples=NUM_TRAIN,
            finalist_seeds=2,
            out=Path(folder) / "run",
            quiet=True,
        )
        carry_out("benchmark", prepare, run)
        result = json.loads((Path(folder) / "run" / "result.json").read_text(encoding="utf-8"))
    counts = {"members evaluated": result["num_evaluations"], "rows of finalists": len(result["results"])}
    return {"all": result["seconds"], **result["seconds_of_phases"], **counts}


def search_alone(given: Options, network: str, way: Way) -> dict[str, float]:
    """The same, in a process of its own that has nothing compiled."""
    with tempfile.TemporaryDirectory() as cache:
        words = ["--networks", network, "--only", way, "--layers", given.layers, "--hidden", given.hidden]
        words += ["--tokens", given.tokens, "--gens", given.gens]
        done = subprocess.run(
            [sys.executable, __file__, *map(str, words)],
            env=os.environ | {"XDG_CACHE_HOME": cache, "JAX_COMPILATION_CACHE_DIR": cache},
            stdout=subprocess.PIPE,
            text=True,
            check=True,
        )
    return json.loads(done.stdout.splitlines()[-1])


def main(given: Options) -> None:
    if given.only is not None:
        process.keep_memory()
        print(json.dumps(search(given, given.only)))
        return
    rows: dict[str, dict[str, dict[str, float]]] = {}
    for network in given.networks:
        taken: dict[Way, list[dict[str, float]]] = {way: [] for way in WAYS}
        for _ in range(given.rounds):
            for way in WAYS:
                taken[way].append(search_alone(given, network, way))
        rows[network] = {way: min(runs, key=lambda run: run["all"]) for way, runs in taken.items()}
        by_hand, by_cut = (rows[network][way] for way in WAYS)
        print(f"{network}: a search takes {by_cut['all'] / by_hand['all']:.2f} times as long where the network was cut")
        print(f"{'seconds':>26} {'by hand':>9} {'cut':>9}")
        for phase in by_hand:
            digits = 0 if isinstance(by_hand[phase], int) else 1
            print(f"{phase:>26} {by_hand[phase]:9.{digits}f} {by_cut[phase]:9.{digits}f}", flush=True)
    if given.out is not None:
        facts = {"options": asdict(given) | {"out": None}, "machine": describe_machine(), "rows": rows}
        results.write_json(given.out, facts)


if __name__ == "__main__":
    main(tyro.cli(Options))
