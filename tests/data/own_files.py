"""Small data sets in the files that users bring, for tests."""

import json
import pathlib
from typing import Any

import numpy as np
import PIL.Image
import pytest

from unit_jax import own_data
from unit_jax.data import transforms
from unit_jax.data.own import prepare as own
from unit_jax.data.prepared import PreparedData

SIZE = (64, 48)
NAMES = {1: "stop", 2: "yield", 3: "go"}


def pixels(seed: int, size: tuple[int, int] = SIZE) -> np.ndarray:
    """Noise that no other seed gives."""
    return np.random.default_rng(seed).integers(0, 255, (size[1], size[0], 3), np.uint8)


def picture(path: pathlib.Path, seed: int, size: tuple[int, int] = SIZE) -> None:
    """Writes a picture whose pixels are `pixels(seed)`; not as JPEG, so that they stay."""
    path.parent.mkdir(parents=True, exist_ok=True)
    PIL.Image.fromarray(pixels(seed, size)).save(path, "PNG")


def coco(
    images: dict[Any, str], objects: list[dict], names: dict[Any, str] = NAMES, **others: Any
) -> dict:
    """COCO's JSON of file names by id and of annotations."""
    return {
        "images": [
            {"id": i, "file_name": name, "width": SIZE[0], "height": SIZE[1]}
            for i, name in images.items()
        ],
        "annotations": [{"id": n, **entry} for n, entry in enumerate(objects)],
        "categories": [{"id": number, "name": name} for number, name in names.items()],
        **others,
    }


def box(image: Any, category: Any = 1, bbox: Any = (4, 5, 20, 10), **others: Any) -> dict:
    """One annotation."""
    bbox = list(bbox) if isinstance(bbox, tuple) else bbox
    return {"image_id": image, "category_id": category, "bbox": bbox, **others}


def write(path: pathlib.Path, content: Any) -> str:
    """Writes a text, bytes, or anything else as JSON; returns the path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(content, str):
        content = content.encode()
    if not isinstance(content, bytes):
        content = json.dumps(content).encode()
    path.write_bytes(content)
    return str(path)


def prepare(folder: pathlib.Path, declared: dict, **others: Any) -> list[own.Summary]:
    """Prepares into folder/data; paths in `declared` are relative to `folder`."""
    absolute = own_data.with_absolute_paths(declared, folder)
    others = {"progress": False, "pictures": False, **others}
    return own.prepare(absolute, str(folder / "data"), **others)


def opened(folder: pathlib.Path, *names: str) -> PreparedData:
    return PreparedData(folder / "data", names)


def decoded(split, row: int) -> np.ndarray:
    """Pixels of an example's image as the model's transforms read them."""
    return transforms.decode(split.image(row))


# ---- Boxes: a set of two images for training, one for validation ---------------------------------

SIGNS = {"signs": {"format": "coco", "train": "train.json", "val": "val.json"}}


def signs(folder, **changes):
    """A good set of two training images and one for validation beside their JSON files."""
    files = {
        "train.json": coco({1: "a.png", 2: "b.png"}, [box(1), box(2, 2, (1, 2, 3, 4)), box(2, 3)]),
        "val.json": coco({1: "c.png"}, [box(1, 3)]),
    }
    for name, content in {**files, **changes}.items():
        write(folder / name, content)
    for seed, name in enumerate(("a.png", "b.png", "c.png"), start=1):
        picture(folder / name, seed)


def check(folder, expected, name="signs", declared=SIGNS):
    """Prepares, and compares pixels (by seed) and boxes of every example.

    Args:
      expected: by split, (seed of the picture, list of (label name, box)) in order.
    """
    summaries = prepare(folder, declared)
    data = opened(folder, name)
    names = data.label_names(name)
    for split, examples in expected.items():
        found = data.split(name, split)
        assert len(found) == len(examples)
        for row, (seed, objects) in enumerate(examples):
            np.testing.assert_array_equal(decoded(found, row), pixels(seed))
            told = found[row]["objects"]
            assert [names[i] for i in told["category_ids"]] == [label for label, _ in objects]
            boxes = np.array([b for _, b in objects], np.float32).reshape(-1, 4)
            np.testing.assert_allclose(told["boxes_xywh"], boxes, atol=1e-3)
    return summaries, data


def error_of(folder, declared) -> str:
    with pytest.raises(ValueError) as error:
        prepare(folder, declared)
    return str(error.value)


def fails(folder, declared=SIGNS) -> str:
    """The error of preparing, one line a data set; nothing counts as prepared."""
    message = error_of(folder, declared)
    manifest = folder / "data" / "manifest.json"
    if manifest.exists():
        assert "signs" not in json.loads(manifest.read_text())["datasets"]
    assert "\n" not in message
    return message


BOX = (4, 5, 20, 10)
