"""Reads data sets that TFDS prepared, ArrayRecord or TFRecord, without TensorFlow."""

import pathlib
import struct
from collections.abc import Iterator
from typing import Any

import tensorflow_datasets as tfds


def newest_version(folder: pathlib.Path) -> pathlib.Path | None:
    """The newest `<folder>/<version>/` that holds a prepared data set, None without one."""
    versions = [path.parent for path in folder.glob("*/dataset_info.json")]
    return max(versions, key=lambda path: tfds.core.Version(path.name), default=None)


def splits(folder: pathlib.Path) -> set[str]:
    """Names of the splits of a prepared data set."""
    return set(tfds.builder_from_directory(folder).info.splits)


def read(folder: pathlib.Path, split: str) -> Iterator[dict[str, Any]]:
    """The examples of a split in the order of its files; texts are bytes.

    Raises:
      ValueError: a file is incomplete, or in another format.
    """
    builder: Any = tfds.builder_from_directory(folder)
    info = builder.info
    file_format = info.file_format.value
    if file_format == "array_record":
        yield from builder.as_data_source(split)
    elif file_format == "tfrecord":
        for path in info.splits[split].filepaths:
            for record in _tfrecords(pathlib.Path(path)):
                yield info.features.deserialize_example_np(record)
    else:
        raise ValueError(f"{folder} is {file_format}; prepare it as array_record or tfrecord")


def _tfrecords(path: pathlib.Path) -> Iterator[bytes]:
    """The records of a TFRecord file: length (8 bytes), its checksum (4), record, checksum (4)."""
    with open(path, "rb") as file:
        while header := file.read(12):
            length = struct.unpack("<Q", header[:8])[0] if len(header) == 12 else 0
            record, checksum = file.read(length), file.read(4)
            if len(record) != length or len(checksum) != 4:
                raise ValueError(f"{path} ends within a record; get it again")
            yield record
