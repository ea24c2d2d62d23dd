"""Chooses how a population is trained, by timing a few real steps: members per call, steps per program, static or traced.

The first plan tried is the likeliest one. Another is tried only while what it could save at most is more than what trying
costs, so planning never takes much longer than what it wins.
"""

import math
import os
import time
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, get_args, get_type_hints

import jax
import numpy as np
import optax

from gafreeze_jax.engine import devices
from gafreeze_jax.engine.cache import device_memory
from gafreeze_jax.engine.cohort import (
    Cohort,
    Member,
    Plan,
    Replicate,
    make_cohorts,
    side_by_side,
    sorted_members,
    untrained,
)
from gafreeze_jax.engine.costs import bytes_of_cohort, convolves, flops_per_step
from gafreeze_jax.engine.population import Population, ran_out_of_memory

HANDING_OUT_SECONDS = 1e-4  # Python's share in running one compiled block, on slow CPU cores
TINY_FLOPS = 2e7  # of a training step that takes no longer than handing it out block by block
LARGE_FLOPS = 5e9  # for each CPU core, of a training step beside which handing it out takes no time
SHARE_OF_MEMORY = 0.6  # for the members of a call; data sets and activations may take a quarter
GROWTH = 4  # of the members per call from one try to the next, each of which compiles
GROWTH_OF_CALLS = 2  # of the calls at the same time, which compile nothing
WORTHWHILE = 0.1  # what could save, or has saved, no more than this share is not tried further
NUM_TIMED = 3  # calls of each plan
TIMED_STEPS = 2  # of a cohort whose steps are not one program
COMPILE_SECONDS = 1.0  # of a plan's programs, at least, even if those of the first plan were there already


class Trial(NamedTuple):
    """What trying a plan showed.

    Attributes:
      plan: what was tried.
      compile_seconds: of all programs that were compiled.
      num_timed: times that members were timed.
      step_seconds: of a training step of one member, the mean over these calls; infinite if there was not enough memory.
    """

    plan: Plan
    compile_seconds: float
    num_timed: int
    step_seconds: float

    def as_json(self) -> dict[str, Any]:
        """Without infinity, which JSON does not have."""
        seconds = self.step_seconds if math.isfinite(self.step_seconds) else None
        return self._asdict() | {"plan": self.plan._asdict(), "step_seconds": seconds}

    @classmethod
    def from_json(cls, entry: Mapping[str, Any]) -> "Trial":
        seconds = math.inf if entry["step_seconds"] is None else entry["step_seconds"]
        return cls(**{**entry, "plan": Plan(**entry["plan"]), "step_seconds": seconds})


class Choice(NamedTuple):
    """The plan that was chosen, why, and all that was tried."""

    plan: Plan
    reason: str
    trials: tuple[Trial, ...] = ()


def as_json(choice: Choice, final: Plan) -> dict[str, Any]:
    """What `result.json` says of the plan; `final` has fewer members if memory ran out."""
    return {
        "chosen": choice.plan._asdict(),
        "final": final._asdict(),
        "reason": choice.reason,
        "trials": [trial.as_json() for trial in choice.trials],
    }


def from_json(plan: Mapping[str, Any]) -> Choice:
    """What `as_json` was made from."""
    return Choice(Plan(**plan["chosen"]), plan["reason"], tuple(map(Trial.from_json, plan["trials"])))


def parse(text: str) -> Plan:
    """A plan from text such as `members=4,steps=0,freezing=static`; what is left out is as in `Plan()`.

    Raises:
      ValueError: if it is no such text.

    >>> parse("members=8,steps=50,freezing=traced")
    Plan(members=8, steps=50, freezing='traced', calls=1, remat=False)
    """
    kinds = get_args(get_type_hints(Plan)["freezing"])
    plan = Plan()
    for part in filter(None, text.replace(" ", "").split(",")):
        name, _, value = part.partition("=")
        if name in ("members", "steps", "calls") and value.isdecimal() and int(value) >= (name != "steps"):
            plan = plan._replace(**{name: int(value)})
        elif name == "freezing" and value in kinds:
            plan = plan._replace(freezing=value)
        else:
            raise ValueError(
                f"plan {text!r}: expected auto, or members=N, steps=N (0 = block by block), freezing={'|'.join(kinds)} and "
                f"calls=N, with commas between; got {part!r}"
            )
    if plan.steps == 0 and plan.freezing == "traced":
        raise ValueError(f"plan {text!r}: block by block, masks are static; give steps=1 or more with freezing=traced")
    return plan


