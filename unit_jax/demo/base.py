"""What all data sets of the demo share: how much is made, random choices, writing files."""

import dataclasses
import json
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from unit_jax.demo.scenes import UNSEEN_SHARE, Chooser

JPEG_QUALITY = 92
SPLITS = ("train", "val", "test")


@dataclasses.dataclass(frozen=True)
class DemoSettings:
    """How much of everything; counts are those of scale 1.

    Attributes:
      seed: of all random choices.
      scale: factor on the counts below (at least one of each is made).
      coco, visual_genome: pictures in (train, val, test); the test pictures have no labels.
      questions: VQA questions per COCO picture.
      flickr30k: SNLI-VE's pictures in (train, dev, test).
      hypotheses: per SNLI-VE picture.
      qnli, mnli, qqp, sst2: texts in (train, dev, test), test without labels; MNLI has two dev
        and two test files of that size.
    """

    seed: int = 0
    scale: float = 1.0
    coco: tuple[int, int, int] = (7500, 300, 100)
    visual_genome: tuple[int, int, int] = (1500, 200, 50)
    questions: int = 4
    flickr30k: tuple[int, int, int] = (5000, 150, 150)
    hypotheses: int = 6
    qnli: tuple[int, int, int] = (24000, 600, 100)
    mnli: tuple[int, int, int] = (24000, 600, 100)
    qqp: tuple[int, int, int] = (24000, 600, 100)
    sst2: tuple[int, int, int] = (8000, 600, 100)

    def count(self, task: str, split: int) -> int:
        """Number of pictures (or texts) of a data set's split, scaled."""
        return max(1, round(getattr(self, task)[split] * self.scale))


def chooser_of(settings: DemoSettings, name: str, split: str, number: int) -> Chooser:
    """The generator of one picture or text; only training never draws held-out pairs."""
    unseen_share = 0.0 if split == "train" else UNSEEN_SHARE
    return Chooser(f"{settings.seed}/{name}/{split}/{number}", unseen_share)


def write(path: Path, text: str):
    """Writes a text file and its folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8", newline="\n")


def as_json(value: object) -> str:
    """JSON for people: indented, with a line end."""
    return json.dumps(value, indent=1) + "\n"


def write_json(path: Path, value: object):
    """Writes a JSON file."""
    write(path, json.dumps(value))


def write_image(path: Path, pixels: UInt8[np.ndarray, "height width 3"]):
    """Writes an image in the format of its name."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, quality=JPEG_QUALITY, subsampling=0)
