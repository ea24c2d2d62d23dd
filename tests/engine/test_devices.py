"""Over eight devices, in one process or two, all is as on one."""

import csv
import json
import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import over_devices
import pytest

from gafreeze_jax.engine import devices

HERE, TESTS = Path(__file__).parent, Path(__file__).parents[1]
COLLECTIVE = re.compile(r"all-reduce|all-gather|all-to-all|collective-permute|collective-broadcast|reduce-scatter")


def start(what, folder, num_devices, *several, dump=None):
    """`over_devices.py` in a process of its own, with forced host devices, and threads enough that they can share batches."""
    folder.mkdir(exist_ok=True)
    flags = f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count={num_devices}"
    if dump is not None:
        flags += f" --xla_dump_to={dump} --xla_dump_hlo_as_text --xla_dump_hlo_module_re=^jit_[a-z_]*$"
    env = os.environ | {
        "XLA_FLAGS": flags,
        "JAX_PLATFORMS": "cpu",
        "PJRT_NPROC": str(2 * num_devices),
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
        "PYTHONPATH": os.pathsep.join(
            map(str, (HERE, HERE.parent / "models", TESTS, TESTS.parent / "experiments", TESTS.parent))
        ),
    }
    words = [sys.executable, HERE / "over_devices.py", what, folder, *several]
    return subprocess.Popen(list(map(str, words)), env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def end(process):
    out, errors = process.communicate(timeout=200)
    assert process.returncode == 0, errors
    return out


def free_port():
    with socket.socket() as one:
        one.bind(("localhost", 0))
        return one.getsockname()[1]


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="module")
def alone(tmp_path_factory, quick_compilation):
    """A folder with what one device has trained."""
    folder = tmp_path_factory.mktemp("alone")
    over_devices.share(folder)
    over_devices.rated(folder)
    return folder


@pytest.fixture(scope="module", params=["train", "share"])
def trained(request, tmp_path_factory):
    """What was asked of eight devices, and a folder with what they have trained and the programs that XLA made for them."""
    folder = tmp_path_factory.mktemp("trained")
    end(start(request.param, folder, 8, dump=folder / "programs"))
    return request.param, folder


def test_members_train_on_eight_devices_as_on_one(trained, alone):
    """Each on a device of its own, also at rates of its own, or two at a time on four devices each."""
    what, folder = trained
    assert_same(folder, alone, ("bert.npz", "resnet.npz" if what == "share" else "rated.npz"))


def assert_same(folder, alone, names):
    """What two folders have is equal but for rounding."""
    for name in names:
        ours, expected = np.load(folder / name), np.load(alone / name)
        assert set(ours) == set(expected)
        for key, array in expected.items():
            if not key.endswith("attention/key/bias"):  # rounding noise, see test_population.py
                np.testing.assert_allclose(ours[key], array, rtol=2e-4, atol=5e-5, err_msg=key)


def test_train_steps_exchange_nothing_but_sums_over_a_batch_that_devices_share(trained):
    what, folder = trained
    programs: dict[str, list[str]] = {}
    for path in (folder / "programs").glob("*after_optimizations.txt"):
        programs.setdefault(path.name.split(".")[1], []).append(path.read_text())
    for name in ("start_block", "fetch", "infer", "forward", "head_step", "backward", "update_block", "score_head"):
        assert any("num_partitions=8" in text for text in programs[f"jit_{name}"])
    exchanging = {name for name, texts in programs.items() if any(map(COLLECTIVE.search, texts))}
    if what == "train":
        assert exchanging == {"jit_pick"}  # which fetches what is asked for
    else:
        of_gradients = re.findall(r"all-reduce\(.*replica_groups=([^ ]*),", "".join(programs["jit_backward"]))
        assert "[2,4]<=[8]" in of_gradients  # over the devices of a member
        assert "jit_update_block" not in exchanging


def test_devices_that_share_a_member_hold_parts_of_it(alone, tmp_path):
    end(start("parts", tmp_path, 8, dump=tmp_path / "programs"))
    assert_same(tmp_path, alone, ("bert.npz",))
    sizes = np.load(tmp_path / "bytes.npz")
    assert (sizes["of_devices"] < 1.3 / 8 * sizes["all"]).all()
    programs = {path.name.split(".")[1]: path.read_text() for path in (tmp_path / "programs").glob("*after_optimizations.txt")}
    assert "all-gather" in programs["jit_forward"]
    assert not COLLECTIVE.search(programs["jit_update_block"])


def evaluations(folder):
    with open(folder / "search" / "evaluations.csv", newline="") as file:
        return list(csv.DictReader(file))


def test_a_search_of_two_processes_with_four_devices_each_is_that_of_one_device(cache, quick_compilation, tmp_path):
    address = f"localhost:{free_port()}"
    first, second = (start("search", tmp_path / "2x4", 4, address, 2, i) for i in range(2))
    assert "=== Generation 2 ===" in end(first)
    assert "Generation" not in end(second)
    over_devices.search(tmp_path / "1")
    for ours, expected in zip(evaluations(tmp_path / "2x4"), evaluations(tmp_path / "1"), strict=True):
        for column in ("genome", "seed", "steps", "generation", "accuracy"):
            assert ours[column] == expected[column]
        for column in ("loss", "train_loss"):
            assert float(ours[column]) == pytest.approx(float(expected[column]), rel=1e-4)
    ours, expected = (json.loads((tmp_path / one / "search" / "result.json").read_text()) for one in ("2x4", "1"))
    for entry in ("best_genome", "verdict"):
        assert ours[entry] == expected[entry]

    # What was interrupted goes on, with what there is in the folder.
    folder = tmp_path / "2x4" / "search"
    before = (folder / "evaluations.csv").read_text()
    lines = before.splitlines(keepends=True)
    (folder / "evaluations.csv").write_text("".join(lines[: len(lines) // 2]))
    (folder / "SHA256SUMS").unlink()
    address = f"localhost:{free_port()}"
    first, second = (start("search", tmp_path / "2x4", 4, address, 2, i) for i in range(2))
    assert "Resuming with" in end(first)
    end(second)
    without_times = lambda text: sorted(line.split(",")[:-3] for line in text.splitlines())  # noqa: E731
    assert without_times((folder / "evaluations.csv").read_text()) == without_times(before)
    again = json.loads((folder / "result.json").read_text())
    assert [again[entry] for entry in ("verdict", "results")] == [ours[entry] for entry in ("verdict", "results")]


@pytest.mark.parametrize(("threads", "can_wait"), [("1", True), ("2", False), ("", os.cpu_count() == 1)])
def test_collectives_need_two_threads_for_each_device(monkeypatch, threads, can_wait):
    monkeypatch.delenv("NPROC", raising=False)
    monkeypatch.setenv("PJRT_NPROC", threads)
    assert devices.collectives_can_wait() is can_wait


@pytest.mark.parametrize("told", [("localhost:1234", None, 0), (None, 2, None)])
def test_half_of_what_a_process_must_know_is_refused(told):
    with pytest.raises(ValueError, match="belong together"):
        devices.join(*told)


def test_alone_nothing_is_joined(monkeypatch):
    monkeypatch.setenv("SLURM_NTASKS", "8")  # a job's, but not one of its steps
    devices.join()
    assert over_devices.jax.process_count() == 1
