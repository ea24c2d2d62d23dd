"""A run whose metric is an error, so lower is better: its page and its summary say so."""

import dataclasses
import json

import numpy as np
import pytest
import test_run_folder

from gafreeze_jax.engine.cohort import Member
from gafreeze_jax.metrics import Metric
from gafreeze_jax.report import page, summary
from gafreeze_jax.report.metric_format import MetricFormat
from gafreeze_jax.report.run_folder import RunFolder
from gafreeze_jax.runs import results, verdict
from gafreeze_jax.runs.baselines import LOWER_RATES
from gafreeze_jax.runs.finalists import Finalist, Variant
from gafreeze_jax.space import Space


@dataclasses.dataclass
class Options:
    seed: int = 0
    population: int = 2
    learning_rate: float = 0.1


ERROR = Metric(
    "mean error", lambda outputs, targets: abs(outputs - targets), lambda values: values.mean(-1), higher_is_better=False
)
FORMAT = MetricFormat(**ERROR.facts())
SPACE = Space(["a", "b"])


def finalist(name, genome, error, **others):
    """Two seeds on 100 examples; the error on the validation split is a little lower."""
    scores = -error - np.tile(np.linspace(-0.1, 0.1, 100), (2, 1))
    member = Member(SPACE.parse(genome), {}, train_loss=0.3, score=0.25 - error, loss=0.4, steps=24)
    finalist = Finalist(name, member.genome, 3e9 + 1e9 * (name != "found"), (member,) * 2, **others)
    return results.Tested(finalist, scores, 0.5, 20)


@pytest.fixture
def run(tmp_path):
    """The folder of a finished run, of which the search recorded scores: negative errors."""
    rows = [(genome, seed, steps, number, -score, *rest) for genome, seed, steps, number, score, *rest in test_run_folder.ROWS]
    test_run_folder.write(tmp_path, rows, metric=ERROR.facts())
    finalists = [finalist("found", "01", 2.5), finalist("train all", "00", 3.0)]
    finalists.append(finalist("train all, half rate", "00", 2.0, schedule=Variant(LOWER_RATES[0], "", 1.0)))
    contenders = [verdict.Contender(one.name, SPACE.text(one.genome), scores, one.flops) for one, scores, *_ in finalists[:2]]
    judged = verdict.judge(contenders[0], contenders[1:], metric=FORMAT, validation_score=-2.25)
    result = results.make_result(Options(), SPACE, finalists, judged, metric=ERROR, evaluations=[], seconds=1.0)
    results.write_json(tmp_path / "result.json", result)
    return RunFolder(tmp_path)


def test_files_hold_errors(run):
    result = json.loads((run.path / "result.json").read_text())
    assert result["metric"] == {"name": "mean error", "higher_is_better": False, "is_share": False}
    assert result["fitness"] == 2.25
    found = result["results"]["found"]
    assert (found["validation_mean_error"], found["test_mean_error"]) == (2.25, pytest.approx(2.5))
    low, high = found["test_mean_error_interval"]
    assert low < 2.5 < high
    assert result["verdict"]["differences"]["found"]["train all"]["mean"] == pytest.approx(-0.5)


def test_the_page_says_errors_and_no_percentages_of_them(run):
    text = page.render([run])
    assert "test mean error" in text
    assert "Mean error against training cost" in text
    assert "Validation mean error over generations" in text
    assert "+0.5 [0.5, 0.5]" in text  # found ahead by
    assert "accuracy" not in text.partition("<body>")[2]
    assert "points" not in text.partition("<body>")[2]
    assert ">2.25<" in text
    assert "250.0 %" not in text


def test_the_summary_says_errors(run, capsys):
    summary.print_summary(run.facts, run.path)
    printed = capsys.readouterr().out
    assert "Validation minus test mean error of the found mask: -0.25\n" in printed
    assert "test mean error 2.5 [" in printed
    assert "0.5 [0.5, 0.5] less than the best of them, train all" in printed
    assert summary.advise(run.facts) is not None  # half the learning rate has the lowest error


def test_an_unfinished_run_says_errors(tmp_path):
    rows = [("10", 0, 8, 1, -3.5, 0.8, 0.8, 20, 1.5), ("00", 0, 8, 1, -2.5, 0.7, 0.7, 30, 1.5)]
    run = test_run_folder.write(tmp_path, rows, metric=ERROR.facts())
    assert "the fittest is 00, with a validation mean error of 2.5." in page.verdict_of(run)
