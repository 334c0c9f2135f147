"""The objects of an image: from a record, through the transforms, to padded arrays."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from flax import struct
from jaxtyping import Bool, Float, Int

from unit_jax.batch import AnyArray
from unit_jax.outputs.base import Crop, Flip, Move, Resize

ATTRIBUTE_SLOTS = 16  # attribute ids an object can carry; the reference fixes them
NO_ATTRIBUTE = -1


class Objects(NamedTuple):
    """The objects of one image.

    Attributes:
      boxes_xyxy: (x0, y0, x1, y1) in pixels.
      labels: class ids.
      attributes: attribute ids, -1 = unused slot.
    """

    boxes_xyxy: Float[np.ndarray, "objects 4"]
    labels: Int[np.ndarray, "objects"]
    attributes: Int[np.ndarray, "objects 16"]

    def select(self, keep: Bool[np.ndarray, "objects"]) -> "Objects":
        return Objects(self.boxes_xyxy[keep], self.labels[keep], self.attributes[keep])


class ObjectTargets(struct.PyTreeNode):
    """The objects of a batch of images, padded to the same number.

    Attributes:
      boxes_cxcywh: (centre x, centre y, width, height) in [0, 1] of the valid image.
      labels: class ids.
      object_mask: True where an object is real.
      attributes: up to 16 attribute ids per object, -1 = unused slot; None without attributes.
    """

    boxes_cxcywh: Float[AnyArray, "batch objects 4"]
    labels: Int[AnyArray, "batch objects"]
    object_mask: Bool[AnyArray, "batch objects"]
    attributes: Int[AnyArray, "batch objects 16"] | None = None


def trained_objects(
    boxes_xywh: Float[np.ndarray, "objects 4"],
    iscrowd: Bool[np.ndarray, "objects"] | Int[np.ndarray, "objects"],
    height: int,
    width: int,
) -> tuple[Float[np.ndarray, "objects 4"], Bool[np.ndarray, "objects"]]:
    """(boxes clamped to the image as (x0, y0, x1, y1), True for objects that training keeps).

    As in the reference: no crowd regions, and some width and height inside the image.
    """
    boxes = np.array(boxes_xywh, np.float32).reshape(-1, 4)
    boxes[:, 2:] += boxes[:, :2]
    limits = np.asarray([width, height, width, height], np.float32)
    boxes = np.clip(boxes, np.float32(0), limits)
    return boxes, ~np.asarray(iscrowd, bool) & (boxes[:, 2:] > boxes[:, :2]).all(axis=-1)


def load(objects: Mapping[str, Any], height: int, width: int) -> Objects:
    """The objects that training sees, from a record's `objects`.

    Args:
      height, width: of the image as stored, in pixels.
    """
    boxes, keep = trained_objects(objects["boxes_xywh"], objects["iscrowd"], height, width)
    labels = np.asarray(objects["category_ids"], np.int32)
    return Objects(boxes, labels, np.asarray(objects["attributes"], np.int32)).select(keep)


def move(objects: Objects, moves: Sequence[Move]) -> Objects:
    """The objects after their image went through these, in this order."""
    for one in moves:
        objects = MOVES[type(one)](objects, one)
    return objects


def flip(objects: Objects, by: Flip) -> Objects:
    """Mirrored left to right."""
    sign = np.asarray([-1, 1, -1, 1], np.float32)
    shift = np.asarray([by.width, 0, by.width, 0], np.float32)
    return objects._replace(boxes_xyxy=objects.boxes_xyxy[:, [2, 1, 0, 3]] * sign + shift)


def resize(objects: Objects, by: Resize) -> Objects:
    """Scaled with their image."""
    y, x = by.new[0] / by.old[0], by.new[1] / by.old[1]
    return objects._replace(boxes_xyxy=objects.boxes_xyxy * np.asarray([x, y, x, y], np.float32))


def crop(objects: Objects, by: Crop) -> Objects:
    """Seen in a crop, clipped to it; those with no area left are dropped."""
    corner = np.asarray([by.left, by.top, by.left, by.top], np.float32)
    limits = np.asarray([by.width, by.height, by.width, by.height], np.float32)
    boxes = np.clip(objects.boxes_xyxy - corner, np.float32(0), limits)
    return objects._replace(boxes_xyxy=boxes).select((boxes[:, 2:] > boxes[:, :2]).all(axis=-1))


MOVES: dict[type, Callable[[Objects, Any], Objects]] = {Flip: flip, Resize: resize, Crop: crop}


def normalise_boxes(
    boxes_xyxy: Float[np.ndarray, "objects 4"], height: int, width: int
) -> Float[np.ndarray, "objects 4"]:
    """Corners in pixels to (centre x, centre y, width, height) in [0, 1] of the image."""
    low, high = boxes_xyxy[:, :2], boxes_xyxy[:, 2:]
    cxcywh = np.concatenate([(low + high) / np.float32(2), high - low], -1)
    return cxcywh / np.asarray([width, height, width, height], np.float32)


def pad(
    objects: Sequence[Objects],
    sizes: Sequence[tuple[int, int]] | None,
    max_objects: int,
    with_attributes: bool = True,
) -> ObjectTargets:
    """The first `max_objects` of each image; padding is zero (attributes: -1).

    Args:
      sizes: (height, width) in pixels of the images; None = boxes are cxcywh in [0, 1] already.
    """
    batch = len(objects)
    boxes = np.zeros((batch, max_objects, 4), np.float32)
    labels = np.zeros((batch, max_objects), np.int32)
    attributes = np.full((batch, max_objects, ATTRIBUTE_SLOTS), NO_ATTRIBUTE, np.int32)
    mask = np.zeros((batch, max_objects), bool)
    for i, one in enumerate(objects):
        n = min(len(one.labels), max_objects)
        given = one.boxes_xyxy if sizes is None else normalise_boxes(one.boxes_xyxy, *sizes[i])
        boxes[i, :n], labels[i, :n] = given[:n], one.labels[:n]
        attributes[i, :n], mask[i, :n] = one.attributes[:n], True
    return ObjectTargets(boxes, labels, mask, attributes if with_attributes else None)
