"""Data sets of one's own, by the format of their files; see `unit_jax/own_data.py`."""

from collections.abc import Callable, Mapping

from unit_jax.data.sources import base
from unit_jax.data.sources.formats import coco, questions, table, voc, yolo
from unit_jax.data.sources.formats.parts import Part

# read(options, split, problems) -> Part
READERS: Mapping[str, Callable[[Mapping, str, base.Problems], Part]] = {
    "coco": coco.read,
    "voc": voc.read,
    "yolo": yolo.read,
    "table": table.read,
    "questions": questions.read,
}
