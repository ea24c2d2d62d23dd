import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from threadpoolctl import threadpool_limits

from gafreeze_jax.search import surrogate
from gafreeze_jax.search.surrogate import screen
from gafreeze_jax.space import Space

NUM_GENES = 9
EVERY = np.array(list(np.ndindex((2,) * NUM_GENES)), bool)


@pytest.fixture(autouse=True, scope="module")
def _one_thread():
    """Many small models are fitted, for which waking further threads takes longer than what they do."""
    with threadpool_limits(1):
        yield


def make_truth(rng, pairs=0.4):
    """Fitness [2^G] of every mask, with mean 0 and variance 1: effects of genes and of pairs of them."""
    signs = 1 - 2.0 * EVERY
    values = signs @ rng.normal(size=NUM_GENES)
    values += np.einsum("ni,ij,nj->n", signs, np.triu(rng.normal(size=(NUM_GENES, NUM_GENES)), 1) * pairs, signs)
    return (values - values.mean()) / values.std()


def draw(rng, num, noise):
    """A truth, `num` of its masks and their noisy fitnesses."""
    truth, rows = make_truth(rng), rng.permutation(len(EVERY))[:num]
    return truth, rows, truth[rows] + noise * rng.normal(size=num)


def fit(genomes, fitness, counts=None):
    """Fits a model to genomes of two levels."""
    return surrogate.fit(Space([f"gene_{i}" for i in range(np.shape(genomes)[-1])]), genomes, fitness, counts)


def rngs(num):
    return [np.random.default_rng(seed) for seed in range(num)]


# ---------------------------------------------------------------------------------------------------------------------
# The formulas, against dense linear algebra


def dense(genomes, fitness, counts, new):
    """Mean, covariance and log likelihood of each hypothesis by the textbook, with a constant of almost unlimited variance."""
    model = fit(genomes, fitness, counts)
    order = np.lexsort(genomes.T[::-1])
    genomes, fitness, counts = genomes[order], fitness[order], counts[order]
    both = np.concatenate([genomes, new])
    centre = np.eye(len(both)) - np.concatenate([counts / counts.sum(), np.zeros(len(new))])
    kernels = np.exp(-(both[:, None] != both).mean(-1) / surrogate.LENGTHS[:, None, None])
    kernels = centre @ kernels @ centre.T / model.scales[:, None, None]
    num = len(genomes)
    rows = []
    for kernel in kernels:
        for noise in surrogate.NOISE:
            covariance = (1 - noise) * kernel + 1e6
            seen = covariance[:num, :num] + np.diag(noise / counts)
            scale = fitness @ np.linalg.solve(seen, fitness)
            cross = np.linalg.solve(seen, covariance[:num, num:])
            log = -np.linalg.slogdet(seen)[1] / 2 - (num - 1) / 2 * np.log(scale)
            mean = fitness @ cross
            variance = scale / (num - 3) * np.diag(covariance[num:, num:] - covariance[num:, :num] @ cross)
            rows.append((log, mean, variance))
    logs, means, variances = map(np.array, zip(*rows, strict=True))
    weights = np.exp(logs - logs.max())
    weights /= weights.sum()
    mean = weights @ means
    return mean, np.sqrt(weights @ (variances + (means - mean) ** 2))


@pytest.mark.parametrize("num", [5, 20])
def test_predictions_are_those_of_dense_linear_algebra(num):
    rng = np.random.default_rng(0)
    truth = make_truth(rng)
    rows = rng.permutation(len(EVERY))[: num + 15]
    counts = rng.integers(1, 5, num)
    fitness = truth[rows[:num]] - truth[rows[:num]].mean() + rng.normal(size=num)
    fitness[:] = np.clip(fitness, np.median(fitness) - 0.5, None)  # above the floor
    mean, deviation = fit(EVERY[rows[:num]], fitness, counts).predict(EVERY[rows])
    expected = dense(EVERY[rows[:num]], fitness, counts, EVERY[rows])
    np.testing.assert_allclose(mean, expected[0], atol=1e-4)
    np.testing.assert_allclose(deviation, expected[1], rtol=1e-3)


def test_left_out_is_what_a_model_of_the_others_predicts(monkeypatch):
    rng = np.random.default_rng(0)
    _, rows, fitness = draw(rng, 14, 0.4)
    monkeypatch.setattr(surrogate, "DEPTH_OF_FLOOR", np.inf)
    places = np.argsort(rows)  # the model sorts its genomes
    refitted = [fit(EVERY[np.delete(rows, i)], np.delete(fitness, i)).predict(EVERY[rows[i : i + 1]])[0][0] for i in places]
    model = fit(EVERY[rows], fitness)
    np.testing.assert_allclose(model.left_out, refitted, atol=0.03)  # the kernel's scales know of the one left out
    assert np.abs(model.left_out - model.predict(model.genomes)[0]).mean() > 0.2


