"""What happened in a run, for programs: events.jsonl, and status.json with how it stands now.

Each line of events.jsonl has time, run, session, host, process and event; most have step. The first
process writes it; others write what only they know to events-<process>.jsonl. status.json is
replaced whole, so that a reader never sees half of it. Remote folders get status.json only.
"""

import json
import os
import socket
import time
import uuid
from typing import Any

import jax
from etils import epath

from unit_jax import paths
from unit_jax.runtime import distributed

EVENTS, STATUS = "events.jsonl", "status.json"


class Journal:
    """Writes both files; never fails a run: what cannot be written is left out.

    Attributes:
      run: id of the run, the same after each resume.
      session: id of this process's part of it.
    """

    def __init__(self, workdir: epath.Path):
        self._workdir = workdir
        self.session = uuid.uuid4().hex[:12]
        self.run = str(read_status(workdir).get("run") or self.session)
        self._who = dict(
            run=self.run,
            session=self.session,
            host=socket.gethostname(),
            process=jax.process_index(),
        )
        self._status: dict[str, Any] = dict(self._who, pid=os.getpid(), began=time.time())

    def event(self, event: str, **fields: Any) -> None:
        """Adds an event as a line."""
        name = EVENTS
        if not distributed.is_first():
            name = EVENTS.replace(".", f"-{jax.process_index()}.")
        line = json.dumps({"time": time.time(), **self._who, "event": event, **fields})
        if not paths.is_remote(self._workdir):
            _try(lambda: _append(self._workdir / name, line))

    def status(self, state: str, **fields: Any) -> None:
        """How the run stands: state is starting, compiling, training, evaluating, saving,
        reporting, stopped, failed or finished; fields stay until they are given again."""
        self._status.update(fields, state=state, time=time.time())
        if distributed.is_first():
            _try(
                lambda: paths.replace_text(self._workdir / STATUS, json.dumps(self._status) + "\n")
            )


def read_status(workdir: epath.Path) -> dict[str, Any]:
    """status.json of a working folder; {} if there is none."""
    try:
        status = json.loads((epath.Path(workdir) / STATUS).read_text())
    except Exception:  # absent, cut off, a cloud that does not answer: nothing is known
        return {}
    return status if isinstance(status, dict) else {}


def _append(path: epath.Path, line: str) -> None:
    with path.open("a") as file:
        file.write(line + "\n")


def _try(write) -> None:
    try:
        write()
    except Exception:  # a full disk must not end a run for its journal
        pass
