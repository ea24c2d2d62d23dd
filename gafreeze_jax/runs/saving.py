"""What a run keeps in its folder, and how an interrupted one goes on.

A search has no state but its evaluations: it is deterministic, so done over with these at hand it comes to the point where it
was in no time. The folder holds

  run.json         what the run is: options, versions, plan, and a fingerprint of model and data
  evaluations.csv  see `ledger.Journal`
  members/         finalists, until the run is over; see `FinalistStore`
  SHA256SUMS       of the other files, for `sha256sum -c`; written last, so a run that has it is finished

Every file is written whole or not at all, and what was damaged since is noticed. Folders may be local or remote, such as
gs://bucket/run.
"""

import contextlib
import dataclasses
import functools
import hashlib
import itertools
import json
import shutil
import signal
import sys
import tempfile
import threading
import time
import warnings
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any, TypeVar

import jax
import numpy as np
from etils import epath

from gafreeze_jax.extras import needs
from gafreeze_jax.engine import devices
from gafreeze_jax.data.files import parse_json
from gafreeze_jax.search.history import Journal, genome_text, write_whole
from gafreeze_jax.engine.population import Member
from gafreeze_jax.engine.network import PyTree

RUN, JOURNAL, MEMBERS, SUMS = "run.json", "evaluations.csv", "members", "SHA256SUMS"
TENSORBOARD = "tensorboard"
FACTS = {
    "kind": str, "options": dict, "versions": dict, "device": str, "stages": list, "num_steps": int, "fingerprint": str,
}  # fmt: skip
NOT_LISTED = (MEMBERS, SUMS, TENSORBOARD, "report.html", "plots")  # the last two are made from the others, and can be again
OF_PROCESSES = ("coordinator", "num_processes", "process_id")
NOT_COMPARED = ("out", "resume", "quiet", "verbose", "tensorboard", *OF_PROCESSES)  # they change nothing of what is computed
AGAIN_SECONDS = 0.05  # after which a signal comes again that was lost
OptionsT = TypeVar("OptionsT", bound=Any)


class Saved:
    """A run as it is kept; in memory only, unless it comes from `open`. Of several processes, the first one writes.

    Attributes:
      path: its folder, or None.
      facts: the content of `run.json`.
      journal: its evaluations.
      kept: its finalists.
      seconds: that the evaluations took which were there at the beginning.
    """

    def __init__(self, path: epath.Path | None = None, facts: Mapping[str, Any] | None = None):
        self.path, self.facts = path, dict(facts or {})
        self.journal = Journal(path / JOURNAL if path else None, write=devices.is_first())
        self.kept = FinalistStore(path / MEMBERS if path else None, write=devices.is_first())
        self.seconds = sum(one.seconds for one in self.journal)

    @classmethod
    def open(cls, path: epath.Path, facts: Mapping[str, Any]) -> "Saved":
        """Creates the folder of a run, or goes on with the run in it.

        Args:
          facts: what the run is; "fingerprint" must be that of the run which is there already.

        Raises:
          ValueError: if the folder cannot be written, is damaged, belongs to other data or another model, or is one that not
            all processes see.
        """
        saved = devices.on_first(lambda: cls._open(path, facts))
        if saved is None:
            saved = cls(path, read_facts(path)) if _is_run(path) else cls(facts=facts)
        if not devices.agree(repr((saved.facts.get("plan"), list(saved.journal), saved.kept.names))):
            raise ValueError(f"{path}: not all processes see what is kept of this run; put it where all do, such as gs://")
        return saved

    @classmethod
    def _open(cls, path: epath.Path, facts: Mapping[str, Any]) -> "Saved":
        if _is_run(path):
            before = read_facts(path)
            if before["fingerprint"] != facts["fingerprint"]:
                raise ValueError(f"{path}: model or data are not what they were when this run started; choose a new folder")
            changed = [f"{name} {old}" for name, old in before["versions"].items() if facts["versions"].get(name) != old]
            if changed or before["device"] != facts["device"]:
                was = ", ".join([*changed, before["device"]])
                warnings.warn(f"{path}: was begun with {was}; rounding may be different now", stacklevel=5)
            saved = cls(path, before)
        else:
            try:
                path.mkdir(parents=True, exist_ok=True)
                saved = cls(path)
                saved.add_facts(**facts)
            except OSError as error:
                raise ValueError(f"--out {path}: cannot be written: {error.strerror or error}; choose another folder") from None
        if saved.journal.num_damaged:
            damaged = f"{path / JOURNAL}: {saved.journal.num_damaged} damaged rows"
            warnings.warn(f"{damaged}; these masks are trained again", stacklevel=5)
        return saved

    def __enter__(self) -> "Saved":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """Waits until all is written."""
        with contextlib.suppress(*[OSError] if error else []):  # which is the cause is known then
            self.kept.close()

    def add_facts(self, **facts: Any) -> None:
        """Adds to `run.json`."""
        self.facts |= json.loads(json.dumps(facts, default=str))
        if self.path is not None and devices.is_first():
            text = json.dumps(self.facts | {"checksum": _checksum(self.facts)}, indent=2)
            write_whole(self.path / RUN, text + "\n")

    def discard(self) -> None:
        """Deletes the folder, where nothing has been evaluated yet."""
        if self.path is not None and devices.is_first() and not len(self.journal):
            self.path.rmtree()

    @contextlib.contextmanager
    def finishing(self) -> Iterator[Path]:
        """A local folder for the final files; they are in the run's folder when the block is left, and the run is finished."""
        assert self.path is not None
        with contextlib.ExitStack() as stack:
            local = _is_local(self.path)
            folder = Path(self.path) if local else Path(stack.enter_context(tempfile.TemporaryDirectory()))
            for name in () if local else (RUN, JOURNAL):
                (folder / name).write_bytes((self.path / name).read_bytes())
            yield folder
            if not local:
                for file in _files(epath.Path(folder)):
                    to = self.path / file.relative_to(folder)
                    to.parent.mkdir(parents=True, exist_ok=True)
                    with file.open("rb") as source, to.open("wb") as target:
                        shutil.copyfileobj(source, target)
            names = [file.relative_to(folder) for file in _files(epath.Path(folder))]
            listed = [name for name in names if name.parts[0] not in NOT_LISTED and not name.name.startswith(".")]
            write_whole(self.path / SUMS, "".join(f"{_sha256(epath.Path(folder) / name)}  {name}\n" for name in listed))
            self.kept.remove()


