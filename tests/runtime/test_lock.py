"""One run in a working folder: who is refused, and who takes over from whom."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time

import pytest
from etils import epath

from tests import ROOT
from unit_jax.runtime import lock

HOLD = """
import sys, time
from etils import epath
from unit_jax.runtime import lock
with lock.Lock(epath.Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(600)
"""


def holder(folder) -> subprocess.Popen:
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(folder)], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "held\n"
    return process


def test_the_second_is_refused_and_a_dead_ones_lock_is_taken_over(tmp_path):
    first = holder(tmp_path)
    try:
        told = (
            f"{tmp_path} is in use by pid {first.pid} on {socket.gethostname()} since 20[0-9: -]*; "
            f"wait for that run, .*; if it is dead for certain, remove {tmp_path}/run.lock"
        )
        with pytest.raises(lock.Taken, match=told), lock.Lock(epath.Path(tmp_path)):
            pass
        os.kill(first.pid, signal.SIGSTOP)  # frozen is not dead
        with pytest.raises(lock.Taken), lock.Lock(epath.Path(tmp_path)):
            pass
    finally:
        first.kill()
        first.communicate()
    assert (tmp_path / lock.FILE).exists()
    with lock.Lock(epath.Path(tmp_path)) as held:
        held.check()
        with pytest.raises(lock.Taken), lock.Lock(epath.Path(tmp_path)):
            pass
        held.check()
    assert list(tmp_path.iterdir()) == []
    with lock.Lock(epath.Path(tmp_path)):
        pass


def leave(folder, **changes) -> None:
    content = dict(
        host="elsewhere", pid=1, process_began="1", boot="b", token="t", since=time.time()
    )
    content |= {"alive": time.time(), **changes}
    (folder / lock.FILE).write_text(json.dumps(content))


def test_of_another_host_the_sign_of_life_decides(tmp_path, monkeypatch):
    leave(tmp_path)
    told = "in use by pid 1 on elsewhere .* if it is dead for certain, wait 3 minutes, or remove"
    with pytest.raises(lock.Taken, match=told), lock.Lock(epath.Path(tmp_path)):
        pass
    leave(tmp_path, alive=time.time() - lock.STALE_SECONDS - 1)
    with lock.Lock(epath.Path(tmp_path)) as held:
        leave(tmp_path)  # another one took over while this process was frozen
        told = re.escape(f"{tmp_path} was taken over by pid 1 on elsewhere since ")
        with pytest.raises(lock.Taken, match=told):
            held.check()
    assert json.loads((tmp_path / lock.FILE).read_text())["host"] == "elsewhere"


@pytest.mark.parametrize(
    ("changes", "alive"),
    [
        ({}, True),
        ({"boot": "before"}, False),
        ({"process_began": "before"}, False),
        ({"pid": 2**22 + 1}, False),
        ({"alive": 0}, False),
    ],
)
def test_without_locks_of_the_kernel_the_process_itself_is_looked_for(
    tmp_path, monkeypatch, changes, alive
):
    def unsupported(*_):
        raise OSError("no locks here")

    monkeypatch.setattr(lock.fcntl, "flock", unsupported)
    mine = dict(
        host=socket.gethostname(),
        pid=os.getpid(),
        process_began=lock._began(os.getpid()),
        boot=lock._boot(),
    )
    leave(tmp_path, **{**mine, **changes})
    if alive:
        with pytest.raises(lock.Taken), lock.Lock(epath.Path(tmp_path)):
            pass
    else:
        with lock.Lock(epath.Path(tmp_path)):
            pass


def test_the_sign_of_life_is_renewed_and_half_a_file_is_nobody(tmp_path, monkeypatch):
    monkeypatch.setattr(lock, "BEAT_SECONDS", 0.01)
    (tmp_path / lock.FILE).write_text('{"host": "el')
    with lock.Lock(epath.Path(tmp_path)):
        seen = set()
        for _ in range(200):
            text = (tmp_path / lock.FILE).read_text()
            if text.endswith("\n"):
                seen.add(json.loads(text)["alive"])
            time.sleep(0.005)
    assert len(seen) > 3
