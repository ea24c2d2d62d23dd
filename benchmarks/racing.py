"""What racing finalists saves, and whether the winner that it names is as good: replays on small networks with known truth.

    python benchmarks/racing.py cnn-fashion_mnist --data FOLDER
    python benchmarks/racing.py resnet14-digits_contrast

Every genome of a network of FreezeBench (see freezebench.py) is trained with six seeds, and its answers to each validation
example are kept; this takes 5 to 15 minutes on 2 cores. In a replay, a search has seen some random genomes beside those that
come first, all with one training seed: the two fittest and the fittest of each kind of mask are candidates, as in a run.
`runs.finalists.retrain` then trains them with the other five seeds, with racing and without, by looking them up. Prints the
mean test accuracy of the winners over all seeds, how often both name the same, and the FLOPs of all finalists with racing as a
share of those without.
"""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple
from unittest import mock

import freezebench
import jax
import numpy as np
import tyro

from gafreeze_jax.engine import costs, planning, process
from gafreeze_jax.engine.cohort import Member
from gafreeze_jax.engine.scoring import score
from gafreeze_jax.metrics import Metric
from gafreeze_jax.runs import racing
from gafreeze_jax.runs.baselines import BASELINES, Baseline, initial_genomes
from gafreeze_jax.runs.finalists import Finalist, candidates, retrain
from gafreeze_jax.space import Genome, Space, as_genome

SEEDS = 6
SEEN = 24  # genomes of a search, beside its seeds
NUM_LEADERS = 2


@dataclass(frozen=True)
class Options(freezebench.Options):
    """Replay races of finalists."""

    replays: int = 300
    """Searches whose finalists are retrained with racing and without."""
    out: Path | None = None
    """JSON file to write."""


class Trained(NamedTuple):
    """All genomes of a network, trained with several seeds.

    Attributes:
      members: without parameters, by seed and genome.
      test: [N, S] accuracy of all genomes, in the order of `space.all_genomes()`.
      flops: [N], of a training step.
    """

    space: Space
    metric: Metric
    members: dict[tuple[int, Genome], Member]
    test: np.ndarray
    flops: np.ndarray


def train_all(options: Options) -> Trained:
    bench = freezebench.BENCHES[options.table]
    prepared = bench.prepare(options, bench.settings)
    genes = freezebench.Grouping.of(prepared, bench)
    plan = planning.parse("calls=2" if options.plan == "auto" else options.plan)
    population = freezebench.make_population(prepared, bench.settings, plan)
    network, loss, metric, space = population.network, population.trainer.loss, population.metric, genes.space
    genomes = space.all_genomes()
    members: dict[tuple[int, Genome], Member] = {}
    test = np.empty((space.size, SEEDS))
    for seed in range(SEEDS):
        for cohort in population.advance(genes.members(genomes), prepared.problem.replicate(seed)):
            for member in cohort:
                params = {name: member.params[name] for name in member.params}
                of_test = score(network, params, prepared.test, loss=loss, metric=metric)
                test[int(space.index(member.genome)), seed] = float(metric.score(of_test.values))
                members[seed, member.genome] = member._replace(params={}, state=None)
        print(f"seed {seed}: {space.size} genomes", flush=True)
    count = costs.step_flops(population, prepared.problem.replicate(0))
    flops = np.array([count(mask) for mask in genes.of_blocks(space.frozen(genomes))])
    return Trained(space, metric, members, test, flops)


class Lookup:
    """What `finalists.retrain` asks of a `Retraining`, by looking up."""

    rows, is_thorough = None, False

    def __init__(self, trained: Trained, seeds: Sequence[int]):
        self.population = SimpleNamespace(space=trained.space, metric=trained.metric)
        self.store = SimpleNamespace(close=lambda: None)
        self.seeds, self._trained = seeds, trained
        self.runs: set[tuple[int, Genome]] = set()

    def on_race(self, finalists: Sequence[Finalist]) -> None: ...

    def mask(self, name: str, genome: Genome, *, is_ablation: bool = False) -> Finalist:
        return Finalist(name, genome, 0.0, is_ablation=is_ablation)

    def schedule(self, baseline: Baseline) -> Finalist:
        raise NotImplementedError("there are only masks here")

    def train(self, finalists: Sequence[Finalist], num_seeds: int) -> list[Finalist]:
        def with_members(finalist: Finalist) -> Finalist:
            keys = [(seed, finalist.genome) for seed in self.seeds[: num_seeds if finalist.is_in else len(finalist.members)]]
            self.runs |= set(keys)
            return finalist._replace(members=tuple(self._trained.members[key] for key in keys))

        return [with_members(finalist) for finalist in finalists]

    @property
    def flops(self) -> float:
        """Of all runs, each counted once."""
        return float(sum(self._trained.flops[int(self._trained.space.index(genome))] for _, genome in self.runs))


