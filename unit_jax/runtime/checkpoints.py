"""Checkpoints: orbax folders `<workdir>/checkpoints/<step>` with three items each.

`model` holds {"params", "statistics"}, flat dicts from parameter path to array; `optimizer` the
optimiser's state, whose step is the data position too; `metadata` (JSON) the config used, the
label counts and what else a reader needs to rebuild the model, and the digests of all arrays and of
itself, which are compared when it is read.
"""

import contextlib
import functools
import hashlib
import json
import logging as python_logging
import sys
import time
from collections.abc import Callable, Generator, Mapping
from typing import Any, TypeVar

import jax
import numpy as np
import orbax.checkpoint as ocp
from absl import logging
from etils import epath
from orbax.checkpoint.checkpoint_managers import preservation_policy

from unit_jax import paths
from unit_jax.runtime import checkpoint_folder, digests, disk, distributed, exits

_DIGESTS, _CHECKSUM = "digests", "sha256"  # in the metadata: of arrays by item, and of all the rest

T = TypeVar("T")


class Damaged(ValueError):
    """A checkpoint that cannot be read, or that holds other numbers than were saved."""


class NotWritten(ValueError):
    """A checkpoint could not be written; the message says which older one is safe."""

    exit_code = exits.DISK


class Checkpoints:
    """The checkpoints of one run.

    Args:
      directory: folder of the step folders; made when the first one is saved.
      max_to_keep: how many of the newest stay; two at least, as one may turn out damaged.
      best_metric: key in the metrics given to `save`; the checkpoint with the highest stays too.
      read_only: nothing in the folder is touched, so that it may be another run's that is at work.

    Attributes:
      digest_seconds: what the digests of the last `save` took; training waits for them.
    """

    def __init__(
        self,
        directory: epath.PathLike,
        max_to_keep: int = 5,
        best_metric: str = "",
        read_only: bool = False,
    ):
        # orbax reports each folder it looks at; a run's terminal is for the run.
        # What fails is told once, by `_writing`.
        logging.get_absl_logger().setLevel("CRITICAL")
        python_logging.getLogger("asyncio").setLevel("CRITICAL")
        sys.excepthook, sys.unraisablehook = _quiet, _quiet_in_native
        self.directory, self._size = epath.Path(directory), 0
        self.digest_seconds = 0.0
        policies: list[preservation_policy.PreservationPolicy] = [
            preservation_policy.LatestN(max(max_to_keep, 2))
        ]
        rank = None
        if best_metric:
            rank = functools.partial(checkpoint_folder.rank, name=best_metric)
            policies.append(
                preservation_policy.BestN(
                    get_metric_fn=rank, n=1, keep_checkpoints_without_metrics=False
                )
            )
        self._manager = ocp.CheckpointManager(
            paths.absolute(self.directory),
            options=ocp.CheckpointManagerOptions(
                preservation_policy=preservation_policy.AnyPreservationPolicy(policies),
                best_fn=rank,  # without it the metrics are not stored, and forgotten by a resume
                cleanup_tmp_directories=not read_only,
                create=not read_only,
                read_only=read_only,
                save_interval_steps=0 if read_only else 1,
                async_options=ocp.AsyncOptions(barrier_sync_fn=_barrier),
            ),
            item_handlers=dict(
                model=ocp.StandardCheckpointHandler(),
                optimizer=ocp.StandardCheckpointHandler(),
                metadata=ocp.JsonCheckpointHandler(),
            ),
        )

    def latest_step(self) -> int | None:
        return self._manager.latest_step()

    def newest_good(self, read: Callable[[int], T]) -> tuple[int, T]:
        """(step, read(step)) of the newest checkpoint that is not damaged.

        Newer ones that are damaged are kept aside, as `<workdir>/damaged_checkpoints/<step>`, and
        named. Every process must ask.

        Raises:
          Damaged: all of them are; nothing was moved.
          ValueError: `read` raised another one.
        """
        bad: list[tuple[int, Damaged]] = []
        for step in sorted(self._manager.all_steps(), reverse=True):
            try:
                result = read(step)
            except Damaged as error:
                bad.append((step, error))
                continue
            for worse, reason in bad:
                self._set_aside(worse, reason, step)
            return step, result
        aside = f"move {self.directory} away to start afresh"
        raise Damaged(f"{bad[0][1]}; no other one can be read; {aside}") from bad[0][1]

    def _set_aside(self, step: int, reason: Damaged, good: int) -> None:
        aside = self.directory.parent / "damaged_checkpoints" / str(step)
        if distributed.is_first():
            aside.parent.mkdir(parents=True, exist_ok=True)
            while aside.exists():
                aside = aside.with_name(aside.name + "-again")
            (self.directory / str(step)).rename(aside)
            print(f"{reason}; it is kept as {aside}; going back to step {good}")
        distributed.any_process(False)  # all see it moved
        self._manager.reload()

    def save(
        self,
        step: int,
        model: Mapping[str, Mapping[str, jax.Array]],
        metadata: Mapping[str, Any],
        optimizer: Any = None,
        metrics: Mapping[str, float] | None = None,
    ) -> None:
        """Writes one checkpoint (in the background); a step that exists already is left alone.

        Raises:
          NotWritten: this one, or the one before, could not be written.
        """
        if step in self._manager.all_steps():
            return
        arrays = {"model": dict(model)} | ({} if optimizer is None else {"optimizer": optimizer})
        since = time.perf_counter()
        metadata = {**metadata, _DIGESTS: {k: digests.of_tree(v) for k, v in arrays.items()}}
        self.digest_seconds = time.perf_counter() - since
        metadata[_CHECKSUM] = _checksum(metadata)
        items: dict[str, Any] = {
            name: ocp.args.StandardSave(value) for name, value in arrays.items()
        }
        items["metadata"] = ocp.args.JsonSave(metadata)
        self._size = disk.bytes_of(arrays)
        with self._writing():
            self._manager.save(
                step, args=ocp.args.Composite(**items), metrics=dict(metrics) if metrics else None
            )

    def check_room(self, state: Any, max_to_keep: int) -> None:
        """Before training: whether the disk has room for the checkpoints to come.

        Args:
          state: what a checkpoint holds: arrays, or shapes and dtypes of them.
          max_to_keep: how many of the newest stay; the best and the one being written are more.

        Raises:
          ValueError: it has not; says how much is missing.
        """
        if paths.is_remote(self.directory):
            return
        one, count = disk.bytes_of(state), max_to_keep + 2
        free, existing = disk.free(self.directory), disk.used(self.directory)
        if (missing := one * count - existing - free) > 0:
            raise ValueError(
                f"the disk of {self.directory} has {disk.megabytes(free)} free, "
                f"{count} checkpoints (train.max_to_keep={max_to_keep}, the best, and one being "
                f"written) of {disk.megabytes(one)} need {disk.megabytes(missing)} more; free "
                "some, lower train.max_to_keep, or give another --workdir"
            )

    def has_optimizer(self, step: int) -> bool:
        """Whether training can go on from it; a converted checkpoint holds a model only.

        Raises:
          Damaged: it was saved with an optimiser's state, which is gone.
        """
        there = (self.directory / str(step) / "optimizer").exists()
        if not there and "optimizer" in self._raw_metadata(step).get(_DIGESTS, {}):
            raise self._damaged(step, "its optimizer folder is gone")
        return there

    def metadata(self, step: int) -> dict[str, Any]:
        """What was saved as metadata.

        Raises:
          Damaged: it cannot be read, or is not what was saved.
        """
        saved = self._raw_metadata(step)
        return {name: saved[name] for name in saved if name not in (_DIGESTS, _CHECKSUM)}

    def shapes(self, step: int) -> dict[str, dict[str, Any]]:
        """What the item `model` holds: by group and parameter path, something with shape and dtype.

        Raises:
          Damaged: the checkpoint is unreadable.
        """
        try:
            saved = self._manager.item_metadata(step)["model"]
            return {group: dict(saved[group]) for group in ("params", "statistics")}
        except Exception as error:  # orbax and tensorstore raise many kinds
            raise self._damaged(step, _in_short(error)) from error

    def restore(
        self, step: int, model: Any, optimizer: Any = None, partly: bool = False
    ) -> tuple[Any, Any]:
        """Reads (model, optimizer) in the shapes, dtypes and shardings of the abstract targets, and
        compares digests; every process must ask.

        Args:
          partly: the checkpoint's model may have more than the target (other tasks); that is read
            too, to compare digests, and dropped.

        Raises:
          Damaged: the checkpoint is unreadable, or holds other numbers than were saved.
          ValueError: lists every parameter that it lacks, holds in another shape or (unless
            `partly`) has beyond the target.
        """
        saved = self._raw_metadata(step).get(_DIGESTS, {})  # older checkpoints have none
        wanted = model
        if partly:
            model = self._with_others(step, model)
        self._check(step, model)
        items = dict(model=ocp.args.StandardRestore(model))
        if optimizer is not None:
            items["optimizer"] = ocp.args.StandardRestore(optimizer)
        restored = self._restore(step, **items)
        for item in items:
            found = digests.of_tree(restored[item])
            if wrong := digests.differences(saved.get(item, {}), found):
                raise self._damaged(
                    step, f"{len(wrong)} of its arrays are not what was saved, such as {wrong[0]}"
                )
        found = {group: {k: restored["model"][group][k] for k in wanted[group]} for group in wanted}
        return found, restored["optimizer"] if optimizer is not None else None

    def _with_others(self, step: int, model: Mapping[str, Mapping[str, Any]]) -> dict[str, dict]:
        """The target, and whole on every device what the checkpoint has beyond it."""
        leaf = next(leaf for group in model.values() for leaf in group.values())
        whole, made = None, {}
        if mesh := getattr(leaf.sharding, "mesh", None):
            whole = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
        for group, saved in self.shapes(step).items():
            others = {
                name: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=whole)
                for name, leaf in saved.items()
                if name not in model[group]
            }
            made[group] = {**model[group], **others}
        return made

    def wait(self) -> None:
        """Returns when everything saved is on disk.

        Raises:
          NotWritten: something could not be written.
        """
        with self._writing():
            self._manager.wait_until_finished()

    def close(self) -> None:
        """Waits like `wait`; nothing can be saved afterwards."""
        with self._writing():
            self._manager.close()

    def _raw_metadata(self, step: int) -> dict[str, Any]:
        saved = self._restore(step, metadata=ocp.args.JsonRestore())["metadata"]
        rest = {name: value for name, value in saved.items() if name != _CHECKSUM}
        if saved.get(_CHECKSUM, _checksum(rest)) != _checksum(rest):
            raise self._damaged(step, "its metadata are not what was saved")
        return saved

    def _restore(self, step: int, **items: Any) -> Any:
        restored = problem = None
        try:
            restored = self._manager.restore(step, args=ocp.args.Composite(**items))
        except Exception as error:  # orbax and tensorstore raise many kinds
            problem = error
        if problem is not None and "RESOURCE_EXHAUSTED" in str(problem):
            raise problem  # no room on the devices; the checkpoint is as good as it was
        if distributed.any_process(problem is not None):
            raise self._damaged(step, _in_short(problem)) from problem
        return restored

    def _damaged(self, step: int, reason: str) -> Damaged:
        others = ", ".join(
            str(other) for other in checkpoint_folder.whole_steps(self.directory) if other != step
        )
        told = f"checkpoint {self.directory / str(step)} cannot be read ({reason})"
        return Damaged(f"{told}; others there: {others or 'none'}")

    @contextlib.contextmanager
    def _writing(self) -> Generator[None]:
        """What orbax raises of a write, now or in the background, becomes one line."""
        try:
            yield
        except Exception as error:  # orbax, tensorstore and file systems raise many kinds
            if distributed.broken_exchange(error):
                raise  # nothing is wrong with the disk: another process was lost meanwhile
            reason = _in_short(error)
            if not paths.is_remote(self.directory):
                free = disk.free(self.directory)
                if self._size > free:
                    reason = (
                        f"no space is left: {disk.megabytes(free)} are free, "
                        f"{disk.megabytes(self._size - free)} too little for one"
                    )
            safe = checkpoint_folder.whole_steps(self.directory)
            newest = f"{self.directory / str(max(safe))} is safe" if safe else "there is none yet"
            raise NotWritten(
                f"a checkpoint could not be written to {self.directory} ({reason}); {newest}; make "
                "room and start again"
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


def _barrier(*, key: str, timeout_ms: int) -> None:
    """Where all processes wait for each other in the background of a save.

    orbax comes here also while an error of this process is on its way up. The others wait at an
    earlier place then, so this one goes on, and ends; they learn that it is lost.
    """
    if sys.exc_info()[1] is None:
        ocp.multihost.get_barrier_sync_fn()(key=key, timeout_ms=timeout_ms)


def _quiet(kind, error, trace) -> None:
    if not _of_an_ended_loop(kind, error):
        sys.__excepthook__(kind, error, trace)


def _quiet_in_native(told) -> None:
    if not _of_an_ended_loop(told.exc_type, told.exc_value):
        sys.__unraisablehook__(told)


def _of_an_ended_loop(kind: type, error: BaseException | None) -> bool:
    """Of a write that failed tensorstore also tells a loop that has ended, from native code."""
    return kind is RuntimeError and str(error) == "Event loop is closed"


def _checksum(metadata: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(metadata, sort_keys=True).encode()).hexdigest()


def _in_short(error: Exception | None) -> str:
    """One line of bounded length about an error; None is one on another process."""
    if error is None:
        return "another process could not"
    text = f"{type(error).__name__}: {' '.join(str(error).split())}"
    return text if len(text) <= 200 else f"{text[:200]}..."


def jsonable(value: Any) -> Any:
    """Nested settings as JSON can hold them (tuples become lists)."""
    return json.loads(json.dumps(value, default=_plain))


def _plain(value: Any) -> Any:
    if isinstance(value, np.generic):
        return value.item()
    raise TypeError(f"{value!r} cannot be stored in a checkpoint's metadata")
