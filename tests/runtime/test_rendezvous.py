"""Processes that look for each other: who is missing, twice there, or late is told in one line."""

import contextlib
import socket
import threading
import time

import pytest

from unit_jax.runtime import rendezvous


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("localhost", 0))
        return free.getsockname()[1]


def meet(*processes: tuple[int, int, float], patience: float = 20) -> list[str | None]:
    """What each of (number, count, seconds that it is late) is told; None = it goes on."""
    address, told = f"localhost:{free_port()}", [None] * len(processes)

    def one(place, number, count, late):
        time.sleep(late)
        try:
            rendezvous.meet(address, count, number, patience)
        except (OSError, ValueError) as error:
            told[place] = str(error)

    threads = [
        threading.Thread(target=one, args=(place, *process))
        for place, process in enumerate(processes)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive()
    with socket.socket() as again:  # the port is free for JAX, at once
        again.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        again.bind(("", int(address.rpartition(":")[2])))
        again.listen()
    return told


def test_all_go_on_when_all_are_there_in_whatever_order(capsys, monkeypatch):
    monkeypatch.setattr(rendezvous, "_NOTE_SECONDS", 0.3)
    assert meet((2, 3, 0), (0, 3, 0.2), (1, 3, 1.0)) == [None] * 3
    assert capsys.readouterr().err == "process 0 still waits for process 1\n"
    assert meet((0, 1, 0)) == [None]


@pytest.mark.parametrize(
    ("processes", "told"),
    [
        (((0, 3, 0), (1, 3, 0)), "process 2 of 3 never came, for 1 seconds"),
        (((0, 3, 0), (1, 3, 0), (1, 3, 0.1)), "two processes have the number 1: pid"),
        (((0, 2, 0), (0, 2, 0.3)), "two processes have the number 0: pid"),
        (((0, 2, 0), (1, 3, 0)), "process 1 .* counts 3 processes, process 0 .* counts 2"),
    ],
)
def test_all_are_told_the_same_line(processes, told):
    found = meet(*processes, patience=1)
    assert len(set(found)) == 1
    with pytest.raises(ValueError, match=rf"^the processes did not meet: {told}"):
        raise ValueError(found[0])
    assert "\n" not in found[0]


def test_strangers_at_the_port_are_passed_over():
    port, done = free_port(), []
    first = threading.Thread(
        target=lambda: done.append(rendezvous.meet(f"localhost:{port}", 2, 0, 20))
    )
    first.start()
    for said in (b"GET / HTTP/1.1\r\n\r\n\n", b"", b"[1]\n"):
        for _ in range(100):
            with contextlib.suppress(ConnectionRefusedError):
                with socket.create_connection(("localhost", port)) as stranger:
                    stranger.sendall(said)
                break
            time.sleep(0.05)
    rendezvous.meet(f"localhost:{port}", 2, 1, 20)
    first.join(20)
    assert done == [None]


def test_one_that_comes_to_a_run_that_has_begun():
    with socket.socket() as server:
        server.bind(("localhost", 0))
        server.listen()

        def answer_otherwise():
            connection, _ = server.accept()
            with connection:
                connection.recv(1000)
                connection.sendall(b"\0\0\6\4 as gRPC would\n")

        threading.Thread(target=answer_otherwise, daemon=True).start()
        with pytest.raises(ValueError, match="has that run begun without this process"):
            rendezvous.meet(f"localhost:{server.getsockname()[1]}", 2, 1, 5)
