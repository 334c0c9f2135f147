"""Object detection in COCO's JSON: COCO 2017, and what Visual Genome shares with it."""

import collections
import math
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from jaxtyping import Bool, Float

from unit_jax.data.sources import base, images

ATTRIBUTE_SLOTS = 16


class Coco(base.RecordSource):
    """COCO 2017 detection.

    Files: coco/annotations/instances_{train,val}2017.json, image_info_test-dev2017.json (may
    be absent), and the image folders coco/{train,val,test}2017.

    Images are ordered by id; those without annotations stay in (as in torchvision's
    CocoDetection, which the reference reads with). Crowd regions are kept in the records, marked:
    evaluation needs them, training drops them. A label is the raw category id, so there are as
    many labels as the largest id plus one.
    """

    name = "coco"
    kind = "detection"
    image_family = "images_coco"
    origin = "https://cocodataset.org/#download"
    features = {
        "image_id": np.int64,
        "boxes_xywh": tfds.features.Tensor(shape=(None, 4), dtype=np.float32),
        "category_ids": tfds.features.Tensor(shape=(None,), dtype=np.int32),
        "areas": tfds.features.Tensor(shape=(None,), dtype=np.float32),
        "iscrowd": tfds.features.Tensor(shape=(None,), dtype=np.bool_),
    }
    attributes = False
    annotations: Mapping[str, str] = {
        "train": "coco/annotations/instances_train2017.json",
        "val": "coco/annotations/instances_val2017.json",
    }
    test_annotations = "coco/annotations/image_info_test-dev2017.json"
    image_folders: tuple[str, ...] = ("coco/train2017", "coco/val2017")

    def required_files(self) -> list[pathlib.Path]:
        return [self.source / file for file in [*self.annotations.values(), *self.image_folders]]

    def read(self, store: base.ImageIndex | None, problems: base.Problems) -> base.Content:
        files = {split: self.source / file for split, file in self.annotations.items()}
        if self.test_annotations and (self.source / self.test_annotations).exists():
            files["test"] = self.source / self.test_annotations
        splits, index = {}, {}
        categories: dict[int, str] = {}
        attribute_names: dict[int, str] = {}
        for split, path in files.items():
            content = base.read_json(path, problems)
            categories |= _named_ids(content.get("categories"), path)
            attribute_names |= _named_ids(
                content.get("attCategories", content.get("attributes")), path
            )
            splits[split] = self._read_split(path, content, categories, store, problems)
            del content
            index[split] = {
                "num_objects": np.array(
                    [np.count_nonzero(trained_objects(record)) for record in splits[split]],
                    np.int32,
                )
            }
        facts: dict[str, Any] = {
            "num_labels": max(categories, default=-1) + 1,
            "label_names": _by_number(categories, max(categories, default=-1) + 1),
        }
        if self.attributes:
            used = [r["attributes"].max(initial=-1) for rows in splits.values() for r in rows]
            count = int(max([*attribute_names, *used], default=-1)) + 1
            facts["num_attributes"] = count
            facts["attribute_names"] = _by_number(attribute_names, count)
        return base.Content(splits, facts, index)

    def _read_split(
        self,
        path: pathlib.Path,
        content: Mapping[str, Any],
        categories: Mapping[int, str],
        store: base.ImageIndex,
        problems: base.Problems,
    ) -> list[base.Record]:
        by_image = collections.defaultdict(list)
        seen = set()
        for annotation in content.get("annotations", ()):
            number = annotation.get("id")
            if number is not None and number in seen:
                problems.add("duplicate id", f"{path}: annotation {number}", "second one")
                continue
            seen.add(number)
            by_image[annotation.get("image_id")].append(annotation)
        listed = {}
        for image in content.get("images", ()):
            if image.get("id") in listed:
                problems.add("duplicate id", f"{path}: image {image['id']}", "second one")
            else:
                listed[image.get("id")] = image
        for image_id in by_image.keys() - listed.keys():
            problems.add(
                "unknown image",
                f"{path}: image {image_id}",
                f"{len(by_image[image_id])} annotations of an image that is not listed",
            )
        records = []
        for image_id in sorted(listed):
            image = listed[image_id]
            place = f"{path}: image {image_id} ({image.get('file_name')})"
            located = store.locate(images.trailing_number(str(image.get("file_name"))))
            if located is None:
                problems.add("missing image", place, "no such image file, or a broken one")
                continue
            size = located["width"], located["height"]
            told = image.get("width"), image.get("height")
            if told != size:
                problems.add(
                    "image size",
                    place,
                    f"the file has {size[0]}x{size[1]}, the annotations say {told[0]}x{told[1]}: "
                    "the file's size is used",
                    "repaired",
                )
            objects = [
                annotation
                for annotation in by_image.get(image_id, ())
                if self._usable(annotation, categories, f"{path}: image {image_id}", problems)
            ]
            records.append({"image_id": image_id, **located, **self._object_arrays(objects)})
            outside = _outside(records[-1])
            if outside:
                problems.add("box outside", place, f"{outside} boxes, clipped in training", "kept")
        return records

    def _usable(self, annotation, categories, place, problems) -> bool:
        place = f"{place}, annotation {annotation.get('id')}"
        box = annotation.get("bbox")
        try:
            finite = len(box) == 4 and all(math.isfinite(value) for value in box)
        except TypeError:
            finite = False
        if not finite or min(box[2:]) < 0:
            problems.add("bad box", place, f"bbox {str(box)[:60]}")
            return False
        if annotation.get("category_id") not in categories:
            problems.add("unknown category", place, f"{annotation.get('category_id')!r}")
            return False
        if self.attributes and not _attribute_slots(annotation):
            problems.add("bad attributes", place, f"{annotation.get('attribute_ids_max16')!r}")
            return False
        if min(box[2:]) == 0:
            problems.add("empty box", place, f"bbox {box}, left out in training", "kept")
        return True

    def _object_arrays(self, objects: list[Mapping]) -> dict[str, np.ndarray]:
        arrays = {
            "boxes_xywh": np.array([o["bbox"] for o in objects], np.float32).reshape(-1, 4),
            "category_ids": np.array([o["category_id"] for o in objects], np.int32),
            "areas": np.array(
                [o.get("area", o["bbox"][2] * o["bbox"][3]) for o in objects], np.float32
            ),
            "iscrowd": np.array([bool(o.get("iscrowd", 0)) for o in objects], np.bool_),
        }
        if self.attributes:
            slots = [_attribute_slots(o) for o in objects]
            arrays["attributes"] = np.array(slots, np.int32).reshape(-1, ATTRIBUTE_SLOTS)
        return arrays


