"""Data sets on the Hugging Face hub, from Parquet files alone: no script of a data set is run."""

import itertools
import os
import socket
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from gafreeze_jax.data import layout
from gafreeze_jax.extras import needs
from gafreeze_jax.listing import listed, shorten

HUB = "huggingface.co"
CONVERTED = "refs/convert/parquet"  # the revision with what the hub has converted; its folders are configurations and splits
PARTIAL = "/partial-"  # before the name of a split that it has converted in part


def find_splits(source: str) -> dict[str, list[Path]]:
    """The Parquet files of a data set by split; they are downloaded unless the local cache has them.

    Args:
      source: "hub:NAME" or "hub:NAME/CONFIG"; NAME may be OWNER/SET.

    Raises:
      ValueError: if the hub has no such data set, configuration or train split, or no Parquet files of it.
      FileNotFoundError: if it is not in the local cache, and the hub cannot be reached.
    """
    with needs("text"):
        from huggingface_hub import snapshot_download

    unreachable, is_known = _why_unreachable(), False
    given = {"local_files_only": True} if unreachable else {}
    for (name, config), revision in itertools.product(_readings(source), (CONVERTED, None)):
        names = _list_files(source, name, revision, given)
        is_known = is_known or names is not None
        sets = layout.configurations(file for file in names or () if file.endswith(".parquet") and PARTIAL not in file)
        if not sets or (unreachable and config not in (None, *sets)):  # the cache may lack a configuration
            continue
        files = _choose(source, sets, config)
        chosen = layout.by_split(source, files)
        if "train" not in chosen:
            raise ValueError(f"{source}: no train split; it has {listed(files)}")
        wanted = [file for of_split in chosen.values() for file in of_split]
        folder = _ask(source, snapshot_download, name, revision=revision, allow_patterns=wanted, **given)
        if folder is not None:
            return {split: [Path(folder) / file for file in of_split] for split, of_split in chosen.items()}
    if unreachable:
        raise FileNotFoundError(
            f"{source}: not in the local cache, and {unreachable}; download it where there is a network, and give --data the "
            "folder of its Parquet files"
        )
    if is_known:
        raise ValueError(f"{source}: no Parquet files in it, and a data set's own scripts are not run; save it as CSV or JSONL")
    raise ValueError(f"{source}: the hub has no such data set, or it is private; their names are at {HUB}/datasets")


def connect(host: str, port: int = 443) -> None:
    """Raises an OSError if a host cannot be reached; behind a proxy it is not asked, as it may be out of reach itself."""
    if not urllib.request.getproxies().keys() & {"https", "all"}:
        socket.create_connection((host, port), timeout=5).close()


def first_line(error: Exception) -> str:
    """Of what the HTTP client says; details follow it."""
    return shorten((str(error).strip() or type(error).__name__).splitlines()[0], 200)


def check_network() -> None:
    """Raises an OSError if the hub cannot be reached, or offline mode is on."""
    endpoint = os.environ.get("HF_ENDPOINT", f"https://{HUB}").split("//")[-1].split("/")[0]
    host, _, port = endpoint.partition(":")
    try:
        if os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "TRUE", "YES", "ON"):
            raise OSError("HF_HUB_OFFLINE is set")
        connect(host, int(port or 443))
    except OSError as error:
        raise OSError(f"{host} cannot be reached ({error})") from None


def _why_unreachable() -> str | None:
    try:
        check_network()
    except OSError as error:
        return str(error)
    return None


def _list_files(source: str, name: str, revision: str | None, given: Mapping[str, Any]) -> list[str] | None:
    """Names of a data set's files, of those in the local cache if only these are to be used; None if there is no such set."""
    with needs("text"):
        from huggingface_hub import list_repo_files, snapshot_download

    if not given:
        return _ask(source, list_repo_files, name, revision=revision)
    folder = _ask(source, snapshot_download, name, revision=revision, allow_patterns=[], **given)
    return folder and [path.relative_to(folder).as_posix() for path in Path(folder).rglob("*.parquet")]


def _readings(source: str) -> Iterator[tuple[str, str | None]]:
    """What the name of a data set can mean: a name of the hub and a configuration.

    >>> list(_readings("hub:glue/cola"))
    [('glue/cola', None), ('glue', 'cola')]
    """
    parts = source.removeprefix("hub:").split("/")
    if len(parts) <= 2:
        yield "/".join(parts), None
    if len(parts) >= 2:
        yield "/".join(parts[:-1]), parts[-1]


def _choose(source: str, sets: Mapping[str, list[str]], config: str | None) -> list[str]:
    """The files of a configuration; without its name, of the only one, or of the default."""
    default = layout.DEFAULT if layout.DEFAULT in sets or len(sets) > 1 else next(iter(sets))
    if (config or default) not in sets:
        problem = "several configurations" if config is None else f"no configuration {config!r}"
        raise ValueError(f"{source}: {problem}; give one, as hub:NAME/CONFIG: it has {listed(sorted(sets))}")
    return sets[config or default]


def _ask(source: str, function: Callable[..., Any], name: str, **given: Any) -> Any:
    """What a function of the hub's client returns for a data set; None if there is no such set or revision."""
    with needs("text"):
        from huggingface_hub import errors

    try:
        return function(name, repo_type="dataset", **given)
    except errors.HFValidationError:
        raise ValueError(f"{source}: expected hub:NAME or hub:NAME/CONFIG, such as hub:nyu-mll/glue/cola") from None
    except errors.GatedRepoError:
        raise ValueError(f"{source}: ask for access at {HUB}/datasets/{name}, then run hf auth login") from None
    except (errors.RepositoryNotFoundError, errors.RevisionNotFoundError, errors.LocalEntryNotFoundError):
        return None
    except Exception as error:  # whatever the HTTP client of the hub's version raises
        raise FileNotFoundError(f"{source}: cannot be downloaded: {first_line(error)}") from None
