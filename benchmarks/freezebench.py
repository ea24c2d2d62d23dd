"""FreezeBench: every genome of small networks, trained with several seeds; and the tables that this gives.

    python benchmarks/freezebench.py minilm-sst2 --data FOLDER
    python benchmarks/freezebench.py resnet14-digits_noise

FOLDER has the data set's files, such as train.tsv and test.tsv; the digits are embedded. Prints a line for every part that is
done, and writes benchmarks/tables/minilm-sst2.npz after each, so that it goes on where it was stopped, also with more --seeds.

Of every genome, and for each seed, a table has the accuracy on the validation set after some steps and after the last one, and
on the test set after the last one. A seed decides a fresh head's initialisation, the order of the batches and dropout.
`search_quality.py` replays searches on the tables. There are three kinds:

- new tasks, with a fresh head: all masks of MiniLM, ResNet-20 and a CNN, at one learning rate
- FreezeBench-Shift, with the head kept as a gene: a network that was trained on clean images or texts is adapted to few shifted
  ones (`shifts.py`); all masks, each at several learning rates. A gene has two or three blocks.
- FreezeBench-Rates, with a fresh head: each gene, three blocks of the CNN or of MiniLM, at several rates or frozen, and all of
  that at several learning rates
"""

import csv
import dataclasses
import functools
import itertools
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import numpy as np
import tyro

sys.path.insert(0, str(Path(__file__).parent.parent / "experiments"))
import run_bert
import run_resnet
import shifts
from tables import TABLES, Table, load_table, save_table

from gafreeze_jax import options as shared_options
from gafreeze_jax.data import images
from gafreeze_jax.engine import costs, planning, process
from gafreeze_jax.engine.cohort import Member, Plan, Replicate, untrained
from gafreeze_jax.engine.network import Block, Dataset, Network, Source
from gafreeze_jax.engine.optimizer import adamw_recipe
from gafreeze_jax.engine.population import Population
from gafreeze_jax.engine.scoring import score
from gafreeze_jax.models import checkpoints, plain, pretrained
from gafreeze_jax.options import compute_dtype
from gafreeze_jax.report import summary
from gafreeze_jax.runs import results
from gafreeze_jax.runs.fingerprint import fingerprint_of_model
from gafreeze_jax.space import Genome, Space
from gafreeze_jax.tasks import heads, pretraining, text
from gafreeze_jax.tasks import images as image_task
from gafreeze_jax.tasks.base import Setup, make_problem, make_source

COUNTED = ("train_examples", "validation_examples", "epochs", "batch_size", "learning_rate", "head_learning_rate")
GENOMES_OF_A_PART = 16  # at least, after which the table is written
NUM_MISSPELT = 600  # texts to test on


@dataclass(frozen=True)
class Options:
    """Train every genome of a network with several seeds."""

    table: tyro.conf.Positional[
        Literal[
            "minilm-sst2",
            "minilm-trec",
            "minilm-sst2_typing_errors",
            "resnet20-cifar10",
            "resnet20-fashion_mnist",
            "cnn-fashion_mnist",
            "resnet14-digits_noise",
            "resnet14-digits_contrast",
            "resnet14-digits_blur",
            "resnet14-digits_inversion",
            "resnet14-digits_labels",
            "resnet20-cifar10_noise",
            "resnet20-cifar10_contrast",
            "resnet20-cifar10_blur",
            "resnet20-cifar10_labels",
            "cnn-fashion_mnist_rates",
            "minilm-trec_rates",
        ]
    ]
    """Network and data set."""
    data: str = "digits"
    """The data set: a folder with train and test files. For shifted CIFAR-10, its test.npz; not needed for the digits."""
    model: str = "minilm"
    """minilm (embedded), or a folder or .safetensors file with the pretrained network. The CNN and ResNet-14 are pretrained
    here."""
    seeds: int = 3
    """Seeds of each genome."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Of activations and products. auto: as in the experiments."""
    plan: str = "auto"
    """How members are trained, as in the experiments. auto: 2 at the same time on a CPU, else 64 stacked."""
    tables: Path = TABLES
    """Where the table is written."""


