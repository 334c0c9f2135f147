"""Images, from file to model: the reference's transforms without its hidden state.

What happens to an image is planned from its width, height and a seed alone (`plan`), so the final
size of any example is known without decoding it, for many examples at once. `apply` then does
exactly what was planned, on uint8 pixels with Pillow's bilinear filter as the reference does.
"""

import io
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Int, UInt8, UInt64
from PIL import Image

from unit_jax.data import counters
from unit_jax.outputs.base import Crop, Flip, Move, Resize
from unit_jax.settings import DataSettings
from unit_jax.tasks import Transforms


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
    then the short side is what the limit leaves, rounded to even ("detr") or down (`floor`,
    "resize"). The long side is rounded down. As the limit acts on the short
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
    style: Transforms,
    height: Int[np.ndarray, "images"],
    width: Int[np.ndarray, "images"],
    settings: DataSettings,
    seeds: UInt64[np.ndarray, "images"] | None = None,
) -> Plan:
    """Plans the transforms of images of the given sizes, a pure function of its arguments.

    "detr" with seeds (training) is DETR's augmentation: a flip, then with
    `crop_probability` a resize to one of `crop_short_sides` and a crop whose sides are drawn
    from [crop_min, min(side, crop_max)], then a resize to one of `train_short_sides`. All else is
    one resize to `eval_short_side`.

    Args:
      style: `TaskSpec.transforms`.
      height, width: of the images as stored, in pixels.
      seeds: one per image; None = evaluation.
    """
    height, width = np.asarray(height, np.int64), np.asarray(width, np.int64)
    images = len(height)
    no_first, no_crop = np.zeros((images, 2), np.int64), np.zeros((images, 4), np.int64)
    if style == "resize" or seeds is None:
        size = resized_size(
            height,
            width,
            settings.eval_short_side,
            settings.eval_max_side,
            floor=style == "resize",
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
    style: Transforms,
    height: Int[np.ndarray, "images"],
    width: Int[np.ndarray, "images"],
    settings: DataSettings,
    training: bool,
) -> Int[np.ndarray, "sizes 2"]:
    """Every (height, width) that `plan` can give such images, each once.

    Crops are counted generously: any crop that some image allows.
    """
    originals = np.unique(np.stack([height, width], -1).astype(np.int64), axis=0)
    if style == "resize" or not training:
        height, width = originals.T
        return np.unique(plan(style, height, width, settings).size, axis=0)
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


def apply(
    pixels: UInt8[np.ndarray, "height width 3"], plan: Plan, row: int
) -> tuple[UInt8[np.ndarray, "new_height new_width 3"], list[Move]]:
    """Transforms one image by row `row` of `plan`.

    Returns:
      the image, and what was done to it, so that a room can move what lies in it.
    """
    size = (pixels.shape[0], pixels.shape[1])
    target = (int(plan.size[row, 0]), int(plan.size[row, 1]))
    crop = Crop(*plan.crop[row].tolist())
    flip, cropped = bool(plan.flip[row]), crop.height > 0
    if size == target and not flip and not cropped:
        return pixels, []
    image = Image.fromarray(pixels)
    moves: list[Move] = []
    if flip:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        moves.append(Flip(size[1]))
    if cropped:
        first = (int(plan.first_size[row, 0]), int(plan.first_size[row, 1]))
        image = _resize(image, first)
        right, bottom = crop.left + crop.width, crop.top + crop.height
        image = image.crop((crop.left, crop.top, right, bottom))
        moves += [Resize(size, first), crop]
        size = (crop.height, crop.width)
    image = _resize(image, target)
    moves.append(Resize(size, target))
    return np.asarray(image), moves


def _resize(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    width_height = size[::-1]
    if image.size == width_height:
        return image
    return image.resize(width_height, Image.Resampling.BILINEAR)
