"""Images and boxes, from file to model: the reference's transforms without its hidden state.

What happens to an image is planned from its width, height and a seed alone (`plan`), so the final
size of any example is known without decoding it, for many examples at once. `apply` then does
exactly what was planned, on uint8 pixels with Pillow's bilinear filter as the reference does.
"""

import io
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int, UInt8, UInt64
from PIL import Image

from unit_jax.data import counters
from unit_jax.settings import DataSettings
from unit_jax.tasks import Kind


class Objects(NamedTuple):
    """The objects of one image.

    Attributes:
      boxes: (x0, y0, x1, y1) in pixels.
      labels: class ids.
      attributes: attribute ids, -1 = unused slot.
    """

    boxes: Float[np.ndarray, "objects 4"]
    labels: Int[np.ndarray, "objects"]
    attributes: Int[np.ndarray, "objects 16"]

    def select(self, keep: Bool[np.ndarray, "objects"]) -> "Objects":
        return Objects(self.boxes[keep], self.labels[keep], self.attributes[keep])


class Plan(NamedTuple):
    """What happens to images, row by row, in this order.

    Attributes:
      flip: mirror left to right.
      first_size: (height, width) of a resize before the crop; zeros = neither.
      crop: (top, left, height, width), in pixels after the first resize.
      size: (height, width) of the last resize: the image's final size.
    """

    flip: Bool[np.ndarray, "images"]
    first_size: Int[np.ndarray, "images 2"]
    crop: Int[np.ndarray, "images 4"]
    size: Int[np.ndarray, "images 2"]


def resized_size(
    height: Int[np.ndarray, "..."] | int,
    width: Int[np.ndarray, "..."] | int,
    short_side: Int[np.ndarray, "..."] | int,
    max_side: int = 0,
    *,
    floor: bool = False,
) -> Int[np.ndarray, "... 2"]:
    """(height, width) that the reference's resize gives, in pixels.

    The short side becomes `short_side`, unless the long one would pass `max_side` (0 = no limit):
    then the short side is what the limit leaves, rounded to even (detection) or down (`floor`,
    the vision-language tasks). The long side is rounded down. As the limit acts on the short
    side, the long one can pass it by a few pixels on narrow images.
    """
    height, width, size = np.broadcast_arrays(*np.asarray([height, width]), short_side)
    short, long = np.minimum(height, width), np.maximum(height, width)
    if max_side:
        limited = max_side * short / long
        limited = np.floor(limited) if floor else np.rint(limited)
        limited = np.maximum(limited, 1).astype(np.int64)  # the reference fails on 0
        size = np.where(long / short * size > max_side, limited, size)
    other = size * long // short
    portrait = height > width
    return np.stack([np.where(portrait, other, size), np.where(portrait, size, other)], -1)


def plan(
    kind: Kind,
    height: Int[np.ndarray, "images"],
    width: Int[np.ndarray, "images"],
    settings: DataSettings,
    seeds: UInt64[np.ndarray, "images"] | None = None,
) -> Plan:
    """Plans the transforms of images of the given sizes, a pure function of its arguments.

    Detection with seeds (training) is DETR's augmentation: a flip, then with
    `crop_probability` a resize to one of `crop_short_sides` and a crop whose sides are drawn
    from [crop_min, min(side, crop_max)], then a resize to one of `train_short_sides`. All else is
    one resize to `eval_short_side`; vision-language tasks also train like this.

    Args:
      kind: of the task.
      height, width: of the images as stored, in pixels.
      seeds: one per image; None = evaluation.
    """
    height, width = np.asarray(height, np.int64), np.asarray(width, np.int64)
    images = len(height)
    no_first, no_crop = np.zeros((images, 2), np.int64), np.zeros((images, 4), np.int64)
    if kind != "detection" or seeds is None:
        size = resized_size(
            height,
            width,
            settings.eval_short_side,
            settings.eval_max_side,
            floor=kind == "vision_language",
        )
        return Plan(np.zeros(images, bool), no_first, no_crop, size)

    def bits(what: str):
        return counters.mix(seeds, what)

    def choice(what: str, options: tuple[int, ...]):
        return np.asarray(options)[counters.integers(bits(what), 0, len(options) - 1)]

    flip = counters.uniform(bits("flip")) < settings.flip_probability
    cropped = counters.uniform(bits("crop or not")) < settings.crop_probability
    first = resized_size(height, width, choice("first size", settings.crop_short_sides))
    side = counters.integers(
        np.stack([bits("crop height"), bits("crop width")], -1),
        np.minimum(first, settings.crop_min),
        np.minimum(first, settings.crop_max),
    )
    corner = counters.integers(np.stack([bits("top"), bits("left")], -1), 0, first - side)
    before = np.where(cropped[:, None], side, np.stack([height, width], -1))
    size = resized_size(
        before[:, 0],
        before[:, 1],
        choice("size", settings.train_short_sides),
        settings.train_max_side,
    )
    return Plan(
        flip,
        np.where(cropped[:, None], first, no_first),
        np.where(cropped[:, None], np.concatenate([corner, side], -1), no_crop),
        size,
    )


