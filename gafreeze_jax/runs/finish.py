"""The end of a run: the test split is opened, finalists are scored on it, and model, mask, result and page are written."""

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from gafreeze_jax import masking
from gafreeze_jax.engine.network import Source
from gafreeze_jax.engine.scoring import Scores, score_each
from gafreeze_jax.metrics import Metric
from gafreeze_jax.options import Options
from gafreeze_jax.report.display import Display
from gafreeze_jax.report.metric_format import MetricFormat
from gafreeze_jax.report.run_folder import RunFolder
from gafreeze_jax.runs import results, verdict
from gafreeze_jax.runs.finalists import Finalist, Result
from gafreeze_jax.runs.held_out import HeldOut
from gafreeze_jax.runs.narrator import TEST
from gafreeze_jax.runs.predictions import write_predictions
from gafreeze_jax.runs.racing import by_row
from gafreeze_jax.runs.remarks import class_members, majority
from gafreeze_jax.space import Genome, Space
from gafreeze_jax.tasks.base import Setup

FORWARD = 1 / 3  # of a training step's work


def finish(
    setup: Setup, held_out: HeldOut, result: Result, options: Options, out: Path, *, start: float, display: Display
) -> dict[str, Any]:
    """Scores the test split, which nothing has seen before, and writes model, mask, result and page; returns the result.

    Args:
      start: `time.perf_counter()` when the run began.
    """
    display.line(f"\nScoring the {setup.num_test:,} test examples, which nothing has seen so far ...")
    test = held_out.open(result)
    tested = _score_members(setup, test, result, steps_of_test(held_out, options), display)
    metrics = _settle(setup.problem.task.metric, result)
    display.progress.begin("writing files", training=False)
    problem = setup.problem
    metric, space = problem.task.metric, result.space
    finalists = [_score(setup, space, finalist, tested, metrics) for finalist in (result.found, *result.baselines)]
    finalists, remarks = without_diverged(finalists)
    for remark in remarks:
        display.line(remark)
    best = result.found.best
    settled = metrics[id(best)]
    if settled.threshold is not None:
        setup = setup._replace(
            facts={**setup.facts, "learned": {**setup.facts.get("learned", {}), "threshold": settled.threshold}}
        )
    params = setup.restore(best.params)
    setup.save(out / "model", params)
    write_predictions(setup, test, params, out, settled.threshold)
    _write_masks(setup, result, space, out)
    entries = results.make_result(
        options,
        space,
        finalists,
        _judge(
            finalists,
            space,
            metric,
            transferred=options.mask is not None,
            classes=class_members(problem, test.data.targets),
        ),
        metric=metric,
        evaluations=result.evaluations,
        seconds=time.perf_counter() - start,
        has_perplexity=problem.task.has_perplexity,
        dropped=result.dropped,
        **majority(problem, validation=problem.validation.data.targets, test=test.data.targets),
        **result.facts,
        **setup.facts,
        model=_scores_of_model(tested[id(best)], settled),
        seconds_of_phases={phase: round(took, 1) for phase, took in display.progress.took.items()},
    )
    results.write_json(out / "result.json", entries)
    from gafreeze_jax.report import page  # imports matplotlib

    page.write([RunFolder(out)], out / "report.html")
    return entries


def steps_of_test(held_out: HeldOut, options: Options) -> float:
    """Work of scoring the test split once, in training steps."""
    return FORWARD * held_out.num_examples / options.batch_size


def _score_members(setup: Setup, test: Source, result: Result, steps: float, display: Display) -> dict[int, Scores]:
    """Scores of all finalists' members on the test split, by the member's id: the found mask may be a baseline, too."""
    members = {id(member): member for member in result.members}
    display.progress.begin(TEST, training=False)
    display.progress.expect({TEST: steps * len(members)})
    problem = setup.problem
    scores = score_each(
        setup.network,
        map(setup.restore, (member.params for member in members.values())),
        test,
        pretrained=setup.restore(problem.params),
        loss=problem.task.loss,
        metric=problem.task.metric,
    )
    tested = {}
    for key, of_member in zip(members, scores, strict=True):
        tested[key] = of_member
        display.progress.step(steps)
    return tested


def _settle(metric: Metric, result: Result) -> dict[int, Metric]:
    """The metric for each finalist's members, by the member's id; a threshold is chosen on the validation split."""
    return {id(member): metric if metric.settle is None else metric.settle(member.values) for member in result.members}


def _score(
    setup: Setup, space: Space, finalist: Finalist, tested: Mapping[int, Scores], metrics: Mapping[int, Metric]
) -> results.Tested:
    """A finalist on the test split."""
    scores = [tested[id(member)] for member in finalist.members]
    contributions = np.stack([metrics[id(member)].contributions(tested[id(member)].values) for member in finalist.members])
    return results.Tested(
        finalist,
        scores=by_row(contributions, setup.test.rows),
        test_loss=float(np.mean([of_member.losses.mean(dtype=np.float64) for of_member in scores])),
        trainable_parameters=setup.problem.count_trainable(space.frozen(finalist.genome)),
    )


def without_diverged(finalists: Sequence[results.Tested]) -> tuple[list[results.Tested], list[str]]:
    """Finalists of which each seed that diverged, with no finite score, counts like the worst of the others; and remarks."""
    means = np.stack([row.scores.mean(1) for row in finalists])  # [finalists, seeds]
    diverged = ~np.isfinite(means)
    worst = np.min(means, where=~diverged, initial=0.0 if diverged.all() else np.inf)
    remarks = [
        f"{row.finalist.name}: {seeds.sum()} of {len(seeds)} seeds diverged, and count like the worst of all others."
        for row, seeds in zip(finalists, diverged, strict=True)
        if seeds.any()
    ]
    replaced = np.where(diverged[..., None], worst, [row.scores for row in finalists])
    return [row._replace(scores=scores) for row, scores in zip(finalists, replaced, strict=True)], remarks


def _judge(
    scored: Sequence[results.Tested],
    space: Space,
    metric: Metric,
    *,
    transferred: bool,
    classes: Mapping[str, np.ndarray],
) -> verdict.Verdict:
    def contenders(*, ablations: bool) -> list[verdict.Contender]:
        return [
            verdict.Contender(
                name=finalist.name,
                genome=space.text(finalist.genome) if finalist.is_mask else "",
                scores=scores,
                cost=finalist.flops,
            )
            for finalist, scores, *_ in scored
            if finalist.is_ablation == ablations
        ]

    found, *baselines = contenders(ablations=False)
    return verdict.judge(
        found,
        baselines,
        ablations=contenders(ablations=True),
        metric=MetricFormat(**metric.facts()),
        validation_score=scored[0].finalist.validation[0],
        transferred=transferred,
        classes=classes,
    )


def _scores_of_model(scores: Scores, metric: Metric) -> dict[str, float]:
    """Of the model that is saved, on the test split."""
    return {
        f"test_{metric.key}": metric.shown(float(metric.score(scores.values))),
        "test_loss": float(scores.losses.mean(dtype=np.float64)),
    }


def _write_masks(setup: Setup, result: Result, space: Space, out: Path) -> None:
    problem = setup.problem
    head = None if space.head == "none" else space.head

    def write(path: Path, genome: Genome) -> None:
        rates = space.multipliers(genome)
        masking.write_mask(path, problem.genes, tensors=problem.tensors, rates=rates, head=head)

    write(out / "mask.json", result.found.genome)
    for entry in result.facts.get("front", {}).get("masks", ()):
        (out / "masks").mkdir(exist_ok=True)
        write(out / "masks" / f"{entry['genome']}.json", space.parse(entry["genome"]))
