"""What a run leaves in its folder, and what happens when it is given again, goes on, or finds damage."""

import importlib.util
import json
import math
import re
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import run_custom
import test_finalist_store
from command_line import words
from etils import epath
from etils.epath.backend import fsspec_backend
from fsspec.implementations.memory import MemoryFileSystem

from gafreeze_jax.report.folder_format import read_facts
from gafreeze_jax.runs import run_dir
from gafreeze_jax.runs.fingerprint import fingerprint
from gafreeze_jax.runs.run_dir import RunDir
from gafreeze_jax.search import history
from gafreeze_jax.search.history import Evaluation

pytestmark = pytest.mark.usefixtures("quick_compilation")

SCRIPT = str(Path(run_custom.__file__))
OPTIONS = run_custom.Options(gens=2, population=2, finalist_seeds=2, plan="members=2,steps=35,freezing=traced")
FACTS = {"kind": "bert", "options": {"gens": 3}, "versions": {"jax": "1"}, "device": "1 x cpu", "fingerprint": "12345678"}
FACTS |= {"stages": ["low", "high"], "num_steps": 8}


@dataclass(frozen=True)
class Options:
    gens: int = 10
    out: str | Path | None = None
    resume: str | Path | None = None
    columns: tuple[str, ...] = ()
    limit: float | None = None


def make_run(folder, options, *, finished=False):
    saved = RunDir.open(epath.Path(folder), FACTS | {"options": run_dir.as_json(options)})
    if finished:
        with saved.finishing() as local:
            (local / "model").mkdir()
            (local / "model" / "config.json").write_text("{}")
    return saved


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path / "run"


# Which run a command means


def test_a_new_run_gets_a_folder_of_its_own(folder, monkeypatch):
    now = time.localtime()
    monkeypatch.setattr(run_dir.time, "strftime", lambda form, strftime=time.strftime: strftime(form, now))
    for expected in ("", "-2", "-3"):
        options, path, finished = run_dir.choose_folder("bert", Options())
        assert (options, path.parent, finished) == (Options(), epath.Path("runs"), False)
        assert path.name.startswith("bert-20")
        assert path.name.count("-") == 2 + bool(expected)
        path.mkdir(parents=True)


def test_a_folder_that_is_new_or_empty_begins_a_run(folder):
    options = Options(out=folder)
    assert run_dir.choose_folder("bert", options) == (options, epath.Path(folder), False)
    folder.mkdir()
    (folder / ".run.json.partial").touch()  # a run was killed just when it began
    assert run_dir.choose_folder("bert", options) == (options, epath.Path(folder), False)


def test_the_same_command_goes_on(folder):
    options = Options(4, folder, columns=("a", "b"), limit=0.1)
    make_run(folder, options)
    assert run_dir.choose_folder("bert", options) == (options, epath.Path(folder), False)
    elsewhere = folder.rename(folder.with_name("elsewhere"))
    assert run_dir.choose_folder("bert", replace(options, out=elsewhere))[2] is False


def test_resuming_needs_no_options(folder):
    options = Options(4, folder, columns=("a", "b"), limit=0.1)
    make_run(folder, options)
    given = Options(resume=folder)
    assert run_dir.choose_folder("bert", given) == (replace(options, out=None, resume=folder), epath.Path(folder), False)
    assert run_dir.choose_folder("bert", replace(given, gens=4))[0].gens == 4


def test_a_finished_run_is_left_alone(folder):
    make_run(folder, options := Options(4, folder), finished=True)
    assert run_dir.choose_folder("bert", options)[2] is True
    assert run_dir.choose_folder("bert", Options(resume=folder))[2] is True


def test_a_run_that_was_killed_just_when_it_had_finished_keeps_no_finalists(folder):
    make_run(folder, options := Options(4, folder), finished=True)
    test_finalist_store.keep(epath.Path(folder) / "members")
    assert run_dir.choose_folder("bert", options)[2] is True
    assert not (folder / "members").exists()


@pytest.mark.parametrize("finished", [False, True])
@pytest.mark.parametrize(
    ("options", "message"),
    {
        "other options": (Options(5, "run"), "--gens 4 there, 5 given. Choose another folder"),
        "several": (Options(5, "run", limit=0.5), "--gens 4 there, 5 given; --limit None there, 0.5 given"),
        "resumed with others": (Options(5, resume="run"), "--gens 4 there, 5 given"),
        "lists": (Options(4, "run", columns=("x",)), "--columns [] there, ['x'] given"),
        "no run": (Options(resume="other"), "--resume other: expected the folder of a run, with run.json; there is none"),
        "something else": (Options(out="."), "--out .: the folder isn't empty (it holds run)"),
        "a file": (Options(out="run/run.json"), "--out run/run.json: cannot be read: Not a directory"),
    }.values(),
)
def test_another_folder_is_refused(options, message, finished, folder):
    make_run(folder, Options(4), finished=finished)
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    with pytest.raises(ValueError, match=re.escape(message)):
        run_dir.choose_folder("bert", options)
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before


