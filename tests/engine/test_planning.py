"""The plan: what is tried, what is chosen, and what a call takes of memory."""

import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import test_population as tasks

from gafreeze_jax.engine import costs, planning
from gafreeze_jax.engine.cohort import Plan
from gafreeze_jax.engine.costs import bytes_of_cohort
from gafreeze_jax.engine.planning import Trial, Work

pytestmark = pytest.mark.usefixtures("quick_compilation")

BIG = Work(num_genes=7, num_steps=24, at_a_time=24, num_evaluations=60, num_members=8, tiny=False, large=False, num_cores=2)
STAGED = Trial(Plan(), compile_seconds=10, num_timed=3, step_seconds=0.3)


def with_many_classes():
    """Convolutions, with 3,000 classes in place of 3."""
    network, *rest = tasks.TASKS["convolutional"]
    return network._replace(head=lambda *args, **kwargs: jnp.repeat(network.head(*args, **kwargs), 1000, axis=-1)), *rest


@pytest.mark.parametrize(
    ("text", "plan"),
    [
        ("members=4", Plan(4)),
        ("steps=10, members=2", Plan(2, 10)),
        ("calls=2", Plan(calls=2)),
        ("members=8,steps=50,freezing=traced", Plan(8, 50, "traced")),
    ],
)
def test_plans_are_read(text, plan):
    assert planning.parse(text) == plan


@pytest.mark.parametrize(
    "text", ["members=0", "members=-1", "calls=0", "steps=x", "freezing=maybe", "fast", "members", "freezing=traced"]
)
def test_bad_plans_are_refused(text):
    with pytest.raises(ValueError, match="plan"):
        planning.parse(text)


def test_a_plan_that_ran_out_of_memory_is_kept_as_json():
    choice = planning.Choice(Plan(2), "the fastest", (STAGED, STAGED._replace(step_seconds=math.inf)))
    text = json.dumps(planning.as_json(choice, choice.plan), allow_nan=False)
    assert planning.from_json(json.loads(text)) == choice


def test_on_a_cpu_a_large_network_runs_block_by_block():
    first, *others = planning.candidates(BIG)
    assert first == Plan(calls=2)
    trial = STAGED._replace(plan=first)
    assert all(planning.possible_saving(BIG, [trial], plan) == 0 for plan in others)


def test_more_calls_at_the_same_time_are_tried_while_it_helps():
    trials = [STAGED._replace(plan=Plan(calls=2))]
    assert planning.possible_saving(BIG, trials, Plan(calls=4)) > planning.cost_of_trying(trials, Plan(calls=4))
    trials.append(STAGED._replace(plan=Plan(calls=4), step_seconds=0.29))
    assert planning.possible_saving(BIG, trials, Plan(calls=8)) == 0


def test_calls_at_the_same_time_are_at_most_as_many_as_cores():
    assert [plan.calls for plan in planning.candidates(BIG._replace(num_cores=6)) if plan.steps == 0] == [2, 4, 6]
    assert [plan.calls for plan in planning.candidates(BIG._replace(num_cores=1)) if plan.steps == 0] == [1]


def test_on_an_accelerator_members_are_stacked_while_it_helps():
    work = BIG._replace(num_cores=0, num_members=64)
    assert [plan.members for plan in planning.candidates(work) if plan.steps == 0] == [1, 4, 16, 64]
    helped = [STAGED, STAGED._replace(plan=Plan(4), step_seconds=0.1)]
    did_not = [STAGED, STAGED._replace(plan=Plan(4), step_seconds=0.29)]
    assert planning.possible_saving(work, helped, Plan(16)) > 0
    assert planning.possible_saving(work, did_not, Plan(16)) == 0


def test_several_devices_share_the_members_of_a_call():
    several = planning.candidates(BIG._replace(num_cores=0, num_members=16, num_devices=8))
    assert several == [Plan(8), Plan(32), Plan(128), Plan(128, 24, "traced")]
    assert planning.candidates(BIG._replace(large=True, num_devices=4)) == [Plan(4)]  # no calls at the same time


