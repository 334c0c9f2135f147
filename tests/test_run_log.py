"""What a run tells about its programs."""

import json

import jax
import jax.numpy as jnp
from etils import epath

from unit_jax import run_log


def test_programs_compiled_after_warm_up_are_counted(tmp_path):
    log = run_log.RunLog(epath.Path(tmp_path), start=0, steps=6, every=1)
    step = jax.jit(lambda x: x * 2 + 1)
    inputs = [jnp.zeros(n) for n in (3, 5, 3, 5)]
    other = jnp.zeros(3, jnp.bfloat16)  # its name does not tell that it needs another program
    before = log.compilations
    for n, x in enumerate(inputs, start=1):
        with log.program(("coco", x.shape)):
            step(x)
        log.step(n, "coco", {"loss": jnp.zeros(())}, 1)
    assert log.compilations - before >= 2 and log.recompilations == 0
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


def test_logs_of_a_remote_folder_are_copied_there_and_go_on(tmp_path, monkeypatch):
    monkeypatch.setattr(run_log, "_is_remote", lambda path: True)
    remote = epath.Path(tmp_path / "bucket")
    for start, end in ((0, 2), (1, 3)):  # the second session goes on from step 1
        log = run_log.RunLog(remote, start=start, steps=3, every=1)
        for step in range(start + 1, end + 1):
            log.step(step, "coco", {"loss": jnp.full((), step)}, 1)
            assert not start or len((remote / run_log.FILE).read_text().splitlines()) == 2
        log.close()
    lines = [json.loads(line) for line in (remote / run_log.FILE).read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2, 3]
    assert len(list((remote / "tensorboard").iterdir())) == 2
