"""Watches that a run moves: a stuck loader, callback or exchange is told of, and ended.

One thread looks at the time since the last sign of life. After `report` seconds it writes all
threads' stacks to standard error, once; after `limit` it ends the process with exit code STUCK.
A second guard in native code, which needs no Python lock, does the same a minute later, with exit
code 1, as it can give no other.
"""

import faulthandler
import os
import sys
import threading
import time

from unit_jax.runtime import exits

_GRACE_SECONDS = 60


class Watchdog:
    """Use it in a `with` statement, and call `alive` whenever something has moved.

    Args:
      report, limit: seconds without a sign of life; 0 = never.
    """

    def __init__(self, report: float, limit: float):
        self._report, self._limit = report, limit
        self._doing, self._since = "starting", time.monotonic()
        self._told = False
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True, name="watchdog")

    def __enter__(self) -> "Watchdog":
        global _current
        _current = self
        self.alive("starting")
        if self._report or self._limit:
            self._thread.start()
        return self

    def __exit__(self, *_) -> None:
        global _current
        _current = None
        self._done.set()
        faulthandler.cancel_dump_traceback_later()

    def alive(self, doing: str) -> None:
        """Something has moved; `doing` is what comes now."""
        now = time.monotonic()
        if self._limit and (now - self._since > 1 or self._doing == "starting"):
            seconds = self._limit + _GRACE_SECONDS
            faulthandler.dump_traceback_later(seconds, exit=True, file=sys.__stderr__ or 2)
        self._doing, self._since, self._told = doing, now, False

    def _watch(self) -> None:
        while not self._done.wait(min(filter(None, (self._report, self._limit, 4))) / 4):
            silent = time.monotonic() - self._since
            if self._limit and silent > self._limit:
                self._tell(silent, f"exit code {exits.STUCK}")
                os._exit(exits.STUCK)
            if self._report and silent > self._report and not self._told:
                self._told = True
                end = f"it ends after {self._limit:.0f} s" if self._limit else "it goes on waiting"
                self._tell(silent, end)

    def _tell(self, silent: float, end: str) -> None:
        print(
            f"\nnothing has moved for {silent:.0f} s ({self._doing}); {end}; the stacks of all "
            "threads:",
            file=sys.stderr,
            flush=True,
        )
        faulthandler.dump_traceback(file=sys.__stderr__ or 2, all_threads=True)


_current: Watchdog | None = None


def alive(doing: str) -> None:
    """A sign of life from work that does not know who watches, if anybody does."""
    if _current is not None:
        _current.alive(doing)
