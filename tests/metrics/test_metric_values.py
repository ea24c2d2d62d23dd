"""Every metric is that of scikit-learn or SciPy, undefined cases included, and its influence is that of the jackknife."""

import functools
import warnings

import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats
from sklearn import metrics as sklearn

from gafreeze_jax.metrics import classes, label_sets, numbers, tags

NUM = 200


def make_classes(rng, num_classes, num=NUM, skill=1.0):
    """Logits and labels, the later classes rare."""
    labels = np.minimum(rng.geometric(0.5, num) - 1, num_classes - 1)
    return (rng.normal(size=(num, num_classes)) + skill * np.eye(num_classes)[labels]).astype(np.float32), labels


def make_sets(rng, num=NUM, skill=1.0):
    labels = rng.random((num, 4)) < [0.5, 0.4, 0.3, 0.2]  # of rarer ones the jackknife has wider intervals
    return (rng.normal(size=(num, 4)) - 1.5 + skill * labels).astype(np.float32), labels.astype(np.float32)


def make_numbers(rng, num=NUM, step=0.0):
    truth = rng.normal(size=num)
    predicted = 0.7 * truth + rng.normal(scale=0.5, size=num)
    if step:  # ties
        truth, predicted = (np.round(column / step) * step for column in (truth, predicted))
    return predicted[:, None].astype(np.float32), truth.astype(np.float32)


def value(metric, outputs, targets):
    values = np.asarray(metric.per_example(jnp.asarray(outputs), jnp.asarray(targets)))
    assert values.shape[-1] == len(targets)
    return metric.shown(float(metric.score(values)))


def of_classes(function, outputs, targets):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return function(targets, outputs.argmax(-1))


def of_margins(function, outputs, targets):
    return function(targets, outputs[:, 1] - outputs[:, 0])


def of_numbers(function, outputs, targets):
    return function(targets, outputs[:, 0])


def pearson(targets, outputs):
    return stats.pearsonr(targets, outputs).statistic


def spearman(targets, outputs):
    return stats.spearmanr(targets, outputs).statistic


macro = functools.partial(sklearn.f1_score, average="macro")
micro = functools.partial(sklearn.f1_score, average="micro")
CLASSES = {
    classes.BALANCED_ACCURACY: sklearn.balanced_accuracy_score,
    classes.MACRO_F1: macro,
    classes.MICRO_F1: micro,
    classes.MCC: sklearn.matthews_corrcoef,
}
MARGINS = {classes.ROC_AUC: sklearn.roc_auc_score, classes.AVERAGE_PRECISION: sklearn.average_precision_score}
NUMBERS = {
    numbers.PEARSON: pearson,
    numbers.SPEARMAN: spearman,
    numbers.rmse(): sklearn.root_mean_squared_error,
    numbers.R2: sklearn.r2_score,
}
named = functools.partial(pytest.mark.parametrize, ids=lambda value: getattr(value, "name", ""))


@named(("metric", "expected"), CLASSES.items())
@pytest.mark.parametrize("num_classes", [2, 3, 7])
def test_metrics_of_classes(metric, expected, num_classes):
    for seed in range(5):
        logits, labels = make_classes(np.random.default_rng(seed), num_classes, num=10 + 50 * seed)
        assert value(metric, logits, labels) == pytest.approx(of_classes(expected, logits, labels))


@named(("metric", "expected"), MARGINS.items())
@pytest.mark.parametrize("digits", [0, 1, 9])
def test_metrics_of_two_classes(metric, expected, digits):
    for seed in range(5):
        logits, labels = make_classes(np.random.default_rng(seed), 2)
        logits = logits.round(digits)  # with ties
        assert value(metric, logits, labels) == pytest.approx(of_margins(expected, logits, labels))


@named(("metric", "expected"), NUMBERS.items())
@pytest.mark.parametrize("step", [0.0, 0.5])
def test_metrics_of_numbers(metric, expected, step):
    for seed in range(5):
        outputs, targets = make_numbers(np.random.default_rng(seed), step=step)
        assert value(metric, outputs, targets) == pytest.approx(of_numbers(expected, outputs, targets), rel=1e-5)


def test_rmse_has_the_users_units():
    outputs, targets = make_numbers(np.random.default_rng(0))
    assert value(numbers.rmse(3.0), outputs, targets) == pytest.approx(3 * value(numbers.rmse(), outputs, targets))


DECISIONS = {
    "macro-F1": (label_sets.macro_f1, macro),
    "micro-F1": (label_sets.micro_f1, micro),
    "accuracy": (label_sets.accuracy, sklearn.accuracy_score),
}