def describe(plan: Plan) -> str:
    """A plan in words."""
    members = "1 member" if plan.members == 1 else f"{plan.members} members"
    members = members if plan.calls == 1 else f"{plan.calls} x {members}"
    again = ", blocks recomputed in the backward pass" if plan.remat else ""
    if plan.steps == 0:
        return f"{members} at a time, block by block{again}"
    steps = "1 step" if plan.steps == 1 else f"{plan.steps} steps"
    return f"{members} at a time, {steps} a program, masks {plan.freezing}{again}"


def num_at_a_time(params: Any, num_members: int) -> int:
    """Of some members, how many all devices together have room for, by their parameters, gradients and AdamW's state."""
    of_member = 4 * 4 * optax.tree.size(params)
    return int(np.clip(SHARE_OF_MEMORY * jax.device_count() * device_memory() // of_member, 1, num_members))


def choose(
    population: Population, genomes: np.ndarray, replicate: Replicate, num_evaluations: int, at_a_time: int | None = None
) -> Choice:
    """Chooses a plan for a search. Blocks are recomputed if the population's plan says so, or if no member fits otherwise.

    Args:
      genomes: [P, G], of the first generation.
      replicate: a few of its steps are trained, and forgotten.
      num_evaluations: that are to come in all, at most.
      at_a_time: steps after which members are scored; None = all.
    """
    start = time.perf_counter()
    members = sorted_members(untrained(genomes), population.space)
    memory = SHARE_OF_MEMORY * device_memory()
    work, flops = _describe_work(population, members, replicate, num_evaluations, at_a_time, memory)
    fit = work.num_devices * work.num_members
    plans = candidates(work)
    if len(plans) == 1:
        reason = f"the only sensible plan for steps of {flops / 1e9:.0f} GFLOP on {work.num_cores} cores"
        return Choice(plans[0], f"{reason}; {_fitting(fit, len(members))}")
    trials: list[Trial] = []
    for plan in plans:
        if not trials or possible_saving(work, trials, plan) > cost_of_trying(trials, plan):
            if plan.steps and plan.members == fit < len(members):
                plan = _shrink(population, plan, members, replicate, memory)
            trials.append(_try(population, plan, members, replicate))
    best = min(trials, key=work.seconds)
    tried = "the only plan tried" if len(trials) == 1 else f"the fastest of {len(trials)} plans tried"
    reason = (
        f"{tried}, in {time.perf_counter() - start:.1f} s: {best.step_seconds * 1e3:.3g} ms a member-step, "
        f"{best.compile_seconds:.1f} s compiling; {_fitting(max(fit, best.plan.members), len(members))}"
    )
    return Choice(best.plan, reason, tuple(trials))


def _describe_work(
    population: Population,
    members: Sequence[Member],
    replicate: Replicate,
    num_evaluations: int,
    at_a_time: int | None,
    memory: float,
) -> tuple["Work", float]:
    """What there is to do, and FLOPs of a step that trains everything."""
    space = population.space

    def bytes_of_member(remat: bool) -> int:
        return bytes_of_cohort(population, Plan(remat=remat), [space.all_trained], replicate)

    remat = population.plan.remat
    per_member = bytes_of_member(remat)
    if not remat and per_member > memory:
        remat, per_member = True, bytes_of_member(True)
    flops = flops_per_step(population, space.all_trained, replicate)
    num_cores = os.cpu_count() or 1 if jax.default_backend() == "cpu" else 0
    num_devices = devices.num_shards()
    work = Work(
        num_genes=space.num_genes,
        num_steps=replicate.num_steps,
        at_a_time=at_a_time or replicate.num_steps,
        num_evaluations=min(num_evaluations, space.size),  # no mask is evaluated twice
        num_members=int(np.clip(memory // per_member, 1, -(-len(members) // num_devices))),
        tiny=flops < TINY_FLOPS,
        large=flops > LARGE_FLOPS * max(1, num_cores),
        num_cores=min(num_cores, 1) if devices.are_many() else num_cores,  # cohorts run one after the other
        in_blocks=any(block.apply is not None for block in population.network.blocks),
        num_devices=num_devices,
        remat=remat,
        convolves=num_cores > 0 and convolves(population, space.all_trained, replicate),
    )
    return work, flops


def _fitting(num: int, num_genomes: int) -> str:
    return f"{num} of {num_genomes} members fit" if num < num_genomes else "all members fit"


def _shrink(population: Population, plan: Plan, members: Sequence[Member], replicate: Replicate, memory: float) -> Plan:
    """A plan of whole steps with as many members as fit a device's memory, by what XLA says of fewer members."""
    num_devices = devices.num_shards()
    of_device = plan.members // num_devices
    genomes = [member.genome for member in members[: plan.members]]
    try:
        fitting = int(of_device * memory / bytes_of_cohort(population, plan, genomes, replicate))
    except jax.errors.JaxRuntimeError as error:
        if not ran_out_of_memory(error):
            raise
        fitting = of_device  # too many, as trying them will show
    return plan._replace(members=num_devices * min(-(-len(members) // num_devices), fitting))


class Work(NamedTuple):
    """What a search has to do.

    Attributes:
      num_genes, num_steps, num_evaluations: G; of one member; at most.
      at_a_time: steps that a program does at most.
      num_members: that fit a device's memory together.
      convolves: whether a CPU convolves by XLA, which takes many times as long in a loop, or for stacked members.
      tiny: whether handing out a step block by block takes longer than doing it.
      large: whether handing it out takes no time to speak of.
      num_cores: on a CPU, where stacked members do not run faster than one by one, but for what is saved in handing out, and
        calls at the same time may; 0 elsewhere.
      in_blocks: whether the network can be run block by block; or else every mask is a program of its own, or is traced.
      num_devices: which share the members of a call.
      remat: see `Plan`.
    """

    num_genes: int
    num_steps: int
    at_a_time: int
    num_evaluations: int
    num_members: int
    tiny: bool
    large: bool
    num_cores: int
    in_blocks: bool = True
    num_devices: int = 1
    remat: bool = False
    convolves: bool = False

    def seconds(self, trial: Trial) -> float:
        """How long the search would take with the plan of a trial; what that has compiled is there already."""
        a_program_per_mask = trial.plan.freezing == "static" and (trial.plan.steps > 0 or not self.in_blocks)
        more_programs = max(0, math.ceil(self.num_evaluations / trial.plan.members) - trial.num_timed)
        compiling = trial.compile_seconds / trial.num_timed * more_programs if a_program_per_mask else 0.0
        return compiling + self.num_evaluations * self.num_steps * trial.step_seconds


def candidates(work: Work) -> list[Plan]:
    """Plans in the order in which they are considered, the likeliest one first."""
    plans = _candidates_of_device(work)
    if work.remat:  # XLA:CPU keeps what is to be recomputed, if that is in the same program
        plans = [plan._replace(remat=True) for plan in [plan for plan in plans if plan.steps == 0] or plans]
    if work.num_devices > 1:
        plans = [plan._replace(members=work.num_devices * plan.members, calls=1) for plan in plans]
    return list(dict.fromkeys(plans))


def _candidates_of_device(work: Work) -> list[Plan]:
    all_in_one = Plan(work.num_members, work.at_a_time, "traced")
    if not work.in_blocks:
        alone = work.num_cores > 0 and (work.convolves or not work.tiny)
        first = Plan(1, 1, "traced") if alone else all_in_one
        return [first, first._replace(members=1, freezing="static")]
    if work.tiny and not work.convolves:
        return [all_in_one, Plan(), Plan(1, 1, "traced"), Plan(1, work.at_a_time, "static")]
    if work.num_cores:
        single, *several = _powers(GROWTH_OF_CALLS, min(work.num_cores, work.num_members))
        staged = [Plan(calls=num) for num in several or [single]]  # one call at a time leaves even two cores idle
        if work.large:
            return staged
        return [*staged, Plan(1, 1, "traced"), Plan(1, 1, "static"), *([] if work.convolves else [all_in_one])]
    return [*(Plan(num) for num in _powers(GROWTH, work.num_members)), all_in_one]


def _powers(base: int, most: int) -> list[int]:
    """1, base, base squared, ..., and `most`."""
    powers = [1]
    while powers[-1] < most:
        powers.append(min(most, powers[-1] * base))
    return powers


def possible_saving(work: Work, trials: Sequence[Trial], plan: Plan) -> float:
    """Seconds that a plan can save at most, compared with the best one tried."""
    best = min(trials, key=work.seconds)
    rest = work.seconds(best)
    if plan.steps == best.plan.steps and _at_once(plan) > _at_once(best.plan):
        similar = [trial.step_seconds for trial in trials if trial.plan.steps == plan.steps]
        if len(similar) > 1 and similar[-1] > (1 - WORTHWHILE) * similar[-2]:
            return 0.0
        return rest * (1 - _at_once(best.plan) / _at_once(plan))
    if best.plan.steps > 0:
        return rest
    handing_out = (3 * work.num_genes + 5) * HANDING_OUT_SECONDS / (best.plan.members * best.step_seconds)
    return rest * min(1.0, handing_out) if handing_out > WORTHWHILE else 0.0


def cost_of_trying(trials: Sequence[Trial], plan: Plan) -> float:
    """Seconds that trying a plan takes, about: compiling about as long as for the first one, and twice the steps."""
    compiles = plan._replace(calls=1) not in [trial.plan._replace(calls=1) for trial in trials]
    member_steps = 2 * NUM_TIMED * (plan.steps or TIMED_STEPS) * _at_once(plan)
    return max(COMPILE_SECONDS, trials[0].compile_seconds) * compiles + member_steps * min(
        trial.step_seconds for trial in trials
    )


def _at_once(plan: Plan) -> int:
    """Members that are trained at the same time."""
    return plan.members * plan.calls


class Timing(NamedTuple):
    """How fast cohorts are.

    Attributes:
      compile_seconds: by which the first time took longer.
      step_seconds: of one training step of all members.
    """

    compile_seconds: float
    step_seconds: float


def time_steps(population: Population, plan: Plan, members: Sequence[Member], replicate: Replicate) -> Timing:
    """Times a few training steps of cohorts that run at the same time. What they have trained is forgotten.

    Args:
      members: at most members times calls of the plan.
    """
    cohorts = make_cohorts(plan, population.space, members)
    num_steps = min(plan.steps or TIMED_STEPS, replicate.num_steps)
    trainer = population.trainer
    for cohort in cohorts:
        trainer.activations.inputs(cohort.depth)  # not counted

    def fit(cohort: Cohort) -> None:
        trained = trainer.start(cohort, replicate, plan.steps)
        jax.block_until_ready(trainer.fit(cohort, replicate, trained, until=num_steps, steps=plan.steps))

    seconds = []
    for _ in range(2):
        start = time.perf_counter()
        list(side_by_side(fit, cohorts, plan.calls))
        seconds.append(time.perf_counter() - start)
    first, second = seconds
    return Timing(max(0.0, first - second), second / num_steps)


def _try(population: Population, plan: Plan, members: Sequence[Member], replicate: Replicate) -> Trial:
    """Times members from all over the sorted population."""
    size = _at_once(plan)
    num_parts = math.ceil(len(members) / size)
    chosen = sorted({int(num_parts * (i + 0.5) / NUM_TIMED) for i in range(NUM_TIMED)})
    compile_seconds = step_seconds = 0.0
    for i in chosen:
        timed = members[i * size : (i + 1) * size]
        try:
            timing = time_steps(population, plan, timed, replicate)
        except jax.errors.JaxRuntimeError as error:
            if not ran_out_of_memory(error):
                raise
            return Trial(plan, compile_seconds, len(chosen), math.inf)
        timing = Timing(*devices.of_first(timing).tolist())
        compile_seconds += timing.compile_seconds
        step_seconds += timing.step_seconds / len(timed) / len(chosen)
    return Trial(plan, compile_seconds, len(chosen), step_seconds)
