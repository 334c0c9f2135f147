"""Box formats and overlaps.

A box is four numbers on the last axis: (centre x, centre y, width, height), called cxcywh, or
(left, top, right, bottom), called xyxy. Everything is computed in at least float32 and keeps
gradients finite for finite boxes of positive size.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from unit_jax.precision import at_least_float32


def cxcywh_to_xyxy(boxes: Float[Array, "*dims 4"]) -> Float[Array, "*dims 4"]:
    """(centre x, centre y, width, height) to (left, top, right, bottom), same unit."""
    boxes = at_least_float32(boxes)
    centre, size = boxes[..., :2], boxes[..., 2:]
    return jnp.concatenate([centre - size / 2, centre + size / 2], axis=-1)


def xyxy_to_cxcywh(boxes: Float[Array, "*dims 4"]) -> Float[Array, "*dims 4"]:
    """(left, top, right, bottom) to (centre x, centre y, width, height), same unit."""
    boxes = at_least_float32(boxes)
    low, high = boxes[..., :2], boxes[..., 2:]
    return jnp.concatenate([(low + high) / 2, high - low], axis=-1)


def box_area(boxes_xyxy: Float[Array, "*dims 4"]) -> Float[Array, "*dims"]:
    """Width times height."""
    size = boxes_xyxy[..., 2:] - boxes_xyxy[..., :2]
    return size[..., 0] * size[..., 1]


def box_iou(a: Float[Array, "*#dims 4"], b: Float[Array, "*#dims 4"]) -> Float[Array, "..."]:
    """Intersection over union of xyxy boxes, element by element (leading axes broadcast)."""
    intersection, union = _intersection_and_union(at_least_float32(a), at_least_float32(b))
    return _ratio(intersection, union)


def generalized_box_iou(
    a: Float[Array, "*#dims 4"], b: Float[Array, "*#dims 4"]
) -> Float[Array, "..."]:
    """Generalised IoU of xyxy boxes, element by element (leading axes broadcast).

    IoU minus the share of the smallest enclosing box that neither covers: in (-1, 1], 1 for equal
    boxes (Rezatofighi et al. 2019).
    """
    a, b = at_least_float32(a), at_least_float32(b)
    intersection, union = _intersection_and_union(a, b)
    low = jnp.minimum(a[..., :2], b[..., :2])
    high = jnp.maximum(a[..., 2:], b[..., 2:])
    hull = box_area(jnp.concatenate([low, high], axis=-1))
    return _ratio(intersection, union) - _ratio(hull - union, hull)


def pairwise_box_iou(
    a: Float[Array, "*#dims n 4"], b: Float[Array, "*#dims m 4"]
) -> Float[Array, "*_ n m"]:
    """Intersection over union of every xyxy box of `a` with every one of `b`."""
    return box_iou(a[..., :, None, :], b[..., None, :, :])


def pairwise_generalized_box_iou(
    a: Float[Array, "*#dims n 4"], b: Float[Array, "*#dims m 4"]
) -> Float[Array, "*_ n m"]:
    """Generalised IoU of every xyxy box of `a` with every one of `b`."""
    return generalized_box_iou(a[..., :, None, :], b[..., None, :, :])


def _intersection_and_union(a: Array, b: Array) -> tuple[Array, Array]:
    low = jnp.maximum(a[..., :2], b[..., :2])
    high = jnp.minimum(a[..., 2:], b[..., 2:])
    size = jax.nn.relu(high - low)
    intersection = size[..., 0] * size[..., 1]
    return intersection, box_area(a) + box_area(b) - intersection


def _ratio(part: Array, whole: Array) -> Array:
    # Two boxes without area overlap by 0, not by 0/0; NaN coordinates stay NaN.
    return part / jnp.where(whole == 0, 1, whole)
