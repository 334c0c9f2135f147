"""Pictures as people have them, to what the model takes: RGB pixels of 8 bits.

A path, encoded bytes, a Pillow image or a NumPy array. Three things happen on the way that a person
may not expect; each is said once, by a warning: an EXIF orientation is applied (or not), what is
transparent becomes white, and 16 bits of grey become 8.
"""

import io
import os
import pathlib
import warnings
from typing import NamedTuple

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageOps, UnidentifiedImageError

Source = str | os.PathLike | bytes | Image.Image | np.ndarray
MAX_PIXELS = 200_000_000  # of one picture; above it somebody wants to fill our memory
ORIENTATION = 0x0112  # the EXIF tag
PATTERNS = (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff")


class Picture(NamedTuple):
    """A picture that was read.

    Attributes:
      pixels: RGB.
      name: the path as it was given; "" where there was none.
    """

    pixels: UInt8[np.ndarray, "height width 3"]
    name: str

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) in pixels."""
        return self.pixels.shape[0], self.pixels.shape[1]


class Once:
    """Says each thing once."""

    def __init__(self):
        self._said: set[str] = set()

    def __call__(self, message: str) -> None:
        if message not in self._said:
            self._said.add(message)
            warnings.warn(message, UserWarning, stacklevel=3)


def is_source(value: object) -> bool:
    """Whether this is one picture (and no list of pictures)."""
    return isinstance(value, (str, os.PathLike, bytes, bytearray, memoryview, Image.Image)) or (
        isinstance(value, np.ndarray) and value.ndim in (2, 3) and value.dtype != object
    )


def read(source: Source, *, exif: bool = True, max_pixels: int = MAX_PIXELS, once=None) -> Picture:
    """Reads one picture.

    Args:
      source: path, encoded bytes, Pillow image, or uint8 array (height, width, 3), also grey
        (height, width) and RGBA (height, width, 4).
      exif: turn the picture as its EXIF orientation says. False takes the pixels as they are
        stored, which is what the reference, training and evaluation do.
      max_pixels: larger pictures are refused before they are decoded.
      once: says what happened to the picture; see `Once`.

    Raises:
      ValueError: it is no picture, a broken one, or too large; names it.
    """
    once = once or Once()
    if isinstance(source, np.ndarray):
        return Picture(_from_array(source, once), "")
    name = os.fspath(source) if isinstance(source, (str, os.PathLike)) else ""
    what = name or "the picture"
    try:
        with _open(source) as image:
            if image.width * image.height > max_pixels:
                raise ValueError(
                    f"{what}: {image.width} x {image.height} pixels, more than {max_pixels:,}; "
                    "make it smaller"
                )
            return Picture(_to_rgb(image, exif, once), name)
    except FileNotFoundError:
        raise ValueError(f"{name}: no such file") from None
    except IsADirectoryError:
        raise ValueError(f"{name}: a folder; give one of its pictures") from None
    except UnidentifiedImageError:
        raise ValueError(f"{what}: no picture that Pillow can read (JPEG, PNG, ...)") from None
    except Image.DecompressionBombError:
        raise ValueError(f"{what}: more than {max_pixels:,} pixels; make it smaller") from None
    except (OSError, SyntaxError, EOFError, IndexError, TypeError) as error:
        # Pillow raises many kinds on files that end early or were damaged.
        raise ValueError(f"{what}: a broken picture ({error})") from error


def _open(source: str | os.PathLike | bytes | Image.Image):
    if isinstance(source, Image.Image):
        return _Borrowed(source)
    if isinstance(source, (bytes, bytearray, memoryview)):
        if not len(source):
            raise ValueError("the picture: empty, 0 bytes")
        return Image.open(io.BytesIO(source))
    if "://" in os.fspath(source):
        raise ValueError(f"{source}: pictures are read from files; download it first")
    return Image.open(pathlib.Path(source))


class _Borrowed:
    """A caller's image in a `with` statement, which leaves it open."""

    def __init__(self, image: Image.Image):
        self._image = image

    def __enter__(self) -> Image.Image:
        return self._image

    def __exit__(self, *_) -> None:
        pass


def _to_rgb(image: Image.Image, exif: bool, once: Once) -> UInt8[np.ndarray, "height width 3"]:
    if image.getexif().get(ORIENTATION, 1) not in (0, 1):
        if exif:
            image = ImageOps.exif_transpose(image)
            once(
                "a picture was turned as its EXIF orientation says, boxes are those of the turned "
                "picture; exif=False takes pixels as they are stored, as training and evaluation do"
            )
        else:
            once("a picture's EXIF orientation was ignored, as in training; exif=True turns it")
    if image.mode.startswith("I;16") or image.mode in ("I", "F"):
        return _from_array(np.asarray(image), once)
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        once("the transparent parts of a picture were made white")
        image = image.convert("RGBA")
        paper = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(paper, image)
    return np.array(image.convert("RGB"))


def _from_array(array: np.ndarray, once: Once) -> UInt8[np.ndarray, "height width 3"]:
    shape = tuple(array.shape)
    if not (array.ndim == 2 or (array.ndim == 3 and shape[2] in (1, 3, 4))) or 0 in shape:
        raise ValueError(
            f"an array of shape {shape} is no picture; give (height, width, 3), RGB, uint8"
        )
    if array.ndim == 2:
        array = array[..., None]
    if array.dtype != np.uint8:
        if array.shape[2] > 1 or not np.issubdtype(array.dtype, np.integer):
            raise ValueError(
                f"an array of {array.dtype}; give uint8 from 0 to 255 (from [0, 1]: "
                "(255 * array).round().astype(np.uint8))"
            )
        once("16 bits of grey were made 8: the upper ones of each pixel")
        array = (np.clip(array, 0, 65535) >> 8).astype(np.uint8)
    if array.shape[2] == 4:
        once("the transparent parts of a picture were made white")
        return _to_rgb(Image.fromarray(array), False, once)
    return np.repeat(array, 3, 2) if array.shape[2] == 1 else np.ascontiguousarray(array)


def listed(place: str | os.PathLike) -> list[str]:
    """The pictures of a folder (also of those in it), or that a pattern such as `a/*.jpg` names.

    Raises:
      ValueError: there is none.
    """
    path = pathlib.Path(place)
    if path.is_dir():
        paths = [p for p in path.rglob("*") if p.suffix.lower() in PATTERNS and p.is_file()]
    else:
        root = pathlib.Path(path.anchor or ".")
        paths = [p for p in root.glob(str(path.relative_to(root))) if p.is_file()]
    if not paths:
        raise ValueError(f"{place}: no pictures there ({', '.join(PATTERNS)})")
    return sorted(map(str, paths))
