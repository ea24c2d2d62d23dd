"""What a run says where its numbers mislead."""

import math

import numpy as np
import pytest
import test_seams
from sklearn import metrics
from test_verdict import judge

from gafreeze_jax.engine.network import Dataset
from gafreeze_jax.metrics import ACCURACY
from gafreeze_jax.options import OptionError
from gafreeze_jax.report.display import Display
from gafreeze_jax.report.metric_format import MetricFormat
from gafreeze_jax.runs.remarks import class_members, majority, remarks_on_search
from gafreeze_jax.runs.run_dir import RunDir
from gafreeze_jax.runs.search_run import run_search
from gafreeze_jax.runs.verdict import Contender
from gafreeze_jax.search.history import Evaluation
from gafreeze_jax.tasks.base import classification, language_modelling
from gafreeze_jax.tasks.kinds import OF_TWO_CLASSES

LABELS = np.array([0] * 29 + [1])
NAMES = ("no", "yes")


class Stub:
    """What is read of a problem."""

    def __init__(self, task, targets=LABELS):
        self.task, self.train = task, self
        self.data = Dataset(targets, targets)


def test_the_majority_class_is_that_of_training():
    problem = Stub(classification(NAMES))
    assert majority(problem, validation=LABELS, test=1 - LABELS) == {
        "majority": {"label": "no", "validation_accuracy": pytest.approx(29 / 30), "test_accuracy": pytest.approx(1 / 30)}
    }
    assert list(class_members(Stub(classification(()), 1 - LABELS), LABELS)) == ["1", "0"]


@pytest.mark.parametrize("name", OF_TWO_CLASSES)
def test_the_majority_class_alone_by_each_metric(name):
    """As scikit-learn has it for constant answers."""
    constant = np.zeros(30)
    expected = {
        "accuracy": 29 / 30,
        "balanced-accuracy": 0.5,
        "macro-f1": metrics.f1_score(LABELS, constant, average="macro"),
        "micro-f1": 29 / 30,
        "mcc": 0,
        "roc-auc": 0.5,
        "average-precision": metrics.average_precision_score(LABELS, constant),
    }[name]
    found = majority(Stub(classification(NAMES, OF_TWO_CLASSES[name])), test=LABELS)["majority"]
    assert found == {"label": "no", f"test_{OF_TWO_CLASSES[name].key}": pytest.approx(expected)}


def test_targets_that_are_no_classes_have_none():
    assert majority(Stub(language_modelling()), validation=LABELS) == {}
    other = ACCURACY._replace(name="share of something else")
    assert majority(Stub(classification(NAMES, other)), validation=LABELS) == {}


# The verdict


def verdict_on(*predictions):
    """On models that predict these classes with both seeds: "found", which costs half, and baselines."""
    members = class_members(Stub(classification(NAMES)), LABELS)
    contenders = [
        Contender(f"row {i}", "10" if not i else "00", np.tile(predicted == LABELS, (2, 1)), 2.0 - (i == 0))
        for i, predicted in enumerate(predictions)
    ]
    return judge(contenders[0], contenders[1:], classes=members)


def test_the_verdict_says_that_only_the_majority_class_is_predicted():
    verdict = verdict_on(0 * LABELS, 0 * LABELS, 0 * LABELS)
    assert verdict.outcome == "not better"
    assert verdict.sentence == (
        "Nothing was learned: every model gives all test examples the majority class, no, so test accuracies are that class's "
        "share; the found mask has 96.7 %."
    )


def test_other_constants_are_no_better():
    assert "every model gives all test examples a single class, so" in verdict_on(0 * LABELS, 0 * LABELS + 1).sentence


def test_one_model_that_learns_is_enough():
    assert "Nothing was learned" not in verdict_on(0 * LABELS, LABELS).sentence
    wrong = LABELS.copy()
    wrong[0], wrong[-1] = 1, 1  # the majority's share, of other examples
    assert "Nothing was learned" not in verdict_on(0 * LABELS, wrong).sentence


def test_a_test_split_of_one_class_does_not_tell_whether_anything_was_learned():
    classes = {"no": np.ones(30, bool), "yes": np.zeros(30, bool)}
    contenders = [
        Contender(name, genome, np.ones((2, 30), bool), 1.0) for name, genome in (("found", "10"), ("train all", "00"))
    ]
    assert "Nothing was learned" not in judge(contenders[0], contenders[1:], classes=classes).sentence


def test_a_seed_that_diverged_leaves_no_gap():
    correct = np.tile(LABELS == 0, (2, 1))
    contenders = [Contender("found", "10", correct, 1.0), Contender("train all", "00", correct, 2.0)]
    assert judge(contenders[0], contenders[1:], validation_score=-math.inf).gap is None


# The search


def test_a_run_of_which_all_masks_diverge_ends():
    problem = test_seams.make_setup((test_seams.NUMBERS > 0).astype(np.int32), classification(()), 2).problem
    data = problem.train.data
    problem = problem._replace(train=problem.train._replace(data=data._replace(inputs=np.inf * data.inputs)))
    message = "--learning-rate 0.01, --head-learning-rate 0.01: all masks diverged; choose lower rates"
    with pytest.raises(OptionError, match=message), Display(problem.space(test_seams.OPTIONS)) as display:
        run_search(problem, test_seams.OPTIONS, RunDir(), display)


STEPS = 8


def evaluation(number, score, steps=STEPS, loss=0.5):
    genome = tuple(int(digit) for digit in f"{number:05b}")
    return Evaluation(genome, 0, steps, 1, score, loss, loss, 10, 1.0)


def remarks(scores, num_validation=30, num_diverged=0, **others):
    rows = [evaluation(i, score) for i, score in enumerate(scores)]
    rows += [evaluation(len(rows) + i, 0.1, loss=math.nan) for i in range(num_diverged)]
    given = {"metric": MetricFormat(**ACCURACY.facts()), "num_leaders": 2, "learning_rate": 0.1} | others
    return remarks_on_search(rows, num_steps=STEPS, num_validation=num_validation, **given)


ALL_SAME = (
    "All 4 masks that were trained to the end have the same validation accuracy, 96.7 %, so only the loss tells them apart."
)
TOO_SMALL = "3 masks are within one of the 30 validation examples of the fittest: a larger validation split would tell more of"


def test_fitness_that_is_all_the_same():
    assert remarks([29 / 30] * 4) == [ALL_SAME]


def test_a_validation_split_that_is_too_small():
    (remark,) = remarks(np.float32([0.9, 0.9 - 1 / 30, 0.9, 0.9 - 2 / 30]))
    assert remark.startswith(TOO_SMALL)
    assert remarks([0.9, 0.9 - 1 / 30, 0.5, 0.4]) == []
    assert remarks([0.9, 0.9 - 1 / 30, 0.9], num_validation=3000) == []
    assert remarks([-2.0, -2.0, -2.01], metric=MetricFormat("error", higher_is_better=False, is_share=False)) == []


def test_a_learning_rate_that_is_too_high():
    assert remarks([0.9, 0.1], num_diverged=3) == ["3 of 5 masks diverged: --learning-rate 0.1 is too high for them."]
    assert remarks([0.9, 0.1], num_diverged=2) == []
