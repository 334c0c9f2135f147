"""Writes data sets into a data folder: records, index and manifest, each checked and then moved.

A data set is written beside its place and moved there when it is complete, so an interrupted run
leaves either the old state or the new one.
"""

import contextlib
import dataclasses
import json
import pathlib
import shutil
import sys
from collections.abc import Generator, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
from tqdm import tqdm

from unit_jax.data import integrity, prepared, records, text
from unit_jax.data.sources import base, images

DEFAULT_VOCABULARY = "bert-base-uncased"
IMAGES_PER_SHARD = 1024
RECORDS_PER_SHARD = 8192


@dataclasses.dataclass(frozen=True)
class Settings:
    """Choices of a preparation.

    Attributes:
      vocabulary: vocab.txt, folder or hub name; "" = the source's vocab.txt, else the one the
        data folder has, else bert-base-uncased from the hub.
      overwrite: prepare again what is finished.
      max_problems: faults in one data set's files above which preparing it fails.
      allow_partial: prepare also what does not list as much as was published.
      options: choices that sources heed.
      progress: show progress bars.
    """

    vocabulary: str = ""
    overwrite: bool = False
    max_problems: int = 1000
    allow_partial: bool = False
    options: base.Options = dataclasses.field(default_factory=base.Options)
    progress: bool = True


class Dataset(Protocol):
    """What the writer needs to know of what it writes."""

    @property
    def name(self) -> str:
        """The name of the data set or image store."""

    @property
    def version(self) -> str:
        """The version of its format; data of another version are prepared again."""


class Named(NamedTuple):
    """A `Dataset` that is nothing but its name and version."""

    name: str
    version: str


