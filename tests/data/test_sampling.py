"""Rare classes more often, tasks by size."""

import numpy as np
import pytest

from unit_jax.data import loader, sampling
from unit_jax.settings import BY_SIZE


def test_rare_classes_are_repeated_by_the_square_root_of_their_rarity():
    classes = [{"a"}] * 90 + [{"a", "b"}] * 9 + [{"c", "b"}]
    times = sampling.repeat_times(classes, 0.4)
    assert times[:90].tolist() == [1] * 90  # "a" is in 99 of 100
    np.testing.assert_allclose(times[90:99], (0.4 / 0.10) ** 0.5)
    np.testing.assert_allclose(times[99], (0.4 / 0.01) ** 0.5)
    assert sampling.repeat_times([set(), {"a"}], 0.1).tolist() == [1, 1]


def test_classes_of_every_kind_of_record():
    objects = dict(category_ids=np.asarray([3, 3, 5, 7]), iscrowd=np.asarray([0, 0, 0, 1], bool))
    assert sampling.classes_of({"objects": objects}) == {3, 5}
    assert sampling.classes_of({"label": 2}) == {2} and sampling.classes_of({"label": -1}) == set()
    assert sampling.classes_of({"answers": ["yes", "yes", "no"]}) == {"yes", "no"}
    assert sampling.classes_of({"number": 3.5}) == set()


def test_training_repeats_what_the_setting_asks_for():
    class Split(list):
        height = width = num_tokens = None

    split = Split([{"label": 0}] * 99 + [{"label": 1}])
    assert loader._examples(split).times is None
    np.testing.assert_allclose(loader._examples(split, 0.09).times, [1.0] * 99 + [3.0])


def test_tasks_by_size_share_what_the_others_leave():
    sizes = dict(a=300, b=100, c=7)
    assert sampling.ratios(dict(a=BY_SIZE, b=BY_SIZE, c=0.2), sizes) == dict(
        a=pytest.approx(0.6), b=pytest.approx(0.2), c=0.2
    )
    assert sampling.ratios(dict(a=2, b=1), sizes) == dict(a=2.0, b=1.0)
    with pytest.raises(ValueError, match="leave of 1, which is nothing: theirs sum to 1.5"):
        sampling.ratios(dict(a=BY_SIZE, c=1.5), sizes)