def possible_sizes(
    kind: Kind,
    height: Int[np.ndarray, "images"],
    width: Int[np.ndarray, "images"],
    settings: DataSettings,
    training: bool,
) -> Int[np.ndarray, "sizes 2"]:
    """Every (height, width) that `plan` can give such images, each once.

    Crops are counted generously: any crop that some image allows.
    """
    originals = np.unique(np.stack([height, width], -1).astype(np.int64), axis=0)
    if kind != "detection" or not training:
        return np.unique(plan(kind, *originals.T, settings).size, axis=0)
    sources = [originals]
    if settings.crop_probability > 0:
        for short_side in settings.crop_short_sides:
            first = resized_size(*originals.T, short_side)
            low = np.minimum(first, settings.crop_min).min(axis=0)
            high = np.minimum(first, settings.crop_max).max(axis=0)
            crops = np.meshgrid(*(np.arange(a, b + 1) for a, b in zip(low, high, strict=True)))
            sources.append(np.stack(crops, -1).reshape(-1, 2))
    sources = np.unique(np.concatenate(sources), axis=0)
    sizes = [
        np.unique(resized_size(*sources.T, short_side, settings.train_max_side), axis=0)
        for short_side in settings.train_short_sides
    ]
    return np.unique(np.concatenate(sizes), axis=0)


def decode(data: bytes) -> UInt8[np.ndarray, "height width 3"]:
    """RGB pixels of an encoded image.

    An EXIF orientation is ignored, as in the reference. Pillow's draft mode, which would decode
    a JPEG at reduced size, is not used.
    """
    with Image.open(io.BytesIO(data)) as image:
        # Converting RGB to RGB would copy it.
        return np.asarray(image if image.mode == "RGB" else image.convert("RGB"))


def load_objects(
    boxes_xywh: Float[np.ndarray, "objects 4"],
    category_ids: Int[np.ndarray, "objects"],
    iscrowd: Bool[np.ndarray, "objects"],
    attributes: Int[np.ndarray, "objects 16"],
    height: int,
    width: int,
) -> Objects:
    """The objects that training sees: no crowd regions, clamped to the image, none empty."""
    boxes = np.array(boxes_xywh, np.float32).reshape(-1, 4)
    boxes[:, 2:] += boxes[:, :2]
    limits = np.asarray([width, height, width, height], np.float32)
    boxes = np.clip(boxes, np.float32(0), limits)
    keep = ~np.asarray(iscrowd, bool) & (boxes[:, 2:] > boxes[:, :2]).all(axis=-1)
    return Objects(
        boxes, np.asarray(category_ids, np.int32), np.asarray(attributes, np.int32)
    ).select(keep)


def flip_objects(objects: Objects, width: int) -> Objects:
    """Objects of an image `width` pixels wide, mirrored left to right."""
    sign = np.asarray([-1, 1, -1, 1], np.float32)
    shift = np.asarray([width, 0, width, 0], np.float32)
    return objects._replace(boxes=objects.boxes[:, [2, 1, 0, 3]] * sign + shift)


def resize_objects(objects: Objects, old: Sequence[int], new: Sequence[int]) -> Objects:
    """Objects of an image resized from (height, width) `old` to `new`."""
    y, x = new[0] / old[0], new[1] / old[1]
    return objects._replace(boxes=objects.boxes * np.asarray([x, y, x, y], np.float32))


def crop_objects(objects: Objects, top: int, left: int, height: int, width: int) -> Objects:
    """Objects seen in a crop, clipped to it; those with no area left are dropped."""
    boxes = objects.boxes - np.asarray([left, top, left, top], np.float32)
    limits = np.asarray([width, height, width, height], np.float32)
    boxes = np.clip(boxes, np.float32(0), limits)
    return objects._replace(boxes=boxes).select((boxes[:, 2:] > boxes[:, :2]).all(axis=-1))


def normalise_boxes(
    boxes: Float[np.ndarray, "objects 4"], height: int, width: int
) -> Float[np.ndarray, "objects 4"]:
    """Corners in pixels to (centre x, centre y, width, height) in [0, 1] of the image."""
    low, high = boxes[:, :2], boxes[:, 2:]
    cxcywh = np.concatenate([(low + high) / np.float32(2), high - low], -1)
    return cxcywh / np.asarray([width, height, width, height], np.float32)


def apply(
    pixels: UInt8[np.ndarray, "height width 3"],
    objects: Objects | None,
    plan: Plan,
    row: int,
) -> tuple[UInt8[np.ndarray, "new_height new_width 3"], Objects | None]:
    """Transforms one image, and its objects if any, by row `row` of `plan`."""
    size = tuple(pixels.shape[:2])
    target = tuple(plan.size[row].tolist())
    crop = plan.crop[row].tolist()
    flip, cropped = bool(plan.flip[row]), crop[2] > 0
    if size == target and not flip and not cropped:
        return pixels, objects
    image = Image.fromarray(pixels)
    if flip:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        objects = objects and flip_objects(objects, size[1])
    if cropped:
        first = tuple(plan.first_size[row].tolist())
        image = _resize(image, first)
        objects = objects and resize_objects(objects, size, first)
        top, left, height, width = crop
        image = image.crop((left, top, left + width, top + height))
        objects = objects and crop_objects(objects, *crop)
        size = (height, width)
    image = _resize(image, target)
    objects = objects and resize_objects(objects, size, target)
    return np.asarray(image), objects


def _resize(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    width_height = size[::-1]
    if image.size == width_height:
        return image
    return image.resize(width_height, Image.Resampling.BILINEAR)
