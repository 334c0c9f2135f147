"""Transforms against the reference's numbers (tests/reference/processing) and NumPy loops."""

import io
import json

import numpy as np
import pytest
from PIL import Image

from configs import unit
from tests import REFERENCE_FILES
from unit_jax.data import counters, transforms
from unit_jax.outputs.objects import targets
from unit_jax.outputs.objects.targets import Objects
from unit_jax.settings import DataSettings, build

REFERENCE = np.load(REFERENCE_FILES / "processing/reference.npz")
ANNOTATIONS = json.loads(str(REFERENCE["doc"]))["coco/annotations"]
MEAN = np.asarray([0.485, 0.456, 0.406], np.float32)
STD = np.asarray([0.229, 0.224, 0.225], np.float32)
PAPER = build(DataSettings, unit.values()["data"])


def settings(**changes) -> DataSettings:
    return build(DataSettings, {**unit.values()["data"], **changes})


@pytest.mark.parametrize("kind", ["detection", "vqa"])
def test_resized_sizes_are_the_references(kind):
    w, h, size, limit, out_h, out_w = REFERENCE[f"sizes/{kind}"].astype(np.int64).T
    assert len(w) > 50
    for max_side in np.unique(limit):
        rows = limit == max_side
        got = transforms.resized_size(
            h[rows], w[rows], size[rows], int(max_side), floor=kind == "vqa"
        )
        np.testing.assert_array_equal(got, np.stack([out_h, out_w], -1)[rows])


def test_resized_size_of_one_image_and_of_an_extreme_one():
    assert transforms.resized_size(480, 640, 800, 1333).tolist() == [800, 1066]
    assert transforms.resized_size(1, 5000, 800, 1333).tolist() == [1, 5000]


def loaded() -> Objects:
    height, width = REFERENCE["coco/image"].shape[:2]
    fields = dict(
        boxes_xywh=np.asarray([a["bbox"] for a in ANNOTATIONS]),
        category_ids=np.asarray([a["category_id"] for a in ANNOTATIONS]),
        iscrowd=np.asarray([a.get("iscrowd", 0) for a in ANNOTATIONS]),
        attributes=np.asarray([a["attribute_ids_max16"] for a in ANNOTATIONS]),
    )
    return targets.load(fields, height, width)


def apply(pixels, objects, plan, row):
    pixels, moves = transforms.apply(pixels, plan, row)
    return pixels, targets.move(objects, moves)


def check_objects(case: str, objects: Objects):
    np.testing.assert_array_equal(objects.boxes_xyxy, REFERENCE[f"coco/{case}/boxes"])
    np.testing.assert_array_equal(objects.labels, REFERENCE[f"coco/{case}/labels"])
    np.testing.assert_array_equal(objects.attributes, REFERENCE[f"coco/{case}/attributes"])
    assert [x.dtype for x in objects] == [np.float32, np.int32, np.int32]


def test_loading_drops_crowds_and_empty_boxes_and_clamps():
    check_objects("loaded", loaded())


def test_loading_no_objects():
    fields = dict(
        boxes_xywh=np.zeros((0, 4)),
        category_ids=np.zeros(0),
        iscrowd=np.zeros(0, bool),
        attributes=np.zeros((0, 16)),
    )
    objects = targets.load(fields, 5, 7)
    assert [x.shape for x in objects] == [(0, 4), (0,), (0, 16)]


def one(flip=False, first=(0, 0), crop=(0, 0, 0, 0), size=(0, 0)) -> transforms.Plan:
    return transforms.Plan(*(np.asarray([x]) for x in (flip, first, crop, size)))


@pytest.mark.parametrize(
    ("case", "short_side", "max_side"),
    [("hflip", None, 0), ("resize_40_max60", 40, 60), ("resize_120", 120, 0)],
)
def test_flip_and_resize_are_the_references(case, short_side, max_side):
    image = REFERENCE["coco/image"]
    size = image.shape[:2]
    if short_side:
        size = transforms.resized_size(*size, short_side, max_side)
    plan = one(flip=case == "hflip", size=size)
    pixels, objects = apply(image, loaded(), plan, 0)
    expected = REFERENCE[f"coco/{case}/image_out"]
    assert pixels.shape == expected.shape and pixels.dtype == np.uint8
    assert np.abs(pixels.astype(int) - expected).max() <= 1
    check_objects(case, objects)


def test_crop_is_the_references():
    image = REFERENCE["coco/image"]
    plan = one(first=image.shape[:2], crop=(10, 30, 30, 40), size=(30, 40))
    pixels, objects = apply(image, loaded(), plan, 0)
    np.testing.assert_array_equal(pixels, REFERENCE["coco/crop_i10_j30_h30_w40/image_out"])
    check_objects("crop_i10_j30_h30_w40", objects)


def test_normalised_boxes_are_the_references():
    np.testing.assert_array_equal(
        targets.normalise_boxes(loaded().boxes_xyxy, *REFERENCE["coco/image"].shape[:2]),
        REFERENCE["coco/normalize/boxes"],
    )


