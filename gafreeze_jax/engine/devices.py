"""Members over devices, and devices over processes: JAX's own distributed runtime.

A population's member axis is cut along the axis `population` of the mesh in context (`jax.set_mesh`); everything that members
share is on every device. So train steps of members exchange nothing. Where there are several devices for each member, the rows
of a batch are cut along a second axis, `data`. What that takes XLA works out by itself: sums over the batch (gradients, the
statistics of a batch normalisation) go between these devices, and random numbers are those of the whole batch, so that all is
as on one device. Each of these devices holds a part of the large parameters, of their gradients and of the optimizer's state
(ZeRO; Rajbhandari et al. 2020): a block's parameters are there in whole only while it is run.
"""

import contextlib
import functools
import importlib.util
import math
import os
import signal
import sys
import threading
import zlib
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, NoReturn, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.experimental import multihost_utils
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from gafreeze_jax.engine.rendezvous import wait_for_all
from gafreeze_jax.listing import reason

PyTree = Any
T = TypeVar("T")
AXIS, DATA = "population", "data"
HEARTBEAT = 30  # seconds without one, after which a process counts as dead and the others end
START = 300  # seconds that JAX may take to join processes which have found each other
MOST_PATIENCE = 2**31  # seconds that JAX takes
LAST_WORDS = 3600  # seconds that the others wait for the first process, which scores the test split and saves the model
MEMBERS, SHARED = PartitionSpec(AXIS), PartitionSpec()
LARGE = 2**18  # numbers of a member's array, from which on devices that share the member hold parts of it


def join(
    coordinator: str | None = None,
    num_processes: int | None = None,
    process_id: int | None = None,
    *,
    timeout: float = 300,
) -> None:
    """Joins this process to others if arguments are given, on Cloud TPU, and under Slurm's `srun`; otherwise does nothing.

    Only the first process prints from then on. Call it before any other function of JAX.

    Args:
      coordinator: HOST:PORT of the first process.
      timeout: seconds to wait for the other processes.

    Raises:
      ValueError: if only some of the three are given, one is wrong, or the others do not come in time.
    """
    options = coordinator, num_processes, process_id
    if not 0 < timeout < MOST_PATIENCE:
        raise ValueError(f"--process-timeout must be above 0 and below {MOST_PATIENCE}, got {timeout}")
    if coordinator is not None and num_processes is not None and process_id is not None:
        wait_for_all(coordinator, num_processes, process_id, timeout)
        timeout = START  # as all of them are there
    elif options != (None, None, None):
        raise ValueError(f"--coordinator, --num-processes and --process-id belong together, got {options}")
    elif jax.distributed.is_initialized() or not (_on_cloud_tpu() or _under_slurm()):
        return
    else:
        print(f"waiting for the other processes, for up to {timeout:g} s", file=sys.stderr, flush=True)
    try:
        with _ending_at_interrupts():
            jax.distributed.initialize(
                *options,
                initialization_timeout=math.ceil(timeout),
                heartbeat_timeout_seconds=HEARTBEAT,
                shutdown_timeout_seconds=LAST_WORDS,
            )
    except Exception as error:  # whatever JAX and what it asks for the others raise
        raise ValueError(f"JAX cannot join the processes: {type(error).__name__}: {reason(error, 300)}") from error
    sys.excepthook = _end_at_once
    if not is_first():
        sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115


@contextlib.contextmanager
def _ending_at_interrupts() -> Iterator[None]:
    """Lets Ctrl-C end the process at once: while JAX waits, no handler of Python's is called."""
    if threading.current_thread() is not threading.main_thread():  # only there can handlers be set
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_DFL)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _on_cloud_tpu() -> bool:
    chips = any(Path("/dev").glob("accel*")) or any(Path("/dev/vfio").glob("[0-9]*"))
    return chips and importlib.util.find_spec("libtpu") is not None and "TPU_SKIP_MDS_QUERY" not in os.environ


def _under_slurm() -> bool:
    return "SLURM_STEP_NODELIST" in os.environ and int(os.environ.get("SLURM_NTASKS", 1)) > 1


def _end_at_once(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """Ends a failed process without waiting for the others; its heartbeat stops, so they end as well."""
    sys.__excepthook__(kind, error, trace)
    sys.stderr.flush()
    os._exit(1)


def leave(code: int) -> NoReturn:
    """Exits; one of several processes exits at once, as the others end only when its heartbeat stops."""
    if jax.distributed.is_initialized():
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)


def is_first() -> bool:
    """Whether this process prints and writes."""
    return jax.process_index() == 0


def on_first(function: Callable[[], T]) -> T | None:
    """What a function gives in process 0; None in the others.

    Raises:
      ValueError, OSError: in all of them, if it does.
    """
    result, error = None, None
    if is_first():
        try:
            result = function()
        except (ValueError, OSError) as caught:
            error = caught
    failed = error is not None
    if jax.process_count() > 1:
        failed = bool(multihost_utils.broadcast_one_to_all(np.array(failed)))
    if failed:
        raise error or OSError("the first process failed")
    return result