def fittest(trained: Trained, seed: int, genomes: Iterable[Sequence[int]]) -> list[Genome]:
    """Genomes by their fitness with a seed, the fittest first."""

    def fitness(genome: Genome) -> tuple[float, float]:
        member = trained.members[seed, genome]
        return (member.score, -member.loss) if np.isfinite(member.loss) else (-np.inf, -np.inf)

    return sorted(dict.fromkeys(map(as_genome, genomes)), key=fitness, reverse=True)


def replay(trained: Trained, rng: np.random.Generator) -> dict[bool, tuple[Genome, float]]:
    """The winner and the FLOPs of the finalists, with racing and without."""
    space = trained.space
    search_seed, *fresh = rng.permutation(SEEDS).tolist()
    baselines = [baseline for baseline in BASELINES if baseline.genomes is not None and baseline.fits(space)]
    seen = [*initial_genomes(space, baselines).tolist(), *rng.permutation(space.all_genomes())[:SEEN].tolist()]
    leaders = fittest(trained, search_seed, seen)[:NUM_LEADERS]
    groups = {baseline.name: space.at_rates(baseline.genomes(space)) for baseline in baselines if baseline.genomes}
    masks = {name: fittest(trained, search_seed, rows.tolist())[0] for name, rows in groups.items() if len(rows)}
    outcome = {}
    for with_racing in (True, False):
        lookup: Any = Lookup(trained, fresh)
        with mock.patch.object(racing, "FIRST_SEEDS", racing.FIRST_SEEDS if with_racing else len(fresh)):
            found, _ = retrain(lookup, candidates(space, leaders, masks.values()), masks, [])
        outcome[with_racing] = found.genome, lookup.flops
    return outcome


def summarize(trained: Trained, outcomes: Sequence[dict[bool, tuple[Genome, float]]]) -> dict[str, float]:
    truth = trained.test.mean(1)
    winners = {raced: np.array([truth[int(trained.space.index(one[raced][0]))] for one in outcomes]) for raced in (True, False)}
    difference = winners[True] - winners[False]
    return {
        "winner_with_racing": float(winners[True].mean()),
        "winner_without": float(winners[False].mean()),
        "difference": float(difference.mean()),
        "standard_error": float(difference.std(ddof=1) / len(difference) ** 0.5),
        "same_winner": float(np.mean([one[True][0] == one[False][0] for one in outcomes])),
        "share_of_flops": float(np.mean([one[True][1] / one[False][1] for one in outcomes])),
    }


def main(options: Options) -> None:
    process.keep_memory()
    process.keep_compiled_programs()
    trained = train_all(options)
    rng = np.random.default_rng(0)
    found = summarize(trained, [replay(trained, rng) for _ in range(options.replays)])
    points = {name: 100 * found[name] for name in found}
    print(f"{options.table}, {options.replays} replays, test accuracy of the winner (mean over {SEEDS} seeds)")
    print(f"with racing  {points['winner_with_racing']:.2f}")
    print(f"without      {points['winner_without']:.2f}")
    print(f"difference   {points['difference']:+.2f} +- {points['standard_error']:.2f}")
    print(
        f"the same winner in {points['same_winner']:.0f} % of the replays, with {points['share_of_flops']:.0f} % of the FLOPs"
    )
    if options.out:
        about = {"table": options.table, "replays": options.replays, "device": jax.devices()[0].device_kind}
        options.out.write_text(json.dumps(about | found, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(tyro.cli(Options))
