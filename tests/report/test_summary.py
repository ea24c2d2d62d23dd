import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from gafreeze_jax.engine.cohort import Member
from gafreeze_jax.intervals import Interval
from gafreeze_jax.metrics import ACCURACY, numbers
from gafreeze_jax.report import summary
from gafreeze_jax.report.metric_format import MetricFormat
from gafreeze_jax.runs import results, verdict
from gafreeze_jax.runs.baselines import LOWER_RATES, Baseline
from gafreeze_jax.runs.finalists import Finalist, Variant
from gafreeze_jax.search.history import Evaluation
from gafreeze_jax.space import Space, digits

NAMES = ("embeddings", "layer_0", "layer_1", "layer_2", "layer_3")


def evaluation(genome, accuracy=0.85, parameters=100):
    return Evaluation(tuple(map(int, genome)), 0, 24, 1, accuracy, 0.4, 0.3, parameters, 2.0)


def row(name, genome, validation, right, parameters, flops, schedule=None):
    """Two seeds on 100 examples, with as many right answers."""
    correct = np.arange(100)[None] < np.array(right)[:, None]
    genome = tuple(map(int, genome))
    member = Member(genome, {}, train_loss=0.3, score=validation, loss=0.4, steps=24)
    return results.Tested(Finalist(name, genome, flops, (member,) * 2, schedule), correct, 0.5, parameters)


ROWS = [row("found", "10000", 0.85, [80, 80], 900, 3e9), row("train all", "00000", 0.8, [70, 80], 1000, 4e9)]
FINALISTS = [verdict.Contender(one.name, digits(one.genome), scores, one.flops) for one, scores, *_ in ROWS]
JUDGEMENT = verdict.judge(FINALISTS[0], FINALISTS[1:], metric=MetricFormat(**ACCURACY.facts()), validation_score=0.85)


@pytest.mark.parametrize(
    ("genome", "words"),
    [
        ("11111", "train the head only"),
        ("00000", "train everything"),
        ("11000", "freeze embeddings, layer_0; train layer_1 to layer_3"),
        ("11101", "freeze embeddings to layer_1, layer_3; train layer_2"),
    ],
)
def test_a_mask_in_words(genome, words):
    assert Space(NAMES).describe(tuple(map(int, genome))) == words


@dataclasses.dataclass
class Options:
    gens: int = 3
    out: Path | None = None
    learning_rate: float = 5e-5


def result(rows=ROWS, evaluations=(), options=Options(), **facts):  # noqa: B008
    return results.make_result(
        options, Space(NAMES), rows, JUDGEMENT, metric=ACCURACY, evaluations=evaluations, seconds=12.34, **facts
    )


