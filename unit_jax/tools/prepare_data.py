"""Prepares data sets for training: official files in, checked ArrayRecord files out.

python tools/prepare_data.py --source DIR --data_dir DIR [--datasets coco,vqa2]
"""

import argparse
import sys

import rich
import rich.table

from unit_jax.data import prepare
from unit_jax.data.sources import base


def main(arguments: list[str] | None = None) -> int:
    """Runs the command; returns its exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__.split("\n\n")[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add("--source", required=True, help="folder with the official files, a folder per data set")
    add("--data_dir", required=True, help="folder for the prepared data")
    add(
        "--datasets",
        default=",".join(prepare.SOURCES),
        help="which, with commas; module:Class for a record source of your own",
    )
    add(
        "--vocabulary",
        default="",
        help="vocab.txt, folder or hub name; empty: the source's vocab.txt, else "
        + prepare.DEFAULT_VOCABULARY,
    )
    add("--overwrite", action="store_true", help="prepare again what is finished")
    add("--max_problems", type=int, default=1000, help="faults in a data set that make it fail")
    add(
        "--allow_partial",
        action="store_true",
        help="prepare also files that list fewer (or more) examples than were published",
    )
    add("--min_answer_count", type=int, default=9, help="for an answer list built from VQAv2")
    add("--max_answers", type=int, default=3129, help="of such a list, unknown included")
    options = parser.parse_args(arguments)
    settings = prepare.Settings(
        vocabulary=options.vocabulary,
        overwrite=options.overwrite,
        max_problems=options.max_problems,
        allow_partial=options.allow_partial,
        options=base.Options(options.min_answer_count, options.max_answers),
    )
    names = [name.strip() for name in options.datasets.split(",") if name.strip()]
    try:
        rows = prepare.prepare(options.source, options.data_dir, names, settings)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    rich.print(table(rows, options.data_dir))
    for row in rows:
        for note in row.notes:
            print(f"{row.name}: {note}")
        if row.partial:
            print(f"{row.name} is only a part of what was published: {'; '.join(row.partial)}")
    return 0


def table(rows: list[prepare.Summary], data_dir: str) -> rich.table.Table:
    """What lies in the data folder now, a line per data set."""
    result = rich.table.Table(title=f"prepared data in {data_dir}")
    names = ["data set", "examples", "images", "labels", "disk", "faults"]
    if not all(row.fresh for row in rows):
        names.append("state")
    for name in names:
        right = name in ("labels", "disk")
        result.add_column(name, justify="right" if right else "left", overflow="fold")
    for row in rows:
        labels = f"{row.labels:,}" if row.labels else ""
        if row.attributes:
            labels += f" + {row.attributes:,} attributes"
        cells = [
            row.name,
            ", ".join(f"{split} {count:,}" for split, count in row.counts.items()),
            row.images.removeprefix("images_"),
            labels,
            _size(row.size),
            ", ".join(f"{count:,} x {kind}" for kind, count in row.problems.items()) or "none",
            "prepared" if row.fresh else "finished before",
        ]
        result.add_row(*cells[: len(names)])
    return result


def _size(count: float) -> str:
    for unit in ("B", "KB", "MB"):
        if count < 1000:
            return f"{count:,.0f} {unit}"
        count /= 1000
    return f"{count:,.1f} GB"


if __name__ == "__main__":
    sys.exit(main())
