"""Pillow's resize inside a program gives Pillow's bits."""

import jax
import numpy as np
import PIL
import pytest
from PIL import Image

from unit_jax.api import resize
from unit_jax.data import transforms

PILLOW_13 = int(PIL.__version__.split(".")[0]) >= 13


def test_every_bit_is_pillows():
    random = np.random.default_rng(0)
    run = jax.jit(resize.resize, static_argnums=(3, 4))
    batch, canvas = 8, (60, 60)
    for _ in range(3):
        old, new = random.integers(1, 160, (batch, 2)), random.integers(1, 60, (batch, 2))
        pictures = random.integers(0, 256, (batch, 160, 160, 3)).astype(np.uint8)
        found = np.asarray(
            run(pictures, old.astype(np.int32), new.astype(np.int32), canvas, PILLOW_13)
        )
        for i in range(batch):
            (height, width), (h, w) = old[i], new[i]
            expected = np.zeros((*canvas, 3), np.uint8)
            image = Image.fromarray(pictures[i, :height, :width])
            expected[:h, :w] = image.resize((w, h), Image.Resampling.BILINEAR)
            assert (found[i] == expected).all(), (old[i], new[i])


@pytest.mark.parametrize("short, most, floor", [(800, 1333, False), (64, 80, True), (64, 0, False)])
def test_sizes_are_those_of_evaluation(short, most, floor):
    sizes = np.random.default_rng(1).integers(1, 3000, (20_000, 2)).astype(np.int32)
    found = np.asarray(resize.target_sizes(sizes, short, most, floor))
    assert (found == transforms.resized_size(*sizes.T, short, most, floor=floor)).all()
