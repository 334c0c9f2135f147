"""Results print, draw themselves and turn into what other tools take."""

import dataclasses
import json
import sys
import types

import numpy as np
import pytest

from unit_jax.api.results import Answer, Answers, Detection, Detections

PIXELS = np.full((60, 80, 3), 200, np.uint8)
FOUND = Detections(
    "coco",
    image="a.jpg",
    source=PIXELS,
    detections=(
        Detection("cat", 0.9, (10.0, 20.0, 30.0, 50.0), 17),
        Detection("dog", 0.4, (-2.0, 0.0, 85.0, 59.0), 18, attribute="small", query=3),
    ),
    size=(60, 80),
)
SAID = Answers("vqa2", text="what?", answers=(Answer("yes", 0.75, 3), Answer("no", 0.25, 4)))


def test_they_are_sequences_that_print():
    assert len(FOUND) == 2 and FOUND[0].label == "cat" and [d.label_id for d in FOUND] == [17, 18]
    assert repr(FOUND).splitlines() == [
        "2 objects in a.jpg",
        "  cat 0.90 at (10, 20, 30, 50)",
        "  small dog 0.40 at (-2, 0, 85, 59)",
    ]
    assert [one.label for one in FOUND.above(0.5)] == ["cat"]
    assert str(SAID) == "yes" and SAID.best == "yes" and SAID.score == 0.75
    assert repr(SAID) == "what?: yes 0.75, no 0.25"
    many = dataclasses.replace(SAID, answers=SAID.answers * 1500)  # VQA's list
    assert repr(many) == "what?: " + "yes 0.75, no 0.25, " * 2 + "yes 0.75, 2995 more"
    assert many.draw().height < 300 and len(many.to_dict()["answers"]) == 3000


def test_dicts_json_and_coco():
    line = json.loads(FOUND.to_json())
    assert line["image"] == "a.jpg"
    assert line["detections"][0] == dict(label="cat", score=0.9, box_xyxy=[10, 20, 30, 50])
    assert line["detections"][1]["attribute"] == "small"
    assert SAID.to_dict() == {
        "text": "what?",
        "answers": [dict(label="yes", score=0.75), dict(label="no", score=0.25)],
    }
    assert FOUND.to_coco(7)[0] == dict(image_id=7, category_id=17, bbox=[10, 20, 20, 30], score=0.9)


def test_other_packages_get_what_they_want(monkeypatch):
    """Stand-ins record what pandas and supervision would be given."""
    stand_in = types.SimpleNamespace(DataFrame=list, Detections=dict)
    monkeypatch.setitem(sys.modules, "pandas", stand_in)
    monkeypatch.setitem(sys.modules, "supervision", stand_in)
    rows = FOUND.to_pandas()
    assert rows[0] == dict(image="a.jpg", label="cat", score=0.9, label_id=17, x0=10, y0=20, x1=30,
                           y1=50)  # fmt: skip
    given = FOUND.to_supervision()
    assert given["xyxy"].shape == (2, 4) and given["class_id"].tolist() == [17, 18]
    assert given["data"]["class_name"].tolist() == ["cat", "dog"]
    assert FOUND.above(1.1).to_supervision()["xyxy"].shape == (0, 4)
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(ImportError, match="pip install pandas"):
        SAID.to_pandas()


def test_drawings_show_boxes_where_they_are():
    drawn = np.asarray(FOUND.above(0.5).draw(width=80))
    assert drawn.shape == (60, 80, 3)
    assert (drawn[35, 10] != 200).any() and (drawn[35, 29:31] != 200).any()  # its sides
    assert (drawn[35, 20] == 200).all()  # its inside
    assert FOUND.draw().width == 480 and FOUND.above(2).draw(80).size == (80, 60)
    card = np.asarray(SAID.draw(width=400))
    assert card.shape[1] == 400 and (card < 100).any()
