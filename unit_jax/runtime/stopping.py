"""Ctrl-C and SIGTERM: most of a run ends at once with one line; training saves first.

A request is seen by a thread of its own, so that a long compilation in native code cannot hide it.
Only one set of handlers is there at a time; `handled` installs it, and does nothing where it cannot
(in another thread than the main one) or need not (inside another `handled`).
"""

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Callable, Generator

from unit_jax.runtime import exits

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interrupted(Exception):
    """A stop was asked for in the middle of work that can be given up."""


def _nothing() -> str:
    return "nothing was lost"


class _State:
    """What a request does now."""

    def __init__(self):
        self.asked = threading.Event()
        self.installed = False
        self.doing = ""  # what would be cut off at once; "" while a run saves before it stops
        self.safe: Callable[[], str] = _nothing


_state = _State()


@contextlib.contextmanager
def handled(doing: str, safe: Callable[[], str] | None = None) -> Generator[None]:
    """Inside, a request ends the process at once with exit code STOPPED_AT_ONCE and one line.

    Args:
      doing: what is cut off.
      safe: tells what is left, such as the newest checkpoint.
    """
    if _state.installed or threading.current_thread() is not threading.main_thread():
        before_safe, _state.safe = _state.safe, safe or _state.safe
        try:
            with at_once(doing):
                yield
        finally:
            _state.safe = before_safe
        return
    _state.asked.clear()
    _state.safe = safe or _nothing
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    before = {number: signal.signal(number, _noted) for number in SIGNALS}
    wakeup = signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
    threading.Thread(target=_watch, args=(reading,), daemon=True, name="signals").start()
    _state.installed = True
    try:
        with at_once(doing):
            yield
    finally:
        _state.installed = False
        signal.set_wakeup_fd(wakeup)
        for number, handler in before.items():
            signal.signal(number, handler)
        os.close(writing)  # ends the thread, which closes the other end


@contextlib.contextmanager
def at_once(doing: str) -> Generator[None]:
    """Inside, a request cuts this off."""
    before, _state.doing = _state.doing, doing
    if _state.installed and _state.asked.is_set():
        _end("a request to stop")
    try:
        yield
    finally:
        _state.doing = before


@contextlib.contextmanager
def graceful() -> Generator[threading.Event]:
    """Inside, the first request only sets the event that this yields; the second ends at once."""
    with handled("") if not _state.installed else at_once(""):
        yield _state.asked


def check() -> None:
    """For long work between two steps: gives it up if a stop was asked for.

    Raises:
      Interrupted: it was.
    """
    if _state.installed and not _state.doing and _state.asked.is_set():
        raise Interrupted()


def _noted(number: int, frame: object) -> None:
    """Python writes the signal's number to the pipe if it has a handler of ours."""


def _watch(reading: int) -> None:
    while number := os.read(reading, 1):
        name = signal.Signals(number[0])
        if name not in SIGNALS:
            continue
        if _state.doing or _state.asked.is_set():
            _end(name.name)
        _state.asked.set()
        print(f"\n{name.name}: the run saves after the step at hand and stops", file=sys.stderr)
    os.close(reading)


def _end(name: str) -> None:
    doing = _state.doing or "before the run was saved"
    print(f"\nstopped by {name} {doing}; {_state.safe()}", file=sys.stderr, flush=True)
    sys.stdout.flush()
    os._exit(exits.STOPPED_AT_ONCE)
