"""What the formats share: examples as the files tell them, before images are stored.

A format is a function `read(options, split, faults) -> Part`. It parses one split's files and finds
the image files; it opens no image. `data/own/` does the rest for all of them: splits, classes,
image store, records, checks.
"""

import dataclasses
import pathlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from unit_jax.data.sources import base


@dataclasses.dataclass
class Box:
    """One annotated object.

    Attributes:
      xywh: left, top, width, height; pixels, or shares of the image's size where `relative`.
      category: key of its class in `Part.classes`.
      area: in square pixels; None = the box's.
      crowd: a region of many objects: counts in evaluation by COCO's rules, not in training.
    """

    xywh: tuple[float, float, float, float]
    category: Any
    area: float | None = None
    crowd: bool = False
    relative: bool = False


@dataclasses.dataclass
class Example:
    """One image or text with what is asked of it.

    Attributes:
      id: opaque; what predictions are handed back under.
      place: file and entry, for messages.
      image: its file, None = none.
      size: (width, height) as annotated, None = not told.
      label: name of the label, None = not told. Numbers are told as texts.
      split: value of the split column.
    """

    id: str
    place: str
    image: pathlib.Path | None = None
    size: tuple[int, int] | None = None
    boxes: list[Box] | None = None
    text: str = ""
    text_b: str = ""
    label: str | None = None
    answers: list[str] | None = None
    split: str = ""


@dataclasses.dataclass
class Part:
    """What the files of one split hold.

    Attributes:
      examples: usable ones, in the order of the file.
      listed: examples that the file lists, faulty ones included.
      listed_objects: objects, likewise.
      classes: name by key, in the order in which they become labels.
      files: annotation files that were read.
      folders: (folder, suffixes) whose listing decides what is read.
      notes: sentences on what was chosen or found, said once.
      labelled: the file has labels.
    """

    examples: list[Example]
    listed: int
    listed_objects: int = 0
    classes: Mapping[Any, str] = dataclasses.field(default_factory=dict)
    files: list[pathlib.Path] = dataclasses.field(default_factory=list)
    folders: list[tuple[pathlib.Path, Sequence[str]]] = dataclasses.field(default_factory=list)
    notes: list[str] = dataclasses.field(default_factory=list)
    labelled: bool = True


def id_key(value: Any) -> str | None:
    """An id of any type as a text that equal ids share: 7, 7.0 and "7" are one; None = no id."""
    if isinstance(value, bool) or value is None or isinstance(value, list | dict):
        return None
    if isinstance(value, float):
        return str(int(value)) if value.is_integer() else repr(value)
    text = str(value).strip()
    return text[: base.MAX_TEXT] or None


def id_order(keys: Sequence[str]) -> list[str]:
    """Ids in their order: by number where all are whole numbers, else as texts."""
    try:
        return sorted(keys, key=int)
    except ValueError:
        return sorted(keys)


def number(value: Any) -> float | None:
    """A finite number from a number or a text, None where it is none."""
    if isinstance(value, bool):
        return None
    try:
        value = float(value)
    except (TypeError, ValueError, OverflowError):
        return None
    return value if abs(value) < 1e30 else None


def all_numbers(values: Iterable[Any]) -> list[float] | None:
    """`number` of each value, None where one of them is none."""
    numbers = [number(value) for value in values]
    finite = [value for value in numbers if value is not None]
    return finite if len(finite) == len(numbers) else None


def said_size(width: Any, height: Any) -> tuple[int, int] | None:
    """An annotated size, None where it is not told (missing, 0, -1)."""
    width, height = number(width), number(height)
    if width is None or height is None or width < 1 or height < 1:
        return None
    return int(width), int(height)


def polygon_box(points: Sequence[float]) -> tuple[float, float, float, float] | None:
    """xywh around x1, y1, x2, y2, ...; None for fewer than three points."""
    if len(points) < 6 or len(points) % 2:
        return None
    x, y = points[0::2], points[1::2]
    return min(x), min(y), max(x) - min(x), max(y) - min(y)