def test_static_programs_of_whole_steps_are_paid_for_every_mask():
    trial = Trial(Plan(1, 1, "static"), compile_seconds=30, num_timed=3, step_seconds=0.3)
    assert BIG.seconds(trial) == pytest.approx(10 * 57 + 60 * 24 * 0.3)


def test_convolutions_by_xla_are_never_in_a_loop():
    """Once such a program was timed for 31 s, for a search of 18 s."""
    work = BIG._replace(convolves=True)
    for tiny in (False, True):
        plans = planning.candidates(work._replace(tiny=tiny))
        assert plans[0].steps == 0
        assert max(plan.steps for plan in plans) == 1
        assert planning.candidates(work._replace(tiny=tiny, in_blocks=False))[0] == Plan(1, 1, "traced")
    for name, convolves in (("convolutional", True), ("bert", False)):
        task = tasks.TASKS[name]
        members = tasks.make_population(task, tasks.RECIPES["sgd"])
        assert costs.convolves(members, members.space.all_trained, tasks.make_run(task)) == convolves


def test_a_tiny_network_runs_all_members_in_one_program():
    task = tasks.TASKS["bert"]
    members = tasks.make_population(task, tasks.RECIPES["sgd"])
    choice = planning.choose(members, tasks.ALL_MASKS, tasks.make_run(task), num_evaluations=50)
    assert choice.plan == Plan(len(tasks.ALL_MASKS), tasks.NUM_STEPS, "traced")


def test_nothing_is_timed_where_only_one_plan_makes_sense(monkeypatch):
    assert planning.candidates(BIG._replace(large=True)) == [Plan(calls=2)]
    assert len(planning.candidates(BIG._replace(large=True, num_cores=8))) == 3  # 2, 4 and 8 calls
    monkeypatch.setattr(planning, "TINY_FLOPS", 0)
    monkeypatch.setattr(planning, "LARGE_FLOPS", 0)
    monkeypatch.setattr(planning.os, "cpu_count", lambda: 2)
    task = tasks.TASKS["convolutional"]
    members = tasks.make_population(task, tasks.RECIPES["sgd"])
    choice = planning.choose(members, tasks.ALL_MASKS, tasks.make_run(task), num_evaluations=50)
    assert (choice.plan, choice.trials) == (Plan(calls=2), ())


@pytest.mark.parametrize("num_members", [1, 3])
def test_the_memory_of_a_call_is_what_xla_says(num_members):
    task = tasks.TASKS["bert"]
    members, run = tasks.make_population(task, tasks.RECIPES["sgd"]), tasks.make_run(task)
    of_call = lambda plan: bytes_of_cohort(members, plan, tasks.ALL_MASKS[:num_members], run)  # noqa: E731
    assert of_call(Plan(num_members)) == pytest.approx(of_call(Plan(num_members, 1)), rel=0.25)


def test_members_of_one_program_are_as_many_as_xla_says_fit(monkeypatch):
    monkeypatch.setattr(planning, "convolves", lambda *arguments: False)
    task = with_many_classes()
    members, run = tasks.make_population(task, tasks.RECIPES["sgd"]), tasks.make_run(task)
    in_one = lambda num: bytes_of_cohort(members, Plan(num, tasks.NUM_STEPS, "traced"), tasks.ALL_MASKS[:num], run)  # noqa: E731
    memory = 5.5 * bytes_of_cohort(members, Plan(), np.zeros((1, 3), bool), run)  # for 5 by shapes; XLA:CPU keeps logits twice
    monkeypatch.setattr(planning, "device_memory", lambda: memory / planning.SHARE_OF_MEMORY)
    choice = planning.choose(members, tasks.ALL_MASKS, run, num_evaluations=50)
    assert choice.plan == Plan(int(5 * memory / in_one(5)), tasks.NUM_STEPS, "traced")
    assert 1 < choice.plan.members < 5
    assert in_one(choice.plan.members) <= memory
    assert in_one(choice.plan.members) == pytest.approx(choice.plan.members / 5 * in_one(5), rel=0.15)


