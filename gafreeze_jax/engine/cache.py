"""Activations of the frozen prefix, computed once for a data set and kept within a budget of bytes; and its batches.

All members of a population start from the same pretrained parameters, and frozen blocks run in inference mode. So all
members compute the same up to their lowest trainable block.
"""

import functools
import itertools
import os
import threading
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from gafreeze_jax.engine import devices
from gafreeze_jax.engine.network import ALONE, INPUTS, AnyArray, Batch, Network, PyTree, Source, Step, num_bytes
from gafreeze_jax.engine.passes import Borrowed, infer, with_shared
from gafreeze_jax.extras import needs

STREAMED_STEPS = 8  # of a chunk, where nothing else asks for more
PREFETCHED_CHUNKS = 2


class Chunk(NamedTuple):
    """Some steps, on the device.

    Attributes:
      inputs, targets: rows that the batches point to: the whole set, or only what these steps need.
      batches: with a leading axis of steps.
      raw: rows of the data set's inputs for the context, if the network reads them above its lowest block.
    """

    inputs: PyTree
    targets: Array | None
    batches: Batch
    raw: PyTree = None


class Budget(NamedTuple):
    """Bytes that a data set and activations may take.

    Attributes:
      device: of the accelerator's memory, or the machine's if there is none.
      host: of the machine's memory, in which an accelerator's overflow is kept.
    """

    device: int
    host: int


