"""Average precision by COCO's rules, from columns of numbers instead of a dict per detection.

hotcoco (Rust) computes it: 5,000 images with 100 detections each take it under a second, and
pycocotools minutes. Both give the same bits (tests hold them together); pycocotools steps in where
hotcoco is not installed.
"""

import contextlib
import dataclasses
import io
from collections.abc import Mapping, Sequence
from typing import Any, cast

import numpy as np
from jaxtyping import Bool, Float, Int

NAMES = ("AP", "AP50", "AP75", "APs", "APm", "APl")
MOST_DETECTIONS = 100  # of an image that count, the best ones


@dataclasses.dataclass(frozen=True)
class Objects:
    """What is annotated in a split, an object a row.

    Attributes:
      images: number of images; they are numbered from 0.
      image: of each object.
      boxes_xywh: in pixels.
      labels: class numbers.
      areas: in square pixels; they decide what counts as small, medium and large.
      iscrowd: regions of many objects, which detections may hit without being right or wrong.
    """

    images: int
    image: Int[np.ndarray, "objects"]
    boxes_xywh: Float[np.ndarray, "objects 4"]
    labels: Int[np.ndarray, "objects"]
    areas: Float[np.ndarray, "objects"]
    iscrowd: Bool[np.ndarray, "objects"]


@dataclasses.dataclass(frozen=True)
class Detections:
    """What a model says of the same images, a detection a row.

    A detection without a score (NaN) is left out, which is the same as coming last; a box that is
    not finite is one that hits nothing.
    """

    image: Int[np.ndarray, "detections"]
    boxes_xywh: Float[np.ndarray, "detections 4"]
    labels: Int[np.ndarray, "detections"]
    scores: Float[np.ndarray, "detections"]


@dataclasses.dataclass(frozen=True)
class Result:
    """How good detections are.

    Attributes:
      stats: COCOeval's twelve numbers; -1 where there is no such object.
      precision: at each IoU (0.5 to 0.95), recall (0 to 1), class, area range (all, small, medium,
        large) and number of detections an image (1, 10, 100); -1 where there is no such object.
    """

    stats: Float[np.ndarray, "12"]
    precision: Float[np.ndarray, "10 101 classes 4 3"]

    def named(self) -> dict[str, float]:
        """AP, AP50, AP75, APs, APm, APl in [0, 1]; NaN where there is no such object."""
        return {
            name: float(value) if value >= 0 else float("nan")
            for name, value in zip(NAMES, self.stats[:6], strict=True)
        }

    def per_class(self) -> Float[np.ndarray, "classes"]:
        """AP of each class; NaN where it has no object. Their mean without NaN is AP."""
        of_class = self.precision[:, :, :, 0, 2]
        # A class has either an object, and then numbers everywhere, or none.
        return np.where(of_class[0, 0] >= 0, of_class.mean((0, 1)), np.nan)


def evaluate(objects: Objects, detections: Detections, num_labels: int) -> Result:
    """AP of detections.

    Args:
      num_labels: classes are numbered from 0 to this.
    """
    scored = ~np.isnan(detections.scores)
    detections = Detections(
        detections.image[scored],
        np.where(
            np.isfinite(detections.boxes_xywh).all(1, keepdims=True), detections.boxes_xywh, 0.0
        )[scored].astype(np.float64),
        detections.labels[scored],
        detections.scores[scored].astype(np.float64),
    )
    if not len(detections.scores):
        known = np.bincount(objects.labels[~objects.iscrowd], minlength=num_labels) > 0
        precision = np.where(known[:, None, None], 0.0, -1.0) * np.ones((10, 101, 1, 4, 3))
        return Result(np.full(12, 0.0 if known.any() else -1.0), precision)
    try:
        import hotcoco  # noqa: F401
    except ImportError:
        return by_pycocotools(objects, detections, num_labels)
    return by_hotcoco(objects, detections, num_labels)


def by_hotcoco(objects: Objects, detections: Detections, num_labels: int) -> Result:
    """`evaluate` of finite detections, at least one, by hotcoco."""
    import hotcoco

    truth = hotcoco.COCO.from_arrays(
        [dict(id=number, width=1, height=1) for number in range(objects.images)],
        [dict(id=number, name=str(number)) for number in range(num_labels)],
        objects.image,
        objects.labels,
        objects.boxes_xywh.astype(np.float64),
        area=objects.areas.astype(np.float64),
        iscrowd=objects.iscrowd,
    )
    results = truth.load_res(
        np.column_stack(
            [detections.image, detections.boxes_xywh, detections.scores, detections.labels]
        )
    )
    evaluation = hotcoco.COCOeval(truth, results, "bbox")
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summary_lines()  # the twelve numbers, without printing them
    result = cast(Any, evaluation.eval)  # a dict, after accumulate
    return Result(np.asarray(evaluation.stats), np.asarray(result["precision"]))


