"""Command line: `python -m unit_jax.main --config=configs/unit.py --workdir=DIR`."""

import os
import sys

from absl import app, flags, logging

from unit_jax import config_files
from unit_jax import settings as settings_lib

CONFIG = flags.DEFINE_string(
    "config",
    None,
    "Settings: FILE.py[:ARGUMENT] with get_config(), e.g. configs/unit.py:separate_decoders. "
    "--config.KEY=VALUE changes one, e.g. --config.train.steps=1000.",
)
CHANGES: dict[str, str] = {}  # by --config.KEY=VALUE
WORKDIR = flags.DEFINE_string("workdir", None, "Folder of checkpoints, logs and reports.")
MODE = flags.DEFINE_enum(
    "mode",
    "train",
    ["train", "eval", "predict"],
    "train (continues from the newest checkpoint), eval, or predict (files and a picture).",
)
CHECKPOINT = flags.DEFINE_string(
    "checkpoint",
    None,
    "eval, predict: a working folder, a step's folder, best (of --workdir; FOLDER/best: of another "
    "one), demo, or a .safetensors file that `unit-jax convert` wrote; default --workdir.",
)
SPLIT = flags.DEFINE_string("split", "val", "eval, predict: which splits, with commas.")
DRY_RUN = flags.DEFINE_bool(
    "dry_run", False, "train: shows what would be trained, and about how long, and ends."
)
FOLLOW = flags.DEFINE_bool(
    "follow", False, "eval: each new checkpoint of --checkpoint as it appears, until its run ends."
)
VERIFY = flags.DEFINE_bool(
    "verify_data", False, "Compare all prepared files with their digests before anything else."
)
TASKS = flags.DEFINE_string("tasks", "", "eval, predict: which tasks, with commas; default all.")


def main(argv: list[str]) -> int:
    """Runs what the flags say; returns the exit code."""
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments: {' '.join(argv[1:])}")
    logging.set_verbosity(logging.WARNING)  # libraries' notes are not for the terminal
    try:
        settings = config_files.read(CONFIG.value or "", CHANGES)
        if TASKS.value and MODE.value == "train":
            raise ValueError(
                f"--tasks={TASKS.value}: training uses the config's tasks; choose them there, "
                f"like --config=configs/unit.py:{TASKS.value}"
            )
        settings = settings_lib.only(settings, TASKS.value)
    except ValueError as error:
        given = [f"--config={CONFIG.value}", *(f"--config.{k}={v}" for k, v in CHANGES.items())]
        named = "" if str(error).startswith("--config") else f"{' '.join(given)}: "
        print(f"error: {named}{error}", file=sys.stderr)
        return 1
    # Imported late: `--help` and mistakes should not wait for JAX.
    from unit_jax.runtime import exits, stopping

    with stopping.handled("before anything was done"):
        try:
            return _run(settings)
        except (ValueError, FloatingPointError, OSError) as error:
            if isinstance(error, OSError) and not exits.is_full(error):
                raise
            print(f"error: {error}", file=sys.stderr)
            return exits.of(error)


def _run(settings: settings_lib.Settings) -> int:
    from unit_jax import paths
    from unit_jax import run as run_lib
    from unit_jax.data import prepared
    from unit_jax.evaluation import closing, follow, submissions
    from unit_jax.runtime import checkpoint_folder, distributed
    from unit_jax.training import compilation, dry_run, loop

    training = MODE.value == "train"
    if training and CHECKPOINT.value:
        raise ValueError(
            f"--checkpoint={CHECKPOINT.value}: training goes on from --workdir; to start from "
            "another checkpoint's weights use --config.init_from.model"
        )
    workdir = paths.from_flag("--workdir", WORKDIR.value or "")
    checkpoint = paths.from_flag("--checkpoint", CHECKPOINT.value or WORKDIR.value or "")
    distributed.initialize(settings.distributed)
    with distributed.together():
        with paths.reaching("--workdir" if training else "--checkpoint", checkpoint):
            fresh = training and not checkpoint_folder.exist(workdir)
            if not training and not FOLLOW.value:
                checkpoint = run_lib.located(checkpoint, workdir, settings)
        run = run_lib.open_run(settings, needs_initial_weights=fresh)
        if VERIFY.value:
            print(f"{prepared.verify(run.data)} files of prepared data are as they were made")
    distributed.check_workdir(workdir)
    command = {"--mode": MODE.value, "--checkpoint": str(checkpoint), "--split": SPLIT.value}
    command["--tasks"] = TASKS.value
    distributed.check_agreement({**command, **run.must_agree()})
    compilation.keep_programs(workdir / "compilation_cache")
    with distributed.LastWords(workdir / checkpoint_folder.FOLDER) as last_words:
        if training and DRY_RUN.value:
            dry_run.dry_run(run, workdir)
        elif training:
            return loop.train(run, workdir, last_words)
        elif MODE.value == "eval" and FOLLOW.value:
            follow.follow(run, checkpoint, workdir, SPLIT.value)
        elif MODE.value == "eval":
            closing.evaluate_checkpoint(run, checkpoint, workdir, SPLIT.value)
        else:
            submissions.predict_checkpoint(run, checkpoint, workdir, SPLIT.value)
    return 0


def _parse(argv: list[str]) -> list[str]:
    """Reads the flags; those of single settings are kept for the config."""
    argv = flags.FLAGS.read_flags_from_files(argv, force_gnu=False)  # --flagfile
    argv, changes = config_files.split_flags(argv)
    CHANGES.update(changes)
    return app.parse_flags_with_usage(argv)


def run() -> None:
    """The console command `unit-jax`."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # XLA's neither
    flags.mark_flags_as_required(["config", "workdir"])
    app.run(main, flags_parser=_parse)


if __name__ == "__main__":
    run()
