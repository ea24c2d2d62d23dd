"""Trains and scores the members of a population: one fine-tuning run per genome.

Every member starts from the same pretrained parameters and sees the same batches, the same initial head and the same
dropout (common random numbers), so members differ by their genomes alone. Up to its `depth`, its lowest trainable
block, a member computes what every other member computes there: these activations are kept, and a member starts at its
depth. A `Plan` says how many members run in one call, stacked and mapped by `jax.vmap`, whether Python hands out the work
block by block or many steps at a time, and how many calls run side by side. With several devices (`devices.over_all_devices`)
each has its share of a call's members, or, where devices are more, of their batches.
"""

import copy
import functools
import itertools
import math
import threading
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array

from gafreeze_jax import masking
from gafreeze_jax.engine import backprop, devices
from gafreeze_jax.engine.backprop import Gradients, over_members
from gafreeze_jax.engine.cache import Activations, Budget, Chunk, Source, default_budget, fetch, score_from
from gafreeze_jax.engine.network import STATISTICS, Axis, Batch, Network, PyTree, lowest_trainable, parameters
from gafreeze_jax.search.costs import StepFlops

TIMED_STEPS = 2
AUGMENTATION = 2**31 - 1  # folded into a step's key, as the blocks' indices are


class Recipe(NamedTuple):
    """How a member is trained.

    Attributes:
      body: optimizer of the blocks; it runs block by block, so it must treat every leaf by itself (AdamW, SGD, Lion, ...).
      head: optimizer of the head.
      max_norm: gradients of trainable parameters are clipped to this global norm (Pascanu et al. 2013); infinite = not clipped.
    """

    body: optax.GradientTransformation
    head: optax.GradientTransformation
    max_norm: float = 1.0

    def of(self, name: str) -> optax.GradientTransformation:
        """The optimizer of a block, or of "head"."""
        return self.head if name == "head" else self.body


