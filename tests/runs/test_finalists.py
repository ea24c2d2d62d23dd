import math

import chex
import jax
import numpy as np
import optax
import pytest
from etils import epath
from test_population import RECIPES, TASKS, apply_network, make_population, make_run

from gafreeze_jax.engine.cohort import Member, Plan
from gafreeze_jax.engine.optimizer import Recipe, adamw_recipe
from gafreeze_jax.engine.population import Population
from gafreeze_jax.intervals import Interval
from gafreeze_jax.metrics import cross_entropy
from gafreeze_jax.runs import baselines, finalists, racing
from gafreeze_jax.runs.evaluator import JournaledEvaluator
from gafreeze_jax.runs.finalist_store import FinalistStore
from gafreeze_jax.runs.finalists import Result
from gafreeze_jax.runs.held_out import HeldOut
from gafreeze_jax.search.history import Evaluation, Journal, Ledger
from gafreeze_jax.search.loop import evaluation_of
from gafreeze_jax.space import Space, as_genome

pytestmark = pytest.mark.usefixtures("quick_compilation")

TASK = TASKS["convolutional"]
PRETRAINED = TASK[1]
NUM_STEPS = 6
UNFREEZE = baselines.Phases(baselines.thaw)


def make_run_of(seed):
    return make_run(TASK)._replace(key=jax.random.key(seed))


def make(recipe=RECIPES["sgd"], **plan):
    return make_population(TASK, recipe, **plan)


def same(tree, name):
    return all(map(np.array_equal, *map(jax.tree.leaves, (tree[name], PRETRAINED[name]))))


def test_the_phases_go_from_the_head_down():
    assert baselines.thaw(Space("abc")).tolist() == [[1, 1, 1], [1, 1, 0], [1, 0, 0], [0, 0, 0]]
    assert baselines.thaw(Space("abcdefg")).sum(1).tolist() == [7, 5, 2, 0]
    assert baselines.thaw(Space("a")).sum(1).tolist() == [1, 1, 0, 0]


def test_gradual_unfreezing_trains_each_block_from_its_phase_on(monkeypatch):
    population, before = make(), []
    resume = population.resume
    monkeypatch.setattr(population, "resume", lambda members, *rest: before.extend(members) or resume(members, *rest))
    member = UNFREEZE(population, make_run_of(1))
    _, *before = before
    assert [one.steps for one in (*before, member)] == [2, 3, 4, 6]  # quarters of 6 steps, rounded to even
    trained = [[not same(one.params, name) for name in ("low", "high", "dense")] for one in (*before, member)]
    assert trained == [[False] * 3, [False, False, True], [False, True, True], [True] * 3]


def test_what_is_unfrozen_late_goes_by_the_same_schedule():
    late = Recipe(optax.sgd(lambda count: jax.numpy.where(count < 3, 0.0, 0.1)), optax.sgd(0.1))
    population, run = make(late), make_run_of(0)
    (member,) = population.evaluate(np.array([[True, True, True]]), run, 3)
    (member,) = population.resume([member._replace(genome=(1, 1, 0))], run, 4)
    assert not same(member.params, "dense")
    (member,) = population.evaluate(np.array([[True, True, False]]), run, 3)
    assert same(member.params, "dense")


@pytest.mark.parametrize("num_steps", [1, 2, 3])
def test_gradual_unfreezing_in_few_steps_ends_with_everything(num_steps):
    run = make_run_of(1)
    run = run._replace(batches=jax.tree.map(lambda leaf: leaf[:num_steps], run.batches))
    member = UNFREEZE(make(), run)
    assert (member.steps, any(member.genome)) == (num_steps, False)


def relative_gradient_norms(params, run, steps):
    """By `jax.grad` of the whole network."""
    network, _, source, _ = TASK

    def loss(params, step):
        batch = jax.tree.map(lambda leaf: leaf[step], run.batches)
        key = jax.random.fold_in(run.key, step)
        output = apply_network(network, params, source.data.inputs[batch.elements], batch, [False] * 3, key)
        losses = cross_entropy(output, source.data.targets[batch.examples])
        return losses @ batch.weights / batch.weights.sum()

    norm = lambda tree: np.linalg.norm(np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(tree)]))  # noqa: E731
    gradients = [jax.grad(loss)(params, step) for step in steps]
    return {name: np.mean([norm(own[name]) for own in gradients]) / norm(params[name]) for name in network.names}


