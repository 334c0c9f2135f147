"""Detections from model outputs, and what their average precision is computed from."""

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from jaxtyping import Array, Float, Int

from unit_jax.outputs.objects.average_precision import Detections, Objects


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
    best = dict(
        scores=xp.max(probabilities[..., :-1], axis=-1),
        labels=xp.argmax(probabilities[..., :-1], axis=-1),
        boxes_cxcywh=boxes_cxcywh,
    )
    if attribute_logits is not None:
        best["attr_scores"] = xp.max(attribute_logits, axis=-1)
        best["attr_labels"] = xp.argmax(attribute_logits, axis=-1)
    return best


def post_process(
    predictions: Mapping[str, np.ndarray], original_sizes: Int[np.ndarray, "images 2"]
) -> list[dict[str, np.ndarray]]:
    """Every query as a detection, as in the reference.

    Args:
      predictions: as from `best_of_queries`.
      original_sizes: (height, width) in pixels of the images before resizing.

    Returns:
      per image: what `predictions` holds of it, with boxes (x0, y0, x1, y1 in original pixels, not
      clipped) in place of boxes_cxcywh.
    """
    predictions = dict(predictions)
    boxes = predictions.pop("boxes_cxcywh")
    centers, halves = boxes[..., :2], boxes[..., 2:] / 2
    scale = np.asarray(original_sizes)[:, None, [1, 0, 1, 0]].astype(boxes.dtype)
    predictions["boxes"] = np.concatenate([centers - halves, centers + halves], -1) * scale
    return [{name: x[image] for name, x in predictions.items()} for image in range(len(boxes))]


def to_coco(image_id: int | str, detections: Mapping[str, np.ndarray]) -> list[dict[str, Any]]:
    """One image's detections as entries of a COCO results file (boxes x, y, width, height); with
    attributes also attr_score and attr_label, as in the reference."""
    columns = dict(
        category_id=detections["labels"].tolist(),
        bbox=_xywh(np.asarray(detections["boxes"], np.float64)).tolist(),
        score=detections["scores"].tolist(),
    )
    if "attr_labels" in detections:
        columns["attr_score"] = detections["attr_scores"].tolist()
        columns["attr_label"] = detections["attr_labels"].tolist()
    return [
        dict(zip(("image_id", *columns), (image_id, *values), strict=True))
        for values in zip(*columns.values(), strict=True)
    ]


def detections(
    predictions: Mapping[str, np.ndarray], original_sizes: Int[np.ndarray, "images 2"]
) -> Detections:
    """All queries of all images as columns, in the order of the images.

    Args:
      predictions, original_sizes: as `post_process` takes them.
    """
    centers, halves = np.split(predictions["boxes_cxcywh"], 2, -1)
    halves = halves / 2
    scale = np.asarray(original_sizes)[:, None, [1, 0, 1, 0]].astype(centers.dtype)
    corners = np.concatenate([centers - halves, centers + halves], -1) * scale
    images, queries = predictions["scores"].shape
    return Detections(
        np.repeat(np.arange(images), queries),
        _xywh(corners.astype(np.float64)).reshape(-1, 4),
        predictions["labels"].reshape(-1),
        predictions["scores"].reshape(-1).astype(np.float64),
    )


def objects(records: Iterable[Mapping[str, Any]]) -> Objects:
    """What prepared records say is there, as columns, crowd regions included."""
    annotated = [record["objects"] for record in records]

    def column(name: str, dtype: type, *shape: int) -> np.ndarray:
        rows = [np.asarray(one[name], dtype).reshape(-1, *shape) for one in annotated]
        return np.concatenate([np.zeros((0, *shape), dtype), *rows])

    counts = [len(one["category_ids"]) for one in annotated]
    return Objects(
        len(annotated),
        np.repeat(np.arange(len(annotated)), counts),
        column("boxes_xywh", np.float32, 4),
        column("category_ids", np.int64),
        column("areas", np.float32),
        column("iscrowd", bool),
    )


def _xywh(corners: Float[np.ndarray, "*dims 4"]) -> Float[np.ndarray, "*dims 4"]:
    """(x0, y0, x1, y1) as (x, y, width, height)."""
    return np.concatenate([corners[..., :2], corners[..., 2:] - corners[..., :2]], -1)
