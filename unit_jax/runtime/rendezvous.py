"""Processes of a run find each other before JAX is told: whoever is missing, or there twice, is
named in one line. JAX would end the process from native code, with a stack dump.

Process 0 listens at the address that becomes JAX's coordinator; each other one connects, says who
it is in a line of JSON, and waits for the answer: {} to go on, or {"error": the line}.
"""

import contextlib
import json
import os
import socket
import sys
import time
from typing import Any

_NOTE_SECONDS = 10  # between lines that say who is waited for


def meet(coordinator: str, processes: int, process: int, patience: float) -> None:
    """Returns when all processes are there.

    Raises:
      OSError: process 0 cannot listen there, or nobody answers there for `patience` seconds.
      ValueError: one never came, two have one number, or the counts differ; names them.
    """
    host, _, port = coordinator.rpartition(":")
    me = {"process": process, "processes": processes, "host": socket.gethostname()}
    me["pid"] = os.getpid()
    deadline = time.monotonic() + patience
    if process == 0:
        try:
            _listen(int(port), me, deadline, patience)
        except OSError:
            if told := _told_by_another(int(port), me):
                raise ValueError(_line(told)) from None
            raise
    else:
        _report((host.strip("[]"), int(port)), me, deadline, patience)


def _listen(port: int, me: dict[str, Any], deadline: float, patience: float) -> None:
    with contextlib.ExitStack() as open_, socket.socket() as server:
        server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        server.bind(("", port))
        server.listen(1024)
        seen, connections, problem = {0: me}, [], None
        note = time.monotonic() + _NOTE_SECONDS
        while len(seen) < me["processes"] and not problem:
            missing = sorted(set(range(me["processes"])) - set(seen))
            if time.monotonic() > deadline:
                problem = (
                    f"{_who(missing)} of {me['processes']} never came, for {patience:.0f} seconds"
                )
                break
            if time.monotonic() > note:
                print(f"process 0 still waits for {_who(missing)}", file=sys.stderr)
                note = time.monotonic() + 6 * _NOTE_SECONDS
            server.settimeout(0.2)
            try:
                connection, _ = server.accept()
            except TimeoutError:
                continue
            open_.enter_context(connection)
            other = _read(connection)
            if not isinstance(other, dict) or not isinstance(other.get("process"), int):
                continue  # somebody else's, who looked what this port is
            connections.append(connection)
            number = other["process"]
            if other.get("processes") != me["processes"]:
                problem = (
                    f"process {number} ({_where(other)}) counts {other.get('processes')} "
                    f"processes, process 0 ({_where(me)}) counts {me['processes']}"
                )
            elif number in seen:
                problem = (
                    f"two processes have the number {number}: {_where(seen[number])} and "
                    f"{_where(other)}"
                )
            else:
                seen[number] = other
        answer = json.dumps({"error": problem} if problem else {}).encode() + b"\n"
        for connection in connections:
            with contextlib.suppress(OSError):
                connection.sendall(answer)
        for connection in connections:  # they close first, so that the port is free for JAX
            with contextlib.suppress(OSError):
                connection.settimeout(2)
                connection.recv(1)
    if problem:
        raise ValueError(_line(problem))


def _told_by_another(port: int, me: dict[str, Any]) -> str:
    """What another process 0 that listens on this host says of this one; "" where none does."""
    with contextlib.suppress(OSError), socket.create_connection(("localhost", port), 2) as other:
        other.sendall(json.dumps(me).encode() + b"\n")
        answer = _read(other, 2)
        if isinstance(answer, dict):
            return str(answer.get("error", ""))
    return ""


def _report(address: tuple[str, int], me: dict[str, Any], deadline: float, patience: float) -> None:
    while True:
        try:
            connection = socket.create_connection(address, timeout=5)
            break
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.2)
    with connection:
        connection.sendall(json.dumps(me).encode() + b"\n")
        answer = _read(connection, max(deadline - time.monotonic(), 0) + 10)
    if not isinstance(answer, dict) or set(answer) - {"error"}:
        raise ValueError(
            _line(
                f"process {me['process']}: what listens at {address[0]}:{address[1]} is no process "
                "0 that gathers a run; has that run begun without this process?"
            )
        )
    if "error" in answer:
        raise ValueError(_line(answer["error"]))


def _read(connection: socket.socket, patience: float = 5) -> Any:
    """A line of JSON; None of anything else."""
    line = b""
    try:
        connection.settimeout(patience)
        while not line.endswith(b"\n") and len(line) < 10_000:
            if not (more := connection.recv(4096)):
                break
            line += more
        return json.loads(line)
    except (OSError, ValueError):
        return None


def _line(problem: str) -> str:
    return (
        f"the processes did not meet: {problem}; give each its own config.distributed.process, all "
        "the same processes and coordinator, and start all of them"
    )


def _who(missing: list[int]) -> str:
    more = f" and {len(missing) - 8} more" if len(missing) > 8 else ""
    return f"process {', '.join(map(str, missing[:8]))}{more}"


def _where(one: dict[str, Any]) -> str:
    return f"pid {one.get('pid')} on {one.get('host')}"
