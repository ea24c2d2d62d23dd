"""Processes find each other, or say in one line what is missing; JAX's own wait is behind `devices.join`."""

import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time

import pytest
import run_custom
from test_bad_inputs import error_of
from test_devices import free_port

from gafreeze_jax.engine import devices, rendezvous
from gafreeze_jax.options import Options
from gafreeze_jax.report.folder_format import NOT_COMPARED

WAIT = "from gafreeze_jax.runs.signals import stoppable\nfrom gafreeze_jax.engine import devices\nimport sys\n"
WAIT += "with stoppable(lambda: 'Nothing was done yet.'):\n    devices.join(sys.argv[1], 2, int(sys.argv[2]), timeout=60)\n"


def together(port, calls, timeout=10.0):
    """What becomes of several processes, here threads: None, or their error."""
    ends = [None] * len(calls)

    def run(place, num, process_id):
        try:
            rendezvous.wait_for_all(f"localhost:{port}", num, process_id, timeout)
        except ValueError as error:
            ends[place] = str(error)

    threads = [threading.Thread(target=run, args=(place, *call)) for place, call in enumerate(calls)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return ends


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0)])
def test_all_come(order, capsys):
    port = free_port()
    assert together(port, [(3, process_id) for process_id in order]) == [None] * 3
    line = f"waiting for 2 of 3 processes at localhost:{port}, for up to 10 s"
    assert capsys.readouterr().err.splitlines() == [line] * 3


def test_one_process_waits_for_nobody(capsys):
    rendezvous.wait_for_all(f"localhost:{free_port()}", 1, 0, 10)
    assert not capsys.readouterr().err


@pytest.mark.parametrize(
    ("calls", "messages"),
    [
        ([(3, 0), (3, 2)], ["no process 1 within 1 s; start all 3", "not all processes came within 1 s"]),
        ([(2, 1)], [r"process 0 cannot be reached \(Connection refused\) within 1 s"]),
        ([(2, 0), (3, 1)], ["no process 1 within", "--num-processes is 3 for process 1, and 2 for process 0"]),
        ([(3, 0), (3, 1), (3, 1)], ["no process 2", "not all processes", "not all processes"]),
    ],
    ids=["one is missing", "the first is missing", "they disagree about their number", "one twice"],
)
def test_not_all_come(calls, messages):
    for end, message in zip(together(free_port(), calls, timeout=1.0), messages, strict=True):
        assert re.search(message, end)
        assert "\n" not in end
        assert len(end) <= 600


def test_others_that_call_are_ignored_and_who_leaves_is_not_counted():
    port = free_port()
    waiting, last = (threading.Thread(target=together, args=(port, [(3, i)])) for i in (0, 2))
    waiting.start()
    time.sleep(0.3)
    for greeting in (b"GET / HTTP/1.1\r\n\r\n", b"\xff\xfe", b"", b"gafreeze process 1 3"):
        with socket.create_connection(("localhost", port)) as connection:
            connection.sendall(greeting)
    time.sleep(0.3)
    last.start()
    time.sleep(0.3)
    assert waiting.is_alive()  # as process 1 had left again
    rendezvous.wait_for_all(f"localhost:{port}", 3, 1, 10)
    waiting.join()
    last.join()


def test_another_program_answers():
    with socket.create_server(("localhost", 0)) as server:
        port = server.getsockname()[1]
        greet = threading.Thread(target=lambda: server.accept()[0].sendall(b"SSH-2.0-OpenSSH_9.6\r\n"))
        greet.start()
        with pytest.raises(ValueError, match="not all processes came within"):
            rendezvous.wait_for_all(f"localhost:{port}", 2, 1, 1)
        greet.join()


def test_a_port_that_is_taken():
    with socket.create_server(("", 0)) as server:
        port = server.getsockname()[1]
        with pytest.raises(ValueError, match=rf"cannot listen on port {port} \(Address already in use\); choose another"):
            rendezvous.wait_for_all(f"localhost:{port}", 2, 0, 10)


@pytest.mark.parametrize(
    "address",
    [
        "",
        "host",
        "host:",
        ":123",
        "host:port",
        "host:0",
        "host:65536",
        "http://host:1",
        "host:1/x",
        "ho st:1",
        "::1:80",
        "host:-1",
    ],
)
def test_an_address_that_is_none(address):
    with pytest.raises(ValueError, match=re.escape(f"must be HOST:PORT of process 0, such as 10.0.0.1:12345, got {address!r}")):
        devices.join(address, 2, 0)


@pytest.mark.parametrize("address", ["host:1", "10.0.0.1:12345", "a-b.c_d.example:65535", "[::1]:80", "[fe80::1%eth0]:80"])
def test_an_address(address):
    assert rendezvous._ADDRESS.fullmatch(address)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_processes": 0}, "--num-processes must be at least 1, got 0"),
        ({"process_id": 2}, "--process-id must be from 0 to 1 (--num-processes less 1), got 2"),
        ({"process_id": -1}, "--process-id must be from 0 to 1"),
        ({"timeout": 0}, "--process-timeout must be above 0"),
        ({"timeout": float("nan")}, "--process-timeout must be above 0"),
        ({"timeout": float("inf")}, "--process-timeout must be above 0"),
    ],
    ids=str,
)
def test_other_options(options, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        devices.join(**{"coordinator": "localhost:1", "num_processes": 2, "process_id": 0} | options)


def test_what_jax_raises_becomes_one_line(monkeypatch, capsys):
    """As under Slurm, where JAX finds the others."""
    monkeypatch.setenv("SLURM_STEP_NODELIST", "a,b")
    monkeypatch.setenv("SLURM_NTASKS", "2")
    monkeypatch.setattr(devices.jax.distributed, "initialize", lambda *_, **__: [][1 + len("\n")])
    with pytest.raises(ValueError, match="JAX cannot join the processes: IndexError: list index out of range"):
        devices.join(timeout=7)
    assert capsys.readouterr().err == "waiting for the other processes, for up to 7 s\n"


@pytest.mark.parametrize("process_id", [0, 1])
def test_ctrl_c_ends_the_wait(process_id):
    words = [sys.executable, "-c", WAIT, f"localhost:{free_port()}", str(process_id)]
    process = subprocess.Popen(words, stderr=subprocess.PIPE, text=True, env=os.environ | {"JAX_PLATFORMS": "cpu"})
    assert process.stderr is not None
    assert process.stderr.readline().startswith("waiting for 1 of 2 processes")
    start = time.monotonic()
    process.send_signal(signal.SIGINT)
    assert process.communicate(timeout=30)[1] == "\nStopped. Nothing was done yet.\n"
    assert process.returncode == 130
    assert time.monotonic() - start < 10  # of the 60 s


@pytest.mark.parametrize(
    ("options", "message"),
    [({"coordinator": "localhost"}, "must be HOST:PORT"), ({"process_timeout": 0.0}, "--process-timeout must be above 0")],
    ids=str,
)
def test_a_run_ends_in_one_line(options, message, capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert message in error_of(run_custom, {"num_processes": 2, "process_id": 0} | options, capsys)
    assert not list(tmp_path.iterdir())


def test_the_limit_may_change_on_resuming():
    assert "process_timeout" in NOT_COMPARED
    assert Options().process_timeout == 300
