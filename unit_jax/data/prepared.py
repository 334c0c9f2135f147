"""The read side of prepared data: records and images by row, checked against the manifest.

`unit-jax prepare` leaves in a data folder

    manifest.json                  what is prepared: counts, label names, fingerprints
    vocab.txt, answers_vqa.txt     copies of the vocabulary and of the answer list
    problems.jsonl                 every fault met while preparing
    <name>/<version>/              one TFDS dataset per task and per image family (ArrayRecord),
                                   plus index-<split>.npz with row-aligned arrays

and this module reads it. Images are stored once per family; a task's records point to rows there.
"""

import dataclasses
import os
import pathlib
import threading
from collections.abc import Iterable
from concurrent import futures
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from jaxtyping import Int

from unit_jax.data import integrity, records
from unit_jax.outputs.base import Names

IMAGE_SPLIT = "images"  # the one split of an image store
UNLABELLED = -1


class Records:
    """One split of one TFDS dataset by row, opened at the first read.

    Hand it to other processes by pickling (it is opened anew there), not by forking: the
    ArrayRecord reader has threads, which do not survive a fork.
    """

    def __init__(self, directory: str | os.PathLike, split: str, count: int):
        self._directory = os.fspath(directory)
        self._split = split
        self._count = count
        self._lock = threading.Lock()
        self._source = None

    def __getstate__(self):
        return self._directory, self._split, self._count

    def __setstate__(self, state):
        self.__init__(*state)

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, row: int) -> dict[str, Any]:
        """Record `row` as TFDS parses it: text is bytes, images stay encoded.

        Raises:
          ValueError: it is damaged; names the file, the record and the remedy. (The files carry a
            checksum for each record.)
        """
        if not 0 <= row < self._count:
            raise IndexError(f"row {row} of {self._directory} ({self._split}: {self._count} rows)")
        try:
            return self._open()[int(row)]
        except Exception as error:  # readers, parsers and file systems raise many kinds
            reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
            file, number = self._place(row)
            raise ValueError(
                f"{file}: record {number} (row {row} of {self._split}) cannot be read ({reason}); "
                f"copy that file again from where it is whole, {_remedy(file)}"
            ) from error

    def _place(self, row: int) -> tuple[pathlib.Path, int]:
        """The file that holds a row, and the row's number in it."""
        try:
            split = tfds.builder_from_directory(self._directory).info.splits[self._split]
            lengths, files = list(split.shard_lengths), list(split.filepaths)
        except Exception:  # what describes the files is damaged too
            return pathlib.Path(self._directory) / "dataset_info.json", row
        ends = np.cumsum(lengths)
        shard = int(np.searchsorted(ends, row, side="right"))
        return pathlib.Path(files[shard]), row - int(ends[shard]) + lengths[shard]

    def stored_count(self) -> int:
        """Records that the files hold, whatever was promised."""
        return len(self._open())

    def _open(self):
        if self._source is None:
            with self._lock:
                if self._source is None:
                    builder: Any = tfds.builder_from_directory(self._directory)
                    has_image = "image" in builder.info.features
                    decoders = {"image": tfds.decode.SkipDecoding()} if has_image else None
                    self._source = builder.as_data_source(self._split, decoders=decoders)
        return self._source


