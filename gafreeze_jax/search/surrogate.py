"""A cheap model of fitness over genomes: it predicts those that have not been evaluated, and denoises those that have.

A Gaussian process (Rasmussen & Williams 2006). Its few hyperparameters are averaged over a grid, in closed form: a fit takes
milliseconds and needs no optimiser. Noise is assumed to be independent between genomes. An effect of the seed on all genomes
alike does no harm; an effect on those that share a gene cannot be told from the gene's own.
"""

from typing import NamedTuple

import numpy as np

from gafreeze_jax.space import Space

NOISE = np.array([0.02, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.97, 1.0])  # its share in the variance
LENGTHS = np.array([4.0, 0.25])  # distances at which resemblance is 1/e: one nearly additive, one with interactions
DEPTH_OF_FLOOR = 1.5  # times the distance of the best fitness from the median
MIN_GENOMES, MIN_CORRELATION = 12, 0.3  # for trust
TINY = 1e-300


class Surrogate(NamedTuple):
    """A fitted model, made by `fit`. Each of K lengths with each of R shares of noise is a hypothesis.

    Attributes:
      space: of the genomes, which have G numbers each.
      genomes: [N, G] int8, all different.
      fitness: [N], as measured; that of copies is averaged, and what lies below the floor is raised to it.
      left_out: [N], what all others predict for each.
      shares: [N], of each genome in the number of evaluations.
      num_evaluations: that number; a genome with several seeds has several.
      scales: [K], the mean prior variance of the genomes around their mean, by which kernels are divided.
      contrasts: [K, N, N - 1], weights of the fitnesses in `sums`.
      sums: [K, N - 1], independent of each other and of the mean fitness.
      spreads: [K, R, N - 1], their variances in units of `variance`.
      variance: [K, R], of signal and noise together.
      belief: [K, R], probability of each hypothesis.
    """

    space: Space
    genomes: np.ndarray
    fitness: np.ndarray
    left_out: np.ndarray
    shares: np.ndarray
    num_evaluations: float
    scales: np.ndarray
    contrasts: np.ndarray
    sums: np.ndarray
    spreads: np.ndarray
    variance: np.ndarray
    belief: np.ndarray

    def predict(self, genomes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Mean and standard deviation [M] of the true fitness, without noise, of genomes [M, G].

        The deviation is 0 where no two fitnesses differ: nothing tells their scale then.
        """
        signal = 1 - NOISE[:, None]
        kernels, cross = (_kernels(self.space, rows, self.genomes) for rows in (self.genomes, genomes))
        of_mean = kernels @ self.shares  # covariances with the mean fitness
        loads = (cross - of_mean[:, None]) / self.scales[:, None, None] @ self.contrasts
        prior = (1 - 2 * cross @ self.shares + (of_mean @ self.shares)[:, None]) / self.scales[:, None]
        means = self.shares @ self.fitness + signal * ((self.sums[:, None] / self.spreads) @ loads.swapaxes(1, 2))
        explained = signal**2 * ((1 / self.spreads) @ (loads**2).swapaxes(1, 2))
        variances = signal * prior[:, None] - explained + NOISE[:, None] / self.num_evaluations
        mean = np.einsum("kr,krm->m", self.belief, means)
        variance = np.einsum("kr,krm->m", self.belief, self.variance[..., None] * variances + (means - mean) ** 2)
        return mean, np.sqrt(np.maximum(variance, 0))

    @property
    def cross_validated_correlation(self) -> float:
        """Spearman's rank correlation of the fitnesses with what is predicted for each from all others; 0 if undefined."""
        from scipy.stats import rankdata  # takes half a second

        ranks = np.stack([rankdata(self.left_out), rankdata(self.fitness)])
        ranks -= ranks.mean(1, keepdims=True)
        return float(ranks[0] @ ranks[1] / max(np.sqrt((ranks**2).sum(1).prod()), TINY))

    @property
    def earns_trust(self) -> bool:
        """Whether it may screen: from 12 genomes on, if the cross-validated correlation is at least 0.3.

        On pure noise the correlation is negative as a rule: leaving out a low fitness raises the mean of the others. One model
        in ten is trusted there with 12 to 16 genomes, one in thirty with 48.
        """
        return len(self.genomes) >= MIN_GENOMES and self.cross_validated_correlation >= MIN_CORRELATION


def fit(space: Space, genomes: np.ndarray, fitness: np.ndarray, counts: np.ndarray | None = None) -> Surrogate:
    """Fits a model to measured fitnesses.

    The kernel is exp(-distance / length), of two levels a diffusion kernel (Kondor & Lafferty 2002): it has all interactions,
    and expects those of more genes to be weaker. Length and share of noise are averaged over, weighted by the likelihood with
    mean and variance integrated out (Patterson & Thompson 1971).

    Args:
      space: of the genomes.
      genomes: [N, G]. Copies count as further seeds of a genome.
      fitness: [N], higher is better; what is not finite counts as the worst finite value. A floor lies below the median, 1.5
        times as far as the best lies above it: how bad a very poor mask is would hide how good ones differ.
      counts: [N], how many seeds each fitness is the mean of, which divide its noise's variance. Default: 1.

    Raises:
      ValueError: for arguments of the wrong shape, and counts that are not positive.
    """
    genomes, fitness = np.asarray(genomes, np.int8), np.asarray(fitness, float)
    counts = np.ones(len(genomes)) if counts is None else np.asarray(counts, float)
    _check_measured(genomes, fitness, counts)
    genomes, fitness, counts = _merge_copies(genomes, fitness, counts)
    shares, num = counts / counts.sum(), len(genomes)

    kernels = _kernels(space, genomes, genomes)
    means = kernels @ shares
    kernels += (means @ shares)[:, None, None] - means[:, None] - means[:, :, None]
    scales = kernels.trace(axis1=1, axis2=2) / num if num > 1 else np.ones(len(LENGTHS))
    kernels /= scales[:, None, None]
    whiten = np.sqrt(counts)
    basis = whiten[:, None] * np.linalg.qr(np.column_stack([whiten, np.eye(num)[:, 1:]]))[0][:, 1:]
    eigenvalues, vectors = np.linalg.eigh(basis.T @ kernels @ basis)
    contrasts = basis @ vectors
    sums = fitness @ contrasts
    spreads = (1 - NOISE)[:, None] * np.maximum(eigenvalues, 0)[:, None] + NOISE[:, None]

    squares = np.maximum((sums[:, None] ** 2 / spreads).sum(-1), TINY)
    logs = np.log(spreads).sum(-1)
    belief = _normalised(-logs / 2 - (num - 1) / 2 * np.log(squares))
    left_out = fitness - _residuals(contrasts, sums, spreads, squares, logs)
    variance = squares / max(num - 3, 1)  # the mean of its posterior, where that has one
    return Surrogate(
        space, genomes, fitness, left_out, shares, counts.sum(), scales, contrasts, sums, spreads, variance, belief
    )


def _check_measured(genomes: np.ndarray, fitness: np.ndarray, counts: np.ndarray) -> None:
    problems = []
    if genomes.ndim != 2 or not genomes.size:
        problems.append(f"genomes must have shape (N, G), neither 0, got {genomes.shape}")
    problems += [
        f"{name} must have one value per genome, shape {genomes.shape[:1]}, got {values.shape}"
        for name, values in (("fitness", fitness), ("counts", counts))
        if values.shape != genomes.shape[:1]
    ]
    if not (counts > 0).all():
        problems.append(f"counts must be positive, got {counts.min()}")
    if problems:
        raise ValueError("; ".join(problems))


def _merge_copies(genomes: np.ndarray, fitness: np.ndarray, counts: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Different genomes, their mean fitness, finite and not below the floor, and their counts."""
    finite = np.isfinite(fitness)
    fitness = np.where(finite, fitness, fitness[finite].min() if finite.any() else 0.0)
    genomes, copy_of = np.unique(genomes, axis=0, return_inverse=True)
    totals, counts = np.bincount(copy_of, counts * fitness), np.bincount(copy_of, counts)
    fitness = totals / counts
    median = np.median(fitness)
    return genomes, np.maximum(fitness, median - DEPTH_OF_FLOOR * (fitness.max() - median)), counts


def _residuals(
    contrasts: np.ndarray, sums: np.ndarray, spreads: np.ndarray, squares: np.ndarray, logs: np.ndarray
) -> np.ndarray:
    """By how much each fitness differs from what all others predict: [N].

    Without genome i, squares and logs lose what its residual r_i = (P fitness)_i / P_ii adds (Dubrule 1983), where
    P = contrasts / spreads @ contrasts.T is the inverse covariance of what does not depend on the mean.
    """
    num = contrasts.shape[1]
    P = np.maximum((1 / spreads) @ (contrasts**2).swapaxes(1, 2), TINY)
    residuals = (sums[:, None] / spreads) @ contrasts.swapaxes(1, 2) / P
    squares_left = np.maximum(squares[..., None] - residuals**2 * P, TINY)
    belief = _normalised(-(logs[..., None] + np.log(P)) / 2 - (num - 2) / 2 * np.log(squares_left))
    return (belief * residuals).sum((0, 1))


def screen(surrogate: Surrogate, rng: np.random.Generator, candidates: np.ndarray, num: int) -> np.ndarray:
    """Indices [num] of the candidates [M, G] to evaluate, the highest mean + deviation first; fewer if M is less.

    An upper confidence bound (Srinivas et al. 2010). Expected improvement, and bounds that depend on the choices made
    before, were no better in simulated searches; Thompson sampling was worse. Ties are broken at random.

    Args:
      candidates: all different.
    """
    order = rng.permutation(len(candidates))
    mean, deviation = surrogate.predict(candidates[order])
    return order[np.argsort(-(mean + deviation).astype(np.float32), kind="stable")[:num]]


def _kernels(space: Space, first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """How alike genomes [A, G] and [B, G] are, by each length: [K, A, B]."""
    return np.exp(-space.distance(first, second) / LENGTHS[:, None, None])


def _normalised(logs: np.ndarray) -> np.ndarray:
    """Probabilities of hypotheses [K, R, ...] from their logarithms, each up to the same constant."""
    likelihoods = np.exp(logs - logs.max((0, 1)))
    return likelihoods / likelihoods.sum((0, 1))
