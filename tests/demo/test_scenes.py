"""The demo world's pictures: outlines, masks, boxes, and where things may lie."""

import dataclasses
from collections import Counter

import matplotlib.path
import numpy as np
import pytest

from unit_jax.demo import world
from unit_jax.demo.scenes import (
    COLOR_SHARES,
    HELD_OUT,
    MAX_COVER,
    SHAPES,
    Chooser,
    Thing,
    draw_scene,
    outline,
    pair_shares,
    render,
    thing_mask,
)


def things(shape: str) -> list[Thing]:
    chooser = Chooser(f"things of shape {shape}")
    return [
        Thing(shape, "red", "big", "plain", 7, 5, side, chooser.uniform(-0.25, 0.25))
        for side in (17, 24, 37, 51)
    ]


@pytest.mark.parametrize("shape", SHAPES)
def test_masks_and_boxes_agree_with_the_outline(shape):
    centres = np.stack(np.meshgrid(np.arange(70), np.arange(64)), axis=-1).reshape(-1, 2) + 0.5
    for thing in things(shape):
        mask = thing_mask(thing, 64, 70)
        inside = matplotlib.path.Path(outline(thing)).contains_points(centres).reshape(64, 70)
        assert (mask & inside).sum() / (mask | inside).sum() > 0.85
        x, y, width, height = world._box(mask)
        # The longer side of the box fills the thing's square.
        assert max(width, height) == pytest.approx(thing.side, abs=2)
        rows, columns = np.nonzero(mask)
        assert (x, y) == (columns.min(), rows.min())
        assert (x + width, y + height) == (columns.max() + 1, rows.max() + 1)


def test_a_ring_has_a_hole():
    for thing in things("ring"):
        mask = thing_mask(thing, 64, 70)
        assert not mask[thing.top + thing.side // 2, thing.left + thing.side // 2]


def test_render_changes_exactly_the_masked_pixels():
    for number in range(20):
        scene = draw_scene(Chooser(f"render {number}"))
        bare = dataclasses.replace(scene, things=())
        changed = (render(scene) != render(bare)).any(-1)
        masks = [thing_mask(thing, scene.height, scene.width) for thing in scene.things]
        mask = np.any(masks, axis=0)
        # A mask counts pixels covered by half; those at the rim may change without counting.
        assert (changed & mask).sum() > 0.99 * mask.sum()
        assert (changed & ~mask).sum() < 0.35 * mask.sum()


def test_scenes_stay_in_the_picture_and_hardly_overlap():
    sizes = set()
    for number in range(200):
        scene = draw_scene(Chooser(f"scene {number}"), curtain=number % 2 == 1)
        sizes.add((scene.width, scene.height))
        for i, thing in enumerate(scene.things):
            assert 0 < thing.left and thing.left + thing.side < scene.width
            assert 0 < thing.top and thing.top + thing.side < scene.height
            if scene.curtain:
                left, top, right, bottom = scene.curtain
                assert (
                    thing.left + thing.side <= left
                    or thing.left >= right
                    or thing.top + thing.side <= top
                    or thing.top >= bottom
                )
            for other in scene.things[:i]:
                across = min(thing.left + thing.side, other.left + other.side)
                across -= max(thing.left, other.left)
                down = min(thing.top + thing.side, other.top + other.side)
                down -= max(thing.top, other.top)
                covered = max(across, 0) * max(down, 0)
                assert covered <= MAX_COVER * min(thing.side, other.side) ** 2
    assert len(sizes) > 100
    assert {width > height for width, height in sizes} == {True, False}


@pytest.mark.parametrize("unseen_share", [0.0, 0.1])
def test_colours_and_shapes_are_as_frequent_as_told(unseen_share):
    shares = pair_shares(unseen_share)
    assert sum(shares.values()) == pytest.approx(1)
    assert sum(shares[pair] for pair in HELD_OUT) == pytest.approx(unseen_share)
    shown = Counter(
        (thing.color, thing.shape)
        for number in range(3000)
        for thing in draw_scene(Chooser(f"shares {number}", unseen_share)).things
    )
    for pair, share in shares.items():
        # Four standard deviations; of several things the last may find no place.
        spread = 4 * (share * (1 - share) / shown.total()) ** 0.5
        assert shown[pair] / shown.total() == pytest.approx(share, abs=spread), pair
    assert max(COLOR_SHARES.values()) > 5 * min(COLOR_SHARES.values())


def test_the_curtain_is_grey_cloth_over_the_background():
    scene = draw_scene(Chooser("curtain"), curtain=True)
    left, top, right, bottom = scene.curtain
    cloth = render(scene)[top:bottom, left:right].astype(int)
    assert np.ptp(cloth, axis=-1).max() == 0
    assert abs(cloth.mean() - 104) < 12