class Bench(NamedTuple):
    """How a table is made.

    Attributes:
      prepare: network and data.
      settings: how members are trained.
      stops: steps after which they are scored.
      levels, rates: of the genomes.
      blocks_of_gene: how many neighbouring blocks share a gene; a kept head is a gene of its own.
    """

    prepare: Callable[[Options, shared_options.Options], Setup]
    settings: shared_options.Options
    stops: tuple[int, ...]
    levels: tuple[float, ...] = (1.0, 0.0)
    rates: tuple[float, ...] = (1.0,)
    blocks_of_gene: int = 1


def bert_problem(options: Options, settings: shared_options.Options) -> Setup:
    """MiniLM; all words are kept, as the test set's are scored together with the masks."""
    given: dict[str, Any] = {"text_columns": ("sentence",), "label_column": "label", **common(options, settings)}
    return run_bert.prepare(run_bert.Options(model=options.model, head="fresh", **given), trim=False)


def typing_errors_problem(options: Options, settings: shared_options.Options) -> Setup:
    """MiniLM, fine-tuned on clean texts as a user would, for misspelt ones of the other splits, with the head it has then."""
    columns: dict[str, Any] = {"text_columns": ("sentence",), "label_column": "label"}
    learning: dict[str, Any] = {"train_examples": 2048, "epochs": 2, "batch_size": 32, "learning_rate": 2e-4}
    given = run_bert.Options(model=options.model, data=options.data, head="fresh", **columns, **learning)
    data = text.load_data(given)
    clean = text.prepare_classification(given, pretrained.read(checkpoints.find_model(given.model), text.FAMILIES), data)
    member = pretraining.pretrain(clean.problem, given)
    others = [*zip(*data.validation[:2], strict=True), *zip(*data.test[:2], strict=True)]
    ends = np.cumsum([settings.train_examples, settings.validation_examples, NUM_MISSPELT])
    with tempfile.TemporaryDirectory() as folder:
        clean.save(Path(folder), clean.restore(dict(member.params)))
        for name, rows in zip(("train", "validation", "test"), np.split(np.arange(ends[-1]), ends[:-1]), strict=True):
            with open(Path(folder, f"{name}.csv"), "w", encoding="utf-8", newline="") as file:
                texts = shifts.typing_errors([others[row][0][0] for row in rows], seed=int(rows[0]))
                named = [data.label_names[others[row][1]] for row in rows]
                csv.writer(file).writerows([("sentence", "label"), *zip(texts, named, strict=True)])
        misspelt: dict[str, Any] = dataclasses.asdict(settings) | {"data": folder, "dtype": options.dtype} | columns
        setup = run_bert.prepare(run_bert.Options(model=folder, head="keep", **misspelt), trim=False)
    about = f"MiniLM fine-tuned to {member.score:.1%} accuracy on clean texts"
    return setup._replace(about=[about, *setup.about[1:]])


def resnet_problem(options: Options, settings: shared_options.Options) -> Setup:
    """ResNet-20 for CIFAR-10, with a fresh head."""
    return run_resnet.prepare(run_resnet.Options(model=options.model, head="fresh", **common(options, settings)))


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


