"""GLUE's QNLI, MNLI, QQP and SST-2 in the published TSV files."""

import csv
import io
import pathlib
import sys
from collections.abc import Mapping
from typing import ClassVar

import numpy as np
import tensorflow_datasets as tfds

from unit_jax.data.sources import base


class Glue(base.RecordSource):
    """One text task of GLUE.

    The files have a header line and are read without quoting: quotation marks are text. Rows
    that lack a column or have no known label are left out (QQP has some) and empty texts stay,
    as in Hugging Face's reader, which the reference uses.

    Attributes:
      folder: of the task under glue/.
      parts: TSV file by split; all but train and val may be absent.
      texts: columns of the first and the second text ("" = one text only).
      label_column: column of the label, as text in `labels` or as a number.
      labels: names by number.
      id_column: column that names an example in submissions; without it, the row's number.
    """

    kind = "language"
    version = "1.1.0"  # since 1.1.0 the index holds lengths
    origin = "https://gluebenchmark.com/tasks"
    features = {
        "example_id": tfds.features.Text(),
        "text_a": tfds.features.Text(),
        "text_b": tfds.features.Text(),
        "label": np.int32,
    }
    folder: ClassVar[str]
    parts: ClassVar[Mapping[str, str]] = {"train": "train", "val": "dev", "test": "test"}
    texts: ClassVar[tuple[str, str]]
    label_column: ClassVar[str]
    labels: ClassVar[list[str]]
    id_column: ClassVar[str] = "index"

    def _path(self, split: str) -> pathlib.Path:
        return self.source / "glue" / self.folder / f"{self.parts[split]}.tsv"

    def required_files(self) -> list[pathlib.Path]:
        return [self._path("train"), self._path("val")]

    def read(self, store: base.ImageIndex | None, problems: base.Problems) -> base.Content:
        del store
        splits = {
            split: self._read_split(split, problems)
            for split in self.parts
            if self._path(split).exists()
        }
        facts = {"num_labels": len(self.labels), "label_names": self.labels}
        unlabelled = frozenset(split for split in splits if split.startswith("test"))
        return base.Content(splits, facts, unlabelled=unlabelled)

    def _read_split(self, split: str, problems: base.Problems) -> list[base.Record]:
        path = self._path(split)
        csv.field_size_limit(sys.maxsize)
        lines = io.StringIO(base.read_text(path, problems), newline=None)
        rows = csv.DictReader(lines, delimiter="\t", quoting=csv.QUOTE_NONE)
        labelled = not split.startswith("test")
        needed = [*filter(None, self.texts), *([self.label_column] if labelled else [])]
        missing = [column for column in needed if column not in (rows.fieldnames or ())]
        if missing:
            raise ValueError(
                f"{path} has no column {', '.join(missing)} (it has "
                f"{', '.join(rows.fieldnames or ())[:200]}); it is not GLUE's file"
            )
        records = []
        for number, row in enumerate(rows):
            place = f"{path}:{rows.line_num}"
            if any(row[column] is None for column in needed):
                problems.add("incomplete row", place, f"fewer columns than {len(row)}")
                continue
            label = self._label(row[self.label_column]) if labelled else -1
            if label is None:
                problems.add("unknown label", place, f"{row[self.label_column]!r:.60}")
                continue
            texts = [
                base.clean_text(row[column], place, problems, keep_empty=True) if column else ""
                for column in self.texts
            ]
            records.append(
                {
                    "example_id": row.get(self.id_column) or str(number),
                    "text_a": texts[0],
                    "text_b": texts[1],
                    "label": label,
                }
            )
        return records

    def _label(self, value: str) -> int | None:
        if value in self.labels:
            return self.labels.index(value)
        number = base.id_number(value)
        return number if number in range(len(self.labels)) else None


class Qnli(Glue):
    name = "qnli"
    folder = "QNLI"
    texts = ("question", "sentence")
    label_column = "label"
    labels = ["entailment", "not_entailment"]


class Mnli(Glue):
    """MNLI; validation is the mismatched part, the matched one is kept beside it."""

    name = "mnli"
    folder = "MNLI"
    parts = {
        "train": "train",
        "val": "dev_mismatched",
        "val_matched": "dev_matched",
        "test": "test_mismatched",
        "test_matched": "test_matched",
    }
    texts = ("sentence1", "sentence2")
    label_column = "gold_label"
    labels = ["entailment", "neutral", "contradiction"]


class Qqp(Glue):
    name = "qqp"
    folder = "QQP"
    texts = ("question1", "question2")
    label_column = "is_duplicate"
    labels = ["not_duplicate", "duplicate"]
    id_column = "id"


class Sst2(Glue):
    name = "sst2"
    folder = "SST-2"
    texts = ("sentence", "")
    label_column = "label"
    labels = ["negative", "positive"]