def test_relative_gradient_norms_are_those_of_the_whole_network():
    population, run = make(RECIPES["adamw"]), make_run_of(3)
    member = population.begin(run)
    expected = relative_gradient_norms(PRETRAINED, run, range(5))
    assert population.relative_gradient_norms(member, run, 5) == pytest.approx(expected, rel=1e-5)
    (member,) = population.resume([member], run, 2)
    expected = relative_gradient_norms(member.params, run, [2, 3])
    assert population.relative_gradient_norms(member, run, 4) == pytest.approx(expected, rel=1e-5)


def test_parameters_that_are_zero_have_an_infinite_relative_norm():
    zero = TASK[1] | {"dense": jax.tree.map(np.zeros_like, TASK[1]["dense"])}
    members = make_population((TASK[0], zero, *TASK[2:]), RECIPES["sgd"])
    run = make_run(TASK)
    assert members.relative_gradient_norms(members.begin(run), run, 1)["dense"] == math.inf


def train_scaled(factors, recipe=RECIPES["adamw"], num_steps=NUM_STEPS):
    population, run = make_population(TASK, recipe), make_run(TASK)
    rates = tuple(factors.get(name, 1.0) for name in population.network.names)
    (member,) = population.resume([population.begin(run)._replace(rates=rates)], run, num_steps)
    return member


@pytest.mark.parametrize("norm", [2.0, math.inf])
def test_equal_norms_train_everything_alike(norm):
    (expected,) = make_population(TASK, RECIPES["adamw"]).evaluate(np.zeros((1, 3), bool), make_run(TASK), NUM_STEPS)
    member = train_scaled(baselines.shares_of_largest(dict.fromkeys(("low", "high", "dense"), norm)))
    chex.assert_trees_all_close(member.params, expected.params, rtol=1e-6, atol=1e-8)  # compilers round products differently
    assert (member.steps, member.state) == (NUM_STEPS, None)


def test_norms_scale_what_a_step_moves():
    """Of plain SGD, the first."""

    def moved(norms):
        member = train_scaled(baselines.shares_of_largest(norms), Recipe(optax.sgd(0.1), optax.sgd(0.1)), 1)
        return {name: jax.tree.map(np.subtract, member.params[name], PRETRAINED[name]) for name in PRETRAINED}

    everything = moved({})
    scaled = moved({"low": 0.0, "high": 1.0, "dense": 4.0})
    for name, scale in (("low", 0.0), ("high", 0.25), ("dense", 1.0), ("head", 1.0)):
        expected = jax.tree.map(lambda leaf, scale=scale: scale * leaf, everything[name])
        chex.assert_trees_all_close(scaled[name], expected, atol=1e-7)


@pytest.mark.parametrize(("name", "divisor"), [("train all, half rate", 2), ("train all, quarter rate", 4)])
def test_a_lower_rate_is_that_of_the_blocks_alone(name, divisor):
    run, body = make_run_of(1), 0.02
    recipe = lambda rate: adamw_recipe(learning_rate=rate, head_learning_rate=0.01, num_steps=6)  # noqa: E731
    (baseline,) = [baseline for baseline in baselines.LOWER_RATES if baseline.name == name]
    member = baseline.schedules[""](make_population(TASK, recipe(body)), run, 1, 1.0)
    (expected,) = make_population(TASK, recipe(body / divisor)).evaluate(np.zeros((1, 3), bool), run)
    chex.assert_trees_all_close(member.params, expected.params, rtol=1e-5, atol=1e-7)
    (full,) = make_population(TASK, recipe(body)).evaluate(np.zeros((1, 3), bool), run)
    assert not np.allclose(member.params["dense"]["kernel"], full.params["dense"]["kernel"])


def test_a_block_with_norm_zero_does_not_move():
    member = train_scaled({"low": 0.0, "high": 1.0, "dense": 0.5})
    assert [same(member.params, name) for name in ("low", "high", "dense", "head")] == [True, False, False, False]


