import numpy as np
import pytest
from sklearn.metrics import accuracy_score, log_loss

from gafreeze_jax.metrics import ACCURACY, PERPLEXITY, Metric

RNG = np.random.default_rng(0)
SQUARED = Metric("squared perplexity", PERPLEXITY.per_example, lambda losses: np.exp(losses.mean(-1)) ** 2)
METRICS = (ACCURACY, PERPLEXITY, SQUARED)
NAMES = ("mean", "with its influence", "by the jackknife")
LOGITS, LABELS = RNG.normal(size=(200, 4)).astype(np.float32), RNG.integers(0, 4, 200)


def test_accuracy_is_scikit_learns():
    values = ACCURACY.per_example(LOGITS, LABELS)
    assert values.shape == (200,)
    assert ACCURACY.score(values) == pytest.approx(accuracy_score(LABELS, LOGITS.argmax(-1)))


def test_perplexity_is_the_exponential_of_scikit_learns_log_loss():
    values = PERPLEXITY.per_example(LOGITS, LABELS)
    probabilities = np.exp(LOGITS) / np.exp(LOGITS).sum(-1, keepdims=True)
    score = PERPLEXITY.score(values)
    assert PERPLEXITY.shown(score) == -score == pytest.approx(np.exp(log_loss(LABELS, probabilities)), rel=1e-5)


def test_perplexity_without_a_float_is_infinite():
    assert PERPLEXITY.score(np.full(3, 1e4)) == -np.inf


@pytest.mark.parametrize("metric", METRICS, ids=NAMES)
def test_several_models_are_scored_at_once(metric):
    values = RNG.random((3, 2, 50))
    scores = metric.score(values)
    assert scores.shape == (3, 2)
    assert scores[1, 1] == pytest.approx(metric.score(values[1, 1]))


@pytest.mark.parametrize("metric", METRICS, ids=NAMES)
def test_contributions_have_the_score_as_mean_and_its_sampling_error_as_spread(metric):
    values = np.asarray(metric.per_example(LOGITS, LABELS), np.float64)
    contributions = metric.contributions(values)
    assert contributions.mean() == pytest.approx(metric.score(values))
    num = len(values)
    left_out = np.array([metric.score(np.delete(values, i)) for i in range(num)])
    jackknife = np.sqrt((num - 1) / num * np.sum((left_out - left_out.mean()) ** 2))
    assert contributions.std(ddof=1) / np.sqrt(num) == pytest.approx(jackknife, rel=0.02)
