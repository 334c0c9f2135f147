"""Settings that are left to the data and the devices."""

import dataclasses

import numpy as np
import pytest

from configs import unit
from unit_jax import settings as settings_lib
from unit_jax.data import batching, choices, mixture
from unit_jax.data.mixture import Examples
from unit_jax.settings import DataSettings


@dataclasses.dataclass
class Split:
    height: np.ndarray
    width: np.ndarray

    @property
    def sizes(self):
        return self.height, self.width

    def __len__(self):
        return len(self.height)


class Data:
    """Stands for prepared data: sizes of images by split."""

    def __init__(self, train: int, val: int = 5, size=(300, 400), objects: int = 7):
        random = np.random.default_rng(0)
        self._splits = {
            name: Split(*(side + random.integers(-20, 20, count) for side in size))
            for name, count in (("train", train), ("val", val))
        }
        self._objects = objects

    def split(self, task, name):
        return self._splits[name]

    def splits(self, task):
        return list(self._splits)

    def max_objects(self, task):
        return self._objects


def open_settings(data=None, train=None, optimizer=None):
    values = unit.values("coco")
    left_open = dict(eval_short_side=0, buckets=(), max_objects=0)
    values["data"].update(left_open, **(data or {}))
    numbers = dict(batch_size=0, eval_batch_size=0, eval_every=0, checkpoint_every=0)
    values["train"].update(numbers, **(train or dict(steps=100, epochs=20)))
    values["optimizer"].update(optimizer or dict(warmup_steps=-1))
    return settings_lib.from_config(values)


def test_sizes_have_detrs_proportions():
    """At DETR's own short side its very numbers come out."""
    published = settings_lib.from_config(unit.values("coco")).data
    scaled = choices.with_sizes(published, 800)
    for field in dataclasses.fields(DataSettings):
        if "side" in field.name or "crop_m" in field.name:
            assert getattr(scaled, field.name) == getattr(published, field.name), field.name


@pytest.mark.parametrize(
    ("size", "short"), [((300, 400), 496), ((60, 80), 320), ((1080, 1920), 800)]
)
def test_image_sizes_follow_the_median_image(size, short):
    settings, told = choices.fill(open_settings(), Data(40, size=size), 1)
    assert abs(settings.data.eval_short_side - short) <= 16
    assert any(f"short side {settings.data.eval_short_side}" in line for line in told)


@pytest.mark.parametrize(("train", "shapes"), [(10, 1), (300, 2), (1200, 4)])
def test_few_images_get_few_shapes_that_hold_everything(train, shapes):
    data = Data(train)
    settings, _ = choices.fill(open_settings(), data, 1)
    assert 1 <= len(settings.data.buckets) <= shapes
    spec = settings.tasks["coco"]
    for name, training in (("train", True), ("val", False)):
        split = data.split("coco", name)
        sizes = mixture.possible_sizes(
            spec, Examples(len(split), split.height, split.width), settings.data, training
        )
        assert (batching.choose_bucket(sizes, settings.data.buckets) >= 0).all()
    assert settings.data.max_objects == 7


def test_batches_and_steps():
    small = dict(eval_short_side=64, eval_max_side=96, train_short_sides=(64,), train_max_side=96)
    small |= dict(crop_probability=0.0)
    settings, told = choices.fill(open_settings(small), Data(10), 1)
    assert (settings.train.batch_size, settings.train.eval_batch_size) == (10, 10)
    assert settings.train.steps == 100 and settings.train.eval_every == 5
    assert settings.train.checkpoint_every == 5 and settings.optimizer.warmup_steps == 10
    assert any("100 passes over 10 examples" in line for line in told)
    settings, _ = choices.fill(open_settings(small), Data(10), 8)
    assert settings.train.batch_size == 16  # every device has one
    settings, _ = choices.fill(open_settings(small), Data(1000), 8)
    assert settings.train.batch_size == 128 and settings.train.steps == 157  # 20 x 1000 / 128
    settings, _ = choices.fill(open_settings(), Data(1000), 2)  # large images
    assert settings.train.batch_size == 8


def test_what_a_config_says_stays():
    published = settings_lib.from_config(unit.values("coco"))
    settings, told = choices.fill(published, Data(50), 4)
    assert settings == published and told == []


def test_the_ratio_size():
    values = unit.values("coco,vqa2")
    values["tasks"]["coco"]["ratio"] = values["tasks"]["vqa2"]["ratio"] = "size"
    data = Data(30)
    sizes = dict(coco=Data(30).split("", "train"), vqa2=Data(10).split("", "train"))
    data.split = lambda task, name: sizes[task]
    settings, told = choices.fill(settings_lib.from_config(values), data, 1)
    assert settings.ratios == dict(coco=0.75, vqa2=0.25)
    assert told == ["sampling ratios: coco 0.75, vqa2 0.25"]