def device_memory() -> int:
    """Bytes of memory that a device has: an accelerator's own, or its share of the machine's; of the first process."""
    limit = (jax.local_devices()[0].memory_stats() or {}).get("bytes_limit")
    return int(devices.of_first(limit or _host_memory() // jax.local_device_count()))


def _host_memory() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def default_budget() -> Budget:
    """A quarter of an accelerator's memory and of the machine's; on a CPU an eighth of the machine's."""
    if jax.default_backend() == "cpu":
        return Budget(device_memory() // 8, 0)
    return Budget(device_memory() // 4, int(devices.of_first(_host_memory() // 4)))


class Activations:
    """A data set and what the pretrained blocks make of it, kept within a budget.

    What is used least, as far as can be expected, leaves the device first, for the host's memory if that has room. What
    does not fit on the device is read from the host in chunks of steps, ahead of their use.

    Args:
      params: pretrained.
    """

    def __init__(self, network: Network, params: PyTree, source: Source, budget: Budget):
        self.num_examples = source.num_examples
        self._network, self._params, self._budget = network, params, budget
        self.augment = source.augment
        fits = num_bytes(source.data) <= budget.device
        self._data = devices.replicate(source.data) if fits else jax.tree.map(np.asarray, source.data)
        self._batches = source.batches
        self._tiers: tuple[dict[int, PyTree], ...] = ({}, {})  # by depth: on the device, on the host
        self._expected_uses: dict[int, float] = {}
        self._shapes = self._boundary_shapes()
        self._lock = threading.RLock()  # several calls may ask at the same time

    def expect(self, depths: Iterable[int]) -> None:
        """Says for which depths inputs will be asked for next. Earlier expectations count half each time."""
        self._expected_uses = {depth: uses / 2 for depth, uses in self._expected_uses.items()}
        for depth in depths:
            self._expected_uses[depth] = self._expected_uses.get(depth, 0) + 1

    def boundary(self, depth: int) -> int:
        """The highest block up to `depth` whose input can be kept, or 0."""
        while depth > 0 and not self._can_keep(depth):
            depth -= 1
        return depth

    def inputs(self, depth: int) -> tuple[int, PyTree]:
        """What enters the block at `depth`, for the whole data set; if that is too large, the same for a lower block.

        With `augment`, it is always the data set itself.

        Returns:
          The block's index and arrays: of JAX if they are on the device, else of numpy.
        """
        with self._lock:
            depth = self.boundary(depth)
            if depth == 0:
                return 0, self._data.inputs
            on_device, on_host = self._tiers
            if depth in on_host and self._bytes(depth) <= self._budget.device:
                self._keep(depth, on_host.pop(depth), hold=depth)
            elif depth not in on_device and depth not in on_host:
                for computed, array in self._compute(depth).items():
                    self._keep(computed, array, hold=depth)
            return depth, on_device[depth] if depth in on_device else on_host[depth]

    def chunks(self, depth: int, inputs: PyTree, batches: Batch | None = None, num_steps: int | None = None) -> Iterator[Chunk]:
        """Chunks of steps over what `inputs` gave for a depth.

        Args:
          batches: other batches than those that run through the set.
          num_steps: of a chunk; by default all, or as many as are read from the host at a time.
        """
        batches = self._batches if batches is None else batches
        steps = len(batches.examples)
        if all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves((inputs, self._raw))):
            targets = jax.tree.map(jnp.asarray, self._data.targets)
            for part in _parts(devices.replicate(batches), num_steps or steps):
                yield Chunk(inputs, targets, part, self._raw)
        else:
            whole = Chunk(inputs, self._data.targets, batches, self._raw)
            yield from _stream(self.per_example(depth), whole, num_steps or STREAMED_STEPS)

    def chunk_shape(self, depth: int, batches: Batch, num_steps: int = 1) -> Chunk:
        """What a chunk of some steps would be if the inputs of the block at `depth` are on the device."""
        some = jax.tree.map(lambda leaf: leaf[:num_steps], batches)
        inputs = self._data.inputs if depth == 0 else self._shapes[depth]
        return jax.eval_shape(Chunk, inputs, self._data.targets, some, self._raw)

    @property
    def rows(self) -> np.ndarray:
        """The example at each place of all batches, one batch after the other; -1 only fills a batch up."""
        return np.asarray(self._batches.examples).ravel()

    def per_example(self, depth: int) -> bool:
        """Whether what enters the block at `depth` has one row per example (or else per element)."""
        return depth > 0 and self._network.blocks[depth - 1].per_example

    @property
    def num_bytes(self) -> Budget:
        """What is kept."""
        return Budget(*(sum(map(num_bytes, tier.values())) for tier in self._tiers))

    def clear(self) -> None:
        """Forgets all activations."""
        for tier in self._tiers:
            tier.clear()

    def _can_keep(self, depth: int) -> bool:
        computed = self._network.blocks[depth - 1].apply is not None
        return self.augment is None and computed and self._bytes(depth) <= max(self._budget)

    def _bytes(self, depth: int) -> int:
        return num_bytes(self._shapes[depth])

    def _kept_below(self, depth: int) -> int:
        return max((kept for tier in self._tiers for kept in tier if kept < depth), default=0)

    def _worth(self, depth: int) -> float:
        """Blocks that keeping this depth saves, times its expected uses, per byte."""
        below = self._kept_below(depth)
        return self._expected_uses.get(depth, 0) * (depth - below) / self._bytes(depth)

    def _keep(self, depth: int, kept: PyTree, hold: int, level: int = 0) -> None:
        """Puts arrays into the first tier that can hold them. What is worth least makes room, but not `hold`."""
        if level == len(self._tiers):
            return
        tier, budget = self._tiers[level], self._budget[level]
        if self._bytes(depth) > budget:
            return self._keep(depth, kept, hold, level + 1)
        tier[depth] = jax.tree.map(jnp.asarray if level == 0 else np.asarray, kept)
        while sum(map(self._bytes, tier)) > budget:
            least = min((kept for kept in tier if kept != hold), key=self._worth)
            self._keep(least, tier.pop(least), hold, level + 1)

    def _compute(self, depth: int) -> dict[int, PyTree]:
        """The inputs of the block at `depth`, and of those passed on the way for which there is room."""
        below = self._kept_below(depth)
        room = self._budget.device - self.num_bytes.device - self._bytes(depth)
        outputs = {depth: self._empty(depth)}
        for passed in filter(self._can_keep, range(depth - 1, below, -1)):
            if (room := room - self._bytes(passed)) >= 0:
                outputs[passed] = self._empty(passed)
        numbers = itertools.count()
        for chunk in self.chunks(*self.inputs(below)):
            for step in range(len(chunk.batches.examples)):
                number = next(numbers)
                x, _, _, context, _ = fetch(self.per_example(below), chunk, step)
                for boundary, block in enumerate(self._network.blocks[below:depth], start=below + 1):
                    if block.apply is None:
                        continue
                    borrowed = Borrowed.of(block.shared, self._params)
                    with ALONE(True):
                        x = infer(block.apply, (None, None), self._params[block.name], x, context, borrowed)
                    if boundary in outputs:
                        rows = self._batches.examples if self.per_example(boundary) else self._batches.elements
                        put = functools.partial(_put, rows=rows[number])
                        outputs[boundary] = jax.tree.map(put, outputs[boundary], x)
        return outputs

    def _empty(self, depth: int) -> PyTree:
        xp = jnp if self._bytes(depth) <= self._budget.device else np
        return jax.tree.map(lambda shape: xp.zeros(shape.shape, shape.dtype), self._shapes[depth])

    @property
    def _raw(self) -> PyTree:
        return self._data.inputs if self._network.reads_inputs else None

    def _boundary_shapes(self) -> dict[int, PyTree]:
        num_elements = len(jax.tree.leaves(self._data.inputs)[0])
        chunk = Chunk(self._data.inputs, self._data.targets, self._batches, self._raw)
        x, _, _, context, _ = jax.eval_shape(functools.partial(fetch, False, step=0), chunk)
        shapes = {}
        for depth, block in enumerate(self._network.blocks, start=1):
            if block.apply is None:
                continue
            apply = functools.partial(block.apply, frozen=True, key=None)
            borrowed = Borrowed.of(block.shared, self._params)
            read = with_shared(borrowed.names, self._params[block.name], borrowed.trees)
            x = jax.eval_shape(apply, read, x, context)
            num = self.num_examples if block.per_example else num_elements
            shapes[depth] = jax.tree.map(lambda leaf, num=num: jax.ShapeDtypeStruct((num, *leaf.shape[1:]), leaf.dtype), x)
        return shapes


@functools.partial(jax.jit, static_argnums=0)
def fetch(per_example: bool, chunk: Chunk, step: int, part: int | None = None) -> Step:
    """A step of a chunk, whose inputs have a row per example or per element; or a slice of the step."""
    batch = jax.tree.map(lambda leaf: leaf[step], chunk.batches)
    total = batch.weights.sum()
    batch = batch if part is None else jax.tree.map(lambda leaf: leaf[part], batch)
    rows = batch.examples if per_example else batch.elements
    x = devices.cut(jax.tree.map(lambda leaf: leaf[rows], chunk.inputs))
    targets = None if chunk.targets is None else chunk.targets[batch.examples]
    context = batch.context
    if chunk.raw is not None:
        context = context | {INPUTS: devices.cut(jax.tree.map(lambda leaf: leaf[batch.elements], chunk.raw))}
    return Step(x, targets, batch.weights, context, total)


def _parts(batches: Batch, num_steps: int) -> Iterator[Batch]:
    for first in range(0, len(batches.examples), num_steps):
        yield jax.tree.map(lambda leaf, first=first: leaf[first : first + num_steps], batches)


def _stream(per_example: bool, whole: Chunk, num_steps: int) -> Iterator[Chunk]:
    """Chunks that hold just the rows they need, put on the device ahead of their use."""
    with needs("report"):
        import grain  # takes a second to import

    inputs, targets, batches, raw = jax.tree.map(np.asarray, whole)
    parts = list(_parts(batches, num_steps))

    def load(index: int) -> Chunk:
        part = parts[index]
        rows = (part.examples if per_example else part.elements).ravel()
        needed = jax.tree.map(lambda leaf: leaf[rows], inputs), jax.tree.map(lambda leaf: leaf[part.examples.ravel()], targets)
        renumbered = part._replace(elements=_renumber(part.elements), examples=_renumber(part.examples))
        of_context = jax.tree.map(lambda leaf: leaf[part.elements.ravel()], raw)
        return Chunk(*jax.device_put((*needed, renumbered, of_context)))

    options = grain.ReadOptions(num_threads=1, prefetch_buffer_size=PREFETCHED_CHUNKS)
    return iter(grain.MapDataset.range(len(parts)).map(load).to_iter_dataset(options))


def _renumber(rows: AnyArray) -> np.ndarray:
    return np.where(rows < 0, -1, np.arange(rows.size, dtype=rows.dtype).reshape(rows.shape))


def _put(array: AnyArray, values: Array, rows: AnyArray) -> AnyArray:
    """Writes values to rows of an array, apart from those of row -1, which is padding."""
    if isinstance(array, jax.Array):
        return _put_on_device(array, rows, values)
    real = np.asarray(rows) >= 0
    array[np.asarray(rows)[real]] = devices.gather(values)[real]
    return array


@functools.partial(jax.jit, donate_argnums=0)
def _put_on_device(array: Array, rows: Array, values: Array) -> Array:
    return array.at[jnp.where(rows < 0, len(array), rows)].set(values, mode="drop")