def trained_objects(record: base.Record) -> Bool[np.ndarray, "objects"]:
    """True for objects that training keeps: no crowd, some area inside the image.

    The reference clamps boxes to the image and drops those without width or height.
    """
    lower, upper = _corners(record)
    return ((upper > lower).all(1)) & ~record["iscrowd"]


def _corners(
    record: base.Record,
) -> tuple[Float[np.ndarray, "objects 2"], Float[np.ndarray, "objects 2"]]:
    boxes = record["boxes_xywh"]
    size = np.array([record["width"], record["height"]], np.float32)
    return np.clip(boxes[:, :2], 0, size), np.clip(boxes[:, :2] + boxes[:, 2:], 0, size)


def _outside(record: base.Record) -> int:
    """Boxes that leave the image by more than a pixel (COCO's own rounding stays below that)."""
    boxes = record["boxes_xywh"]
    size = np.array([record["width"], record["height"]], np.float32)
    lower, upper = boxes[:, :2], boxes[:, :2] + boxes[:, 2:]
    return int(np.count_nonzero(((lower < -1) | (upper > size + 1)).any(1)))


def _attribute_slots(annotation: Mapping) -> list[int] | None:
    """The 16 attribute ids of an object (-1 = none), None where the entry is not such a list."""
    ids = annotation.get("attribute_ids_max16", [])
    if not isinstance(ids, list) or len(ids) > ATTRIBUTE_SLOTS:
        return None
    if not all(isinstance(number, int) and number >= -1 for number in ids):
        return None
    return ids + [-1] * (ATTRIBUTE_SLOTS - len(ids))


def _named_ids(entries: Any, path: pathlib.Path) -> dict[int, str]:
    """{id: name} of a list of categories."""
    try:
        return {int(entry["id"]): str(entry["name"]) for entry in entries or ()}
    except (TypeError, KeyError, ValueError):
        raise ValueError(f"{path}: expected categories as objects with id and name") from None


def _by_number(names: Mapping[int, str], count: int) -> list[str]:
    return [names.get(number, "") for number in range(count)]