def test_a_call_that_runs_out_of_memory_is_halved_and_tried_again(monkeypatch):
    task = tasks.TASKS["convolutional"]
    members = tasks.make_population(task, tasks.RECIPES["sgd"], plan=Plan(4))
    fit = members.trainer.fit

    def limited(cohort, *arguments, **options):
        if cohort.size > 2:
            raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 1 byte")
        return fit(cohort, *arguments, **options)

    monkeypatch.setattr(members.trainer, "fit", limited)
    with pytest.warns(UserWarning, match="continuing with 2 members"):
        trained = list(members.evaluate(tasks.ALL_MASKS, tasks.make_run(task)))
    assert sorted(tuple(member.genome) for member in trained) == sorted(map(tuple, tasks.ALL_MASKS))
    assert members.plan == Plan(2)


def test_blocks_are_computed_again_where_no_member_fits_otherwise(monkeypatch):
    task = tasks.TASKS["bert"]
    members, run = tasks.make_population(task, tasks.RECIPES["sgd"]), tasks.make_run(task)
    everything = members.space.all_trained
    kept, again = (bytes_of_cohort(members, Plan(remat=remat), [everything], run) for remat in (False, True))
    assert again < kept
    for memory, remat in ((kept, False), ((kept + again) / 2, True)):
        monkeypatch.setattr(planning, "device_memory", lambda memory=memory: (memory + 1) / planning.SHARE_OF_MEMORY)
        monkeypatch.setattr(planning, "TINY_FLOPS", 0)
        monkeypatch.setattr(planning, "LARGE_FLOPS", 0)
        plan = planning.choose(members, tasks.ALL_MASKS, run, num_evaluations=50).plan
        assert (plan.members, plan.steps, plan.remat) == (1, 0, remat)
    assert "blocks recomputed in the backward pass" in planning.describe(plan)


def test_a_call_of_a_single_member_that_runs_out_of_memory_is_computed_again(monkeypatch):
    task = tasks.TASKS["convolutional"]
    members = tasks.make_population(task, tasks.RECIPES["sgd"])
    fit = members.trainer.fit

    def limited(cohort, *arguments, **options):
        if not cohort.remat:
            raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 1 byte")
        return fit(cohort, *arguments, **options)

    monkeypatch.setattr(members.trainer, "fit", limited)
    with pytest.warns(UserWarning, match="recomputing blocks"):
        assert len(list(members.evaluate(tasks.ALL_MASKS[:1], tasks.make_run(task)))) == 1


def test_a_member_that_does_not_fit_is_an_error(monkeypatch):
    task = tasks.TASKS["convolutional"]
    members = tasks.make_population(task, tasks.RECIPES["sgd"], plan=Plan(remat=True))

    def exhausted(*arguments, **options):
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory")

    monkeypatch.setattr(members.trainer, "fit", exhausted)
    with pytest.raises(MemoryError, match="smaller batches"):
        list(members.evaluate(np.zeros((1, 3), bool), tasks.make_run(task)))


def test_the_memory_of_a_call_counts_logits():
    """Of two members and 8 examples."""
    few = tasks.make_population(tasks.TASKS["convolutional"], tasks.RECIPES["sgd"])
    many = tasks.make_population(with_many_classes(), tasks.RECIPES["sgd"])
    run = tasks.make_run(tasks.TASKS["convolutional"])
    extra = bytes_of_cohort(many, Plan(2), tasks.ALL_MASKS[:2], run) - bytes_of_cohort(few, Plan(2), tasks.ALL_MASKS[:2], run)
    logits = 2 * 8 * (3000 - 3) * 4
    assert logits <= extra <= 4 * logits
