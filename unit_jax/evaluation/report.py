"""The table of all tasks: value, baseline and, where something was published about these data and
this model, the published figure."""

import dataclasses
import json
import math
from collections.abc import Sequence

from etils import epath
from rich.console import Console
from rich.table import Table

from unit_jax import paths

FILE = "report.json"
COLUMNS = ("task", "metric", "value", "baseline", "paper")


@dataclasses.dataclass(frozen=True)
class Row:
    """One line; numbers in [0, 1], None or NaN = there is none.

    Attributes:
      task, metric: names; a task's headline metric comes first.
      value: of the model.
      baseline: the majority answer's, for detection an untrained model's.
      paper: of the published model on the same data; None = nothing was published.
    """

    task: str
    metric: str
    value: float
    baseline: float | None
    paper: float | None


def file_name(split: str, suffix: str = "json", stem: str = "report") -> str:
    """The file name of a split's report; that of validation has no split in it."""
    return f"{stem}.{suffix}" if split == "val" else f"{stem}-{split}.{suffix}"


def write(rows: Sequence[Row], workdir: epath.Path, split: str = "val") -> None:
    """Writes report.json (a list of objects with COLUMNS as keys), and report.md without the column
    `paper` if it is empty."""
    records = [
        {key: _finite(value) for key, value in dataclasses.asdict(row).items()} for row in rows
    ]
    columns = _columns(records)
    lines = ["| " + " | ".join(columns) + " |", "|---|---|" + "---:|" * (len(columns) - 2)]
    lines += ["| " + " | ".join(_cell(record[key]) for key in columns) + " |" for record in records]
    paths.replace_text(workdir / file_name(split, "md"), "\n".join(lines) + "\n")
    paths.replace_text(workdir / file_name(split), json.dumps(records, indent=2) + "\n")


def show(workdir: epath.Path, split: str = "val") -> bool:
    """Prints the report that `write` left in a folder; False if there is none."""
    path = workdir / file_name(split)
    if not path.exists():
        return False
    title = "validation" if split == "val" else split
    table = Table(title=title, title_justify="left")
    records = json.loads(path.read_text())
    columns = _columns(records)
    for key in columns:
        table.add_column(key, justify="left" if key in ("task", "metric") else "right")
    previous = None
    for record in records:
        if previous not in (None, record["task"]):
            table.add_section()
        first = record["task"] != previous
        cells = [_cell(record[key]) for key in columns]
        table.add_row(*(cells if first else ["", *cells[1:]]), style="bold" if first else None)
        previous = record["task"]
    console = Console()
    console.print(table)
    same, picture = file_name(split, "md"), file_name(split, "png", "predictions")
    console.print(f"The same table: {workdir}/{same} and .json; what the model sees:")
    console.print(f"{workdir}/{picture}", soft_wrap=True)
    return True


def _columns(records: Sequence[dict]) -> list[str]:
    """COLUMNS, without `paper` where there is no such figure: the demo's world, own data."""
    published = any(record["paper"] is not None for record in records)
    return [key for key in COLUMNS if key != "paper" or published]


def _finite(value):
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _cell(value) -> str:
    if value is None:
        return "–"
    return value if isinstance(value, str) else f"{value:.3f}"
