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
    for k in np.flatnonzero(detections["scores"] >= min_score):
        label = int(detections["labels"][k])
        color = drawing.color(label)
        x0, y0, x1, y1 = (float(v) for v in detections["boxes"][k])
        axes.add_patch(
            Rectangle((x0, y0), x1 - x0, y1 - y0, fill=False, edgecolor=color, linewidth=2.2)
        )
        words = [names.label(label)]
        if "attr_labels" in detections and names.attributes:
            words.insert(0, names.attributes[int(detections["attr_labels"][k])])
        axes.text(
            x0, y0, f"{' '.join(words)} {detections['scores'][k]:.2f}", size=7, color="white",
            va="bottom" if y0 > 0.1 * record["height"] else "top", clip_on=True, zorder=4,
            bbox=dict(facecolor=color, edgecolor="none", pad=1.2),
        )  # fmt: skip
