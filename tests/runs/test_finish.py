"""Finalists score on the test split what each scores by itself."""

import jax
import numpy as np
import pytest

from gafreeze_jax.engine.cohort import Member
from gafreeze_jax.engine.scoring import score
from gafreeze_jax.report.display import Display
from gafreeze_jax.report.metric_format import MetricFormat
from gafreeze_jax.runs import finish, results
from gafreeze_jax.runs.finalists import Finalist, Result
from gafreeze_jax.space import Space
from gafreeze_jax.tasks import images, language_model, text

pytestmark = pytest.mark.usefixtures("quick_compilation")


@pytest.fixture(params=["bert, sublayers", "gpt2 with a tied head", "resnet"])
def setup(request, tmp_path):
    """Of texts, some words are in the test split alone, and left out of what is trained."""
    model = lambda name: str(request.getfixturevalue(f"small_{name}"))  # noqa: E731
    if request.param == "bert, sublayers":
        data = str(request.getfixturevalue("reviews"))
        return text.prepare(text.Options(model=model("bert"), data=data, granularity="sublayer"))
    if request.param == "resnet":
        return images.prepare(images.Options(model=model("resnet"), data="digits:0-3", train_examples=16))
    path = tmp_path / "text.txt"
    path.write_text("It was the best of times, it was the worst of times.\n" * 40)
    return language_model.prepare(language_model.Options(model=model("gpt2"), data=str(path), max_tokens=32))


def finalist(problem, genome, trained=None):
    """Other parameters in the head and in what a genome trains, or in all of it as a schedule does."""
    frozen = dict(zip(problem.network.names, trained or genome, strict=True)) | {"head": False}
    rng = np.random.default_rng(sum(genome))
    change = lambda leaf: leaf + rng.normal(0, 0.3, np.shape(leaf)).astype(np.float32)  # noqa: E731
    params = {name: tree if frozen[name] else jax.tree.map(change, tree) for name, tree in problem.params.items()}
    return Finalist("one", genome, 1.0, (Member(genome, params, 0.0, 0.5, 0.5, 1),))


def test_a_seed_that_diverged_counts_like_the_worst_of_all_others():
    """It has no finite score where the metric is an error or a perplexity, and a verdict is given all the same."""
    scores = -np.random.default_rng(0).random((3, 5, 20))  # of errors, which are lower where better
    scores[1, 2] = -np.inf
    scores[2, 0], scores[2, 4] = np.nan, -np.inf
    tested = [
        results.Tested(Finalist(name, (gene,), cost, ()), of_finalist, 0.5, 1)
        for name, gene, cost, of_finalist in zip(
            ("found", "train all", "head only"), (0, 1, 1), (1.0, 2.0, 3.0), scores, strict=True
        )
    ]
    finite, remarks = finish.without_diverged(tested)
    assert remarks == [
        "train all: 1 of 5 seeds diverged, and count like the worst of all others.",
        "head only: 2 of 5 seeds diverged, and count like the worst of all others.",
    ]
    means = scores.mean(2)
    worst = means[np.isfinite(means)].min()
    assert [row.scores[seed].tolist() for row, seed in ((finite[1], 2), (finite[2], 0), (finite[2], 4))] == [[worst] * 20] * 3
    for row, of_finalist in zip(finite, scores, strict=True):
        kept = np.isfinite(of_finalist).all(1)
        np.testing.assert_array_equal(row.scores[kept], of_finalist[kept])
    nothing_left, _ = finish.without_diverged([tested[0]._replace(scores=np.full((2, 3), np.inf))])
    assert (nothing_left[0].scores == 0).all()


def test_members_score_what_each_scores_by_itself(setup):
    problem, task = setup.problem, setup.problem.task
    space = Space(problem.network.names)
    schedule = finalist(problem, space.all_frozen, trained=space.all_trained)
    found, *others = [finalist(problem, tuple(genome)) for genome in space.prefixes().tolist()]
    result = Result(found, [*others, found, schedule], [], {}, space)
    steps, display = [], Display(space.names, metric=MetricFormat(**task.metric.facts()), quiet=True)
    display.progress.step = steps.append
    scores = finish._score_members(setup, setup.test, result, 2.0, display)
    members = [finalist.members[0] for finalist in (found, *others, schedule)]
    assert len(scores) == len(members) == len(steps)
    for member in members:
        alone = score(setup.network, setup.restore(member.params), setup.test, loss=task.loss, metric=task.metric)
        np.testing.assert_allclose(scores[id(member)].losses, alone.losses, rtol=1e-5)
        np.testing.assert_allclose(scores[id(member)].values, alone.values, rtol=1e-5)
    losses = sorted(float(of_member.losses.mean()) for of_member in scores.values())
    assert min(np.diff(losses)) > 1e-3
