"""Weights together with all that gives them meaning: one file, or a checkpoint folder.

A checkpoint's metadata (JSON) hold the settings of the model, the tasks, the names of classes,
answers and attributes, and the vocabulary, so that whoever has the weights needs no prepared data.
A .safetensors file of ours holds the same JSON in its header, under the key `unit_jax`.
"""

import contextlib
import dataclasses
import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import safetensors

from unit_jax import settings as settings_lib
from unit_jax.data.integrity import read_lines
from unit_jax.data.prepared import PreparedData
from unit_jax.interop import sources, torch_files
from unit_jax.outputs.base import Names
from unit_jax.settings import DataSettings, ModelSettings
from unit_jax.tasks import TaskSpec, from_saved

HEADER = "unit_jax"  # key of the JSON in a .safetensors header
REMEDY = (
    "a working folder, a checkpoint's step folder, a .safetensors file that `unit-jax convert "
    "--to safetensors` wrote, or an MMF file"
)


@dataclasses.dataclass(frozen=True)
class Weights:
    """A model at rest.

    Attributes:
      arrays: parameters and statistics by path.
      metadata: what a checkpoint tells about itself; see `run.Run.metadata`.
      names: by task; missing where nobody told them.
      vocabulary: WordPiece tokens by id; empty where nobody told them.
      source: where it came from, for messages.
    """

    arrays: dict[str, np.ndarray]
    metadata: dict[str, Any]
    names: dict[str, Names]
    vocabulary: tuple[str, ...]
    source: str


def file_at(source: str | os.PathLike) -> Path | None:
    """The file of weights that `source` means: the demo's, or a .safetensors file; else None."""
    if path := sources.packaged(source):
        return path if path.exists() else None
    name = os.fspath(source)
    return Path(name) if name.endswith(".safetensors") and os.path.isfile(name) else None


def described(data: PreparedData) -> dict[str, Any]:
    """What the numbers of a model on these data mean, as JSON: the metadata's `names`."""
    names = {task: data.names(task) for task in data.tasks}
    tokens = read_lines(Path(data.vocabulary_path)) if "vocabulary" in data.manifest else ()
    return as_json(names, tokens)


def as_json(names: Mapping[str, Names], vocabulary: Iterable[str]) -> dict[str, Any]:
    """{"tasks": {task: {"labels", "attributes", "submitted"}}, "vocabulary": tokens}."""
    told = {task: dataclasses.asdict(one) for task, one in names.items()}
    lists = {task: {k: list(v) for k, v in one.items()} for task, one in told.items()}
    return {"tasks": lists, "vocabulary": list(vocabulary)}


def settings_of(
    metadata: Mapping[str, Any], where: str
) -> tuple[ModelSettings, dict[str, TaskSpec], DataSettings]:
    """The settings of the model and of its data, and the tasks, that metadata tell.

    Raises:
      ValueError: they are not there, or of another version.
    """
    try:
        saved = metadata["settings"]
        specs = {name: from_saved(name, values) for name, values in saved["tasks"].items()}
        model = settings_lib.build(ModelSettings, saved["model"], "model")
        return model, specs, settings_lib.build(DataSettings, saved["data"], "data")
    except (KeyError, TypeError) as error:
        raise ValueError(f"{where}: its metadata lack the settings of a model ({error})") from error


def read(path: str | os.PathLike, data_dir: str | os.PathLike = "") -> Weights:
    """Reads a checkpoint folder or a .safetensors file of ours.

    Args:
      data_dir: prepared data that tell the names where the weights do not (those made before
        names travelled along).

    Raises:
      ValueError: there is no such thing, or it is damaged.
    """
    if Path(path).is_file() and Path(path).suffix == ".safetensors":
        arrays, metadata = read_safetensors(path)
    else:
        arrays, metadata = sources.read_checkpoint(path)
    return with_names(arrays, metadata, os.fspath(path), data_dir)


def with_names(
    arrays: dict[str, np.ndarray],
    metadata: dict[str, Any],
    source: str,
    data_dir: str | os.PathLike = "",
) -> Weights:
    """Puts arrays and the names of their metadata, else those of prepared data, together."""
    tasks = list(metadata["settings"]["tasks"])
    told = metadata.get("names", {})
    names = {task: _names(values) for task, values in told.get("tasks", {}).items()}
    for task, labels in metadata.get("labels", {}).items():  # of checkpoints made before `names`
        names.setdefault(task, Names(tuple(labels)))
    vocabulary = tuple(told.get("vocabulary", ()))
    lacking = [task for task in tasks if task not in names]
    if data_dir and (lacking or not vocabulary):
        data = PreparedData(data_dir, lacking)
        names |= {task: data.names(task) for task in lacking}
        if not vocabulary and "vocabulary" in data.manifest:
            vocabulary = tuple(read_lines(Path(data.vocabulary_path)))
    return Weights(arrays, metadata, names, vocabulary, source)


def write_safetensors(
    path: str | os.PathLike,
    arrays: Mapping[str, np.ndarray],
    metadata: Mapping[str, Any],
    dtype: str = "float32",
) -> None:
    """Writes one file with everything in it, whole or not at all.

    Args:
      dtype: of matrices and tables; vectors (biases, norms, statistics), which are few and may be
        large or tiny, stay as they are.
    """
    stored = {
        name: array.astype(dtype) if array.ndim > 1 else array for name, array in arrays.items()
    }
    text = json.dumps(metadata, ensure_ascii=False, separators=(",", ":"))
    torch_files.save_safetensors(path, stored, {HEADER: text})


def read_safetensors(path: str | os.PathLike) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Arrays (16-bit ones as float32) and metadata of a file that `write_safetensors` wrote.

    Raises:
      ValueError: it is damaged, or its header does not describe a model.
    """
    arrays = torch_files.load_state_dict(path)
    text = None
    with contextlib.suppress(Exception):  # what is broken `load_state_dict` has told
        with safetensors.safe_open(os.fspath(path), "numpy") as file:
            text = (file.metadata() or {}).get(HEADER)
    if text is None:
        raise ValueError(
            f"{path}: no description of a model in its header; write it anew from the checkpoint "
            "with `unit-jax convert --to safetensors`"
        )
    wide = {
        name: array.astype(np.float32) if array.dtype.itemsize == 2 else array
        for name, array in arrays.items()
    }
    return wide, json.loads(text)


def _names(values: Mapping[str, Iterable[str]]) -> Names:
    return Names(**{field: tuple(value) for field, value in values.items()})


def renamed(weights: Weights, source: str) -> Weights:
    """The same weights under another name."""
    return dataclasses.replace(weights, source=source)
