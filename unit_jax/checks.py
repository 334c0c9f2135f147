"""What can be wrong with a config, its weights or a checkpoint; found before long work."""

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any

from etils import epath

from unit_jax import fields, outputs
from unit_jax import settings as settings_lib
from unit_jax.interop import sources
from unit_jax.runtime import checkpoints
from unit_jax.settings import ModelSettings, OptimizerSettings, Settings


def metric_problems(settings: Settings) -> list[str]:
    """A line per task whose room or metrics do not exist, and one if the best metric does not."""
    problems, reported = [], {}
    for name, spec in settings.tasks.items():
        try:
            room = outputs.room(spec)
            reported[name] = spec.metrics or room.default_metrics()
        except ValueError as error:
            problems.append(str(error))
    task, _, metric = settings.train.best_metric.partition("/")
    if task in reported and metric not in reported[task]:
        near = fields.did_you_mean(metric, reported[task])
        problems.append(
            f"config.train.best_metric: {task} has no metric {metric!r}{near} "
            f"(metrics: {', '.join(reported[task])})"
        )
    return problems


def frozen(settings: OptimizerSettings, paths: Iterable[str]) -> str | None:
    """What is wrong with `settings.frozen` for a model of these parameters; None = nothing."""
    parts = {}  # ordered
    for path in paths:
        names = path.split(".")
        parts |= dict.fromkeys(".".join(names[:depth]) for depth in range(1, len(names) + 1))
    wrong = [name for name in settings.frozen if name.rstrip(".") not in parts]
    if not wrong:
        return None
    near = ", ".join(filter(None, (fields.nearest(name, parts) for name in wrong)))
    return (
        f"config.optimizer.frozen: {', '.join(map(repr, wrong))}: no parameter of the model, nor a "
        f"part that holds some{near and f'; did you mean {near}?'} "
        f"(parts: {', '.join(name for name in parts if '.' not in name)})"
    )


def missing_weights(init_from: settings_lib.InitSettings) -> list[str]:
    """A line per file of `config.init_from` that is not there."""
    return [
        f"weights: config.init_from.{field} = {path!r} does not exist; {_WEIGHTS[field]}, or set "
        f'config.init_from.{field}="" to start it fresh'
        for field, path in ((name, getattr(init_from, name)) for name in _WEIGHTS)
        if path and not _is_there(field, path)
    ]


def _is_there(field: str, path: str) -> bool:
    # A hub name has one slash at most and no file ending; whether the hub has it shows when read.
    if packaged := sources.packaged(path):
        return packaged.exists()
    hub_name = field == "text_encoder" and path.count("/") < 2 and not epath.Path(path).suffix
    return epath.Path(path).exists() or (hub_name and not path.startswith("weights/"))


_WEIGHTS = {
    "model": 'give "demo", a checkpoint of ours, or a file of the UniT of MMF or of DETR',
    "backbone": "download DETR's R50-DC5 checkpoint (detr-r50-dc5-f0fb7ef5.pth) there, or give one "
    "of ours",
    "text_encoder": "download bert-base-uncased (config.json, model.safetensors, vocab.txt) there, "
    "or give one of ours",
}


def metadata(
    saved: Mapping[str, Any], where: str, settings: Settings, fingerprints: Mapping[str, str]
) -> None:
    """Holds a checkpoint's metadata against the config and the data.

    Args:
      saved: what the checkpoint tells about itself, as `Run.metadata` made it.
      where: the checkpoint, for the message.
      fingerprints: of the data's vocabulary and lists of answers and classes.

    Raises:
      ValueError: it was made by another model, or with another vocabulary, answer list or list of
        classes, or has a task in another row of the task embeddings.
    """
    made = saved.get("settings", {})
    model = checkpoints.jsonable(dataclasses.asdict(settings.model))
    free = settings_lib.names(ModelSettings, "free")
    differences = [
        difference
        for difference in _differences(made.get("model", {}), model)
        if difference[0] not in free
    ]
    if differences:
        told = "; ".join(
            f"model.{name} = {made_with!r} there, {now!r} in this config"
            for name, made_with, now in differences
        )
        flags = " ".join(
            f"--config.model.{name}={value}"
            for name, value, _ in differences
            if not isinstance(value, list)
        )
        raise ValueError(
            f"{where} was made by another model: {told}; use its config"
            f"{flags and f' (here: {flags})'}, or another --workdir"
        )
    for name, task in made.get("tasks", {}).items():
        row = task.get("index")
        if name in settings.tasks and row not in (None, settings.tasks[name].index):
            raise ValueError(
                f"{where} has {name} in row {row} of the task embeddings, this config in "
                f"{settings.tasks[name].index}; use --config.tasks.{name}.index={row}"
            )
    for name, now in fingerprints.items():
        there = saved.get("data", {}).get(name, now)
        if there != now:
            raise ValueError(
                f"{where} was made with another {name} ({there[:12]}) than that of "
                f"{settings.data.data_dir} ({now[:12]}); prepare the data with "
                "the same one, or use another --workdir"
            )


def _differences(old: Mapping, new: Mapping, prefix: str = "") -> list[tuple[str, Any, Any]]:
    """(name, old value, new value) of what both nested dicts have, with different values."""
    differences = []
    for key in sorted(old.keys() & new.keys()):
        if isinstance(old[key], Mapping) and isinstance(new[key], Mapping):
            differences += _differences(old[key], new[key], f"{prefix}{key}.")
        elif old[key] != new[key]:
            differences.append((prefix + key, old[key], new[key]))
    return differences
