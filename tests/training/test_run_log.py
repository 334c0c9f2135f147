"""What a run tells about its programs."""

import dataclasses
import itertools
import json
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath

from configs import unit
from tests.training import test_board
from unit_jax import settings as settings_lib
from unit_jax.runtime import journal
from unit_jax.training import run_log


def settings(**changes) -> settings_lib.TrainSettings:
    train = settings_lib.build(settings_lib.TrainSettings, unit.values()["train"])
    return dataclasses.replace(train, log_every=1, **changes)


def test_programs_compiled_after_warm_up_are_counted(tmp_path):
    log = run_log.RunLog(epath.Path(tmp_path), 0, settings(steps=6))
    step = jax.jit(lambda x: x * 2 + 1)
    inputs = [jnp.zeros(n) for n in (3, 5, 3, 5)]
    other = jnp.zeros(3, jnp.bfloat16)  # its name does not tell that it needs another program
    before = log.compiled.programs
    for n, x in enumerate(inputs, start=1):
        with log.program(("coco", x.shape)):
            step(x)
        log.step(n, "coco", {"loss": jnp.zeros(())}, 1)
    assert log.compiled.programs - before >= 2 and log.recompilations == 0
    with log.program(("coco", other.shape)):
        step(other)
    assert log.recompilations == 1
    with log.program(("vqa2", (3,))):
        jax.jit(lambda x: x - 1)(inputs[0])
    assert log.recompilations == 1  # the first of its name
    log.step(5, "coco", {"loss": jnp.zeros(())}, 1)
    log.close()
    lines = [json.loads(line) for line in (tmp_path / run_log.FILE).read_text().splitlines()]
    assert [line["train/recompilations"] for line in lines] == [0, 0, 0, 0, 1]
    assert lines[-1]["train/compilations"] >= 4


def test_bad_steps_are_counted_and_too_many_in_a_row_end_the_run(tmp_path, capsys):
    log = run_log.RunLog(epath.Path(tmp_path), 0, settings(steps=9, max_bad_steps=3))
    good = {"loss": np.float32(2), "bad_step": np.bool_(False)}
    costs = {"loss": np.float32(np.nan), "bad_step": np.bool_(True), "bad_costs": np.bool_(True)}
    gradient = {"loss": np.float32(1), "bad_step": np.bool_(True)}
    for step, logs in enumerate([good, costs, gradient, good, costs, costs], start=1):
        log.step(step, "coco", logs, 1)
    with pytest.raises(FloatingPointError, match=r"3 steps in a row .* step 7: the loss is not"):
        log.step(7, "vqa2", {"loss": np.float32(np.inf), "bad_step": np.bool_(True)}, 1)
    log.close()
    lines = [json.loads(line) for line in (tmp_path / run_log.FILE).read_text().splitlines()]
    assert [line["train/bad_steps"] for line in lines] == [0, 1, 2, 2, 3, 4]
    assert [line.get("train/coco/loss") for line in lines] == [2, None, None, 2, None, None]
    told = capsys.readouterr()
    assert "step 2 of coco changed nothing: the matching costs" in told.out + told.err
    assert "step 3 of coco changed nothing: the gradient is not finite" in told.out + told.err


