"""What a run tells: a progress bar, one JSON-lines file of numbers, TensorBoard scalars; and the
events and the state that `journal.py` writes for programs."""

import collections
import contextlib
import io
import json
import pathlib
import tempfile
import time
from collections.abc import Callable, Generator, Hashable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from etils import epath
from tqdm import tqdm

from unit_jax import paths
from unit_jax.runtime import distributed, memory
from unit_jax.runtime.journal import Journal
from unit_jax.settings import TrainSettings
from unit_jax.training import board, compilation
from unit_jax.training.spikes import Spikes

FILE = "metrics.jsonl"
_FLAGS = ("bad_step", "bad_costs")  # of a step's logs; the rest are numbers to be averaged
_SHOWN_IDS = 8


class TooManyBadSteps(FloatingPointError):
    """So many steps in a row changed nothing that the run ends.

    Attributes:
      step, task, cause, examples: of the last of them; the examples are this process's.
    """

    def __init__(self, count: int, step: int, task: str, cause: str, examples: list[str]):
        self.step, self.task, self.cause, self.examples = step, task, cause, examples
        super().__init__(
            f"{count} steps in a row changed nothing, the last at step {step}: {cause} not finite "
            f"({task}); resume from the newest checkpoint with a lower learning rate, or look for "
            "broken examples and leave them out (config.data.skip)"
        )


