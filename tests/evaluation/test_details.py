"""Analyses by hand, and the files that are made of them."""

import numpy as np

from unit_jax import outputs
from unit_jax.outputs import analysis
from unit_jax.outputs.base import Names
from unit_jax.tasks import TaskSpec


class Examples(list):
    """Records with image sizes."""

    sizes = np.full(2, 100), np.full(2, 100)


def test_labels_by_class_and_the_surest_mistakes():
    said, true = np.array([0, 1, 1, 2, 0, 1]), np.array([0, 0, 1, 1, -1, 1])
    faults = np.array([0, 0.4, 0, 0.9, 0, 0])
    found = analysis.of_labels(said, true, faults, ["a", "b", "c", "d"])
    assert found.confusion.tolist() == [[1, 1, 0, 0], [0, 2, 1, 0], [0] * 4, [0] * 4]
    assert found.counts.tolist() == [2, 3, 0, 0]
    np.testing.assert_allclose(found.values, [1 / 2, 2 / 3, np.nan, np.nan])
    assert found.worst(5) == [3, 1] and found.worst(1) == [3]
    assert found.largest(1) == [1] and found.largest(9) == [1, 0]
    assert found.as_json() == {
        "classes": [
            {"name": "a", "count": 2, "recall": 0.5},
            {"name": "b", "count": 3, "recall": 2 / 3},
        ],
        "confusions": [
            {"true": "a", "said": "b", "count": 1},
            {"true": "b", "said": "c", "count": 1},
        ],
    }


def test_a_room_of_labels_finds_the_surest_mistake():
    room = outputs.room(TaskSpec("t", 20, ("text",), "label", num_labels=2))
    predictions = room.from_logits(np.array([[3.0, 0], [0, 1], [4, 0]]))
    examples = Examples([dict(label=0), dict(label=0), dict(label=1)])
    found = room.analyse(predictions, examples, Names(("no", "yes")))
    assert found.confusion.tolist() == [[1, 1], [1, 0]]
    assert found.worst(3) == [2, 1]
    np.testing.assert_allclose(predictions["scores"][2], 1 / (1 + np.exp(-4)))


def test_a_room_of_answers_counts_what_annotators_said():
    spec = TaskSpec("t", 20, ("image", "text"), "scores", num_labels=4)
    names = Names(("<unk>", "red", "blue", "2"))
    said = ["red"] * 8 + ["blue"] * 2
    examples = Examples([dict(answers=said), dict(answers=said), dict(answers=["green"] * 10)])
    predictions = {"labels": np.array([2, 3, 1]), "scores": np.array([0.9, 0.5, 0.7])}
    found = outputs.room(spec).analyse(predictions, examples, names)
    # blue is right to a degree; of the last one no answer is in the list
    assert found.counts.tolist() == [0, 1, 1, 0]
    assert found.confusion[2, 2] == found.confusion[1, 3] == 1
    assert found.worst(3) == [1, 0]


def test_a_room_of_objects_gives_ap_by_class_and_faults_by_image():
    room = outputs.room(TaskSpec("t", 20, ("image",), "objects", num_queries=2, num_labels=3))
    objects = [
        dict(boxes_xywh=np.array([[10, 10, 20, 20.0], [50, 50, 20, 20]]), category_ids=[1, 2],
             areas=[400, 400], iscrowd=[False, False]),
        dict(boxes_xywh=np.array([[0, 0, 40, 40.0]]), category_ids=[1], areas=[1600],
             iscrowd=[False]),
    ]  # fmt: skip
    boxes = np.array([[[0.2, 0.2, 0.2, 0.2], [0.6, 0.6, 0.2, 0.2]],
                      [[0.2, 0.2, 0.4, 0.4], [0.9, 0.9, 0.1, 0.1]]])  # fmt: skip
    predictions = dict(
        scores=np.array([[0.9, 0.8], [0.7, 0.6]]),
        labels=np.array([[1, 1], [1, 2]]),
        boxes_cxcywh=boxes,
    )
    examples = Examples([dict(objects=one) for one in objects])
    found = room.analyse(predictions, examples, Names(("", "cat", "dog")))
    assert found.names == ("0", "cat", "dog", "nothing") and found.measure == "AP"
    assert found.confusion.tolist() == [[0] * 4, [0, 2, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0]]
    assert np.isnan(found.values[0]) and found.values[2] == 0
    # cats: right, wrong (a dog), right: precision 1 up to recall 1/2, then 2/3
    assert abs(found.values[1] - (51 + 50 * 2 / 3) / 101) < 1e-6
    assert found.faults.tolist() == [1, 1] and found.worst(5) == [0, 1]
    assert found.largest(9) == [1, 2, 3]
