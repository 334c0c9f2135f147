"""Detections from model outputs, and their average precision by COCO's rules."""

import contextlib
import io
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from jaxtyping import Float, Int
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

NAMES = ("AP", "AP50", "AP75", "APs", "APm", "APl")


def post_process(
    logits: Float[np.ndarray, "images queries classes"],
    boxes_cxcywh: Float[np.ndarray, "images queries 4"],
    original_sizes: Int[np.ndarray, "images 2"],
    attribute_logits: Float[np.ndarray, "images queries attributes"] | None = None,
) -> list[dict[str, np.ndarray]]:
    """Every query as a detection, as in the reference.

    Args:
      logits: no-object last.
      boxes_cxcywh: in [0, 1].
      original_sizes: (height, width) in pixels of the images before resizing.
      attribute_logits: ReLUed, for the best class of each query.

    Returns:
      per image: scores (softmax probability of the best class without no-object), labels, boxes
      (x0, y0, x1, y1 in original pixels, not clipped) and, with attributes, attr_scores (the
      largest logit, no softmax) and attr_labels.
    """
    exponentials = np.exp(logits - logits.max(-1, keepdims=True))
    probabilities = (exponentials / exponentials.sum(-1, keepdims=True))[..., :-1]
    scores, labels = probabilities.max(-1), probabilities.argmax(-1)
    centers, halves = boxes_cxcywh[..., :2], boxes_cxcywh[..., 2:] / 2
    scale = np.asarray(original_sizes)[:, None, [1, 0, 1, 0]].astype(boxes_cxcywh.dtype)
    boxes = np.concatenate([centers - halves, centers + halves], -1) * scale
    detections = [
        dict(scores=s, labels=c, boxes=b) for s, c, b in zip(scores, labels, boxes, strict=True)
    ]
    if attribute_logits is not None:
        for found, of_image in zip(detections, attribute_logits, strict=True):
            found.update(attr_scores=of_image.max(-1), attr_labels=of_image.argmax(-1))
    return detections


def to_coco(image_id: int, detections: Mapping[str, np.ndarray]) -> list[dict[str, Any]]:
    """One image's detections as entries of a COCO results file (boxes x, y, width, height)."""
    x0, y0, x1, y1 = np.moveaxis(np.asarray(detections["boxes"], np.float64), -1, 0)
    return [
        dict(image_id=image_id, category_id=int(label), bbox=list(map(float, box)), score=float(s))
        for label, box, s in zip(
            detections["labels"],
            np.stack([x0, y0, x1 - x0, y1 - y0], -1),
            detections["scores"],
            strict=True,
        )
    ]


def ground_truth(records: Iterable[Mapping[str, Any]], categories: Iterable[int]) -> dict:
    """A COCO ground-truth dict from prepared records, crowd regions included."""
    images, annotations = [], []
    for record in records:
        image_id = len(images)
        images.append(dict(id=image_id, width=int(record["width"]), height=int(record["height"])))
        for box, category, area, crowd in zip(
            record["boxes_xywh"],
            record["category_ids"],
            record["areas"],
            record["iscrowd"],
            strict=True,
        ):
            annotations.append(
                dict(
                    id=len(annotations) + 1,
                    image_id=image_id,
                    category_id=int(category),
                    bbox=[float(x) for x in box],
                    area=float(area),
                    iscrowd=int(crowd),
                )
            )
    return dict(
        images=images, annotations=annotations, categories=[dict(id=int(c)) for c in categories]
    )


def coco_stats(ground_truth: dict, detections: list[dict]) -> Float[np.ndarray, "12"]:
    """COCOeval's twelve numbers for boxes, its defaults; -1 where there is no ground truth."""
    with contextlib.redirect_stdout(io.StringIO()):  # it prints tables of its own
        truth = COCO()
        truth.dataset = ground_truth
        truth.createIndex()
        if not detections:
            has_objects = any(not a["iscrowd"] for a in ground_truth["annotations"])
            return np.zeros(12) if has_objects else np.full(12, -1.0)
        evaluation = COCOeval(truth, truth.loadRes(detections), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return evaluation.stats


def coco_ap(ground_truth: dict, detections: list[dict]) -> dict[str, float]:
    """AP, AP50, AP75, APs, APm, APl in [0, 1]; NaN where there is no such ground truth.

    Args:
      ground_truth: as `ground_truth` makes it, or a COCO annotation file.
      detections: entries as `to_coco` makes them.
    """
    stats = coco_stats(ground_truth, detections)
    return {
        name: float(value) if value >= 0 else float("nan")
        for name, value in zip(NAMES, stats[:6], strict=True)
    }
