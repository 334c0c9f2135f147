"""AP by columns against pycocotools to the bit; confusion tables against hotcoco's and by hand."""

import time

import numpy as np
import pytest

from unit_jax.outputs.objects import average_precision as ap


def make_case(seed: int) -> tuple[ap.Objects, ap.Detections, int]:
    """Images with crowds, ties of score and overlap, boxes of no size, empty images and classes."""
    rng = np.random.default_rng(seed)
    images, classes = int(rng.integers(1, 12)), int(rng.integers(1, 6))
    count = int(rng.integers(1, 40))
    boxes = np.concatenate([rng.integers(0, 60, (count, 2)), rng.integers(1, 150, (count, 2))], 1)
    crowd = rng.random(count) < 0.15
    objects = ap.Objects(
        images,
        rng.integers(0, images, count),
        boxes.astype(np.float32),
        rng.integers(0, classes, count),
        (boxes[:, 2] * boxes[:, 3] * rng.uniform(0.3, 1, count)).astype(np.float32),
        crowd,
    )
    near = rng.integers(0, count, int(rng.integers(1, 300)))
    found = boxes[near] + rng.integers(-4, 5, (len(near), 4)) * (rng.random((len(near), 1)) < 0.7)
    found[:, 2:] = np.maximum(found[:, 2:], 0)
    wrong = rng.random(len(near)) < 0.2
    detections = ap.Detections(
        np.where(rng.random(len(near)) < 0.05, rng.integers(0, images), objects.image[near]),
        found.astype(np.float64),
        np.where(wrong, rng.integers(0, classes, len(near)), objects.labels[near]),
        np.round(rng.random(len(near)), 1 if seed % 2 else 6).astype(np.float64),
    )
    return objects, detections, classes + 1  # the last class never occurs


@pytest.mark.parametrize("block", range(4))
def test_the_fast_evaluator_equals_pycocotools_to_the_bit(block):
    pytest.importorskip("hotcoco")
    for seed in range(25 * block, 25 * block + 25):
        case = make_case(seed)
        fast, judge = ap.by_hotcoco(*case), ap.by_pycocotools(*case)
        np.testing.assert_array_equal(fast.stats, judge.stats, err_msg=f"seed {seed}")
        np.testing.assert_array_equal(fast.precision, judge.precision, err_msg=f"seed {seed}")
        per_class = fast.per_class()
        assert np.isnan(per_class[-1])
        if fast.stats[0] >= 0:
            np.testing.assert_allclose(np.nanmean(per_class), judge.stats[0], rtol=1e-12)


def test_without_hotcoco_pycocotools_steps_in(monkeypatch):
    case = make_case(0)
    expected = ap.evaluate(*case)
    monkeypatch.setitem(__import__("sys").modules, "hotcoco", None)  # as if not installed
    monkeypatch.setattr(ap, "by_hotcoco", None)
    np.testing.assert_array_equal(ap.evaluate(*case).precision, expected.precision)


def test_what_is_not_finite_hits_nothing_and_stops_nothing():
    objects, found, classes = make_case(2)
    images, boxes = found.image.copy(), found.boxes_xywh.copy()
    labels, scores = found.labels.copy(), found.scores.copy()
    scores[::7], boxes[3::7] = np.nan, np.nan
    broken = ap.evaluate(objects, ap.Detections(images, boxes, labels, scores), classes)
    boxes[3::7] = 0
    kept = ~np.isnan(scores)
    judge = ap.by_pycocotools(
        objects, ap.Detections(images[kept], boxes[kept], labels[kept], scores[kept]), classes
    )
    np.testing.assert_array_equal(broken.stats, judge.stats)
    scores[:] = np.nan  # a model that diverged
    nothing = ap.evaluate(objects, ap.Detections(images, boxes, labels, scores), classes)
    assert nothing.named()["AP"] == 0
    present = np.unique(objects.labels[~objects.iscrowd])
    assert set(np.flatnonzero(nothing.per_class() == 0)) == set(present)


