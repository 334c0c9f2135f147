"""Settings that a config leaves to the data and the devices: image sizes, buckets, batches, steps.

Each is asked for by a value that means nothing else (0, an empty tuple, -1), see `fill`. What was
chosen is a function of the prepared data, the config and the number of devices, and is told.
"""

import dataclasses
import math
from collections.abc import Mapping

import numpy as np

from unit_jax.data import batching, bucket_search, counters, mixture, sampling
from unit_jax.data.mixture import Examples
from unit_jax.data.prepared import PreparedData
from unit_jax.settings import DataSettings, Settings
from unit_jax.tasks import TaskSpec

# DETR trains at short sides of 0.6 to 1 times that of evaluation, and crops at 0.5 to 0.75; it
# enlarges COCO's images, of 480 pixels in the median, to 800.
_ENLARGED = 800 / 480
_LONG = 1333 / 800
_SHORT_SIDES = (320, 800)
_LARGE = 300 * 300  # pixels of an image from which few fit a device
_PER_DEVICE = (16, 4)  # examples of small images and texts, and of large ones


def fill(settings: Settings, data: PreparedData, devices: int) -> tuple[Settings, list[str]]:
    """Puts numbers in place of what a config leaves open; also what was chosen, a line each.

    data.eval_short_side = 0: image sizes by the median image, up to DETR's, with DETR's
      proportions for training sizes and crops.
    data.buckets = (): the shapes that pad least, few for few images.
    data.max_objects = 0: as many as an image has at most.
    train.batch_size, train.eval_batch_size = 0: by devices and image size, no more than examples.
    train.epochs > 0: train.steps is at least so many passes over the training data.
    train.eval_every, train.checkpoint_every = 0: a twentieth of the steps.
    optimizer.warmup_steps = -1: a tenth of the steps.
    A task's ratio "size": see `sampling.ratios`.
    """
    sizes = {name: len(data.split(name, "train")) for name in settings.tasks}
    asked = dict(settings.ratios)
    settings = dataclasses.replace(settings, ratios=sampling.ratios(asked, sizes))
    told = []
    if asked != settings.ratios:
        shares = ", ".join(f"{name} {ratio:.3g}" for name, ratio in settings.ratios.items())
        told.append(f"sampling ratios: {shares}")
    settings, lines = _images(settings, data)
    told += lines
    settings, lines = _numbers(settings, sizes, devices)
    return settings, told + lines


def _images(settings: Settings, data: PreparedData) -> tuple[Settings, list[str]]:
    specs = [spec for spec in settings.tasks.values() if spec.has_image]
    own, told = settings.data, []
    if not specs:
        return settings, told
    if not own.max_objects:
        most = max(data.max_objects(spec.name) for spec in specs)
        own = dataclasses.replace(own, max_objects=max(1, most))
        told.append(f"data.max_objects = {own.max_objects}")
    if not own.eval_short_side:
        short = np.concatenate([np.minimum(*(_size(data, spec.name, "train"))) for spec in specs])
        own = with_sizes(own, _short_side(float(np.median(short))))
        told.append(
            f"image sizes: short side {own.eval_short_side} (the median image's is "
            f"{np.median(short):.0f}), {own.train_short_sides[0]} to {own.train_short_sides[-1]} "
            "in training"
        )
    if not own.buckets:
        own = dataclasses.replace(own, buckets=_buckets(specs, own, settings, data))
        told.append("data.buckets = " + ", ".join(f"{h}x{w}" for h, w in own.buckets))
    return dataclasses.replace(settings, data=own), told


def _size(data: PreparedData, task: str, split: str) -> tuple[np.ndarray, np.ndarray]:
    return data.split(task, split).sizes


def _short_side(median: float) -> int:
    low, high = _SHORT_SIDES
    return int(np.clip(round(median * _ENLARGED / 16) * 16, low, high))


def with_sizes(settings: DataSettings, short: int) -> DataSettings:
    """Data settings whose images have this short side in evaluation, with DETR's proportions."""
    step = max(16, short // 25 // 16 * 16)
    return dataclasses.replace(
        settings,
        eval_short_side=short,
        eval_max_side=round(short * _LONG),
        train_short_sides=tuple(range(round(0.6 * short / 16) * 16, short + 1, step)),
        train_max_side=round(short * _LONG),
        crop_short_sides=tuple(round(share * short) for share in (0.5, 0.625, 0.75)),
        crop_min=round(0.48 * short),
        crop_max=round(0.75 * short),
    )


def _buckets(
    specs: list[TaskSpec], own: DataSettings, settings: Settings, data: PreparedData
) -> tuple[batching.Bucket, ...]:
    """The shapes that pad least, in training by sampling ratio; all else they just hold."""
    sizes, weights, count = [], [], 0
    for spec in specs:
        for split in data.splits(spec.name):
            height, width = _size(data, spec.name, split)
            if not len(height):
                continue
            examples = Examples(len(height), height, width)
            possible = mixture.possible_sizes(spec, examples, own, split == "train")
            sizes.append(possible)
            weights.append(np.zeros(len(possible)))
            if split == "train":
                seeds = counters.mix(settings.seed, spec.name, np.arange(len(height)))
                drawn = mixture.padded_sizes(spec, examples, own, seeds)
                sizes.append(drawn)
                weights.append(np.full(len(drawn), settings.ratios[spec.name] / len(drawn)))
                count += len(height)
    total = np.concatenate(weights)
    if not total.any():
        total = np.ones(len(total))
    # Every further shape is compiled for: it must save enough padding.
    shapes = next(n for least, n in ((5000, 8), (1000, 4), (200, 2), (0, 1)) if count >= least)
    stride = 16 if settings.model.backbone.dilation else 32
    return bucket_search.search(np.concatenate(sizes), total, shapes, stride, settings.seed)


def _numbers(
    settings: Settings, sizes: Mapping[str, int], devices: int
) -> tuple[Settings, list[str]]:
    train, told = settings.train, []
    images = any(spec.has_image for spec in settings.tasks.values())
    largest = max(map(math.prod, settings.data.buckets), default=0) if images else 0
    examples = sum(n for name, n in sizes.items() if settings.ratios[name] > 0)
    per_device = _PER_DEVICE[largest >= _LARGE]
    usual = devices * max(1, min(per_device, -(-examples // devices)))
    if not train.batch_size:
        train = dataclasses.replace(train, batch_size=usual)
        told.append(f"train.batch_size = {usual} (on {devices} device{'s' * (devices > 1)})")
    if not train.eval_batch_size:
        train = dataclasses.replace(train, eval_batch_size=usual)
    if train.epochs:
        steps = max(train.steps, math.ceil(train.epochs * examples / train.batch_size))
        train = dataclasses.replace(train, steps=steps)
        passes = steps * train.batch_size / max(examples, 1)
        told.append(f"train.steps = {steps} ({passes:.0f} passes over {examples} examples)")
    often = max(1, train.steps // 20)
    if not train.eval_every:
        train = dataclasses.replace(train, eval_every=often)
    if not train.checkpoint_every:
        train = dataclasses.replace(train, checkpoint_every=train.eval_every)
    optimizer = settings.optimizer
    if optimizer.warmup_steps < 0:
        optimizer = dataclasses.replace(optimizer, warmup_steps=train.steps // 10)
    return dataclasses.replace(settings, train=train, optimizer=optimizer), told
