"""Trained finalists on disk, so that an interrupted run needn't train them again."""

import contextlib
import functools
import warnings
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import jax
import numpy as np
from etils import epath

from gafreeze_jax.engine.cohort import Member
from gafreeze_jax.engine.network import PyTree
from gafreeze_jax.extras import needs
from gafreeze_jax.report.folder_format import is_local
from gafreeze_jax.runs.fingerprint import fingerprint
from gafreeze_jax.space import Genome, Space, as_genome

Arrays = dict[str, np.ndarray]  # a member: its trained leaves by number, "scores" and "values"


class FinalistStore:
    """Trained finalists, written by Orbax in the background.

    All members that wait at a time are written to one checkpoint. A checkpoint that is damaged, or can't be read, counts as
    missing.

    Args:
      folder: of the checkpoints; None = nothing is stored.
      space: of the genomes; needed with a folder.
      write: whether to write to the folder, and not only read it.
    """

    def __init__(self, folder: epath.Path | None = None, space: Space | None = None, *, write: bool = True):
        folder = folder.absolute() if folder is not None and is_local(folder) else folder
        self._folder = folder if write else None
        self._space, self._stored = space or Space("-"), dict[str, Arrays]()
        self._waiting: list[dict[str, Arrays]] = []
        self._writer = ThreadPoolExecutor(1)
        self._writes: list[Future[None]] = []
        for path in folder.iterdir() if folder is not None and folder.exists() else ():
            self._stored |= _read_members(path)
        self._next = len(self._stored)

    @property
    def names(self) -> list[str]:
        """Names of the members that were stored at the beginning."""
        return sorted(self._stored)

    def keep(self, name: str, members: Sequence[Member]) -> None:
        """Stores members that were trained together.

        Args:
          name: of what they have in common, such as "mask-3".

        Raises:
          OSError: if an earlier write failed.
        """
        if self._folder is None:
            return
        self._waiting.append({self._key(name, member.genome): self._as_arrays(member) for member in members})
        self._raise_failures(wait=False)
        self._writes.append(self._writer.submit(self._write))

    def find(self, name: str, genome: Genome, like: PyTree) -> Member | None:
        """A stored member, or None.

        Args:
          like: {block name: pretrained parameters, ..., "head": its initial parameters}.
        """
        arrays = self._stored.get(self._key(name, genome)) if self._stored else None
        if arrays is None or "values" not in arrays:  # as older versions left them
            return None
        leaves, tree = jax.tree.flatten(self._trained(genome, like))
        leaves = [arrays.get(str(number), leaf) for number, leaf in enumerate(leaves)]
        train_loss, score, loss, seconds, steps = arrays["scores"].tolist()
        return Member(
            genome=as_genome(genome),
            params=like | jax.tree.unflatten(tree, leaves),
            train_loss=train_loss,
            score=score,
            loss=loss,
            steps=int(steps),
            seconds=seconds,
            values=arrays["values"],
        )

    def close(self) -> None:
        """Waits until everything is written.

        Raises:
          OSError: if a write failed.
        """
        self._raise_failures(wait=True)

    def remove(self) -> None:
        """Deletes the folder."""
        if self._folder is not None and self._folder.exists():
            self._folder.rmtree()

    def _key(self, name: str, genome: Genome) -> str:
        return f"{name}-{self._space.text(genome)}"

    def _trained(self, genome: Genome, params: Mapping[str, PyTree]) -> PyTree:
        """Parameters of the blocks that a genome trains, and of the head."""
        frozen = set(self._space.frozen_names(genome))
        return {name: params[name] for name in params if name not in frozen}

    def _as_arrays(self, member: Member) -> Arrays:
        """Scores and trained leaves of a member; Orbax takes no empty arrays."""
        leaves = enumerate(map(np.asarray, jax.tree.leaves(self._trained(member.genome, member.params))))
        scores = (member.train_loss, member.score, member.loss, member.seconds, member.steps)
        named = {str(number): leaf for number, leaf in leaves if leaf.size}
        return named | {"scores": np.array(scores, np.float64), "values": np.asarray(member.values)}

    def _raise_failures(self, *, wait: bool) -> None:
        while self._writes and (wait or self._writes[0].done()):
            self._writes.pop(0).result()

    def _write(self) -> None:
        assert self._folder is not None
        members: dict[str, Arrays] = {}
        while self._waiting:
            members |= self._waiting.pop(0)
        if not members:
            return
        while (path := self._folder / str(self._next)).exists():
            self._next += 1
        try:
            _checkpointer().save(path, {name: arrays | {"digest": fingerprint(arrays)} for name, arrays in members.items()})
        except Exception as error:
            raise OSError(f"{path}: cannot be written: {error}") from error


def _read_members(path: epath.Path) -> dict[str, Arrays]:
    """The members in a checkpoint; none if it is damaged."""
    if ".orbax-checkpoint-tmp" in path.name:
        return {}  # the run was interrupted while writing it
    with contextlib.suppress(Exception):  # the files may hold any bytes
        members = _checkpointer().restore(path)
        if all(arrays.pop("digest") == fingerprint(arrays) for arrays in members.values()):
            return members
    warnings.warn(f"{path}: damaged; these finalists are trained again", stacklevel=4)
    return {}


@functools.cache
def _checkpointer() -> Any:
    with needs("report"):
        import orbax.checkpoint as ocp  # takes a second

    process = jax.process_index()  # one process writes, and each reads by itself
    alone = ocp.options.MultiprocessingOptions(primary_host=process, active_processes={process})
    handler = ocp.PyTreeCheckpointHandler(use_compression=False, multiprocessing_options=alone)
    return ocp.Checkpointer(handler, multiprocessing_options=alone)
