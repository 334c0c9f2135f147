"""The table of tasks: everything that makes a dataset special, one entry each.

Two things vary: what goes in (`inputs`) and what comes out (`output`, a room of `outputs/`). All
else asks the entry, or the room, and never the name. A new dataset is one entry here, or in a
config, and one record source in `data/sources/`.

Task-embedding rows, query counts, text lengths and CLS-only switches of the eight published tasks
are those of the reference configuration (MMF projects/unit, all_8_datasets).
"""

import dataclasses
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Literal

from unit_jax import fields
from unit_jax.fields import required, setting

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
    """

    name: str
    index: int = required("row of both task-embedding tables; each task has its own", low=0)
    inputs: tuple[Literal["image", "text"], ...] = required(
        'what goes in: ("image",), ("text",) or ("image", "text")', items=1
    )
    output: str = required(
        'what comes out: "objects" (classes and boxes), "label" (one of several), "scores" '
        '(several answers may be right to a degree), or "module:Class", a room of one\'s own'
    )
    num_queries: int = setting(25, "decoder queries of its own", low=1)
    num_labels: int = setting(
        0,
        "classes without the no-object class (objects), labels or answers (others); 0 = as many as "
        "the prepared data have. Prepared data override it",
        low=0,
    )
    num_attributes: int = setting(
        0, "attribute classes of the attribute head; 0 = no attribute head", low=0
    )
    max_tokens: int = setting(0, "text length including [CLS] and [SEP]; 0 = no text", low=0)
    cls_only: bool = setting(True, "the decoder reads only the [CLS] hidden state of the text")
    metrics: tuple[str, ...] = setting(
        (), "names of the metrics to report, the headline first; () = the room's own"
    )
    transforms: Transforms = setting(
        "resize",
        'of images: "detr" (augmented in training, sizes rounded) or "resize" (one resize, sizes '
        "rounded down: the reference's vision-and-language tasks)",
    )
    submission: Literal["", "coco", "vqa", "snli_ve", "glue"] = setting(
        "",
        "format of files of predictions for a benchmark's server; \"\" = the room's own",
    )

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
SHORTHANDS: Mapping[str, Any] = {"kind": str, "soft_targets": bool, "f1": bool}  # and their types


def resolve(name: str, overrides: Mapping[str, Any], taken: Iterable[int] = ()) -> TaskSpec:
    """Returns the entry `name` of the table with a config's overrides, or a new one.

    Args:
      overrides: fields of TaskSpec, and the shorthands `kind` (a name of KINDS), `soft_targets`
        (True: output "scores") and `f1` (True: metrics accuracy and f1).
      taken: rows of other tasks; a new task that gives no index gets the first free one from 10.

    Raises:
      ValueError: a line for everything that is wrong: keys, types, ranges and names, text without
        a length, or a task that the table does not have and that says neither `kind` nor `inputs`
        and `output`.
    """
    reader = fields.Reader()
    spec = read(name, overrides, taken, reader)
    if reader.problems or spec is None:
        raise ValueError("\n".join(reader.problems))
    return spec


def read(
    name: str, overrides: Mapping[str, Any], taken: Iterable[int], reader: fields.Reader
) -> TaskSpec | None:
    """Reads like `resolve`, but what is wrong becomes lines of the reader, and the result None."""
    where, before = f"config.tasks.{name}", len(reader.problems)
    if not re.fullmatch(r"[\w-]+", name):
        reader.problem(where, "names of tasks are letters, digits, _ and -")
    known = (*FIELDS, *SHORTHANDS)
    for key in overrides:
        if key not in known:
            near = fields.did_you_mean(key, known)
            options = ", ".join(sorted((*known, "ratio")))
            reader.problem(f"{where}.{key}", f"unknown key{near} (known here: {options})")
    values = {key: value for key, value in overrides.items() if key in known}
    for key, hint in SHORTHANDS.items():
        if key in values:
            reader.convert(hint, values[key], f"{where}.{key}")
    kind = values.get("kind")
    if isinstance(kind, str) and kind not in KINDS:
        near = fields.did_you_mean(kind, KINDS)
        reader.problem(f"{where}.kind", f"{kind!r} is not one of {', '.join(KINDS)}{near}")
        values |= KINDS["language"]  # in its place, so that the rest can be checked
    values = _spelled_out({**values, "kind": kind if kind in tuple(KINDS) else None})
    missing = [field for field in ("inputs", "output") if field not in values]
    if name in PUBLISHED:
        values = {**dataclasses.asdict(PUBLISHED[name]), **values}
        del values["name"]
    elif missing:
        near = fields.did_you_mean(name, PUBLISHED)
        reader.problem(
            where,
            f"not one of the published tasks ({', '.join(PUBLISHED)}), so it must give kind "
            f"({', '.join(KINDS)}), or {' and '.join(missing)}{near}",
        )
        return None
    else:
        rows = {*taken, *(spec.index for spec in PUBLISHED.values())}
        free = next(row for row in range(10, 10 + len(rows) + 1) if row not in rows)
        values = {"index": free, **values}
    spec = reader.read(TaskSpec, values, where, {"name": name})
    if spec is not None:
        for key, problem in _misfits(spec):
            if f"{where}.{key}" not in reader.wrong:
                reader.problem(f"{where}.{key}", problem)
    return spec if len(reader.problems) == before else None


def from_saved(name: str, saved: Mapping[str, Any]) -> TaskSpec:
    """The entry that a checkpoint's metadata describe, also one made before `inputs` existed."""
    values = _spelled_out(
        {key: value for key, value in saved.items() if key in (*FIELDS, *SHORTHANDS)}
    )
    if name in PUBLISHED:
        return dataclasses.replace(PUBLISHED[name], **values)
    return TaskSpec(name=name, **values)


def _misfits(spec: TaskSpec) -> Iterator[tuple[str, str]]:
    """What does not go together in an entry: (field, what is wrong with it)."""
    if len(set(spec.inputs)) < len(spec.inputs):
        yield "inputs", f"{spec.inputs!r} says one input twice"
    if spec.output not in OUTPUTS and not re.fullmatch(r"[\w.]+:\w+", spec.output):
        near = fields.did_you_mean(spec.output, OUTPUTS)
        yield (
            "output",
            f"{spec.output!r} is no kind of answer{near} (known: {', '.join(OUTPUTS)}, or "
            "module:Class, a subclass of unit_jax.outputs.base.Output)",
        )
    if spec.has_text and spec.max_tokens < 3:
        yield "max_tokens", f"{spec.max_tokens} is no length of a text; give 3 or more"


def _spelled_out(overrides: Mapping[str, Any]) -> dict[str, Any]:
    """Shorthands turned into fields; lists, as JSON has them, into tuples."""
    values = {k: tuple(v) if isinstance(v, list) else v for k, v in overrides.items()}
    kind = values.pop("kind", None)
    soft, f1 = values.pop("soft_targets", False), values.pop("f1", False)
    implied: dict[str, Any] = dict(KINDS[str(kind)]) if kind else {}
    if soft is True:
        implied["output"] = "scores"
    if f1 is True:
        implied["metrics"] = ("accuracy", "f1")
    return {**implied, **values}