def choose_folder(kind: str, options: OptionsT) -> tuple[OptionsT, epath.Path, bool]:
    """Finds out what a command is to do: begin a run, go on with one, or nothing.

    Args:
      kind: of experiment, such as "bert".
      options: a dataclass with `out` and `resume`.

    Returns:
      The options, which are those of the run with `--resume`; the folder; and whether the run in it is finished.

    Raises:
      ValueError: if the folder is not that of this run, or damaged.
    """
    given = _plain(options)
    if options.resume is not None:
        path = epath.Path(options.resume)
        if not _is_run(path):
            raise ValueError(f"--resume {path}: expected the folder of a run, with {RUN}; there is none")
        facts = _of_kind(path, kind)
        usual = _plain(type(options)())
        _refuse_others(path, facts["options"], {name: value for name, value in given.items() if value != usual[name]})
        options = with_options(options, facts["options"])
    elif options.out is None:
        name = time.strftime(f"{kind}-%Y%m%d-%H%M%S")
        names = itertools.chain([name], (f"{name}-{number}" for number in itertools.count(2)))
        return options, next(path for path in map(epath.Path("runs").joinpath, names) if not path.exists()), False
    else:
        path = epath.Path(options.out)
        if not _is_run(path):
            try:
                partial = f".{RUN}.partial"
                held = next((file for file in path.iterdir() if file.name != partial), None) if path.exists() else None
            except OSError as error:
                raise ValueError(f"--out {path}: cannot be read: {error.strerror or error}; choose another folder") from None
            if held is not None:
                raise ValueError(f"--out {path}: holds something already ({held.name}); choose a new folder")
            return options, path, False
        _refuse_others(path, _of_kind(path, kind)["options"], given)
    if finished := (path / SUMS).exists():
        verify(path)
        if devices.is_first() and (path / MEMBERS).exists():
            (path / MEMBERS).rmtree()  # it was killed just when it had finished
    return options, path, finished


def with_options(options: OptionsT, there: Mapping[str, Any]) -> OptionsT:
    """Options as `run.json` has them, but for where the run is; what it lacks stays as it is."""
    names = {field.name for field in dataclasses.fields(options)} & there.keys() - set(NOT_COMPARED)
    known = {name: tuple(there[name]) if isinstance(there[name], list) else there[name] for name in names}
    return dataclasses.replace(options, **known)


def read_facts(path: epath.Path) -> dict[str, Any]:
    """The content of `run.json`.

    Raises:
      ValueError: if it is damaged, or not all of `FACTS` are there.
    """
    try:
        facts = parse_json((path / RUN).read_text(encoding="utf-8"))
        whole = facts.pop("checksum") == _checksum(facts)
    except (ValueError, KeyError, AttributeError, TypeError):
        facts, whole = {}, False
    if not whole:
        raise ValueError(f"{path / RUN}: damaged; restore it, or begin again in a new folder")
    if wrong := [name for name, kind in FACTS.items() if not isinstance(facts.get(name), kind)]:
        raise ValueError(f"{path / RUN}: missing, or of another type: {', '.join(wrong)}; begin again in a new folder")
    return facts


