"""What a model answers: dataclasses that print well, draw themselves and turn into other forms."""

import dataclasses
import json
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from unit_jax.api import drawing, images
from unit_jax.api.images import Source

SHOWN = 5  # answers that are printed and drawn; VQA has thousands


@dataclasses.dataclass(frozen=True)
class Detection:
    """One object.

    Attributes:
      label, score: its class and that class's softmax probability.
      box_xyxy: (x0, y0, x1, y1) in pixels of the picture given; may reach over its edge.
      label_id: number of the class (COCO: the category id).
      attribute: the best attribute, of tasks that have some; else None.
      query: which of the decoder's queries found it.
    """

    label: str
    score: float
    box_xyxy: tuple[float, float, float, float]
    label_id: int
    attribute: str | None = None
    query: int = 0

    def __str__(self) -> str:
        box = ", ".join(f"{x:.0f}" for x in self.box_xyxy)
        return f"{self.name} {self.score:.2f} at ({box})"

    @property
    def name(self) -> str:
        """Attribute and class: "red cube"."""
        return f"{self.attribute} {self.label}" if self.attribute else self.label

    def to_dict(self) -> dict[str, Any]:
        made = dict(label=self.label, score=self.score, box_xyxy=list(self.box_xyxy))
        return made | ({"attribute": self.attribute} if self.attribute else {})


@dataclasses.dataclass(frozen=True)
class Answer:
    """One label or answer: its score is a probability, softmax of tasks with one right label,
    sigmoid of tasks where several may be right (VQA)."""

    label: str
    score: float
    label_id: int

    def __str__(self) -> str:
        return f"{self.label} {self.score:.2f}"

    def to_dict(self) -> dict[str, Any]:
        return dict(label=self.label, score=self.score)


@dataclasses.dataclass(frozen=True, repr=False)
class _Result(Sequence):
    """What both results have in common: a sequence, best first.

    Attributes:
      task: the task that answered.
      image: the picture's path, as it was given; "" where it had none.
      text, text_b: the texts, as they were given.
      source, exif: the picture itself, or where it lies, read again when something is drawn.
    """

    task: str
    image: str = ""
    text: str = ""
    text_b: str = ""
    source: Source | None = dataclasses.field(default=None, compare=False)
    exif: bool = dataclasses.field(default=True, compare=False)

    def _entries(self) -> tuple:
        raise NotImplementedError

    def to_dict(self) -> dict[str, Any]:
        """What was given and what came out, as JSON takes it."""
        raise NotImplementedError

    def __len__(self) -> int:
        return len(self._entries())

    def __getitem__(self, position):
        return self._entries()[position]

    def __iter__(self) -> Iterator:
        return iter(self._entries())

    def given(self) -> dict[str, str]:
        """What was asked, as it was given."""
        asked = dict(image=self.image, text=self.text, text_b=self.text_b)
        return {name: value for name, value in asked.items() if value}

    def to_json(self) -> str:
        """`to_dict` in one line."""
        return json.dumps(self.to_dict(), ensure_ascii=False)

    def to_pandas(self):
        """A table with a row per entry. Needs pandas."""
        rows = [{**self.given(), **_flat(entry)} for entry in self]
        return _needed("pandas", "to_pandas").DataFrame(rows)

    def picture(self) -> UInt8[np.ndarray, "height width 3"] | None:
        """The picture's pixels; None where there was none."""
        return None if self.source is None else images.read(self.source, exif=self.exif).pixels

    def needed_picture(self) -> UInt8[np.ndarray, "height width 3"]:
        """The picture's pixels.

        Raises:
          ValueError: there was none.
        """
        pixels = self.picture()
        if pixels is None:
            raise ValueError(f"{self.task}: there is no picture")
        return pixels


