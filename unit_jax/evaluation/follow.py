"""`--mode=eval --follow`: evaluates each new checkpoint of a run as it appears, beside training.

Writes a line a checkpoint to `<workdir>/followed.jsonl`: step, time, metrics. A checkpoint that is
there already is not evaluated again. Only reads where the checkpoints lie.
"""

import json
import time

import numpy as np
from etils import epath

from unit_jax import run as run_lib
from unit_jax.evaluation.closing import select, tell_left_out
from unit_jax.evaluation.evaluate import evaluate
from unit_jax.evaluation.step import Predictor
from unit_jax.runtime import checkpoint_folder, checkpoints, distributed, journal

FILE = "followed.jsonl"
_ENDED = ("finished", "failed", "stopped")  # states of the followed run's status


def follow(
    run: run_lib.Run,
    followed: epath.PathLike,
    workdir: epath.Path,
    split: str = "val",
    seconds: float = 10.0,
) -> None:
    """Returns when the followed run has ended and all its checkpoints are evaluated.

    A checkpoint that is removed or damaged before it was read is passed over with a line.

    Args:
      followed: working folder of the run that trains; it may not exist yet.
      workdir: gets the lines; may be the same folder.
      seconds: between two looks.
    """
    followed, done = epath.Path(followed), _done(workdir)
    (selection,) = select(run, split, labelled=True).values()
    tell_left_out(split, selection.left_out)
    predictor = None
    while True:
        # Looked up first: a run that ends in between leaves its last checkpoint for this turn.
        ended = journal.read_status(followed).get("state") in _ENDED
        there = checkpoint_folder.whole_steps(followed / checkpoint_folder.FOLDER)
        new = [step for step in there if step not in done]
        # One process says what comes next, as another one may see a checkpoint later.
        step = int(distributed.gather_bytes(np.asarray(min(new, default=-1), np.int64))[0])
        if step < 0:
            if distributed.any_process(ended):
                return
            time.sleep(seconds)
            continue
        done.add(step)
        try:
            model = run.restored_model(followed / checkpoint_folder.FOLDER / str(step))
        except checkpoints.Damaged as error:
            if distributed.is_first():
                print(f"step {step} is passed over: {error}")
            continue
        predictor = predictor.of(model) if predictor else Predictor.of_run(run, model)
        metrics = evaluate(run, predictor, split, selection.tasks).metrics
        if distributed.is_first():
            known = {name: float(value) for name, value in metrics.items() if np.isfinite(value)}
            line = {"step": step, "time": time.time(), **dict.fromkeys(metrics), **known}
            with (workdir / FILE).open("a") as file:
                file.write(json.dumps(line) + "\n")
            told = " ".join(f"{name} {value:.3f}" for name, value in known.items())
            print(f"step {step}: {told}", flush=True)


def _done(workdir: epath.Path) -> set[int]:
    path, done = workdir / FILE, set()
    for line in path.read_text().splitlines() if path.exists() else []:
        try:
            done.add(int(json.loads(line)["step"]))
        except (ValueError, KeyError, TypeError):  # cut off by a crash
            continue
    return done
