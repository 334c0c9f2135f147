"""Object detection in COCO's JSON: COCO 2017, and what Visual Genome shares with it."""

import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from jaxtyping import Bool

from unit_jax.data.sources import base, images
from unit_jax.outputs.objects.targets import ATTRIBUTE_SLOTS, trained_objects

VAL_IMAGES = "coco/annotations/instances_val2017.json"
_HUGE = 1e30  # larger numbers (and NaN) are no pixels; float32 and products of two hold this
_MOST_IDS = 2**15  # a larger id is a fault: every id up to it would get an output of its own


class Coco(base.RecordSource):
    """COCO 2017 detection.

    Files: coco/annotations/instances_{train,val}2017.json, image_info_test-dev2017.json (may
    be absent, together with its images), and the image folders coco/{train,val,test}2017.

    Images are ordered by id; those without annotations stay in (as in torchvision's
    CocoDetection, which the reference reads with). Crowd regions are kept in the records, marked:
    evaluation needs them, training drops them. A label is the raw category id, so there are as
    many labels as the largest id plus one.
    """

    name = "coco"
    version = "1.1.0"
    image_family = "images_coco"
    origin = "https://cocodataset.org/#download"
    features = {
        "id": tfds.features.Text(),
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
    test: tuple[str, str] = ("coco/annotations/image_info_test-dev2017.json", "coco/test2017")
    published = {
        "train images": 118_287,
        "train objects": 860_001,
        "val images": 5_000,
        "val objects": 36_781,
        "test images": 20_288,
    }
    image_folders: tuple[str, ...] = ("coco/train2017", "coco/val2017")

    def required_files(self) -> list[pathlib.Path]:
        return [self.source / file for file in [*self.annotations.values(), *self.image_folders]]

    def read(self, store: base.ImageIndex | None, problems: base.Problems) -> base.Content:
        store = self.images_of(store)
        splits, index, listed = {}, {}, {}
        categories: dict[int, str] = {}
        attribute_names: dict[int, str] = {}
        for split, path, content in self._annotated(problems):
            categories |= _named_ids(content.get("categories"), path)
            attribute_names |= _named_ids(content.get("attCategories"), path)
            splits[split] = self._read_split(split, path, content, categories, store, problems)
            kept = [np.count_nonzero(_trained(record)) for record in splits[split]]
            index[split] = {"num_objects": np.array(kept, np.int32)}
            listed[f"{split} images"] = len(content["images"])
            if split != "test":
                listed[f"{split} objects"] = len(content["annotations"])
        count = max(categories, default=-1) + 1
        facts: dict[str, Any] = {
            "num_labels": count,
            "label_names": _by_number(categories, count),
        }
        if self.attributes:
            used = [r["attributes"].max(initial=-1) for rows in splits.values() for r in rows]
            count = int(max([*attribute_names, *used], default=-1)) + 1
            facts["num_attributes"] = count
            facts["attribute_names"] = _by_number(attribute_names, count)
        return base.Content(
            splits, facts, listed, index, unlabelled=frozenset({"test"} & splits.keys())
        )

    def _annotated(
        self, problems: base.Problems
    ) -> Iterator[tuple[str, pathlib.Path, dict[str, Any]]]:
        """(split, file, what it holds in COCO's format) of every split."""
        files = {split: self.source / file for split, file in self.annotations.items()}
        test, test_images = (self.source / (path or ".absent") for path in self.test)
        if test.exists() and test_images.exists():
            files["test"] = test
        for split, path in files.items():
            yield split, path, base.read_json(path, problems)

    def _read_split(
        self,
        split: str,
        path: pathlib.Path,
        content: Mapping[str, Any],
        categories: Mapping[int, str],
        store: base.ImageIndex,
        problems: base.Problems,
    ) -> list[base.Record]:
        listed = _unique(base.entries(content, "images", path, problems), "image", path, problems)
        objects = {image_id: [] for image_id in listed}
        if split != "test":
            annotations = base.entries(content, "annotations", path, problems)
            for number, annotation in _unique(annotations, "annotation", path, problems).items():
                place = f"{path}: annotation {number}"
                image_id = base.id_number(annotation.get("image_id"))
                if image_id not in objects:
                    problems.add("unknown image", place, f"{annotation.get('image_id')!r:.60}")
                elif self._usable(annotation, categories, place, problems):
                    objects[image_id].append(annotation)
        records = []
        for image_id in sorted(listed):
            image = listed[image_id]
            place = f"{path}: image {image_id} ({image.get('file_name')!s:.200})"
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
            record = {"id": str(image_id), **located, **self._arrays(objects[image_id])}
            if outside := _outside(record):
                problems.add("box outside", place, f"{outside} boxes, clipped in training", "kept")
            records.append(record)
        return records

    def _usable(
        self,
        annotation: Mapping[str, Any],
        categories: Mapping[int, str],
        place: str,
        problems: base.Problems,
    ) -> bool:
        box: Any = annotation.get("bbox")
        if not _is_box(box):
            problems.add("bad box", place, f"bbox {box!r:.60}")
            return False
        if base.id_number(annotation.get("category_id")) not in categories:
            category = annotation.get("category_id")
            problems.add("unknown category", place, f"category_id {category!r:.60}")
            return False
        if self.attributes and _attribute_slots(annotation) is None:
            ids = annotation["attribute_ids_max16"]
            problems.add("bad attributes", place, f"attribute_ids_max16 {ids!r:.60}")
            return False
        if min(box[2:]) == 0:
            problems.add("empty box", place, f"bbox {box}, left out in training", "kept")
        return True

    def _arrays(self, objects: list[Mapping[str, Any]]) -> dict[str, np.ndarray]:
        arrays = {
            "boxes_xywh": np.array([o["bbox"] for o in objects], np.float32).reshape(-1, 4),
            "category_ids": np.array([int(o["category_id"]) for o in objects], np.int32),
            "areas": np.array([_area(o) for o in objects], np.float32),
            "iscrowd": np.array([bool(o.get("iscrowd", 0)) for o in objects], np.bool_),
        }
        if self.attributes:
            slots = [_attribute_slots(o) for o in objects]
            arrays["attributes"] = np.array(slots, np.int32).reshape(-1, ATTRIBUTE_SLOTS)
        return arrays


def val_image_ids(source: pathlib.Path, problems: base.Problems) -> set[int]:
    """Ids of COCO 2017's validation images, which VQAv2 and Visual Genome are split by."""
    path = source / VAL_IMAGES
    listed = base.entries(base.read_json(path, problems), "images", path, problems)
    numbers = (base.id_number(image.get("id")) for image in listed)
    return {number for number in numbers if number is not None}


def _unique(
    entries: list[dict[str, Any]], what: str, path: pathlib.Path, problems: base.Problems
) -> dict[int, dict[str, Any]]:
    """The entries by id; those without one and repetitions are skipped."""
    unique: dict[int, dict[str, Any]] = {}
    for entry in entries:
        number = base.id_number(entry.get("id"))
        if number is None:
            problems.add("bad id", f"{path}: {what} {entry.get('id')!r:.60}", "no whole number")
        elif number in unique:
            problems.add("duplicate id", f"{path}: {what} {number}", "the first one is kept")
        else:
            unique[number] = entry
    return unique


def _is_box(box: Any) -> bool:
    """Four numbers that float32 can hold, the last two (width, height) not negative."""
    try:
        return len(box) == 4 and all(abs(value) < _HUGE for value in box) and min(box[2:]) >= 0
    except TypeError:
        return False


def _area(annotation: Mapping[str, Any]) -> float:
    """Area in square pixels: the annotated (segmented) one, or the box's."""
    area = annotation.get("area")
    if isinstance(area, int | float) and abs(area) < _HUGE:
        return area
    return annotation["bbox"][2] * annotation["bbox"][3]


def _trained(record: base.Record) -> Bool[np.ndarray, "objects"]:
    """True for the objects that training keeps."""
    size = record["height"], record["width"]
    return trained_objects(record["boxes_xywh"], record["iscrowd"], *size)[1]


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
    if not all(isinstance(number, int) and -1 <= number < _MOST_IDS for number in ids):
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
