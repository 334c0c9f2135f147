"""The shipped model, and pictures of the demo's world, for all tests of this folder."""

import itertools

import pytest
from PIL import Image

import unit_jax
from unit_jax.demo import scenes, world


@pytest.fixture(scope="session")
def model():
    return unit_jax.load("demo", batch_size=4)


@pytest.fixture(scope="session")
def pictures():
    """Pictures of validation scenes, two of them at odd sizes."""
    found = itertools.islice(world.coco_scenes(world.DemoSettings(), "val"), 9)
    shown = [Image.fromarray(scenes.render(scene)) for _, scene in found]
    return [*shown, shown[0].resize((33, 41)), shown[1].resize((200, 150))]