class Writer:
    """Writes data sets into a data folder and keeps its manifest."""

    def __init__(self, data_dir: pathlib.Path, settings: Settings, compare_counts: bool):
        self._compare_counts = compare_counts  # the demo's are its own
        self.data_dir = data_dir
        self._settings = settings
        data_dir.mkdir(parents=True, exist_ok=True)
        self.manifest = integrity.read_manifest(data_dir)

    def store_vocabulary(self, source: pathlib.Path):
        """Copies the vocabulary, unless the folder has it.

        Raises:
          ValueError: the folder has another one, or it cannot be had.
        """
        known = self.manifest.get("vocabulary")
        name, own = self._settings.vocabulary, source / "vocab.txt"
        if name or own.exists():
            content = integrity.read_vocabulary(name or str(own))
        elif known:
            return
        else:
            name = DEFAULT_VOCABULARY
            content = integrity.read_vocabulary(name)
        sha256 = integrity.fingerprint(content)
        if known and known["sha256"] != sha256 and not self._settings.overwrite:
            raise ValueError(
                f"{self.data_dir} was prepared with the vocabulary {known['name']}, "
                f"{name or own} is another; use another --data_dir, or --overwrite"
            )
        self.add_vocabulary(name or "vocab.txt", content)

    def add_vocabulary(self, name: str, content: bytes, instead_of: str = ""):
        """Stores a vocabulary, and the name of the one asked for where it is another."""
        replace(self.data_dir / "vocab.txt", content)
        size = len(integrity.read_lines(self.data_dir / "vocab.txt"))
        entry = {"name": name, "sha256": integrity.fingerprint(content), "size": size}
        if instead_of:
            entry["instead_of"] = instead_of
        self.save_manifest(vocabulary=entry)

    def write_images(self, family: images.Family, source: pathlib.Path):
        """Writes the image store of a family."""
        with self._problems(family) as problems, self.bar(f"{family.name}: listing") as bar:
            listed, counts = images.list_images(family, source)
            partial = self._partial(family.name, *images.published_counts(family, counts))
            records = images.ImageRecords(problems)
            restart(bar, family.name, len(listed))
            items = {prepared.IMAGE_SPLIT: base.Items(listed, bar, records)}
            folder = self.write_records(family, family.features(), items, IMAGES_PER_SHARD)
        facts = {
            "kind": "images",
            "sha256": records.sha256,
            "folders": family.present_folders(source),
            "problems": problems.counts(),
            "partial": partial,
        }
        splits = {prepared.IMAGE_SPLIT: {"count": len(records.keys)}}
        arrays = {prepared.IMAGE_SPLIT: records.index_arrays()}
        self.finish(family, folder, splits, arrays, facts)

    def write_task(self, task: base.RecordSource):
        """Reads and writes one data set."""
        store: base.ImageIndex | None = None
        facts: dict[str, Any] = {"has_text": task.has_text}
        if task.image_family:
            family = images.family_of(task).name
            entry = self.manifest["datasets"][family]
            folder = self.data_dir / family / entry["version"]
            store = images.read_index(folder / f"index-{prepared.IMAGE_SPLIT}.npz")
            facts |= {"images": family, "images_sha256": entry["sha256"]}
        with self._problems(task) as problems, self.bar(f"{task.name}: reading") as bar:
            content = _in_schema(task.read(store, problems))
            partial = self._partial(task.name, content.listed, task.published)
            for split, records in content.splits.items():
                if not records:
                    counts = ", ".join(f"{n} x {kind}" for kind, n in problems.counts().items())
                    raise ValueError(
                        f"{task.name}: no usable example in {split}; faults: {counts or 'none'}"
                    )
            restart(bar, task.name, sum(map(len, content.splits.values())))
            items = {split: base.Items(rows, bar) for split, rows in content.splits.items()}
            folder = self.write_records(task, task.all_features(), items, RECORDS_PER_SHARD)
        splits, arrays = {}, {}
        for split, records in content.splits.items():
            arrays[split] = dict(content.index.get(split, {}))
            if task.image_family:
                for key in ("image_row", "width", "height"):
                    arrays[split][key] = np.array([row[key] for row in records], np.int32)
            splits[split] = {"count": len(records), "labelled": split not in content.unlabelled}
            if task.has_text and not task.image_family:
                arrays[split]["num_tokens"] = self.count_tokens(records)
            if "num_objects" in arrays[split]:
                splits[split]["max_objects"] = int(arrays[split]["num_objects"].max())
        for name, data in content.files.items():
            replace(self.data_dir / name, data)
        if task.has_text and not task.image_family:
            facts["lengths_vocabulary"] = self.manifest["vocabulary"]["sha256"]
        facts |= content.facts
        facts |= {"problems": problems.counts(), "partial": partial, "notes": content.notes}
        facts["source_files"] = [
            str(path.relative_to(task.source)) for path in task.required_files()
        ]
        self.finish(task, folder, splits, arrays, facts)

    def _partial(
        self, name: str, listed: Mapping[str, int], published: Mapping[str, int]
    ) -> list[str]:
        """In which numbers the files of a data set differ from its release.

        Raises:
          ValueError: in some, and the settings do not allow it.
        """
        if not self._compare_counts:
            return []
        wrong = [
            f"{what}: {listed[what]:,} of {count:,}"
            for what, count in published.items()
            if what in listed and listed[what] != count
        ]
        if wrong and not self._settings.allow_partial:
            raise ValueError(
                f"{name} is not what was published ({'; '.join(wrong)}): an incomplete download "
                "or another release? --allow_partial prepares it all the same"
            )
        return wrong

    def count_tokens(self, records: Sequence[base.Record]) -> np.ndarray:
        """Length of each record's text, with [CLS] and [SEP], before it is cut for a task."""
        tokenizer = text.Tokenizer(self.data_dir / "vocab.txt")
        counts = [
            len(ids)
            for start in range(0, len(records), RECORDS_PER_SHARD)
            for ids, _ in tokenizer.encode(
                [record["text"] for record in records[start : start + RECORDS_PER_SHARD]],
                [record.get("text_b", "") for record in records[start : start + RECORDS_PER_SHARD]],
                max_tokens=sys.maxsize,
            )
        ]
        return np.asarray(counts, np.int32)

    def bar(self, description: str) -> tqdm:
        return tqdm(desc=description, unit=" records", disable=not self._settings.progress)

    def write_records(self, dataset, features, items, shard_size) -> pathlib.Path:
        """Writes the TFDS dataset into a temporary place and returns its folder."""
        place = self.data_dir / ".preparing"
        shutil.rmtree(place / dataset.name, ignore_errors=True)
        builder = base.RecordBuilder(
            dataset.name, dataset.version, place, features, items, shard_size
        )
        builder.write()
        return place / dataset.name / dataset.version

    def finish(
        self,
        dataset: Dataset,
        folder: pathlib.Path,
        splits: Mapping[str, Mapping[str, Any]],
        arrays: Mapping[str, Mapping[str, np.ndarray]],
        facts: Mapping[str, Any],
    ):
        """Adds the index, checks what was written, and moves it to its place."""
        for split, entry in splits.items():
            np.savez(folder / f"index-{split}.npz", **dict[str, Any](arrays[split]))
            _check_written(dataset.name, folder, split, entry["count"], arrays[split])
        entry = {
            "version": dataset.version,
            **facts,
            "splits": splits,
            "files": {path.name: path.stat().st_size for path in sorted(folder.iterdir())},
            "digests": {path.name: integrity.digest(path) for path in sorted(folder.iterdir())},
        }
        others = {k: v for k, v in self.manifest["datasets"].items() if k != dataset.name}
        self.save_manifest(datasets=others)
        shutil.rmtree(self.data_dir / dataset.name, ignore_errors=True)
        folder.parent.rename(self.data_dir / dataset.name)
        shutil.rmtree(self.data_dir / ".preparing")
        self.save_manifest(datasets={**others, dataset.name: entry})

    @contextlib.contextmanager
    def _problems(self, dataset: base.RecordSource | images.Family) -> Generator[base.Problems]:
        """Collects faults; writes them to problems.jsonl, also when they are too many."""
        problems = base.Problems(dataset.name, self._settings.max_problems)
        try:
            yield problems
        finally:
            self.save_problems(problems)

    def save_manifest(self, **changes):
        self.manifest = {**self.manifest, **changes}
        content = json.dumps(self.manifest, indent=1) + "\n"
        replace(self.data_dir / integrity.MANIFEST, content.encode())

    def save_problems(self, problems: base.Problems):
        path = self.data_dir / "problems.jsonl"
        lines = path.read_text().splitlines() if path.exists() else []
        lines = [line for line in lines if json.loads(line)["dataset"] != problems.dataset]
        lines += [json.dumps(dataclasses.asdict(problem)) for problem in problems.found]
        replace(path, "".join(f"{line}\n" for line in lines).encode())


