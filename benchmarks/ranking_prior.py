"""Would training-free rankings of layers be of use as the prior mean of the surrogate? Asked of FreezeBench's tables.

    python benchmarks/ranking_prior.py resnet14-digits_inversion
    python benchmarks/ranking_prior.py resnet20-cifar10_noise --data TEST.npz --model FILE.safetensors

The network of a table (see freezebench.py) gives each gene a score, as the baselines of the same name do: its relative gradient
norm, or the signal-to-noise ratio of its weights. A genome's feature is the sum of the scores of the genes that it trains, as
shares of all scores. In each of some draws, the surrogate sees the validation accuracy (first training seed) of some random
genomes and predicts all others: with a constant prior mean, as it is, and with one that is linear in the feature, whose slope
is fitted to what was seen (ridge regression). Prints Spearman's correlation of the predictions with the test accuracies (mean
over the table's seeds), and the test accuracy of the genome that is predicted to be the best. Takes a minute or two.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import freezebench
import numpy as np
import tyro
from scipy.stats import spearmanr
from tables import Table, load_table

from gafreeze_jax.engine import planning, process
from gafreeze_jax.runs.baselines import relative_gradients, signal_to_noise
from gafreeze_jax.search import surrogate

RANKINGS = {"relative gradients": relative_gradients, "signal-to-noise": signal_to_noise}
SEEN = (8, 12, 16, 24)
RIDGE = 3.0  # observations that say that the slope is 0


@dataclass(frozen=True)
class Options(freezebench.Options):
    """Compare prior means of the surrogate."""

    draws: int = 60
    """Random sets of genomes, of which the mean is printed."""


def scores_of_genes(options: Options) -> dict[str, np.ndarray]:
    """By ranking, the share [G] that each of the table's genes has in all scores; that of several blocks is their mean."""
    bench = freezebench.BENCHES[options.table]
    prepared = bench.prepare(options, bench.settings)
    genes = freezebench.Grouping.of(prepared, bench)
    population = freezebench.make_population(prepared, bench.settings, planning.parse("members=1,calls=1"))
    ends = np.cumsum(genes.sizes)
    found = {}
    for name, rank in RANKINGS.items():
        scores = rank(population, prepared.problem.replicate(0))
        of_blocks = np.array([scores[block] for block in prepared.problem.network.names])
        means = np.array([part.mean() for part in np.split(of_blocks, ends[:-1])])
        found[name] = means / means.sum()
    return found


def predict(table: Table, seen: np.ndarray, feature: np.ndarray) -> np.ndarray:
    """What the surrogate predicts for all N genomes after it has seen some; the prior mean is linear in `feature` [N]."""
    genomes, fitness = np.array(table.space.all_genomes()), table.validation[seen, 0, -1, 0]
    centred = feature[seen] - feature[seen].mean()
    variance = max(float(centred.var()), np.finfo(float).tiny)
    slope = centred @ (fitness - fitness.mean()) / (variance * (len(seen) + RIDGE))
    means, _ = surrogate.fit(table.space, genomes[seen], fitness - slope * feature[seen]).predict(genomes)
    return means + slope * feature


def compare(table: Table, features: Mapping[str, np.ndarray], seen: int, draws: int) -> dict[str, tuple[float, ...]]:
    """By feature [N]: the correlation, and the test accuracy of the predicted best."""
    rng, truth = np.random.default_rng(0), np.nanmean(table.test[..., 0], 1)
    known = np.flatnonzero(table.done[:, 0])
    outcomes: dict[str, list[tuple[float, float]]] = {name: [] for name in features}
    for _ in range(draws):
        order = rng.permutation(known)
        rest = order[seen:]
        for name, feature in features.items():
            predicted = predict(table, order[:seen], feature)[rest]
            correlation: Any = spearmanr(predicted, truth[rest])
            outcomes[name].append((correlation.statistic, float(truth[rest[predicted.argmax()]])))
    return {name: tuple(np.mean(pairs, axis=0).tolist()) for name, pairs in outcomes.items()}


def features_of(table: Table, scores: Mapping[str, Sequence[float] | np.ndarray]) -> dict[str, np.ndarray]:
    """By ranking, the share [N] of the scores that each genome trains; and none."""
    trained = ~np.array(table.space.frozen(table.space.all_genomes()), bool)
    return {"none": np.zeros(len(trained))} | {name: trained @ np.asarray(of_genes) for name, of_genes in scores.items()}


def main(options: Options) -> None:
    process.keep_compiled_programs()
    table = load_table(options.tables / f"{options.table}.npz")
    scores = scores_of_genes(options)
    features = features_of(table, scores)
    for name, of_genes in scores.items():
        print(f"{name}: {' '.join(f'{score:.2f}' for score in of_genes)}")
    print(f"\n{options.table}: correlation, and test accuracy of the predicted best")
    print(f"{'genomes seen':>12}" + "".join(f"{name:>22}" for name in features))
    for seen in SEEN:
        found = compare(table, features, seen, options.draws).values()
        print(f"{seen:12}" + "".join(f"{alike:13.2f} {100 * accuracy:8.1f}" for alike, accuracy in found), flush=True)


if __name__ == "__main__":
    main(tyro.cli(Options))