def test_evaluation_is_the_references_inference_transform():
    image = REFERENCE["coco/image"]
    height, width = image.shape[:2]
    small = settings(eval_short_side=64, eval_max_side=90)
    plan = transforms.plan("detr", np.asarray([height]), np.asarray([width]), small)
    pixels, objects = apply(image, loaded(), plan, 0)
    expected = REFERENCE["coco/inference_64_max90/image_out"].transpose(1, 2, 0)
    expected = (expected * STD + MEAN) * 255
    assert pixels.shape == expected.shape
    assert np.abs(pixels - expected).max() <= 1 + 1e-3
    boxes = targets.normalise_boxes(objects.boxes_xyxy, *pixels.shape[:2])
    np.testing.assert_array_equal(boxes, REFERENCE["coco/inference_64_max90/boxes"])


def test_planning_is_a_function_of_each_row_alone():
    rng = np.random.default_rng(0)
    h, w = rng.integers(200, 900, (2, 50))
    seeds = rng.integers(0, 2**63, 50).astype(np.uint64)
    together = transforms.plan("detr", h, w, PAPER, seeds)
    order = rng.permutation(50)[:20]
    apart = transforms.plan("detr", h[order], w[order], PAPER, seeds[order])
    for a, b in zip(together, apart, strict=True):
        np.testing.assert_array_equal(a[order], b)


def test_planned_augmentation_follows_the_papers_distribution():
    n = 40_000
    h, w = np.full(n, 480), np.full(n, 640)
    plan = transforms.plan("detr", h, w, PAPER, counters.mix("test", np.arange(n)))
    cropped = plan.crop[:, 2] > 0
    # Five standard deviations of a mean of n coin tosses are 0.0125.
    assert abs(plan.flip.mean() - 0.5) < 0.0125
    assert abs(cropped.mean() - 0.5) < 0.0125
    assert abs((plan.flip & cropped).mean() - 0.25) < 0.0125
    short, counts = np.unique(plan.size.min(axis=-1)[~cropped], return_counts=True)
    assert short.tolist() == list(range(480, 801, 32))
    assert abs(counts / counts.sum() - 1 / 11).max() < 0.012
    # The first resize is DETR's, without limit on the long side.
    first, counts = np.unique(plan.first_size[cropped], axis=0, return_counts=True)
    assert first.tolist() == [[400, 533], [500, 666], [600, 800]]
    assert abs(counts / counts.sum() - 1 / 3).max() < 0.02
    for size in first:
        top, left, height, width = plan.crop[cropped & (plan.first_size == size).all(-1)].T
        for side, limit in ((height, size[0]), (width, size[1])):
            values, counts = np.unique(side, return_counts=True)
            assert (values[0], values[-1]) == (384, min(limit, 600))
            expected = counts.sum() / (min(limit, 600) - 384 + 1)
            assert (abs(counts - expected) < 6 * np.sqrt(expected)).all()
        assert top.min() == left.min() == 0
        assert (top + height <= size[0]).all() and (left + width <= size[1]).all()
        assert (top + height == size[0]).any() and (left + width == size[1]).any()


def test_vision_language_training_only_resizes():
    seeds = np.arange(3, dtype=np.uint64)
    h, w = np.asarray([333, 480, 100]), np.asarray([1000, 640, 100])
    plan = transforms.plan("resize", h, w, PAPER, seeds)
    assert not plan.flip.any() and not plan.crop.any()
    assert plan.size.tolist() == [[443, 1330], [800, 1066], [800, 800]]
    detection = transforms.plan("detr", h, w, PAPER)
    assert detection.size.tolist() == [[444, 1333], [800, 1066], [800, 800]]


def slow_augmentation(image, boxes, plan, row):
    """The same steps, one at a time, on a picture that Pillow holds and boxes as Python floats."""
    picture = Image.fromarray(image)
    boxes = [list(map(float, box)) for box in boxes]
    kept = list(range(len(boxes)))
    if plan.flip[row]:
        picture = picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        boxes = [[picture.width - x1, y0, picture.width - x0, y1] for x0, y0, x1, y1 in boxes]

    def resize(height, width):
        nonlocal picture, boxes
        x, y = width / picture.width, height / picture.height
        boxes = [[x0 * x, y0 * y, x1 * x, y1 * y] for x0, y0, x1, y1 in boxes]
        picture = picture.resize((width, height), Image.Resampling.BILINEAR)

    if plan.crop[row, 2]:
        resize(*plan.first_size[row].tolist())
        top, left, height, width = plan.crop[row].tolist()
        picture = picture.crop((left, top, left + width, top + height))
        clipped = []
        for x0, y0, x1, y1 in boxes:
            xs = [min(max(x - left, 0), width) for x in (x0, x1)]
            ys = [min(max(y - top, 0), height) for y in (y0, y1)]
            clipped.append([xs[0], ys[0], xs[1], ys[1]])
        kept = [i for i, b in enumerate(clipped) if b[2] > b[0] and b[3] > b[1]]
        boxes = [clipped[i] for i in kept]
    resize(*plan.size[row].tolist())
    return np.asarray(picture), np.asarray(boxes).reshape(-1, 4), kept