def agree(text: str) -> bool:
    """Whether all processes have the same text."""
    if jax.process_count() == 1:
        return True
    return len(set(multihost_utils.process_allgather(np.uint32(zlib.crc32(text.encode()))).tolist())) == 1


def over_all_devices(num_members: int | None = None) -> contextlib.AbstractContextManager:
    """A context in which members are spread over all devices of all processes; none if a mesh is in context already.

    Args:
      num_members: trained at a time, about; if devices are twice as many or more, they share the batches of members as well,
        but for CPUs without threads enough (`collectives_can_wait`).
    """
    num = jax.device_count()
    if num == 1 or are_many():
        return contextlib.nullcontext()
    most = 1 if collectives_can_wait() else max(1, num // (num_members or num))
    parts = next(part for part in range(most, 0, -1) if num % part == 0)
    return jax.set_mesh(jax.make_mesh((num // parts, parts), (AXIS, DATA), axis_types=2 * (AxisType.Auto,)))


def collectives_can_wait() -> bool:
    """Whether a collective within training steps may wait for ever, on CPUs with fewer than two threads for each device.

    XLA's pool has a thread for each core, or device (`PJRT_NPROC` sets another number). A device with 32 programs under way
    takes another thread for the launch of the next one; a collective takes one for each of its devices until the last comes.
    """
    if jax.default_backend() != "cpu":
        return False
    given = (os.environ.get(name, "") for name in ("PJRT_NPROC", "NPROC"))
    threads = next((int(number) for number in given if number.isdecimal()), os.cpu_count() or 1)
    return threads < 2 * jax.local_device_count()


def are_many() -> bool:
    """Whether there is a mesh in context."""
    return not jax.sharding.get_abstract_mesh().empty


def num_shards(axis: str = AXIS) -> int:
    """Parts into which the member axis is cut, or the rows of a batch."""
    return jax.sharding.get_abstract_mesh().shape.get(axis, 1)


def over_shards(function: Callable, axes: Sequence[int | None]) -> Callable:
    """`function` of arrays with a leading member axis (or None) to such arrays, run by each device for its own members."""
    if num_shards() == 1:
        return function
    specs = tuple(SHARED if axis is None else MEMBERS for axis in axes)
    return jax.shard_map(function, in_specs=specs, out_specs=MEMBERS, axis_names={AXIS}, check_vma=False)


def cut(tree: PyTree) -> PyTree:
    """Under `jax.jit`: arrays with a row for each element or example of a batch, cut over devices where that comes out even."""
    parts = num_shards(DATA)
    if parts == 1:
        return tree
    rows = PartitionSpec(DATA)
    return jax.tree.map(lambda x: x if len(x) % parts else jax.lax.with_sharding_constraint(x, rows), tree)


def whole(tree: PyTree) -> PyTree:
    """Under `jax.jit`: arrays that devices may have parts of, in whole on each; for gathers from anywhere in them.

    From arrays with fewer rows than devices XLA cannot gather by itself in jax 0.11 and 0.12: it ends the process.
    """
    return tree if num_shards(DATA) == 1 else jax.lax.with_sharding_constraint(tree, SHARED)


def spec_of(leaf: Any, axis: int | None) -> PartitionSpec:
    """How parameters lie on devices: along the member axis 0, if they have one (else None), and large ones in parts."""
    parts = num_shards(DATA)
    places = [i for i, size in enumerate(leaf.shape) if i != axis and size % parts == 0]
    num = math.prod(leaf.shape[0 if axis is None else 1 :])
    if parts == 1 or num < LARGE or not places:
        return SHARED if axis is None else MEMBERS
    longest = max(places, key=lambda i: leaf.shape[i])
    return PartitionSpec(*(AXIS if i == axis else DATA if i == longest else None for i in range(longest + 1)))


def num_parts(leaf: Any, axis: int | None) -> int:
    """Of how many devices each has a part of a member's array."""
    return num_shards(DATA) if DATA in spec_of(leaf, axis) else 1


def shard(tree: PyTree, axis: int | None = 0) -> PyTree:
    """Under `jax.jit`: parameters, or what is like them, where `spec_of` says."""
    if not are_many():
        return tree
    return jax.tree.map(lambda leaf: jax.lax.with_sharding_constraint(leaf, spec_of(leaf, axis)), tree)


def gathered(tree: PyTree, axis: int | None) -> PyTree:
    """Under `jax.jit`: parameters of which devices have parts, in whole on each device that has the member."""

    def gather(leaf: Array) -> Array:
        if num_parts(leaf, axis) == 1:
            return leaf
        return jax.lax.with_sharding_constraint(leaf, SHARED if axis is None else MEMBERS)

    return jax.tree.map(gather, tree)


def replicate(tree: PyTree) -> PyTree:
    """The arrays of a tree on every device; each process has the same ones."""
    return _put_on_devices(tree, lambda leaf: SHARED)


def spread(tree: PyTree) -> PyTree:
    """Parameters without member axis, where `spec_of` says; each process has the same ones."""
    return _put_on_devices(tree, lambda leaf: spec_of(leaf, None))


def _put_on_devices(tree: PyTree, spec: Callable[[np.ndarray], PartitionSpec]) -> PyTree:
    if not are_many():
        return jax.device_put(tree)
    mesh = jax.sharding.get_mesh()

    def put(leaf: Any) -> Array:
        leaf = np.asarray(leaf)
        return jax.make_array_from_callback(leaf.shape, NamedSharding(mesh, spec(leaf)), leaf.__getitem__)

    return jax.tree.map(put, tree)


def shapes(tree: PyTree, spec: Callable[[Any], PartitionSpec] = lambda leaf: SHARED) -> PyTree:
    """What stands for arrays on the devices of the mesh in context, for programs that are compiled and not run."""
    mesh = jax.sharding.get_mesh()

    def shape(leaf: Any) -> jax.ShapeDtypeStruct:
        sharding = None if mesh.empty else NamedSharding(mesh, spec(leaf))
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)

    return jax.tree.map(shape, tree)


def gather(array: Any) -> np.ndarray:
    """An array of all members, in the memory of every process."""
    if isinstance(array, Array) and not (array.is_fully_addressable or array.is_fully_replicated):
        array = multihost_utils.process_allgather(array, tiled=True)
    return np.asarray(array)


def of_first(numbers: Any) -> np.ndarray:
    """The numbers of process 0, for measurements: all processes must decide alike."""
    alone = jax.process_count() == 1 or not are_many()
    return np.asarray(numbers if alone else multihost_utils.broadcast_one_to_all(np.asarray(numbers)))


class Slot(Mapping[str, PyTree]):
    """A member's trees {block name: ...}, left where they are, stacked with those of others over devices.

    A tree comes to every device when it is asked for, from the one that has it; all processes must ask for the same in the
    same order.

    Args:
      trees: {block name: tree}.
      index: of the member.
      stacked: names of the trees of arrays [members, ...]; the others have no member axis.
    """

    def __init__(self, trees: Mapping[str, PyTree], index: int, stacked: Collection[str]):
        self._trees, self._index, self._stacked = trees, index, stacked

    def __getitem__(self, name: str) -> PyTree:
        if name not in self._stacked:
            return self._trees[name]
        picked = pick(self._trees[name], self._index)
        # On a CPU what is launched in the meantime can take the threads that a collective waits for.
        return jax.block_until_ready(picked) if jax.default_backend() == "cpu" else picked

    def __iter__(self) -> Iterator[str]:
        return iter(self._trees)

    def __len__(self) -> int:
        return len(self._trees)


@jax.jit
def pick(stacked: PyTree, i: int) -> PyTree:
    """Member i of a tree of arrays [members, ...], on every device; large arrays in parts."""
    if num_shards() == 1:
        return jax.tree.map(lambda leaf: leaf[i], stacked)

    def send_from_shard(stacked: PyTree, i: int) -> PyTree:
        def send(leaf: Array) -> Array:
            shard, place = jnp.divmod(i, len(leaf))
            sent = jnp.where(shard == jax.lax.axis_index(AXIS), leaf[place], jnp.zeros((), leaf.dtype))
            return jax.lax.psum(sent, AXIS).astype(leaf.dtype)

        return jax.tree.map(send, stacked)

    send = jax.shard_map(send_from_shard, in_specs=(MEMBERS, SHARED), out_specs=SHARED, axis_names={AXIS}, check_vma=False)
    return shard(send(stacked, i), None)


def stack(members: Iterable[PyTree], num: int) -> PyTree:
    """Trees of members as one with a leading axis [num], each on the device that needs it; copies of the first fill it up."""
    stacked = None
    for i, member in enumerate(members):
        stacked = _copies(member, num) if i == 0 else _put(stacked, member, i)
    return stacked


@functools.partial(jax.jit, static_argnums=1)
def _copies(member: PyTree, num: int) -> PyTree:
    return shard(jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, (num, *leaf.shape)), member))


@functools.partial(jax.jit, donate_argnums=0)
def _put(stacked: PyTree, member: PyTree, i: int) -> PyTree:
    def write_to_shard(stacked: PyTree, member: PyTree, i: int) -> PyTree:
        def write(leaf: Array, new: Array) -> Array:
            place = i - jax.lax.axis_index(AXIS) * len(leaf)
            return leaf.at[jnp.where(place < 0, len(leaf), place)].set(new, mode="drop")

        return jax.tree.map(write, stacked, member)

    specs = MEMBERS, SHARED, SHARED
    write = jax.shard_map(write_to_shard, in_specs=specs, out_specs=MEMBERS, axis_names={AXIS}, check_vma=False)
    return shard(write(stacked, member, i))
