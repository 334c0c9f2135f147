"""A whole command and what happens to machines: a stop, a second run, a hang, a full disk.

All are slow: each starts several processes.
"""

import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import pytest

from tests import ROOT, tiny
from unit_jax.runtime import exits, journal

pytestmark = pytest.mark.slow


def get_config(data_dir: str) -> dict:
    """For `--config`: a task of texts, without end unless a flag sets the steps."""
    config = tiny.values(data_dir, ("qqp",), steps=100_000)
    config["train"].update(eval_every=100_000, checkpoint_every=10)
    config["report"]["blind_check"] = False
    return config


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    return tiny.make_data(tmp_path_factory.mktemp("demo"), ("qqp",))


def start(data_dir, workdir, *flags: str, **environment: str) -> subprocess.Popen:
    command = [
        sys.executable, "-m", "unit_jax.main", f"--config={__file__}:{data_dir}",
        f"--workdir={workdir}", *flags,
    ]  # fmt: skip
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", **environment}
    pipes = dict(stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    return subprocess.Popen(command, cwd=ROOT, env=environment, **pipes)


def until(process: subprocess.Popen, workdir, state: str, step: int = 0) -> None:
    """Waits for a state in status.json, at a step or later, of this very process."""
    while True:
        found = journal.read_status(workdir)
        if found.get("pid") == process.pid and found["state"] == state:
            if found.get("step", 0) >= step:
                return
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.005)


def errors(text: str) -> list[str]:
    """The lines that are no progress bar."""
    assert "Traceback" not in text, text
    return [line for line in text.splitlines() if line.startswith(("error:", "stopped by"))]


def steps(workdir) -> list[int]:
    lines = (workdir / "metrics.jsonl").read_text().splitlines()
    return [found["step"] for found in map(json.loads, lines) if "train/bad_steps" in found]


def test_stops_while_compiling_and_training_and_a_second_run(data_dir, tmp_path):
    workdir, cache = tmp_path / "run", {"JAX_COMPILATION_CACHE_DIR": str(tmp_path / "cache")}
    first = start(data_dir, workdir, **cache)
    until(first, workdir, "compiling")
    since = time.monotonic()
    first.send_signal(signal.SIGTERM)
    (line,) = errors(first.communicate(timeout=60)[1])
    assert first.returncode == exits.STOPPED_AT_ONCE and time.monotonic() - since < 5
    assert line.startswith("stopped by SIGTERM while compiling; there is no checkpoint yet")

    first = start(data_dir, workdir, **cache)
    until(first, workdir, "training", 3)
    second = start(data_dir, workdir, **cache)
    (line,) = errors(second.communicate(timeout=300)[1])
    assert second.returncode == exits.TAKEN
    assert f"{workdir} is in use by pid {first.pid} on " in line

    since = time.monotonic()
    first.send_signal(signal.SIGTERM)
    out, err = first.communicate(timeout=60)
    assert first.returncode == exits.STOPPED and time.monotonic() - since < 30
    assert errors(err) == [] and "which is saved; the same command goes on from there" in out


def test_a_loader_that_hangs_ends_the_run_and_its_workers(data_dir, tmp_path):
    """Its worker process is frozen: all stacks, then a code of its own; nobody is left behind."""
    flags = ("--config.data.num_workers=1", "--config.train.stuck_report=20",
             "--config.train.stuck_limit=40", "--config.train.steps=100000")  # fmt: skip
    run = start(data_dir, tmp_path / "run", *flags)
    until(run, tmp_path / "run", "training", 3)
    workers = children(run.pid)
    assert workers
    for worker in workers:
        os.kill(worker, signal.SIGSTOP)
    assert run.wait(timeout=200) == exits.STUCK
    for worker in workers:
        os.kill(worker, signal.SIGCONT)
    err = run.communicate(timeout=30)[1]  # they have the other ends of its pipes
    told = [line for line in err.splitlines() if line.startswith("nothing has moved for ")]
    assert "it ends after 40 s" in told[0] and told[1].endswith("the stacks of all threads:")
    assert "exit code 5" in told[1] and "most recent call first" in err
    deadline = time.monotonic() + 30
    while any(map(is_there, workers)):
        assert time.monotonic() < deadline
        time.sleep(0.1)


def children(pid: int) -> list[int]:
    threads = pathlib.Path(f"/proc/{pid}/task").iterdir()
    return [int(word) for path in threads for word in (path / "children").read_text().split()]


def is_there(pid: int) -> bool:
    try:
        return "\nState:\tZ" not in pathlib.Path(f"/proc/{pid}/status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_a_disk_of_two_megabytes(data_dir, tmp_path):
    """Too small, as is told before training; one of sixteen fills up, and gets room again."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = ["mount", "-t", "tmpfs", "-o", "size=2m", "none", str(disk)]
    if subprocess.run(mounted, capture_output=True).returncode:
        pytest.skip("mounting needs root")
    try:
        run = start(data_dir, disk / "run")
        (line,) = errors(run.communicate(timeout=300)[1])
        assert run.returncode == exits.ERROR
        assert "2.1 MB free, 4 checkpoints" in line and "MB more; free some" in line
        assert not (disk / "run" / "metrics.jsonl").exists()

        subprocess.run(["mount", "-o", "remount,size=16m", str(disk)], check=True)
        run = start(data_dir, disk / "run")
        until(run, disk / "run", "training", 25)
        with open(disk / "filler", "wb", buffering=0) as filler:
            while run.poll() is None:
                try:
                    filler.write(bytes(4096))
                except OSError:
                    time.sleep(0.01)
        (line,) = errors(run.communicate(timeout=300)[1])
        assert run.returncode == exits.DISK
        (newest,) = sorted(disk.glob("run/checkpoints/[0-9]*[0-9]"))[-1:]
        assert f"{newest} is safe" in line and "make room" in line, line

        (disk / "filler").unlink()
        run = start(data_dir, disk / "run", f"--config.train.steps={int(newest.name) + 5}")
        out, err = run.communicate(timeout=300)
        assert run.returncode == 0, err
        assert f"continuing from step {newest.name} in" in out
        assert steps(disk / "run") == list(range(1, int(newest.name) + 6))
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=True)
