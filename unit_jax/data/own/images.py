"""The image store of a data set of one's own: each different file once, as annotators saw it.

Annotation tools show an image turned as its EXIF orientation says, so it is stored turned, unless
the annotations give its size as it lies in the file. Transparent parts become white. The published
data sets have rules of their own (`sources/images.py`).
"""

import dataclasses
import hashlib
import io
import pathlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import PIL.ExifTags
import PIL.Image
import PIL.ImageOps
import tensorflow_datasets as tfds

from unit_jax.data.sources import base, images

Size = tuple[int, int]
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "MPO", "PPM")
_KEPT_AS_THEY_ARE = ("JPEG", "PNG", "WEBP")
_MOST_BYTES = 500_000_000  # of one file


@dataclasses.dataclass(frozen=True)
class Stored:
    """Where an image lies in the store, and its size as stored."""

    row: int
    width: int
    height: int
    digest: str  # SHA-256 of the file


@dataclasses.dataclass(frozen=True)
class Store:
    """The image store of a data set; stands where `sources.images.Family` does."""

    name: str
    version: str = "1.0.0"

    def features(self) -> dict[str, Any]:
        return {
            "image_id": tfds.features.Text(),
            "file_name": tfds.features.Text(),
            "width": np.int32,
            "height": np.int32,
            "image": tfds.features.Image(),
        }


def read_image(path: pathlib.Path, told: Size | None) -> images.ReadImage:
    """Reads and decodes a file.

    Args:
      told: (width, height) as annotated, if they are.

    Raises:
      ValueError: it is no image of FORMATS, or too large.
    """
    if path.stat().st_size > _MOST_BYTES:
        raise ValueError(f"{path.stat().st_size:,} bytes are more than an image is taken to have")
    content = path.read_bytes()
    if not content:
        raise ValueError("the file is empty")
    try:
        with PIL.Image.open(io.BytesIO(content), formats=FORMATS) as image:
            images.check_pixels(image.size)
            return _as_seen(content, image, told)
    except Exception as error:  # Pillow's decoders raise many kinds
        raise ValueError(f"cannot be decoded ({error})") from None


def _as_seen(content: bytes, image: PIL.Image.Image, told: Size | None) -> images.ReadImage:
    unusual = []
    kind, size = image.format, image.size
    orientation = image.getexif().get(PIL.ExifTags.Base.Orientation, 1)
    changed = False
    if image.mode.startswith(("I", "F")):
        image = images.eight_bits(image)
        unusual.append(("bit depth", "more than 8 bits: stored as 8-bit PNG", "repaired"))
        kind, changed = "PNG", True
    else:
        image.load()
    if orientation in range(2, 9):
        turned = size[::-1] if orientation >= 5 else size
        if told == size != turned:
            detail = f"orientation {orientation} is ignored: boxes are given for {size}"
            unusual.append(("EXIF orientation", detail, "kept"))
        else:
            image = image.transpose(_TURNS[orientation])
            detail = f"orientation {orientation}: stored as it is shown"
            unusual.append(("EXIF orientation", detail, "repaired"))
            changed = True
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        image = _on_white(image)
        unusual.append(("transparency", "transparent parts become white", "repaired"))
        kind, changed = "PNG", True
    elif image.mode != "RGB":
        unusual.append(("colour mode", f"{image.mode}, becomes RGB when it is read", "kept"))
    if changed or kind not in _KEPT_AS_THEY_ARE:
        content = _encoded(image, kind)
    return images.ReadImage(content, *image.size, tuple(unusual))


_TURNS = {
    2: PIL.Image.Transpose.FLIP_LEFT_RIGHT,
    3: PIL.Image.Transpose.ROTATE_180,
    4: PIL.Image.Transpose.FLIP_TOP_BOTTOM,
    5: PIL.Image.Transpose.TRANSPOSE,
    6: PIL.Image.Transpose.ROTATE_270,
    7: PIL.Image.Transpose.TRANSVERSE,
    8: PIL.Image.Transpose.ROTATE_90,
}


def _on_white(image: PIL.Image.Image) -> PIL.Image.Image:
    image = image.convert("RGBA")
    white = PIL.Image.new("RGBA", image.size, "white")
    return PIL.Image.alpha_composite(white, image).convert("RGB")


def _encoded(image: PIL.Image.Image, kind: str | None) -> bytes:
    buffer = io.BytesIO()
    if kind in ("JPEG", "MPO"):
        image.save(buffer, "JPEG", quality=95, subsampling=0)
    else:
        modes = ("1", "L", "P", "RGB")
        (image if image.mode in modes else image.convert("RGB")).save(buffer, "PNG")
    return buffer.getvalue()


class Images:
    """Turns files into records of the store; an identical file is stored once.

    Args:
      told: size by file, as annotated.
      problems: where a file's faults are noted, by file.
      folder: above all files, for names in the store.
    """

    def __init__(
        self, told: Mapping[pathlib.Path, Size | None], problems: Mapping[Any, base.Problems]
    ):
        self._told = told
        self._problems = problems
        self.stored: dict[pathlib.Path, Stored] = {}
        self.state: dict[str, list[Any]] = {}  # [bytes, time, SHA-256] by file
        self.sizes: list[Size] = []
        self.unusual: Counter[str] = Counter()
        self._by_content: dict[tuple, Stored] = {}
        self._digest = hashlib.sha256()

    def __call__(self, items: Iterable[pathlib.Path]) -> Iterator[base.Record]:
        for path, result in images.in_order(self._read, items):
            record = self._record(path, result)
            if record is not None:
                yield record

    def _read(self, path: pathlib.Path) -> tuple[list[Any], images.ReadImage]:
        state = file_state(path)
        return state, read_image(path, self._told[path])

    def _record(self, path: pathlib.Path, result) -> base.Record | None:
        problems = self._problems[path]
        try:
            state, image = result()
        except (OSError, ValueError) as error:
            problems.add("broken image", str(path), str(error))
            return None
        self.state[str(path)] = state
        for kind, detail, action in image.unusual:
            problems.add(kind, str(path), detail, action)
        content = (state[2], image.width, image.height)  # the same file may be turned or not
        known = self._by_content.get(content)
        if known is not None:
            self.stored[path] = known
            return None
        stored = Stored(len(self.sizes), image.width, image.height, state[2])
        self.stored[path] = self._by_content[content] = stored
        self.sizes.append((image.width, image.height))
        self._digest.update(f"{state[2]} {image.width} {image.height}\n".encode())
        return {
            "image_id": str(stored.row),
            "file_name": path.name.encode(errors="replace").decode(),
            "width": image.width,
            "height": image.height,
            "image": image.content,
        }

    @property
    def sha256(self) -> str:
        """Fingerprint of files and sizes in order."""
        return self._digest.hexdigest()

    def index_arrays(self) -> dict[str, np.ndarray]:
        sizes = np.array(self.sizes, np.int32).reshape(-1, 2)
        keys = np.array([str(row) for row in range(len(sizes))])
        return {"key": keys, "width": sizes[:, 0], "height": sizes[:, 1]}


def file_state(path: pathlib.Path) -> list[Any]:
    """[bytes, time of change in ns, SHA-256] of a file."""
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    status = path.stat()
    return [status.st_size, status.st_mtime_ns, digest]
