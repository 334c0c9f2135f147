"""What runs of the paper's rows measured, beside what was published: a table and a picture."""

import dataclasses
import functools
import json
from collections.abc import Mapping, Sequence
from typing import Any

from etils import epath
from rich.table import Table

from unit_jax import config_files
from unit_jax.runtime import checkpoint_folder, checkpoints
from unit_jax.tools.paper.rows import ALL, HEADLINES, ROWS, Row

REPORT = "report.json"  # of a finished run, see evaluation.report


@dataclasses.dataclass(frozen=True)
class Measured:
    """A row's run.

    Attributes:
      row: which.
      values: headline metric in percent by task.
    """

    row: Row
    values: Mapping[str, float]


def collect(folder: epath.Path) -> tuple[list[Measured], list[str]]:
    """The finished runs of a folder of working folders.

    A working folder is a row's by its name, or else by the settings that its newest checkpoint was
    made with.

    Returns:
      the runs in the table's order, and names of folders that hold a report and are no row.
    """
    reports, unknown = {}, []
    named = {path.parent.name: path for path in sorted(folder.glob(f"*/{REPORT}"))}
    for own, path in sorted(named.items(), key=lambda item: item[0] not in ROWS):
        name = own if own in ROWS else row_of(path.parent)
        if not name or name in reports:
            unknown.append(own)
        else:
            reports[name] = path
    measured = []
    for name, row in ROWS.items():
        if name in reports:
            lines = json.loads(reports[name].read_text())
            values = {
                line["task"]: 100 * line["value"]
                for line in lines
                if line["metric"] == HEADLINES.get(line["task"]) and line["value"] is not None
            }
            measured.append(Measured(row, values))
    return measured, unknown


# What tells rows from each other, beside their tasks and what they start from.
_TOLD_BY = (
    "model.backbone.depths", "model.decoder.layers", "model.decoder.width",
    "model.image_encoder.task_embedding", "model.text_encoder.task_embedding",
    "model.classify_all_layers", "optimizer.name", "train.steps", "train.batch_size",
)  # fmt: skip


def row_of(workdir: epath.Path) -> str:
    """The row whose settings a working folder's newest checkpoint was made with; "" = none's."""
    try:
        directory, step = checkpoint_folder.locate(workdir)
        saved = json.loads((directory / str(step) / "metadata" / "metadata").read_text())
        told = _facts(saved["settings"])
    except (ValueError, KeyError, OSError):
        return ""
    return next((name for name, facts in _facts_of_rows().items() if facts == told), "")


@functools.cache
def _facts_of_rows() -> dict[str, dict[str, Any]]:
    by_row = {}
    for row in ROWS.values():
        name = f"configs/unit.py:{row.argument}" if row.argument else "configs/unit.py"
        settings = dataclasses.asdict(config_files.read(name))
        settings["init_from"]["model"] = row.needs
        by_row[row.name] = _facts(checkpoints.jsonable(settings))
    return by_row


def _facts(settings: Mapping[str, Any]) -> dict[str, Any]:
    facts: dict[str, Any] = {}
    for key in _TOLD_BY:
        facts[key] = functools.reduce(lambda group, name: group[name], key.split("."), settings)
    tasks = settings["tasks"]
    facts["tasks"] = {name: bool(task["cls_only"]) for name, task in tasks.items()}
    # One task has one decoder, however it is called.
    facts["shared"] = len(tasks) == 1 or settings["model"]["decoder"]["shared"]
    facts["starts from a model"] = bool(settings["init_from"]["model"])
    return facts


def table(measured: Sequence[Measured], published: bool) -> Table:
    """A line per run, a column per task; published figures stand below the measured ones.

    Args:
      published: False for runs of the demo, whose data are others.
    """
    result = Table(title="measured" + (" and published, in percent" if published else ""))
    result.add_column("row")
    result.add_column("")
    for task in ALL:
        result.add_column(task, justify="right")
    for run in measured:
        lines = [("measured", run.values)]
        if published:
            lines += [("reference", run.row.reference), ("paper, from memory", run.row.paper)]
        for i, (what, values) in enumerate(lines):
            if values:
                cells = [f"{values[task]:.2f}" if task in values else "" for task in ALL]
                result.add_row(run.row.name if i == 0 else "", what, *cells)
        result.add_section()
    return result


