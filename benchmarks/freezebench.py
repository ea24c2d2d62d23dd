"""FreezeBench: every mask of small networks, trained with several seeds; and the tables that this gives.

    python benchmarks/freezebench.py minilm-sst2 --data FOLDER

FOLDER has the data set's files, such as train.tsv and test.tsv. Prints a line for every part that is done, and writes
benchmarks/tables/minilm-sst2.npz after each, so that it goes on where it was stopped. The tables there were made on a GPU,
in a minute or two each; on 2 CPU cores the same takes hours.

Of every mask, and for each seed, a table has the accuracy on the validation set after the first and second epoch and after
the last one, and on the test set after the last one. A seed decides the head's initialisation, the order of the batches and
dropout. `search_quality.py` replays searches on the tables.
"""

import dataclasses
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np
import tyro

sys.path.insert(0, str(Path(__file__).parent.parent / "experiments"))
import itertools
from collections.abc import Iterator
from typing import NamedTuple

import run_bert
import run_resnet
from tables import TABLES, Table, load_table, save_table

from gafreeze_jax import options as shared_options
from gafreeze_jax.data import images
from gafreeze_jax.engine import costs, planning
from gafreeze_jax.engine.cohort import Plan, Replicate, untrained
from gafreeze_jax.engine.network import Block, Dataset, Network, Source
from gafreeze_jax.engine.optimizer import adamw_recipe
from gafreeze_jax.engine.population import Population
from gafreeze_jax.engine.scoring import score
from gafreeze_jax.models import checkpoints, plain
from gafreeze_jax.options import compute_dtype
from gafreeze_jax.report import summary
from gafreeze_jax.runs import results
from gafreeze_jax.space import Genome, Space, as_genome
from gafreeze_jax.tasks import pretraining
from gafreeze_jax.tasks.base import Setup, make_problem, make_source

SETTINGS = shared_options.Options(train_examples=512, validation_examples=512, epochs=4, batch_size=32)
STOPS = (16, 32, 64)  # steps: epochs 1, 2 and 4
COUNTED = ("train_examples", "validation_examples", "epochs", "batch_size", "learning_rate", "head_learning_rate")
MASKS_OF_A_PART = 128


@dataclass(frozen=True)
class Options:
    """Train every mask of a network with several seeds."""

    table: tyro.conf.Positional[
        Literal["minilm-sst2", "minilm-trec", "resnet20-cifar10", "resnet20-fashion_mnist", "cnn-fashion_mnist"]
    ]
    """Network and data set."""
    data: str
    """The data set: a folder with train and test files."""
    model: str = "minilm"
    """minilm (embedded), or a folder or .safetensors file with the pretrained network. The CNN is pretrained here."""
    seeds: int = 3
    """Seeds of each mask."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Of activations and products. auto: float32 on CPU, else bfloat16."""
    plan: str = "auto"
    """How masks are trained, as in the experiments. auto: 2 at the same time on a CPU, else 64 stacked."""
    tables: Path = TABLES
    """Where the table is written."""


def bert_problem(options: Options) -> Setup:
    """MiniLM; all words are kept, as the test set's are scored together with the masks."""
    given: dict[str, Any] = {"text_columns": ("sentence",), "label_column": "label", **common(options)}
    return run_bert.prepare(run_bert.Options(model=options.model, **given), trim=False)


def resnet_problem(options: Options) -> Setup:
    """ResNet-20 for CIFAR-10."""
    return run_resnet.prepare(run_resnet.Options(model=options.model, **common(options)))


CNN = {
    "conv_0": (3, 3, 1, 8),
    "conv_1": (3, 3, 8, 16),
    "conv_2": (3, 3, 16, 16),
    "conv_3": (3, 3, 16, 32),
    "conv_4": (3, 3, 32, 32),
    "dense_0": (7 * 7 * 32, 64),
    "dense_1": (64, 32),
    "head": (32, 5),
}