def by_pycocotools(objects: Objects, detections: Detections, num_labels: int) -> Result:
    """`evaluate` of finite detections, at least one, by pycocotools."""
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    with contextlib.redirect_stdout(io.StringIO()):  # it prints tables of its own
        truth = COCO()
        truth.dataset = dict(
            images=[dict(id=number) for number in range(objects.images)],
            categories=[dict(id=number) for number in range(num_labels)],
            annotations=[
                dict(id=n, image_id=i, bbox=b, category_id=c, area=a, iscrowd=crowd)
                for n, (i, b, c, a, crowd) in enumerate(
                    zip(
                        objects.image.tolist(),
                        objects.boxes_xywh.astype(np.float64).tolist(),
                        objects.labels.tolist(),
                        objects.areas.astype(np.float64).tolist(),
                        objects.iscrowd.astype(int).tolist(),
                        strict=True,
                    ),
                    start=1,
                )
            ],
        )
        truth.createIndex()
        entries = [
            dict(image_id=i, bbox=b, score=s, category_id=c)
            for i, b, s, c in zip(
                detections.image.tolist(),
                detections.boxes_xywh.tolist(),
                detections.scores.tolist(),
                detections.labels.tolist(),
                strict=True,
            )
        ]
        evaluation = COCOeval(truth, truth.loadRes(entries), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return Result(np.asarray(evaluation.stats), np.asarray(evaluation.eval["precision"]))


def from_coco(
    ground_truth: Mapping[str, Any], entries: Sequence[Mapping[str, Any]]
) -> tuple[Objects, Detections, int]:
    """COCO's JSON, annotations and results, as arguments of `evaluate`; labels are the ids."""
    rows = {image["id"]: row for row, image in enumerate(ground_truth["images"])}
    annotations = ground_truth["annotations"]
    objects = Objects(
        len(rows),
        np.array([rows[a["image_id"]] for a in annotations], np.int64),
        np.array([a["bbox"] for a in annotations], np.float64).reshape(-1, 4),
        np.array([a["category_id"] for a in annotations], np.int64),
        np.array([a["area"] for a in annotations], np.float64),
        np.array([a.get("iscrowd", 0) for a in annotations], bool),
    )
    detections = Detections(
        np.array([rows[e["image_id"]] for e in entries], np.int64),
        np.array([e["bbox"] for e in entries], np.float64).reshape(-1, 4),
        np.array([e["category_id"] for e in entries], np.int64),
        np.array([e["score"] for e in entries], np.float64),
    )
    return objects, detections, max(category["id"] for category in ground_truth["categories"]) + 1


# ---- what was taken for what --------------------------------------------------------------------


def confusion(
    objects: Objects,
    detections: Detections,
    num_labels: int,
    min_score: float = 0.5,
    min_iou: float = 0.5,
) -> tuple[Int[np.ndarray, "classes_and_nothing classes_and_nothing"], Int[np.ndarray, "images"]]:
    """Which class was taken for which, and the number of faults of each image.

    In each image the detections choose in the order of their scores, each the free object of any
    class that it overlaps most. Crowd regions are no objects here, and what lies in one (by half
    of its own area at least) is no fault.

    Args:
      min_score: of a detection that counts.
      min_iou: of a box and an object that belong together.

    Returns:
      counts by true class (rows) and predicted class (columns); the last column counts objects
      without a detection, the last row detections without an object. And per image what is not
      on the diagonal.
    """
    matrix = np.zeros((num_labels + 1, num_labels + 1), np.int64)
    faults = np.zeros(objects.images, np.int64)
    kept = np.flatnonzero(detections.scores >= min_score)
    kept = kept[np.lexsort((-detections.scores[kept], detections.image[kept]))]
    order = np.argsort(objects.image, kind="stable")
    images = np.arange(objects.images + 1)
    of_truth = np.searchsorted(objects.image[order], images)
    of_found = np.searchsorted(detections.image[kept], images)
    for image in range(objects.images):
        true = order[of_truth[image] : of_truth[image + 1]]
        found = kept[of_found[image] : of_found[image + 1]]
        crowd = true[objects.iscrowd[true]]
        true = true[~objects.iscrowd[true]]
        iou, _ = _overlaps(detections.boxes_xywh[found], objects.boxes_xywh[true])
        _, inside = _overlaps(detections.boxes_xywh[found], objects.boxes_xywh[crowd])
        free = np.ones(len(true), bool)
        for row, label in enumerate(detections.labels[found]):
            choices = np.where(free, iou[row], -1.0)
            best = int(choices.argmax()) if len(true) else -1
            if best >= 0 and choices[best] >= min_iou:
                free[best] = False
                matrix[objects.labels[true[best]], label] += 1
                faults[image] += objects.labels[true[best]] != label
            elif not (inside[row] >= 0.5).any():
                matrix[num_labels, label] += 1
                faults[image] += 1
        np.add.at(matrix, (objects.labels[true[free]], num_labels), 1)
        faults[image] += free.sum()
    return matrix, faults


def _overlaps(
    boxes: Float[np.ndarray, "boxes 4"], others: Float[np.ndarray, "others 4"]
) -> tuple[Float[np.ndarray, "boxes others"], Float[np.ndarray, "boxes others"]]:
    """IoU, and the share of each box that lies in the other one; 0 where an area is 0."""
    boxes, others = boxes[:, None].astype(np.float64), others[None].astype(np.float64)
    low = np.maximum(boxes[..., :2], others[..., :2])
    high = np.minimum(boxes[..., :2] + boxes[..., 2:], others[..., :2] + others[..., 2:])
    common = np.clip(high - low, 0, None).prod(-1)
    area, other_area = boxes[..., 2:].prod(-1), others[..., 2:].prod(-1)
    union = area + other_area - common
    with np.errstate(invalid="ignore", divide="ignore"):
        return (
            np.where(union > 0, common / union, 0.0),
            np.where(area > 0, common / area, 0.0),
        )
