"""Objects from records to padded arrays."""

import types

import numpy as np

from configs import unit
from unit_jax import outputs
from unit_jax.outputs.objects import targets
from unit_jax.outputs.objects.targets import Objects
from unit_jax.settings import DataSettings, build
from unit_jax.tasks import PUBLISHED


def settings(**changes) -> DataSettings:
    return build(DataSettings, {**unit.values()["data"], **changes})


def test_too_many_objects_are_an_error_unless_truncated():
    split = types.SimpleNamespace(num_objects=np.asarray([3, 120, 7, 150]))
    check = outputs.room(PUBLISHED["coco"]).check
    told = check(split, settings(max_objects=100))
    assert told.startswith("2 images ") and "example 3 has 150" in told
    assert check(split, settings(max_objects=100, truncate_objects=True)) is None
    assert check(split, settings(max_objects=150)) is None


def objects(n: int) -> Objects:
    return Objects(
        np.arange(1, 4 * n + 1, dtype=np.float32).reshape(n, 4),
        np.arange(1, n + 1, dtype=np.int32),
        np.tile(np.arange(n, dtype=np.int32)[:, None], 16),
    )


def test_objects_are_padded_and_cut():
    given = [objects(0), objects(2), objects(5)]
    found = targets.pad(given, None, 3)
    boxes, attributes, mask = found.boxes_cxcywh, found.attributes, found.object_mask
    assert (boxes.shape, attributes.shape) == ((3, 3, 4), (3, 3, 16))
    assert mask.tolist() == [[False] * 3, [True, True, False], [True] * 3]
    assert found.labels.tolist() == [[0, 0, 0], [1, 2, 0], [1, 2, 3]]
    np.testing.assert_array_equal(boxes[2], given[2].boxes_xyxy[:3])
    assert (attributes[0] == -1).all() and (attributes[1, 2] == -1).all()
    assert (boxes[~mask] == 0).all()
    assert (boxes.dtype, found.labels.dtype, attributes.dtype) == (np.float32, np.int32, np.int32)
    assert targets.pad(given, None, 3, with_attributes=False).attributes is None


def test_boxes_become_shares_of_the_image():
    one = Objects(np.float32([[10, 20, 30, 60]]), np.int32([1]), np.zeros((1, 16), np.int32))
    found = targets.pad([one], [(80, 40)], 1).boxes_cxcywh
    np.testing.assert_allclose(found, [[[0.5, 0.5, 0.5, 0.5]]])