# ---------------------------------------------------------------------------------------------------------------------
# What it is good for


def test_it_recovers_effects_of_genes_and_pairs():
    correlations = []
    for rng in rngs(10):
        truth, rows, fitness = draw(rng, 100, 0.3)
        unseen = np.setdiff1d(np.arange(len(EVERY)), rows)
        correlations.append(stats.spearmanr(fit(EVERY[rows], fitness).predict(EVERY[unseen])[0], truth[unseen])[0])
    assert np.median(correlations) > 0.9
    assert min(correlations) > 0.7


@pytest.mark.parametrize("noise", [0.2, 0.6])
def test_intervals_cover_the_truth_as_often_as_they_say(noise):
    deviations = []
    for rng in rngs(30):
        truth, rows, fitness = draw(rng, 40, noise)
        mean, deviation = fit(EVERY[rows], fitness).predict(EVERY)
        deviations.append(np.abs(mean - truth) / deviation)
    assert 0.6 < np.mean(np.array(deviations) < 1) < 0.82  # 0.68 of a normal distribution
    assert 0.9 < np.mean(np.array(deviations) < 1.96) < 0.99


def test_counts_and_copies_are_seeds():
    rng = np.random.default_rng(0)
    _, rows, fitness = draw(rng, 20, 0.5)
    further = fitness + rng.normal(size=20)
    copies = fit(EVERY[np.tile(rows, 2)], np.concatenate([fitness, further]))
    averages = fit(EVERY[rows], (fitness + further) / 2, np.full(20, 2))
    np.testing.assert_allclose(copies.predict(EVERY), averages.predict(EVERY))
    once, often = fit(EVERY[rows], fitness), fit(EVERY[rows], fitness, np.where(np.arange(20) == 3, 25, 1))
    (kept, _), (shrunk, deviation) = often.predict(EVERY[rows]), once.predict(EVERY[rows])
    assert abs(kept[3] - fitness[3]) < abs(shrunk[3] - fitness[3]) / 2
    assert often.predict(EVERY[rows])[1][3] < deviation[3] / 2


def test_the_best_posterior_mean_is_a_better_choice_than_the_best_measurement():
    lost = []
    for rng in rngs(150):
        truth, rows, fitness = draw(rng, 80, 0.7)
        denoised, _ = fit(EVERY[rows], fitness).predict(EVERY[rows])
        lost.append([truth[rows].max() - truth[rows[values.argmax()]] for values in (fitness, denoised)])
    measured, denoised = np.array(lost).T
    assert denoised.mean() < 0.9 * measured.mean()
    assert stats.ttest_rel(denoised, measured, alternative="less").pvalue < 0.01


def test_very_poor_masks_do_not_hide_how_good_ones_differ():
    correlations = []
    for rng in rngs(20):
        truth, rows, fitness = draw(rng, 60, 0.3)
        collapsed = EVERY[:, -1] & EVERY[:, -2]
        model = fit(EVERY[rows], np.where(collapsed[rows], rng.choice([-np.inf, np.nan, -30], 60), fitness))
        mean, _ = model.predict(EVERY)
        (good,) = np.nonzero(~collapsed)
        correlations.append(stats.spearmanr(mean[good], truth[good])[0])
        assert mean[collapsed].mean() < mean[good].mean()
    assert np.median(correlations) > 0.7


# ---------------------------------------------------------------------------------------------------------------------
# Trust


@pytest.mark.parametrize(("num", "most"), [(12, 0.14), (24, 0.1), (48, 0.05)])
def test_noise_earns_no_trust(num, most):
    trusted = [fit(rng.random((num, 10)) < 0.5, rng.normal(size=num)).earns_trust for rng in rngs(200)]
    assert np.mean(trusted) <= most  # of 1,000 it is 0.08, 0.05 and 0.02


def test_signal_earns_trust():
    assert all(fit(EVERY[rows], fitness).earns_trust for _, rows, fitness in (draw(rng, 100, 0.3) for rng in rngs(20)))


def test_few_genomes_earn_no_trust_whatever_they_show():
    genomes = EVERY[np.random.default_rng(0).permutation(len(EVERY))[:12]]
    twice, fitness = np.tile(genomes[:11], (2, 1)), genomes @ np.arange(NUM_GENES)
    few = fit(twice, np.tile(fitness[:11], 2))
    assert few.cross_validated_correlation > 0.9
    assert not few.earns_trust
    assert fit(genomes, fitness).earns_trust


