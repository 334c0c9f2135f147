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