@dataclasses.dataclass(frozen=True)
class Split:
    """One split of a task, random access by row; picklable.

    Attributes:
      task, name: whose and which.
      image_row: row of each example's image in its family's store; None without images.
      width, height: image size in pixels of each example, as stored in the image file; None
        without images.
      num_objects: objects of each image that training keeps (no crowd regions, some area inside
        the image); None where the task is no detection.
      num_tokens: length of each text with [CLS] and [SEP], not cut to any maximum; None with
        images, and in data that were prepared before lengths were counted.
      labelled: False for splits whose labels are not published.
    """

    task: str
    name: str
    records: Records
    images: Records | None
    image_row: Int[np.ndarray, "examples"] | None = None
    width: Int[np.ndarray, "examples"] | None = None
    height: Int[np.ndarray, "examples"] | None = None
    num_objects: Int[np.ndarray, "examples"] | None = None
    num_tokens: Int[np.ndarray, "examples"] | None = None
    labelled: bool = True

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, row: int) -> dict[str, Any]:
        """Record `row` in the schema of `records`."""
        return records.as_read(self.records[row], row)

    @property
    def sizes(self) -> tuple[Int[np.ndarray, "examples"], Int[np.ndarray, "examples"]]:
        """(heights, widths) of the images as stored, in pixels.

        Raises:
          ValueError: the split has no images.
        """
        if self.height is None or self.width is None:
            raise ValueError(f"{self.task} has no images")
        return self.height, self.width

    @property
    def places(self) -> Int[np.ndarray, "examples"]:
        """`image_row` of a split with images.

        Raises:
          ValueError: the split has no images.
        """
        if self.image_row is None:
            raise ValueError(f"{self.task} has no images")
        return self.image_row

    def image(self, row: int) -> bytes:
        """Encoded image (JPEG, PNG, ...) of example `row`."""
        if self.images is None:
            raise ValueError(f"{self.task} has no images")
        return self.images[int(self.places[row])]["image"]


class PreparedData:
    """A data folder, checked: every task is there, complete, and fits the vocabulary.

    Args:
      data_dir: folder that `unit-jax prepare` filled.
      tasks: names of the tasks that are needed.
      vocabulary: vocab.txt, folder or hub name that the run asks for; "" takes the folder's own.

    Raises:
      ValueError: one message that lists everything that is missing or does not fit, each with
        its remedy.
    """

    def __init__(self, data_dir: str | os.PathLike, tasks: Iterable[str], vocabulary: str = ""):
        if "://" in os.fspath(data_dir):
            raise ValueError(
                f"config.data.data_dir = {data_dir}: the data are read from files of this machine; "
                "mount the bucket (for gs://BUCKET/DATA: gcsfuse --implicit-dirs BUCKET "
                "/mnt/BUCKET) and set config.data.data_dir=/mnt/BUCKET/DATA"
            )
        self.data_dir = pathlib.Path(data_dir)
        self.tasks = tuple(tasks)
        problems = integrity.problems(self.data_dir, self.tasks, vocabulary)
        if problems:
            raise ValueError(
                f"the prepared data in {self.data_dir} do not fit:\n  " + "\n  ".join(problems)
            )
        self._manifest = integrity.read_manifest(self.data_dir)
        self._images: dict[str, Records] = {}
        self._splits: dict[tuple[str, str], Split] = {}

    @property
    def vocabulary_path(self) -> str:
        """The vocab.txt that belongs to this folder."""
        return os.fspath(self.data_dir / "vocab.txt")

    @property
    def manifest(self) -> dict[str, Any]:
        """What manifest.json holds."""
        return self._manifest

    def content(self) -> dict[str, Any]:
        """The manifest without sizes and digests of files: these differ between two preparations
        of the same data, as TFDS writes the fields of a record in any order."""
        files = ("files", "digests")
        datasets = {
            name: {key: value for key, value in entry.items() if key not in files}
            for name, entry in self._manifest["datasets"].items()
        }
        return {**self._manifest, "datasets": datasets}

    def num_labels(self, task: str) -> int:
        """Classes without the no-object class (detection), answers or labels (others)."""
        return self._entry(task).get("num_labels", 0)

    def num_attributes(self, task: str) -> int:
        """Attribute classes; 0 where the task has none."""
        return self._entry(task).get("num_attributes", 0)

    def label_names(self, task: str) -> list[str]:
        """Name of each label, by label number; "" where a number is not used."""
        entry = self._entry(task)
        if "answers" in entry:
            return integrity.read_lines(self.data_dir / entry["answers"]["file"])
        return entry.get("label_names", [])

    def attribute_names(self, task: str) -> list[str]:
        """Name of each attribute, by number; "" where the data set gives none."""
        return self._entry(task).get("attribute_names", [])

    def names(self, task: str) -> Names:
        """What numbers mean in the task's answers."""
        submitted = self._entry(task).get("submitted_labels", [])
        names = self.label_names(task), self.attribute_names(task), submitted
        return Names(*map(tuple, names))

    def splits(self, task: str) -> list[str]:
        """Names of a task's splits: train, val, maybe test and val_matched (MNLI)."""
        return list(self._entry(task)["splits"])

    def max_objects(self, task: str, split: str = "train") -> int:
        """Most objects that training keeps on one image; 0 where the task is no detection."""
        return self._split_entry(task, split).get("max_objects", 0)

    def split(self, task: str, name: str) -> Split:
        """Opens a split.

        Raises:
          ValueError: the task or the split is not there; the message lists what is.
        """
        if (task, name) in self._splits:
            return self._splits[task, name]
        entry = self._entry(task)
        split_entry = self._split_entry(task, name)
        directory = self.data_dir / task / entry["version"]
        arrays = _read_index(directory / f"index-{name}.npz")
        images = self._image_store(entry["images"]) if entry.get("images") else None
        split = Split(
            task,
            name,
            Records(directory, name, split_entry["count"]),
            images,
            **arrays,
            labelled=split_entry["labelled"],
        )
        self._splits[task, name] = split
        return split

    def _image_store(self, family: str) -> Records:
        if family not in self._images:
            entry = self._entry(family)
            count = entry["splits"][IMAGE_SPLIT]["count"]
            directory = self.data_dir / family / entry["version"]
            self._images[family] = Records(directory, IMAGE_SPLIT, count)
        return self._images[family]

    def _entry(self, name: str) -> dict[str, Any]:
        datasets = self._manifest["datasets"]
        if name not in datasets:
            raise ValueError(
                f"{name} is not prepared in {self.data_dir}; prepared: {', '.join(datasets)}"
            )
        return datasets[name]

    def _split_entry(self, task: str, split: str) -> dict[str, Any]:
        entries = self._entry(task)["splits"]
        if split not in entries:
            raise ValueError(f"{task} has no split {split!r}; it has {', '.join(entries)}")
        return entries[split]