def test_a_run_of_another_experiment_is_refused(folder):
    make_run(folder, Options(4))
    with pytest.raises(ValueError, match=r"is a run of run_bert\.py; expected one of run_gpt2\.py"):
        run_dir.choose_folder("gpt2", Options(resume=folder))


def test_other_data_are_refused(folder):
    make_run(folder, Options())
    with pytest.raises(ValueError, match="model or data have changed since this run started"):
        RunDir.open(epath.Path(folder), FACTS | {"fingerprint": "12345679"})


def test_other_versions_are_told(folder):
    make_run(folder, Options())
    with pytest.warns(UserWarning, match=r"was started with jax 1, 1 x cpu; rounding may be different"):
        RunDir.open(epath.Path(folder), FACTS | {"versions": {"jax": "2"}})


def test_another_dtype_is_told(folder):
    """As by a run that is resumed on another machine."""
    RunDir.open(epath.Path(folder), FACTS | {"dtype": "bfloat16"})
    with pytest.warns(UserWarning, match=r"was started with bfloat16, 1 x cpu; rounding may be different"):
        RunDir.open(epath.Path(folder), FACTS | {"dtype": "float32"})


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="needs a folder that nobody can write")
def test_a_folder_that_cannot_be_written():
    with pytest.raises(ValueError, match=r"--out /proc/run: cannot be written: .*; choose another folder"):
        RunDir.open(epath.Path("/proc/run"), FACTS)


def test_the_fingerprint_tells_arrays_apart():
    trees = [{"a": np.zeros(4)}, {"a": np.zeros(4, np.float32)}, {"a": np.zeros((2, 2))}, {"a": np.array([0, 0, 0, 1e-300])}]
    assert len({fingerprint(tree) for tree in trees}) == 4
    assert fingerprint({"a": np.zeros(4)}, [np.ones(2)]) == fingerprint({"a": np.zeros(4)}, [np.ones(2)])


# Damage


def test_any_damage_to_run_json_is_noticed(folder):
    make_run(folder, Options())
    file, facts = folder / "run.json", read_facts(epath.Path(folder))
    text = file.read_bytes().rstrip()
    for i in range(0, len(text), 3):
        for other in (text[:i], text[:i] + bytes([text[i] ^ 4]) + text[i + 1 :], b"[]"):
            file.write_bytes(other)
            with pytest.raises(ValueError, match=r"run\.json: damaged; restore it, or begin again in a new folder"):
                run_dir.choose_folder("bert", Options(resume=folder))
    file.write_bytes(text)
    assert read_facts(epath.Path(folder)) == facts


@pytest.mark.parametrize("name", FACTS)
def test_facts_that_run_json_lacks_are_named(name, folder):
    make_run(folder, Options())
    saved = RunDir(epath.Path(folder), {other: value for other, value in FACTS.items() if other != name})
    for facts in ({}, {name: None}):
        saved.add_facts(**facts)
        with pytest.raises(ValueError, match=rf"run\.json: missing, or of another type: {name}; begin again in a new folder"):
            run_dir.choose_folder("bert", Options(resume=folder))


def test_what_could_not_be_read_again_is_not_written(folder):
    saved = make_run(folder, Options())
    with pytest.raises(ValueError, match="not JSON compliant"):
        saved.add_facts(seconds=math.inf)
    assert read_facts(epath.Path(folder))["kind"] == "bert"


def test_a_list_of_checksums_that_was_cut_is_noticed(folder):
    make_run(folder, Options(), finished=True)
    test_finalist_store.keep(epath.Path(folder) / "members")
    (folder / "SHA256SUMS").write_text("")
    with pytest.raises(ValueError, match=r"damaged or missing: SHA256SUMS\. Delete .*SHA256SUMS and give the command"):
        run_dir.choose_folder("bert", Options(resume=folder))
    assert (folder / "members").exists()


def test_a_run_that_is_discarded_leaves_the_users_own_folder(folder):
    make_run(folder, Options()).discard()
    assert not folder.exists()
    folder.mkdir()
    saved = make_run(folder, Options())
    (folder / "tensorboard").mkdir()
    (folder / "tensorboard" / "events").touch()
    saved.discard()
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize("damage", [lambda file: file.unlink(), lambda file: file.write_bytes(file.read_bytes() + b" ")])
def test_damage_to_a_finished_run_is_noticed(damage, folder):
    make_run(folder, Options(), finished=True)
    damage(folder / "model" / "config.json")
    with pytest.raises(ValueError, match=r"damaged or missing: model/config\.json\. Delete .*SHA256SUMS and give the command"):
        run_dir.choose_folder("bert", Options(resume=folder))


def test_the_sums_are_those_of_sha256sum(folder):
    make_run(folder, Options(), finished=True)
    assert subprocess.run(["sha256sum", "--check", "--strict", "SHA256SUMS"], cwd=folder, check=False).returncode == 0


