"""A helper process that prints a line when the process that started it is gone.

`distributed.LastWords` starts it and writes JSON lines to its standard input: what there would be
to say, or null for nothing. It prints the last of them when the pipe closes. Python's standard
library is all it needs, so it starts in milliseconds.
"""

import json
import os
import sys


def main() -> None:
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
        steps = [int(name) for name in os.listdir(checkpoints) if name.isdigit()]
        newest = f"{checkpoints}/{max(steps)}" if steps else "none"
    except OSError:  # no folder yet, or not of this file system
        newest = f"the newest in {checkpoints}" if "://" in checkpoints else "none"
    return (
        f"{process} stops {done}: {cause}; newest checkpoint: {newest}; to go on from it, start "
        "all processes again with the same commands"
    )


if __name__ == "__main__":
    main()
