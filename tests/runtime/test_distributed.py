"""Runs of two processes: they compute what one does, and end when one of them is lost."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
import zipfile

import jax
import numpy as np
import pytest
from etils import epath

from tests import ROOT, tiny, two_processes
from unit_jax import run as run_lib
from unit_jax.evaluation import submissions
from unit_jax.runtime import checkpoints, distributed, last_words
from unit_jax.settings import DistributedSettings

# Sums over devices of two processes run in another order than over those of one.
TOLERANCE = 1e-4


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    return tiny.make_data(tmp_path_factory.mktemp("demo"), ("coco", "qqp"))


def start(data_dir, workdir, process: int = 0, processes: int = 1, port: int = 0, *flags: str):
    """A process of a run on four devices in all."""
    command = [
        sys.executable, "-m", "unit_jax.main", f"--config=tests/two_processes.py:{data_dir}",
        f"--workdir={workdir}", *flags,
    ]  # fmt: skip
    if processes > 1:
        group = dict(coordinator=f"localhost:{port}", processes=processes, process=process)
        command += [f"--config.distributed.{key}={value}" for key, value in group.items()]
    # Of several counts the last one holds.
    devices = f"--xla_force_host_platform_device_count={4 // processes}"
    flags = f"{os.environ['XLA_FLAGS']} {devices}"
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags}
    pipes = dict(stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    return subprocess.Popen(command, cwd=ROOT, env=environment, **pipes)


def start_two(data_dir, workdirs, *flags: str):
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    return [start(data_dir, workdirs[i], i, 2, port, *flags) for i in range(2)]


def read_log(workdir) -> list[dict]:
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def newest_step(workdir) -> int:
    steps = [int(p.name) for p in (workdir / "checkpoints").glob("*") if p.name.isdigit()]
    return max(steps, default=0)


def test_two_processes_train_and_evaluate_as_one_does(data_dir, tmp_path):
    """Same losses, identical metrics and report; files written once."""
    one, two = tmp_path / "one", tmp_path / "two"
    alone = start(data_dir, one)
    assert alone.wait(900) == 0, alone.stderr.read()
    mesh = ("--config.mesh.fsdp=2", "--config.mesh.tensor=1")
    outputs = []
    for process in start_two(data_dir, [two, two], *mesh):
        outputs.append(process.communicate(timeout=900))
        assert process.returncode == 0, outputs[-1][1]
    assert "predictions.png" in outputs[0][0] and "predictions.png" not in outputs[1][0]

    logs = list(zip(read_log(one), read_log(two), strict=True))
    assert len(logs) == two_processes.STEPS + 1
    for wanted, found in logs:
        assert wanted.keys() == found.keys()
        for name, value in wanted.items():
            if name.startswith("train/") and ("/loss" in name or name.endswith("/grad_norm")):
                np.testing.assert_allclose(found[name], value, rtol=TOLERANCE, err_msg=name)
            elif not name.startswith("train/") and name != "time":
                assert found[name] == value, name
    assert all(
        any(f"train/{name}/loss" in wanted for wanted, _ in logs) for name in ("coco", "qqp")
    )
    assert (one / "report.json").read_text() == (two / "report.json").read_text()
    for folder in ("tensorboard", "tensorboard/examples"):
        assert len([path for path in (two / folder).iterdir() if path.is_file()]) == 1
    assert sorted(p.name for p in two.iterdir() if p.name.startswith(".")) == []

    # What two wrote one reads, and the predictions for every single example are the same.
    for process in start_two(data_dir, [two, two], *mesh, "--mode=predict"):
        assert process.wait(900) == 0, process.stderr.read()
    run = run_lib.open_run(two_processes.get_config(str(data_dir)).to_dict())
    submissions.predict_checkpoint(run, two, epath.Path(tmp_path))
    wanted, found = (
        json.loads((folder / "predictions" / "coco-val.json").read_text())
        for folder in (tmp_path, two)
    )
    # Classes that the data set does not have are left out, so an image may have no entry.
    assert [entry["image_id"] for entry in wanted] == [entry["image_id"] for entry in found]
    for name in ("category_id", "bbox", "score"):
        np.testing.assert_allclose(
            [x[name] for x in found], [x[name] for x in wanted], 1e-3, 1e-3, err_msg=name
        )
    lines = [(folder / "predictions" / "qqp-val.tsv").read_text() for folder in (tmp_path, two)]
    assert lines[0] == lines[1]


def test_processes_that_differ_are_told_so_at_once(data_dir, tmp_path):
    """Another config on one, another folder on one: an error on both, naming what differs."""
    run = tmp_path / "run"
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    pair = [
        start(data_dir, run, i, 2, port, f"--config.seed={i}", f"--config.train.steps={2 + i}")
        for i in range(2)
    ]
    for process in pair:
        told = process.communicate(timeout=300)[1]
        assert process.returncode == 1
        assert "process 1 has another config.seed, another config.train than process 0" in told

    pair = start_two(data_dir, [tmp_path / "here", tmp_path / "there"])
    told = [process.communicate(timeout=300)[1] for process in pair]
    assert [process.returncode for process in pair] == [1, 1]
    assert "does not see in" in told[0] and "one --workdir that each of them can write" in told[0]


@pytest.mark.slow
@pytest.mark.parametrize("killed", [0, 1])
def test_a_lost_process_ends_the_other_within_a_minute(data_dir, tmp_path, killed):
    flags = dict(steps=100_000, eval_every=100_000, checkpoint_every=10)
    pair = start_two(
        data_dir, [tmp_path] * 2, *(f"--config.train.{name}={n}" for name, n in flags.items())
    )
    while newest_step(tmp_path) < 20:
        for process in pair:
            assert process.poll() is None, process.stderr.read()
        time.sleep(0.5)
    pair[killed].send_signal(signal.SIGKILL)
    since = time.monotonic()
    other = pair[1 - killed]
    told = other.communicate(timeout=300)[1]
    assert time.monotonic() - since < 60 and other.returncode not in (0, None)
    (line,) = [line for line in told.splitlines() if "stops after step" in line]
    assert line.startswith(f"process {1 - killed} of 2 (")
    assert f"process {killed} was lost" in line
    assert f"newest checkpoint: {tmp_path}/checkpoints/{newest_step(tmp_path)};" in line
    assert "start all processes again with the same commands" in line
    pair[killed].communicate()

    last = newest_step(tmp_path)
    alone = start(data_dir, tmp_path, 0, 1, 0, f"--config.train.steps={last + 1}")
    told = alone.communicate(timeout=300)
    assert alone.returncode == 0, told[1]
    assert f"continuing from step {last} in " in told[0]
    assert read_log(tmp_path)[-1]["step"] == last + 1


def test_the_last_line_and_when_it_is_said(tmp_path):
    line = dict(process="process 1 of 2 (here)", step=7, cause="process 0 was lost")
    (tmp_path / "5").mkdir()
    (tmp_path / "6.orbax-checkpoint-tmp").mkdir()
    told = last_words.compose(**line, checkpoints=str(tmp_path))
    assert told.startswith("process 1 of 2 (here) stops after step 7: process 0 was lost; ")
    assert f"newest checkpoint: {tmp_path}/5; " in told
    assert "newest checkpoint: none" in last_words.compose(**line, checkpoints=str(tmp_path / "5"))
    line = json.dumps({**line, "checkpoints": str(tmp_path)}) + "\n"
    for said, printed in (
        (line, f"\n{told}\n"),
        (line + '{"pro', f"\n{told}\n"),
        (line + "null\n", ""),
    ):
        helper = subprocess.run(
            [sys.executable, "-S", last_words.__file__], input=said, capture_output=True, text=True
        )
        assert helper.stderr == printed


def test_a_process_lost_in_the_middle_of_a_save_is_not_told_as_a_full_disk(tmp_path, monkeypatch):
    """orbax wraps what the runtime says."""
    saved = checkpoints.Checkpoints(tmp_path)

    def failing() -> None:
        try:
            raise jax.errors.JaxRuntimeError("UNAVAILABLE: task 1 is gone\nmore")
        except jax.errors.JaxRuntimeError as error:
            raise TimeoutError("Timed out while waiting for a barrier") from error

    monkeypatch.setattr(saved._manager, "wait_until_finished", failing)
    with pytest.raises(checkpoints.NotWritten):  # alone, nobody can be lost
        saved.wait()
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    with pytest.raises(TimeoutError) as error:
        saved.wait()
    assert distributed.broken_exchange(error.value) == "UNAVAILABLE: task 1 is gone"
    assert distributed.broken_exchange(ValueError("UNKNOWN: Error writing")) == ""
    monkeypatch.undo()
    saved.close()


@pytest.mark.parametrize("kind", [ValueError, OSError, zipfile.BadZipFile])
def test_any_error_on_one_is_one_on_all(monkeypatch, kind):
    """Whatever fails while a run opens, the others hear of it before they wait for this one."""
    told = []
    monkeypatch.setattr(
        distributed, "_gather", lambda flag: told.append(bool(flag)) or [flag, True]
    )
    with pytest.raises(kind, match="mine"), distributed.together():
        raise kind("mine")
    with pytest.raises(ValueError, match="process 1 cannot start"), distributed.together():
        pass
    assert told == [True, False]


def test_alone_there_is_nobody_to_ask(tmp_path):
    assert distributed.is_first() and distributed.any_process(True)
    assert not distributed.any_process(False)
    for kind in (ValueError, OSError):
        with pytest.raises(kind, match="mine"), distributed.together():
            raise kind("mine")
    with pytest.raises(KeyError), distributed.LastWords(epath.Path(tmp_path)) as words:
        words.step(3)
        raise KeyError("as ever")
    workdir = epath.Path(tmp_path / "a" / "b")
    distributed.check_workdir(workdir)
    assert list(workdir.iterdir()) == []
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="process 0 .* cannot write to .*/file/run"):
        distributed.check_workdir(epath.Path(tmp_path / "file" / "run"))
    with pytest.raises(ValueError, match="process=2 of processes=2; number the processes from 0"):
        distributed.initialize(DistributedSettings("localhost:1", 2, 2))
    with pytest.raises(ValueError, match="coordinator=localhost: give HOST:PORT"):
        distributed.initialize(DistributedSettings("localhost", 2, 0))
    assert jax.process_count() == 1


def test_a_coordinator_that_is_not_there(monkeypatch):
    """Told in one line, before JAX would end the process from within native code."""
    monkeypatch.setattr(distributed, "PATIENCE_SECONDS", 0.5)
    with socket.socket() as taken:
        taken.bind(("localhost", 0))
        taken.listen()
        address = f"localhost:{taken.getsockname()[1]}"
        told = f"process 0 of 2 did not meet the others at {address} .*in use.*free there"
        with pytest.raises(ValueError, match=told):
            distributed.initialize(DistributedSettings(address, 2, 0))
    told = f"process 1 of 2 did not meet the others at {address} .*refused"
    with pytest.raises(ValueError, match=told):
        distributed.initialize(DistributedSettings(address, 2, 1))
    assert jax.process_count() == 1
