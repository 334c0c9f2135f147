"""predictions.png: what the model says of a few examples of every task, for people."""

import colorsys
import dataclasses
import io
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
from etils import epath
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.gridspec import SubplotSpec
from matplotlib.patches import FancyBboxPatch, Rectangle
from PIL import Image

from unit_jax.data.text import normalise_answer
from unit_jax.tasks import TaskSpec

matplotlib.use("Agg")

EXAMPLES = {"detection": 6, "vision_language": 6, "language": 3}  # shown per task
COLUMNS = 6
MIN_SCORE = 0.5  # of a drawn detection
INK, MUTED, RIGHT, WRONG, PAPER = "#1f2430", "#7a8294", "#1a8f5a", "#c8433a", "#f6f7f9"


@dataclasses.dataclass(frozen=True)
class Panel:
    """Examples of one task and the answers to them.

    Attributes:
      spec: the task.
      records: prepared records.
      images: encoded images, None for language tasks.
      answers: detections (see metrics.detection.post_process), or a label number.
      label_names, attribute_names: by number.
    """

    spec: TaskSpec
    records: Sequence[Mapping[str, Any]]
    images: Sequence[bytes | None]
    answers: Sequence[Any]
    label_names: Sequence[str]
    attribute_names: Sequence[str]


def draw(panels: Sequence[Panel], path: epath.Path) -> None:
    """Draws all panels, one row of pictures a task and one card a text, as PNG."""
    with_images = [panel for panel in panels if panel.spec.has_image]
    texts = [panel for panel in panels if not panel.spec.has_image]
    inches = (0.7, 2.85 * len(with_images) + 0.3, 1.25 * len(texts))  # title, pictures, cards
    figure = Figure(figsize=(2.6 * COLUMNS, sum(inches)), facecolor="white", dpi=110)
    figure.text(0.07, 1 - 0.25 / sum(inches), "What the model says",
                size=17, weight="bold", color=INK, va="top")  # fmt: skip
    figure.text(
        0.985, 1 - 0.3 / sum(inches), "solid: predicted   dashed: true   green: right   red: wrong",
        size=10, color=MUTED, va="top", ha="right",
    )  # fmt: skip
    below = sum(inches)
    blocks = zip(((), with_images, texts), inches, (0, 0.3, 0.15), (0, 0.6, 0.15), strict=True)
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
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    path.write_bytes(buffer.getvalue())


def _row(figure: Figure, cells: Sequence[SubplotSpec], panel: Panel) -> None:
    span = COLUMNS // EXAMPLES[panel.spec.kind]
    for i in range(len(panel.records)):
        first, last = cells[i * span], cells[(i + 1) * span - 1]
        grid = first.get_gridspec()
        axes = figure.add_subplot(SubplotSpec(grid, first.num1, last.num1))
        axes.set_axis_off()
        _DRAW[panel.spec.kind](axes, panel, i)
        if i == 0:
            axes.annotate(
                panel.spec.name, (0, 0.5), (-10, 0), xycoords="axes fraction",
                textcoords="offset points", rotation=90, size=12, weight="bold", color=INK,
                ha="right", va="center",
            )  # fmt: skip


def _detection(axes: Axes, panel: Panel, i: int) -> None:
    _show_image(axes, panel.images[i])
    record, found = panel.records[i], panel.answers[i]
    for (x, y, w, h), crowd in zip(record["boxes_xywh"], record["iscrowd"], strict=True):
        style = dict(fill=False, edgecolor=MUTED if crowd else "white", linewidth=1.1, zorder=3)
        axes.add_patch(Rectangle((x, y), w, h, linestyle=(0, (3, 2)), **style))
    kept = np.flatnonzero(found["scores"] >= MIN_SCORE)
    for k in kept:
        label = int(found["labels"][k])
        color = _color(label)
        x0, y0, x1, y1 = (float(v) for v in found["boxes"][k])
        axes.add_patch(
            Rectangle((x0, y0), x1 - x0, y1 - y0, fill=False, edgecolor=color, linewidth=2.2)
        )
        words = [panel.label_names[label] or str(label)]
        if "attr_labels" in found and panel.attribute_names:
            words.insert(0, panel.attribute_names[int(found["attr_labels"][k])])
        axes.text(
            x0, y0, f"{' '.join(words)} {found['scores'][k]:.2f}", size=7, color="white",
            va="bottom" if y0 > 0.1 * record["height"] else "top", clip_on=True, zorder=4,
            bbox=dict(facecolor=color, edgecolor="none", pad=1.2),
        )  # fmt: skip


