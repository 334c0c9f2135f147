"""Image stores: every image of a family once, encoded as published, in the order of its key.

COCO detection and VQAv2 share one store, as VQAv2's train2014 and val2014 images are the images
of train2017 and val2017 under other file names. A store is filled from whichever of the family's
folders the source has. Rows are ordered by folder, then by key, so that a folder that comes
later (test images) changes no earlier row.

Rules for unusual images: pixels count as stored (an EXIF orientation is ignored, as in the
reference); greyscale, palette and CMYK images stay as they are (readers convert to RGB); images
with more than 8 bits a channel are stored as 8-bit PNG; what Pillow cannot decode is left out.
"""

import concurrent.futures
import dataclasses
import hashlib
import io
import itertools
import os
import pathlib
import re
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
import PIL.Image
import tensorflow_datasets as tfds

from unit_jax.data.sources import base

SUFFIXES = (".jpg", ".jpeg", ".png")


def trailing_number(file_name: str) -> int | None:
    """Image id from a file name: `000000000009.jpg` and `COCO_val2014_000000000009.jpg` -> 9."""
    match = re.search(r"(\d+)$", pathlib.PurePosixPath(file_name).stem)
    return int(match.group(1)) if match else None


def file_stem(file_name: str) -> str:
    """Image key of a family whose files have names instead of numbers."""
    return pathlib.PurePosixPath(file_name).stem


@dataclasses.dataclass(frozen=True)
class Family:
    """One image store.

    Attributes:
      name: of the store.
      folders: where images may lie under the source, first come first served.
      key: image key of a file name, None = not one of the family's images.
    """

    name: str
    folders: tuple[str, ...]
    key: Callable[[str], Any]
    version: str = "1.0.0"

    @property
    def numeric(self) -> bool:
        return self.key is trailing_number

    def present_folders(self, source: pathlib.Path) -> list[str]:
        return [folder for folder in self.folders if (source / folder).is_dir()]

    def features(self) -> dict[str, Any]:
        return {
            "image_id": np.int64 if self.numeric else tfds.features.Text(),
            "file_name": tfds.features.Text(),
            "width": np.int32,
            "height": np.int32,
            "image": tfds.features.Image(),
        }


FAMILIES = {
    family.name: family
    for family in (
        Family(
            "images_coco",
            tuple(
                f"coco/{folder}"
                for folder in (
                    "train2017",
                    "val2017",
                    "train2014",
                    "val2014",
                    "test2017",
                    "test2015",
                )
            ),
            trailing_number,
        ),
        Family(
            "images_visual_genome",
            (
                "visual_genome/VG_100K",
                "visual_genome/VG_100K_2",
                "visual_genome/images/VG_100K",
                "visual_genome/images/VG_100K_2",
            ),
            trailing_number,
        ),
        Family("images_flickr30k", ("flickr30k/flickr30k_images",), file_stem),
    )
}


def list_images(family: Family, source: pathlib.Path) -> list[tuple[Any, pathlib.Path]]:
    """(key, file) of every image of a family, in the order of the store."""
    found: dict[Any, pathlib.Path] = {}
    for folder in family.present_folders(source):
        files = {}
        for entry in os.scandir(source / folder):
            key = family.key(entry.name) if entry.name.lower().endswith(SUFFIXES) else None
            if key is not None and key not in found:
                files[key] = pathlib.Path(entry.path)
        found |= dict(sorted(files.items()))
    return list(found.items())


def read_image(path: pathlib.Path) -> tuple[bytes, int, int, str]:
    """Reads a file and decodes it once, to know that it can be decoded.

    Returns:
      encoded image, width, height, and what was repaired ("" = nothing).

    Raises:
      ValueError: it is no image that Pillow decodes.
    """
    content = path.read_bytes()
    if not content:
        raise ValueError("the file is empty")
    try:
        with PIL.Image.open(io.BytesIO(content)) as image:
            width, height = image.size
            repaired = ""
            if image.mode.startswith(("I", "F")):
                content, repaired = _eight_bits(image), f"{image.mode} stored as 8-bit PNG"
            else:
                image.load()
    except Exception as error:  # Pillow's decoders raise many kinds
        raise ValueError(f"cannot be decoded ({error})") from None
    return content, width, height, repaired


def _eight_bits(image: PIL.Image.Image) -> bytes:
    """8-bit greyscale PNG: 16-bit values by their high byte, other ranges stretched to 0..255."""
    values = np.asarray(image).astype(np.float64)
    if image.mode.startswith("I") and values.min() >= 0 and values.max() < 2**16:
        values = values / 257
    else:
        low, high = values.min(), values.max()
        values = (values - low) * (255 / (high - low) if high > low else 0)
    buffer = io.BytesIO()
    PIL.Image.fromarray(np.round(values).astype(np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


class ImageRecords:
    """Turns listed files into records; notes broken ones and remembers what was stored."""

    def __init__(self, problems: base.Problems):
        self._problems = problems
        self.keys: list[Any] = []
        self.widths: list[int] = []
        self.heights: list[int] = []
        self._digest = hashlib.sha256()

    def __call__(self, items: Iterable[tuple[Any, pathlib.Path]]) -> Iterator[base.Record]:
        threads = os.cpu_count() or 1
        with concurrent.futures.ThreadPoolExecutor(threads) as pool:
            # A window of files in flight: order is kept and memory bounded.
            pending: list = []
            iterator = iter(items)
            while True:
                for item in itertools.islice(iterator, 4 * threads - len(pending)):
                    pending.append((item, pool.submit(read_image, item[1])))
                if not pending:
                    return
                (key, path), result = pending.pop(0)
                if (record := self._record(key, path, result)) is not None:
                    yield record

    def _record(self, key, path, result) -> base.Record | None:
        try:
            content, width, height, repaired = result.result()
        except (OSError, ValueError) as error:
            self._problems.add("broken image", str(path), str(error))
            return None
        if repaired:
            self._problems.add("bit depth", str(path), repaired, "repaired")
        self.keys.append(key)
        self.widths.append(width)
        self.heights.append(height)
        self._digest.update(f"{key} {width} {height}\n".encode())
        return {
            "image_id": key,
            "file_name": path.name,
            "width": width,
            "height": height,
            "image": content,
        }

    @property
    def sha256(self) -> str:
        """Fingerprint of keys and sizes in order: what records that point here rely on."""
        return self._digest.hexdigest()

    def index_arrays(self) -> dict[str, np.ndarray]:
        """Row-aligned arrays of the store."""
        return {
            "key": np.array(self.keys),
            "width": np.array(self.widths, np.int32),
            "height": np.array(self.heights, np.int32),
        }


def read_index(path: pathlib.Path) -> base.ImageIndex:
    """The index of a store that has been written."""
    with np.load(path) as arrays:
        rows = {key: row for row, key in enumerate(arrays["key"].tolist())}
        return base.ImageIndex(rows, arrays["width"], arrays["height"])
