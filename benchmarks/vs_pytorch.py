"""The same search by PyGAD with PyTorch and by gafreeze_jax, in turn on one machine's CPU, or GPU.

    python benchmarks/vs_pytorch.py --data FOLDER

FOLDER has train, validation and test files, such as SST-2's. PyGAD's genetic algorithm drives PyTorch; after each generation
gafreeze_jax does the same genomes. The first generation has all prefix masks, as in experiments/run_bert.py, and random ones.
Needs torch and pygad. Takes about 12 minutes on 2 cores.

Prints a line per generation, then the seconds of three arms, which genome each side found best, and its accuracies:

- PyTorch, every member: a plain loop that trains every member of every generation. (PyGAD by itself would spare its elite.)
- PyTorch, repeats not retrained: the seconds of each genome's first evaluation, summed. It needs no run of its own, as nothing
  else would be done in it.
- gafreeze_jax: genomes seen before are not evaluated again. Compiling and choosing a plan are counted.

Loading and tokenizing are not counted on either side, and both share a process that keeps freed memory. See pytorch_bert.py for
what PyTorch does.
"""

# pyright: reportMissingImports=false

import dataclasses
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pygad
import pytorch_bert
import torch
import tyro

from gafreeze_jax import masking
from gafreeze_jax.data import text, tokens
from gafreeze_jax.data.batches import balanced_batches
from gafreeze_jax.engine import planning, process
from gafreeze_jax.engine.cohort import Replicate
from gafreeze_jax.engine.network import Dataset, Source
from gafreeze_jax.engine.optimizer import adamw_recipe
from gafreeze_jax.engine.population import Population
from gafreeze_jax.engine.scoring import score
from gafreeze_jax.metrics import ACCURACY, cross_entropy
from gafreeze_jax.models import base, checkpoints, pretrained, vocabulary
from gafreeze_jax.runs import results
from gafreeze_jax.search.history import Evaluation, Ledger
from gafreeze_jax.search.loop import Scored
from gafreeze_jax.space import Space, as_genome, digits

BATCH_SIZE, MAX_TOKENS = 32, 64
LEARNING_RATE, HEAD_LEARNING_RATE = 4e-4, 2e-3  # as in experiments/run_bert.py


@dataclass(frozen=True)
class Options:
    """Time the same search by PyGAD with PyTorch and by gafreeze_jax."""

    data: str = "reviews"
    """A folder with train, validation and test files, or what else run_bert.py takes."""
    generations: int = 10
    """Generations of PyGAD's genetic algorithm, the first one included."""
    population: int = 12
    """Members of a generation."""
    train_examples: int = 384
    """Train members on at most this many examples."""
    validation_examples: int = 256
    """Score members on at most this many examples."""
    epochs: int = 2
    """Passes through the training examples."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Of matrix products and activations; parameters are float32."""
    device: Literal["cpu", "cuda"] = "cpu"
    """Where both compute."""
    seed: int = 0
    """Decides the head's initialisation, the batches, dropout and the genetic algorithm."""
    out: Path | None = None
    """JSON file to write."""


class Task(NamedTuple):
    """What both sides get: the pretrained model with a fresh head, texts and labels."""

    folder: Path
    model: base.Model
    params: Any
    data: text.TextData
    train: tokens.Tokens
    validation: tokens.Tokens
    test: tokens.Tokens


class Finetuned(NamedTuple):
    """A member of PyTorch's, see `population.Member`."""

    genome: np.ndarray
    train_loss: float
    score: float
    loss: float


class Side(NamedTuple):
    """How one side works.

    Attributes:
      evaluate: trains and scores genomes [P, G] bool.
      test: accuracy on the test set of what `evaluate` gave last.
    """

    evaluate: Callable[[np.ndarray], Iterable[Scored]]
    test: Callable[[Any], float]


def load_task(options: Options) -> Task:
    data = text.load_text(options.data, max_train=options.train_examples, max_validation=options.validation_examples)
    folder = checkpoints.find_model("minilm")
    loaded = pretrained.load(folder, num_classes=len(data.label_names), key=jax.random.key(options.seed))
    config = loaded.config
    tokenizer = tokens.load_tokenizer(folder)
    limits = {"max_tokens": MAX_TOKENS, "vocabulary": config.vocab_size, "types": config.type_vocab_size}
    splits = (tokens.tokenize(tokenizer, split.texts, **limits) for split in (data.train, data.validation, data.test))
    return Task(folder, loaded.model, loaded.params, data, *splits)


