"""SNLI-VE: does an image of Flickr30k entail, leave open or contradict a hypothesis?"""

import pathlib

import numpy as np
import tensorflow_datasets as tfds

from unit_jax.data.sources import base, images

LABELS = ["entailment", "neutral", "contradiction"]


class SnliVe(base.RecordSource):
    """Visual entailment.

    Files: snli_ve/snli_ve_{train,dev}.jsonl, snli_ve_test.jsonl (may be absent), images in
    flickr30k/flickr30k_images. Fields: Flikr30kID (the image file, spelt so), sentence2 (the
    hypothesis; the premise sentence1 is not used, the image takes its place), gold_label.
    """

    name = "snli_ve"
    version = "1.1.0"
    image_family = "images_flickr30k"
    published = {"train": 529_527, "val": 17_858, "test": 17_901}
    origin = "https://github.com/necla-ml/SNLI-VE and Flickr30k"
    features = {
        "id": tfds.features.Text(),
        "text": tfds.features.Text(),
        "label": np.int32,
    }
    parts = {"train": "train", "val": "dev", "test": "test"}

    def _path(self, split: str) -> pathlib.Path:
        return self.source / "snli_ve" / f"snli_ve_{self.parts[split]}.jsonl"

    def required_files(self) -> list[pathlib.Path]:
        return [self._path("train"), self._path("val")]

    def read(self, store: base.ImageIndex | None, problems: base.Problems) -> base.Content:
        store = self.images_of(store)
        lines = {
            split: list(base.read_json_lines(self._path(split), problems))
            for split in self.parts
            if self._path(split).exists()
        }
        splits = {split: self._records(split, lines[split], store, problems) for split in lines}
        listed = {split: len(lines[split]) for split in lines}
        facts = {"num_labels": len(LABELS), "label_names": LABELS}
        unlabelled = {
            name for name, rows in splits.items() if all(row["label"] == -1 for row in rows)
        }
        return base.Content(splits, facts, listed, unlabelled=frozenset(unlabelled))

    def _records(
        self,
        split: str,
        lines: list[tuple[str, dict | None]],
        store: base.ImageIndex,
        problems: base.Problems,
    ) -> list[base.Record]:
        records = []
        for number, (place, line) in enumerate(lines):
            if line is None:
                continue
            label = line.get("gold_label")
            if label not in LABELS and not (split == "test" and label is None):
                problems.add("unknown label", place, f"gold_label {label!r}")
                continue
            hypothesis = base.clean_text(line.get("sentence2"), place, problems)
            if hypothesis is None:
                continue
            located = store.locate(images.file_stem(str(line.get("Flikr30kID"))))
            if located is None:
                problems.add("missing image", place, f"Flikr30kID {line.get('Flikr30kID')!r}")
                continue
            records.append(
                {
                    "id": base.encodable(
                        str(line.get("pairID", number))[: base.MAX_TEXT], place, problems
                    ),
                    "text": hypothesis,
                    "label": LABELS.index(label) if label in LABELS else -1,
                    **located,
                }
            )
        return records
