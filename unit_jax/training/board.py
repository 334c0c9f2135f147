"""TensorBoard files made of the lines of metrics.jsonl, so that both hold the same.

At the start of a session one new file gets the lines that are there already and takes the place of
older ones; each line written later is on disk when `add` returns. Whenever a process is killed,
TensorBoard lacks at most the line that was being written, and the next session adds that.
"""

import os
import pathlib
import socket
import time
from collections.abc import Iterable, Mapping
from typing import Any

from tensorboardX.proto import event_pb2, summary_pb2
from tensorboardX.record_writer import RecordWriter

FOLDER = "tensorboard"
KEYS = ("step", "time")  # of a line; all others are values


class Board:
    """One event file.

    Args:
      folder: gets the file; event files of earlier sessions are removed.
      lines: of metrics.jsonl, parsed.
    """

    def __init__(self, folder: pathlib.Path, lines: Iterable[Mapping[str, Any]] = ()):
        folder.mkdir(parents=True, exist_ok=True)
        older = list(folder.glob("events.out.tfevents.*"))
        name = f"events.out.tfevents.{time.time():.6f}.{socket.gethostname()}"
        new = folder / f".{name}"
        self._writer = RecordWriter(str(new))
        self._write(event_pb2.Event(wall_time=time.time(), file_version="brain.Event:2"))
        for line in lines:
            self._write(_event(line))
        self._writer.flush()
        os.replace(new, folder / name)
        for path in older:
            path.unlink()
        for path in folder.glob(".events.out.tfevents.*"):  # of sessions killed just above
            path.unlink()

    def add(self, line: Mapping[str, Any]) -> None:
        self._write(_event(line))
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()

    def _write(self, event: event_pb2.Event) -> None:
        self._writer.write(event.SerializeToString())


def _event(line: Mapping[str, Any]) -> event_pb2.Event:
    """All values of a line; those that do not exist (null) are left out."""
    values = [
        summary_pb2.Summary.Value(tag=name, simple_value=value)
        for name, value in line.items()
        if name not in KEYS and value is not None
    ]
    return event_pb2.Event(
        wall_time=line.get("time") or time.time(),
        step=line["step"],
        summary=summary_pb2.Summary(value=values),
    )
