"""Says whether a file of predictions can be handed in, and what is wrong with it if not.

unit-jax validate FILE --task vqa2 --split test --data_dir data

The same check follows every `--mode=predict`. With --data_dir the file is compared with the
prepared split: every example once, known categories and labels. Without it only the form is
checked.
"""

import argparse
import sys

from etils import epath

from unit_jax import tasks
from unit_jax.data.prepared import PreparedData
from unit_jax.evaluation import formats


def main(argv: list[str] | None = None) -> int:
    """Runs the command; returns 0 for a file that can be handed in."""
    parser = argparse.ArgumentParser(
        prog="unit-jax validate",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("file", help="as --mode=predict writes them")
    add("--task", required=True, help="such as vqa2")
    add("--split", default="test", help="val, test, test_matched (%(default)s)")
    add("--data_dir", default="", help="prepared data to compare with")
    add(
        "--format",
        choices=[name for name in formats.FORMATS if name],
        help="of a task of your own; those of the published ones are known",
    )
    options = parser.parse_args(argv)
    published = tasks.PUBLISHED.get(options.task)
    try:
        kind = options.format or (published.submission if published else "")
        expected = None
        if options.data_dir:
            data = PreparedData(options.data_dir, [options.task])
            expected = formats.expected_of(data, options.task, options.split)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    problems = formats.FORMATS[kind].problems(epath.Path(options.file), expected)
    for problem in problems:
        print(f"{options.file}: {problem}")
    if not problems:
        against = f"for the {options.split} split of {options.task}"
        without = "" if expected else " in form (its ids were not compared: give --data_dir)"
        print(f"{options.file}: valid {against}{without}")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