def test_what_went_wrong_is_named_with_its_examples(tmp_path, capsys):
    """Task, ids and the first bad term; the error carries them, events hold all of them."""
    path = epath.Path(tmp_path)
    log = run_log.RunLog(
        path,
        0,
        settings(steps=9, max_bad_steps=2),
        lambda task, rows: [f"{task}-{r}" for r in rows],
    )
    bad = {"loss": np.float32(np.nan), "loss_ce": np.float32(1), "loss_giou": np.float32(np.inf)}
    bad["bad_step"] = np.bool_(True)
    log.step(1, "coco", bad, 12, rows=np.arange(12), padding=0.25)
    with pytest.raises(run_log.TooManyBadSteps, match="2 steps in a row") as error:
        log.step(2, "coco", bad, 2, rows=np.arange(2))
    assert (error.value.step, error.value.task) == (2, "coco")
    assert error.value.examples == ["coco-0", "coco-1"]
    assert error.value.cause == "the loss (its term loss_giou) is"
    log.close()
    told = capsys.readouterr()
    wanted = "changed nothing: the loss (its term loss_giou) is not finite; examples coco-0, coco-1"
    assert f"step 1 of coco {wanted}" in told.out + told.err and "coco-7 and 4 more" in (
        told.out + told.err
    )
    events = [json.loads(line) for line in (tmp_path / "events.jsonl").read_text().splitlines()]
    assert [(e["event"], e["step"], len(e["examples"])) for e in events] == [
        ("bad step", 1, 12),
        ("bad step", 2, 2),
    ]
    status = journal.read_status(path)
    assert status["step"] == 1 and status["train/coco/padding"] == 0.25
    assert status["train/host_memory"] > 2**20 and status["run"] == events[0]["run"]
    again = run_log.RunLog(path, 1, settings(steps=9))
    again.step(2, "coco", {"loss": np.float32(1)}, 1)
    again.close()
    lines = [json.loads(line) for line in (tmp_path / run_log.FILE).read_text().splitlines()]
    assert lines[-1]["train/bad_steps"] == 1  # those before the resume count on


def test_spikes_are_told_with_their_examples(tmp_path, capsys):
    log = run_log.RunLog(epath.Path(tmp_path), 0, settings(steps=99))
    rng = np.random.default_rng(0)
    for step in range(1, 61):
        loss = np.float32(rng.normal(2, 0.1) if step != 50 else 9)
        log.step(step, "coco", {"loss": loss}, 1, rows=[step])
    log.step(61, "vqa2", {"loss": np.float32(50)}, 1, rows=[0])  # the first of a task is none
    log.close()
    events = [json.loads(line) for line in (tmp_path / "events.jsonl").read_text().splitlines()]
    assert [(e["event"], e["step"], e["examples"]) for e in events] == [("loss spike", 50, ["50"])]
    assert 1.5 < events[0]["usual"] < 2.5
    told = capsys.readouterr()
    assert "step 50 of coco: loss 9, usually" in told.out + told.err


def test_tensorboard_holds_what_the_lines_hold_also_after_a_kill(tmp_path):
    first = run_log.RunLog(epath.Path(tmp_path), 0, settings(steps=9))
    for step in range(1, 5):
        first.step(step, "coco", {"loss": np.float32(step)}, 1)
    path = tmp_path / run_log.FILE
    assert test_board.read(tmp_path / "tensorboard") == test_board.wanted(parsed(path))
    # Not closed, as a killed process leaves it; a line is half written.
    path.write_text(path.read_text() + '{"step": 5, "train')
    again = run_log.RunLog(epath.Path(tmp_path), 2, settings(steps=9))
    again.step(3, "coco", {"loss": np.float32(30)}, 1)
    assert [line["step"] for line in parsed(path)] == [1, 2, 3]
    assert test_board.read(tmp_path / "tensorboard") == test_board.wanted(parsed(path))
    again.close()
    first.close()


def parsed(path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_logs_of_a_remote_folder_are_copied_there_and_go_on(tmp_path, monkeypatch):
    monkeypatch.setattr(run_log.paths, "is_remote", lambda path: True)
    remote = epath.Path(tmp_path / "bucket")
    monkeypatch.setattr(time, "time", itertools.count(1e9).__next__)  # file names hold seconds
    for start, end in ((0, 2), (1, 3)):  # the second session goes on from step 1
        log = run_log.RunLog(remote, start, settings(steps=3))
        for step in range(start + 1, end + 1):
            log.step(step, "coco", {"loss": jnp.full((), step)}, 1)
            assert not start or len((remote / run_log.FILE).read_text().splitlines()) == 2
        log.close()
    lines = [json.loads(line) for line in (remote / run_log.FILE).read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2, 3]
    assert len(list((remote / "tensorboard").iterdir())) == 1
