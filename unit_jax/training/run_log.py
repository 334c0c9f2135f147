"""What a run tells: a progress bar, one JSON-lines file of numbers, TensorBoard scalars."""

import collections
import contextlib
import io
import json
import tempfile
import time
from collections.abc import Hashable, Iterator, Mapping
from typing import Any

import jax
import numpy as np
from etils import epath
from tensorboardX import SummaryWriter
from tqdm import tqdm

from unit_jax import paths
from unit_jax.runtime import distributed
from unit_jax.settings import TrainSettings
from unit_jax.training import compilation

FILE = "metrics.jsonl"
_FLAGS = ("bad_step", "bad_costs")  # of a step's logs; the rest are numbers to be averaged


class RunLog:
    """Collects the logs of steps and writes their means every `every` steps.

    Of several processes only the first one writes and shows anything. Logs of a remote working
    folder (gs://) are kept in a local one and copied there by `sync`.

    It counts the programs that get compiled. `program` tells which of them should not have been:
    those of work that was done before, on the same shapes.

    Args:
      workdir: gets metrics.jsonl and TensorBoard files. Lines of steps at or after `start`,
        left by a run that was cut off, are dropped, so that each step stands there once.
      start: first step of this session.
      settings: number of steps, how often to write, how many bad steps to bear.
    """

    def __init__(self, workdir: epath.Path, start: int, settings: TrainSettings):
        self._every, self._max_bad_steps = settings.log_every, settings.max_bad_steps
        first = distributed.is_first()
        self._workdir = self._folder = workdir
        if paths.is_remote(workdir):  # object stores append to no file
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
            total=settings.steps,
            initial=start,
            unit="step",
            dynamic_ncols=True,
            smoothing=0.1,
            disable=not first,
        )
        self._pending: list[tuple[int, str, Mapping[str, jax.Array | float]]] = []
        self._bad_steps = self._bad_in_a_row = 0
        self._latest_loss: dict[str, float] = {}
        self._examples = 0
        self._since = time.perf_counter()
        self._seen: set[Hashable] = set()
        self.compiled = compilation.Counter()
        self.recompilations = 0

    def step(
        self, step: int, task: str, logs: Mapping[str, jax.Array | float], examples: int
    ) -> None:
        """Takes the logs of the update that made `step` the number of updates done."""
        self._pending.append((step, task, logs))
        self._examples += examples
        self._bar.update()
        if step % self._every == 0:
            self.flush(step)

    @contextlib.contextmanager
    def program(self, name: Hashable) -> Iterator[None]:
        """Work whose programs are compiled the first time only, such as (task, shapes).

        What is compiled in it later counts as `recompilations`.
        """
        before = self.compiled.programs
        yield
        if name in self._seen:
            self.recompilations += self.compiled.programs - before
        self.has_compiled(name)

    def has_compiled(self, name: Hashable) -> None:
        """The programs of this work are there: what it compiles from now on is one too many."""
        self._seen.add(name)

    def flush(self, step: int) -> None:
        """Writes the means per task since the last flush; steps that were bad are only counted.

        Raises:
          FloatingPointError: too many steps in a row were bad; the message names the last one.
        """
        if not self._pending:
            return
        per_task = collections.defaultdict(lambda: collections.defaultdict(list))
        for at, task, logs in jax.device_get(self._pending):
            cause = _cause(logs)
            self._bad_in_a_row = self._bad_in_a_row + 1 if cause else 0
            if cause:
                self._bad_steps += 1
                self.say(f"step {at} of {task} changed nothing: {cause} not finite")
            for name, value in logs.items():
                if not cause and name not in _FLAGS:
                    per_task[task][name].append(float(value))
            if self._bad_in_a_row >= self._max_bad_steps:
                raise FloatingPointError(
                    f"{self._bad_in_a_row} steps in a row changed nothing, the last at step {at}: "
                    f"{cause} not finite ({task}); resume from the newest checkpoint with a lower "
                    "learning rate, or look for broken examples"
                )
        seconds = time.perf_counter() - self._since
        record: dict[str, Any] = {
            f"train/{task}/{name}": float(np.mean(values))
            for task, terms in per_task.items()
            for name, values in terms.items()
        }
        record["train/examples_per_second"] = self._examples / seconds
        record["train/bad_steps"] = self._bad_steps
        record["train/compilations"] = self.compiled.programs
        record["train/recompilations"] = self.recompilations
        self._pending, self._examples, self._since = [], 0, time.perf_counter()
        self.write(step, record)
        for task in per_task:
            self._latest_loss[task] = record[f"train/{task}/loss"]
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
        self.compiled.close()
        if self._folder != self._workdir:
            self._folder.rmtree()


def _cause(logs: Mapping[str, np.ndarray | float]) -> str:
    """What was not finite in a bad step; "" of a good one."""
    if not logs.get("bad_step", False):
        return ""
    if logs.get("bad_costs", False):
        return "the matching costs (logits, boxes or target boxes) are"
    return "the gradient is" if np.isfinite(logs["loss"]) else "the loss is"


def _step_of(line: str) -> int:
    try:
        return json.loads(line)["step"]
    except (ValueError, KeyError):  # a line cut off by a crash
        return np.iinfo(np.int64).max
