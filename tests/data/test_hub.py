"""Data sets of the hub, from a hub that is a folder."""

import socket
from fnmatch import fnmatch

import huggingface_hub
import pytest
from huggingface_hub.errors import (
    GatedRepoError,
    HFValidationError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from test_parquet import FEATURES, NAMES, examples, expected, sizes, table, write

from gafreeze_jax.data.hub import CONVERTED
from gafreeze_jax.data.text import load_text


def refuse(kind):
    error = kind.__new__(kind)  # some want an answer of the hub
    Exception.__init__(error, "404 Client Error\nmore")
    return error


class Hub:
    """`folder` / name / revision has the files; what is downloaded is in the cache from then on."""

    def __init__(self, folder):
        self.folder, self.cached, self.errors = folder, set(), {}

    def add(self, name, *files, revision=CONVERTED):
        for file in files:
            write(self.folder / name / (revision or "main") / file, table(FEATURES))

    def _find(self, name, revision):
        if name in self.errors:
            raise self.errors[name]
        if " " in name or name.count("/") > 1 or not name:
            raise HFValidationError("a bad name")
        if not (self.folder / name).is_dir():
            raise refuse(RepositoryNotFoundError)
        if not (found := self.folder / name / (revision or "main")).is_dir():
            raise refuse(RevisionNotFoundError)
        return found

    def list_repo_files(self, name, *, repo_type, revision):
        assert repo_type == "dataset"
        folder = self._find(name, revision)
        return [*(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()), "README.md", "script.py"]

    def snapshot_download(self, name, *, repo_type, revision, allow_patterns, local_files_only=False):
        assert repo_type == "dataset"
        if local_files_only and (name, revision) not in self.cached:
            raise LocalEntryNotFoundError("not there")
        folder = self._find(name, revision)
        for path in folder.rglob("*.parquet") if not local_files_only else ():
            if not any(fnmatch(str(path.relative_to(folder)), pattern) for pattern in allow_patterns):
                path.unlink()  # it is not in the cache
        self.cached.add((name, revision))
        return str(folder)


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A hub that can be reached."""
    made = Hub(tmp_path / "hub")
    for name in ("list_repo_files", "snapshot_download"):
        monkeypatch.setattr(huggingface_hub, name, getattr(made, name))
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setenv("HTTPS_PROXY", "http://proxy.example:3128")  # so that no connection is tried
    return made


def test_a_data_set(hub):
    hub.add("me/set", *(f"default/{split}/0000.parquet" for split in ("train", "validation", "test")))
    data = load_text("hub:me/set")
    assert sizes(data) == [24, 24, 24]
    assert data.label_names == tuple(sorted(NAMES))
    assert not any("cut" in note for note in data.notes)


@pytest.mark.parametrize("name", ["hub:glue/cola", "hub:nyu/glue/cola"])
def test_a_configuration(hub, name):
    owner = name.removeprefix("hub:").removesuffix("/cola")
    hub.add(owner, "cola/train/0000.parquet", "cola/train/0001.parquet", "sst2/train/0000.parquet")
    assert sum(sizes(load_text(name))) == 48


@pytest.mark.parametrize(
    "files", [["data/train-00000-of-00001.parquet"], ["train-00000-of-00001.parquet"], ["a/train.parquet"]]
)
def test_files_of_the_repository_itself(hub, files):
    hub.add("set", "default/partial-train/0000.parquet")
    hub.add("set", *files, revision=None)
    assert examples(load_text("hub:set")) == expected(NAMES)


def test_what_is_in_the_cache_needs_no_network(hub, monkeypatch):
    hub.add("glue", "cola/train/0000.parquet", "sst2/train/0000.parquet")
    once = load_text("hub:glue/cola")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert load_text("hub:glue/cola").train.texts == once.train.texts
    with pytest.raises(FileNotFoundError, match=r"not in the local cache, and huggingface.co cannot be reached \(HF_HUB_OFFL"):
        load_text("hub:glue/sst2")


def test_a_hub_that_cannot_be_reached(hub, monkeypatch):
    def connect(address, timeout):
        raise OSError("no route")

    monkeypatch.delenv("HTTPS_PROXY")
    monkeypatch.setattr(socket, "create_connection", connect)
    for name in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    message = r"^hub:me/set: not in the local cache, and huggingface.co cannot be reached \(no route\); download it where"
    with pytest.raises(FileNotFoundError, match=message):
        load_text("hub:me/set")


ERRORS = {
    "a typo": ("hub:me/gleu", "the hub has no such data set, or it is private; their names are at huggingface.co/datasets"),
    "no configuration": ("hub:glue", "several configurations; give one, as hub:NAME/CONFIG: it has cola, sst2"),
    "a configuration with a typo": ("hub:glue/colla", "no configuration 'colla'; give one, as hub:NAME/CONFIG: it has cola"),
    "no train split": ("hub:tests", "no train split; it has default/test/0000.parquet"),
    "a script alone": ("hub:script", "no Parquet files in it, and a data set's own scripts are not run"),
    "no name": ("hub:", "expected hub:NAME or hub:NAME/CONFIG"),
    "a path": ("hub:a/b/c/d", "expected hub:NAME or hub:NAME/CONFIG"),
    "a blank": ("hub:a b", "expected hub:NAME or hub:NAME/CONFIG"),
    "a gate": ("hub:gated", "ask for access at huggingface.co/datasets/gated, then run hf auth login"),
    "a failure": ("hub:broken", "cannot be downloaded: 404 Client Error"),
}


@pytest.mark.parametrize("case", ERRORS)
def test_errors(hub, case):
    source, message = ERRORS[case]
    hub.add("glue", "cola/train/0000.parquet", "sst2/train/0000.parquet")
    hub.add("tests", "default/test/0000.parquet")
    (hub.folder / "script" / "main").mkdir(parents=True)
    hub.errors |= {"gated": refuse(GatedRepoError), "broken": refuse(RuntimeError)}
    with pytest.raises((ValueError, FileNotFoundError)) as error:
        load_text(source)
    assert str(error.value).startswith(f"{source}: {message}")
    assert type(error.value) in (ValueError, FileNotFoundError)
    assert "\n" not in str(error.value)