def verify(path: epath.Path) -> None:
    """Compares the files of a finished run with `SHA256SUMS`.

    Raises:
      ValueError: if one is damaged or missing.
    """
    sums = {}
    for line in (path / SUMS).read_bytes().decode("utf-8", "replace").splitlines():
        digest, _, name = line.partition("  ")
        sums[name] = digest
    if damaged := [name for name, digest in sums.items() if not (path / name).is_file() or _sha256(path / name) != digest]:
        raise ValueError(
            f"{path}: damaged or missing: {', '.join(damaged)}. Delete {path / SUMS} and give the command again: what can be "
            "used is, the rest is made anew"
        )


def fingerprint(*trees: PyTree) -> str:
    """CRC-32 of all arrays in some trees."""
    crc = 0
    for leaf in jax.tree.leaves(trees):
        array = np.ascontiguousarray(leaf)
        crc = zlib.crc32(array.reshape(-1).view(np.uint8).data, zlib.crc32(f"{array.dtype}{np.shape(leaf)}".encode(), crc))
    return f"{crc:08x}"


class FinalistStore:
    """Finalists that have been trained, kept through Orbax so that they need not be trained again.

    They are written in the background, what is waiting at a time in one checkpoint. What cannot be read, or is not what was
    written, counts as not there.

    Args:
      folder: where; None = nothing is kept.
      write: whether to write to it, and not only read.
    """

    def __init__(self, folder: epath.Path | None = None, *, write: bool = True):
        folder = folder.absolute() if folder is not None and _is_local(folder) else folder
        self._folder = folder if write else None
        self._there: dict[str, dict[str, np.ndarray]] = {}
        self._waiting: list[dict[str, dict[str, np.ndarray]]] = []
        self._writer = ThreadPoolExecutor(1)
        self._writes: list[Future[None]] = []
        for path in folder.iterdir() if folder is not None and folder.exists() else ():
            self._there |= _read_members(path)
        self._next = len(self._there)

    @property
    def names(self) -> list[str]:
        """Of those that were there at the beginning."""
        return sorted(self._there)

    def keep(self, name: str, members: Sequence[Member]) -> None:
        """Keeps members that were trained together.

        Args:
          name: of what they have in common, such as "mask-3".

        Raises:
          OSError: if an earlier one could not be written.
        """
        if self._folder is None:
            return
        self._waiting.append({f"{name}-{genome_text(one.genome)}": _as_arrays(one) for one in members})
        self._check(wait=False)
        self._writes.append(self._writer.submit(self._write))

    def find(self, name: str, genome: np.ndarray, like: PyTree) -> Member | None:
        """A member that was kept.

        Args:
          like: {block name: pretrained parameters, ..., "head": those that it started from}.
        """
        arrays = self._there.get(f"{name}-{genome_text(genome)}")
        if arrays is None:
            return None
        own = _trained(genome, like)
        leaves, tree = jax.tree.flatten(own)
        leaves = [arrays.get(str(number), leaf) for number, leaf in enumerate(leaves)]
        train_loss, accuracy, loss, seconds, steps = arrays["scores"].tolist()
        return Member(genome, like | jax.tree.unflatten(tree, leaves), train_loss, accuracy, loss, int(steps), seconds)

    def close(self) -> None:
        """Waits until all is written.

        Raises:
          OSError: if something could not be.
        """
        self._check(wait=True)

    def remove(self) -> None:
        """Deletes all."""
        if self._folder is not None and self._folder.exists():
            self._folder.rmtree()

    def _check(self, wait: bool) -> None:
        while self._writes and (wait or self._writes[0].done()):
            self._writes.pop(0).result()

    def _write(self) -> None:
        assert self._folder is not None
        tree: dict[str, dict[str, np.ndarray]] = {}
        while self._waiting:
            tree |= self._waiting.pop(0)
        if tree:
            digests = {name: arrays | {"digest": fingerprint(arrays)} for name, arrays in tree.items()}
            while (path := self._folder / str(self._next)).exists():
                self._next += 1
            try:
                _checkpointer().save(path, digests)
            except Exception as error:
                raise OSError(f"{path}: cannot be written: {error}") from error


