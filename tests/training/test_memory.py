"""A long run keeps its memory, and digests cost it little. Slow: 2,000 steps and 20 evaluations."""

import json

import numpy as np
import pytest

from tests import chaos, tiny

STEPS, MEMORY = 2000, "train/host_memory"
GROWTH = 40 * 2**20  # bytes that the last quarter may have more than the second; a heap is no line


@pytest.mark.slow
def test_memory_is_flat_over_steps_and_evaluations_and_digests_cost_little(tmp_path):
    data_dir = tiny.make_data(tmp_path, chaos.TASKS)
    flags = dict(steps=STEPS, eval_every=100, checkpoint_every=200, log_every=10)
    workdir, log = tmp_path / "run", tmp_path / "log.txt"
    run = chaos.start(
        data_dir, workdir, log, *(f"--config.train.{name}={n}" for name, n in flags.items())
    )
    try:
        assert run.wait() == 0, log.read_text()[-3000:]
    except BaseException:
        run.kill()
        raise
    lines, events = (
        [json.loads(line) for line in (workdir / name).read_text().splitlines()]
        for name in ("metrics.jsonl", "events.jsonl")
    )
    assert sum("coco/AP" in line for line in lines) == 20
    memory = np.array([line[MEMORY] for line in lines if MEMORY in line])
    quarter = len(memory) // 4
    middle, end = np.median(memory[quarter : 2 * quarter]), np.median(memory[-quarter:])
    print(f"{middle / 2**20:.0f} MiB in the second quarter, {end / 2**20:.0f} in the last")
    assert end - middle < GROWTH
    spent = sum(event.get("digest_seconds", 0) for event in events)
    share = spent / (events[-1]["time"] - events[0]["time"])
    print(f"digests: {100 * share:.2f} % of the run")
    assert 0 < share < 0.02
