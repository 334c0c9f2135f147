"""Mutated files of one's own: each is read or is one clear error; none hangs or takes more."""

import copy
import json
import random
import shutil

import pytest

from tests import ROOT
from unit_jax import own_data
from unit_jax.data.own import classes, declared, images

EXAMPLES = ROOT / "examples" / "own_data"
CASES = {
    "coco": ({"train": "signs/train.json", "val": "signs/val.json"}, "signs/train.json"),
    "voc": ({"train": "voc/train", "val": "voc/val"}, "voc/train/corner_200.xml"),
    "yolo": ({"train": "yolo/images/train", "val": "yolo/images/val"}, "yolo/labels/train/400.txt"),
    "yolo's data.yaml": ({"data": "yolo/data.yaml"}, "yolo/data.yaml"),
    "table": (
        {"train": "captions_train.csv", "image": "image", "text": "sentence", "label": "holds"},
        "captions_train.csv",
    ),
    "questions": ({"train": "questions_train.jsonl"}, "questions_train.jsonl"),
}
VALUES = [
    None, True, -1, 0, float("inf"), float("nan"), "", "x" * 50, [], {}, [[]], "../../etc/passwd",
    "/etc/passwd", "\ud800", "\0", 10**400, "1e999", [1, 2], {"a": 1}, -(10**30), ["a"] * 5,
]  # fmt: skip
PIECES = [
    b'"', b"{", b"[", b"\n", b",", b";", b"\t", b"<", b"\x00", b"\xff\xfe", b"9" * 30, b"-", b"&",
    b"&#x0;", b": *a", b"!!python/object/apply:os.system [id]", b"<!ENTITY a 'b'>", b"]]]]",
]  # fmt: skip


def mutated(content: bytes, name: str, draw: random.Random) -> bytes:
    """Some bytes changed, added or taken away; of JSON also some values."""
    if name.endswith((".json", ".jsonl")) and draw.random() < 0.5:
        lines = content.decode().splitlines() if name.endswith("l") else [content.decode()]
        return "\n".join(json.dumps(_values(json.loads(line), draw)) for line in lines).encode()
    found = bytearray(content)
    for _ in range(draw.choice([1, 1, 3, 20])):
        kind, place = draw.random(), draw.randrange(len(found) + 1)
        if kind < 0.3:
            found[place : place + 1] = bytes([draw.randrange(256)])
        elif kind < 0.5:
            del found[place : place + draw.choice([1, 5, 200])]
        elif kind < 0.8:
            found[place:place] = draw.choice(PIECES)
        else:
            other = draw.randrange(len(found) + 1)
            found[place:place] = found[other : other + 100]
    return bytes(found)


def _values(content, draw: random.Random):
    for _ in range(draw.choice([0, 1, 2])):
        node = content
        while True:
            keys = list(node) if isinstance(node, dict) else range(len(node))
            if not keys:
                break
            key = draw.choice(keys)
            if isinstance(node[key], dict | list) and node[key] and draw.random() < 0.85:
                node = node[key]
            elif draw.random() < 0.7:
                node[key] = copy.deepcopy(draw.choice(VALUES))
                break
            else:
                del node[key]
                break
    return content


def _mutated_inputs(name: str, folder, count: int) -> None:
    options, file = CASES[name]
    options = {"format": name.partition("'")[0], **options}
    shutil.copytree(EXAMPLES, folder / "own")
    options = own_data.with_absolute_paths({"mine": options}, folder / "own")["mine"]
    path = folder / "own" / file
    original = path.read_bytes()
    outcomes = {"read": 0, "refused": 0}
    for seed in range(count):
        path.write_bytes(mutated(original, file, random.Random(seed)))
        try:
            found = declared.read("mine", options)
            if name != "questions":
                classes.classes(found)
            outcomes["read"] += 1
        except ValueError as error:
            assert str(error) and "\n" not in str(error) and len(str(error)) < 1500
            outcomes["refused"] += 1
    assert outcomes["read"] > count // 20


@pytest.mark.parametrize("name", CASES)
def test_mutated_files(tmp_path, name):
    _mutated_inputs(name, tmp_path, 40)


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_many_mutated_files(tmp_path, name):
    _mutated_inputs(name, tmp_path, 500)


def test_mutated_pictures(tmp_path):
    original = (EXAMPLES / "signs/train/street-000.jpg").read_bytes()
    path = tmp_path / "a.jpg"
    read = 0
    for seed in range(100):
        path.write_bytes(mutated(original, path.name, random.Random(seed)))
        try:
            image = images.read_image(path, None)
            assert image.width and image.height
            read += 1
        except ValueError as error:
            assert "\n" not in str(error)
    assert 0 < read < 100
