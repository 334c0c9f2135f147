"""Checkpoints: orbax folders `<workdir>/checkpoints/<step>` with three items each.

`model` holds {"params", "statistics"}, flat dicts from parameter path to array; `optimizer` the
optimiser's state, whose step is the data position too; `metadata` (JSON) the config used, the
label counts and what else a reader needs to rebuild the model.
"""

import json
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from absl import logging
from etils import epath
from orbax.checkpoint.checkpoint_managers import preservation_policy

from unit_jax import paths

FOLDER = "checkpoints"
COMMITTED = "commit_success.txt"  # orbax's, in step folders of a bucket
REMEDY = "give a working folder, its checkpoints folder or one of the step folders in it"


class Checkpoints:
    """The checkpoints of one run.

    Args:
      directory: folder of the step folders; made when the first one is saved.
      max_to_keep: how many of the newest stay.
      best_metric: key in the metrics given to `save`; the checkpoint with the highest stays too.
    """

    def __init__(self, directory: epath.PathLike, max_to_keep: int = 5, best_metric: str = ""):
        # orbax reports each folder it looks at; a run's terminal is for the run.
        logging.get_absl_logger().setLevel("ERROR")
        self.directory = epath.Path(directory)
        policies = [preservation_policy.LatestN(max_to_keep)]
        if best_metric:
            policies.append(
                preservation_policy.BestN(
                    get_metric_fn=lambda metrics: metrics.get(best_metric, float("-inf")),
                    n=1,
                    keep_checkpoints_without_metrics=False,
                )
            )
        self._manager = ocp.CheckpointManager(
            paths.absolute(self.directory),
            options=ocp.CheckpointManagerOptions(
                preservation_policy=preservation_policy.AnyPreservationPolicy(policies),
                cleanup_tmp_directories=True,
            ),
            item_handlers=dict(
                model=ocp.StandardCheckpointHandler(),
                optimizer=ocp.StandardCheckpointHandler(),
                metadata=ocp.JsonCheckpointHandler(),
            ),
        )

    def latest_step(self) -> int | None:
        return self._manager.latest_step()

    def save(
        self,
        step: int,
        model: Mapping[str, Mapping[str, jax.Array]],
        metadata: Mapping[str, Any],
        optimizer: Any = None,
        metrics: Mapping[str, float] | None = None,
    ) -> None:
        """Writes one checkpoint (in the background); a step that exists already is left alone."""
        if step in self._manager.all_steps():
            return
        items = dict(
            model=ocp.args.StandardSave(dict(model)), metadata=ocp.args.JsonSave(dict(metadata))
        )
        if optimizer is not None:
            items["optimizer"] = ocp.args.StandardSave(optimizer)
        self._manager.save(
            step, args=ocp.args.Composite(**items), metrics=dict(metrics) if metrics else None
        )

    def has_optimizer(self, step: int) -> bool:
        """Whether training can go on from it; a converted checkpoint holds a model only."""
        return (self.directory / str(step) / "optimizer").exists()

    def metadata(self, step: int) -> dict[str, Any]:
        return self._restore(step, metadata=ocp.args.JsonRestore())["metadata"]

    def shapes(self, step: int) -> dict[str, dict[str, Any]]:
        """What the item `model` holds: by group and parameter path, something with shape and dtype.

        Raises:
          ValueError: the checkpoint is unreadable.
        """
        try:
            saved = self._manager.item_metadata(step)["model"]
            return {group: dict(saved[group]) for group in ("params", "statistics")}
        except Exception as error:  # orbax and tensorstore raise many kinds
            raise ValueError(
                f"checkpoint {self.directory / str(step)} cannot be read "
                f"({type(error).__name__}); remove that folder to fall back to an older one"
            ) from error

    def restore(self, step: int, model: Any, optimizer: Any = None) -> tuple[Any, Any]:
        """Reads (model, optimizer) in the shapes, dtypes and shardings of the abstract targets.

        Raises:
          ValueError: the checkpoint is unreadable, or lists every parameter that it lacks, has
            beyond the target, or holds in another shape.
        """
        self._check(step, model)
        items = dict(model=ocp.args.StandardRestore(model))
        if optimizer is not None:
            items["optimizer"] = ocp.args.StandardRestore(optimizer)
        restored = self._restore(step, **items)
        return restored["model"], restored["optimizer"] if optimizer is not None else None

    def wait(self) -> None:
        """Returns when everything saved is on disk."""
        self._manager.wait_until_finished()

    def close(self) -> None:
        self._manager.close()

    def _restore(self, step: int, **items: Any) -> Any:
        try:
            return self._manager.restore(step, args=ocp.args.Composite(**items))
        except Exception as error:  # orbax and tensorstore raise many kinds
            raise ValueError(
                f"checkpoint {self.directory / str(step)} cannot be read "
                f"({type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}); "
                "remove that folder to fall back to an older one"
            ) from error

    def _check(self, step: int, target: Mapping[str, Mapping[str, Any]]) -> None:
        saved, problems = self.shapes(step), []
        for group, wanted in target.items():
            found = saved[group]
            problems += [f"missing: {name}" for name in sorted(set(wanted) - set(found))]
            problems += [f"unexpected: {name}" for name in sorted(set(found) - set(wanted))]
            problems += [
                f"{name}: shape {tuple(found[name].shape)}, the model has {leaf.shape}"
                for name, leaf in wanted.items()
                if name in found and tuple(found[name].shape) != tuple(leaf.shape)
            ]
        if problems:
            shown = "\n  ".join(problems[:40])
            more = f"\n  and {len(problems) - 40} more" if len(problems) > 40 else ""
            raise ValueError(
                f"checkpoint {self.directory / str(step)} does not fit this config's model:\n  "
                f"{shown}{more}\nuse the config it was made with, or another --workdir"
            )


def locate(path: epath.PathLike) -> tuple[epath.Path, int]:
    """The (checkpoints folder, step) that `path` means: newest step unless it names one.

    Raises:
      ValueError: there is no checkpoint at `path`.
    """
    path = epath.Path(path)
    for folder in (path / FOLDER, path):
        if steps := _steps(folder):
            return folder, max(steps)
    if path.name.isdigit() and _is_finished(path):
        return path.parent, int(path.name)
    raise ValueError(f"no checkpoint at {path}; {REMEDY}")


def exist(workdir: epath.Path) -> bool:
    """Whether a working folder has a checkpoint."""
    return bool(_steps(workdir / FOLDER))


def _steps(folder: epath.Path) -> list[int]:
    """The steps with a whole checkpoint."""
    if not folder.is_dir():
        return []
    found = [path for path in folder.iterdir() if path.name.isdigit()]
    return [int(path.name) for path in found if _is_finished(path)]


def _is_finished(step: epath.Path) -> bool:
    """On disk a checkpoint is renamed when it is whole; in a bucket it gets a file that says so."""
    return (step / (COMMITTED if paths.is_remote(step) else "metadata")).exists()


def jsonable(value: Any) -> Any:
    """Nested settings as JSON can hold them (tuples become lists)."""
    return json.loads(json.dumps(value, default=_plain))


def _plain(value: Any) -> Any:
    if isinstance(value, np.generic):
        return value.item()
    raise TypeError(f"{value!r} cannot be stored in a checkpoint's metadata")
