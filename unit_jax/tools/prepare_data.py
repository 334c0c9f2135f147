"""Prepares data sets for training: files in, checked ArrayRecord files out.

unit-jax prepare --source DIR --data_dir DIR [--datasets coco,vqa2]
unit-jax prepare --config FILE.py [--data_dir DIR] [--summary OUT.json]
"""

import argparse
import json
import pathlib
import sys

import rich
import rich.table

from unit_jax import config_files
from unit_jax.data import prepare
from unit_jax.data.own import prepare as own
from unit_jax.data.own import report
from unit_jax.data.sources import base
from unit_jax.data.writer import DEFAULT_VOCABULARY


def main(arguments: list[str] | None = None) -> int:
    """Runs the command; returns its exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__.split("\n\n")[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add("--source", default="", help="folder with the official files, a folder per data set")
    add("--config", default="", help="FILE.py[:ARGUMENT] whose data.own is prepared")
    add("--data_dir", default="", help="folder for the prepared data; empty: the config's")
    add("--summary", default="", help="with --config: JSON file of counts and faults by split")
    add(
        "--datasets",
        default=",".join(prepare.SOURCES),
        help="which of the source, with commas; module:Class for a record source of your own",
    )
    add(
        "--vocabulary",
        default="",
        help="vocab.txt, folder or hub name; empty: the source's vocab.txt, else "
        + DEFAULT_VOCABULARY,
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
    try:
        if options.config:
            data_dir = prepare_own(
                options.config, options.data_dir, options.summary, options.overwrite
            )
            if not options.source:
                return 0
            options.data_dir = data_dir
        elif not options.source or not options.data_dir or options.summary:
            raise ValueError("give --config FILE.py, or --source DIR and --data_dir DIR")
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
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


def prepare_own(config: str, data_dir: str, summary: str, overwrite: bool) -> str:
    """Prepares what a config declares in data.own; returns the folder.

    Raises:
      ValueError: the config or the data have problems.
    """
    settings = config_files.read(config, {"data.data_dir": data_dir} if data_dir else {})
    if not settings.data.own:
        raise ValueError(
            f"--config={config}: it declares no data set in data.own (docs/own_data.md)"
        )
    summaries = own.prepare(
        settings.data.own,
        settings.data.data_dir,
        settings.data.vocabulary,
        also_vocabularies=[settings.init_from.text_encoder],
        overwrite=overwrite,
    )
    own.show(summaries)
    ready = [row.name for row in summaries if not row.fresh]
    if ready:
        print(f"prepared before, and its files are the same: {', '.join(ready)}")
    print(f"{settings.data.data_dir}/{report.FILE} shows them")
    if summary:
        content = json.dumps({row.name: row.splits for row in summaries}, indent=1)
        pathlib.Path(summary).write_text(content + "\n")
    return settings.data.data_dir


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