def test_auto_rgn_measures_before_each_epoch(monkeypatch):
    population, run, scaled = make(RECIPES["adamw"]), make_run_of(1), []
    resume = population.resume
    monkeypatch.setattr(population, "resume", lambda members, *rest: scaled.extend(members) or resume(members, *rest))
    member = baselines.auto_rgn(population, run, 2)
    assert [before.steps for before in scaled] == [0, 3]
    for before in scaled:
        norms = relative_gradient_norms(before.params, run, range(before.steps, before.steps + 3))
        expected = [norms[name] / max(norms.values()) for name in population.network.names]
        assert before.rates == pytest.approx(expected, rel=1e-5)
    (expected,) = population.evaluate(np.zeros((1, 3), bool), run)
    assert not np.allclose(member.params["dense"]["kernel"], expected.params["dense"]["kernel"])


def test_auto_rgn_goes_on_with_blocks_that_have_no_gradient_at_first(monkeypatch):
    """As with a head that starts from zeros. They are measured again before each epoch."""
    population, run, before = make(RECIPES["adamw"]), make_run_of(1), []
    resume = population.resume
    monkeypatch.setattr(population, "resume", lambda members, *rest: before.extend(members) or resume(members, *rest))
    zeros = run._replace(head=jax.tree.map(np.zeros_like, run.head))
    member = baselines.auto_rgn(population, zeros, 2)
    _, halfway = before
    names = population.network.names
    assert [[same(one.params, name) for name in names] for one in (halfway, member)] == [[True] * 3, [False] * 3]
    assert max(halfway.rates) == 1


def retrain(population, leaders, store, record=lambda members, seed: None):
    retraining = finalists.Retraining(population, make_run_of, [1, 2], tuning_seed=0, num_epochs=2, store=store, record=record)
    schedules = [one for one in (*baselines.FURTHER[1:3], *baselines.BASELINES) if one.schedules]
    return finalists.retrain(retraining, leaders, {"train all": (0, 0, 0), "head only": (1, 1, 1)}, schedules)


def test_leaders_and_baselines_share_seeds_and_members():
    recorded = []
    found, rivals = retrain(
        make(),
        [(1, 0, 0), (0, 0, 0)],
        FinalistStore(),
        lambda members, seed: recorded.extend((member.genome, seed) for member in members),
    )
    assert sorted(recorded) == [(genome, seed) for genome in ((0, 0, 0), (1, 0, 0), (1, 1, 1)) for seed in (1, 2)]
    others = ["gradual unfreezing", "auto-RGN", "train all, half rate", "train all, quarter rate"]
    assert [one.name for one in rivals] == ["train all", "head only", *others]
    everything, head, gradual, by_norms, half, quarter = rivals
    assert half.flops == quarter.flops == everything.flops
    assert len({tuple(one.loss for one in rates.members) for rates in (everything, half, quarter)}) == 3
    assert head.flops < gradual.flops < everything.flops
    assert by_norms.flops == 2 * everything.flops  # two epochs of three steps, all of them measured before
    scores = {one.genome: one.validation for one in (found, everything)}
    if found.genome == (0, 0, 0):
        assert found.members == everything.members
    else:
        assert (scores[1, 0, 0][0], -scores[1, 0, 0][1]) >= (scores[0, 0, 0][0], -scores[0, 0, 0][1])
    assert found.best in found.members


def seeds_of_rows(leaders, monkeypatch, *, behind=(), is_thorough=False, best_rate="train all"):
    """Number of seeds of the finalists, the found one first, where some are told that they are behind.

    Args:
      best_rate: the row that trains everything and does best on the validation split.
    """
    names = []

    def race(members, metric, rows):
        genomes = [of_finalist[0].genome for of_finalist in members]
        return [Interval(0.3, 0.2, 0.4) if genome in behind else None for genome in genomes]

    monkeypatch.setattr(racing, "race", race)
    monkeypatch.setattr(finalists, "_rank_of_finalist", lambda finalist: (float(finalist.name == best_rate), 0.0))
    retraining = finalists.Retraining(
        make(),
        make_run_of,
        [1, 2, 3],
        tuning_seed=0,
        num_epochs=2,
        store=FinalistStore(),
        is_thorough=is_thorough,
        on_race=lambda raced: names.extend(one.name for one in raced if one.is_in),
    )
    masks = {"train all": (0, 0, 0), "head only": (1, 1, 1), "prefix": (1, 0, 0)}
    found, rivals = finalists.retrain(retraining, leaders, masks, baselines.LOWER_RATES[:1])
    seeds = {one.name: len(one.members) for one in (found, *rivals)}
    assert [name for name, num in seeds.items() if num == 3] == names
    return seeds


