"""What baselines train, and at which rates; that they can be resumed and compared is in test_finalists.py."""

import jax
import numpy as np
import optax
import pytest
from test_population import RECIPES, TASKS, make_population, make_run

from gafreeze_jax.engine.optimizer import Recipe
from gafreeze_jax.runs import baselines
from gafreeze_jax.space import Space, as_genome

pytestmark = pytest.mark.usefixtures("quick_compilation")

TASK = TASKS["convolutional"]
LEVELS, RATES = (1, 0, 0.5), (0.25, 1, 4)
SUBLAYERS = ["embeddings", "layer_0/attention", "layer_0/mlp", "layer_1/attention", "layer_1/mlp"]


def moved(member, name):
    return jax.tree.map(np.subtract, member.params[name], TASK[1][name])


# Without a search


@pytest.mark.parametrize(
    ("genome", "expected"),
    [
        ("0110@4", {"found, nothing frozen": "0000@4", "found, usual rates": "0110@1"}),
        ("2112@1", {"found, nothing frozen": "2002@1", "found, usual rates": "0110@1"}),  # other levels stay
        ("2102@0.25", {"found, nothing frozen": "2002@0.25", "found, usual rates": "0100@1"}),
        ("0110@1", {"found, nothing frozen": "0000@1"}),
        ("0020@1", {"found, usual rates": "0000@1"}),
        ("0000@1", {}),
    ],
)
def test_the_found_mask_without_what_it_freezes_and_without_its_rates(genome, expected):
    space = Space("abcd", LEVELS, RATES)
    found = baselines.ablations(space, space.parse(genome))
    assert {name: space.text(other) for name, other in found.items()} == expected
    assert all(isinstance(level, int) for other in found.values() for level in other)


def test_a_search_for_masks_alone_has_nothing_to_leave_out():
    assert baselines.ablations(Space("abcd"), (0, 1, 1, 0)) == {}


@pytest.mark.parametrize(
    ("names", "head", "distances"),
    [
        ("abc", "fresh", [3, 2, 1]),
        ("abc", "kept", [2, 1, 0]),
        ("abc", "none", [2, 1, 0]),
        ("a", "fresh", [1]),
        (SUBLAYERS, "fresh", [3, 2, 2, 1, 1]),
        ([*SUBLAYERS, "classifier"], "kept", [3, 2, 2, 1, 1, 0]),
        (["encoder/0", "encoder/1", "encoder/2"], "fresh", [3, 2, 1]),
    ],
)
def test_distances_from_the_top(names, head, distances):
    assert baselines.distances_from_top(Space(names, head=head)).tolist() == distances


def test_layer_wise_decay_slows_the_lowest_layers_most():
    """Of plain SGD, the first step."""
    population, run = make_population(TASK, Recipe(optax.sgd(0.1), optax.sgd(0.1))), make_run(TASK)
    run = run._replace(batches=jax.tree.map(lambda leaf: leaf[:1], run.batches))
    usual = baselines.TrainAll()(population, run)
    member = baselines.TrainAll(decay=0.5)(population, run, 1, 2.0)
    for name, factor in {"low": 2 / 8, "high": 2 / 4, "dense": 2 / 2, "head": 1}.items():
        expected = jax.tree.map(lambda leaf, factor=factor: factor * leaf, moved(usual, name))
        jax.tree.map(lambda *pair: np.testing.assert_allclose(*pair, rtol=1e-3, atol=1e-7), moved(member, name), expected)


@pytest.mark.parametrize(
    ("head", "phases"),
    [
        ("fresh", [[1, 1, 1], [1, 1, 0], [1, 0, 0], [0, 0, 0]]),
        ("kept", [[1, 1, 0], [1, 1, 0], [1, 0, 0], [0, 0, 0]]),
        ("none", [[1, 1, 0], [1, 1, 0], [1, 0, 0], [0, 0, 0]]),
    ],
)
def test_something_trains_in_each_phase_of_gradual_unfreezing(head, phases):
    assert baselines.thaw(Space("abc", head=head)).tolist() == phases


@pytest.mark.parametrize(("head", "first"), [("fresh", [1, 1, 1]), ("kept", [1, 1, 0])])
def test_linear_probing_trains_the_head_first(head, first):
    assert baselines.probe(Space("abc", head=head)).tolist() == [first, [0, 0, 0]]


