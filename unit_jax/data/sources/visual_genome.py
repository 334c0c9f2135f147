"""Visual Genome detection with attributes, from the reference's COCO-style JSON or as published."""

import dataclasses
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from unit_jax.data.sources import base, coco
from unit_jax.outputs.objects.targets import ATTRIBUTE_SLOTS

IMAGE_DATA = "visual_genome/image_data.json"
OBJECTS = "visual_genome/objects.json"
ATTRIBUTES = "visual_genome/attributes.json"
OBJECT_NAMES = "visual_genome/objects_vocab.txt"
ATTRIBUTE_NAMES = "visual_genome/attributes_vocab.txt"

# Words that the vocabularies' authors read as attributes where they stand before an object's name
# ("white car"); bottom-up-attention, data/genome/setup_vg.py.
_ADJECTIVES = frozenset(
    "white black blue green red brown yellow small large silver wooden orange gray grey metal "
    "pink tall long dark".split()
)


class VisualGenome(coco.Coco):
    """Visual Genome, split so that no COCO 2017 validation image is trained on.

    Images: visual_genome/VG_100K and VG_100K_2. Annotations in one of two forms:

    1. The reference's: visual_genome/annotations/instances_{train,val}_split_by_coco_2017.json,
       COCO's format plus `attribute_ids_max16` per annotation (up to 16 ids, -1 = none) and,
       where given, `attCategories` with their names. A file instances_test_... of the same form
       lists images to predict (no release has one).
    2. Release 1.2 or 1.4: visual_genome/objects.json, attributes.json and image_data.json, with
       the 1600 class names and 400 attribute names of bottom-up attention in
       visual_genome/objects_vocab.txt and attributes_vocab.txt (a class a line, its synonyms
       separated by commas). Images that are in COCO's val2017 become the validation split.
       Classes and attributes are numbered by line from 1; number 0 stays unused, as in the
       reference's 1601 and 401.

    Names are compared in lower case without a full stop at the end. An object whose name is in no
    line is left out; "white car" is a white "car"; "red and white" are two attributes. An object
    keeps the first 16 attributes that have a line.
    """

    name = "visual_genome"
    image_family = "images_visual_genome"
    origin = "https://homes.cs.washington.edu/~ranjay/visualgenome/api.html (images)"
    features = {
        **coco.Coco.features,
        "attributes": tfds.features.Tensor(shape=(None, ATTRIBUTE_SLOTS), dtype=np.int32),
    }
    published = {"described images": 108_077, "class names": 1_600, "attribute names": 400}
    attributes = True
    annotations = {
        split: f"visual_genome/annotations/instances_{split}_split_by_coco_2017.json"
        for split in ("train", "val")
    }
    test = ("visual_genome/annotations/instances_test_split_by_coco_2017.json", "visual_genome")
    image_folders = ()

    def required_files(self) -> list[pathlib.Path]:
        if self._is_raw():
            needed = [OBJECTS, ATTRIBUTES, IMAGE_DATA, OBJECT_NAMES, ATTRIBUTE_NAMES]
            return [self.source / name for name in [*needed, coco.VAL_IMAGES]]
        return super().required_files()

    def read(self, store: base.ImageIndex | None, problems: base.Problems) -> base.Content:
        content = super().read(store, problems)
        if not self._is_raw():  # how much the reference's files list is not published
            return content
        listed = {
            "described images": content.listed["train images"] + content.listed["val images"],
            "class names": content.facts["num_labels"] - 1,
            "attribute names": content.facts["num_attributes"] - 1,
        }
        return dataclasses.replace(content, listed=listed)

    def _is_raw(self) -> bool:
        converted = [self.source / file for file in self.annotations.values()]
        return (self.source / OBJECTS).exists() and not all(map(pathlib.Path.exists, converted))

    def _annotated(
        self, problems: base.Problems
    ) -> Iterator[tuple[str, pathlib.Path, dict[str, Any]]]:
        if not self._is_raw():
            yield from super()._annotated(problems)
            return
        classes = _read_names(self.source / OBJECT_NAMES, problems)
        attributes = _read_names(self.source / ATTRIBUTE_NAMES, problems)
        described = _described(self.source / ATTRIBUTES, attributes, problems)
        val_images = coco.val_image_ids(self.source, problems)
        images: dict[str, list] = {"train": [], "val": []}
        split_of = {}
        for image in base.read_json_list(self.source / IMAGE_DATA, problems):
            image_id = base.id_number(image.get("image_id"))
            split = "val" if base.id_number(image.get("coco_id")) in val_images else "train"
            split_of.setdefault(image_id, split)
            size = {key: image.get(key) for key in ("width", "height")}
            # The store knows images by number, in whichever of the two folders they lie.
            images[split].append({"id": image_id, "file_name": f"{image_id}.jpg", **size})
        objects: dict[str, list] = {"train": [], "val": []}
        for image in base.read_json_list(self.source / OBJECTS, problems):
            image_id = base.id_number(image.get("image_id"))
            place = f"{self.source / OBJECTS}: image {image_id}"
            for entry in base.objects(image.get("objects"), place, problems):
                category, adjectives = _class_of(entry, classes)
                if category is not None:
                    slots = [attributes[word] for word in adjectives if word in attributes]
                    slots += described.get(base.id_number(entry.get("object_id")), [])
                    # An image that image_data.json lacks is a fault, counted in either split.
                    objects[split_of.get(image_id, "train")].append(
                        _annotation(image_id, entry, category, slots)
                    )
        for split in ("train", "val"):
            yield (
                split,
                self.source / OBJECTS,
                {
                    "images": images[split],
                    "annotations": objects[split],
                    "categories": _numbered(classes),
                    "attCategories": _numbered(attributes),
                },
            )


