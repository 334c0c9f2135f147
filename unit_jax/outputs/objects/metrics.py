"""Detections from model outputs, and their average precision by COCO's rules."""

import contextlib
import io
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from jaxtyping import Array, Float, Int

NAMES = ("AP", "AP50", "AP75", "APs", "APm", "APl")


def best_of_queries(
    logits: Float[Array, "images queries classes"],
    boxes_cxcywh: Float[Array, "images queries 4"],
    attribute_logits: Float[Array, "images queries attributes"] | None = None,
) -> dict[str, Array]:
    """What counts of the last layer's outputs, one class per query; JAX or NumPy arrays.

    Args:
      logits: no-object last.
      boxes_cxcywh: in [0, 1].
      attribute_logits: ReLUed, for the best class of each query.

    Returns:
      scores (softmax probability of the best class without no-object), labels, boxes_cxcywh and,
      with attributes, attr_scores (the largest logit, no softmax) and attr_labels.
    """
    xp = logits.__array_namespace__()
    exponentials = xp.exp(logits - xp.max(logits, axis=-1, keepdims=True))
    probabilities = exponentials / xp.sum(exponentials, axis=-1, keepdims=True)
    found = dict(
        scores=xp.max(probabilities[..., :-1], axis=-1),
        labels=xp.argmax(probabilities[..., :-1], axis=-1),
        boxes_cxcywh=boxes_cxcywh,
    )
    if attribute_logits is not None:
        found["attr_scores"] = xp.max(attribute_logits, axis=-1)
        found["attr_labels"] = xp.argmax(attribute_logits, axis=-1)
    return found


def post_process(
    found: Mapping[str, np.ndarray], original_sizes: Int[np.ndarray, "images 2"]
) -> list[dict[str, np.ndarray]]:
    """Every query as a detection, as in the reference.

    Args:
      found: as from `best_of_queries`.
      original_sizes: (height, width) in pixels of the images before resizing.

    Returns:
      per image: what `found` holds of it, with boxes (x0, y0, x1, y1 in original pixels, not
      clipped) in place of boxes_cxcywh.
    """
    found = dict(found)
    boxes = found.pop("boxes_cxcywh")
    centers, halves = boxes[..., :2], boxes[..., 2:] / 2
    scale = np.asarray(original_sizes)[:, None, [1, 0, 1, 0]].astype(boxes.dtype)
    found["boxes"] = np.concatenate([centers - halves, centers + halves], -1) * scale
    return [{name: x[image] for name, x in found.items()} for image in range(len(boxes))]


def to_coco(image_id: int | str, detections: Mapping[str, np.ndarray]) -> list[dict[str, Any]]:
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
        fields = ("boxes_xywh", "category_ids", "areas", "iscrowd")
        objects = (record["objects"][field] for field in fields)
        for box, category, area, crowd in zip(*objects, strict=True):
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
    # Predictions need neither, and are made where there is only JAX too.
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

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
