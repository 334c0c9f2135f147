"""The server's VQA accuracy: hand-made cases, and a plain reading of its published rules."""

import numpy as np
import pytest

from unit_jax.outputs.labels import vqa_server


@pytest.mark.parametrize(
    "written, normal",
    [
        ("Two", "2"),
        ("none", "0"),
        ("the Dog.", "dog"),
        ("1,000", "1000"),
        ("3.5", "3.5"),
        ("a.m.", "am"),
        ("black, white", "black white"),
        ("black/white", "black white"),
        ("t-shirt", "t shirt"),
        ("what? yes!", "what yes"),
        ("dont know", "don't know"),
        ("youd've", "you'd've"),
        ("y'alldve", "y'alldve"),
        ("it's", "it's"),
        ("man's hat\n", "man's hat"),
        ("a", ""),
    ],
)
def test_normal_form(written, normal):
    assert vqa_server.normalise(written) == normal


def test_contractions_that_the_server_lists():
    pairs = {
        "couldntve": "couldntve",  # two apostrophes are missing
        "couldn'tve": "couldn't've",
        "wed've": "we'd've",
        "'ows'at": "'ow's'at",
        "oclock": "o'clock",
        "somebody'd": "somebodyd",
        "lets": "lets",
        "shes": "shes",
    }
    assert {short: vqa_server.normalise(short) for short in pairs} == pairs


def test_accuracy_is_the_mean_over_annotators_of_what_the_others_say():
    rng = np.random.default_rng(0)
    said = ["Two", "2", "two.", "three", "the two", "blue"]
    for _ in range(50):
        given = list(rng.choice(said, 10))
        answer = rng.choice(said)
        scores = []
        for left_out in range(10):
            others = [given[i] for i in range(10) if i != left_out]
            same = [o for o in others if vqa_server.normalise(o) == vqa_server.normalise(answer)]
            scores.append(min(1, len(same) / 3))
        assert vqa_server.accuracy(answer, given) == pytest.approx(np.mean(scores))
    assert vqa_server.accuracy("2", ["two"] * 10) == 1
    assert vqa_server.accuracy("2", ["3"] * 10) == 0
    assert vqa_server.accuracy("2", ["two"] * 3 + ["3"] * 7) == pytest.approx(0.9)


def test_a_label_is_handed_in_as_people_write_it():
    assert vqa_server.as_written("man 's hat") == "man's hat"
    assert vqa_server.as_written("yes") == "yes"