@dataclasses.dataclass(frozen=True, repr=False)
class Detections(_Result):
    """The objects in one picture, best first: a sequence of `Detection`.

    Attributes:
      size: (height, width) in pixels of the picture given.
    """

    detections: tuple[Detection, ...] = ()
    size: tuple[int, int] = (0, 0)

    def _entries(self) -> tuple[Detection, ...]:
        return self.detections

    def __repr__(self) -> str:
        head = f"{len(self)} objects" + f" in {self.image}" * bool(self.image)
        return "\n".join([head, *(f"  {one}" for one in self)])

    def above(self, threshold: float) -> "Detections":
        """Those whose score reaches the threshold."""
        kept = tuple(one for one in self if one.score >= threshold)
        return dataclasses.replace(self, detections=kept)

    def to_dict(self) -> dict[str, Any]:
        """What was given, and `detections`: dicts of label, score, box_xyxy."""
        return {**self.given(), "detections": [one.to_dict() for one in self]}

    def to_coco(self, image_id: int = 0) -> list[dict[str, Any]]:
        """Entries of a COCO results file (boxes x, y, width, height)."""
        return [
            dict(
                image_id=image_id,
                category_id=one.label_id,
                bbox=[x0, y0, x1 - x0, y1 - y0],
                score=one.score,
            )
            for one in self
            for x0, y0, x1, y1 in [one.box_xyxy]
        ]

    def to_supervision(self):
        """`supervision.Detections`, with the names under data["class_name"]. Needs supervision."""
        return _needed("supervision", "to_supervision").Detections(
            xyxy=np.asarray([one.box_xyxy for one in self], np.float32).reshape(-1, 4),
            confidence=np.asarray([one.score for one in self], np.float32),
            class_id=np.asarray([one.label_id for one in self], int),
            data={"class_name": np.asarray([one.label for one in self], dtype=str)},
        )

    def draw(self, width: int = 0) -> Image.Image:
        """The picture with boxes and names on it.

        Args:
          width: of the drawing in pixels; 0 = the picture's, but at least 480.
        """
        boxes = [(one.box_xyxy, f"{one.name} {one.score:.2f}", one.label_id) for one in self]
        return drawing.boxes(self.needed_picture(), boxes, width)


@dataclasses.dataclass(frozen=True, repr=False)
class Answers(_Result):
    """The most likely labels or answers, best first: a sequence of `Answer`."""

    answers: tuple[Answer, ...] = ()

    def _entries(self) -> tuple[Answer, ...]:
        return self.answers

    @property
    def best(self) -> str:
        """The label with the highest score."""
        return self.answers[0].label

    @property
    def score(self) -> float:
        """Its score."""
        return self.answers[0].score

    def __str__(self) -> str:
        return self.best

    def __repr__(self) -> str:
        asked = " | ".join(self.given().values())
        more = f", {len(self) - SHOWN} more" if len(self) > SHOWN else ""
        return f"{asked}: " * bool(asked) + ", ".join(map(str, self[:SHOWN])) + more

    def to_dict(self) -> dict[str, Any]:
        """What was given, and `answers`: dicts of label and score."""
        return {**self.given(), "answers": [one.to_dict() for one in self]}

    def draw(self, width: int = 0) -> Image.Image:
        """The picture (if there was one), the text below it, and a bar for each of the best
        answers."""
        texts = [text for text in (self.text, self.text_b) if text]
        bars = [(one.label, one.score) for one in self[:SHOWN]]
        return drawing.answers(self.picture(), texts, bars, width)


Result = Detections | Answers


def _flat(entry: Detection | Answer) -> dict[str, Any]:
    values: dict[str, Any] = {**entry.to_dict(), "label_id": entry.label_id}
    if isinstance(entry, Detection):
        values |= dict(zip(("x0", "y0", "x1", "y1"), values.pop("box_xyxy"), strict=True))
    return values


def _needed(module: str, method: str):
    """Imports an optional package."""
    import importlib

    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ImportError(f"{method} needs {module}: pip install {module}") from error
