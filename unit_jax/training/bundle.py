"""A bundle: what it takes to repeat a step whose numbers went wrong, without the data or the run.

A folder with `bundle.json` (settings, step, task, examples, cause), `batch.npz` (the arrays of the
batch) and `state.safetensors` (parameters and statistics). A step that is not finite changes no
parameter, so the state after some of them in a row is the one that each of them met.
"""

import dataclasses
import json
import zipfile
from typing import Any

import jax
import numpy as np
from etils import epath
from jax.experimental import multihost_utils

from unit_jax import run as run_lib
from unit_jax import settings as settings_lib
from unit_jax.batch import Batch
from unit_jax.data import loader
from unit_jax.data.shapes import batch_shapes
from unit_jax.interop import torch_files
from unit_jax.runtime import checkpoints, distributed, partitioning
from unit_jax.settings import MeshSettings, Settings
from unit_jax.training.run_log import TooManyBadSteps
from unit_jax.training.step import TrainState

FILE = "bundle.json"
_BATCH, _STATE = "batch.npz", "state.safetensors"
Arrays = dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Bundle:
    """What `read` gives.

    Attributes:
      facts: of bundle.json.
      settings: of the run, but on a mesh of one device.
      batch: this process's part of the step's batch.
      params, statistics: by path.
    """

    facts: dict[str, Any]
    settings: Settings
    batch: Batch
    params: Arrays
    statistics: Arrays


def save(
    run: run_lib.Run, state: TrainState, error: TooManyBadSteps, folder: epath.Path
) -> epath.Path:
    """Writes the bundle of a step; every process must call it, the first one writes.

    Returns:
      Its folder, `<folder>/step-<number>`.
    """
    folder = folder / f"step-{error.step}"
    places = partitioning.rows_of_process(run.mesh, run.settings.train.batch_size)
    with loader.train_batches(run.settings, run.data, error.step - 1, places) as batches:
        batch = next(batches)
    state = jax.tree.map(_whole, state.model._asdict())
    if not distributed.is_first():
        return folder
    folder.mkdir(parents=True, exist_ok=True)
    facts = {
        "step": error.step,
        "task": error.task,
        "cause": error.cause,
        "examples": error.examples,
        "bucket": list(batch.bucket),
        "settings": checkpoints.jsonable(dataclasses.asdict(run.settings)),
    }
    np.savez(folder / _BATCH, *map(np.asarray, jax.tree.leaves(batch)))
    flat = {f"{group}/{path}": x for group, leaves in state.items() for path, x in leaves.items()}
    torch_files.save_safetensors(folder / _STATE, flat)
    (folder / FILE).write_text(json.dumps(facts, indent=1) + "\n")
    return folder


def read(folder: epath.PathLike) -> Bundle:
    """Reads a bundle.

    Raises:
      ValueError: there is none, or it is damaged.
    """
    folder = epath.Path(folder)
    if not (folder / FILE).exists():
        raise ValueError(f"{folder} is no bundle: it has no {FILE}")
    try:
        facts = json.loads((folder / FILE).read_text())
        settings = settings_lib.from_saved(facts["settings"])
        settings = dataclasses.replace(settings, mesh=MeshSettings(1, 1, 1))
        mesh = partitioning.make_mesh(settings.mesh, jax.devices()[:1])
        task, bucket = settings.tasks[facts["task"]], tuple(facts["bucket"])
        shapes = jax.tree.structure(batch_shapes(task, bucket, settings, mesh))
        with np.load(folder / _BATCH) as stored:
            batch = jax.tree.unflatten(shapes, [stored[name] for name in stored.files])
    except (OSError, KeyError, ValueError, TypeError, zipfile.BadZipFile) as error:
        raise ValueError(f"{folder}: the bundle is damaged ({error})") from error
    flat = torch_files.load_state_dict(folder / _STATE)
    groups: dict[str, Arrays] = {"params": {}, "statistics": {}}
    for name, array in flat.items():
        group, _, path = name.partition("/")
        groups[group][path] = array
    return Bundle(facts, settings, batch, **groups)


def _whole(x: jax.Array) -> np.ndarray:
    if jax.process_count() > 1:
        return np.asarray(multihost_utils.process_allgather(x, tiled=True))
    return np.asarray(x)