@pytest.mark.parametrize("name", DECISIONS)
def test_metrics_of_label_sets(name):
    estimate, expected = DECISIONS[name]
    logits, labels = make_sets(np.random.default_rng(0))
    chances = 1 / (1 + np.exp(-logits))
    by_threshold = {t: of_sets(expected, chances >= np.float32(t), labels) for t in label_sets.THRESHOLDS}
    for threshold in (0.05, 0.2, 0.5):
        metric = label_sets.of_decisions(name, estimate, threshold)
        assert value(metric, logits, labels) == pytest.approx(by_threshold[threshold])
    best = label_sets.of_decisions(name, estimate)
    assert value(best, logits, labels) == pytest.approx(max(by_threshold.values()))
    settled = best.settle(np.asarray(best.per_example(logits, labels)))
    assert by_threshold[settled.threshold] == max(by_threshold.values())
    others = make_sets(np.random.default_rng(1))
    assert value(settled, *others) == pytest.approx(
        of_sets(expected, 1 / (1 + np.exp(-others[0])) >= settled.threshold, others[1])
    )


def of_sets(function, predicted, labels):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return function(labels.astype(int), predicted.astype(int))


@named(
    ("metric", "expected"),
    [(label_sets.ROC_AUC, sklearn.roc_auc_score), (label_sets.AVERAGE_PRECISION, sklearn.average_precision_score)],
)
def test_metrics_of_label_sets_by_probability(metric, expected):
    logits, labels = make_sets(np.random.default_rng(0))
    assert value(metric, logits, labels) == pytest.approx(expected(labels, logits, average="macro"))
    settled = metric.settle(np.asarray(metric.per_example(logits, labels)))
    assert value(settled, logits, labels) == value(metric, logits, labels)
    assert settled.threshold in label_sets.THRESHOLDS


ZEROS, ONES = np.zeros(6, int), np.ones(6, int)
LOGITS = np.eye(2, dtype=np.float32)[[0, 0, 1, 0, 1, 1]]
CONSTANT = np.full((6, 1), 0.5, np.float32)
RISING = np.arange(6.0, dtype=np.float32)


@pytest.mark.parametrize(
    ("metric", "outputs", "targets", "expected"),
    [
        (classes.MCC, LOGITS[:1].repeat(6, 0), np.arange(6) % 2, 0.0),  # as scikit-learn
        (classes.MCC, LOGITS, ONES, 0.0),
        (classes.MACRO_F1, LOGITS[:1].repeat(6, 0), ONES, 0.0),
        (classes.BALANCED_ACCURACY, LOGITS, ONES, 0.5),
        (classes.ROC_AUC, LOGITS, ONES, 0.5),  # scikit-learn has NaN
        (classes.AVERAGE_PRECISION, LOGITS, ZEROS, 0.0),  # as scikit-learn
        (numbers.SPEARMAN, CONSTANT, RISING, 0.0),  # SciPy has NaN
        (numbers.PEARSON, RISING[:, None], ONES, 0.0),
        (numbers.SPEARMAN, CONSTANT * np.nan, RISING, 0.0),
        (numbers.R2, CONSTANT, ONES, 0.0),  # as scikit-learn
        (numbers.R2, CONSTANT + 0.5, ONES, 1.0),
        (numbers.R2, CONSTANT * np.inf, RISING, -np.inf),
        (numbers.rmse(), CONSTANT * np.nan, RISING, np.inf),
        (label_sets.MACRO_F1, LOGITS, np.zeros((6, 2)), 0.0),
        (label_sets.MICRO_F1, LOGITS, np.zeros((6, 2)), 0.0),
        (label_sets.ROC_AUC, LOGITS, np.ones((6, 2)), 0.5),
        (label_sets.AVERAGE_PRECISION, LOGITS, np.zeros((6, 2)), 0.0),
        (tags.entity_f1(("O", "B-x")), LOGITS[:1].repeat(6, 0), np.stack([ZEROS, ZEROS], 1), 0.0),
    ],
)
def test_undefined_cases_have_a_value(metric, outputs, targets, expected):
    assert value(metric, outputs, targets) == expected
    contributions = metric.contributions(np.asarray(metric.per_example(outputs, jnp.asarray(targets)), np.float64))
    assert metric.shown(contributions.mean()) == expected


def make_tags(rng, num_sentences=60):
    """Logits and targets of words, whose tags are often right."""
    lengths = rng.integers(1, 6, num_sentences)
    sentences = np.repeat(np.arange(num_sentences), lengths)
    truth = rng.choice(len(NAMES), len(sentences), p=[0.6, 0.1, 0.1, 0.1, 0.1])
    logits = rng.normal(size=(len(truth), len(NAMES))) + 2.5 * np.eye(len(NAMES))[truth]
    return logits.astype(np.float32), np.stack([truth, sentences], 1)


NAMES = ("O", "B-city", "I-city", "B-club", "I-club")
ALL = {
    **dict.fromkeys(CLASSES, functools.partial(make_classes, num_classes=4)),
    **dict.fromkeys(MARGINS, functools.partial(make_classes, num_classes=2)),
    **dict.fromkeys(NUMBERS, make_numbers),
    **dict.fromkeys([label_sets.of_decisions(name, pair[0], 0.3) for name, pair in DECISIONS.items()], make_sets),
    **dict.fromkeys([label_sets.ROC_AUC, label_sets.AVERAGE_PRECISION], make_sets),
    **dict.fromkeys([tags.entity_f1(NAMES), tags.TOKEN_ACCURACY], make_tags),
}