def make_pytorch(task: Task, options: Options) -> Side:
    rates = LEARNING_RATE, HEAD_LEARNING_RATE
    finetuner = pytorch_bert.Finetuner(task.folder, task.params["head"], *rates, options.dtype, options.device)
    rng = np.random.default_rng(options.seed)
    examples = pytorch_bert.bucketed_batches(rng, task.train.lengths, BATCH_SIZE, options.epochs)
    batches = pytorch_bert.pad_batches(task.train, task.data.train.labels, examples)
    validation = pytorch_bert.scoring_batches(task.validation, task.data.validation.labels)
    test = pytorch_bert.scoring_batches(task.test, task.data.test.labels)

    def evaluate(genomes: np.ndarray) -> Iterable[Scored]:
        for genome in genomes:
            torch.manual_seed(options.seed)  # the same dropout for all members, and for one that comes again
            train_loss = finetuner.fit(genome, batches)
            yield Finetuned(genome, train_loss, *finetuner.score(validation))

    return Side(evaluate, lambda member: finetuner.score(test)[0])


def make_ours(task: Task, options: Options) -> Side:
    dtype = jnp.dtype(options.dtype)
    ids = (task.train.inputs["ids"], task.validation.inputs["ids"])
    trimmed, params, used = vocabulary.trim(task.model, task.params, *ids)
    rng = np.random.default_rng(options.seed)
    examples = balanced_batches(rng, task.train.lengths, BATCH_SIZE, options.epochs)
    train, validation = (
        Source(Dataset(tokens.renumber(texts, used), split.labels), tokens.scoring_batches(texts))
        for texts, split in ((task.train, task.data.train), (task.validation, task.data.validation))
    )
    recipe = adamw_recipe(learning_rate=LEARNING_RATE, head_learning_rate=HEAD_LEARNING_RATE, num_steps=len(examples))
    trained = trimmed.make_network(dtype=dtype)
    members = Population(trained, params, recipe, train, validation, loss=cross_entropy, metric=ACCURACY)
    run = Replicate(params["head"], tokens.pack_batches(task.train, examples), jax.random.key(options.seed))
    network = task.model.make_network(dtype=dtype)
    test = Source(Dataset(task.test.inputs, task.data.test.labels), tokens.scoring_batches(task.test))
    chosen: list[planning.Choice] = []

    def evaluate(genomes: np.ndarray) -> Iterable[Scored]:
        if not chosen:
            chosen.append(planning.choose(members, genomes, run, options.population * options.generations))
            members.plan = chosen[0].plan
            print(f"Plan: {planning.describe(members.plan)} ({chosen[0].reason})", flush=True)
        return members.evaluate(genomes, run)

    def accuracy(member: Any) -> float:
        params = vocabulary.restore(member.params, used, task.params)
        return float(score(network, params, test, loss=cross_entropy, metric=ACCURACY).values.mean())

    return Side(evaluate, accuracy)


class Account:
    """What a side has done, and in how many seconds.

    Attributes:
      ledger: the first evaluation of each genome.
      seconds, num_evaluations: of all evaluations.
    """

    def __init__(self, side: Side, count_trainable: Callable[[np.ndarray], int]):
        self.side, self.ledger, self.seconds, self.num_evaluations = side, Ledger(num_steps=1), 0.0, 0
        self._count_trainable = count_trainable

    def evaluate(self, genomes: np.ndarray, generation: int) -> float:
        """Has genomes [P, G] evaluated, and returns the seconds."""
        before = self.seconds
        clock = time.perf_counter()
        for member in self.side.evaluate(genomes):
            seconds = time.perf_counter() - clock
            self.seconds += seconds
            self.num_evaluations += 1
            if as_genome(member.genome) not in self.ledger:
                scores = (member.score, member.loss, member.train_loss)
                num_trainable = self._count_trainable(member.genome)
                self.ledger.add(Evaluation(as_genome(member.genome), 0, 1, generation, *scores, num_trainable, seconds))
            clock = time.perf_counter()
        return self.seconds - before

    def best(self) -> dict[str, Any]:
        """The fittest genome, its validation accuracy, and its test accuracy, for which it is trained once more."""
        best = max(self.ledger, key=lambda evaluation: evaluation.fitness)
        (member,) = self.side.evaluate(np.array([best.genome], bool))
        return {"genome": digits(best.genome), "validation_accuracy": best.score, "test_accuracy": self.side.test(member)}


