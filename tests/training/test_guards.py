"""What stands around training: the lock, stops that save, bundles of what went wrong, room."""

import errno
import json
import os
import shutil
import signal
import threading
import time

import jax
import numpy as np
import pytest
from etils import epath

from tests import tiny
from unit_jax import run as run_lib
from unit_jax import settings
from unit_jax.evaluation import follow
from unit_jax.runtime import checkpoint_folder, checkpoints, disk, exits, journal, lock, stopping
from unit_jax.tools import go_back, replay
from unit_jax.training import bundle, loop, session
from unit_jax.training.run_log import TooManyBadSteps


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    return tiny.make_data(tmp_path_factory.mktemp("demo"), ("qqp",))


def config(data_dir, **train) -> dict:
    values = tiny.values(data_dir, ("qqp",), steps=6)
    values["train"].update(compile_ahead=False, eval_every=4, checkpoint_every=2, **train)
    values["report"]["blind_check"] = False
    return values


def lines(workdir) -> list[dict]:
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def numbers(workdir) -> list[dict]:
    volatile = ("time", "train/examples_per_second", "train/compilations", "train/host_memory")
    return [{k: v for k, v in line.items() if k not in volatile} for line in lines(workdir)]


def params(run, workdir):
    return jax.device_get(run.restored_model(workdir).params)


@pytest.fixture(scope="module")
def whole(data_dir, tmp_path_factory):
    workdir = epath.Path(tmp_path_factory.mktemp("whole"))
    run = run_lib.open_run(config(data_dir))
    assert loop.train(run, workdir) == 0
    return run, workdir


def test_a_run_leaves_a_status_events_and_no_lock(whole):
    run, workdir = whole
    status = journal.read_status(workdir)
    assert (status["state"], status["exit"], status["step"], status["steps"]) == (
        "finished",
        0,
        6,
        6,
    )
    assert {"train/qqp/loss", "train/qqp/grad_norm", "train/qqp/padding", "train/bad_steps",
            "train/examples_per_second", "train/host_memory"} <= set(status)  # fmt: skip
    events = [json.loads(line) for line in (workdir / "events.jsonl").read_text().splitlines()]
    assert [event["event"] for event in events] == ["started", *["saving"] * 3, "ended"]
    assert all({"time", "run", "session", "host", "process"} <= set(event) for event in events)
    assert 0 < events[1]["digest_seconds"] < 60
    assert 0 < lines(workdir)[0]["train/qqp/padding"] < 1
    assert not (workdir / lock.FILE).exists()


def test_a_second_run_in_the_folder_is_refused_before_it_writes(whole, data_dir, tmp_path):
    run, _ = whole
    workdir = epath.Path(tmp_path)
    with lock.Lock(workdir):
        before = {path.name for path in workdir.iterdir()}
        with pytest.raises(lock.Taken, match="is in use by pid"):
            loop.train(run, workdir)
        assert {path.name for path in workdir.iterdir()} == before


def test_a_stop_in_the_middle_of_an_evaluation_saves_and_evaluates_later(
    whole, tmp_path, monkeypatch
):
    """Nothing is lost: lines, numbers and parameters are those of the whole run."""
    run, undisturbed = whole
    workdir, evaluate = epath.Path(tmp_path), loop.evaluate

    def asked_meanwhile(*arguments):
        os.kill(os.getpid(), signal.SIGTERM)
        deadline = time.monotonic() + 20
        while not stopping._state.asked.is_set():
            assert time.monotonic() < deadline
            time.sleep(0.01)
        return evaluate(*arguments)

    monkeypatch.setattr(loop, "evaluate", asked_meanwhile)
    assert loop.train(run, workdir) == exits.STOPPED
    assert [line["step"] for line in lines(workdir)] == [1, 2, 3, 4]
    assert journal.read_status(workdir)["state"] == "stopped"
    assert checkpoint_folder.locate(workdir)[1] == 4
    monkeypatch.undo()
    assert loop.train(run, workdir) == 0
    assert numbers(workdir) == numbers(undisturbed)
    jax.tree.map(np.testing.assert_array_equal, params(run, workdir), params(run, undisturbed))


def test_too_many_bad_steps_leave_a_bundle_that_repeats_them(whole, tmp_path, monkeypatch, capsys):
    """Poisoned weights: the error names the bundle, and replaying it names where they are."""
    run, undisturbed = whole
    run = run_lib.open_run(config(run.settings.data.data_dir, max_bad_steps=2))
    workdir, poisoned = epath.Path(tmp_path), "heads.qqp"
    original = run_lib.Run.initial_model

    def initial_model(self):
        model = original(self)
        (path,) = [p for p in model.params if p.startswith(poisoned) and p.endswith("bias")][-1:]
        spoilt = model.params[path].at[0].set(jax.numpy.nan)
        return model._replace(params={**model.params, path: spoilt})

    monkeypatch.setattr(run_lib.Run, "initial_model", initial_model)
    told = r"2 steps in a row .* step 2: the loss .* unit-jax replay .*/bundles/step-2$"
    with pytest.raises(FloatingPointError, match=told) as error:
        loop.train(run, workdir)
    assert exits.of(error.value) == exits.NUMBERS
    assert journal.read_status(workdir)["state"] == "failed"
    capsys.readouterr()
    assert replay.main([str(workdir / "bundles" / "step-2")]) == 0
    out = capsys.readouterr().out
    assert out.startswith("step 2 of qqp; the run said: the loss")
    assert "loss = nan   <- not finite" in out
    (line,) = [line for line in out.splitlines() if line.startswith("parameters that are not")]
    assert poisoned in line
    (tmp_path / "bundles" / "step-2" / "batch.npz").write_bytes(b"PK")
    assert replay.main([str(workdir / "bundles" / "step-2")]) == 1
    assert "the bundle is damaged" in capsys.readouterr().err