def adamw_recipe(learning_rate: float, head_learning_rate: float, num_steps: int) -> Recipe:
    """AdamW (Loshchilov & Hutter 2019) with linear warm-up over a tenth of the steps and linear decay to zero.

    Weight decay 0.01 on kernels and embeddings; none on biases and norms, which are vectors.
    """
    warm_up = max(1, num_steps // 10)

    def adamw(peak: float) -> optax.GradientTransformation:
        rise = optax.linear_schedule(0.0, peak, warm_up)
        fall = optax.linear_schedule(peak, 0.0, max(1, num_steps - warm_up))
        mask = functools.partial(jax.tree.map, lambda leaf: leaf.ndim > 1)
        return optax.adamw(optax.join_schedules([rise, fall], [warm_up]), weight_decay=0.01, mask=mask)

    return Recipe(adamw(learning_rate), adamw(head_learning_rate))


class Replicate(NamedTuple):
    """What a seed decides, the same for all members.

    Attributes:
      head: initial parameters of the head.
      batches: the training steps, with a leading axis.
      key: for dropout.
    """

    head: PyTree
    batches: Batch
    key: Array


class Member(NamedTuple):
    """A genome, trained and scored.

    Attributes:
      genome: [G] bool.
      params: the network's parameters; frozen ones are the pretrained arrays themselves. With several devices it is a mapping
        that fetches what it is asked for (`devices.Slot`).
      train_loss: mean over the training steps.
      accuracy: on the validation set, as share.
      loss: on the validation set, mean over examples; not finite if the run diverged.
      steps: that it has been trained.
      seconds: of training, since it was scored last, and scoring; of what was done at the same time, its share.
      state: of the optimizers of what it trains, {block name: ...}; None once all steps of the run are done.
    """

    genome: np.ndarray
    params: PyTree
    train_loss: float
    accuracy: float
    loss: float
    steps: int
    seconds: float = 0.0
    state: PyTree | None = None


def beginners(genomes: np.ndarray) -> list[Member]:
    """Genomes [P, G] bool that have not been trained yet."""
    return [Member(genome, None, 0.0, 0.0, 0.0, 0) for genome in np.asarray(genomes, bool)]


class Curve(NamedTuple):
    """How a genome did while it was trained.

    Attributes:
      genome: [G] bool.
      validation: [stops, 2] accuracy and mean loss.
      test: [2], after the last stop.
    """

    genome: np.ndarray
    validation: np.ndarray
    test: np.ndarray


class Plan(NamedTuple):
    """How the work is cut. All plans train alike.

    Attributes:
      members: that are stacked in one call, over all devices; as many on each, by copies if need be.
      steps: that one compiled program does, scanned; 0 = every block is a program of its own, which serves all masks.
      freezing: "static": what all members of a call freeze is left out, and programs of whole steps are compiled for every
        mask. "traced": one program serves all masks; it does the work of training everything.
      calls: that run at the same time, each in a thread of its own. On a CPU, what one leaves idle between its operations
        another can use.
    """

    members: int = 1
    steps: int = 0
    freezing: Literal["static", "traced"] = "static"
    calls: int = 1


BLOCK_BY_BLOCK = Plan()


def ran_out_of_memory(error: Exception) -> bool:
    """Whether XLA says so."""
    return "RESOURCE_EXHAUSTED" in str(error)


def in_order(genomes: np.ndarray) -> np.ndarray:
    """Indices that sort genomes [P, G]: deepest first, as they cost least, and then so that neighbours agree in many genes."""
    return np.lexsort(genomes.T[::-1])[::-1]


def _in_order(members: Sequence[Member]) -> list[Member]:
    return [members[i] for i in in_order(np.array([member.genome for member in members]))] if members else []


class Population:
    """Trains and scores genomes of one network on one task.

    Args:
      network: G blocks and a head.
      params: pretrained parameters {block name: ...} (a head in it is not used).
      recipe: how to train.
      train: the training set; its batches serve to compute activations.
      validation: the set that scores members.
      plan: how the work is cut; `planning.choose` finds a good one.
      budget: for the data sets and their activations, a half for each.
      on_steps: called with the number of member-steps that were trained since the last call; by one thread at a time.
    """

    def __init__(
        self,
        network: Network,
        params: PyTree,
        recipe: Recipe,
        train: Source,
        validation: Source,
        *,
        plan: Plan = BLOCK_BY_BLOCK,
        budget: Budget | None = None,
        on_steps: Callable[[int], None] = lambda member_steps: None,
    ):
        self.network, self.recipe, self.plan = network, recipe, plan
        self._on_steps, self._counting = on_steps, threading.Lock()
        self._params = devices.replicate({block.name: params[block.name] for block in network.blocks})
        self._budget = Budget(*(num_bytes // 2 for num_bytes in budget or default_budget()))
        self._train = self.activations(train)
        self._validation = self.activations(validation)

    @property
    def params(self) -> PyTree:
        """Pretrained parameters of the blocks, in their order, on the device."""
        return {name: self._params[name] for name in self.network.names}

    def evaluate(self, genomes: np.ndarray, run: Replicate, until: int | None = None) -> Iterator[Member]:
        """Trains and scores genomes [P, G] bool; members come as they are ready, in an order of their own.

        A call that runs out of memory is halved and tried again, with a warning; `plan` then has fewer members.

        Args:
          until: the step to stop after, from where `resume` goes on; None = all steps of the run.

        Raises:
          MemoryError: if a single member does not fit.
        """
        return itertools.chain.from_iterable(self.advance(beginners(genomes), run, until))

    def resume(self, members: Sequence[Member], run: Replicate, until: int | None = None) -> Iterator[Member]:
        """Goes on with members that `evaluate` or `resume` stopped after the same step of the same run; see there.

        A member ends as if it had not been stopped. One that was given another genome goes on with that: what it did not
        train before starts as it was pretrained.

        Raises:
          ValueError: if they did not stop after the same step, or if none is left.
        """
        return itertools.chain.from_iterable(self.advance(members, run, until))

    def with_recipe(self, recipe: Recipe) -> "Population":
        """The same with another recipe, for members that are trained one by one; data and activations are shared."""
        other = copy.copy(self)
        other.recipe, other.plan = recipe, self.plan._replace(members=1, freezing="static")
        return other

    def begin(self, run: Replicate) -> Member:
        """A member that trains everything, before its first step; `resume` goes on with it."""
        genome = np.zeros(len(self.network.blocks), bool)
        (call,) = make_cohorts(BLOCK_BY_BLOCK, self.network, genome[None])
        params, state = self._start(call, run)
        return Member(genome, params, 0.0, 0.0, 0.0, 0, state=state)

    def relative_gradient_norms(self, member: Member, run: Replicate, until: int) -> dict[str, float]:
        """||gradients|| / ||parameters|| of each block that a member trains, by name; infinite if all parameters are 0.

        Args:
          until: gradient norms are means over the steps that follow up to this one, of which none is trained.
        """
        (call,) = make_cohorts(BLOCK_BY_BLOCK, self.network, member.genome[None])
        boundary, inputs = self._train.inputs(call.depth)
        program = self._program(call, boundary)
        batches = jax.tree.map(lambda leaf: leaf[member.steps : until], run.batches)
        norms: list[dict[str, Array]] = []
        for chunk in self._train.chunks(boundary, inputs, batches):
            for step in range(len(chunk.batches.examples)):
                key = jax.random.fold_in(run.key, member.steps + len(norms))
                gradients = _differentiate(program, dict(member.params), self._params, chunk, step, key, {}).gradients
                norms.append({name: optax.tree.norm(gradients[name]) for name in call.trained})
        relative = {}
        for name in call.trained:
            of_params = float(optax.tree.norm(parameters(member.params[name])))
            relative[name] = float(np.mean([own[name] for own in norms])) / of_params if of_params else math.inf
        return relative

    def activations(self, source: Source) -> Activations:
        """What the pretrained blocks make of another data set, for `curves`."""
        return Activations(self.network, self._params, source, self._budget)

    def curves(self, genomes: np.ndarray, run: Replicate, stops: Sequence[int], test: Activations) -> Iterator["Curve"]:
        """Trains genomes [P, G] bool, scores them on the way, and keeps none; in an order of their own.

        Args:
          stops: steps after which they are scored on the validation set.
          test: another data set, on which they are scored after the last of these.
        """
        genomes = np.asarray(genomes, bool)
        for call in make_cohorts(self.plan, self.network, genomes[in_order(genomes)]):
            start, scores = self._start(call, run, self.plan.steps), []
            for first, until in itertools.pairwise([0, *stops]):
                *start, _ = self._fit(call, run, start, first, until, self.plan.steps, self._count)
                scores.append(self._score(call, start[0], self._validation))
            scores.append(self._score(call, start[0], test))
            by_member = np.moveaxis(np.broadcast_to(scores, (len(scores), 2, call.size)), 2, 0)
            for genome, own in zip(call.genomes, by_member, strict=False):
                yield Curve(genome, own[:-1], own[-1])

    def advance(self, members: Sequence[Member], run: Replicate, until: int | None = None) -> Iterator[list[Member]]:
        """What `evaluate` does with `beginners`, and `resume` with others; those that are trained together come together."""
        stopped = [member for member in members if member.steps]
        if any(member.state is None for member in stopped) or len({member.steps for member in members}) > 1:
            steps = ", ".join(str(member.steps) for member in members)
            raise ValueError(f"expected members that stopped after the same step, before the last one; got {steps} steps")
        return self._advance(members, run, until)

    def _advance(self, members: Sequence[Member], run: Replicate, until: int | None) -> Iterator[list[Member]]:
        waiting, num_steps = _in_order(members), len(run.batches.examples)
        until = num_steps if until is None else min(until, num_steps)
        while waiting:
            calls = make_cohorts(self.plan, self.network, np.array([member.genome for member in waiting]))
            for activations in (self._train, self._validation):
                activations.expect(call.depth for call in calls)
            rest = iter(waiting)
            jobs = [_Job(call, list(itertools.islice(rest, len(call.genomes))), until) for call in calls]
            try:
                for done in side_by_side(functools.partial(self._train_and_score, run=run), jobs, self.plan.calls):
                    yield done
                    waiting = waiting[len(done) :]
            except jax.errors.JaxRuntimeError as error:
                if not ran_out_of_memory(error):
                    raise
                self._take_fewer_members(error)

    def _train_and_score(self, job: "_Job", run: Replicate) -> list[Member]:
        call, members, until = job
        clock = time.perf_counter()
        first, num_steps = members[0].steps, len(run.batches.examples)
        start = self._start(call, run, self.plan.steps) if members[0].state is None else self._restart(call, members)
        params, state, losses = self._fit(call, run, start, first, until, self.plan.steps, self._count)
        losses = devices.gather(losses).astype(np.float64).reshape(-1)
        scores = (losses, *self._score(call, params, self._validation))
        loss_sum, accuracy, loss = (np.broadcast_to(score, call.size) for score in scores)  # as one, if nothing is trained
        seconds = (time.perf_counter() - clock) / (len(members) * self.plan.calls)
        return [
            Member(
                member.genome,
                self._member_of(call, i, params, self.params),
                float(member.train_loss * first + loss_sum[i]) / until,
                float(accuracy[i]),
                float(loss[i]),
                until,
                seconds,
                self._member_of(call, i, state, {}) if until < num_steps else None,
            )
            for i, member in enumerate(members)
        ]

    def _count(self, member_steps: int) -> None:
        with self._counting:
            self._on_steps(member_steps)

    def _take_fewer_members(self, error: Exception) -> None:
        self._train.clear()
        self._validation.clear()
        members, calls = self.plan.members, self.plan.calls
        if members <= devices.num_shards() and calls == 1:
            raise MemoryError(
                "A single member does not fit the device's memory: take smaller batches, shorter inputs or a smaller model"
            ) from error
        if jax.process_count() > 1:  # the others may have had enough
            raise MemoryError(f"{members} members at a time do not fit the devices' memory: give fewer by --plan") from error
        self.plan = self.plan._replace(calls=1, members=max(1, members // 2) if calls == 1 else members)
        warnings.warn(f"Out of memory: going on with {self.plan.members} members at a time", stacklevel=3)

    def time_steps(self, plan: Plan, genomes: np.ndarray, run: Replicate) -> "Timing":
        """Times a few training steps of the calls that run at the same time. What they have trained is forgotten.

        Args:
          genomes: [N, G], at most members times calls of the plan.
        """
        calls = make_cohorts(plan, self.network, genomes)
        num_steps = min(plan.steps or TIMED_STEPS, len(run.batches.examples))
        run = run._replace(batches=jax.tree.map(lambda leaf: leaf[:num_steps], run.batches))
        for call in calls:
            self._train.inputs(call.depth)  # not counted

        def fit(call: "Cohort") -> None:
            start = self._start(call, run, plan.steps)
            jax.block_until_ready(self._fit(call, run, start, 0, num_steps, plan.steps, lambda member_steps: None))

        seconds = []
        for _ in range(2):
            start = time.perf_counter()
            list(side_by_side(fit, calls, plan.calls))
            seconds.append(time.perf_counter() - start)
        first, second = seconds
        return Timing(max(0.0, first - second), second / num_steps)

    def step_flops(self, run: Replicate) -> StepFlops:
        """What a training step of any genome takes, counted by XLA for 3 G genomes."""
        num_genes = len(self.network.blocks)
        above = [self.flops_per_step(genome, run) for genome in np.tri(num_genes + 1, num_genes, -1, bool)]
        spared = [0.0, *(above[0] - self.flops_per_step(genome, run) for genome in np.eye(num_genes, dtype=bool)[1:])]
        all_frozen = np.ones(num_genes, bool)
        entered = [self.flops_per_step(all_frozen, run, enter=depth) for depth in range(num_genes)]
        return StepFlops(above, spared, [low - high for low, high in itertools.pairwise([*entered, above[-1]])])

    def flops_per_step(self, genome: np.ndarray, run: Replicate, enter: int | None = None) -> float:
        """Floating-point operations of a member's training step, as XLA counts them.

        Args:
          enter: the block whose kept input it starts from; default: the genome's lowest trainable one.
        """
        (call,) = make_cohorts(Plan(steps=1), self.network, np.asarray(genome, bool)[None])
        analysis: Any = self.trace(call, run, enter=enter).lower().cost_analysis()
        return analysis["flops"]

    def optimizer_bytes(self, run: Replicate) -> dict[str, int]:
        """Of the optimizer's state of each block and the head, where they train, by name."""
        params = {name: parameters(tree) for name, tree in (self._params | {"head": run.head}).items()}
        return {name: _num_bytes(jax.eval_shape(self.recipe.of(name).init, tree)) for name, tree in params.items()}

    def bytes_of_call(self, plan: Plan, genomes: np.ndarray, run: Replicate) -> int:
        """Memory that a call takes on a device: parameters, optimizer states, gradients, residuals; not what all members share.

        Block by block it is counted from shapes. A plan of whole steps is compiled, and it is what XLA says: that may keep half
        of what blocks hand over (`benchmarks/tpu_compile.py`).

        Args:
          genomes: [N, G], at most as many as the plan has members.
        """
        (call,) = make_cohorts(plan, self.network, genomes)
        params, state = jax.eval_shape(functools.partial(self._start, call, run))
        shards = 1 if call.axis is None else devices.num_shards()
        if plan.steps:
            program = self.trace(call, run, plan.steps).lower().compile()
            return _num_bytes((params, state)) // shards + _bytes_beside_arguments(program)
        boundary = self._train.boundary(call.depth)
        chunk = self._train.chunk_shape(boundary, run.batches)

        def residuals(params: PyTree, chunk: Chunk, key: Array) -> PyTree:
            step = fetch(self._train.per_example(boundary), chunk, 0)
            chain = backprop.forward_chain(self.network, call.frozen, boundary, call.axis)
            x, kept, statistics = chain(self._params | params, step.x, step.context, key, call.gates)
            shared = tuple(params.get(name, self._params[name]) for name in self.network.shared)
            of_shared = (call.axis if name in params else None for name in self.network.shared)
            axes = call.axis, *of_shared, call.axis if kept else None
            of_head = backprop.head_residuals(self.network, axes, params["head"], shared, x, step.targets, step.context)
            return x, kept, statistics, of_head

        kept = jax.eval_shape(residuals, params, chunk, run.key)
        of_parts = _num_bytes(kept) // devices.num_shards(devices.DATA)
        return (2 * _num_bytes(params) + _num_bytes(state) + of_parts) // shards

    def trace(self, call: "Cohort", run: Replicate, num_steps: int = 1, enter: int | None = None) -> jax.stages.Traced:
        """Training steps as one program, from the kept input of a block (see `flops_per_step`), for the mesh in context."""
        boundary = self._train.boundary(call.depth if enter is None else enter)
        program = self._program(call, boundary)
        started = jax.eval_shape(functools.partial(self._start, call, run))
        chunk = self._train.chunk_shape(boundary, run.batches, num_steps)
        params, state = started if call.axis is None else devices.shapes(started, devices.MEMBERS)
        shared = devices.shapes((self._params, chunk, run.key))
        return _train_chunk.trace(program, params, state, *shared, 0, call.gates)

    def _program(self, call: "Cohort", boundary: int) -> "_Program":
        per_example = self._train.per_example(boundary)
        return _Program(self.network, self.recipe, call.frozen, boundary, per_example, call.axis, self._train.augment)

    def _start(self, call: "Cohort", run: Replicate, steps: int = 0) -> tuple[PyTree, PyTree]:
        """Initial parameters of the trained blocks and the head, which may be donated, and their optimizers' states."""
        shared = {name: self._params[name] for name in call.trained} | {"head": run.head}
        start = _start_in_one if steps else _start_blocks
        return start(self.recipe, call.axis, call.size, shared)

    def _restart(self, call: "Cohort", members: Sequence[Member]) -> tuple[PyTree, PyTree]:
        """What `_start` gives, of members that have been trained for some steps."""
        params, state = {}, {}
        for name in (*call.trained, "head"):
            of_frozen = functools.cache(functools.partial(self._start_late, name, members[0].steps))
            pairs = (
                (member.params[name], own[name]) if name in (own := member.state or {}) else of_frozen() for member in members
            )
            params[name], state[name] = self._stack(call, pairs)
        return params, state

    def _start_late(self, name: str, steps: int) -> tuple[PyTree, PyTree]:
        """Pretrained parameters of a block, and an optimizer state that has counted `steps`: the learning rate goes by that."""
        params, state = _start(self.recipe.of(name), None, 1, self._params[name])
        count = lambda leaf: jnp.full_like(leaf, steps) if jnp.issubdtype(leaf.dtype, jnp.integer) else leaf  # noqa: E731
        return params, jax.tree.map(count, state)

    def _stack(self, call: "Cohort", trees: Iterable[PyTree]) -> PyTree:
        """A copy of the trees of a call's members, stacked along its member axis if it has one."""
        if call.axis is None:
            return jax.tree.map(jnp.array, *trees)
        if devices.num_shards() > 1:
            return devices.stack(trees, call.size)
        trees = list(trees)
        filled = [*trees, *[trees[-1]] * (call.size - len(trees))]
        return jax.tree.map(lambda *leaves: jnp.stack(leaves), *filled)

    def _fit(
        self,
        call: "Cohort",
        run: Replicate,
        start: Sequence[PyTree],
        first: int,
        until: int,
        steps: int,
        on_steps: Callable[[int], None],
    ) -> tuple[PyTree, PyTree, Array]:
        """Trains a call's members from step `first` to `until`, `steps` in one program.

        Args:
          start: parameters of trained blocks and the head, and their optimizers' states; donated.

        Returns:
          The same after these steps, and sums of losses.
        """
        boundary, inputs = self._train.inputs(call.depth)
        program = self._program(call, boundary)
        batches = jax.tree.map(lambda leaf: leaf[first:until], run.batches)
        params, state = start
        total: Array | None = None
        done = first
        for chunk in self._train.chunks(boundary, inputs, batches, steps or None):
            num_steps = len(chunk.batches.examples)
            if steps:
                params, state, loss = _train_chunk(program, params, state, self._params, chunk, run.key, done, call.gates)
                total = loss if total is None else total + loss
                on_steps(num_steps * len(call.genomes))
            for step in range(0 if steps else num_steps):
                key = jax.random.fold_in(run.key, done + step)
                params, state, loss = _train_step(program, params, state, self._params, chunk, step, key, call.gates)
                total = loss if total is None else total + loss
                on_steps(len(call.genomes))
            done += num_steps
        assert total is not None  # there is a step at least
        return params, state, total

    def _score(self, call: "Cohort", params: PyTree, activations: Activations) -> tuple[np.ndarray, np.ndarray]:
        """Accuracy and mean loss of a call's members: [members] each."""
        axes = tuple(call.axis if name in params else None for name in (*self.network.names, "head"))
        whole = self.plan.steps > 0
        return score_from(self.network, self._params | params, axes, activations, call.depth, scan=whole)

    def _member_of(self, call: "Cohort", i: int, stacked: dict[str, PyTree], frozen: dict[str, PyTree]) -> Mapping[str, PyTree]:
        """Member i of {block name: tree}: what it trains from `stacked`, which has the call's axis; the rest from `frozen`."""
        genes = dict(zip(self.network.names, call.genomes[i], strict=True)) | {"head": False}
        own = [name for name in stacked if not genes[name]]
        trees = frozen | {name: stacked[name] for name in own}
        if call.axis is None:
            return trees
        if devices.num_shards() > 1:
            return devices.Slot(trees, i, own)
        if self.plan.steps:  # all that is stacked, as one program for all masks
            picked = devices.pick(stacked, i)
            return trees | {name: picked[name] for name in own}
        return trees | {name: devices.pick(trees[name], i) for name in own}


def _bytes_beside_arguments(program: jax.stages.Compiled) -> int:
    """Memory that a program takes on a device at most, but for what goes in."""
    memory: Any = program.memory_analysis()
    if jax.default_backend() == "tpu":
        return memory.peak_memory_in_bytes - memory.argument_size_in_bytes
    # XLA:CPU leaves what is temporary out of its peak.
    return memory.temp_size_in_bytes + memory.output_size_in_bytes - memory.alias_size_in_bytes


def _num_bytes(tree: PyTree) -> int:
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


class Timing(NamedTuple):
    """How fast a call is.

    Attributes:
      compile_seconds: by which the first time took longer.
      step_seconds: of one training step of all members.
    """

    compile_seconds: float
    step_seconds: float


class Cohort(NamedTuple):
    """Members that are trained together.

    Attributes:
      genomes: [N, G].
      size: so many members are trained; those beyond N are copies, so that all calls have one shape, and all devices a share.
      frozen: for each block, as in `blocks.value_and_grad`.
      trained: names of the blocks that are not frozen.
      gates: for blocks of which `frozen` is None: [size] bool, or scalars where there is no member axis.
    """

    genomes: np.ndarray
    size: int
    frozen: tuple[bool | None, ...]
    trained: tuple[str, ...]
    gates: dict[str, Array]

    @property
    def axis(self) -> Axis:
        return None if self.size == 1 else 0

    @property
    def depth(self) -> int:
        """Of the lowest block that any member trains."""
        return lowest_trainable(self.frozen)


def make_cohorts(plan: Plan, network: Network, genomes: np.ndarray) -> list[Cohort]:
    """Cuts genomes [P, G] into calls."""
    calls, shards = [], devices.num_shards()
    size = 1 if plan.members == 1 else -(-plan.members // shards) * shards
    for first in range(0, len(genomes), size):
        own = genomes[first : first + size]
        filled = own[np.minimum(np.arange(size), len(own) - 1)]
        frozen: list[bool | None] = [True if gene.all() else None if gene.any() else False for gene in own.T]
        if plan.freezing == "traced":
            frozen = [None] * len(frozen)
        gates = {
            name: jnp.asarray(gene if size > 1 else gene[0])
            for name, gene, decided in zip(network.names, filled.T, frozen, strict=True)
            if decided is None
        }
        trained = tuple(name for name, decided in zip(network.names, frozen, strict=True) if decided is not True)
        # There is only one way to train nothing but the head.
        calls.append(Cohort(own, size if trained else 1, tuple(frozen), trained, gates))
    return calls


class _Job(NamedTuple):
    """Members that are trained together, up to a step."""

    call: Cohort
    members: Sequence[Member]
    until: int


def side_by_side(function: Callable[[Any], Any], calls: Sequence[Any], num: int) -> Iterator[Any]:
    """What `function` gives for each call, in order; `num` calls at a time."""
    if num > 1 and devices.are_many():
        raise ValueError(f"with several devices calls run one by one, in an order that all processes share; got calls={num}")
    if num == 1:
        yield from map(function, calls)
    else:
        with ThreadPoolExecutor(num) as pool:
            yield from pool.map(function, calls)


@functools.partial(jax.jit, static_argnames=("tx", "axis", "size"))
def _start(tx: optax.GradientTransformation, axis: Axis, size: int, params: PyTree) -> tuple[PyTree, PyTree]:
    """A copy of a block's parameters, or `size` copies along a member axis, and their optimizer's state."""
    members = () if axis is None else (size,)
    copies = jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, members + jnp.shape(leaf)), params)
    init = tx.init if axis is None else jax.vmap(tx.init, axis_size=size)  # said, as a head may have no parameters
    started = copies, init(parameters(copies))
    return devices.shard(started, axis)


def _start_blocks(
    recipe: Recipe, axis: Axis, size: int, params: dict[str, PyTree]
) -> tuple[dict[str, PyTree], dict[str, PyTree]]:
    """`_start` of all blocks and the head."""
    started = {name: _start(recipe.of(name), axis, size, tree) for name, tree in params.items()}
    return {name: copies for name, (copies, _) in started.items()}, {name: state for name, (_, state) in started.items()}


_start_in_one = functools.partial(jax.jit, static_argnames=("recipe", "axis", "size"))(_start_blocks)


class _Program(NamedTuple):
    """What is static about training a call."""

    network: Network
    recipe: Recipe
    frozen: tuple[bool | None, ...]
    start: int
    per_example: bool
    axis: Axis
    augment: Callable[[Array, PyTree], PyTree] | None


@functools.partial(jax.jit, static_argnums=0)
def _augment(augment: Callable[[Array, PyTree], PyTree], key: Array, x: PyTree) -> PyTree:
    return augment(jax.random.fold_in(key, AUGMENTATION), x)


def _differentiate(
    program: _Program, params: PyTree, pretrained: PyTree, chunk: Chunk, step: int, key: Array, gates: PyTree
) -> Gradients:
    """Loss and gradients of a step."""
    x, targets, weights, context = fetch(program.per_example, chunk, step)
    if program.augment is not None:
        x = _augment(program.augment, key, x)
    differentiate = backprop.value_and_grad(program.network, program.frozen, start=program.start, axis=program.axis)
    return differentiate(pretrained | params, x, targets, weights, context, key, gates)


def _train_step(
    program: _Program, params: PyTree, state: PyTree, pretrained: PyTree, chunk: Chunk, step: int, key: Array, gates: PyTree
) -> tuple[PyTree, PyTree, Array]:
    """One step: parameters, optimizer states and losses [members]. `params` and `state` are donated."""
    loss, gradients, square_norm, statistics = _differentiate(program, params, pretrained, chunk, step, key, gates)
    params, state = dict(params), dict(state)
    for name in params:
        params[name], state[name] = _update(
            program.recipe.of(name), program.recipe.max_norm, program.axis,
            params[name], state[name], gradients.pop(name), square_norm, gates.get(name), statistics.pop(name, None),
        )  # fmt: skip
    return params, state, loss


@functools.partial(jax.jit, static_argnames=("program",), donate_argnames=("params", "state"))
def _train_chunk(
    program: _Program, params: PyTree, state: PyTree, pretrained: PyTree, chunk: Chunk, key: Array, first: int, gates: PyTree
) -> tuple[PyTree, PyTree, Array]:
    """All steps of a chunk, of which the first has the number `first`: like `_train_step`, with the sum of losses."""

    def body(step, carry):
        params, state, total = carry
        key_step = jax.random.fold_in(key, first + step)
        params, state, loss = _train_step(program, params, state, pretrained, chunk, step, key_step, gates)
        return params, state, total + loss

    members = () if program.axis is None else jax.tree.leaves(params)[0].shape[:1]
    return jax.lax.fori_loop(0, len(chunk.batches.examples), body, (params, state, jnp.zeros(members)))


@functools.partial(jax.jit, static_argnames=("tx", "max_norm", "axis"), donate_argnames=("params", "state"))
def _update(
    tx: optax.GradientTransformation,
    max_norm: float,
    axis: Axis,
    params: PyTree,
    state: PyTree,
    gradients: PyTree,
    square_norm: Array,
    frozen: Array | None,
    statistics: PyTree,
) -> tuple[PyTree, PyTree]:
    """One step of a block's optimizer; `axis` is that of all arrays.

    Args:
      frozen: [members], or None = trained by all.
      statistics: new running statistics, or None.
    """

    def run(params, state, gradients, square_norm, frozen):
        if max_norm < math.inf:
            scale = max_norm / jnp.maximum(jnp.sqrt(square_norm), max_norm)
            gradients = jax.tree.map(lambda g: g * scale, gradients)
        if frozen is None:
            updates, state = tx.update(gradients, state, params)
        else:
            gene = masking.make_genes(params, {".*": "block"})
            updates, state = masking.freezable(tx, gene).update(gradients, state, params, genome=frozen[None])
        return optax.apply_updates(params, updates), state

    axes = (axis, axis, axis, axis, None if frozen is None else axis)
    updated, state = over_members(run, axes)(parameters(params), state, gradients, square_norm, frozen)
    return devices.shard((updated if statistics is None else updated | {STATISTICS: statistics}, state), axis)