def cnn_problem(options: Options) -> Setup:
    """A small CNN in float32, pretrained on the classes 0 to 4; the masks are for the classes 5 to 9."""
    single, pooled = plain.convolution, plain.pooled_convolution
    functions = (single, pooled, single, pooled, single, plain.hidden, plain.hidden)
    network = Network(tuple(map(Block, CNN, functions)), plain.linear)
    data = images.load_images(options.data, images.Frame(28, 1))
    splits = [Dataset(np.float32(split.images / 255), split.labels) for split in data[:3]]
    low, high = (
        [Dataset(inputs[targets // 5 == half], targets[targets // 5 == half] % 5) for inputs, targets in splits]
        for half in range(2)
    )
    longer = dataclasses.replace(SETTINGS, epochs=3, learning_rate=2e-3)
    first = make_problem(network, plain.init_params(jax.random.key(0), CNN), low[0], low[1], longer)
    pretrained = pretraining.pretrain(first, longer)
    limits = (SETTINGS.train_examples, SETTINGS.validation_examples, None)
    train, validation, test = (Dataset(*(leaf[:limit] for leaf in part)) for part, limit in zip(high, limits, strict=True))

    def make_head(key: jax.Array) -> dict:
        return plain.init_params(key, CNN)["head"]

    return Setup(
        problem=make_problem(network, pretrained.params, train, validation, SETTINGS, make_head=make_head),
        about=[f"Pretrained to {pretrained.score:.1%} accuracy on the classes 0 to 4"],
        network=network,
        test=make_source(test),
        num_test=len(test.targets),
        restore=lambda params: params,
        save=checkpoints.write_tree,
    )


PROBLEMS = {"minilm": bert_problem, "resnet20": resnet_problem, "cnn": cnn_problem}


def common(options: Options) -> dict[str, Any]:
    """What the experiments' own options are set to."""
    return dataclasses.asdict(SETTINGS) | {"data": options.data, "dtype": options.dtype}


class Curve(NamedTuple):
    """How a mask did while it was trained.

    Attributes:
      validation: [stops, 2] accuracy and mean loss.
      test: [2], after the last stop.
    """

    genome: Genome
    validation: np.ndarray
    test: np.ndarray


def make_population(prepared: Setup, plan: Plan) -> Population:
    problem = prepared.problem
    recipe = adamw_recipe(
        learning_rate=SETTINGS.learning_rate, head_learning_rate=SETTINGS.head_learning_rate, num_steps=STOPS[-1]
    )
    sources = problem.train, problem.validation
    return Population(
        problem.network, problem.params, recipe, *sources, loss=problem.task.loss, metric=problem.task.metric, plan=plan
    )


def train(population: Population, masks: np.ndarray, run: Replicate, test: Source) -> Iterator[Curve]:
    """Trains masks [P, G], scores them on the way, and keeps none; in an order of their own."""
    members = untrained(masks)
    validation: dict[Genome, list[tuple[float, float]]] = {member.genome: [] for member in members}
    for stop in STOPS:
        members = list(itertools.chain.from_iterable(population.advance(members, run, stop)))
        for member in members:
            validation[member.genome].append((member.score, member.loss))
    for member in members:
        params = {name: member.params[name] for name in member.params}
        scores = score(population.network, params, test, loss=population.trainer.loss, metric=population.metric)
        yield Curve(member.genome, np.array(validation[member.genome]), np.array([leaf.mean() for leaf in scores]))


def empty_table(prepared: Setup, population: Population, options: Options) -> Table:
    """A table in which nothing has been trained yet."""
    problem = prepared.problem
    masks = Space(problem.network.names).all_genomes()
    run = problem.replicate(0)
    if run.num_steps != STOPS[-1]:
        raise ValueError(f"{options.data}: expected {STOPS[-1]} training steps, got {run.num_steps}: too few examples")
    return Table(
        problem.network.names,
        STOPS,
        np.full((len(masks), options.seeds, len(STOPS), 2), np.nan, np.float32),
        np.full((len(masks), options.seeds, 2), np.nan, np.float32),
        np.full(len(masks), np.nan),
        np.array([problem.count_trainable(as_genome(mask)) for mask in masks]),
        {
            "table": options.table,
            "settings": {name: getattr(SETTINGS, name) for name in COUNTED},
            "dtype": "float32" if options.table.startswith("cnn") else compute_dtype(options.dtype).name,
            "device": jax.devices()[0].device_kind,
            "versions": results.versions(),
            "num_test": prepared.num_test,
        },
    )


def main(options: Options) -> None:
    planning.keep_compiled_programs()
    path = options.tables / f"{options.table}.npz"
    plan = "members=64" if jax.default_backend() != "cpu" else "calls=2"
    try:
        prepared = PROBLEMS[options.table.split("-")[0]](options)
        population = make_population(prepared, planning.parse(plan if options.plan == "auto" else options.plan))
        table = load_table(path) if path.exists() else empty_table(prepared, population, options)
    except (ValueError, OSError) as error:
        sys.exit(summary.fail(error))
    test = prepared.test
    space = Space(table.genes)
    masks = space.frozen(space.all_genomes())
    print(*prepared.about, sep="\n", flush=True)
    for seed in range(options.seeds):
        run = prepared.problem.replicate(seed)
        missing = [mask for mask in range(len(masks)) if not table.done[mask, seed]]
        for first in range(0, len(missing), MASKS_OF_A_PART):
            part = missing[first : first + MASKS_OF_A_PART]
            start = time.perf_counter()
            for curve in train(population, masks[part], run, test):
                number = int(space.index(curve.genome))
                table.validation[number, seed], table.test[number, seed] = curve.validation, curve.test
            save_table(path, table)
            print(
                f"seed {seed}: {len(part)} masks in {time.perf_counter() - start:.1f} s, {table.done.mean():.1%} done",
                flush=True,
            )
    if jax.default_backend() == "cpu" and np.isnan(table.flops).any():  # so that tables made elsewhere are comparable
        table.flops[:] = list(map(costs.step_flops(population, prepared.problem.replicate(0)), masks))
        save_table(path, table)
    describe(table)


def describe(table: Table) -> None:
    """Prints some masks' mean accuracies."""
    validation, test = (np.nanmean(scores[..., 0], axis=1) for scores in (table.validation, table.test))
    num = len(table.genes)
    best = int(test.argmax())
    prefixes = [2**num - 2 ** (num - depth) for depth in range(num + 1)]
    print(f"\n{'mask':{num}} {'validation after':>{8 * len(table.stops)}} {'test':>7}")
    for mask in dict.fromkeys([*prefixes, best]):
        curve = "".join(f"{accuracy:8.4f}" for accuracy in validation[mask])
        print(f"{mask:0{num}b} {curve} {test[mask]:7.4f}" + (" best" if mask == best else ""))


if __name__ == "__main__":
    main(tyro.cli(Options))
