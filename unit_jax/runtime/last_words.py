"""A helper process that prints a line when the process that started it is gone.

`distributed.LastWords` starts it and writes JSON lines to its standard input: what there would be
to say, or null for nothing. It prints the last of them when the pipe closes. Python's standard
library is all it needs, so it starts in milliseconds; only a bucket takes more, and only then.
"""

import json
import os
import sys


def main() -> None:
    """Reads lines until the process that writes them ends, and prints the last one."""
    said = None
    for line in sys.stdin:
        try:
            said = json.loads(line)
        except ValueError:  # cut off in the middle
            continue
    if said:
        # The process may have left a progress bar, and no end of its line.
        print("\n" + compose(**said), file=sys.stderr)


def compose(process: str, step: int | None, cause: str, checkpoints: str) -> str:
    """The line. The newest checkpoint is looked up now: it may have been finished just before."""
    done = "before its first step" if step is None else f"after step {step}"
    try:
        steps = (_in_bucket if "://" in checkpoints else _in_folder)(checkpoints)
        newest = f"{checkpoints}/{max(steps)}" if steps else "none"
    except Exception as error:  # clouds raise many kinds, and the line must be said
        newest = f"the newest in {checkpoints} (now out of reach: {type(error).__name__})"
    return (
        f"{process} stops {done}: {cause}; newest checkpoint: {newest}; to go on from it, start "
        "all processes again with the same commands"
    )


def _in_folder(checkpoints: str) -> list[int]:
    if not os.path.isdir(checkpoints):
        return []  # none was saved yet
    return [int(name) for name in os.listdir(checkpoints) if name.isdigit()]


def _in_bucket(checkpoints: str) -> list[int]:
    from etils import epath

    steps = [path for path in epath.Path(checkpoints).iterdir() if path.name.isdigit()]
    return [int(path.name) for path in steps if (path / "commit_success.txt").exists()]


if __name__ == "__main__":
    main()