@named(("metric", "make"), ALL.items())
def test_influence_is_that_of_the_jackknife(metric, make):
    outputs, targets = make(np.random.default_rng(0))
    values = np.asarray(metric.per_example(outputs, targets), np.float64)
    contributions = metric.contributions(values)
    assert contributions.mean() == pytest.approx(metric.score(values), abs=1e-12)
    units = targets[:, 1] if make is make_tags else np.arange(len(targets))
    num = len(contributions)
    assert num == len(np.unique(units))
    left_out = np.array([metric.score(values[..., units != unit]) for unit in range(num)])
    by_jackknife = metric.score(values) + (num - 1) * (left_out.mean() - left_out)
    assert contributions.std() == pytest.approx(by_jackknife.std(), rel=0.05)
    assert np.corrcoef(contributions, by_jackknife)[0, 1] > 0.98


@named("metric", list(ALL))
def test_several_models_are_scored_at_once(metric):
    outputs, targets = ALL[metric](np.random.default_rng(0))
    values = np.asarray(metric.per_example(outputs, targets), np.float64)
    several = np.stack([values, values])[:, None]
    assert metric.score(several).shape == (2, 1)
    assert metric.score(several)[1, 0] == metric.score(values)
    np.testing.assert_array_equal(metric.contributions(several)[0, 0], metric.contributions(values))


# Entities. Cases and values of the first group are those of seqeval's documentation and tests.

O3 = ["O", "O", "O"]


def entity_f1(truth, predicted):
    """Of lists of sentences."""
    names = tuple(sorted({tag for sentence in (*truth, *predicted) for tag in sentence}))
    sentences = np.repeat(np.arange(len(truth)), list(map(len, truth)))
    flat = [np.array([names.index(tag) for sentence in side for tag in sentence]) for side in (predicted, truth)]
    return tags.entity_f1(names).score(np.stack([*flat, sentences]))


@pytest.mark.parametrize(
    ("truth", "predicted", "expected"),
    [
        (
            [["O", "O", "O", "B-MISC", "I-MISC", "I-MISC", "O"], ["B-PER", "I-PER", "O"]],
            [["O", "O", "B-MISC", "I-MISC", "I-MISC", "I-MISC", "O"], ["B-PER", "I-PER", "O"]],
            0.5,
        ),
        ([["B-PER", "I-PER", "O"]], [["B-PER", "I-PER", "O"]], 1.0),
        ([["B-PER", "I-PER", "O"]], [O3], 0.0),
        ([["B-PER", "O", "B-ORG"]], [["B-PER", "O", "B-PER"]], 0.5),  # the type is wrong
        ([["B-PER", "I-PER", "O"]], [["I-PER", "I-PER", "O"]], 1.0),  # I- begins an entity
        ([["B-PER", "I-PER", "O"]], [["B-PER", "B-PER", "O"]], 0.0),
        ([["B-PER", "I-PER", "I-PER"]], [["B-PER", "I-ORG", "I-PER"]], 0.0),  # a type of its own in the middle
        ([["O", "B-PER"], ["B-PER", "O"]], [["O", "B-PER"], ["I-PER", "O"]], 1.0),  # ends with its sentence
        ([["B-A", "E-A", "S-B"]], [["B-A", "I-A", "S-B"]], 1.0),
        ([["B-A", "E-A", "S-A"]], [["B-A", "E-A", "I-A"]], 1.0),
        ([["B-A", "L-A", "U-B"]], [["B-A", "L-A", "O"]], 2 / 3),
        ([["B-A", "I-A", "O", "B-B"]], [["B-A", "I-A", "B-B", "O"]], 0.5),
    ],
)
def test_entities_are_counted_as_by_the_conll_scorer(truth, predicted, expected):
    assert entity_f1(truth, predicted) == pytest.approx(expected)


def test_entities_are_those_found_word_by_word():
    """By a loop over words, as in the CoNLL scorer."""

    def entities(words):
        found, start, before = set(), None, ("O", "", None)
        for i, (tag, sentence) in enumerate([*words, ("O", None)]):
            prefix, _, kind = tag.partition("-")
            goes_on = sentence == before[2] and kind == before[1] and prefix in "IE" and before[0] in "BI" and kind
            if start is not None and not goes_on:
                found.add((start, i, before[1]))
                start = None
            if kind and not goes_on:
                start = i
            before = (prefix, kind, sentence)
        return found

    names = ("O", *(f"{prefix}-{kind}" for prefix in "BIES" for kind in ("x", "y")))
    rng = np.random.default_rng(0)
    predicted, truth = rng.integers(0, len(names), (2, 400))
    sentences = np.sort(rng.integers(0, 90, 400))
    ours, theirs = (entities([(names[tag], s) for tag, s in zip(side, sentences, strict=True)]) for side in (predicted, truth))
    expected = 2 * len(ours & theirs) / (len(ours) + len(theirs))
    assert len(ours & theirs) > 5
    assert tags.entity_f1(names).score(np.stack([predicted, truth, sentences])) == pytest.approx(expected)