def _vision_language(axes: Axes, panel: Panel, i: int) -> None:
    _show_image(axes, panel.images[i])
    record = panel.records[i]
    said = panel.label_names[panel.answers[i]]
    if panel.spec.soft_targets:
        text = record["question"]
        answers = [normalise_answer(answer) for answer in record["answers"]]
        truth = max(sorted(set(answers)), key=answers.count) if answers else "?"
        right = said in answers
    else:
        text, truth = record["hypothesis"], _name(panel, record["label"])
        right = said == truth
    _caption(axes, textwrap.fill(text, 34), said, truth, right)


def _language(axes: Axes, panel: Panel, i: int) -> None:
    record = panel.records[i]
    said, truth = panel.label_names[panel.answers[i]], _name(panel, record["label"])
    right = said == truth
    axes.set(xlim=(0, 1), ylim=(0, 1))
    axes.add_patch(
        FancyBboxPatch(
            (0.01, 0.03), 0.98, 0.94, boxstyle="round,pad=0,rounding_size=0.03", linewidth=1.6,
            facecolor=PAPER, edgecolor=RIGHT if right else WRONG, mutation_aspect=2.4,
        )
    )  # fmt: skip
    texts = [textwrap.fill(text, 58) for text in (record["text_a"], record["text_b"]) if text]
    axes.text(0.04, 0.88, "\n".join(texts), size=9, color=INK, va="top", linespacing=1.4)
    verdict = _verdict(said, truth, right, separator="   ")
    _write_verdict(axes, (0.04, 0.1), (0, 0), verdict, right, va="bottom")


def _caption(axes: Axes, text: str, said: str, truth: str, right: bool) -> None:
    axes.annotate(
        text, (0, 0), (0, -4), xycoords="axes fraction", textcoords="offset points", size=8.5,
        color=INK, va="top", linespacing=1.25,
    )  # fmt: skip
    lines = text.count("\n") + 1
    # A picture's column is too narrow for both labels on one line.
    verdict = _verdict(said, truth, right, separator="\n    ")
    _write_verdict(axes, (0, 0), (0, -7 - 11.5 * lines), verdict, right, va="top")


def _verdict(said: str, truth: str, right: bool, separator: str) -> str:
    return f"✓ {said}" if right else f"✗ {said}{separator}(true: {truth})"


def _write_verdict(axes: Axes, place, offset, verdict: str, right: bool, va: str) -> None:
    """`place` in fractions of the axes, `offset` in points."""
    axes.annotate(
        verdict, place, offset, xycoords="axes fraction", textcoords="offset points", size=9,
        weight="bold", color=RIGHT if right else WRONG, va=va, linespacing=1.25,
    )  # fmt: skip


def _show_image(axes: Axes, encoded: bytes) -> None:
    image = np.asarray(Image.open(io.BytesIO(encoded)).convert("RGB"))
    axes.imshow(image, interpolation="bicubic", aspect="equal")
    axes.set(xlim=(-0.5, image.shape[1] - 0.5), ylim=(image.shape[0] - 0.5, -0.5))


def _name(panel: Panel, label: int) -> str:
    return panel.label_names[label] if label >= 0 else "?"


def _color(label: int) -> tuple[float, float, float]:
    """A colour per class; the golden angle keeps neighbours apart."""
    return colorsys.hsv_to_rgb((label * 0.618034) % 1, 0.75, 0.72)


_DRAW = dict(detection=_detection, vision_language=_vision_language, language=_language)