ROWS = ("found", "train all", "head only", "prefix", "train all, half rate")


@pytest.mark.parametrize(
    ("leader", "given", "expected"),
    [
        ((0, 1, 0), {}, (3, 3, 3, 3, 3)),
        ((0, 1, 0), {"behind": {(0, 0, 0), (1, 1, 1)}}, (3, 3, 2, 3, 2)),
        ((1, 0, 0), {}, (3, 3, 2, 3, 2)),
        ((1, 0, 0), {"is_thorough": True}, (3, 3, 3, 3, 3)),
        ((1, 0, 0), {"best_rate": "train all, half rate"}, (3, 3, 2, 3, 3)),
        ((0, 1, 0), {"behind": {(0, 0, 0)}, "best_rate": "train all, half rate"}, (3, 3, 3, 3, 3)),
        ((0, 0, 0), {}, (3, 3, 2, 2, 2)),
    ],
    ids=[
        "all_are_needed",
        "two_are_behind",
        "found_a_baseline",
        "found_a_baseline_thoroughly",
        "found_a_baseline_and_half_the_rate_is_better",
        "half_the_rate_is_better_and_behind",
        "found_training_everything",
    ],
)
def test_who_stays_in_the_race(leader, given, expected, monkeypatch):
    assert seeds_of_rows([leader], monkeypatch, **given) == dict(zip(ROWS, expected, strict=True))


@pytest.mark.parametrize(
    ("behind", "winner", "parts"),
    [
        ((1, 0, 1), (0, 2, 1), {"found, nothing frozen": (0, 2, 0), "found, usual rates": (0, 0, 1)}),
        ((0, 2, 1), (0, 1, 0), {"found, nothing frozen": (0, 0, 0)}),
    ],
    ids=["two_are_close", "the_second_is_behind"],
)
def test_all_seeds_name_the_winner(behind, winner, parts, monkeypatch):
    """Of the two masks that are the fittest with the first seeds, unless the second is clearly behind."""
    scores = {(0, 1, 0): (0.9, 0.9, 0.3), (0, 2, 1): (0.8, 0.8, 0.8), (1, 0, 1): (0.1, 0.1, 1.0)}
    trained = []

    def train(self, genomes, seed):
        trained.extend((genome, seed) for genome in genomes)
        return {genome: Member(genome, {}, 1.0, scores.get(genome, (0.0,) * 3)[seed - 1], 1.0, 6) for genome in genomes}

    def race(members, metric, rows):
        assert [len(of_finalist) for of_finalist in members] == [2] * len(members)
        return [Interval(0.7, 0.6, 0.8) if of_finalist[0].genome == behind else None for of_finalist in members]

    monkeypatch.setattr(finalists.Retraining, "_train_genomes", train)
    monkeypatch.setattr(racing, "race", race)
    population, store = make(space=Space(TASK[0].names, (1.0, 0.0, 0.5))), FinalistStore()
    retraining = finalists.Retraining(population, make_run_of, [1, 2, 3], tuning_seed=0, num_epochs=2, store=store)
    found, others = finalists.retrain(retraining, list(scores), {"train all": (0, 0, 0)}, [])
    assert (found.genome, len(found.members)) == (winner, 3)
    assert not {((1, 0, 1), 3), (behind, 3)}.intersection(trained)
    assert {other.name: other.genome for other in others if other.is_ablation} == parts


@pytest.mark.parametrize(("score", "loss"), [(0.9, math.nan), (math.nan, 0.1)])
def test_a_diverged_seed_never_wins(score, loss):
    good, bad = Member((1,), {}, 1.0, 0.5, 1.0, 6), Member((1,), {}, 1.0, score, loss, 6)
    assert finalists.Finalist("found", (1,), 1.0, (good, bad)).validation == (-math.inf, math.inf)
    assert finalists.Finalist("found", (1,), 1.0, (bad, good)).best is good


def count_trainable(genome):
    return genome.count(0)


def climb(trainer, ledger, genomes, *, survivors):
    """Evaluates genomes rung by rung, of which fewer go on each time; the members at the end."""
    members = [one for call in record(ledger, trainer.evaluate(genomes, 0, 2), 2) for one in call]
    for until, num in zip((4, 6), survivors, strict=True):
        members = sorted(members, key=lambda one: as_genome(one.genome))[:num]
        members = [one for call in record(ledger, trainer.resume(members, 0, until), until) for one in call]
    return members