def test_a_good_step_replays_with_the_loss_that_the_log_has(whole, tmp_path):
    """The replayed step is the run's: same batch, same dropout, same loss."""
    run, workdir = whole
    model = run.restored_model(workdir / "checkpoints" / "4")
    state = loop.TrainState(*model, optimizer=None)
    error = TooManyBadSteps(1, 5, "qqp", "nothing is", ["a"])
    found = replay.replay(bundle.read(bundle.save(run, state, error, epath.Path(tmp_path))))
    logged = {line["step"]: line for line in lines(workdir) if "train/qqp/loss" in line}[5][
        "train/qqp/loss"
    ]
    np.testing.assert_allclose(found["logs"]["loss"], logged, rtol=1e-4)
    assert found["gradients"] == found["parameters"] == found["examples"] == []


def test_new_checkpoints_are_evaluated_as_they_appear(whole, tmp_path, monkeypatch):
    """With the numbers of the run's own evaluations; a damaged one is passed over; nothing is
    written where the checkpoints lie, and none is evaluated twice."""
    run, workdir = whole
    folder = tmp_path / "run" / "checkpoints"
    shutil.copytree(workdir / "checkpoints" / "4", folder / "4")
    status = tmp_path / "run" / journal.STATUS
    status.write_text('{"state": "training"}')
    turns = []

    def meanwhile(seconds):
        turns.append(seconds)
        shutil.copytree(workdir / "checkpoints" / "6", folder / "6")
        shutil.copytree(workdir / "checkpoints" / "6", folder / "8")
        shutil.rmtree(folder / "8" / "model")
        status.write_text('{"state": "finished"}')

    monkeypatch.setattr(follow.time, "sleep", meanwhile)
    out = epath.Path(tmp_path / "out")
    out.mkdir()
    follow.follow(run, epath.Path(tmp_path / "run"), out, seconds=0.5)
    follow.follow(run, epath.Path(tmp_path / "run"), out)
    found = [json.loads(line) for line in (out / follow.FILE).read_text().splitlines()]
    wanted = [line for line in lines(workdir) if "qqp/accuracy" in line]
    assert [line["step"] for line in found] == [4, 6] and turns == [0.5]
    for line, own in zip(found, wanted, strict=True):
        assert {k: v for k, v in line.items() if k != "time"}.items() <= own.items()
    assert sorted(path.name for path in folder.iterdir()) == ["4", "6", "8"]


def test_a_disk_without_room_is_told_before_training(whole, tmp_path, monkeypatch):
    run, _ = whole
    monkeypatch.setattr(disk, "free", lambda folder: 10_000)
    with pytest.raises(ValueError, match=r"has 0\.0 MB free, 4 checkpoints .* need .* MB more"):
        loop.train(run, epath.Path(tmp_path))
    assert not (tmp_path / "metrics.jsonl").exists()


def test_a_log_that_cannot_be_written_is_one_line_that_names_what_is_safe(tmp_path):
    (tmp_path / "checkpoints" / "4" / "metadata").mkdir(parents=True)
    told = r"written to .* \(\[Errno 28\] No space left.*/checkpoints/4 is safe; .*make room first$"
    with pytest.raises(checkpoints.NotWritten, match=told):
        with session.guarded(epath.Path(tmp_path), settings.TrainSettings()):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    assert journal.read_status(tmp_path)["exit"] == exits.DISK


def test_going_back_and_leaving_data_out(whole, tmp_path, capsys):
    """Steps after the older checkpoint are those of other batches; each stands in the log once."""
    run, undisturbed = whole
    workdir = epath.Path(shutil.copytree(undisturbed, tmp_path / "run"))
    with lock.Lock(workdir):
        assert go_back.main([str(workdir), "4"]) == exits.TAKEN
    assert go_back.main([str(workdir), "3"]) == 1
    assert "has no checkpoint of step 3 (there: 4, 6)" in capsys.readouterr().err
    assert go_back.main([str(workdir), "4"]) == 0
    assert checkpoint_folder.whole_steps(workdir / "checkpoints") == [4]
    assert (workdir / go_back.ASIDE / "6" / "model").exists()
    values = config(run.settings.data.data_dir)
    values["data"]["skip"] = ((5, 5),)
    assert loop.train(run_lib.open_run(values), workdir) == 0
    found, wanted = (
        [line["train/qqp/loss"] for line in lines(folder) if "train/qqp/loss" in line]
        for folder in (workdir, undisturbed)
    )
    assert len(found) == 6 and found[:4] == wanted[:4]
    assert found[4] != wanted[4] and found[5] != wanted[5]


def test_a_signal_starts_a_trace(tmp_path, monkeypatch):
    calls = []
    monkeypatch.setattr(jax.profiler, "start_trace", lambda folder: calls.append(folder))
    monkeypatch.setattr(jax.profiler, "stop_trace", lambda: calls.append("end"))
    assert threading.current_thread() is threading.main_thread()
    with session.Profiler(epath.Path(tmp_path), at=3) as profiler:
        for step in range(1, 20):
            profiler.step(step)
        assert calls == [str(tmp_path / "profile"), "end"]
        os.kill(os.getpid(), signal.SIGUSR1)
        profiler.step(20)
    assert calls == [str(tmp_path / "profile"), "end"] * 2
