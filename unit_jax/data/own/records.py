"""From examples to records as they are stored."""

import dataclasses
import hashlib
import pathlib
from collections import Counter
from collections.abc import Mapping
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from unit_jax import own_data
from unit_jax.data.own.declared import Declared, check_loss
from unit_jax.data.own.images import Stored
from unit_jax.data.sources import base
from unit_jax.data.sources.formats.parts import Box, Example

_OBJECTS = {
    "boxes_xywh": tfds.features.Tensor(shape=(None, 4), dtype=np.float32),
    "category_ids": tfds.features.Tensor(shape=(None,), dtype=np.int32),
    "areas": tfds.features.Tensor(shape=(None,), dtype=np.float32),
    "iscrowd": tfds.features.Tensor(shape=(None,), dtype=np.bool_),
}


def features(options: Mapping[str, Any]) -> dict[str, Any]:
    """TFDS features of a data set's records."""
    made: dict[str, Any] = {"id": tfds.features.Text()}
    if own_data.is_text(options):
        made["text"] = tfds.features.Text()
    if options["format"] == "table":
        if options.get("text"):
            made["text_b"] = tfds.features.Text()
        made["label"] = np.int32
    elif options["format"] == "questions":
        made["answers"] = tfds.features.Sequence(tfds.features.Text())
    else:
        made |= _OBJECTS
    if own_data.has_image(options):
        made |= {"image_row": np.int64, "width": np.int32, "height": np.int32}
    return made


@dataclasses.dataclass
class Built:
    """Records of a split, and what the report shows of them.

    Attributes:
      examples: that the records were made of, in their order.
      digests: of the images' files, or of the texts, by record: equal ones are duplicates.
      counts: objects or examples by label.
    """

    records: list[base.Record]
    examples: list[Example]
    digests: list[str]
    counts: Counter


def build(
    declared: Declared,
    split: str,
    labels: Mapping[Any, int],
    stored: Mapping[pathlib.Path, Stored],
) -> Built:
    """The records of a split; an example whose image is not in the store is left out."""
    problems = declared.problems[split]
    built = Built([], [], [], Counter())
    for example in declared.splits[split]:
        record: base.Record = {"id": base.encodable(example.id, example.place, problems)}
        image = None
        if example.image is not None:
            image = stored.get(example.image)
            if image is None:
                continue  # its fault is noted
            record |= {"image_row": image.row, "width": image.width, "height": image.height}
            if example.size is not None and example.size != (image.width, image.height):
                problems.add(
                    "image size",
                    example.place,
                    f"the image has {image.width}x{image.height}, the annotations say "
                    f"{example.size[0]}x{example.size[1]}: the image's size is used",
                    "repaired",
                )
        if own_data.is_text(declared.options):
            record["text"] = example.text
        if declared.options["format"] == "table":
            if declared.options.get("text"):
                record["text_b"] = example.text_b
            record["label"] = -1 if example.label is None else labels[example.label]
            built.counts[record["label"]] += 1
        elif declared.options["format"] == "questions":
            record["answers"] = list(example.answers or ())
        elif image is not None:
            record |= _objects(example, labels, image, problems)
            built.counts.update(record["category_ids"].tolist())
        built.records.append(record)
        built.examples.append(example)
        text = f"{example.text}\0{example.text_b}".encode()
        built.digests.append(image.digest if image else hashlib.sha256(text).hexdigest())
    if split not in declared.parts or (declared.from_one_file and split == "train"):
        return built  # `check_divided` looks at the file as a whole
    check_loss(declared, split, "examples", len(built.records), declared.listed[split])
    if declared.detection and split not in declared.unlabelled:
        kept = sum(built.counts.values())
        check_loss(declared, split, "objects", kept, declared.listed_objects[split])
    return built


def check_divided(declared: Declared, built: Mapping[str, Built]) -> None:
    """The check of losses for splits that come from one file.

    Raises:
      ValueError: more than half of its examples or objects cannot be used, or a split is empty.
    """
    for split, rows in built.items():
        if not rows.records:
            raise ValueError(
                f"{declared.name}: no usable example in {split}; faults: {declared.faults()}"
            )
    if not declared.from_one_file:
        return
    parts = [
        rows for split, rows in built.items() if split not in declared.parts or split == "train"
    ]
    kept = sum(len(rows.records) for rows in parts)
    check_loss(declared, "train", "examples", kept, declared.listed["train"])
    if declared.detection:
        kept = sum(sum(rows.counts.values()) for rows in parts)
        check_loss(declared, "train", "objects", kept, declared.listed_objects["train"])


def _objects(
    example: Example, labels: Mapping[Any, int], image: Stored, problems: base.Problems
) -> base.Record:
    """Arrays of an image's objects; those with nothing inside the image are left out."""
    kept, outside = [], 0
    for box in example.boxes or ():
        left, top, width, height = _pixels(box, image)
        inside_x = min(left + width, image.width) - max(left, 0)
        inside_y = min(top + height, image.height) - max(top, 0)
        if inside_x <= 0 or inside_y <= 0:
            detail = (
                f"box {[round(v, 2) for v in (left, top, width, height)]} has nothing inside the "
                f"image of {image.width}x{image.height}"
            )
            problems.add("box outside", example.place, detail)
            continue
        edges = left + 1, top + 1, image.width + 1 - left - width, image.height + 1 - top - height
        outside += min(edges) < 0
        area = width * height if box.area is None else box.area
        kept.append(((left, top, width, height), labels[box.category], area, box.crowd))
    if outside:
        detail = f"{outside} boxes leave the image: clipped in training"
        problems.add("box partly outside", example.place, detail, "kept")
    boxes, ids, areas, crowds = zip(*kept, strict=True) if kept else ((), (), (), ())
    return {
        "boxes_xywh": np.array(boxes, np.float32).reshape(-1, 4),
        "category_ids": np.array(ids, np.int32),
        "areas": np.array(areas, np.float32),
        "iscrowd": np.array(crowds, np.bool_),
    }


def _pixels(box: Box, image: Stored) -> tuple[float, float, float, float]:
    if not box.relative:
        return box.xywh
    left, top, width, height = box.xywh
    return left * image.width, top * image.height, width * image.width, height * image.height