def record(ledger, calls, steps):
    calls = list(calls)
    for members in calls:
        ledger.add(*(evaluation_of(one, 0, steps, 1, count_trainable) for one in members))
    return calls


GENOMES = np.array([[0, 0, 0], [0, 0, 1], [0, 1, 0], [1, 0, 0], [1, 1, 0]])


@pytest.mark.parametrize("num_calls", range(9))
def test_an_interrupted_climb_ends_bit_for_bit_as_an_undisturbed_one(num_calls):
    """Wherever it was interrupted: after so many of its calls. Members are stacked in threes."""
    population = make(plan=Plan(3))
    undisturbed = Journal()
    expected = climb(
        JournaledEvaluator(population, make_run_of, undisturbed), Ledger(6, undisturbed), GENOMES, survivors=(4, 2)
    )
    calls = dict.fromkeys((*undisturbed.together(one.genome, 0, one.steps), one.steps) for one in undisturbed)
    assert len(calls) == 5
    journal = Journal()
    for *genomes, steps in list(calls)[:num_calls]:
        journal.write("search", [undisturbed.recall(genome, 0, steps) for genome in genomes])
    ledger = Ledger(6, journal)
    found = climb(JournaledEvaluator(population, make_run_of, journal), ledger, GENOMES, survivors=(4, 2))
    without = lambda ledger: [one._replace(seconds=0.0) for one in ledger]  # noqa: E731
    assert sorted(without(ledger)) == sorted(without(undisturbed))
    assert all(isinstance(one, Evaluation) for one in found) == (num_calls >= 5)
    by_genome = {as_genome(one.genome): one for one in expected}
    for member in found:
        if isinstance(member, Member):
            jax.tree.map(np.testing.assert_array_equal, member.params, by_genome[as_genome(member.genome)].params)


def test_what_the_journal_knows_is_not_trained_again(monkeypatch):
    population, journal = make(), Journal()
    trainer, ledger = JournaledEvaluator(population, make_run_of, journal), Ledger(6, journal)
    record(ledger, trainer.evaluate(GENOMES[:2], 0, 2), 2)
    trained, advance = [], population.advance

    def spy(members, *rest):
        trained.append([as_genome(one.genome) for one in members])
        return advance(members, *rest)

    monkeypatch.setattr(population, "advance", spy)
    (known, *unknown) = trainer.evaluate(GENOMES[:3], 0, 2)
    assert [as_genome(one.genome) for one in known] == [(0, 0, 0), (0, 0, 1)]
    assert [len(call) for call in unknown] == [1]
    assert trained == [[(0, 1, 0)]]
    trainer.evaluate(GENOMES[:2], 1, 2)  # another seed
    assert trained[1] == [(0, 0, 0), (0, 0, 1)]


FACTS = ("name", "genome", "validation", "flops")


@pytest.mark.parametrize("kept_on_disk", [False, True])
def test_finalists_that_were_kept_are_not_trained_again(kept_on_disk, tmp_path, monkeypatch):
    folder = epath.Path(tmp_path / "members") if kept_on_disk else None
    population = make(plan=Plan(2))
    first = retrain(population, [(1, 0, 0)], FinalistStore(folder, Space("abc")))
    trained, advance = [], Population.advance
    monkeypatch.setattr(
        Population, "advance", lambda self, members, *rest: trained.extend(members) or advance(self, members, *rest)
    )
    found, rivals = retrain(population, [(1, 0, 0)], FinalistStore(folder, Space("abc")))
    assert (not trained) == kept_on_disk
    for before, after in zip([first[0], *first[1]], [found, *rivals], strict=True):
        assert [getattr(before, name) == getattr(after, name) for name in FACTS] == [True] * len(FACTS)
        for one, other in zip(before.members, after.members, strict=True):
            assert list(one.params) == list(other.params)
            jax.tree.map(np.testing.assert_array_equal, one.params, other.params)


def test_the_test_split_is_locked_until_there_is_a_result():
    _, _, source, _ = TASK
    locked = HeldOut(source)
    with pytest.raises(RuntimeError, match="opens when the search is over, for its Result; got NoneType"):
        locked.open(None)
    result = Result(None, [], [], {}, Space("abc"))
    assert locked.open(result) is source
    with pytest.raises(RuntimeError, match="opened already"):
        locked.open(result)
