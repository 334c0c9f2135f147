"""`unit_jax.load`: from any file or folder with weights to a `Model`."""

import dataclasses
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import nnx

from unit_jax import config_files, outputs
from unit_jax.api.model import BATCH_SIZE, Model
from unit_jax.interop import guess, sources, weights
from unit_jax.interop.weights import Weights
from unit_jax.models import flat
from unit_jax.outputs.base import Names
from unit_jax.runtime import checkpoints, partitioning
from unit_jax.settings import DataSettings, MeshSettings, ModelSettings
from unit_jax.tasks import TaskSpec


def load(
    source: str | os.PathLike = sources.DEMO,
    *,
    data_dir: str | os.PathLike = "",
    config: str = "",
    bn_eps: float | None = None,
    batch_size: int = BATCH_SIZE,
    exif: bool = True,
    devices: Sequence[jax.Device] | None = None,
) -> Model:
    """A trained model, ready to be asked.

    Args:
      source: "demo" (small, comes with the package), a working folder (its newest checkpoint), a
        step's folder in it, a .safetensors file that `unit-jax convert` wrote, or an MMF file
        (.pth, or the model zoo's tar).
      data_dir: prepared data; only for weights that came without names: MMF's files, and
        checkpoints made before names travelled along.
      config: settings of an MMF file's model, FILE.py[:variants]; "" = told from its shapes.
      bn_eps: epsilon of an MMF file's frozen batch norms: 0 for the files of MMF's model zoo;
        None = the settings', 1e-5.
      batch_size: examples that go through the model at once where there are many.
      exif: turn pictures as their EXIF orientation says; False = as they are stored.
      devices: on which to compute; None = the first one.

    Raises:
      ValueError: there are no weights there, or they are damaged or lack what tells what they are.
    """
    loaded = read(source, data_dir, config, bn_eps)
    model, tasks, data = weights.settings_of(loaded.metadata, loaded.source)
    graph, params, statistics = flat.abstract(lambda: outputs.build(model, tasks, rngs=nnx.Rngs(0)))
    _check(loaded, {**params, **statistics})
    devices = list(devices or jax.local_devices()[:1])
    mesh = partitioning.make_mesh(MeshSettings(data=-1, fsdp=1, tensor=1), devices)
    placed = partitioning.place(
        {
            group: {name: np.asarray(loaded.arrays[name], leaf.dtype) for name, leaf in of.items()}
            for group, of in (("params", params), ("statistics", statistics))
        },
        mesh,
    )
    return Model(
        graph,
        placed["params"],
        placed["statistics"],
        tasks,
        data,
        loaded.names,
        loaded.vocabulary,
        loaded.metadata,
        loaded.source,
        mesh,
        batch_size,
        exif,
    )


def read(
    source: str | os.PathLike,
    data_dir: str | os.PathLike = "",
    config: str = "",
    bn_eps: float | None = None,
) -> Weights:
    """The weights that `source` means, see `load`."""
    if os.fspath(source) == sources.DEMO and (path := sources.packaged(source)):
        if not path.exists():
            raise ValueError(
                "the demo's weights are not in this installation; `make demo` trains them, "
                "`make demo-weights` puts them there"
            )
        return dataclasses.replace(weights.read(path), source=sources.DEMO)
    path = Path(source)
    if path.is_file() and path.suffix != ".safetensors":
        return _from_mmf(path, data_dir, config, bn_eps)
    if "://" not in os.fspath(source) and not path.exists():
        raise ValueError(f'{source}: no such file or folder; give "demo", {weights.REMEDY}')
    return weights.read(source, data_dir)


def _from_mmf(
    path: Path, data_dir: str | os.PathLike, config: str, bn_eps: float | None
) -> Weights:
    source = sources.read(path)
    arrays = source.arrays
    with sources.naming(path):
        if config:
            settings = config_files.read(config)
            tasks, data = guess.with_counts(settings.tasks, arrays), settings.data
            model = guess.model_of(arrays, settings.model)
        else:
            tasks, data = guess.published(source.tasks, arrays), DataSettings()
            model = guess.model_of(arrays)
    if bn_eps is not None:
        backbone = dataclasses.replace(model.backbone, bn_eps=bn_eps)
        model = dataclasses.replace(model, backbone=backbone)
    metadata = _metadata(model, tasks, data)
    if not data_dir:  # names that a file itself implies, such as COCO's classes
        names = {name: Names(facts.labels) for name, facts in source.tasks.items() if facts.labels}
        metadata["names"] = weights.as_json(names, ())
    return weights.with_names(arrays, metadata, os.fspath(path), data_dir)


def _metadata(model: ModelSettings, tasks: Mapping[str, TaskSpec], data: Any) -> dict[str, Any]:
    settings = {
        "model": dataclasses.asdict(model),
        "tasks": {name: dataclasses.asdict(spec) for name, spec in tasks.items()},
        "data": dataclasses.asdict(data),
    }
    return checkpoints.jsonable({"settings": settings, "converted_from": "mmf"})


def _check(loaded: Weights, expected: Mapping[str, Any]) -> None:
    """Raises ValueError unless the weights are those of the model that their metadata tell."""
    problems = [f"missing: {name}" for name in sorted(set(expected) - set(loaded.arrays))]
    problems += [
        f"{name}: shape {loaded.arrays[name].shape}, the model has {tuple(leaf.shape)}"
        for name, leaf in expected.items()
        if name in loaded.arrays and loaded.arrays[name].shape != tuple(leaf.shape)
    ]
    if problems:
        shown = "\n  ".join(problems[:20]) + "\n  ..." * (len(problems) > 20)
        raise ValueError(f"{loaded.source} does not fit the model it describes:\n  {shown}")
