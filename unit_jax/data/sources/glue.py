"""GLUE's QNLI, MNLI, QQP and SST-2, from the published TSV files or from TFDS's copy."""

import csv
import io
import pathlib
import sys
from collections.abc import Iterator, Mapping
from typing import ClassVar

import numpy as np
import tensorflow_datasets as tfds

from unit_jax.data.sources import base, tfds_copy


class Glue(base.RecordSource):
    """One text task of GLUE.

    Files: glue/<folder>/{train,dev,test}.tsv, or, where they are not there, what TFDS prepared:
    glue/<tfds_config>/<version>/. The TSV files have a header line and are read without quoting:
    quotation marks are text. Rows that lack a column or have no known label are left out (QQP has
    some) and empty texts stay, as in Hugging Face's reader, which the reference uses.

    Attributes:
      folder: of the task under glue/.
      parts: (TSV file, TFDS split) by split; all but train and val may be absent.
      texts: columns of the first and the second text ("" = one text only).
      tfds_config, tfds_texts: the same in TFDS's copy; its labels are numbers, in our order.
      label_column: column of the label, as text in `labels` or as a number.
      labels: names by number.
      submitted_labels: what GLUE's server takes for them.
      id_column: column that names an example in submissions; without it, the row's number.
    """

    version = "1.2.0"
    origin = "https://gluebenchmark.com/tasks"
    features = {
        "id": tfds.features.Text(),
        "text": tfds.features.Text(),
        "text_b": tfds.features.Text(),
        "label": np.int32,
    }
    folder: ClassVar[str]
    parts: ClassVar[Mapping[str, tuple[str, str]]] = {
        "train": ("train", "train"),
        "val": ("dev", "validation"),
        "test": ("test", "test"),
    }
    texts: ClassVar[tuple[str, str]]
    tfds_config: ClassVar[str]
    tfds_texts: ClassVar[tuple[str, str]]
    label_column: ClassVar[str]
    labels: ClassVar[list[str]]
    submitted_labels: ClassVar[list[str]]
    id_column: ClassVar[str] = "index"

    def _path(self, split: str) -> pathlib.Path:
        return self.source / "glue" / self.folder / f"{self.parts[split][0]}.tsv"

    def _copy(self) -> pathlib.Path | None:
        """The folder of TFDS's copy, None where the TSV files are to be read."""
        if self._path("train").exists():
            return None
        return tfds_copy.newest_version(self.source / "glue" / self.tfds_config)

    def required_files(self) -> list[pathlib.Path]:
        copy = self._copy()
        return [copy] if copy else [self._path("train"), self._path("val")]

    def read(self, store: base.ImageIndex | None, problems: base.Problems) -> base.Content:
        del store
        copy = self._copy()
        if copy:
            known = tfds_copy.splits(copy)
            rows = {
                split: self._copied_rows(copy, name)
                for split, (_, name) in self.parts.items()
                if name in known
            }
        else:
            rows = {
                split: self._tsv_rows(split, problems)
                for split in self.parts
                if self._path(split).exists()
            }
        facts = {
            "num_labels": len(self.labels),
            "label_names": self.labels,
            "submitted_labels": self.submitted_labels,
        }
        splits, listed = {}, {}
        for split in rows:
            splits[split], listed[split] = self._records(split, rows[split], problems)
        unlabelled = frozenset(split for split in splits if split.startswith("test"))
        return base.Content(splits, facts, listed, unlabelled=unlabelled)

    def _copied_rows(
        self, copy: pathlib.Path, split: str
    ) -> Iterator[tuple[str, dict[str, str | None]]]:
        """(place, row) of a split of TFDS's copy, under the names of the TSV columns."""
        for number, example in enumerate(tfds_copy.read(copy, split)):
            row = {
                column: example[name].decode(errors="replace")
                for column, name in zip(self.texts, self.tfds_texts, strict=True)
                if column
            }
            row |= {self.label_column: str(example["label"]), self.id_column: str(example["idx"])}
            yield f"{copy}: {split} {number}", row

    def _tsv_rows(
        self, split: str, problems: base.Problems
    ) -> Iterator[tuple[str, dict[str, str | None]]]:
        """(place, row) of a TSV file; a row that is too short has None in the last columns.

        Raises:
          ValueError: a column is missing.
        """
        path = self._path(split)
        csv.field_size_limit(sys.maxsize)
        lines = io.StringIO(base.read_text(path, problems), newline=None)
        rows = csv.DictReader(lines, delimiter="\t", quoting=csv.QUOTE_NONE)
        missing = [name for name in self._columns(split) if name not in (rows.fieldnames or ())]
        if missing:
            raise ValueError(
                f"{path} has no column {', '.join(missing)} (it has "
                f"{', '.join(rows.fieldnames or ())[:200]}); it is not GLUE's file"
            )
        for row in rows:
            yield f"{path}:{rows.line_num}", row

    def _columns(self, split: str) -> list[str]:
        """Columns that a row of a split must have."""
        labelled = not split.startswith("test")
        return [*filter(None, self.texts), *([self.label_column] if labelled else [])]

    def _records(
        self,
        split: str,
        rows: Iterator[tuple[str, dict[str, str | None]]],
        problems: base.Problems,
    ) -> tuple[list[base.Record], int]:
        """Records of a split, and its number of complete rows: the one that is published, as
        incomplete ones are a part of the release."""
        needed = self._columns(split)
        labelled = self.label_column in needed
        records, complete = [], 0
        for number, (place, row) in enumerate(rows):
            if any(row[column] is None for column in needed):
                problems.add("incomplete row", place, f"fewer columns than {len(row)}")
                continue
            complete += 1
            label = self._label(row[self.label_column] or "") if labelled else -1
            if label is None:
                problems.add("unknown label", place, f"{row[self.label_column]!r:.60}")
                continue
            texts = [
                base.clean_text(row[column], place, problems, keep_empty=True) if column else ""
                for column in self.texts
            ]
            records.append(
                {
                    "id": (row.get(self.id_column) or str(number))[: base.MAX_TEXT],
                    "text": texts[0],
                    "text_b": texts[1],
                    "label": label,
                }
            )
        return records, complete

    def _label(self, value: str) -> int | None:
        if value in self.labels:
            return self.labels.index(value)
        number = base.id_number(value)
        return number if number in range(len(self.labels)) else None


