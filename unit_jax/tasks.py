"""The table of tasks: everything that makes a dataset special, one entry each.

Two things vary: what goes in (`inputs`) and what comes out (`output`, a room of `outputs/`). All
else asks the entry, or the room, and never the name. A new dataset is one entry here, or in a
config, and one record source in `data/sources/`.

Task-embedding rows, query counts, text lengths and CLS-only switches of the eight published tasks
are those of the reference configuration (MMF projects/unit, all_8_datasets).
"""

import dataclasses
import difflib
from collections.abc import Iterable, Mapping
from typing import Any, Literal

Transforms = Literal["detr", "resize"]

# Rooms by name; another one is named "module:Class" (a subclass of outputs.base.Output).
OUTPUTS: Mapping[str, str] = {
    "objects": "unit_jax.outputs.objects.room:Objects",
    "label": "unit_jax.outputs.labels.room:Label",
    "scores": "unit_jax.outputs.labels.room:Scores",
}


@dataclasses.dataclass(frozen=True)
class TaskSpec:
    """One dataset of the mixture.

    Attributes:
      name: key used in configs, logs, reports and parameter paths.
      index: row of both task-embedding tables; each task has its own.
      inputs: what goes in: ("image",), ("text",) or ("image", "text").
      output: what comes out: "objects" (classes and boxes), "label" (one of several), "scores"
        (several answers may be right to a degree), or "module:Class", a room of one's own.
      num_queries: decoder queries of its own.
      num_labels: classes without the no-object class (objects), labels or answers (others);
        0 = as many as the prepared data have. Prepared data override the table.
      num_attributes: attribute classes of the attribute head; 0 = no attribute head.
      max_tokens: text length including [CLS] and [SEP]; 0 = no text.
      cls_only: the decoder reads only the [CLS] hidden state of the text.
      metrics: names of the metrics to report, the headline first; () = the room's own.
      transforms: of images: "detr" (augmented in training, sizes rounded) or "resize" (one
        resize, sizes rounded down: the reference's vision-and-language tasks).
      submission: format of files of predictions for a benchmark's server: "coco", "vqa",
        "snli_ve", "glue"; "" = the room's own.
    """

    name: str
    index: int
    inputs: tuple[Literal["image", "text"], ...]
    output: str
    num_queries: int = 25
    num_labels: int = 0
    num_attributes: int = 0
    max_tokens: int = 0
    cls_only: bool = True
    metrics: tuple[str, ...] = ()
    transforms: Transforms = "resize"
    submission: Literal["", "coco", "vqa", "snli_ve", "glue"] = ""

    @property
    def has_image(self) -> bool:
        return "image" in self.inputs

    @property
    def has_text(self) -> bool:
        return "text" in self.inputs


# Short for inputs, output and transforms, in configs.
KINDS: Mapping[str, Mapping[str, Any]] = {
    "detection": dict(inputs=("image",), output="objects", transforms="detr", num_queries=100),
    "vision_language": dict(inputs=("image", "text"), output="label", max_tokens=25),
    "language": dict(inputs=("text",), output="label", max_tokens=128),
    "image": dict(inputs=("image",), output="label"),
}


def _published(kind: str, name: str, index: int, num_labels: int, **others: Any) -> TaskSpec:
    return TaskSpec(name, index, num_labels=num_labels, **{**KINDS[kind], **others})


PUBLISHED: Mapping[str, TaskSpec] = {
    spec.name: spec
    for spec in (
        _published("detection", "coco", 0, 91, submission="coco"),
        _published("detection", "visual_genome", 1, 1601, num_attributes=401, submission="coco"),
        _published(
            "vision_language",
            "vqa2",
            3,
            3129,
            output="scores",
            cls_only=False,
            submission="vqa",
        ),
        _published("vision_language", "snli_ve", 9, 3, submission="snli_ve"),
        _published("language", "qnli", 5, 2, submission="glue"),
        _published("language", "mnli", 6, 3, submission="glue"),
        _published("language", "qqp", 8, 2, submission="glue", metrics=("accuracy", "f1")),
        _published("language", "sst2", 7, 2, submission="glue"),
    )
}

FIELDS = tuple(field.name for field in dataclasses.fields(TaskSpec) if field.name != "name")
SHORTHANDS = ("kind", "soft_targets", "f1")


def resolve(name: str, overrides: Mapping[str, Any], taken: Iterable[int] = ()) -> TaskSpec:
    """Returns the entry `name` of the table with a config's overrides, or a new one.

    Args:
      overrides: fields of TaskSpec, and the shorthands `kind` (a name of KINDS), `soft_targets`
        (True: output "scores") and `f1` (True: metrics accuracy and f1).
      taken: rows of other tasks; a new task that gives no index gets the first free one from 10.

    Raises:
      ValueError: an override is no field of TaskSpec, or a task that the table does not have
        says neither `kind` nor `inputs` and `output`.
    """
    for key in overrides:
        if key not in (*FIELDS, *SHORTHANDS):
            near = difflib.get_close_matches(key, (*FIELDS, *SHORTHANDS), 1)
            raise ValueError(
                f"config.tasks.{name}.{key}: unknown key"
                f"{f'; did you mean {near[0]}?' if near else ''} "
                f"(known: {', '.join(sorted((*FIELDS, *SHORTHANDS, 'ratio')))})"
            )
    values = _spelled_out(name, overrides)
    if name in PUBLISHED:
        return dataclasses.replace(PUBLISHED[name], **values)
    missing = [field for field in ("inputs", "output") if field not in values]
    if missing:
        raise ValueError(
            f"config.tasks.{name}: not one of the published tasks ({', '.join(PUBLISHED)}), so it "
            f"must give kind ({', '.join(KINDS)}), or {' and '.join(missing)}"
        )
    rows = {*taken, *(spec.index for spec in PUBLISHED.values())}
    free = next(row for row in range(10, 10 + len(rows) + 1) if row not in rows)
    return TaskSpec(name=name, **{"index": free, **values})


def from_saved(name: str, saved: Mapping[str, Any]) -> TaskSpec:
    """The entry that a checkpoint's metadata describe, also one made before `inputs` existed."""
    values = {key: value for key, value in saved.items() if key in (*FIELDS, *SHORTHANDS)}
    values = _spelled_out(name, values)
    if name in PUBLISHED:
        return dataclasses.replace(PUBLISHED[name], **values)
    return TaskSpec(name=name, **values)


def _spelled_out(name: str, overrides: Mapping[str, Any]) -> dict[str, Any]:
    """Shorthands turned into fields; lists, as JSON has them, into tuples."""
    values = {k: tuple(v) if isinstance(v, list) else v for k, v in overrides.items()}
    kind = values.pop("kind", None)
    soft, f1 = values.pop("soft_targets", False), values.pop("f1", False)
    if kind is not None and kind not in KINDS:
        near = difflib.get_close_matches(str(kind), KINDS, 1)
        raise ValueError(
            f"config.tasks.{name}.kind: {kind!r} is not one of {', '.join(KINDS)}"
            f"{f'; did you mean {near[0]}?' if near else ''}"
        )
    implied: dict[str, Any] = dict(KINDS[kind]) if kind else {}
    if soft:
        implied["output"] = "scores"
    if f1:
        implied["metrics"] = ("accuracy", "f1")
    return {**implied, **values}
