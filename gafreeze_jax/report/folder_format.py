"""The files in a run's folder, and how they are read and checked.

  run.json         what the run is: options, versions, plan, and a fingerprint of model and data
  evaluations.csv  see `history.Journal`
  members/         finalists, until the run is finished; see `finalist_store.FinalistStore`
  result.json      what the run found
  test_predictions.csv  what its model predicts for the test examples, beside the truth
  SHA256SUMS       checksums of what cannot be made again, for `sha256sum -c`; written last, so a run that has it is finished

Folders are local or remote, such as gs://bucket/run.
"""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from etils import epath

from gafreeze_jax.data.files import parse_json
from gafreeze_jax.listing import listed

RUN, JOURNAL, MEMBERS, RESULT, SUMS = "run.json", "evaluations.csv", "members", "result.json", "SHA256SUMS"
TENSORBOARD, PREDICTIONS = "tensorboard", "test_predictions.csv"
FUNCTION = "function"  # the kind of runs that no script makes
FACTS = {
    "kind": str, "options": dict, "versions": dict, "device": str, "stages": list, "num_steps": int, "fingerprint": str,
}  # fmt: skip
NOT_LISTED = (MEMBERS, SUMS, TENSORBOARD, "report.html", "plots")  # the last two can be made again from the others
OPTIONS_OF_PROCESSES = ("coordinator", "num_processes", "process_id", "process_timeout")
NOT_COMPARED = ("out", "resume", "quiet", "verbose", "tensorboard", *OPTIONS_OF_PROCESSES)  # these don't change any result


def is_run(path: epath.Path) -> bool:
    """Whether a folder holds a run."""
    try:
        return (path / RUN).exists()
    except ImportError as error:  # the package for such remote folders
        raise ValueError(f"{path}: {error}") from None


def made_by(kind: str) -> str:
    """What makes runs of a kind: a script of experiments/, or the function."""
    return "gafreeze_jax.search" if kind == FUNCTION else f"run_{kind}.py"


def is_local(path: object) -> bool:
    """Whether a path, or None, is not that of a remote folder."""
    return "://" not in str(path)


def read_facts(path: epath.Path) -> dict[str, Any]:
    """Reads `run.json`.

    Raises:
      ValueError: if it is damaged, or lacks some of `FACTS`.
    """
    try:
        facts = parse_json((path / RUN).read_text(encoding="utf-8"))
        whole = facts.pop("checksum") == _checksum(facts)
    except (ValueError, KeyError, AttributeError, TypeError):
        facts, whole = {}, False
    if not whole:
        raise ValueError(f"{path / RUN}: damaged; restore it, or begin again in a new folder")
    if wrong := [name for name, kind in FACTS.items() if not isinstance(facts.get(name), kind)]:
        raise ValueError(f"{path / RUN}: missing, or of another type: {listed(wrong)}; begin again in a new folder")
    return facts


def facts_as_text(facts: Mapping[str, Any]) -> str:
    """The text of `run.json`, with a checksum of its content.

    Raises:
      ValueError: for NaN or infinity, which `read_facts` refuses.
    """
    return json.dumps({**facts, "checksum": _checksum(facts)}, indent=2, allow_nan=False) + "\n"


def _checksum(facts: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def verify(path: epath.Path) -> None:
    """Compares the files of a finished run with `SHA256SUMS`.

    Raises:
      ValueError: if a file is damaged or missing.
    """
    lines = (path / SUMS).read_bytes().decode("utf-8", "replace").splitlines()
    digests = {name: digest for digest, _, name in (line.partition("  ") for line in lines)}
    damaged = [name for name, digest in digests.items() if not (path / name).is_file() or _sha256(path / name) != digest]
    if damaged := damaged or [SUMS] * (RUN not in digests):
        raise ValueError(
            f"{path}: damaged or missing: {listed(damaged)}. Delete {path / SUMS} and give the command again: intact files "
            "are used, and the rest is computed again"
        )


def list_checksums(folder: Path) -> str:
    """The text of `SHA256SUMS` for the files in a local folder."""
    names = [file.relative_to(folder) for file in list_files(folder)]
    kept = [name for name in names if name.parts[0] not in NOT_LISTED and not name.name.startswith(".")]
    return "".join(f"{_sha256(epath.Path(folder) / name)}  {name}\n" for name in kept)


def list_files(folder: Path) -> list[Path]:
    """All files in a local folder and below it."""
    return sorted(file for file in folder.rglob("*") if file.is_file())


def _sha256(path: epath.Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(2**20):
            digest.update(chunk)
    return digest.hexdigest()
