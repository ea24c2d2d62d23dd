import math

import chex
import jax
import numpy as np
import optax
import pytest
from test_population import RECIPES, TASKS, apply_network, make_population, make_run

from gafreeze_jax import experiment, finalists
from gafreeze_jax.finalists import Recall, Recalled, Trainer
from gafreeze_jax.ledger import Evaluation, Ledger
from gafreeze_jax.population import Member, Recipe

TASK = TASKS["convolutional"]
NUM_STEPS = 6
PRETRAINED = TASK[1]


def make_trainer(recipe=RECIPES["sgd"]):
    run = make_run(TASK)
    return Trainer(make_population(TASK, recipe), lambda seed: run._replace(key=jax.random.key(seed)))


def same(tree, name):
    return all(map(np.array_equal, *map(jax.tree.leaves, (tree[name], PRETRAINED[name]))))


def test_the_phases_go_from_the_head_down():
    assert finalists.phases(3).astype(int).tolist() == [[1, 1, 1], [1, 1, 0], [1, 0, 0], [0, 0, 0]]
    assert finalists.phases(7).sum(1).tolist() == [7, 5, 2, 0]
    assert finalists.phases(1).sum(1).tolist() == [1, 1, 0, 0]


def test_gradual_unfreezing_trains_each_stage_from_its_phase_on(monkeypatch):
    trainer, before = make_trainer(), []
    resume = trainer.resume
    monkeypatch.setattr(trainer, "resume", lambda members, *rest: before.extend(members) or resume(members, *rest))
    member = finalists.unfreeze_gradually(trainer, 1, NUM_STEPS)
    assert [one.steps for one in (*before, member)] == [2, 3, 4, 6]  # quarters of 6 steps, rounded to even
    trained = [[not same(one.params, name) for name in ("low", "high", "dense")] for one in (*before, member)]
    assert trained == [[False] * 3, [False, False, True], [False, True, True], [True] * 3]


def test_what_is_unfrozen_late_goes_by_the_same_schedule():
    late = Recipe(optax.sgd(lambda count: jax.numpy.where(count < 3, 0.0, 0.1)), optax.sgd(0.1))
    trainer = make_trainer(late)
    (member,) = trainer.evaluate(np.array([[True, True, True]]), 0, 3)
    (member,) = trainer.resume([member._replace(genome=np.array([True, True, False]))], 0, 4)
    assert not same(member.params, "dense")
    (member,) = trainer.evaluate(np.array([[True, True, False]]), 0, 3)
    assert same(member.params, "dense")


@pytest.mark.parametrize("num_steps", [1, 2, 3])
def test_gradual_unfreezing_in_few_steps_ends_with_everything(num_steps):
    member = finalists.unfreeze_gradually(make_trainer(), 1, num_steps)
    assert (member.steps, member.genome.any()) == (num_steps, False)


def relative_gradient_norms(params, run, steps):
    """By `jax.grad` of the whole network."""
    network, _, source, _ = TASK

    def loss(params, step):
        batch = jax.tree.map(lambda leaf: leaf[step], run.batches)
        key = jax.random.fold_in(run.key, step)
        output = apply_network(network, params, source.data.inputs[batch.elements], batch, [False] * 3, key)
        losses, _ = network.loss(output, source.data.targets[batch.examples])
        return losses @ batch.weights / batch.weights.sum()

    norm = lambda tree: np.linalg.norm(np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(tree)]))  # noqa: E731
    gradients = [jax.grad(loss)(params, step) for step in steps]
    return {name: np.mean([norm(own[name]) for own in gradients]) / norm(params[name]) for name in network.names}


def test_relative_gradient_norms_are_those_of_the_whole_network():
    trainer = make_trainer(RECIPES["adamw"])
    run = trainer.run(3)
    member = trainer.population.begin(run)
    expected = relative_gradient_norms(PRETRAINED, run, range(5))
    assert trainer.population.relative_gradient_norms(member, run, 5) == pytest.approx(expected, rel=1e-5)
    (member,) = trainer.resume([member], 3, 2)
    expected = relative_gradient_norms(member.params, run, [2, 3])
    assert trainer.population.relative_gradient_norms(member, run, 4) == pytest.approx(expected, rel=1e-5)


def test_parameters_that_are_zero_have_an_infinite_relative_norm():
    zero = TASK[1] | {"dense": jax.tree.map(np.zeros_like, TASK[1]["dense"])}
    members = make_population((TASK[0], zero, *TASK[2:]), RECIPES["sgd"])
    run = make_run(TASK)
    assert members.relative_gradient_norms(members.begin(run), run, 1)["dense"] == math.inf


def train_scaled(norms, recipe=RECIPES["adamw"], num_steps=NUM_STEPS):
    members, run = make_population(TASK, finalists.scalable(recipe)), make_run(TASK)
    (member,) = members.resume([finalists.scale_learning_rates(members.begin(run), norms)], run, num_steps)
    return member


@pytest.mark.parametrize("norm", [2.0, math.inf])
def test_equal_norms_train_everything_alike(norm):
    (expected,) = make_population(TASK, RECIPES["adamw"]).evaluate(np.zeros((1, 3), bool), make_run(TASK), NUM_STEPS)
    member = train_scaled(dict.fromkeys(("low", "high", "dense"), norm))
    chex.assert_trees_all_close(member.params, expected.params, rtol=1e-6)
    assert (member.steps, member.state) == (NUM_STEPS, None)


