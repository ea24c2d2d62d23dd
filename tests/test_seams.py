"""A metric, a baseline and a task of one's own, each added without touching anything else."""

import json
import math

import jax.numpy as jnp
import numpy as np
import pytest

from gafreeze_jax.engine.network import Dataset
from gafreeze_jax.metrics import Metric, cross_entropy
from gafreeze_jax.models import checkpoints, plain
from gafreeze_jax.options import Options
from gafreeze_jax.report import page, summary
from gafreeze_jax.report.display import Display
from gafreeze_jax.report.run_folder import RunFolder
from gafreeze_jax.runs.baselines import BASELINES, Baseline
from gafreeze_jax.runs.main import main
from gafreeze_jax.runs.run_dir import RunDir
from gafreeze_jax.runs.search_run import run_search
from gafreeze_jax.tasks.base import CLASSIFICATION, Setup, Task, classification, make_problem, make_source

pytestmark = pytest.mark.usefixtures("quick_compilation")

RNG = np.random.default_rng(0)
INPUTS = RNG.normal(size=(60, 5)).astype(np.float32)
NUMBERS = (INPUTS @ RNG.normal(size=5)).astype(np.float32)
OPTIONS = Options(
    gens=1,
    population=2,
    epochs=2,
    batch_size=8,
    finalist_seeds=2,
    learning_rate=1e-2,
    head_learning_rate=1e-2,
    plan="members=8,steps=5,freezing=traced",
)


def make_setup(targets, task, num_outputs):
    """A dense network on the inputs: 20 examples each for training, validation and test."""
    network, shapes = plain.make_dense([5, 4, 3, num_outputs])
    params = plain.init_params(plain.jax.random.key(0), shapes)
    train, validation, test = (Dataset(INPUTS[rows], targets[rows]) for rows in np.split(np.arange(60), 3))
    return Setup(
        problem=make_problem(network, params, train, validation, OPTIONS, task=task),
        about=["a dense network"],
        network=network,
        test=make_source(test),
        num_test=20,
        restore=lambda params: params,
        save=checkpoints.write_tree,
    )


def run(setup, tmp_path):
    """The result of a run, and its page, but for its options."""
    main("custom", lambda options: setup, Options(**vars(OPTIONS) | {"out": tmp_path / "run"}))
    folder = RunFolder(tmp_path / "run")
    html, _ = page.render([folder]).split("To repeat it")  # where options stand, such as --objective accuracy
    return json.loads((tmp_path / "run" / "result.json").read_text()), html


def _squared_error(outputs, targets):
    return jnp.square(outputs[:, 0] - targets)


def _root_mean(values):
    return np.sqrt(values.mean(-1))


def _influence(values):
    root = _root_mean(values)[..., None]
    return root + (values - root**2) / (2 * root)


RMSE = Metric("RMSE", _squared_error, _root_mean, _influence, higher_is_better=False)
REGRESSION = Task(
    loss=_squared_error,
    metric=RMSE,
    predict=lambda outputs, targets: outputs[:, 0],
    write=lambda predictions: {"number": predictions.tolist()},
)


def test_a_task_of_ones_own(tmp_path, capsys):
    """Regression, by a metric that is lower for better networks."""
    result, html = run(make_setup(NUMBERS, REGRESSION, 1), tmp_path)
    assert result["metric"] == {"name": "RMSE", "higher_is_better": False, "is_share": False}
    found, everything = result["results"]["found"], result["results"]["train all"]
    assert result["fitness"] == found["validation_RMSE"] > 0
    assert 0 < found["test_RMSE"] == pytest.approx(np.mean(found["test_RMSE_by_seed"]))
    assert found["validation_RMSE"] <= max(row["validation_RMSE"] for row in result["results"].values())
    assert everything["test_RMSE"] != found["test_RMSE"] or result["best_genome"] == everything["genome"]
    header, *rows = (tmp_path / "run" / "evaluations.csv").read_text().splitlines()
    column = header.split(",").index("RMSE")
    assert all(float(row.split(",")[column]) > 0 for row in rows)
    best = min(float(row.split(",")[column]) for row in rows if row.startswith("search,"))
    printed = capsys.readouterr().out
    assert f"| Fitness: {best:.4f}" in printed
    for text in (printed, html):
        assert "RMSE" in text
        assert "accuracy" not in text


ERROR_RATE = Metric(
    "error rate",
    lambda logits, labels: (logits.argmax(-1) != labels).astype(jnp.float32),
    lambda values: values.mean(-1),
    higher_is_better=False,
    is_share=True,
)


def test_a_metric_of_ones_own(tmp_path, capsys):
    labels = (NUMBERS > 0).astype(np.int32)
    task = classification((), ERROR_RATE)
    result, html = run(make_setup(labels, task, 2), tmp_path)
    for row in result["results"].values():
        assert 0 <= row["test_error_rate"] <= 1
        assert row["validation_error_rate"] == pytest.approx(round(40 * row["validation_error_rate"]) / 40)
    assert "error rate" in html
    summary.print_summary(result, tmp_path / "run")
    printed = capsys.readouterr().out
    assert "accuracy" not in printed + html
    assert task.loss is cross_entropy


def test_a_baseline_of_ones_own():
    """A genome, and a schedule."""

    def train_twice_as_long(population, replicate, num_epochs, rate):
        (member,) = population.evaluate([population.space.all_trained], replicate)
        return member

    ends = Baseline("ends", genomes=lambda space: space.stack([(0, 1), (1, 0)]))
    warm = Baseline(
        "a schedule",
        "someone 2026",
        schedules={"": train_twice_as_long},
        cost=lambda space, flops, *_: 2 * flops(space.all_trained),
    )
    problem = make_setup((NUMBERS > 0).astype(np.int32), CLASSIFICATION, 2).problem
    with Display(problem.space(OPTIONS)) as display:
        result = run_search(problem, OPTIONS, RunDir(), display, baselines=(*BASELINES, ends, warm))
    by_name = {finalist.name: finalist for finalist in result.baselines}
    masks = ["train all", "head only", "best prefix mask", "best suffix mask", "ends"]
    assert list(by_name)[: len(masks)] == masks
    assert by_name["ends"].genome in {(0, 1), (1, 0)}
    assert by_name["ends"].is_mask
    assert not by_name["a schedule"].is_mask
    assert by_name["a schedule"].flops == 2 * by_name["train all"].flops
    assert all(math.isfinite(member.loss) for member in by_name["a schedule"].members)
