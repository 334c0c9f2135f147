"""Small data sets in the files that users bring, for tests."""

import json
import pathlib
from typing import Any

import numpy as np
import PIL.Image

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
