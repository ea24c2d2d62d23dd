"""The folder of a run while it is written, and how an interrupted run is resumed.

A search has no state but its evaluations: it is deterministic, so an interrupted run is replayed from its recorded evaluations.
Every file is written whole or not at all. `report.folder_format` says which files there are.
"""

import contextlib
import dataclasses
import itertools
import json
import os
import shutil
import tempfile
import time
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

from etils import epath

from gafreeze_jax.engine import devices
from gafreeze_jax.options import with_absolute_paths
from gafreeze_jax.report import folder_format, old_versions
from gafreeze_jax.report.folder_format import JOURNAL, MEMBERS, NOT_COMPARED, RUN, SUMS, is_local, is_run, made_by, read_facts
from gafreeze_jax.report.metric_format import MetricFormat
from gafreeze_jax.runs.finalist_store import FinalistStore
from gafreeze_jax.search.history import Journal, write_whole
from gafreeze_jax.space import Space

OptionsT = TypeVar("OptionsT", bound=Any)


class RunDir:
    """The folder that a run writes; in memory only, unless it comes from `open`. `report.RunFolder` reads one.

    Of several processes, the first one writes.

    Attributes:
      path: of the folder, or None.
      facts: the content of `run.json`.
      journal: the evaluations.
      finalists: the trained finalists.
      seconds: that the recorded evaluations took before this process began.
    """

    def __init__(self, path: epath.Path | None = None, facts: Mapping[str, Any] | None = None):
        self.path, self.facts = path, dict(facts or {})
        space = Space.from_facts(self.facts) if self.facts.get("stages") else None
        metric = MetricFormat(**old_versions.complete(self.facts)["metric"])
        self.journal = Journal(
            path / JOURNAL if path else None,
            space,
            metric=metric.key,
            higher_is_better=metric.higher_is_better,
            write=devices.is_first(),
        )
        self.finalists = FinalistStore(path / MEMBERS if path else None, space, write=devices.is_first())
        self.seconds = sum(evaluation.seconds for evaluation in self.journal)
        self._folder_is_ours = False

    @classmethod
    def open(cls, path: epath.Path, facts: Mapping[str, Any]) -> "RunDir":
        """Creates the folder of a run, or opens that of an interrupted run.

        Args:
          facts: for `run.json`. The "fingerprint" of an interrupted run must be the same.

        Raises:
          ValueError: if the folder cannot be written, is damaged, belongs to other data or another model, or is not visible to
            all processes.
        """
        run = devices.on_first(lambda: cls._reopen(path, facts) if is_run(path) else cls._create(path, facts))
        if run is None:
            run = cls(path, read_facts(path)) if is_run(path) else cls(facts=facts)
        if not devices.agree(repr((run.facts.get("plan"), list(run.journal), run.finalists.names))):
            raise ValueError(f"{path}: not all processes see this run; put it where they all do, such as gs://")
        return run

    @classmethod
    def _create(cls, path: epath.Path, facts: Mapping[str, Any]) -> "RunDir":
        try:
            was_there = path.exists()
            path.mkdir(parents=True, exist_ok=True)
            run = cls(path, facts)
            run._folder_is_ours = not was_there
            run.add_facts(**facts)
        except OSError as error:
            raise ValueError(f"--out {path}: cannot be written: {error.strerror or error}; choose another folder") from None
        return run

    @classmethod
    def _reopen(cls, path: epath.Path, facts: Mapping[str, Any]) -> "RunDir":
        run = cls(path, read_facts(path))
        if run.facts["fingerprint"] != facts["fingerprint"]:
            raise ValueError(f"{path}: {_changed(run.facts, facts)} changed since this run started; choose a new folder")
        now, before = facts["options"], run.facts["options"]
        if moved := {name: now[name] for name in facts.get("fingerprints", ()) if now.get(name) != before.get(name)}:
            run.add_facts(options=before | moved)
        versions = [f"{name} {old}" for name, old in run.facts["versions"].items() if facts["versions"].get(name) != old]
        dtypes = [run.facts["dtype"]] if "dtype" in run.facts and run.facts["dtype"] != facts["dtype"] else []
        if versions or dtypes or run.facts["device"] != facts["device"]:
            before = ", ".join([*versions, *dtypes, run.facts["device"]])
            warnings.warn(f"{path}: was started with {before}; rounding may be different now", stacklevel=5)
        if num_damaged := run.journal.num_damaged:
            warnings.warn(f"{path / JOURNAL}: {num_damaged} damaged rows; these masks are trained again", stacklevel=5)
        return run

    def __enter__(self) -> "RunDir":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """Waits until everything is written."""
        with contextlib.suppress(*[OSError] if error else []):  # the first error is the one to report
            self.finalists.close()

    def add_facts(self, **facts: Any) -> None:
        """Adds entries to `run.json`."""
        self.facts |= json.loads(json.dumps(facts, default=str))
        if self.path is not None and devices.is_first():
            write_whole(self.path / RUN, folder_format.facts_as_text(self.facts))

    def discard(self) -> None:
        """Deletes what a run that has evaluated nothing has written, and its folder, unless that was there before."""
        if self.path is None or not devices.is_first() or len(self.journal):
            return
        for entry in self.path.iterdir():  # it was empty
            entry.rmtree() if entry.is_dir() else entry.unlink()
        if self._folder_is_ours:
            self.path.rmtree()

    @contextlib.contextmanager
    def finishing(self) -> Iterator[Path]:
        """Yields a local folder for the final files; afterwards they are in the run's folder, and the run is finished."""
        assert self.path is not None
        with contextlib.ExitStack() as stack:
            if is_local(self.path):
                folder = Path(self.path)
                yield folder
            else:
                folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
                for name in (RUN, JOURNAL):
                    (folder / name).write_bytes((self.path / name).read_bytes())
                yield folder
                _copy(folder, self.path)
            write_whole(self.path / SUMS, folder_format.list_checksums(folder))
            self.finalists.remove()


