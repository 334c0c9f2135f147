"""Has a run go on from an older checkpoint: `unit-jax go-back WORKDIR STEP`.

The newer ones are kept aside in WORKDIR/left_checkpoints; the same training command then goes on
from STEP. To leave out data that hurt, add --config.data.skip="((FIRST, LAST),)" to the command,
from then on.
"""

import argparse
import sys

from etils import epath

from unit_jax import paths
from unit_jax.runtime import checkpoint_folder, lock

ASIDE = "left_checkpoints"


def go_back(workdir: epath.Path, step: int) -> list[int]:
    """Moves the checkpoints after `step` aside.

    Returns:
      Their steps.

    Raises:
      ValueError: there is no checkpoint of that step.
      lock.Taken: a run is at work in the folder.
    """
    folder = workdir / checkpoint_folder.FOLDER
    steps = checkpoint_folder.whole_steps(folder)
    if step not in steps:
        there = ", ".join(map(str, steps)) or "none"
        raise ValueError(f"{folder} has no checkpoint of step {step} (there: {there})")
    newer = [other for other in steps if other > step]
    with lock.Lock(workdir):
        for other in newer:
            aside = workdir / ASIDE / str(other)
            aside.parent.mkdir(exist_ok=True)
            while aside.exists():
                aside = aside.with_name(aside.name + "-again")
            (folder / str(other)).rename(aside)
    return newer


def main(argv: list[str] | None = None) -> int:
    """The command line; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="unit-jax go-back",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("workdir", help="a run's working folder")
    parser.add_argument("step", type=int, help="a step with a checkpoint")
    arguments = parser.parse_args(argv)
    try:
        paths.check_local("WORKDIR", arguments.workdir)
        moved = go_back(epath.Path(arguments.workdir), arguments.step)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return getattr(error, "exit_code", 1)
    told = ", ".join(map(str, moved)) or "none"
    print(f"checkpoints moved to {arguments.workdir}/{ASIDE}: {told}")
    print(f"the same training command goes on from step {arguments.step}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