class _Step(NamedTuple):
    """One update that is not written yet."""

    step: int
    task: str
    logs: Mapping[str, jax.Array | float]
    rows: Sequence[int] | np.ndarray
    padding: float | None


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
      ids: (task, rows of its training split) -> ids of these examples.
      journal: for events; None = one of its own.
    """

    def __init__(
        self,
        workdir: epath.Path,
        start: int,
        settings: TrainSettings,
        ids: Callable[[str, Any], list[str]] = lambda task, rows: [str(r) for r in rows],
        journal: Journal | None = None,
    ):
        self._every, self._max_bad_steps = settings.log_every, settings.max_bad_steps
        self._ids, self._steps = ids, settings.steps
        self.journal = journal or Journal(workdir)
        first = distributed.is_first()
        self._workdir = self._folder = workdir
        if paths.is_remote(workdir):  # object stores append to no file
            self._folder = epath.Path(tempfile.mkdtemp())
            if first and (workdir / FILE).exists():
                (workdir / FILE).copy(self._folder / FILE)
        path, kept = self._folder / FILE, []
        if first and path.exists():
            kept = [line for line in map(_parsed, path.read_text().splitlines()) if line]
            kept = [line for line in kept if line["step"] <= start]
            paths.replace_text(path, "".join(json.dumps(line) + "\n" for line in kept))
        self._file = path.open("a") if first else io.StringIO()
        self._board = (
            board.Board(pathlib.Path(self._folder) / board.FOLDER, kept) if first else None
        )
        self._bar = tqdm(
            total=settings.steps,
            initial=start,
            unit="step",
            dynamic_ncols=True,
            smoothing=0.1,
            disable=not first,
        )
        self._pending: list[_Step] = []
        last = next((line for line in reversed(kept) if _BAD in line), {})
        self._bad_steps, self._bad_in_a_row = int(last.get(_BAD, 0)), 0
        self._spikes = Spikes()
        self._latest_loss: dict[str, float] = {}
        self._examples = 0
        self._since = time.perf_counter()
        self._seen: set[Hashable] = set()
        self.compiled = compilation.Counter()
        self.recompilations = 0

    def step(
        self,
        step: int,
        task: str,
        logs: Mapping[str, jax.Array | float],
        examples: int,
        rows: Sequence[int] | np.ndarray = (),
        padding: float | None = None,
    ) -> None:
        """Takes the logs of the update that made `step` the number of updates done.

        Args:
          rows: this process's examples, by their rows in the split.
          padding: share of the batch's pixels, or tokens, that is padding.
        """
        self._pending.append(_Step(step, task, logs, rows, padding))
        self._examples += examples
        self._bar.update()
        if step % self._every == 0:
            self.flush(step)

    @contextlib.contextmanager
    def program(self, name: Hashable) -> Generator[None]:
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
        all_logs = jax.device_get([pending.logs for pending in self._pending])
        for (at, task, _, rows, padding), logs in zip(self._pending, all_logs, strict=True):
            if padding is not None:
                per_task[task]["padding"].append(padding)
            if cause := _cause(logs):
                self._bad_steps += 1
                self._bad_in_a_row += 1
                self._tell_bad(at, task, cause, rows)
                continue
            self._bad_in_a_row = 0
            for name, value in logs.items():
                if name not in _FLAGS:
                    per_task[task][name].append(float(value))
            if "loss" in logs and (usual := self._spikes.of(task, float(logs["loss"]))):
                self._tell_spike(at, task, float(logs["loss"]), usual, rows)
        seconds = time.perf_counter() - self._since
        record: dict[str, Any] = {
            f"train/{task}/{name}": float(np.mean(values))
            for task, terms in per_task.items()
            for name, values in terms.items()
        }
        record["train/examples_per_second"] = self._examples / seconds
        record[_BAD] = self._bad_steps
        record |= {f"train/{name}": value for name, value in memory.in_use().items()}
        record["train/compilations"] = self.compiled.programs
        record["train/recompilations"] = self.recompilations
        self._pending, self._examples, self._since = [], 0, time.perf_counter()
        self.write(step, record)
        for task in per_task:
            self._latest_loss[task] = record.get(f"train/{task}/loss", float("nan"))
        self._bar.set_postfix_str(
            " ".join(f"{task} {loss:.3g}" for task, loss in self._latest_loss.items())
            + f" | {record['train/examples_per_second']:.0f} ex/s"
        )

    def write(self, step: int, record: Mapping[str, float]) -> None:
        """Adds one line to metrics.jsonl and its numbers to TensorBoard."""
        known = {name: value for name, value in record.items() if np.isfinite(value)}
        # A value that does not exist (an AP without objects of that size) is null, as JSON has it.
        line = {"step": step, "time": time.time(), **dict.fromkeys(record), **known}
        self._file.write(json.dumps(line) + "\n")
        self._file.flush()
        if self._board is not None:
            self._board.add(line)
        self.journal.status("training", step=step, steps=self._steps, **{**record, **known})

    def _tell_bad(self, step: int, task: str, cause: str, rows: Sequence[int] | np.ndarray) -> None:
        """One line on the terminal, one event with all ids; too many in a row are an error."""
        examples = self._ids(task, rows)
        self.journal.event("bad step", step=step, task=task, cause=cause, examples=examples)
        self.say(f"step {step} of {task} changed nothing: {cause} not finite{_listed(examples)}")
        if self._bad_in_a_row >= self._max_bad_steps:
            raise TooManyBadSteps(self._bad_in_a_row, step, task, cause, examples)

    def _tell_spike(
        self, step: int, task: str, loss: float, usual: float, rows: Sequence[int] | np.ndarray
    ) -> None:
        examples = self._ids(task, rows)
        self.journal.event(
            "loss spike", step=step, task=task, loss=loss, usual=usual, examples=examples
        )
        self.say(f"step {step} of {task}: loss {loss:.4g}, usually {usual:.4g}{_listed(examples)}")

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
        for folder in (self._folder, self._folder / board.FOLDER):
            to = self._workdir / folder.relative_to(self._folder)
            to.mkdir(parents=True, exist_ok=True)
            names = {path.name for path in folder.iterdir() if path.is_file()}
            for name in names:
                (folder / name).copy(to / name, overwrite=True)
            if folder.name == board.FOLDER:  # those of earlier sessions are in the new one
                for path in to.iterdir():
                    if path.name not in names and not path.is_dir():
                        path.unlink()

    def close(self) -> None:
        self._bar.close()
        self.sync()
        self._file.close()
        if self._board is not None:
            self._board.close()
        self.compiled.close()
        if self._folder != self._workdir:
            self._folder.rmtree()


_BAD = "train/bad_steps"


def _cause(logs: Mapping[str, np.ndarray | float]) -> str:
    """What was not finite in a bad step; "" of a good one."""
    if not logs.get("bad_step", False):
        return ""
    if logs.get("bad_costs", False):
        return "the matching costs (logits, boxes or target boxes) are"
    if np.isfinite(logs["loss"]):
        return "the gradient is"
    terms = [name for name in logs if name not in (*_FLAGS, "loss", "grad_norm")]
    bad = [name for name in terms if not np.all(np.isfinite(logs[name]))]
    return f"the loss (its term {bad[0]}) is" if bad else "the loss is"


def _listed(examples: list[str]) -> str:
    if not examples:
        return ""
    more = f" and {len(examples) - _SHOWN_IDS} more" if len(examples) > _SHOWN_IDS else ""
    return f"; examples {', '.join(examples[:_SHOWN_IDS])}{more}"


def _parsed(line: str) -> dict[str, Any] | None:
    """A line of metrics.jsonl; None of one cut off by a crash."""
    try:
        record = json.loads(line)
        return record if isinstance(record["step"], int) else None
    except (ValueError, KeyError, TypeError):
        return None
