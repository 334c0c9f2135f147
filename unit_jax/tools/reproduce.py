"""The paper's tables: lists the rows, runs them, and prints measured beside published figures.

unit-jax reproduce --list
unit-jax reproduce --row all_8_shared_coco_init --runs runs/paper --data_dir data
unit-jax reproduce --report runs/paper

A row's working folder is RUNS/NAME. What it starts from is run before, and a run that was cut off
goes on where it was. Rows share compiled programs, in RUNS/compilation_cache.
`--demo` runs rows at the demo's size, on data that it makes in RUNS/data; without `--row` those of
the paper's table of all eight data sets. Their figures are compared with each other only.
`--row all` is every row, the ablations and pairs of data sets among them.
"""

import argparse
import os
import pathlib
import subprocess
import sys
import time
from collections.abc import Sequence

from etils import epath
from rich.console import Console
from rich.table import Table

from unit_jax.data import prepare
from unit_jax.demo import world
from unit_jax.tools.paper import measured
from unit_jax.tools.paper.rows import ALL, HEADLINES, ROWS, Row, with_needs

# The paper's table of all eight: each task alone, all together, together and then alone.
DEMO = (*ALL, "all_8_separate", "all_8_shared", "all_8_separate_coco_init",
        "all_8_shared_coco_init", *(f"finetuned_{task}" for task in ALL))  # fmt: skip


def main(argv: list[str] | None = None) -> int:
    """Runs the command; returns its exit status."""
    parser = argparse.ArgumentParser(
        prog="unit-jax reproduce",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--list", action="store_true", help="print all rows")
    add(
        "--row",
        action="append",
        default=[],
        metavar="NAME",
        help="run it (or: all); may be repeated",
    )
    add("--runs", default="", help="folder of working folders (default: runs/paper, runs/rows)")
    add("--data_dir", default="data", help="prepared data (%(default)s)")
    add("--demo", action="store_true", help="at the demo's size")
    add("--scale", type=float, default=1.0, help="--demo: amount of data (%(default)s)")
    add("--report", default="", metavar="RUNS", help="print what is found there, and draw it")
    add("--dry_run", action="store_true", help="print the commands of --row, run nothing")
    add("changes", nargs="*", help="settings of all rows, such as --config.train.batch_size=32")
    options, others = parser.parse_known_args(argv)
    changes = [*options.changes, *others]
    wrong = [word for word in changes if not word.startswith("--config.")]
    try:
        if wrong:
            raise ValueError(f"{' '.join(wrong)}: unknown; settings are --config.KEY=VALUE")
        if options.report:
            return report(epath.Path(options.report), options.demo)
        wanted = ROWS if "all" in options.row else options.row
        rows = with_needs(wanted or (DEMO if options.demo else ()))
        if options.list or not rows:
            _print(listing())
            return 0
        runs = epath.Path(options.runs or ("runs/rows" if options.demo else "runs/paper"))
        if options.demo and not options.dry_run:
            make_demo_data(runs, options.scale)
        cache = {"JAX_COMPILATION_CACHE_DIR": str(runs / "compilation_cache")}
        for row in rows:
            words = command(row, runs, options.data_dir, options.demo, changes)
            print(f"{row.name}: {' '.join(words)}", flush=True)
            if options.dry_run:
                continue
            start = time.monotonic()
            status = subprocess.run([sys.executable, *words[1:]], env=cache | os.environ).returncode
            if status:
                print(f"{row.name} ended with status {status}; the same command goes on with it")
                return status
            print(f"{row.name}: {(time.monotonic() - start) / 60:.1f} minutes", flush=True)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0 if options.dry_run else report(runs, options.demo)


def _print(table: Table) -> None:
    """On the terminal as wide as that is; in a file or a pipe nothing is cut."""
    Console(width=None if sys.stdout.isatty() else 200).print(table)


def command(
    row: Row, runs: epath.Path, data_dir: str, demo: bool = False, changes: Sequence[str] = ()
) -> list[str]:
    """The command that trains a row, or goes on with it."""
    argument = row.demo_argument if demo else row.argument
    config = f"configs/{'demo' if demo else 'unit'}.py{':' if argument else ''}{argument}"
    words = ["python", "-m", "unit_jax.main", f"--config={config}", f"--workdir={runs / row.name}"]
    settings: dict[str, object] = {"data.data_dir": runs / "data" if demo else data_dir}
    if demo:
        steps = row.demo_steps
        settings |= {
            "train.steps": steps,
            "train.eval_every": steps,
            "optimizer.warmup_steps": steps // 8,
            "report.blind_check": False,
            **row.demo,
        }
    if row.needs:
        settings["init_from.model"] = runs / row.needs
    return [*words, *(f"--config.{key}={value}" for key, value in settings.items()), *changes]


def make_demo_data(runs: epath.Path, scale: float) -> None:
    """Generates and prepares the demo world under `runs`, where it is not there yet."""
    world.generate(pathlib.Path(runs / "source"), world.DemoSettings(scale=scale))
    prepare.prepare(runs / "source", runs / "data")


def listing() -> Table:
    """All rows: what they learn, from what, how long, and what was published."""
    result = Table(title="Rows of the paper's tables, and the reference's configurations")
    for name in ("row", "no.", "configs/unit.py:", "updates", "optimizer", "starts from",
                 "parameters", "published"):  # fmt: skip
        right = name in ("no.", "updates", "parameters")
        result.add_column(name, justify="right" if right else "left", overflow="fold")
    for row in with_needs(measured.ROWS):
        result.add_row(
            row.name, str(row.configuration or ""), row.argument or "(all 8)", f"{row.steps:,}",
            row.optimizer.replace("adam_w_skip_zero_grad", "skip zero"),
            row.needs or "DETR, BERT", f"{row.parameters:,}", _published(row),
        )  # fmt: skip
    result.caption = (
        "no.: of the reference's thirteen configurations. Published: percent on validation data; "
        "ref: the reference's models; mem: the paper's, from memory; "
        + ", ".join(f"{task} {HEADLINES[task]}" for task in ALL[:4])
        + ", the others accuracy, in this order: " + ", ".join(ALL)
    )  # fmt: skip
    return result


def _published(row: Row) -> str:
    parts = []
    for what, figures in (("ref", row.reference), ("mem", row.paper)):
        if figures:
            parts.append(f"{what} " + " / ".join(f"{figures[task]:g}" for task in row.tasks))
    return "; ".join(parts) or "–"


def report(runs: epath.Path, demo: bool) -> int:
    """Prints the table of a folder of runs and draws it there."""
    measured_runs, unknown = measured.collect(runs)
    # Runs of the demo lie beside the demo's data, and nothing was published about those.
    published = not (demo or (runs / "source" / world.DONE).exists())
    for name in unknown:
        print(f"{runs / name}: left out, neither its name nor its settings are a row's")
    if not measured_runs:
        print(f"error: {runs}: no finished run of a row ({measured.REPORT}) in it", file=sys.stderr)
        return 1
    _print(measured.table(measured_runs, published))
    (runs / "table.md").write_text(measured.markdown(measured_runs, published))
    measured.draw(measured_runs, runs / "table.png", published)
    print(f"The same: {runs}/table.md and table.png")
    return 0


if __name__ == "__main__":
    sys.exit(main())