class Qnli(Glue):
    """Whether a sentence answers a question."""

    name = "qnli"
    folder, tfds_config = "QNLI", "qnli"
    published = {"train": 104_743, "val": 5_463, "test": 5_463}
    texts = tfds_texts = ("question", "sentence")
    label_column = "label"
    labels = submitted_labels = ["entailment", "not_entailment"]


class Mnli(Glue):
    """MNLI; validation is the mismatched part, the matched one is kept beside it."""

    name = "mnli"
    folder, tfds_config = "MNLI", "mnli"
    published = {
        "train": 392_702,
        "val": 9_832,
        "val_matched": 9_815,
        "test": 9_847,
        "test_matched": 9_796,
    }
    parts = {
        "train": ("train", "train"),
        "val": ("dev_mismatched", "validation_mismatched"),
        "val_matched": ("dev_matched", "validation_matched"),
        "test": ("test_mismatched", "test_mismatched"),
        "test_matched": ("test_matched", "test_matched"),
    }
    texts = ("sentence1", "sentence2")
    tfds_texts = ("premise", "hypothesis")
    label_column = "gold_label"
    labels = submitted_labels = ["entailment", "neutral", "contradiction"]


class Qqp(Glue):
    """Whether two questions ask the same."""

    name = "qqp"
    folder, tfds_config = "QQP", "qqp"
    published = {"train": 363_846, "val": 40_430, "test": 390_965}
    texts = tfds_texts = ("question1", "question2")
    label_column = "is_duplicate"
    labels = ["not_duplicate", "duplicate"]
    submitted_labels = ["0", "1"]
    id_column = "id"


class Sst2(Glue):
    """Whether a sentence of a review is positive."""

    name = "sst2"
    folder, tfds_config = "SST-2", "sst2"
    published = {"train": 67_349, "val": 872, "test": 1_821}
    texts = tfds_texts = ("sentence", "")
    label_column = "label"
    labels = ["negative", "positive"]
    submitted_labels = ["0", "1"]
