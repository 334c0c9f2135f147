"""What a run tells: a progress bar, one JSON-lines file of numbers, TensorBoard scalars."""

import collections
import contextlib
import io
import json
import os
import tempfile
import time
from collections.abc import Hashable, Iterator, Mapping
from typing import Any

import jax
import numpy as np
from etils import epath
from tensorboardX import SummaryWriter
from tqdm import tqdm

from unit_jax import distributed

FILE = "metrics.jsonl"
_COMPILE_EVENT = "/jax/core/compile/backend_compile_duration"


class RunLog:
    """Collects the logs of steps and writes their means every `every` steps.

    Of several processes only the first one writes and shows anything. Logs of a remote working
    folder (gs://) are kept in a local one and copied there by `sync`.

    It counts the programs that get compiled. `program` tells which of them should not have been:
    those of work that was done before, on the same shapes.

    Args:
      workdir: gets metrics.jsonl and TensorBoard files. Lines of steps at or after `start`,
        left by a run that was cut off, are dropped, so that each step stands there once.
      start, steps: first step of this session and total of the run.
    """

    def __init__(self, workdir: epath.Path, start: int, steps: int, every: int):
        self._every = every
        first = distributed.is_first()
        self._workdir = self._folder = workdir
        if _is_remote(workdir):  # object stores append to no file
            self._folder = epath.Path(tempfile.mkdtemp())
            if first and (workdir / FILE).exists():
                (workdir / FILE).copy(self._folder / FILE)
        path = self._folder / FILE
        if first and path.exists():
            lines = path.read_text().splitlines(keepends=True)
            path.write_text("".join(line for line in lines if _step_of(line) <= start))
        self._file = path.open("a") if first else io.StringIO()
        self._board = SummaryWriter(
            str(self._folder / "tensorboard"), purge_step=start, write_to_disk=first
        )
        self._bar = tqdm(
            total=steps,
            initial=start,
            unit="step",
            dynamic_ncols=True,
            smoothing=0.1,
            disable=not first,
        )
        self._pending: list[tuple[str, Mapping[str, jax.Array]]] = []
        self._latest_loss: dict[str, float] = {}
        self._examples = 0
        self._since = time.perf_counter()
        self._seen: set[Hashable] = set()
        self.compilations = 0
        self.recompilations = 0
        self.compile_seconds = 0.0
        jax.monitoring.register_event_duration_secs_listener(self._on_event)

    def step(self, step: int, task: str, logs: Mapping[str, jax.Array], examples: int) -> None:
        """Takes the logs of the update that made `step` the number of updates done."""
        self._pending.append((task, logs))
        self._examples += examples
        self._bar.update()
        if step % self._every == 0:
            self.flush(step)

    @contextlib.contextmanager
    def program(self, name: Hashable) -> Iterator[None]:
        """Work whose programs are compiled the first time only, such as (task, shapes).

        What is compiled in it later counts as `recompilations`.
        """
        before = self.compilations
        yield
        if name in self._seen:
            self.recompilations += self.compilations - before
        self._seen.add(name)

    def flush(self, step: int) -> None:
        """Writes the means per task since the last flush.

        Raises:
          FloatingPointError: a loss is not finite; the message names the task.
        """
        if not self._pending:
            return
        per_task = collections.defaultdict(lambda: collections.defaultdict(list))
        for task, logs in jax.device_get(self._pending):
            for name, value in logs.items():
                per_task[task][name].append(float(value))
        seconds = time.perf_counter() - self._since
        record: dict[str, Any] = {
            f"train/{task}/{name}": float(np.mean(values))
            for task, terms in per_task.items()
            for name, values in terms.items()
        }
        record["train/examples_per_second"] = self._examples / seconds
        record["train/compilations"] = self.compilations
        record["train/recompilations"] = self.recompilations
        self._pending, self._examples, self._since = [], 0, time.perf_counter()
        self.write(step, record)
        for task in per_task:
            self._latest_loss[task] = record[f"train/{task}/loss"]
            if not np.isfinite(self._latest_loss[task]):
                raise FloatingPointError(
                    f"the loss of {task} is {self._latest_loss[task]} at step {step}; "
                    "resume from the newest checkpoint with a lower learning rate"
                )
        self._bar.set_postfix_str(
            " ".join(f"{task} {loss:.3g}" for task, loss in self._latest_loss.items())
            + f" | {record['train/examples_per_second']:.0f} ex/s"
        )

    def write(self, step: int, record: Mapping[str, float]) -> None:
        """Adds one line to metrics.jsonl and its numbers to TensorBoard."""
        known = {name: value for name, value in record.items() if np.isfinite(value)}
        # A value that does not exist (an AP without objects of that size) is null, as JSON has it.
        line = {"step": step, **dict.fromkeys(record), **known}
        self._file.write(json.dumps(line) + "\n")
        self._file.flush()
        for name, value in known.items():
            self._board.add_scalar(name, value, step)

    def say(self, text: str) -> None:
        """Prints a line above the progress bar."""
        if distributed.is_first():
            self._bar.write(text)

    def restart_clock(self) -> None:
        """What happened since the last flush (evaluation, saving) is no training time."""
        self._since = time.perf_counter()

    def sync(self) -> None:
        """Copies the logs to a remote working folder; a local one has them already."""
        if self._folder == self._workdir or not distributed.is_first():
            return
        self._file.flush()
        self._board.flush()
        for folder in (self._folder, self._folder / "tensorboard"):
            to = self._workdir / folder.relative_to(self._folder)
            to.mkdir(parents=True, exist_ok=True)
            for path in folder.iterdir():
                if path.is_file():
                    path.copy(to / path.name, overwrite=True)

    def close(self) -> None:
        self._bar.close()
        self.sync()
        self._file.close()
        self._board.close()
        jax.monitoring.unregister_event_duration_listener(self._on_event)

    def _on_event(self, event: str, seconds: float, **_: Any) -> None:
        if event == _COMPILE_EVENT:
            self.compilations += 1
            self.compile_seconds += seconds


def _is_remote(path: epath.Path) -> bool:
    return "://" in os.fspath(path)


def _step_of(line: str) -> int:
    try:
        return json.loads(line)["step"]
    except (ValueError, KeyError):  # a line cut off by a crash
        return np.iinfo(np.int64).max
