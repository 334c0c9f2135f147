"""One run at a time in a working folder: a lock file that says who holds it.

`<workdir>/run.lock` is JSON: host, pid, when the process began, boot id, since when the lock is
held, and a sign of life that is renewed. Where the kernel knows `flock` it decides on one host, and
forgets a process the moment it dies. Between hosts, and in buckets, the sign of life decides.
"""

import contextlib
import fcntl
import json
import os
import pathlib
import socket
import threading
import time
import uuid
from typing import Any

from etils import epath

from unit_jax import paths
from unit_jax.runtime import exits

FILE = "run.lock"
BEAT_SECONDS = 20  # between signs of life
STALE_SECONDS = 180  # without one the holder on another host counts as dead


class Taken(ValueError):
    """Another run holds the working folder."""

    exit_code = exits.TAKEN


class Lock:
    """Holds a working folder from `with` on, until its end or the process's.

    Args:
      workdir: an existing folder, or a bucket's.

    Raises (by `with`):
      Taken: another run holds it; the message says who, since when, and how to take it over.
    """

    def __init__(self, workdir: epath.Path):
        self._path = workdir / FILE
        self._remote = paths.is_remote(workdir)
        self._file = None
        self._own = {
            "token": uuid.uuid4().hex,
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "process_began": _began(os.getpid()),
            "boot": _boot(),
            "since": time.time(),
        }
        self._done = threading.Event()
        self._thread: threading.Thread | None = None

    def __enter__(self) -> "Lock":
        is_free = not self._remote and self._flock()
        holder = self._read()
        if holder and not (is_free and holder.get("host") == self._own["host"]):
            if _is_alive(holder, self._own):
                self._let_go()
                raise Taken(self._told(holder))
        self._write()
        if (holder := self._read()) and holder.get("token") != self._own["token"]:
            self._let_go()  # somebody else wrote at the same moment
            raise Taken(self._told(holder))
        self._thread = threading.Thread(target=self._beat, daemon=True, name="lock")
        self._thread.start()
        return self

    def __exit__(self, *_) -> None:
        self._done.set()
        if self._thread is not None:
            self._thread.join()
        with contextlib.suppress(OSError):
            if (self._read() or {}).get("token") == self._own["token"]:
                self._path.unlink(missing_ok=True)
        self._let_go()

    def check(self) -> None:
        """Before something is written that another run would write too.

        Raises:
          Taken: this process was silent for so long that another one took the folder over.
        """
        holder = self._read()
        if holder and holder.get("token") != self._own["token"]:
            raise Taken(
                f"{self._path.parent} was taken over by {_who(holder)}, as this process (pid "
                f"{self._own['pid']} on {self._own['host']}) gave no sign of life; it stops here"
            )

    def _flock(self) -> bool:
        """Whether the kernel vouches that no other process of this host holds it.

        Raises:
          Taken: another one does.
        """
        while True:
            file = open(self._path, "a+")
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                file.close()
                raise Taken(self._told(self._read())) from None
            except OSError:  # a file system without such locks
                file.close()
                return False
            with contextlib.suppress(FileNotFoundError):
                if os.fstat(file.fileno()).st_ino == os.stat(self._path).st_ino:
                    self._file = file
                    return True
            file.close()  # its holder has just removed it

    def _let_go(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None

    def _read(self) -> dict[str, Any] | None:
        """What the file says; None where nobody is named."""
        try:
            holder = json.loads(self._path.read_text() or "null")
        except FileNotFoundError:
            return None
        except ValueError:  # half of it: somebody is writing it now, or died there
            return None
        return holder if isinstance(holder, dict) else None

    def _write(self) -> None:
        """In place: the kernel's lock is on this very file."""
        self._path.write_text(json.dumps({**self._own, "alive": time.time()}) + "\n")

    def _beat(self) -> None:
        while not self._done.wait(BEAT_SECONDS):
            with contextlib.suppress(Exception):  # a file system away for a moment: next time
                if (self._read() or self._own).get("token") != self._own["token"]:
                    return
                self._write()

    def _told(self, holder: dict[str, Any] | None) -> str:
        who = _who(holder) if holder else "another process"
        away = holder is not None and holder.get("host") != self._own["host"]
        minutes = f"wait {STALE_SECONDS // 60} minutes, or " if away else ""
        return (
            f"{self._path.parent} is in use by {who}; wait for that run, end it, or give another "
            f"--workdir; if it is dead for certain, {minutes}remove {self._path}, and start again"
        )


def _who(holder: dict[str, Any]) -> str:
    since = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(float(holder.get("since", 0))))
    return f"pid {holder.get('pid')} on {holder.get('host')} since {since}"


def _is_alive(holder: dict[str, Any], own: dict[str, Any]) -> bool:
    """Whether the process that a lock names can still be there."""
    if time.time() - float(holder.get("alive", 0)) > STALE_SECONDS:
        return False
    if holder.get("host") != own["host"]:
        return True
    if holder.get("boot") != own["boot"]:
        return False  # the machine was started again since
    began = _began(holder.get("pid"))
    return began is not None and began == holder.get("process_began")


def _boot() -> str:
    """Differs each time that a machine starts."""
    try:
        return pathlib.Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""


def _began(pid: Any) -> str | None:
    """When a process of this host began; None if there is none. Numbers are used again."""
    try:
        text = pathlib.Path(f"/proc/{int(pid)}/stat").read_text()
    except (OSError, TypeError, ValueError):
        return None
    return text.rpartition(")")[2].split()[19]
