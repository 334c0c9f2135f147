"""Image stores: every image of a family once, encoded as published, in the order of its key.

COCO detection and VQAv2 share one store, as VQAv2's train2014 and val2014 images are the images
of train2017 and val2017 under other file names. A store is filled from whichever of the family's
folders the source has. Rows are ordered by folder, then by key, so that a folder that comes
later (test images) changes no earlier row.

Rules for unusual images, each counted: pixels count as stored (an EXIF orientation is ignored, as
in the reference); greyscale, palette and CMYK images stay as they are (readers convert to RGB);
images with more than 8 bits a channel are stored as 8-bit PNG; what Pillow cannot decode is left
out.
"""

import concurrent.futures
import dataclasses
import hashlib
import io
import itertools
import os
import pathlib
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import PIL.ExifTags
import PIL.Image
import tensorflow_datasets as tfds

from unit_jax.data.sources import base

SUFFIXES = (".jpg", ".jpeg", ".png")
MAX_PIXELS = 100_000_000  # of one image; a small file may unfold to any number


def check_pixels(size: tuple[int, int]) -> None:
    """Raises ValueError for an image of more than MAX_PIXELS, before it is decoded."""
    if size[0] * size[1] > MAX_PIXELS:
        raise ValueError(f"{size[0]}x{size[1]} are more than {MAX_PIXELS:,} pixels")


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
      published: (folders, image files in those together) of a complete release.
    """

    name: str
    folders: tuple[str, ...]
    key: Callable[[str], Any] = file_stem
    published: tuple[tuple[tuple[str, ...], int], ...] = ()
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


_COCO_FILES = {
    "train2017": 118_287,
    "val2017": 5_000,
    "train2014": 82_783,
    "val2014": 40_504,
    "test2017": 40_670,
    "test2015": 81_434,
}
_GENOME_FOLDERS = tuple(
    f"visual_genome/{name}"
    for name in ("VG_100K", "VG_100K_2", "images/VG_100K", "images/VG_100K_2")
)
_FLICKR_FOLDERS = ("flickr30k/flickr30k_images", "flickr30k/flickr30k-images")

FAMILIES = {
    family.name: family
    for family in (
        Family(
            "images_coco",
            tuple(f"coco/{name}" for name in _COCO_FILES),
            trailing_number,
            tuple(((f"coco/{name}",), count) for name, count in _COCO_FILES.items()),
        ),
        Family(
            "images_visual_genome",
            _GENOME_FOLDERS,
            trailing_number,
            ((_GENOME_FOLDERS, 108_249),),
        ),
        Family(
            "images_flickr30k",
            _FLICKR_FOLDERS,
            file_stem,
            ((_FLICKR_FOLDERS, 31_783),),
        ),
    )
}


def family_of(task: base.RecordSource) -> Family:
    """The image store of a source.

    Raises:
      ValueError: it names one that does not exist.
    """
    family = task.image_family
    if isinstance(family, Family):
        return family
    if family not in FAMILIES:
        raise ValueError(
            f"{task.name}: image_family {family!r} is none of {', '.join(FAMILIES)}; give "
            "images.Family(name, folders, key) for images of your own"
        )
    return FAMILIES[family]


def list_images(
    family: Family, source: pathlib.Path
) -> tuple[list[tuple[Any, pathlib.Path]], dict[str, int]]:
    """(key, file) of every image of a family in the order of the store; files by folder.

    An image that several folders have is listed once, and counted in each.
    """
    found: dict[Any, pathlib.Path] = {}
    counts = {}
    for folder in family.present_folders(source):
        files = {}
        for entry in os.scandir(source / folder):
            key = family.key(entry.name) if entry.name.lower().endswith(SUFFIXES) else None
            if key is not None:
                files[key] = pathlib.Path(entry.path)
        counts[folder] = len(files)
        found |= {key: path for key, path in sorted(files.items()) if key not in found}
    return list(found.items()), counts


def published_counts(
    family: Family, counts: Mapping[str, int]
) -> tuple[dict[str, int], dict[str, int]]:
    """(found, published) image files by the folders that hold them, of those that are there."""
    found, published = {}, {}
    for folders, count in family.published:
        present = [folder for folder in folders if folder in counts]
        if present:
            name = "images in " + " and ".join(present)
            found[name], published[name] = sum(counts[folder] for folder in present), count
    return found, published


@dataclasses.dataclass(frozen=True)
class ReadImage:
    """An image that can be decoded.

    Attributes:
      content: encoded, as it is stored.
      width, height: in pixels, as decoded.
      unusual: (kind, detail, action) of what a rule was applied to, as in `base.Problem`.
    """

    content: bytes
    width: int
    height: int
    unusual: tuple[tuple[str, str, str], ...]


def read_image(path: pathlib.Path) -> ReadImage:
    """Reads a file and decodes it once, to know that it can be decoded.

    Raises:
      ValueError: it is no image that Pillow decodes.
    """
    content = path.read_bytes()
    if not content:
        raise ValueError("the file is empty")
    try:
        with PIL.Image.open(io.BytesIO(content)) as image:
            check_pixels(image.size)
            width, height = image.size
            unusual = []
            if image.mode.startswith(("I", "F")):
                content = _png(eight_bits(image))
                unusual.append(("bit depth", f"{image.mode} stored as 8-bit PNG", "repaired"))
            else:
                image.load()
                if image.mode != "RGB":
                    detail = f"{image.mode}, becomes RGB when it is read"
                    unusual.append(("colour mode", detail, "kept"))
            orientation = image.getexif().get(PIL.ExifTags.Base.Orientation, 1)
            if orientation != 1:
                detail = f"orientation {orientation} is ignored, pixels count as stored"
                unusual.append(("EXIF orientation", detail, "kept"))
    except Exception as error:  # Pillow's decoders raise many kinds
        raise ValueError(f"cannot be decoded ({error})") from None
    return ReadImage(content, width, height, tuple(unusual))


def eight_bits(image: PIL.Image.Image) -> PIL.Image.Image:
    """8-bit greyscale: 16-bit values by their high byte, other ranges stretched to 0..255."""
    values = np.asarray(image).astype(np.float64)
    if image.mode.startswith("I") and values.min() >= 0 and values.max() < 2**16:
        values = values / 257
    else:
        low, high = values.min(), values.max()
        values = (values - low) * (255 / (high - low) if high > low else 0)
    return PIL.Image.fromarray(np.round(values).astype(np.uint8))


def _png(image: PIL.Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def in_order(
    function: Callable[[Any], Any], items: Iterable[Any]
) -> Iterator[tuple[Any, Callable[[], Any]]]:
    """(item, call that gives or raises what the function did), on threads; order is kept, and few
    results wait."""
    threads = os.cpu_count() or 1
    with concurrent.futures.ThreadPoolExecutor(threads) as pool:
        pending: list = []
        iterator = iter(items)
        while True:
            for item in itertools.islice(iterator, 4 * threads - len(pending)):
                pending.append((item, pool.submit(function, item)))
            if not pending:
                return
            item, future = pending.pop(0)
            yield item, future.result


class ImageRecords:
    """Turns listed files into records; notes broken ones and remembers what was stored."""

    def __init__(self, problems: base.Problems):
        self._problems = problems
        self.keys: list[Any] = []
        self.widths: list[int] = []
        self.heights: list[int] = []
        self._digest = hashlib.sha256()

    def __call__(self, items: Iterable[tuple[Any, pathlib.Path]]) -> Iterator[base.Record]:
        for (key, path), result in in_order(lambda item: read_image(item[1]), items):
            if (record := self._record(key, path, result)) is not None:
                yield record

    def _record(self, key, path, result) -> base.Record | None:
        try:
            image = result()
        except (OSError, ValueError) as error:
            self._problems.add("broken image", str(path), str(error))
            return None
        for kind, detail, action in image.unusual:
            self._problems.add(kind, str(path), detail, action)
        self.keys.append(key)
        self.widths.append(image.width)
        self.heights.append(image.height)
        self._digest.update(f"{key} {image.width} {image.height}\n".encode())
        return {
            "image_id": key,
            "file_name": path.name,
            "width": image.width,
            "height": image.height,
            "image": image.content,
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
