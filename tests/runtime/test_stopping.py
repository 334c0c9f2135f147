"""Requests to stop, a run that is stuck, and exit codes: in processes of their own."""

import errno
import json
import signal
import subprocess
import sys
import threading
import time

import pytest
from etils import epath

from tests import ROOT
from unit_jax.runtime import checkpoints, exits, journal, lock, stopping

STOPPING = """
import sys, time
from unit_jax.runtime import stopping
with stopping.handled("while starting", lambda: "nothing was begun"):
    if sys.argv[1] == "early":
        print("ready", flush=True)
        time.sleep(60)
    with stopping.graceful() as asked:
        if sys.argv[1] == "compiling":
            with stopping.at_once("while compiling"):
                print("ready", flush=True)
                time.sleep(60)
        print("ready", flush=True)
        while not asked.is_set():
            time.sleep(0.01)
        if sys.argv[1] == "twice":
            print("asked", flush=True)
            time.sleep(60)
        try:
            stopping.check()
        except stopping.Interrupted:
            print("given up", flush=True)
    sys.exit(130)
"""


def run(code: str, *arguments: str) -> subprocess.Popen:
    process = subprocess.Popen(
        [sys.executable, "-c", code, *arguments],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout.readline() == "ready\n"
    return process


@pytest.mark.parametrize(
    ("phase", "code", "told"),
    [
        ("early", 143, "stopped by SIGTERM while starting; nothing was begun"),
        ("compiling", 143, "stopped by SIGTERM while compiling; nothing was begun"),
        ("training", 130, "SIGTERM: the run saves after the step at hand and stops"),
        ("twice", 143, "stopped by SIGINT before the run was saved; nothing was begun"),
    ],
)
def test_a_request_to_stop_is_one_line_and_a_code_of_its_own(phase, code, told):
    process = run(STOPPING, phase)
    process.send_signal(signal.SIGTERM)
    if phase == "twice":
        assert process.stdout.readline() == "asked\n"
        process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=30)
    assert process.returncode == code
    assert err.split("\n")[-2] == told
    assert ("given up" in out) == (phase == "training")


def test_handlers_are_given_back_and_threads_without_signals_do_without():
    before = [signal.getsignal(number) for number in stopping.SIGNALS]
    with stopping.graceful() as asked:
        assert signal.getsignal(signal.SIGTERM) is not before[1]
        stopping.check()
        assert not asked.is_set()
    assert [signal.getsignal(number) for number in stopping.SIGNALS] == before
    seen = []

    def elsewhere():
        with stopping.graceful() as asked:
            seen.append(asked.is_set())

    thread = threading.Thread(target=elsewhere)
    thread.start()
    thread.join()
    assert seen == [False]


STUCK = """
import time
from unit_jax.runtime import watchdog
def waits_for_ever():
    print("ready", flush=True)
    time.sleep(60)
with watchdog.Watchdog(0.3, 1.0) as dog:
    for step in range(4):
        watchdog.alive(f"step {step}")
        time.sleep(0.2)
    waits_for_ever()
"""


def test_what_is_stuck_is_told_with_all_stacks_and_ends():
    process = run(STUCK)
    _, err = process.communicate(timeout=30)
    assert process.returncode == exits.STUCK
    first, second = (line for line in err.splitlines() if "nothing has moved" in line)
    assert "(step 3); it ends after 1 s" in first and "exit code 5" in second
    assert err.count("in waits_for_ever") == 2


def test_exit_codes():
    assert exits.of(lock.Taken("x")) == 6 and exits.of(checkpoints.NotWritten("x")) == 4
    assert exits.of(FloatingPointError("x")) == 3 and exits.of(ValueError("x")) == 1
    assert exits.of(OSError(errno.ENOSPC, "full")) == 4 and exits.of(OSError(errno.EIO, "x")) == 1
    codes = [v for k, v in vars(exits).items() if k.isupper() and isinstance(v, int)]
    assert len(set(codes)) == len(codes)


def test_the_journal(tmp_path):
    folder = epath.Path(tmp_path)
    first = journal.Journal(folder)
    first.event("started", step=0)
    first.status("training", step=3)
    first.status("training", loss=1.5)
    again = journal.Journal(folder)
    again.event("started", step=3)
    lines = [json.loads(line) for line in (tmp_path / journal.EVENTS).read_text().splitlines()]
    assert [line["step"] for line in lines] == [0, 3]
    assert lines[0]["run"] == lines[1]["run"] != lines[1]["session"]
    status = journal.read_status(folder)
    assert status["state"] == "training" and (status["step"], status["loss"]) == (3, 1.5)
    assert time.time() - status["time"] < 60
    (tmp_path / journal.STATUS).write_text('{"half')
    assert journal.read_status(folder) == {}
    journal.Journal(epath.Path(tmp_path / "nowhere")).event("lost")  # a run goes on without it