# ---------------------------------------------------------------------------------------------------------------------
# Screening


def test_screened_masks_are_better_than_random_ones():
    gains = []
    for rng in rngs(30):
        truth, rows, fitness = draw(rng, 30, 0.5)
        unseen = np.setdiff1d(np.arange(len(EVERY)), rows)[::8]
        chosen = unseen[screen(fit(EVERY[rows], fitness), rng, EVERY[unseen], 6)]
        assert len(set(chosen)) == 6
        gains.append(truth[chosen].mean() - truth[unseen].mean())
    assert np.mean(gains) > 0.7


def test_what_is_not_known_may_be_good():
    rng = np.random.default_rng(0)
    genomes = rng.random((40, 8)) < 0.5
    genomes[:, :2] = False
    model = fit(genomes, genomes[:, 2] + 0.1 * rng.normal(size=40))
    known, unknown, poor = np.array([[0, 0, 1, 0, 0, 0, 0, 0], [1, 1, 1, 0, 0, 0, 0, 0], [0, 0, 0, 0, 0, 0, 0, 0]], bool)
    mean, deviation = model.predict(np.array([known, unknown, poor]))
    assert mean[0] > mean[1] > mean[2]
    assert deviation[1] > 3 * deviation[0]
    assert screen(model, rng, np.array([poor, known, unknown]), 3).tolist() == [2, 1, 0]


def test_screening_fewer_than_wanted_returns_all():
    rng = np.random.default_rng(0)
    _, rows, fitness = draw(rng, 20, 0.5)
    assert sorted(screen(fit(EVERY[rows], fitness), rng, EVERY[:4], 6)) == [0, 1, 2, 3]


def test_ties_are_broken_at_random():
    model = fit(EVERY[:3], np.zeros(3))
    first = {int(screen(model, rng, EVERY[:5], 1)[0]) for rng in rngs(50)}
    assert first == {0, 1, 2, 3, 4}


# ---------------------------------------------------------------------------------------------------------------------
# Whatever comes


@settings(max_examples=60, deadline=None)
@given(
    st.integers(1, 4).flatmap(
        lambda num_genes: st.lists(
            st.tuples(
                st.tuples(*[st.booleans()] * num_genes),
                st.sampled_from([0.5, 0.5, 0.6, 0.9, -1e9, -np.inf, np.nan]),
                st.integers(1, 3),
            ),
            min_size=1,
            max_size=20,
        )
    )
)
def test_anything_can_be_fitted(told):
    genomes, fitness, counts = map(np.array, zip(*told, strict=True))
    model = fit(genomes, fitness, counts)
    every = np.array(list(np.ndindex((2,) * genomes.shape[1])), bool)
    mean, deviation = model.predict(every)
    assert np.isfinite(mean).all()
    assert np.isfinite(deviation).all()
    assert -1 <= model.cross_validated_correlation <= 1
    assert not model.earns_trust or len(model.genomes) >= 12
    assert len(set(screen(model, np.random.default_rng(0), every, 3))) == min(3, len(every))


@pytest.mark.parametrize(
    ("fitness", "level"), [([0.5], 0.5), ([0.5] * 4, 0.5), ([-np.inf] * 4, 0), ([np.nan], 0), ([0.5, -np.inf], 0.5)]
)
def test_without_any_difference_everything_is_equally_good(fitness, level):
    model = fit(EVERY[10 : 10 + len(fitness)], fitness)
    mean, deviation = model.predict(EVERY[::50])
    np.testing.assert_allclose(mean, level, atol=1e-12)
    np.testing.assert_allclose(deviation, 0, atol=1e-12)
    assert model.cross_validated_correlation == 0
    assert not model.earns_trust


@pytest.mark.parametrize(
    ("genomes", "fitness", "counts", "message"),
    [
        (np.zeros((0, 3)), [], None, r"genomes must have shape \(N, G\), neither 0, got \(0, 3\)"),
        (np.zeros(3), np.zeros(3), None, r"genomes must have shape \(N, G\), neither 0, got \(3,\)"),
        (np.zeros((2, 3)), np.zeros(3), None, r"fitness must have one value per genome, shape \(2,\), got \(3,\)"),
        (np.zeros((2, 3)), np.zeros(2), [1, 0], "counts must be positive, got 0"),
        (np.zeros((2, 3)), np.zeros(3), [1], r"shape \(2,\), got \(3,\); counts must have one value per genome, .* got \(1,\)"),
    ],
)
def test_arguments_out_of_shape(genomes, fitness, counts, message):
    with pytest.raises(ValueError, match=message):
        fit(genomes, fitness, counts)
