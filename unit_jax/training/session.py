"""What stands around a training loop: lock, requests to stop, watchdog, journal, profiler."""

import contextlib
import signal
import sys
import threading
from collections.abc import Generator

import jax
from etils import epath

from unit_jax.runtime import (
    checkpoint_folder,
    checkpoints,
    distributed,
    exits,
    lock,
    stopping,
    watchdog,
)
from unit_jax.runtime.journal import Journal
from unit_jax.settings import TrainSettings

_PROFILED_STEPS = 10


class Session:
    """The guards of one process's part of a run; use `guarded`.

    Attributes:
      journal: for events and the status.
    """

    def __init__(self, workdir: epath.Path, held: lock.Lock | None):
        self.journal = Journal(workdir)
        self._lock = held

    def before_saving(self) -> None:
        """The folder must still be this run's.

        Raises:
          lock.Taken: it is not.
        """
        with distributed.together():
            if self._lock is not None:
                self._lock.check()


@contextlib.contextmanager
def guarded(workdir: epath.Path, settings: TrainSettings) -> Generator[Session]:
    """Holds the working folder, ends at once with one line when asked to, watches that the run
    moves, and notes how it ends.

    Raises:
      lock.Taken: another run holds the folder.
      checkpoints.NotWritten: the disk of the folder is full.
    """
    held = lock.Lock(workdir) if distributed.is_first() else None
    with (
        stopping.handled("before the first step", lambda: checkpoint_folder.what_is_safe(workdir)),
        contextlib.ExitStack() as stack,
    ):
        with distributed.together():
            if held is not None:
                stack.enter_context(held)
        session = Session(workdir, held)
        stack.enter_context(watchdog.Watchdog(settings.stuck_report, settings.stuck_limit))
        try:
            yield session
        except BaseException as error:
            if exits.is_full(error):
                error = checkpoints.NotWritten(
                    f"what a run writes beside checkpoints could not be written to {workdir} "
                    f"({error}); {checkpoint_folder.what_is_safe(workdir)}; make room first"
                )
            told, code = str(error).partition("\n")[0], exits.of(error)
            session.journal.event("failed", error=told, kind=type(error).__name__, exit=code)
            session.journal.status("failed", error=told, exit=code)
            raise error


class Profiler:
    """Traces some steps for TensorBoard's profiler: from `at` on, and whenever SIGUSR1 comes.

    Args:
      folder: gets `profile/`.
      at: number of updates before the first traced step; 0 = none.
    """

    def __init__(self, folder: epath.Path, at: int):
        self._folder, self._at = folder / "profile", at
        self._asked = threading.Event()
        self._until: int | None = None
        self._before = None

    def __enter__(self) -> "Profiler":
        if threading.current_thread() is threading.main_thread():
            self._before = signal.signal(signal.SIGUSR1, lambda *_: self._asked.set())
        return self

    def __exit__(self, *_) -> None:
        if self._until is not None:
            jax.profiler.stop_trace()
        if self._before is not None:
            signal.signal(signal.SIGUSR1, self._before)

    def step(self, step: int) -> None:
        """So many updates are done."""
        if self._until is not None and step >= self._until:
            jax.profiler.stop_trace()
            self._until = None
            print(f"a trace of {_PROFILED_STEPS} steps is in {self._folder}", file=sys.stderr)
        elif self._until is None and (self._asked.is_set() or (self._at and step == self._at)):
            self._asked.clear()
            jax.profiler.start_trace(str(self._folder))
            self._until = step + _PROFILED_STEPS
