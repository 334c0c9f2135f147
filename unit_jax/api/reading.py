"""From the arrays that a program gives to what people read."""

from collections.abc import Callable
from typing import Any

import numpy as np

from unit_jax.api.inputs import Example, Ready
from unit_jax.api.results import Answer, Answers, Detection, Detections, Result
from unit_jax.outputs import room
from unit_jax.outputs.base import Names
from unit_jax.outputs.objects import metrics
from unit_jax.tasks import TaskSpec

Arrays = dict[str, np.ndarray]


def reader(
    spec: TaskSpec, names: Names, exif: bool, threshold: float, top: int | None
) -> Callable[[Example, Ready, Arrays], Result]:
    """A function from an example and the arrays of its answer to a result.

    Args:
      names: of the task's labels and attributes.
      threshold, top: as of `Model.predict`.
    """

    def read(example: Example, ready: Ready, answer: Arrays) -> Result:
        asked: dict[str, Any] = dict(
            task=spec.name,
            image=ready.name,
            text=example.text,
            text_b=example.text_b,
            source=example.image,
            exif=exif,
        )
        if "boxes_cxcywh" in answer:
            size = ready.size or (0, 0)
            kept = _detections(answer, size, names, threshold, 100 if top is None else top)
            return Detections(**asked, detections=kept, size=size)
        if "scores" in answer:
            return Answers(**asked, answers=_answers(answer, names, top))
        said = room(spec).said(answer, names)
        return Answers(**asked, answers=(Answer(said, 1.0, -1),))

    return read


def _detections(
    answer: Arrays,
    size: tuple[int, int],
    names: Names,
    threshold: float,
    top: int,
) -> tuple[Detection, ...]:
    one = metrics.post_process({k: v[None] for k, v in answer.items()}, np.asarray([size]))[0]
    order = np.argsort(-one["scores"], kind="stable")
    order = order[one["scores"][order] >= threshold][:top]
    attributes = one.get("attr_labels")
    return tuple(
        Detection(
            label=names.label(int(one["labels"][k])),
            score=float(one["scores"][k]),
            box_xyxy=_corners(one["boxes"][k]),
            label_id=int(one["labels"][k]),
            attribute=_attribute(names, int(attributes[k])) if attributes is not None else None,
            query=int(k),
        )
        for k in order
    )


def _corners(box: np.ndarray) -> tuple[float, float, float, float]:
    x0, y0, x1, y1 = map(float, box)
    return x0, y0, x1, y1


def _attribute(names: Names, number: int) -> str | None:
    return (names.attributes[number] or None) if number < len(names.attributes) else str(number)


def _answers(answer: Arrays, names: Names, top: int | None) -> tuple[Answer, ...]:
    scores, best = answer["scores"], int(answer["labels"])
    # Equal scores: what evaluation calls the best goes first.
    order = np.lexsort((np.arange(len(scores)) != best, -scores))
    order = order[scores[order] >= 0][:top]
    return tuple(Answer(names.label(int(k)), float(scores[k]), int(k)) for k in order)
