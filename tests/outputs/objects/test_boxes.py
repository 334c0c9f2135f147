"""Boxes against hand-computed cases and a scalar float64 reference."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from unit_jax.outputs.objects import boxes


def scalar_iou_and_giou(a, b):
    """Overlap of two xyxy boxes by interval arithmetic."""

    def length(low, high):
        return max(high - low, 0.0)

    inter = length(max(a[0], b[0]), min(a[2], b[2])) * length(max(a[1], b[1]), min(a[3], b[3]))
    union = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - inter
    hull = (max(a[2], b[2]) - min(a[0], b[0])) * (max(a[3], b[3]) - min(a[1], b[1]))
    return inter / union, inter / union - (hull - union) / hull


def random_boxes(rng, *shape):
    low = rng.uniform(0, 1, (*shape, 2))
    return np.concatenate([low, low + rng.uniform(0.05, 0.8, (*shape, 2))], -1)


@pytest.mark.parametrize(
    ("a", "b", "iou", "giou"),
    [
        ((0, 0, 2, 2), (0, 0, 2, 2), 1, 1),
        ((0, 0, 2, 2), (1, 1, 3, 3), 1 / 7, 1 / 7 - 2 / 9),  # corner overlaps corner
        ((0, 0, 4, 4), (1, 1, 2, 3), 2 / 16, 2 / 16),  # one inside the other: hull = union
        ((0, 0, 1, 1), (3, 0, 4, 1), 0, -0.5),  # apart: half of the hull is empty
        ((0, 0, 1, 1), (1, 0, 2, 1), 0, 0),  # they touch
        ((1, 1, 1, 1), (1, 1, 1, 1), 0, 0),  # both without area
    ],
)
def test_hand_computed_overlaps(a, b, iou, giou):
    a, b = jnp.asarray(a, jnp.float32), jnp.asarray(b, jnp.float32)
    np.testing.assert_allclose(boxes.box_iou(a, b), iou, rtol=1e-6)
    np.testing.assert_allclose(boxes.generalized_box_iou(a, b), giou, rtol=1e-6, atol=1e-7)


def test_pairwise_overlaps_equal_the_scalar_reference():
    rng = np.random.default_rng(0)
    a, b = random_boxes(rng, 2, 7), random_boxes(rng, 2, 5)
    with jax.enable_x64(True):
        iou = boxes.pairwise_box_iou(jnp.asarray(a), jnp.asarray(b))
        giou = boxes.pairwise_generalized_box_iou(jnp.asarray(a), jnp.asarray(b))
    assert iou.shape == giou.shape == (2, 7, 5)
    assert iou.dtype == giou.dtype == jnp.float64
    for image, i, j in np.ndindex(2, 7, 5):
        wanted = scalar_iou_and_giou(a[image, i], b[image, j])
        np.testing.assert_allclose((iou[image, i, j], giou[image, i, j]), wanted, atol=1e-14)


def test_formats_convert_both_ways():
    cxcywh = jnp.asarray([[0.5, 0.4, 0.2, 0.6]])
    np.testing.assert_allclose(boxes.cxcywh_to_xyxy(cxcywh), [[0.4, 0.1, 0.6, 0.7]], atol=1e-7)
    np.testing.assert_allclose(
        boxes.xyxy_to_cxcywh(boxes.cxcywh_to_xyxy(cxcywh)), cxcywh, atol=1e-7
    )


def test_half_precision_is_computed_in_float32():
    box = jnp.asarray([0.3, 0.3, 0.1, 0.1], jnp.bfloat16)
    assert boxes.cxcywh_to_xyxy(box).dtype == jnp.float32
    assert boxes.box_iou(box, box).dtype == jnp.float32


def test_gradient_of_giou_equals_finite_differences():
    a, b = random_boxes(np.random.default_rng(1), 6), random_boxes(np.random.default_rng(2), 6)
    with jax.enable_x64(True):
        gradient = jax.grad(lambda x: boxes.generalized_box_iou(x, jnp.asarray(b)).sum())(
            jnp.asarray(a)
        )
    for i, k in np.ndindex(6, 4):
        step = np.zeros(4)
        step[k] = 1e-6
        ends = [scalar_iou_and_giou(a[i] + s * step, b[i])[1] for s in (1, -1)]
        np.testing.assert_allclose(gradient[i, k], (ends[0] - ends[1]) / 2e-6, atol=1e-7)


def test_nan_boxes_stay_visible():
    box = jnp.asarray([0.0, 0.0, 1.0, 1.0])
    assert np.isnan(boxes.generalized_box_iou(box.at[0].set(jnp.nan), box))
