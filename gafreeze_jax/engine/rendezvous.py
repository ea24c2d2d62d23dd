"""Several processes find each other before JAX joins them.

JAX's own wait cannot be interrupted, and ends the process with a stack trace of XLA's when it takes too long or the port is
taken (jax 0.10.2). So process 0 listens at the coordinator's port first, until all others have connected.
"""

import contextlib
import os
import re
import select
import socket
import sys
import time

HELLO, GO, REFUSED = "gafreeze process", "go", "refused: "
RETRY_SECONDS = 0.2
ATTEMPT_SECONDS = 5  # for a connection, or a greeting, which takes milliseconds
GRACE_SECONDS = 1  # others wait longer than process 0 does, which counts who is there
_ADDRESS = re.compile(r"(?P<host>[^\s:/\[\]]+|\[[0-9a-fA-F:.%\w]+\]):(?P<port>[0-9]{1,5})")


def wait_for_all(coordinator: str, num_processes: int, process_id: int, timeout: float) -> None:
    """Returns when all processes have called this, after a line on stderr that says what is waited for.

    Args:
      coordinator: HOST:PORT of process 0, which others reach there; it listens on all its interfaces.
      timeout: in seconds.

    Raises:
      ValueError: if an argument is wrong, the port cannot be used, processes disagree, or not all come in time.
    """
    match = _ADDRESS.fullmatch(coordinator)
    if match is None or not 0 < int(match["port"]) < 2**16:
        raise ValueError(f"--coordinator must be HOST:PORT of process 0, such as 10.0.0.1:12345, got {coordinator!r}")
    if num_processes < 1:
        raise ValueError(f"--num-processes must be at least 1, got {num_processes}")
    if not 0 <= process_id < num_processes:
        raise ValueError(f"--process-id must be from 0 to {num_processes - 1} (--num-processes less 1), got {process_id}")
    if num_processes > 1:
        waited_for = f"{num_processes - 1} of {num_processes} processes at {coordinator}, for up to {timeout:g} s"
        print(f"waiting for {waited_for}", file=sys.stderr, flush=True)
    deadline = time.monotonic() + timeout
    if process_id == 0:
        missing = _receive(int(match["port"]), num_processes, deadline)
    else:
        missing = _report((match["host"].strip("[]"), int(match["port"])), num_processes, process_id, deadline)
    if missing:
        raise ValueError(
            f"--coordinator {coordinator}: {missing} within {timeout:g} s; start all {num_processes} processes, with this "
            "--coordinator, which all of them must reach, or give more time by --process-timeout"
        )


def _receive(port: int, num: int, deadline: float) -> str:
    """Process 0: waits for the others, then lets all continue; returns in words which are missing."""
    there: dict[int, socket.socket] = {}
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(_listen(port))
        while len(there) < num - 1:
            if (left := deadline - time.monotonic()) <= 0:
                return f"no process {', '.join(str(i) for i in range(1, num) if i not in there)}"
            server.settimeout(left)
            with contextlib.suppress(OSError, ValueError):  # too late, or no process of ours
                connection = stack.enter_context(server.accept()[0])
                process_id = _read_greeting(connection, num)
                there[process_id] = connection
            gone = select.select(list(there.values()), [], [], 0)[0]  # nothing but its end is to be read
            there = {process_id: connection for process_id, connection in there.items() if connection not in gone}
        for connection in there.values():
            with contextlib.suppress(OSError):
                connection.sendall(GO.encode())
    return ""


def _listen(port: int) -> socket.socket:
    try:
        if socket.has_dualstack_ipv6():
            return socket.create_server(("", port), family=socket.AF_INET6, dualstack_ipv6=True)
        return socket.create_server(("", port))
    except OSError as error:
        reason = os.strerror(error.errno or 0)
        raise ValueError(
            f"--coordinator: cannot listen on port {port} ({reason}); choose another port for all processes"
        ) from None


def _read_greeting(connection: socket.socket, num: int) -> int:
    """The index of a process that connected; one that expects another number of processes is refused."""
    connection.settimeout(ATTEMPT_SECONDS)
    words = connection.recv(100).decode().removeprefix(HELLO).split()
    process_id, theirs = map(int, words)
    if theirs != num or not 0 < process_id < num:
        connection.sendall(f"{REFUSED}--num-processes is {theirs} for process {process_id}, and {num} for process 0".encode())
        raise ValueError
    return process_id


def _report(address: tuple[str, int], num: int, process_id: int, deadline: float) -> str:
    """Another process: sends its index, and waits until it may continue; returns in words what was missing."""
    missing = ""
    while (left := deadline - time.monotonic()) > 0:
        try:
            connection = socket.create_connection(address, timeout=min(left, ATTEMPT_SECONDS))
        except OSError as error:
            missing = f"process 0 cannot be reached ({error.strerror or error})"
        else:
            missing = "not all processes came"
            reply = _ask(connection, f"{HELLO} {process_id} {num}", left)
            if reply == GO:
                return ""
            if reply.startswith(REFUSED):
                raise ValueError(f"--coordinator: {reply.removeprefix(REFUSED)}; give all processes the same")
        time.sleep(RETRY_SECONDS)
    return missing


def _ask(connection: socket.socket, greeting: str, timeout: float) -> str:
    """The answer, empty if the connection ends before."""
    with connection, contextlib.suppress(OSError):
        connection.sendall(greeting.encode())
        connection.settimeout(timeout + GRACE_SECONDS)
        return connection.recv(200).decode(errors="replace")
    return ""