def test_applied_is_what_was_planned():
    rng = np.random.default_rng(1)
    small = settings(
        train_short_sides=(30, 40, 50),
        train_max_side=70,
        crop_short_sides=(32, 40),
        crop_min=16,
        crop_max=36,
    )
    n = 60
    h, w = rng.integers(20, 90, (2, n))
    plan = transforms.plan("detr", h, w, small, counters.mix(1, np.arange(n)))
    dropped = 0
    for i in range(n):
        image = rng.integers(0, 256, (h[i], w[i], 3), np.uint8)
        corner = rng.uniform(0, 0.8, (6, 2)) * [w[i], h[i]]
        boxes = np.concatenate([corner, corner + rng.uniform(1, 15, (6, 2))], -1)
        objects = Objects(
            boxes.astype(np.float32),
            np.arange(6, dtype=np.int32),
            np.tile(np.arange(6, dtype=np.int32)[:, None], 16),
        )
        pixels, seen = apply(image, objects, plan, i)
        expected_pixels, expected_boxes, kept = slow_augmentation(image, boxes, plan, i)
        assert pixels.shape[:2] == tuple(plan.size[i])
        np.testing.assert_array_equal(pixels, expected_pixels)
        np.testing.assert_allclose(seen.boxes_xyxy, expected_boxes, atol=1e-4)
        assert seen.labels.tolist() == kept
        assert seen.attributes[:, 0].tolist() == kept
        dropped += 6 - len(kept)
    assert dropped > 10


def test_possible_sizes_holds_every_planned_size():
    small = settings(
        train_short_sides=(30, 40),
        train_max_side=55,
        crop_short_sides=(24, 32),
        crop_min=16,
        crop_max=28,
        eval_short_side=40,
        eval_max_side=60,
    )
    rng = np.random.default_rng(2)
    h, w = rng.integers(30, 60, (2, 20))
    possible = {tuple(s) for s in transforms.possible_sizes("detr", h, w, small, True)}
    seen = set()
    for seed in range(300):
        plan = transforms.plan("detr", h, w, small, counters.mix(seed, np.arange(20)))
        seen |= {tuple(s) for s in plan.size}
    assert seen <= possible
    assert len(possible) < 3 * len(seen)  # not merely everything
    for style in ("detr", "resize"):
        sizes = transforms.possible_sizes(style, h, w, small, False)
        expected = transforms.plan(style, h, w, small).size
        assert {tuple(s) for s in sizes} == {tuple(s) for s in expected}


def encoded(image: Image.Image, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, **options)
    return buffer.getvalue()


def test_decoding_ignores_orientation_and_gives_rgb():
    pixels = np.random.default_rng(3).integers(0, 256, (9, 14, 3), np.uint8)
    image = Image.fromarray(pixels)
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by 90 degrees
    np.testing.assert_array_equal(
        transforms.decode(encoded(image, format="PNG", exif=exif)), pixels
    )
    grey = transforms.decode(encoded(image.convert("L"), format="PNG"))
    assert grey.shape == (9, 14, 3) and (grey[..., 0] == grey[..., 2]).all()
    jpeg = encoded(image.convert("CMYK"), format="JPEG")
    assert transforms.decode(jpeg).shape == (9, 14, 3)


GAMMA = 0x9E3779B97F4A7C15


def splitmix64(state: int) -> int:
    """The published generator's next output, in Python integers."""
    z = (state + GAMMA) % 2**64
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
    z = (z ^ (z >> 27)) * 0x94D049BB133111EB % 2**64
    return z ^ (z >> 31)


def test_hashing_is_splitmix_and_broadcasts():
    # The generator's first outputs from state 0, as published with it.
    assert splitmix64(0) == 0xE220A8397B1DCDAF and splitmix64(GAMMA) == 0x6E789E6AA1B965F4

    def fold(state: int, key: int) -> int:
        return splitmix64((state + GAMMA + splitmix64(key)) % 2**64)

    got = counters.mix(7, np.arange(4))
    assert got.tolist() == [fold(fold(0, 7), i) for i in range(4)]
    assert counters.mix(7, 2) == got[2] and counters.mix(-1, 3) == counters.mix(2**64 - 1, 3)
    assert counters.mix("a", 1) != counters.mix("b", 1) != counters.mix(1, "b")


def test_hashed_integers_are_uniform():
    n = 100_000
    drawn = counters.integers(counters.mix("uniform", np.arange(n)), 3, 12)
    counts = np.bincount(drawn, minlength=13)
    assert counts[:3].sum() == 0 and len(counts) == 13
    assert (((counts[3:] - n / 10) ** 2) / (n / 10)).sum() < 33  # chi-square, 9 degrees, p 1e-4