def _read_members(path: epath.Path) -> dict[str, dict[str, np.ndarray]]:
    """What a checkpoint holds; nothing if it is damaged."""
    if ".orbax-checkpoint-tmp" in path.name:
        return {}  # being written when the run was interrupted
    with contextlib.suppress(Exception):  # whatever bytes are in these files
        found = _checkpointer().restore(path)
        if all(arrays.pop("digest") == fingerprint(arrays) for arrays in found.values()):
            return found
    warnings.warn(f"{path}: damaged; these finalists are trained again", stacklevel=4)
    return {}


@functools.cache
def _checkpointer() -> Any:
    with needs("report"):
        import orbax.checkpoint as ocp  # takes a second

    own = jax.process_index()  # of several processes one writes, and each reads by itself
    alone = ocp.options.MultiprocessingOptions(primary_host=own, active_processes={own})
    handler = ocp.PyTreeCheckpointHandler(use_compression=False, multiprocessing_options=alone)
    return ocp.Checkpointer(handler, multiprocessing_options=alone)


def _trained(genome: np.ndarray, params: PyTree) -> PyTree:
    """Parameters of the blocks that a genome trains, and of the head."""
    frozen = dict(zip(list(params)[: len(genome)], genome, strict=True))
    return {name: tree for name, tree in params.items() if not frozen.get(name, False)}


def _as_arrays(member: Member) -> dict[str, np.ndarray]:
    """Its scores and what it has trained; Orbax takes no empty arrays."""
    leaves = enumerate(map(np.asarray, jax.tree.leaves(_trained(member.genome, member.params))))
    scores = (member.train_loss, member.accuracy, member.loss, member.seconds, member.steps)
    return {str(number): leaf for number, leaf in leaves if leaf.size} | {"scores": np.array(scores, np.float64)}


def _plain(options: Any) -> dict[str, Any]:
    """Options as JSON has them."""
    return json.loads(json.dumps(dataclasses.asdict(options), default=str))


def _of_kind(path: epath.Path, kind: str) -> dict[str, Any]:
    facts = read_facts(path)
    if facts["kind"] != kind:
        raise ValueError(f"{path}: is a run of run_{facts['kind']}.py; expected one of run_{kind}.py")
    return facts


def _refuse_others(path: epath.Path, there: Mapping[str, Any], given: Mapping[str, Any]) -> None:
    """Raises a ValueError if given options are not those of a run."""
    others = {name: value for name, value in given.items() if name not in NOT_COMPARED and there.get(name) != value}
    if others:
        words = [f"--{name.replace('_', '-')} {there.get(name)} there, {value} given" for name, value in others.items()]
        raise ValueError(f"{path}: holds a run with other options: {'; '.join(words)}. Choose another folder")


def _is_run(path: epath.Path) -> bool:
    try:
        return (path / RUN).exists()
    except ImportError as error:
        raise ValueError(f"{path}: {error}") from None


def _is_local(path: epath.Path) -> bool:
    return "://" not in str(path)


def _files(path: epath.Path) -> list[epath.Path]:
    """All files in a folder and below it."""
    return [file for entry in sorted(path.iterdir()) for file in (_files(entry) if entry.is_dir() else [entry])]


def _sha256(path: epath.Path) -> str:
    with path.open("rb") as file:
        digest = hashlib.sha256()
        while chunk := file.read(2**20):
            digest.update(chunk)
    return digest.hexdigest()


def _checksum(facts: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


class _Stopped(BaseException):
    """By a signal."""


@contextlib.contextmanager
def stoppable(how_to_go_on: Callable[[], str]) -> Iterator[None]:
    """Ends the program at Ctrl-C or SIGTERM when the current write is over, with exit code 130 or 143.

    Args:
      how_to_go_on: what is said then.
    """

    def stop(number: int, frame: FrameType | None) -> None:
        for each in before:
            signal.signal(each, signal.SIG_DFL)  # the next one ends it at once
        raise _Stopped(number)

    def not_raised(what: Any) -> None:
        """Python ignores exceptions in what the garbage collector calls, as it does for JAX. Then the signal comes again."""
        if not isinstance(what.exc_value, _Stopped):
            hook(what)
            return
        for each in before:
            signal.signal(each, stop)
        again = threading.Timer(AGAIN_SECONDS, signal.raise_signal, what.exc_value.args)
        again.daemon = True
        again.start()

    before, hook = {}, sys.unraisablehook
    if threading.current_thread() is threading.main_thread():
        before |= {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
        sys.unraisablehook = not_raised
    try:
        yield
    except _Stopped as stopped:
        print(f"\nStopped. {how_to_go_on()}", file=sys.stderr)
        devices.leave(128 + stopped.args[0])
    finally:
        if before:
            sys.unraisablehook = hook
        for number, handler in before.items():
            signal.signal(number, handler)