def _annotation(image_id: int | None, entry: Mapping, category: int, slots: list[int]) -> dict:
    """An object as COCO's JSON has it."""
    return {
        "id": entry.get("object_id"),
        "image_id": image_id,
        "bbox": [entry.get(key) for key in "xywh"],
        "category_id": category,
        "attribute_ids_max16": list(dict.fromkeys(slots))[:ATTRIBUTE_SLOTS],
    }


def _class_of(entry: Mapping, classes: Mapping[str, int]) -> tuple[int | None, list[str]]:
    """Class of an object (None: no line has its name), and adjectives that stood before it."""
    names = entry.get("names")
    words = _cleaned(names[0]).split() if isinstance(names, list) and names else []
    if len(words) > 1 and _ADJECTIVES.issuperset(words[:-1]):
        return classes.get(words[-1]), words[:-1]
    return classes.get(" ".join(words)), []


def _described(
    path: pathlib.Path, numbers: Mapping[str, int], problems: base.Problems
) -> dict[int | None, list[int]]:
    """Attribute numbers by object id."""
    attributes: dict[int | None, list[int]] = {}
    for image in base.read_json_list(path, problems):
        place = f"{path}: image {image.get('image_id')!r:.60}"
        for entry in base.objects(image.get("attributes"), place, problems):
            texts = entry.get("attributes")
            texts = texts if isinstance(texts, list) else []
            names = [name for text in texts for name in _attributes_in(text)]
            known = [numbers[name] for name in names if name in numbers]
            if known:
                attributes.setdefault(base.id_number(entry.get("object_id")), []).extend(known)
    return attributes


def _attributes_in(text: Any) -> list[str]:
    """The attributes that a text names."""
    text = _cleaned(text)
    if text == "black and white":
        return [text]
    return [name.strip() for name in text.split(" and ")]


def _cleaned(text: Any) -> str:
    """Lower case, without spaces around it or a full stop at its end."""
    text = text.lower().strip() if isinstance(text, str) else ""
    return text.removesuffix(".").strip()


def _read_names(path: pathlib.Path, problems: base.Problems) -> dict[str, int]:
    """Number of each name in a vocabulary: its line, counted from 1; of several the last."""
    lines = filter(str.strip, base.read_text(path, problems).splitlines())
    return {
        name: number
        for number, line in enumerate(lines, start=1)
        for name in map(_cleaned, line.split(","))
        if name
    }


def _numbered(numbers: Mapping[str, int]) -> list[dict[str, Any]]:
    """A vocabulary as COCO's JSON lists categories; the first name of a line is the class's."""
    first = {number: name for name, number in reversed(list(numbers.items()))}
    return [{"id": number, "name": name} for number, name in sorted(first.items())]
