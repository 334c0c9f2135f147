"""Where a model goes wrong on a split: numbers by class, confusion tables, the worst examples.

Files below WORKDIR/evaluation/SPLIT:

    metrics.json    every metric, what was evaluated, and which tasks were left out and why
    classes.json    by task: each class with its count and AP or recall; the commonest confusions
    confusion.png   which class was taken for which, the largest classes of each task
    worst.png       the examples that are most wrong
"""

import io
import json
import math
from collections.abc import Mapping
from typing import Any

import matplotlib
import numpy as np
from etils import epath
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from unit_jax import outputs
from unit_jax import run as run_lib
from unit_jax.evaluation import pictures
from unit_jax.evaluation.evaluate import Evaluation
from unit_jax.outputs.analysis import Analysis
from unit_jax.outputs.drawing import INK, MUTED

matplotlib.use("Agg")

FOLDER = "evaluation"
CLASSES = 12  # of a confusion table that is drawn
COLUMNS = 4  # of such tables


def analyse(run: run_lib.Run, split: str, evaluation: Evaluation) -> dict[str, Analysis]:
    """The analyses of the tasks whose rooms have one."""
    analyses = {}
    for task, predictions in evaluation.predictions.items():
        room = outputs.room(run.settings.tasks[task])
        analysis = room.analyse(predictions, run.data.split(task, split), run.data.names(task))
        if analysis is not None:
            analyses[task] = analysis
    return analyses


def write(
    run: run_lib.Run,
    workdir: epath.Path,
    split: str,
    evaluation: Evaluation,
    extra: Mapping[str, Any],
) -> None:
    """Writes the files of a split (see above).

    Args:
      extra: further entries of metrics.json.
    """
    folder = workdir / FOLDER / split
    folder.mkdir(parents=True, exist_ok=True)
    metrics = {k: v if math.isfinite(v) else None for k, v in evaluation.metrics.items()}
    _write_json(folder / "metrics.json", {"split": split, **extra, "metrics": metrics})
    analyses = analyse(run, split, evaluation)
    classes = {task: analysis.as_json() for task, analysis in analyses.items()}
    _write_json(folder / "classes.json", classes)
    if not analyses:
        return
    draw_confusion(analyses, folder / "confusion.png")
    panels = []
    for task, analysis in analyses.items():
        rows = analysis.worst(pictures.examples_of(run.settings.tasks[task]))
        if rows:
            panels.append(pictures.panel(run, task, split, evaluation.predictions[task], rows))
    pictures.draw(panels, folder / "worst.png", "Where the model is most wrong")


def draw_confusion(analyses: Mapping[str, Analysis], path: epath.Path) -> None:
    """A table a task: rows are true classes, shaded by the share that is taken for a column's."""
    rows = -(-len(analyses) // COLUMNS)
    columns = min(COLUMNS, len(analyses))
    figure = Figure(figsize=(4.1 * columns, 4.2 * rows + 0.5), facecolor="white", dpi=100)
    axes = figure.subplots(rows, columns, squeeze=False).ravel()
    for place, (task, analysis) in zip(axes, analyses.items(), strict=False):
        _draw_table(place, task, analysis)
    for place in axes[len(analyses) :]:
        place.set_axis_off()
    figure.text(0.01, 0.995, "What is taken for what", size=15, weight="bold", color=INK, va="top")
    figure.text(
        0.99, 0.995, "rows: true   columns: said   numbers: percent of the row", size=9,
        color=MUTED, va="top", ha="right",
    )  # fmt: skip
    figure.tight_layout(rect=(0, 0, 1, 0.95), w_pad=1.5, h_pad=1.5)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    path.write_bytes(buffer.getvalue())


def _draw_table(axes: Axes, task: str, analysis: Analysis) -> None:
    kept = analysis.largest(CLASSES)
    counts = analysis.confusion[np.ix_(kept, kept)]
    totals = analysis.confusion[kept].sum(1, keepdims=True)
    shares = counts / np.maximum(totals, 1)
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    for y, x in np.ndindex(shares.shape):
        share = float(shares[y, x])
        if round(100 * share):
            axes.text(x, y, f"{100 * share:.0f}", ha="center", va="center", size=7,
                      color="white" if share > 0.6 else INK)  # fmt: skip
    names = [_short(analysis.names[number]) for number in kept]
    axes.set_xticks(range(len(kept)), names, rotation=60, ha="right", size=8)
    axes.set_yticks(range(len(kept)), names, size=8)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    left_out = int((analysis.counts > 0).sum()) - sum(k < len(analysis.counts) for k in kept)
    more = f" (and {left_out} rarer)" if left_out else ""
    axes.set_title(f"{task}{more}", loc="left", size=11, weight="bold", color=INK)


def _short(name: str) -> str:
    return name if len(name) <= 16 else f"{name[:15]}…"


def _write_json(path: epath.Path, content: Any) -> None:
    path.write_text(json.dumps(content, indent=1) + "\n")