def choose_folder(kind: str, options: OptionsT) -> tuple[OptionsT, epath.Path, bool]:
    """Decides whether a command begins a run, resumes one, or has nothing left to do.

    Args:
      kind: of experiment, such as "bert".
      options: a dataclass with `out` and `resume`.

    Returns:
      The options (with `--resume`, those of the run), the folder, and whether the run in it is finished.

    Raises:
      ValueError: if the folder holds anything other than this run, or is damaged.
    """
    if options.resume is not None:
        options, path = _resume(kind, options)
    elif options.out is None:
        return options, _new_folder(kind), False
    else:
        path = epath.Path(options.out)
        if not is_run(path):
            _refuse_contents(path)
            return options, path, False
        _refuse_other_options(path, _recorded_options(path, kind, options), as_json(options))
    return options, path, _is_finished(path)


def _resume(kind: str, options: OptionsT) -> tuple[OptionsT, epath.Path]:
    """The options and the folder of the run that `--resume` names.

    Model and data of an unfinished run may lie elsewhere now: what is in them is compared when they are loaded.
    """
    path = epath.Path(options.resume)
    if not is_run(path):
        raise ValueError(f"--resume {path}: expected the folder of a run, with {RUN}; there is none")
    recorded, defaults = _recorded_options(path, kind, options), as_json(type(options)())
    given = {name: value for name, value in as_json(options).items() if value != defaults[name]}
    places = () if (path / SUMS).exists() else getattr(options, "places", ())
    moved = {name: given.pop(name) for name in places if name in given}
    _refuse_other_options(path, recorded, given)
    for name in places:
        place = str(moved.get(name, recorded.get(name)))
        if os.path.isabs(place) and not os.path.exists(place):
            raise ValueError(f"{path}: the {name} {place} of this run is gone; if it has moved, say where by --{name}")
    return with_options(options, recorded | moved), path


