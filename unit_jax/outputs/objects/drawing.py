"""One image with its true objects (dashed) and the detected ones."""

import numpy as np
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle

from unit_jax.outputs import drawing
from unit_jax.outputs.base import Names, Predictions, Record


def draw(
    axes: Axes,
    record: Record,
    image: np.ndarray | None,
    detections: Predictions,
    names: Names,
    min_score: float,
) -> None:
    """Draws an image.

    Args:
      detections: scores, labels, boxes (x0, y0, x1, y1 in pixels) and maybe attr_labels.
      min_score: of a detection that is drawn.
    """
    if image is not None:
        drawing.show_image(axes, image)
    objects = record["objects"]
    for (x, y, w, h), crowd in zip(objects["boxes_xywh"], objects["iscrowd"], strict=True):
        edge = drawing.MUTED if crowd else "white"
        frame = Rectangle((x, y), w, h, fill=False, edgecolor=edge, linewidth=1.1, zorder=3)
        frame.set_linestyle((0, (3, 2)))
        axes.add_patch(frame)
    shown = np.flatnonzero(detections["scores"] >= min_score)
    taken: list[tuple[float, float]] = []  # left and top ends of names
    for k in shown[np.argsort(-detections["scores"][shown], kind="stable")]:
        label = int(detections["labels"][k])
        color = drawing.color(label)
        x0, y0, x1, y1 = (float(v) for v in detections["boxes"][k])
        axes.add_patch(
            Rectangle((x0, y0), x1 - x0, y1 - y0, fill=False, edgecolor=color, linewidth=2.2)
        )
        words = [names.label(label)]
        if "attr_labels" in detections and names.attributes:
            words.insert(0, names.attributes[int(detections["attr_labels"][k])])
        text = f"{' '.join(words)} {detections['scores'][k]:.2f}"
        line = 0.07 * record["width"]  # a name's height, on a picture of a column's width
        left, top = _place(x0, y0, y1, line, record["height"], taken)
        taken.append((left, top))
        axes.text(
            left, top, text, size=7, color="white", va="top", clip_on=True, zorder=4,
            bbox=dict(facecolor=color, edgecolor="none", pad=1.2),
        )  # fmt: skip


def _place(
    x0: float, y0: float, y1: float, line: float, height: float, taken: list[tuple[float, float]]
) -> tuple[float, float]:
    """Where a box's name starts: above the box, within it, or below, and off other names."""
    places = [y0 - line, y0, y1 - line, y1, *(y0 + k * line for k in range(1, 5))]
    inside = [y for y in places if 0 <= y <= height - line] or [max(y0, 0.0)]
    for y in inside:
        if all(abs(y - top) >= line or abs(x0 - left) >= 5 * line for left, top in taken):
            return x0, y
    return x0, inside[0]
