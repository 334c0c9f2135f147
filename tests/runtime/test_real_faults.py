"""A whole command and what happens to machines: a stop, a second run, a full disk.

All are slow: each starts several processes.
"""

import json
import os
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
