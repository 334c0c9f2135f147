"""predictions.png: what the model says of a few examples of every task, for people."""

import dataclasses
import io
from collections.abc import Sequence

import matplotlib
import numpy as np
from etils import epath
from jaxtyping import UInt8
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.gridspec import SubplotSpec

from unit_jax import outputs
from unit_jax.data import transforms
from unit_jax.outputs.base import Names, Predictions, Record
from unit_jax.outputs.drawing import INK, MUTED
from unit_jax.run import Run
from unit_jax.tasks import TaskSpec

matplotlib.use("Agg")

COLUMNS = 6
CARD_COLUMNS = 2  # a card of text is as wide as two pictures


@dataclasses.dataclass(frozen=True)
class Panel:
    """Examples of one task and the answers to them.

    Attributes:
      spec: the task.
      records: prepared records.
      images: RGB pixels, None for tasks without images.
      predictions: of each example its row of what the task's room predicts.
      names: of labels and attributes.
    """

    spec: TaskSpec
    records: Sequence[Record]
    images: Sequence[np.ndarray | None]
    predictions: Sequence[Predictions]
    names: Names


def examples_of(spec: TaskSpec) -> int:
    """How many examples of a task fill a row."""
    return COLUMNS // _span(spec)


def panel(run: Run, task: str, split: str, predictions: Predictions, rows: Sequence[int]) -> Panel:
    """Examples of a split with what the model says of them.

    Args:
      predictions: of the whole split.
      rows: which examples.
    """
    examples, spec = run.data.split(task, split), run.settings.tasks[task]
    return Panel(
        spec,
        [examples[row] for row in rows],
        [transforms.decode(examples.image(row)) if spec.has_image else None for row in rows],
        [{name: values[row] for name, values in predictions.items()} for row in rows],
        run.data.names(task),
    )


def fixed_rows(spec: TaskSpec, count: int) -> list[int]:
    """The examples of a split of `count` that are always shown: spread over all of it."""
    return np.linspace(0, count - 1, examples_of(spec)).astype(int).tolist()


def draw(panels: Sequence[Panel], path: epath.Path, title: str = "What the model says") -> None:
    """Draws all panels as PNG, see `figure_of`."""
    buffer = io.BytesIO()
    figure_of(panels, title).savefig(buffer, format="png")
    path.write_bytes(buffer.getvalue())


def pixels_of(figure: Figure) -> UInt8[np.ndarray, "height width 3"]:
    """A figure's pixels."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3]


def figure_of(panels: Sequence[Panel], title: str) -> Figure:
    """All panels, one row of pictures a task and one card a text."""
    with_images = [panel for panel in panels if panel.spec.has_image]
    texts = [panel for panel in panels if not panel.spec.has_image]
    inches = (0.7, 2.85 * len(with_images) + 0.5, 1.25 * len(texts))  # title, pictures, cards
    figure = Figure(figsize=(2.6 * COLUMNS, sum(inches)), facecolor="white", dpi=110)
    figure.text(0.07, 1 - 0.25 / sum(inches), title,
                size=17, weight="bold", color=INK, va="top")  # fmt: skip
    figure.text(
        0.985, 1 - 0.3 / sum(inches),
        "boxes: solid said, dashed true; answers: green right, red wrong",
        size=10, color=MUTED, va="top", ha="right",
    )  # fmt: skip
    below = sum(inches)
    blocks = zip(((), with_images, texts), inches, (0, 0.3, 0.15), (0, 0.8, 0.15), strict=True)
    for block, height, gap, margin in blocks:
        top, below = below, below - height
        if not block:
            continue
        grid = figure.add_gridspec(
            len(block), COLUMNS, left=0.07, right=0.985, top=top / sum(inches),
            bottom=(below + margin) / sum(inches), hspace=gap, wspace=0.12,
        )  # fmt: skip
        for row, panel in enumerate(block):
            _row(figure, [grid[row, column] for column in range(COLUMNS)], panel)
    return figure


def _span(spec: TaskSpec) -> int:
    return outputs.room(spec).columns if spec.has_image else CARD_COLUMNS


def _row(figure: Figure, cells: Sequence[SubplotSpec], panel: Panel) -> None:
    span, room = _span(panel.spec), outputs.room(panel.spec)
    examples = zip(panel.records, panel.images, panel.predictions, strict=True)
    for i, (record, image, prediction) in enumerate(examples):
        first, last = cells[i * span], cells[(i + 1) * span - 1]
        axes = figure.add_subplot(SubplotSpec(first.get_gridspec(), first.num1, last.num1))
        axes.set_axis_off()
        room.draw(axes, record, image, prediction, panel.names)
        if i == 0:
            axes.annotate(
                panel.spec.name, (0, 0.5), (-10, 0), xycoords="axes fraction",
                textcoords="offset points", rotation=90, size=12, weight="bold", color=INK,
                ha="right", va="center",
            )  # fmt: skip
