"""The table of tasks: everything that makes a dataset special, one entry each.

Task-embedding rows, query counts, text lengths and CLS-only switches are those of the reference
configuration (MMF projects/unit, all_8_datasets). Loss and metric follow from the kind (and from
`soft_targets`), so a new dataset is one entry here plus one record source in `data/sources/`.
"""

import dataclasses
from collections.abc import Mapping
from typing import Literal

Kind = Literal["detection", "vision_language", "language"]


@dataclasses.dataclass(frozen=True)
class TaskSpec:
    """One dataset of the mixture.

    Attributes:
      name: key used in configs, logs, reports and parameter paths.
      kind: which inputs it has and which head answers it.
      index: row of both task-embedding tables.
      num_queries: decoder queries of its own.
      num_labels: classes without the no-object class (detection), answers or labels (others).
        The table holds the published counts; prepared data overrides them.
      num_attributes: attribute classes of the attribute head; 0 = no attribute head.
      max_tokens: text length including [CLS] and [SEP]; 0 = no text.
      cls_only: the decoder reads only the [CLS] hidden state of the text.
      soft_targets: several answers may be right to a degree (VQA): binary cross-entropy against
        scores instead of cross-entropy against one label.
      f1: report F1 of label 1 beside accuracy.
    """

    name: str
    kind: Kind
    index: int
    num_queries: int
    num_labels: int
    num_attributes: int = 0
    max_tokens: int = 0
    cls_only: bool = True
    soft_targets: bool = False
    f1: bool = False

    @property
    def has_image(self) -> bool:
        return self.kind != "language"

    @property
    def has_text(self) -> bool:
        return self.kind != "detection"

    @property
    def headline_metric(self) -> str:
        """Name of the metric that comes first in reports."""
        if self.kind == "detection":
            return "AP"
        return "vqa_accuracy" if self.soft_targets else "accuracy"


PUBLISHED: Mapping[str, TaskSpec] = {
    spec.name: spec
    for spec in (
        TaskSpec("coco", "detection", 0, 100, 91),
        TaskSpec("visual_genome", "detection", 1, 100, 1601, num_attributes=401),
        TaskSpec(
            "vqa2", "vision_language", 3, 25, 3129, max_tokens=25, cls_only=False, soft_targets=True
        ),
        TaskSpec("snli_ve", "vision_language", 9, 25, 3, max_tokens=25),
        TaskSpec("qnli", "language", 5, 25, 2, max_tokens=128),
        TaskSpec("mnli", "language", 6, 25, 3, max_tokens=128),
        TaskSpec("qqp", "language", 8, 25, 2, max_tokens=128, f1=True),
        TaskSpec("sst2", "language", 7, 25, 2, max_tokens=128),
    )
}


def resolve(name: str, overrides: Mapping) -> TaskSpec:
    """Returns the entry `name` of the table with a config's overrides, or a new one.

    Raises:
      ValueError: an override is no field of TaskSpec, or a task that the table does not have
        lacks a field without default.
    """
    known = {field.name for field in dataclasses.fields(TaskSpec)} - {"name"}
    unknown = sorted(set(overrides) - known)
    if unknown:
        raise ValueError(
            f"config.tasks.{name}: unknown key(s) {', '.join(unknown)}; "
            f"known: {', '.join(sorted(known | {'ratio'}))}"
        )
    if name in PUBLISHED:
        return dataclasses.replace(PUBLISHED[name], **overrides)
    try:
        return TaskSpec(name=name, **overrides)
    except TypeError as error:
        raise ValueError(
            f"config.tasks.{name}: not one of the published tasks ({', '.join(PUBLISHED)}), "
            f"so it must give kind, index, num_queries and num_labels ({error})"
        ) from None