def markdown(measured: Sequence[Measured], published: bool) -> str:
    """The same as a table in Markdown."""
    lines = ["| row | | " + " | ".join(ALL) + " |", "|---|---|" + "---:|" * len(ALL)]
    for run in measured:
        sources = [("measured", run.values)]
        if published:
            sources += [("reference", run.row.reference), ("paper, from memory", run.row.paper)]
        for what, values in sources:
            if values:
                cells = [f"{values[task]:.2f}" if task in values else "–" for task in ALL]
                lines.append(f"| {run.row.name} | {what} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


# Colours of how a row was trained, in the order of the legend.
_KINDS = (
    ("alone", "#8c95a6", lambda row: len(row.tasks) == 1 and not row.needs),
    ("together, separate decoders", "#d98a3d", lambda row: "separate_decoders" in row.variants),
    ("together, then alone", "#8b5fbf", lambda row: row.name.startswith("finetuned_")),
    ("together, shared decoder", "#2f7fc1", lambda row: True),
)


def draw(measured: Sequence[Measured], path: epath.Path, published: bool) -> None:
    """A panel per task with a bar per run; a dark tick on a bar is the published figure."""
    import io

    import matplotlib

    matplotlib.use("Agg")
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

    panels = {task: [run for run in measured if task in run.values] for task in ALL}
    panels = {task: runs for task, runs in panels.items() if runs}
    if not panels:
        return
    columns = 2
    rows = -(-len(panels) // columns)
    most = max(map(len, panels.values()))
    figure = Figure(figsize=(13, 1.1 + rows * (0.75 + 0.34 * most)), facecolor="white", dpi=120)
    axes = figure.subplots(rows, columns, squeeze=False).ravel()
    for place, (task, runs) in zip(axes, panels.items(), strict=False):
        most_value = max(run.values[task] for run in runs)
        for y, run in enumerate(runs):
            value = run.values[task]
            place.barh(y, value, color=_color(run.row), height=0.7)
            # In the bar, where no tick can lie on it, unless the bar is too short.
            inside = value > 0.15 * most_value
            place.text(0 if inside else value, y, f"  {value:.1f}", va="center", size=9,
                       color="white" if inside else "#1f2430")  # fmt: skip
            figures = run.row.reference or run.row.paper
            if published and task in figures:
                place.plot([figures[task]] * 2, [y - 0.4, y + 0.4], color="#1f2430", linewidth=2.2)
        place.set_yticks(range(len(runs)), [_short(run.row) for run in runs], size=9)
        place.set_ylim(most - 0.4, -0.6)  # bars are as thick in all panels
        place.set_xlim(0, 1.13 * most_value + 1e-9)
        place.set_title(f"{task}: {HEADLINES[task]} in percent", loc="left", size=11, weight="bold")
        place.spines[["top", "right", "bottom"]].set_visible(False)
        place.tick_params(length=0)
        place.set_xticks([])
    for place in axes[len(panels) :]:
        place.set_axis_off()
    colors = {_color(run.row) for run in measured}
    handles = [Patch(color=color, label=label) for label, color, _ in _KINDS if color in colors]
    figure.legend(handles=handles, loc="upper right", ncols=4, frameon=False, fontsize=9)
    figure.text(0.012, 0.995, "Alone or together?", size=15, weight="bold", va="top")
    if published:
        figure.text(0.2, 0.992, "dark lines: published", size=9, color="#7a8294", va="top")
    figure.tight_layout(rect=(0, 0, 1, 1 - 0.5 / figure.get_figheight()), h_pad=1.6)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    path.write_bytes(buffer.getvalue())


def _color(row: Row) -> str:
    return next(color for _, color, belongs in _KINDS if belongs(row))


def _short(row: Row) -> str:
    """What tells a row from the others of its panel."""
    if row.name.startswith("finetuned_"):
        return "all 8, COCO init, then alone"
    if len(row.tasks) == 1:
        return "alone" + (", no task embedding" if row.variants else "")
    return (
        row.title.replace("coco + visual_genome + vqa2", "3 data sets")
        .replace(" decoders", "")
        .replace(" decoder", "")
    )