def test_norms_scale_what_a_step_moves():
    """Of plain SGD, the first."""

    def moved(norms):
        member = train_scaled(norms, Recipe(optax.sgd(0.1), optax.sgd(0.1)), 1)
        return {name: jax.tree.map(np.subtract, member.params[name], PRETRAINED[name]) for name in PRETRAINED}

    everything = moved({})
    scaled = moved({"low": 0.0, "high": 1.0, "dense": 4.0})
    for name, scale in (("low", 0.0), ("high", 0.25), ("dense", 1.0), ("head", 1.0)):
        expected = jax.tree.map(lambda leaf, scale=scale: scale * leaf, everything[name])
        chex.assert_trees_all_close(scaled[name], expected, atol=1e-7)


def test_a_stage_with_norm_zero_does_not_move():
    member = train_scaled({"low": 0.0, "high": 1.0, "dense": 0.5})
    assert [same(member.params, name) for name in ("low", "high", "dense", "head")] == [True, False, False, False]


def test_auto_rgn_measures_before_each_epoch(monkeypatch):
    trainer, scaled = make_trainer(RECIPES["adamw"]), []
    scale = finalists.scale_learning_rates
    monkeypatch.setattr(finalists, "scale_learning_rates", lambda *given: scaled.append(given) or scale(*given))
    population = trainer.population.with_recipe(finalists.scalable(RECIPES["adamw"]))
    member = finalists.auto_rgn(population, trainer.run(1), NUM_STEPS, 2)
    assert [before.steps for before, _ in scaled] == [0, 3]
    for before, norms in scaled:
        steps = range(before.steps, before.steps + 3)
        assert norms == pytest.approx(relative_gradient_norms(before.params, trainer.run(1), steps), rel=1e-5)
    (expected,) = trainer.evaluate(np.zeros((1, 3), bool), 1, NUM_STEPS)
    assert not np.allclose(member.params["dense"]["kernel"], expected.params["dense"]["kernel"])


def test_leaders_and_baselines_share_seeds_and_members():
    recorded = []
    found, baselines = finalists.retrain(
        make_trainer(),
        ["100", "000"],
        {"train all": "000", "head only": "111"},
        [1, 2],
        NUM_STEPS,
        2,
        lambda member, seed: recorded.append((tuple(member.genome.astype(int)), seed)),
    )
    assert sorted(recorded) == [(genome, seed) for genome in ((0, 0, 0), (1, 0, 0), (1, 1, 1)) for seed in (1, 2)]
    assert [one.name for one in baselines] == ["train all", "head only", "gradual unfreezing", "auto-RGN"]
    everything, head, gradual, by_norms = baselines
    assert head.flops < gradual.flops < everything.flops
    assert by_norms.flops == 2 * everything.flops  # two epochs of three steps, all of them measured before
    scores = {one.genome: one.validation for one in (found, everything)}
    if found.genome == "000":
        assert found.members == everything.members
    else:
        assert (scores["100"][0], -scores["100"][1]) >= (scores["000"][0], -scores["000"][1])
    assert found.best in found.members


def test_a_diverged_seed_never_wins():
    good, bad = Member(np.ones(1, bool), {}, 1.0, 0.5, 1.0, 6), Member(np.ones(1, bool), {}, 1.0, 0.9, math.nan, 6)
    assert finalists.Finalist("found", "1", (good, bad), 1.0).validation == (-math.inf, math.inf)
    assert finalists.Finalist("found", "1", (bad, good), 1.0).best is good


class Untouchable:
    """A trainer that must not be asked, but for what is given."""

    def __init__(self, *known):
        self.known, self.asked = known, []

    def evaluate(self, genomes, seed, until):
        for genome in genomes:
            self.asked.append(("".join(map(str, genome.astype(int))), until))
            yield Member(genome, {}, 0.1, 0.2, 0.3, until)

    def resume(self, members, seed, until):
        return self.evaluate(np.array([member.genome for member in members]), seed, until)


def test_what_a_ledger_knows_is_not_trained_again():
    ledger = Ledger(6)
    for steps, genome in ((2, "01"), (6, "01"), (2, "10")):
        ledger.add(Evaluation(genome, 0, steps, 1, 0.7, 0.5, 0.4, 10, 1.0))
    trainer = Untouchable()
    recall = Recall(trainer, ledger)
    members = list(recall.evaluate(np.array([[0, 1], [1, 0], [1, 1]], bool), 0, 2))
    assert trainer.asked == [("11", 2)]
    assert [isinstance(member, Recalled) for member in members] == [True, True, False]
    ended = list(recall.resume(members, 0, 6))
    assert trainer.asked == [("11", 2), ("10", 6), ("11", 6)]  # "10" from the start
    assert sorted("".join(map(str, member.genome.astype(int))) for member in ended) == ["01", "10", "11"]
    assert next(recall.evaluate(np.array([[0, 1]], bool), 1, 2)).accuracy == 0.2  # another seed


def test_the_test_split_is_locked_until_there_is_a_result():
    _, _, source, _ = TASK
    locked = experiment.Locked(source)
    with pytest.raises(RuntimeError, match="opens when the search is over, for its Result; got NoneType"):
        locked.open(None)
    result = experiment.Result(None, [], [], {})
    assert locked.open(result) is source
    with pytest.raises(RuntimeError, match="opened already"):
        locked.open(result)