def test_lp_ft_trains_the_head_for_half_of_the_steps_and_then_everything(monkeypatch):
    population, run, before = make_population(TASK, RECIPES["adamw"]), make_run(TASK), []
    resume = population.resume
    monkeypatch.setattr(population, "resume", lambda members, *rest: before.extend(members) or resume(members, *rest))
    (baseline,) = [baseline for baseline in baselines.FURTHER if baseline.name == "LP-FT"]
    member = baseline.schedules[""](population, run, 1, 4.0)
    _, halfway = before
    assert (halfway.steps, member.steps, halfway.rates) == (3, 6, (4.0, 4.0, 4.0))
    for name in ("low", "high", "dense", "head"):
        assert jax.tree.all(jax.tree.map(np.array_equal, halfway.params[name], TASK[1].get(name))) == (name != "head")
        assert not np.array_equal(member.params[name]["kernel"], halfway.params[name]["kernel"])
    flops = {(1, 1, 1): 1.0, (0, 0, 0): 3.0}
    assert baseline.flops(Space("abc"), flops.__getitem__, 6, 1) == 2.0


# By searches of their own


def trials(score, space, asked):
    """Of a population that names the fittest by a score."""

    def fittest(genomes):
        asked.append(sorted(map(space.text, genomes)))
        return max(map(as_genome, genomes), key=score)

    population = type("Population", (), {"space": space})()
    return baselines.Trials(population, None, fittest)


def test_greedy_selection_trains_the_best_gene_more_while_that_helps():
    """Two genes gain, the better one first; the third loses. Then it tries all rates."""
    space, asked = Space("abc", rates=(1, 4)), []
    gains = np.array([2.0, -1.0, 3.0])  # of training each

    def score(genome):
        return float(gains @ ~np.asarray(space.frozen(genome))) + 0.5 * (space.rate(genome) == 4)

    assert space.text(baselines.select_greedily(trials(score, space, asked))) == "010@4"
    assert asked == [
        ["011@1", "101@1", "110@1", "111@1"],
        ["010@1", "100@1", "110@1"],
        ["000@1", "010@1"],
        ["010@1", "010@4"],
    ]


def test_greedy_selection_may_end_with_nothing_or_with_everything():
    space = Space("abc")
    assert baselines.select_greedily(trials(sum, space, [])) == (1, 1, 1)
    assert baselines.select_greedily(trials(lambda genome: -sum(genome), space, [])) == (0, 0, 0)


def test_a_ranking_trains_the_highest_quarter_or_half():
    scores, asked = dict(zip("abcdefgh", (3, 1, 8, 2, 7, 5, 4, 6), strict=True)), []
    search = baselines.TrainHighest(lambda population, replicate: scores)
    space = Space("abcdefgh", rates=(0.5, 1))
    assert space.text(search(trials(lambda genome: -sum(genome), space, asked))) == "11010010@0.5"
    quarter, half = "11010111", "11010010"
    assert asked == [sorted(f"{mask}@{rate}" for mask in (quarter, half) for rate in ("0.5", "1"))]


def signal_to_noise_by_definition(matrix):
    values = np.linalg.svd(np.asarray(matrix, float), compute_uv=False)
    few, many = sorted(matrix.shape)
    low, high = np.quantile(values, [0.25, 0.75])
    limit = (high - low) / 1.349 * (1 + np.sqrt(few / many))
    return values[values > limit].sum() / (values[values <= limit].sum() or 1) / values.max()


def test_signal_to_noise_is_that_of_singular_values():
    """The kernel of a convolution has a row for each input of a patch; it has no noise here."""
    rng = np.random.default_rng(0)
    wide, square, kernel = rng.normal(size=(20, 60)), rng.normal(size=(30, 30)), rng.normal(size=(3, 3, 4, 8))
    wide[:, 0] *= 30  # a direction that stands out
    params = {
        "wide": {"kernel": wide, "bias": np.ones(60)},
        "both": {"a": square, "b": kernel},
        "vector": {"scale": np.ones(4)},
    }
    population = type("Population", (), {"params": params})()
    expected = [signal_to_noise_by_definition(matrix) for matrix in (wide, square, kernel.reshape(36, 8))]
    assert baselines.signal_to_noise(population, None) == pytest.approx({
        "wide": expected[0],
        "both": np.mean(expected[1:]),
        "vector": 0,
    })  # fmt: skip


def test_the_largest_relative_gradients_rank_first():
    population, run = make_population(TASK, RECIPES["sgd"]), make_run(TASK)
    expected = population.relative_gradient_norms(population.begin(run), run, 5)
    assert baselines.relative_gradients(population, run) == expected
    assert set(expected) == {"low", "high", "dense"}