def test_no_objects_is_no_number():
    none = np.zeros(0, int)
    objects = ap.Objects(2, none, np.zeros((0, 4)), none, np.zeros(0), none.astype(bool))
    found = ap.Detections(np.array([1]), np.array([[0, 0, 5, 5.0]]), np.array([1]), np.array([0.9]))
    for detections in (found, ap.Detections(none, np.zeros((0, 4)), none, np.zeros(0))):
        result = ap.evaluate(objects, detections, 3)
        assert np.isnan(result.named()["AP"]) and np.isnan(result.per_class()).all()


def test_confusion_by_hand():
    """A hit, a class taken for another, a double, a miss, one in a crowd, one below the score."""
    objects = ap.Objects(
        2,
        np.array([0, 0, 1, 1, 1]),
        np.array([[0, 0, 10, 10], [20, 0, 10, 10], [0, 0, 10, 10], [40, 40, 8, 8],
                  [50, 0, 40, 40]], np.float32),
        np.array([0, 1, 1, 2, 2]),
        np.array([100, 100, 100, 64, 1600.0]),
        np.array([False, False, False, False, True]),
    )  # fmt: skip
    found = ap.Detections(
        np.array([0, 0, 0, 1, 1, 1]),
        np.array([[0, 1, 10, 10], [0, 0, 10, 10], [20, 0, 10, 9], [0, 0, 10, 10],
                  [60, 5, 10, 10], [40, 40, 8, 8]], float),
        np.array([0, 0, 2, 1, 0, 2]),
        np.array([0.6, 0.9, 0.8, 0.5, 0.7, 0.4]),
    )  # fmt: skip
    matrix, faults = ap.confusion(objects, found, 3)
    assert matrix.tolist() == [[1, 0, 0, 0], [0, 1, 1, 0], [0, 0, 0, 1], [1, 0, 0, 0]]
    assert faults.tolist() == [2, 1]


def test_confusion_equals_hotcocos_without_crowds_and_ties():
    hotcoco = pytest.importorskip("hotcoco")
    for seed in range(1, 30):
        rng = np.random.default_rng(seed)
        objects, found, classes = make_case(seed)
        real = ~objects.iscrowd
        objects = ap.Objects(
            objects.images, objects.image[real], objects.boxes_xywh[real],
            objects.labels[real], objects.areas[real], objects.iscrowd[real],
        )  # fmt: skip
        found = ap.Detections(
            found.image, found.boxes_xywh + rng.uniform(0, 0.01, found.boxes_xywh.shape),
            found.labels, rng.permutation(len(found.scores)) / len(found.scores),
        )  # fmt: skip
        truth = hotcoco.COCO.from_arrays(
            [dict(id=i, width=1, height=1) for i in range(objects.images)],
            [dict(id=c, name=str(c)) for c in range(classes)],
            objects.image, objects.labels, objects.boxes_xywh.astype(float),
        )  # fmt: skip
        rows = np.column_stack([found.image, found.boxes_xywh, found.scores, found.labels])
        evaluation = hotcoco.COCOeval(truth, truth.load_res(rows), "bbox")
        theirs = evaluation.confusion_matrix(iou_thr=0.5, max_det=1000, min_score=0.5)["matrix"]
        ours, faults = ap.confusion(objects, found, classes)
        np.testing.assert_array_equal(ours, theirs, err_msg=f"seed {seed}")
        assert faults.sum() == ours.sum() - np.trace(ours)


@pytest.mark.slow
def test_five_thousand_images_with_a_hundred_detections_take_seconds():
    rng = np.random.default_rng(0)
    count, objects = 500_000, 36_781
    boxes = rng.uniform(5, 300, (objects, 4)).astype(np.float32)
    truth = ap.Objects(
        5000, np.sort(rng.integers(0, 5000, objects)), boxes, rng.integers(1, 91, objects),
        boxes[:, 2] * boxes[:, 3], rng.random(objects) < 0.01,
    )  # fmt: skip
    near = rng.integers(0, objects, count)
    found = ap.Detections(
        truth.image[near], boxes[near] + rng.normal(0, 9, (count, 4)), truth.labels[near],
        rng.random(count),
    )  # fmt: skip
    start = time.perf_counter()
    ap.evaluate(truth, found, 91)
    ap.confusion(truth, found, 91)
    assert time.perf_counter() - start < 15