def test_the_table_has_a_line_per_row():
    console = Console(width=100, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(summary.comparison(result()))
    lines = [line.split() for line in console.export_text().strip().splitlines()]
    assert [lines[1][i] for i in (0, 1, 2, 4, 6, 7, 8)] == ["found", "0.8500", "0.8000", "to", "75%", "900", "(90%)"]
    assert lines[2][:4] == ["train", "all", "0.8000", "0.7500"]
    assert lines[2][-3:] == ["100%", "1,000", "(100%)"]


def test_the_summary_fits_and_says_the_verdict(capsys, tmp_path):
    summary.print_summary(result(), tmp_path)
    printed = capsys.readouterr().out
    assert "Found mask: freeze embeddings; train layer_0 to layer_3" in printed
    assert JUDGEMENT.sentence in printed
    assert "Validation minus test accuracy of the found mask: +5.0 points" in printed
    assert "…" not in printed


@pytest.mark.parametrize("columns", [80, 140])
def test_nothing_is_cut_in_the_widest_table(columns, capsys, tmp_path, monkeypatch):
    """With rates, perplexity, a long name and a large model."""
    monkeypatch.setenv("COLUMNS", str(columns))
    longest, num = "layer-wise decay 0.75", 123_456_789_012
    large = [
        tested._replace(trainable_parameters=num, test_loss=12.0)
        for tested in (*ROWS, row(longest, "00000", 0.8, [70, 80], num, 4e9))
    ]
    facts = results.make_result(
        Options(), RATED, large, JUDGEMENT, metric=ACCURACY, evaluations=(), seconds=1.0, has_perplexity=True
    )
    summary.print_summary(facts, tmp_path)
    printed = capsys.readouterr().out
    assert "…" not in printed
    (line,) = [line for line in printed.splitlines() if line.startswith(longest)]
    assert line.split()[-2:] == ["123B", "(100%)"]


@pytest.mark.parametrize(("validation", "rate"), [(0.86, "2.5e-05"), (0.84, None)])
def test_a_lower_learning_rate_that_is_best_is_recommended(validation, rate, capsys, tmp_path):
    rows = [*ROWS]
    for baseline, score in zip(LOWER_RATES, (0.82, validation), strict=True):
        rows.append(row(baseline.name, "00000", score, [75, 75], 1000, 4e9, Variant(baseline, "", 1.0)))
    facts = result(rows, options=Options(learning_rate=1e-4))
    summary.print_summary(facts, tmp_path)
    printed = capsys.readouterr().out
    assert (f"--learning-rate {rate}\n" in printed) == (rate is not None)
    assert (summary.advise(facts) is None) == (rate is None)


# What kind of task it is, and what freezing and the rates contribute

RATED, RMSE = Space(NAMES, rates=(1, 4)), numbers.rmse()


def compared(rows, space=None, dropped=(), metric=ACCURACY):
    """The result of a run with these rows, the found mask first."""
    space = space or Space(NAMES)
    found, *others = [
        (tested.finalist.is_ablation, verdict.Contender(tested.finalist.name, "", tested.scores, tested.finalist.flops))
        for tested in rows
    ]
    judgement = verdict.judge(
        found[1],
        [contender for is_ablation, contender in others if not is_ablation],
        ablations=[contender for is_ablation, contender in others if is_ablation],
        metric=MetricFormat(**metric.facts()),
    )
    made = results.make_result(
        Options(), space, rows, judgement, metric=metric, evaluations=(), seconds=1.0, dropped=[*dropped]
    )
    return json.loads(json.dumps(made, default=str))


def at_rate(name, factor, validation, right):
    baseline = Baseline(name, schedules={}, learning_rate_factor=factor)
    return row(name, "00000", validation, right, 1000, 4e9, Variant(baseline, "", 1.0))


def found_row(right, genome="10000", flops=3e9):
    return row("found", genome, 0.9, right, 900, flops)


def everything(validation, right):
    return row("train all", "00000", validation, right, 1000, 4e9)


MATTERS, LEVEL = "Which layers train matters here: the found mask is ", "No clear difference from training everything"


@pytest.mark.parametrize(
    ("rows", "begins", "ends"),
    [
        ([found_row([80, 80]), everything(0.8, [50, 50])], f"{MATTERS}+30.0 [", "] points ahead of training everything."),
        ([found_row([80, 80]), everything(0.8, [81, 80])], f"{LEVEL} (-0.5 [", "the cost, 75% of the FLOPs."),
        ([found_row([50, 50]), everything(0.8, [80, 80])], None, None),
        ([found_row([80, 80], "00000"), everything(0.8, [50, 50])], None, None),
        (  # what a lower rate gives as well is not due to the choice of layers
            [found_row([80, 80]), everything(0.8, [50, 50]), at_rate("train all, half rate", 1 / 2, 0.85, [80, 81])],
            f"{LEVEL} at its best rate (-0.5 [",
            "the cost, 75% of the FLOPs.",
        ),
        (  # validation says which rate is the best
            [found_row([80, 80]), everything(0.8, [50, 50]), at_rate("train all, half rate", 1 / 2, 0.75, [80, 81])],
            f"{MATTERS}+30.0 [",
            "] points ahead of training everything.",
        ),
        (
            [found_row([80, 80]), everything(0.8, [40, 40]), at_rate("train all, 4 times the rate", 4, 0.85, [50, 50])],
            f"{MATTERS}+30.0 [",
            "] points ahead of training everything at its best rate.",
        ),
    ],
    ids=["ahead", "level", "behind", "nothing frozen", "a lower rate is level", "a lower rate is worse", "a higher rate"],
)
def test_whether_it_matters_which_layers_train(rows, begins, ends):
    sentences = summary.regime(compared(rows))
    if begins is None:
        assert sentences == []
    else:
        (sentence,) = sentences
        assert sentence.startswith(begins)
        assert sentence.endswith(ends)


def without(name, right, behind=None):
    tested = row(name, "00000", 0.7, right, 900, 3e9)
    return tested._replace(finalist=tested.finalist._replace(is_ablation=True, behind=behind))


def test_what_freezing_and_the_rate_contribute():
    rows = [found_row([80, 80]), everything(0.8, [50, 50])]
    parts = [without("found, nothing frozen", [70, 70]), without("found, usual rates", [81, 81])]
    first, second = summary.contributions(compared([*rows, *parts], RATED))
    assert first.startswith("What it freezes changes the found mask's test accuracy by +10.0 [")
    assert second.startswith("Its learning rate changes the found mask's test accuracy by -1.0 [")
    _, second = summary.contributions(compared([*rows, *parts], Space(NAMES, (1, 0, 0.1))))
    assert second.startswith("Its learning rates change the found mask's test accuracy by -1.0 [")
    assert summary.contributions(compared(rows)) == []


@pytest.mark.parametrize(("metric", "change"), [(ACCURACY, "+20.0 [10.0, 30.0] points"), (RMSE, "-0.2 [-0.3, -0.1]")])
def test_what_contributes_so_much_that_validation_was_enough(metric, change):
    dropped = without("found, nothing frozen", [1, 1], Interval(0.2, 0.1, 0.3)).finalist
    facts = compared([found_row([80, 80]), everything(0.8, [50, 50])], RATED, [dropped], metric)
    (sentence,) = summary.contributions(facts)
    assert sentence == f"What it freezes changes the found mask's validation {metric.name} by {change}."


@dataclasses.dataclass
class Weighted(Options):
    class_weights: str = "none"


@pytest.mark.parametrize(("share", "is_told"), [(0.6, False), (0.75, True), (0.9, True)])  # the interval is 72 % to 88 %
def test_a_majority_class_that_scores_as_much(share, is_told):
    majority = {"majority": {"label": "spam", "validation_accuracy": 0.7, "test_accuracy": share}}
    remarks = summary.remarks(result(options=Weighted(), **majority))
    told = [remark for remark in remarks if remark.startswith("The majority class alone, spam, would score ")]
    assert len(told) == is_told
    for remark in told:
        assert f"score {100 * share:.1f} %: the found mask, with 80.0 % [" in remark
        assert remark.endswith("is not ahead of it; --class-weights balanced may help.")
    weighted = summary.remarks(result(options=Weighted(class_weights="balanced"), **majority))
    assert not any("may help" in remark for remark in weighted)


def test_the_result_says_what_is_needed_to_judge_and_repeat_it(tmp_path):
    evaluations = [evaluation("10000"), evaluation("00000")._replace(loss=float("nan"))]
    results.write_json(tmp_path / "result.json", result(evaluations=evaluations, options=Options(out=tmp_path)))
    read = json.loads((tmp_path / "result.json").read_text())
    assert read["options"] == {"gens": 3, "out": str(tmp_path), "learning_rate": 5e-5}
    assert {"python", "jax", "flax", "optax", "numpy", "gafreeze_jax"} <= set(read["versions"])
    assert read["stages"] == list(NAMES)
    assert (read["best_genome"], read["fitness"]) == ([1, 0, 0, 0, 0], 0.85)
    assert read["results"]["train all"]["test_accuracy"] == 0.75
    assert read["results"]["train all"]["test_accuracy_by_seed"] == [0.7, 0.8]
    assert read["results"]["found"]["frozen"] == ["embeddings"]
    differences = read["verdict"]["differences"]
    assert differences["found"]["train all"]["mean"] == -differences["train all"]["found"]["mean"]
    assert read["verdict"]["sentence"] == JUDGEMENT.sentence
    assert (read["num_evaluations"], read["num_diverged"], read["seconds"]) == (2, 1, 12.3)
    assert [path.name for path in tmp_path.iterdir()] == ["result.json"]


def test_perplexity_is_the_exponential_of_the_loss():
    console = Console(width=100, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(summary.comparison(result([ROWS[0]._replace(test_loss=np.log(20.0)), *ROWS[1:]], has_perplexity=True)))
    assert console.export_text().strip().splitlines()[1].split()[6] == "20.00"