def _read_index(path: pathlib.Path) -> dict[str, np.ndarray]:
    try:
        with np.load(path) as index:  # its zip carries checksums
            return {key: index[key] for key in index.files}
    except Exception as error:  # NumPy and zipfile raise many kinds
        raise ValueError(
            f"{path} cannot be read ({type(error).__name__}); copy that file again from where it "
            f"is whole, {_remedy(path)}"
        ) from error


def _remedy(path: pathlib.Path) -> str:
    """What to do about a damaged file in <name>/<version>/ where it cannot be copied again."""
    return f"or prepare {path.parent.parent.name} again (unit-jax prepare --overwrite)"


def verify(data: PreparedData) -> int:
    """Compares all files that the tasks need with the digests that preparing left in the manifest.

    Returns:
      How many files were read.

    Raises:
      ValueError: lists those that differ, and data sets that were prepared without digests.
    """
    entries = data.manifest["datasets"]
    names = [*data.tasks, *(entries[task].get("images") for task in data.tasks)]
    names = [name for name in dict.fromkeys(names) if name]
    faults, files = [], []
    for name in names:
        folder = data.data_dir / name / entries[name]["version"]
        if "digests" not in entries[name]:
            faults.append(f"{name} was prepared without digests; prepare it again to have them")
        files += [(folder / file, at) for file, at in entries[name].get("digests", {}).items()]
    with futures.ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        for (path, wanted), found in zip(
            files, pool.map(integrity.digest, [path for path, _ in files]), strict=True
        ):
            if found != wanted:
                faults.append(f"{path} is not the file that was prepared")
    if faults:
        raise ValueError(
            "--verify_data: the prepared data are damaged:\n  "
            + "\n  ".join(faults)
            + "\ncopy these files again from where they are whole, or prepare again "
            "(unit-jax prepare --overwrite)"
        )
    return len(files)
