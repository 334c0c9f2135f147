"""The one schema of records: what a source writes, preparation checks and everything else reads.

    id                          str, opaque; names the example in files of predictions
    text, text_b                str; the second is "" where there is one text only
    label                       int, -1 = unknown               } one of these, or fields of
    answers                     list of str, empty = unknown    } a kind of answer of one's own
    objects                     dict of arrays, see OBJECTS     }
    image_row, width, height    int; of the image in its store, and its size in pixels

Objects are stored side by side with the rest (`boxes_xywh`, ...) and read as one dict.
"""

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from unit_jax.outputs.objects.targets import ATTRIBUTE_SLOTS, NO_ATTRIBUTE

TEXTS = ("text", "text_b")
ANSWERS = ("label", "answers")
# boxes_xywh f32[N, 4] in pixels of the image, category_ids i32[N], areas f32[N] in square pixels,
# iscrowd bool[N], attributes i32[N, 16] (-1 = unused slot; may be absent).
OBJECTS = ("boxes_xywh", "category_ids", "areas", "iscrowd", "attributes")
IMAGE = ("image_row", "width", "height")

# Names of before this schema, in sources and in data that were prepared then.
_RENAMED = {
    "image_id": "id",
    "question_id": "id",
    "example_id": "id",
    "question": "text",
    "hypothesis": "text",
    "text_a": "text",
}


def renamed(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Fields or features under the names of the schema."""
    return {_RENAMED.get(name, name): value for name, value in fields.items()}


def check_features(task: str, names: Iterable[str]) -> None:
    """Checks what a source says its records hold.

    Raises:
      ValueError: nothing to learn is among them, or only a part of what objects need.
    """
    names = set(names)
    known = {"id", *TEXTS, *IMAGE}
    missing = [name for name in OBJECTS[:-1] if name not in names]
    if names & set(OBJECTS) and missing:
        raise ValueError(f"{task}: features of objects also need {', '.join(missing)}")
    if not names - known:
        raise ValueError(
            f"{task}: its features ({', '.join(sorted(names))}) hold nothing to learn; a record "
            f"has one of {', '.join(ANSWERS)}, objects ({', '.join(OBJECTS)}), or fields of a "
            "kind of answer of your own"
        )


def as_stored(record: Mapping[str, Any], row: int) -> dict[str, Any]:
    """A source's record, as it is written; the row is the id where there is none."""
    record = renamed(record)
    objects = record.pop("objects", {})
    return {**record, **objects, "id": str(record.get("id", row))}


def as_read(stored: Mapping[str, Any], row: int) -> dict[str, Any]:
    """A stored record in the schema: numbers and NumPy arrays, text as str, lists of str."""
    record = {name: _plain(value) for name, value in renamed(stored).items()}
    record["id"] = str(record.get("id", row))
    if "text" in record:
        record.setdefault("text_b", "")
    if "boxes_xywh" in record:
        objects = {name: record.pop(name) for name in OBJECTS if name in record}
        shape = (len(objects["boxes_xywh"]), ATTRIBUTE_SLOTS)
        objects.setdefault("attributes", np.full(shape, NO_ATTRIBUTE, np.int32))
        record["objects"] = objects
    return record


def _plain(value: Any) -> Any:
    if isinstance(value, bytes):
        return value.decode()
    if isinstance(value, list) or (isinstance(value, np.ndarray) and value.dtype == object):
        return [item.decode() for item in value]
    return value