def test_a_remote_run_is_kept_alike(monkeypatch):
    """In a bucket in memory, by all code but Orbax's."""
    with monkeypatch.context() as patch:
        patch.setattr(fsspec_backend, "fs", lambda path: MemoryFileSystem())  # of all remote paths
        path = "gs://bucket/run"
        saved = make_run(path, Options(4))
        saved.journal.write("search", [Evaluation((1, 0), 0, 4, 1, 0.5, 0.5, 0.5, 10, 1.5)])
        assert run_dir.choose_folder("bert", Options(resume=path)) == (Options(4, resume=path), epath.Path(path), False)
        again = make_run(path, Options(4))
        assert list(again.journal) == list(saved.journal)
        assert again.seconds == 1.5
        with again.finishing() as local:
            assert sorted(file.name for file in local.iterdir()) == ["evaluations.csv", "run.json"]
            (local / "model").mkdir()
            (local / "model" / "config.json").write_text("{}")
        assert (epath.Path(path) / "model" / "config.json").read_text() == "{}"
        assert run_dir.choose_folder("bert", Options(4, path))[2] is True
        (epath.Path(path) / "model" / "config.json").write_text("{ }")
        with pytest.raises(ValueError, match=r"damaged or missing: model/config\.json"):
            run_dir.choose_folder("bert", Options(4, path))


@pytest.mark.skipif(importlib.util.find_spec("gcsfs") is not None, reason="needs an environment without gcsfs")
def test_a_remote_folder_needs_a_package():
    with pytest.raises(ValueError, match="gs://bucket/run: Please install gcsfs"):
        run_dir.choose_folder("bert", Options(out="gs://bucket/run"))


# Real runs


def start(*arguments, **options):
    return subprocess.Popen(
        [sys.executable, SCRIPT, *arguments, *words(**options)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


GIVEN = {name: getattr(OPTIONS, name) for name in ("gens", "population", "finalist_seeds", "plan")}


def outcome(folder):
    rows = [line.split(",")[:-3] for line in (folder / "evaluations.csv").read_text().splitlines()]
    result = json.loads((folder / "result.json").read_text())
    return rows, result["results"], result["verdict"], (folder / "model" / "model.safetensors").read_bytes()


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("undisturbed") / "run"
    run_custom.main(replace(OPTIONS, out=folder))
    return folder


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGKILL, -9)])
def test_a_stopped_run_ends_like_an_undisturbed_one(number, code, undisturbed, tmp_path):
    process = start(out=tmp_path / "run", **GIVEN)
    while not (tmp_path / "run" / "evaluations.csv").exists():
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)
    process.send_signal(number)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == code
    if number != signal.SIGKILL:
        assert f"Stopped. To resume: python {SCRIPT} --resume {tmp_path / 'run'}" in errors
        assert "Traceback" not in errors
    assert not (tmp_path / "run" / "SHA256SUMS").exists()
    run_custom.main(run_custom.Options(resume=tmp_path / "run"))
    assert outcome(tmp_path / "run") == outcome(undisturbed)


def test_a_finished_run_given_again_changes_nothing(undisturbed, capsys):
    before = {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in undisturbed.rglob("*") if path.is_file()}
    run_custom.main(replace(OPTIONS, out=undisturbed))
    assert "it is finished, nothing is left to do" in capsys.readouterr().out
    assert {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in undisturbed.rglob("*") if path.is_file()} == before


def test_a_run_whose_files_were_damaged_is_made_again(undisturbed, tmp_path, capsys):
    """After the user has followed the advice. The rows that are left save the search."""
    folder = shutil.copytree(undisturbed, tmp_path / "run")
    rows = (folder / "evaluations.csv").read_bytes()
    (folder / "evaluations.csv").write_bytes(test_finalist_store.flip(rows, len(rows) // 3))
    with pytest.raises(SystemExit):
        run_custom.main(run_custom.Options(resume=folder))
    assert "damaged or missing: evaluations.csv" in capsys.readouterr().err
    (folder / "SHA256SUMS").unlink()
    with pytest.warns(UserWarning, match="damaged rows; these masks are trained again"):
        run_custom.main(run_custom.Options(resume=folder))
    assert [sorted(one) if i == 0 else one for i, one in enumerate(outcome(folder))] == [
        sorted(one) if i == 0 else one for i, one in enumerate(outcome(undisturbed))
    ]


def test_a_full_disk_ends_a_run_with_how_to_go_on(undisturbed, tmp_path, capsys, monkeypatch):
    write_whole = run_dir.write_whole

    def fails(path, text):
        if path.name == "evaluations.csv" and text.count("\n") > 4:
            raise OSError(28, "No space left on device", str(path))
        write_whole(path, text)

    with monkeypatch.context() as patch:
        patch.setattr(history, "write_whole", fails)
        with pytest.raises(SystemExit):
            run_custom.main(replace(OPTIONS, out=tmp_path / "run"))
    error = capsys.readouterr().err
    assert "No space left on device" in error
    assert f"What was done is kept; to resume: python {sys.argv[0]} --resume {tmp_path / 'run'}" in error
    run_custom.main(run_custom.Options(resume=tmp_path / "run"))
    assert outcome(tmp_path / "run") == outcome(undisturbed)