class PlainGA(pygad.GA):
    """PyGAD without its memory: `fitness_func` is given every generation as a whole, [P, G]."""

    def cal_pop_fitness(self) -> np.ndarray:
        return np.array(self.fitness_func(self, self.population, None))


def search(task: Task, options: Options) -> dict[str, Any]:
    """Runs the search on both sides; what it took, and what was found."""
    genes = masking.make_genes(task.params, {"(embeddings)/.*": r"\1", r"(layer_\d+)/.*": r"\1", "head/.*": None})
    pytorch, ours = (
        Account(make(task, options), lambda genome: masking.count_trainable(task.params, genes, genome))
        for make in (make_pytorch, make_ours)
    )
    generations: list[dict[str, Any]] = []

    def evaluate(ga: pygad.GA, population: np.ndarray, _: None) -> list[float]:
        number, genomes = len(generations) + 1, population.astype(bool)
        new = ours.ledger.unseen(genomes)
        seconds = {"pytorch": pytorch.evaluate(genomes, number), "ours": ours.evaluate(new.astype(bool), number)}
        generations.append({"members": len(genomes), "new": len(new), "seconds": seconds})
        print(
            f"Generation {number}: PyTorch {seconds['pytorch']:.1f} s for {len(genomes)} members, "
            f"gafreeze_jax {seconds['ours']:.1f} s for the {len(new)} that are new",
            flush=True,
        )
        return [pytorch.ledger.furthest(as_genome(genome))[0].score for genome in genomes]

    prefixes = Space(genes.names).prefixes()[: options.population]
    others = np.random.default_rng(options.seed).random((options.population - len(prefixes), len(genes))) < 0.5
    PlainGA(
        num_generations=options.generations - 1,  # PyGAD does not count the first one
        initial_population=np.concatenate([prefixes, others]).astype(int),
        num_parents_mating=options.population // 2,
        gene_space=[0, 1],
        gene_type=int,
        fitness_func=evaluate,
        parent_selection_type="tournament",
        K_tournament=3,
        keep_elitism=2,
        crossover_type="uniform",
        mutation_probability=1 / len(genes),
        random_seed=options.seed,
    ).run()

    num_unique = len(ours.ledger)
    totals = {
        "PyTorch, every member": (pytorch.seconds, pytorch.num_evaluations),
        "PyTorch, repeats not retrained": (sum(evaluation.seconds for evaluation in pytorch.ledger), num_unique),
        "gafreeze_jax": (ours.seconds, ours.num_evaluations),
    }
    return {
        "options": dataclasses.asdict(options),
        "machine": pytorch_bert.describe_machine(),
        "pygad": pygad.__version__,
        "unique_genomes": num_unique,
        "arms": {
            name: {
                "seconds": seconds,
                "evaluations": num,
                "seconds_per_evaluation": seconds / num,
                "times_ours": seconds / ours.seconds,
            }
            for name, (seconds, num) in totals.items()
        },
        "best": {"PyTorch": pytorch.best(), "gafreeze_jax": ours.best()},
        "generations": generations,
        "evaluations": {
            name: [evaluation._asdict() | {"genome": digits(evaluation.genome)} for evaluation in account.ledger]
            for name, account in (("PyTorch", pytorch), ("gafreeze_jax", ours))
        },
    }


def main(options: Options) -> None:
    process.keep_memory()
    if options.device == "cpu":
        jax.config.update("jax_platforms", "cpu")
    result = search(load_task(options), options)
    print_result(result)
    if options.out is not None:
        results.write_json(options.out, result)


def print_result(result: dict[str, Any]) -> None:
    print(f"\n{pytorch_bert.machine_line(result['machine'])}, pygad {result['pygad']}\n")
    print(f"{'':30} {'seconds':>9} {'evaluations':>12} {'s each':>8} {'times ours':>11}")
    for name, arm in result["arms"].items():
        seconds = f"{arm['seconds']:9.1f} {arm['evaluations']:12} {arm['seconds_per_evaluation']:8.2f}"
        print(f"{name:30} {seconds} {arm['times_ours']:11.2f}")
    print(f"\n{'':30} {'best':>9} {'validation':>12} {'test':>8}")
    for name, best in result["best"].items():
        print(f"{name:30} {best['genome']:>9} {best['validation_accuracy']:12.4f} {best['test_accuracy']:8.4f}")


if __name__ == "__main__":
    main(tyro.cli(Options))