def _new_folder(kind: str) -> epath.Path:
    """A path under runs/ that doesn't exist yet."""
    name = time.strftime(f"{kind}-%Y%m%d-%H%M%S")
    names = itertools.chain([name], (f"{name}-{number}" for number in itertools.count(2)))
    return next(path for path in map(epath.Path("runs").joinpath, names) if not path.exists())


def _refuse_contents(path: epath.Path) -> None:
    """Raises a ValueError if there is anything in a folder, except `run.json` half written by a killed process."""
    try:
        names = [file.name for file in path.iterdir()] if path.exists() else []
    except OSError as error:
        raise ValueError(f"--out {path}: cannot be read: {error.strerror or error}; choose another folder") from None
    if others := [name for name in names if name != f".{RUN}.partial"]:
        raise ValueError(f"--out {path}: the folder isn't empty (it holds {others[0]}); choose a new folder")


def _recorded_options(path: epath.Path, kind: str, options: Any) -> dict[str, Any]:
    """The options in `run.json`; the relative paths of version 0.1.0 are taken from the current folder."""
    facts = read_facts(path)
    if facts["kind"] != kind:
        raise ValueError(f"{path}: is a run of {made_by(facts['kind'])}; expected one of {made_by(kind)}")
    recorded = old_versions.OPTIONS | facts["options"]
    absolute = as_json(with_absolute_paths(with_options(options, recorded)))
    return {name: absolute.get(name, value) for name, value in recorded.items()}


def _changed(before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """What of a run has changed, as the subject of a sentence, with its places."""
    known = before.get("fingerprints", {})
    names = [name for name, digest in known.items() if now.get("fingerprints", {}).get(name) != digest]
    if not names:
        return "model or data have"

    def words(name: str) -> str:
        old, new = (facts["options"].get(name) for facts in (before, now))
        return f"the {name} {old or 'of the script'}" if old == new else f"the {name} (it was {old}, it is {new})"

    return f"{' and '.join(map(words, names))} {'has' if len(names) == 1 else 'have'}"


def _refuse_other_options(path: epath.Path, recorded: Mapping[str, Any], given: Mapping[str, Any]) -> None:
    """Raises a ValueError if given options differ from those of a run."""
    others = {name: value for name, value in given.items() if name not in NOT_COMPARED and recorded.get(name) != value}
    if others:
        words = [f"--{name.replace('_', '-')} {recorded.get(name)} there, {value} given" for name, value in others.items()]
        raise ValueError(f"{path}: holds a run with other options: {'; '.join(words)}. Choose another folder")


def _is_finished(path: epath.Path) -> bool:
    """Whether a run is finished; then its files are verified, and what a killed process did not delete is deleted."""
    if not (path / SUMS).exists():
        return False
    folder_format.verify(path)
    if devices.is_first() and (path / MEMBERS).exists():
        (path / MEMBERS).rmtree()
    return True


def as_json(options: Any) -> dict[str, Any]:
    """Options as `run.json` records them."""
    return json.loads(json.dumps(dataclasses.asdict(options), default=str))


def with_options(options: OptionsT, recorded: Mapping[str, Any]) -> OptionsT:
    """Options with the recorded values; those in `NOT_COMPARED`, and those that no version has recorded, stay as they are."""
    fields = {field.name for field in dataclasses.fields(options)} - set(NOT_COMPARED)
    known = old_versions.OPTIONS | dict(recorded)
    values = {name: tuple(value) if isinstance(value, list) else value for name, value in known.items() if name in fields}
    return dataclasses.replace(options, **values)


def _copy(folder: Path, to: epath.Path) -> None:
    """Copies a local folder to a remote one."""
    for file in folder_format.list_files(folder):
        target = to / file.relative_to(folder)
        target.parent.mkdir(parents=True, exist_ok=True)
        with file.open("rb") as source, target.open("wb") as sink:
            shutil.copyfileobj(source, sink)
