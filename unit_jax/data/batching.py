"""Static shapes: buckets and padding."""

import math
from collections.abc import Iterable, Sequence

import numpy as np
from jaxtyping import Bool, Int, UInt8

from unit_jax.batch import Batch
from unit_jax.data import transforms
from unit_jax.settings import DataSettings
from unit_jax.tasks import Transforms

# What the examples of a batch are padded to: (height, width) of images, or (tokens,) of texts.
Bucket = tuple[int, ...]


def sort_buckets(buckets: Iterable[Bucket]) -> tuple[Bucket, ...]:
    """The buckets in the order in which they are tried: by area, then by height."""
    return tuple(sorted(set(buckets), key=lambda bucket: (math.prod(bucket), bucket)))


def text_buckets(max_tokens: int, settings: DataSettings) -> tuple[Bucket, ...]:
    """The lengths of a task's texts: those of the settings that are shorter than its longest."""
    lengths = {length for length in settings.text_buckets if length < max_tokens}
    return sort_buckets((length,) for length in lengths | {max_tokens})


def choose_bucket(
    sizes: Int[np.ndarray, "examples dims"], buckets: Sequence[Bucket]
) -> Int[np.ndarray, "examples"]:
    """Number of the first bucket that holds each size; -1 where none does.

    With `sort_buckets` this is the bucket that pads least.
    """
    chosen = np.full(len(sizes), -1, np.int64)
    for number in reversed(range(len(buckets))):
        chosen[(sizes <= np.asarray(buckets[number])).all(axis=-1)] = number
    return chosen


def check_buckets(
    name: str,
    style: Transforms,
    height: Int[np.ndarray, "images"],
    width: Int[np.ndarray, "images"],
    settings: DataSettings,
    training: bool,
) -> None:
    """Checks that every size the images can take fits in a bucket.

    Args:
      name: whose images, for the message.
      style: `TaskSpec.transforms`.
      height, width: of the images as stored, in pixels.

    Raises:
      ValueError: some size fits in none; names the largest one and the remedy.
    """
    if not len(height):
        return
    sizes = transforms.possible_sizes(style, height, width, settings, training)
    homeless = sizes[choose_bucket(sizes, settings.buckets) < 0]
    if len(homeless):
        worst = homeless[np.argmax(homeless.prod(axis=-1))]
        raise ValueError(
            f"{name}: {len(homeless)} image sizes after resizing fit in no bucket, the largest "
            f"is {worst[0]} x {worst[1]} (height x width); add buckets to data.buckets (needed: "
            f"height up to {homeless[:, 0].max()}, width up to {homeless[:, 1].max()}) or lower "
            "data.train_short_sides, data.train_max_side, data.eval_short_side or "
            "data.eval_max_side"
        )


def pad_images(
    images: Sequence[UInt8[np.ndarray, "_ _ 3"]], bucket: Bucket
) -> tuple[UInt8[np.ndarray, "batch bucket_height bucket_width 3"], Int[np.ndarray, "batch 2"]]:
    """Images in the top-left corners of a zero batch, and their (height, width)."""
    padded = np.zeros((len(images), *bucket, 3), np.uint8)
    for target, image in zip(padded, images, strict=True):
        target[: image.shape[0], : image.shape[1]] = image
    return padded, np.asarray([image.shape[:2] for image in images], np.int32)


def pad_texts(
    texts: Sequence[tuple[Int[np.ndarray, "_"], int]], max_tokens: int
) -> tuple[
    Int[np.ndarray, "batch max_tokens"],
    Bool[np.ndarray, "batch max_tokens"],
    Int[np.ndarray, "batch max_tokens"],
]:
    """Token ids (padding 0), the mask of real tokens, segment ids.

    Args:
      texts: per example its ids and how many of them belong to the first segment.
    """
    ids = np.zeros((len(texts), max_tokens), np.int32)
    mask = np.zeros((len(texts), max_tokens), bool)
    segments = np.zeros((len(texts), max_tokens), np.int32)
    for i, (tokens, first) in enumerate(texts):
        ids[i, : len(tokens)] = tokens
        mask[i, : len(tokens)] = True
        segments[i, first : len(tokens)] = 1
    return ids, mask, segments


def padding_share(batch: Batch) -> float | None:
    """Share of a batch's pixels (of texts alone: of its tokens) that is padding."""
    if batch.images is not None:
        height, width = batch.images.shape[1:3]
        real = np.prod(np.asarray(batch.image_sizes, np.int64), -1).mean()
        return float(1 - real / (height * width))
    if batch.token_mask is not None:
        return float(1 - np.mean(batch.token_mask))
    return None