def _in_schema(content: base.Content) -> base.Content:
    splits = {
        split: [records.as_stored(record, row) for row, record in enumerate(rows)]
        for split, rows in content.splits.items()
    }
    return dataclasses.replace(content, splits=splits)


def _check_written(
    name: str,
    folder: pathlib.Path,
    split: str,
    count: int,
    arrays: Mapping[str, np.ndarray],
):
    """Opens what was written: as many records as were read, the first and last in their places.

    Raises:
      ValueError: they differ (e.g. the disk is full).
    """
    records = prepared.Records(folder, split, count)
    stored = records.stored_count()
    wrong = [key for key, values in arrays.items() if len(values) != count]
    same = stored == count and not wrong
    for row in {0, count - 1} if same and count else ():
        record = records[row]
        same &= all(record[key] == arrays[key][row] for key in arrays if key in record)
    if not same:
        raise ValueError(
            f"{name}: {split} has {stored} stored records, {count} were read; "
            f"is there room on the disk of {folder}?"
        )


def restart(bar: tqdm, description: str, total: int):
    """Begins a progress bar anew."""
    bar.set_description_str(description, refresh=False)
    bar.reset(total)


def replace(path: pathlib.Path, content: bytes):
    """Writes a file whole or not at all."""
    temporary = path.with_name(path.name + ".new")
    temporary.write_bytes(content)
    temporary.replace(path)
