"""Buckets and padding."""

import numpy as np
import pytest

from configs import unit
from unit_jax.data import batching
from unit_jax.settings import DataSettings, build


def settings(**changes) -> DataSettings:
    return build(DataSettings, {**unit.values()["data"], **changes})


def test_smallest_bucket_that_holds_the_image():
    buckets = batching.sort_buckets(((800, 1344), (512, 704), (1344, 800), (704, 512)))
    rng = np.random.default_rng(0)
    sizes = rng.integers(300, 1400, (500, 2))
    chosen = batching.choose_bucket(sizes, buckets)
    for (height, width), number in zip(sizes, chosen, strict=True):
        fits = [(h * w, i) for i, (h, w) in enumerate(buckets) if height <= h and width <= w]
        if fits:
            assert buckets[number][0] * buckets[number][1] == min(fits)[0]
            assert height <= buckets[number][0] and width <= buckets[number][1]
        else:
            assert number == -1
    assert {-1, 0, 1, 2, 3} == set(chosen.tolist())


def test_paper_buckets_hold_usual_images():
    sizes = np.asarray([(480, 640), (640, 480), (427, 640), (333, 500), (612, 612), (640, 427)])
    for style in ("detr", "resize"):
        for training in (True, False):
            batching.check_buckets("x", style, *sizes.T, settings(), training)


def test_sizes_without_bucket_are_named():
    sizes = np.asarray([(480, 640), (640, 480)])
    small = settings(buckets=((800, 1088), (1088, 704)))
    with pytest.raises(ValueError, match=r"coco.*1066 x 800.*data.buckets") as error:
        batching.check_buckets("coco", "detr", *sizes.T, small, False)
    assert "height up to 1066, width up to 800" in str(error.value)
    # Training crops give other shapes than the images have.
    wide = settings(buckets=((800, 1088),))
    batching.check_buckets("x", "detr", *sizes[:1].T, wide, False)
    with pytest.raises(ValueError, match="800 x 1250.*height up to 1250"):
        batching.check_buckets("x", "detr", *sizes[:1].T, wide, True)


def test_images_are_padded_with_zeros_at_right_and_bottom():
    rng = np.random.default_rng(1)
    images = [rng.integers(1, 256, (h, w, 3), np.uint8) for h, w in ((3, 5), (4, 2))]
    padded, sizes = batching.pad_images(images, (4, 6))
    assert padded.shape == (2, 4, 6, 3) and padded.dtype == np.uint8
    assert sizes.tolist() == [[3, 5], [4, 2]] and sizes.dtype == np.int32
    for image, whole in zip(images, padded, strict=True):
        np.testing.assert_array_equal(whole[: image.shape[0], : image.shape[1]], image)
        assert whole.astype(int).sum() == image.astype(int).sum()