def cnn_problem(options: Options, settings: shared_options.Options, *, num_test: int | None = None) -> Setup:
    """A small CNN in float32, pretrained on the classes 0 to 4; the genomes are for the classes 5 to 9."""
    single, pooled = plain.convolution, plain.pooled_convolution
    functions = (single, pooled, single, pooled, single, plain.hidden, plain.hidden)
    network = Network(tuple(map(Block, CNN, functions)), plain.linear)
    data = images.load_images(options.data, images.Frame(28, 1))
    splits = [Dataset(np.float32(split.images / 255), split.labels) for split in data[:3]]
    low, high = (
        [Dataset(inputs[targets // 5 == half], targets[targets // 5 == half] % 5) for inputs, targets in splits]
        for half in range(2)
    )
    longer = dataclasses.replace(FRESH, epochs=3, learning_rate=2e-3)
    first = make_problem(network, plain.init_params(jax.random.key(0), CNN), low[0], low[1], longer)
    member = pretraining.pretrain(first, longer)
    limits = (settings.train_examples, settings.validation_examples, num_test)
    train, validation, test = (Dataset(*(leaf[:limit] for leaf in part)) for part, limit in zip(high, limits, strict=True))

    def make_head(key: jax.Array) -> dict:
        return plain.init_params(key, CNN)["head"]

    return Setup(
        problem=make_problem(network, member.params, train, validation, settings, make_head=make_head),
        about=[f"Pretrained to {member.score:.1%} accuracy on the classes 0 to 4"],
        network=network,
        test=make_source(test),
        num_test=len(test.targets),
        restore=lambda params: params,
        save=checkpoints.write_tree,
    )


def digits_problem(options: Options, settings: shared_options.Options, *, shift: str) -> Setup:
    """The small ResNet of run_resnet.py, pretrained on 800 clean digits, for shifted ones of the others."""
    splits = images.load_images("digits", image_task.SMALL_FRAME)[:3]
    clean, rest = cut(Dataset(*map(np.concatenate, zip(*splits, strict=True))), 800)
    model = dataclasses.replace(image_task.SMALL_MODEL, num_classes=10)
    network, initial = model.make_network(), model.init_params(jax.random.key(0))
    member = pretraining.pretrain(make_problem(network, initial, clean, rest, image_task.PRETRAINING), image_task.PRETRAINING)
    about = f"Pretrained to {member.score:.1%} accuracy on clean digits"
    rest = Dataset(*(leaf[: settings.train_examples + settings.validation_examples + 500] for leaf in rest))
    return shift_problem(network, dict(member.params), rest, settings, shift=shift, about=about)


def cifar_problem(options: Options, settings: shared_options.Options, *, shift: str) -> Setup:
    """ResNet-20 for CIFAR-10 and shifted images that its training has not seen: half of a file to test on, the rest of it."""
    loaded = pretrained.load(Path(options.model), families=pretrained.families_of("images"))
    with np.load(options.data) as file:
        data = Dataset(file["images"], file["labels"].astype(np.int32))
    first, held_out = cut(data, len(data.targets) // 2)
    first, _ = cut(first, settings.train_examples + settings.validation_examples)
    together = Dataset(*map(np.concatenate, zip(first, held_out, strict=True)))
    network = loaded.model.make_network(dtype=compute_dtype(options.dtype, loaded.params))
    return shift_problem(network, loaded.params, together, settings, shift=shift, about="ResNet-20 with its own head")


def cut(data: Dataset, num: int) -> tuple[Dataset, Dataset]:
    """`num` examples, always the same ones, and the others."""
    order = np.random.default_rng(0).permutation(len(data.targets))
    first, second = (Dataset(data.inputs[rows], data.targets[rows]) for rows in (order[:num], order[num:]))
    return first, second


def shift_problem(
    network: Network, params: dict, data: Dataset, settings: shared_options.Options, *, shift: str, about: str
) -> Setup:
    """A network with its head as a gene, for shifted data: first those to train on, then to validate on, then to test on."""
    inputs, targets = data
    if shift == "labels":
        targets = shifts.labels(targets, 10)
    else:
        inputs = shifts.OF_IMAGES[shift](inputs)
    ends = np.cumsum([settings.train_examples, settings.validation_examples])
    parts = zip(np.split(inputs, ends), np.split(targets, ends), strict=True)
    train, validation, test = (Dataset(*part) for part in parts)
    return heads.as_gene(
        Setup(
            problem=make_problem(network, params, train, validation, settings),
            about=[about],
            network=network,
            test=make_source(test),
            num_test=len(test.targets),
            restore=lambda params: params,
            save=checkpoints.write_tree,
        )
    )


FRESH = shared_options.Options(train_examples=512, validation_examples=512, epochs=4, batch_size=32)
SHIFTED_TEXTS = shared_options.Options(train_examples=128, validation_examples=256, epochs=4, batch_size=16)
SHIFTED_DIGITS = shared_options.Options(train_examples=64, validation_examples=128, epochs=8, batch_size=16, learning_rate=3e-3)
SHIFTED_CIFAR = shared_options.Options(train_examples=256, validation_examples=512, epochs=4, batch_size=32, learning_rate=4e-3)
RATES_OF_CNN = dataclasses.replace(FRESH, train_examples=256, learning_rate=2e-3)

RATES: dict[str, Any] = {"levels": (1, 0, 1 / 2, 1 / 4), "rates": (1 / 4, 1 / 2, 1, 2), "blocks_of_gene": 3}

BENCHES = (
    dict.fromkeys(["minilm-sst2", "minilm-trec"], Bench(bert_problem, FRESH, (16, 32, 64)))
    | dict.fromkeys(["resnet20-cifar10", "resnet20-fashion_mnist"], Bench(resnet_problem, FRESH, (16, 32, 64)))
    | {"minilm-sst2_typing_errors": Bench(typing_errors_problem, SHIFTED_TEXTS, (16, 32), rates=(1 / 4, 1), blocks_of_gene=2)}
    | {"cnn-fashion_mnist": Bench(cnn_problem, FRESH, (16, 32, 64))}
    | {
        f"resnet14-digits_{shift}": Bench(
            functools.partial(digits_problem, shift=shift), SHIFTED_DIGITS, (16, 32), rates=(1 / 4, 1, 4), blocks_of_gene=2
        )
        for shift in ("noise", "contrast", "blur", "inversion", "labels")
    }
    | {
        f"resnet20-cifar10_{shift}": Bench(
            functools.partial(cifar_problem, shift=shift), SHIFTED_CIFAR, (16, 32), rates=(1 / 4, 1), blocks_of_gene=3
        )
        for shift in ("noise", "contrast", "blur", "labels")
    }
    | {
        "cnn-fashion_mnist_rates": Bench(functools.partial(cnn_problem, num_test=1000), RATES_OF_CNN, (16, 32), **RATES),
        "minilm-trec_rates": Bench(bert_problem, FRESH, (16, 32, 64), **RATES),
    }
)


def common(options: Options, settings: shared_options.Options) -> dict[str, Any]:
    """What the experiments' own options are set to."""
    return dataclasses.asdict(settings) | {"data": options.data, "dtype": options.dtype}


class Grouping(NamedTuple):
    """The genomes of a table, and which blocks of the network each of the G genes has.

    Attributes:
      sizes: [G], numbers of neighbouring blocks.
    """

    space: Space
    sizes: tuple[int, ...]

    @classmethod
    def of(cls, prepared: Setup, bench: Bench) -> "Grouping":
        names, head = prepared.problem.network.names, prepared.problem.head
        last = names[-1:] if head == "kept" else ()
        body = names[: len(names) - len(last)]
        step = bench.blocks_of_gene
        groups = [*(body[first : first + step] for first in range(0, len(body), step)), *filter(None, [last])]
        space = Space(["+".join(group) for group in groups], bench.levels, bench.rates, head)
        return cls(space, tuple(map(len, groups)))

    def of_blocks(self, of_genes: np.ndarray) -> np.ndarray:
        """What each block gets of values [..., G] of its gene."""
        return np.repeat(of_genes, self.sizes, -1)

    def members(self, genomes: np.ndarray) -> list[Member]:
        """Members with genomes [P, K] before their first step."""
        rates = self.of_blocks(self.space.multipliers(genomes)).tolist()
        return [member._replace(rates=tuple(row)) for member, row in zip(untrained(genomes), rates, strict=True)]


class Curve(NamedTuple):
    """How a genome did while it was trained.

    Attributes:
      validation: [stops, 2] accuracy and mean loss.
      test: [2], after the last stop.
    """

    genome: Genome
    validation: np.ndarray
    test: np.ndarray


def make_population(prepared: Setup, settings: shared_options.Options, plan: Plan) -> Population:
    recipe = adamw_recipe(
        learning_rate=settings.learning_rate,
        head_learning_rate=settings.head_learning_rate,
        num_steps=prepared.problem.replicate(0).num_steps,
    )
    return prepared.problem.make_population(recipe, plan=plan)


def train(
    population: Population, members: list[Member], run: Replicate, *, stops: tuple[int, ...], test: Source
) -> Iterator[Curve]:
    """Trains members, scores them on the way, and keeps none; in an order of their own."""
    validation: dict[Genome, list[tuple[float, float]]] = {member.genome: [] for member in members}
    for stop in stops:
        members = list(itertools.chain.from_iterable(population.advance(members, run, stop)))
        for member in members:
            validation[member.genome].append((member.score, member.loss))
    for member in members:
        params = {name: member.params[name] for name in member.params}
        scores = score(population.network, params, test, loss=population.trainer.loss, metric=population.metric)
        yield Curve(member.genome, np.array(validation[member.genome]), np.array([leaf.mean() for leaf in scores]))


def empty_table(prepared: Setup, bench: Bench, genes: Grouping, options: Options) -> Table:
    """A table in which nothing has been trained yet."""
    problem, space = prepared.problem, genes.space
    run = problem.replicate(0)
    if run.num_steps != bench.stops[-1]:
        raise ValueError(f"{options.data}: expected {bench.stops[-1]} training steps, got {run.num_steps}: too few examples")
    frozen = genes.of_blocks(space.frozen(space.all_genomes()))
    return Table(
        space,
        bench.stops,
        np.full((space.size, options.seeds, len(bench.stops), 2), np.nan, np.float32),
        np.full((space.size, options.seeds, 2), np.nan, np.float32),
        np.full(space.size, np.nan),
        np.array([problem.count_trainable(mask) for mask in frozen]),
        {
            "table": options.table,
            "settings": {name: getattr(bench.settings, name) for name in COUNTED},
            "dtype": (problem.network.dtype or np.dtype("float32")).name,
            "device": jax.devices()[0].device_kind,
            "versions": results.versions(),
            "num_test": prepared.num_test,
            "pretrained": fingerprint_of_model(prepared),
        },
    )


def begun_table(path: Path, prepared: Setup) -> Table:
    """A table to go on with; ValueError if it was begun with other pretrained weights. Old ones do not say with which."""
    table, ours = load_table(path), fingerprint_of_model(prepared)
    if table.about.get("pretrained", ours) != ours:
        raise ValueError(
            f"{path} was begun with other pretrained weights; what is pretrained here depends on the machine. "
            "Give the first ones, or another folder as --tables"
        )
    return table


def main(options: Options) -> None:
    process.keep_memory()
    process.keep_compiled_programs()
    path, bench = options.tables / f"{options.table}.npz", BENCHES[options.table]
    plan = "members=64" if jax.default_backend() != "cpu" else "calls=2"
    try:
        prepared = bench.prepare(options, bench.settings)
        genes = Grouping.of(prepared, bench)
        population = make_population(prepared, bench.settings, planning.parse(plan if options.plan == "auto" else options.plan))
        table = begun_table(path, prepared) if path.exists() else empty_table(prepared, bench, genes, options)
    except (ValueError, OSError) as error:
        sys.exit(summary.fail(error))
    table, space = table.with_seeds(options.seeds), genes.space
    genomes = space.all_genomes()
    print(*prepared.about, sep="\n", flush=True)
    for seed in range(options.seeds):
        run = prepared.problem.replicate(seed)
        missing = np.flatnonzero(~table.done[:, seed])
        size = max(GENOMES_OF_A_PART, population.plan.members)
        for first in range(0, len(missing), size):
            members = genes.members(genomes[missing[first : first + size]])
            start = time.perf_counter()
            for curve in train(population, members, run, stops=bench.stops, test=prepared.test):
                number = int(space.index(curve.genome))
                table.validation[number, seed], table.test[number, seed] = curve.validation, curve.test
            save_table(path, table)
            print(
                f"seed {seed}: {len(members)} genomes in {time.perf_counter() - start:.1f} s, {table.done.mean():.1%} done",
                flush=True,
            )
    if jax.default_backend() == "cpu" and np.isnan(table.flops).any():  # so that tables made elsewhere are comparable
        count = costs.step_flops(population, prepared.problem.replicate(0))
        table.flops[:] = list(map(count, genes.of_blocks(space.frozen(genomes))))
        save_table(path, table)
    describe(table)


def describe(table: Table) -> None:
    """Prints some genomes' mean accuracies."""
    space, genomes = table.space, table.space.all_genomes()
    validation, test = (np.nanmean(scores[..., 0], axis=1) for scores in (table.validation, table.test))
    best = int(test.argmax())
    known = space.at_rates(space.unique(np.concatenate([space.prefixes(), space.suffixes()]).tolist()))
    width = len(space.text(genomes[0])) + 2
    print(f"\n{'genome':{width}} {'validation after':>{8 * len(table.stops)}} {'test':>7}")
    for row in dict.fromkeys([*space.index(known).tolist(), best]):
        curve = "".join(f"{accuracy:8.4f}" for accuracy in validation[row])
        print(f"{space.text(genomes[row]):{width}} {curve} {test[row]:7.4f}" + (" best" if row == best else ""))


if __name__ == "__main__":
    main(tyro.cli(Options))
