"""Command line: `python -m unit_jax.main --config=configs/unit.py --workdir=DIR`."""

import os
import sys

from absl import app, flags
from etils import epath
from ml_collections import config_flags

CONFIG = config_flags.DEFINE_config_file(
    "config", None, "Settings: a file with get_config(), e.g. configs/unit.py[:variant]."
)
WORKDIR = flags.DEFINE_string("workdir", None, "Folder of checkpoints, logs and reports.")
MODE = flags.DEFINE_enum(
    "mode",
    "train",
    ["train", "eval", "predict"],
    "train (continues from the newest checkpoint), eval, or predict (files and a picture).",
)
CHECKPOINT = flags.DEFINE_string(
    "checkpoint", None, "eval, predict: a working folder or a step's folder; default --workdir."
)
SPLIT = flags.DEFINE_string("split", "val", "eval, predict: which split.")


def main(argv: list[str]) -> int:
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments: {' '.join(argv[1:])}")
    # Imported late: JAX starts its backend, and `--help` should not wait for it.
    from unit_jax import checkpoints, evaluate, predict, setup, train

    try:
        workdir = epath.Path(WORKDIR.value)
        fresh = MODE.value == "train" and not checkpoints.exist(workdir)
        run = setup.open_run(CONFIG.value, needs_initial_weights=fresh)
        workdir.mkdir(parents=True, exist_ok=True)
        if MODE.value == "train":
            return train.train(run, workdir)
        checkpoint = CHECKPOINT.value or workdir
        if MODE.value == "eval":
            evaluate.evaluate_checkpoint(run, checkpoint, workdir, SPLIT.value)
        else:
            predict.predict_checkpoint(run, checkpoint, workdir, SPLIT.value)
    except (ValueError, FloatingPointError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def run() -> None:
    """The console command `unit-jax`."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # XLA's notes are not for the terminal
    flags.mark_flags_as_required(["config", "workdir"])
    app.run(main)


if __name__ == "__main__":
    run()
