"""Many processes: how they find each other, what they must agree on, and what is said when one of
them is lost.

Every process runs the same program on its own devices; the first one (index 0) alone writes logs
and reports. All functions here do nothing in a run of one process.
"""

import contextlib
import functools
import hashlib
import json
import os
import re
import socket
import subprocess
import sys
import traceback
import uuid
import warnings
from collections.abc import Generator, Mapping
from typing import Any

import jax
import numpy as np
from etils import epath
from jax.experimental import multihost_utils

from unit_jax import paths
from unit_jax.runtime import exits, last_words, rendezvous
from unit_jax.settings import DistributedSettings

PATIENCE_SECONDS = 300  # for all processes to start
HEARTBEAT_SECONDS = 20  # without a sign of life for so long a process counts as lost


def initialize(settings: DistributedSettings) -> None:
    """Joins the processes of a run; call it before anything touches a device.

    With `coordinator` the settings say who takes part. Without it Cloud TPU pods, Slurm and Open
    MPI tell by themselves; where none of them started this process, it is alone.

    Raises:
      ValueError: the settings are incomplete, or the processes did not meet.
    """
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    join = functools.partial(
        jax.distributed.initialize,
        heartbeat_timeout_seconds=HEARTBEAT_SECONDS,
        initialization_timeout=PATIENCE_SECONDS,
    )
    if settings.coordinator:
        if not 0 <= settings.process < settings.processes:
            raise ValueError(
                f"config.distributed: process={settings.process} of processes="
                f"{settings.processes}; number the processes from 0, and give each its own number "
                "and all the same coordinator, the HOST:PORT of process 0"
            )
        if not re.fullmatch(r".+:\d+", settings.coordinator):
            raise ValueError(
                f"config.distributed.coordinator={settings.coordinator}: give HOST:PORT of process "
                "0, the same to all"
            )
        me = f"process {settings.process} of {settings.processes}"
        print(f"{me} meets the others at {settings.coordinator}", file=sys.stderr)
        try:
            rendezvous.meet(
                settings.coordinator, settings.processes, settings.process, PATIENCE_SECONDS
            )
            join(settings.coordinator, settings.processes, settings.process)
        except (OSError, RuntimeError) as error:
            raise ValueError(
                f"{me} did not meet the others at {settings.coordinator} "
                f"({' '.join(str(error).split())}); start all within {PATIENCE_SECONDS // 60} "
                "minutes, each with its own config.distributed.process, and give all the address "
                "of process 0, at a port that is free there and reachable from here"
            ) from error
        return
    tasks = os.environ.get("SLURM_STEP_NUM_TASKS") or os.environ.get("OMPI_COMM_WORLD_SIZE")
    if tasks == "1":
        return  # one task owns all devices of its node; jax would give it the first alone
    try:
        with warnings.catch_warnings(action="ignore"):  # of clusters whose packages are missing
            join()
    except ValueError:
        if tasks:
            raise
        # No cluster is detected.


def is_first() -> bool:
    """Whether this process writes what is written once."""
    return jax.process_index() == 0


def any_process(flag: bool) -> bool:
    """Whether the flag is set on any process; all of them must ask."""
    return bool(_gather(np.asarray(flag)).any())


@contextlib.contextmanager
def together() -> Generator[None]:
    """Makes an error on one process an error on all, so that none waits for another.

    Raises:
      ValueError: names the processes that have one.
      Exception: this process's own.
    """
    problem = None
    try:
        yield
    except Exception as error:  # whatever it is, the others must hear of it
        problem = error
    failed = np.flatnonzero(_gather(np.asarray(problem is not None)))
    if problem is not None:
        raise problem
    if len(failed):
        raise ValueError(f"process {_listed(failed)} cannot start; its own output says why")


def check_agreement(facts: Mapping[str, Any]) -> None:
    """All processes must know the same facts (JSON values by name).

    Raises:
      ValueError: names what differs, and on which processes.
    """
    # Processes of other code may know other facts, and would exchange arrays of another shape.
    _check_same({"list of settings (its code differs)": list(facts)})
    _check_same(facts)


def _check_same(facts: Mapping[str, Any]) -> None:
    digests = [
        hashlib.sha256(json.dumps(fact, sort_keys=True).encode()).digest()
        for fact in facts.values()
    ]
    gathered = _gather(np.frombuffer(b"".join(digests), np.uint8).reshape(len(digests), -1))
    different = (gathered != gathered[0]).any(-1)  # [processes, facts]
    if different.any():
        names = [name for name, found in zip(facts, different.any(0), strict=True) if found]
        raise ValueError(
            f"process {_listed(np.flatnonzero(different.any(1)))} has another "
            f"{', another '.join(names)} than process 0; start all with the same command, code, "
            "data and --workdir"
        )


def check_workdir(workdir: epath.Path) -> None:
    """Makes the working folder; every process must write there and see what the others write.

    Raises:
      ValueError: one of them cannot; names it.
    """
    token = _gather(np.frombuffer(uuid.uuid4().bytes, np.uint8))[0].tobytes().hex()
    names = [f".writable-{token}-{index}" for index in range(jax.process_count())]
    mine = workdir / names[jax.process_index()]
    remedy = "give all processes one --workdir that each of them can write, on shared storage"
    with together():
        try:
            if not paths.is_remote(workdir):  # a bucket has no folders, and should not be made here
                workdir.mkdir(parents=True, exist_ok=True)
            mine.write_text(socket.gethostname())
        except Exception as error:  # file systems and clouds raise many kinds
            where = "is there such a bucket? " if paths.is_remote(workdir) else ""
            raise ValueError(
                f"--workdir: {_me()} cannot write to {workdir} ({type(error).__name__}: {error}); "
                f"{where}{remedy}"
            ) from error
    try:
        with together():
            missing = [index for index, name in enumerate(names) if not (workdir / name).exists()]
            if missing:
                raise ValueError(
                    f"--workdir: {_me()} does not see in {workdir} what process "
                    f"{_listed(missing)} writes there; {remedy}"
                )
    finally:
        _gather(np.zeros(()))  # all have looked
        mine.unlink(missing_ok=True)


class LastWords:
    """Says one line when a process of many ends before its work is done, however it ends.

    A process that has lost another one may be ended from within native code, where Python has no
    say any more; so a helper process holds the line ready (see `last_words.py`). An exception
    inside this context ends the process at once: the usual end of a JAX process waits for all
    others, and they wait for this one. Alone, a process ends as ever.
    """

    def __init__(self, checkpoints: epath.Path):
        count, own = jax.process_count(), jax.process_index()
        self._others = f"process {1 - own}" if count == 2 else "another process"
        self._line = dict(
            process=f"process {own} of {count} ({socket.gethostname()})",
            step=None,
            cause=f"it was killed, or {self._others} was lost",
            checkpoints=str(checkpoints),
        )
        # To look into a bucket it needs packages; none of ours must stand in their way (-P).
        self._options = ["-P"] if paths.is_remote(checkpoints) else ["-S"]
        self._helper: subprocess.Popen | None = None

    def __enter__(self) -> "LastWords":
        if jax.process_count() > 1:
            self._helper = subprocess.Popen(
                [sys.executable, *self._options, last_words.__file__],
                stdin=subprocess.PIPE,
                text=True,
                start_new_session=True,  # what ends this process must not end it
            )
            self._say()
        return self

    def __exit__(self, kind, error, trace) -> None:
        if error is not None:
            self._end(error)
        elif self._helper is not None:
            self._helper.communicate("null\n")

    def step(self, step: int) -> None:
        """The last step that was done."""
        self._say(step=step)

    @contextlib.contextmanager
    def instead_of_waiting(self) -> Generator[None]:
        """Ends the process at once on an error inside.

        Enter it last of several contexts: leaving the others could wait for lost processes.
        """
        try:
            yield
        except BaseException as error:
            self._end(error)
            raise

    def _end(self, error: BaseException) -> None:
        if self._helper is None:
            return
        told = str(error).strip().partition("\n")[0] or type(error).__name__
        if reason := broken_exchange(error):
            told = f"{self._others} was lost ({reason})"
        elif isinstance(error, ValueError | FloatingPointError) or exits.is_full(error):
            print(f"error: {error}", file=sys.stderr)
        else:
            traceback.print_exception(error)
        self._say(cause=told)
        self._helper.communicate()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(exits.of(error))

    def _say(self, **changes: Any) -> None:
        self._line.update(changes)
        if self._helper is not None and self._helper.stdin is not None:
            self._helper.stdin.write(json.dumps(self._line) + "\n")
            self._helper.stdin.flush()


# How messages of XLA's runtime begin.
_STATUS = re.compile(
    r"(UNKNOWN|INTERNAL|UNAVAILABLE|ABORTED|CANCELLED|DEADLINE_EXCEEDED|FAILED_PRECONDITION)\b"
)


def broken_exchange(error: BaseException | None) -> str:
    """The runtime's message if the error, or one that caused it, is a failed exchange between
    processes; "" for any other error, and in a run of one process."""
    while error is not None and jax.process_count() > 1:
        told = str(error).strip().partition("\n")[0]
        if isinstance(error, jax.errors.JaxRuntimeError) and _STATUS.match(told):
            return told
        error = error.__cause__ or error.__context__
    return ""


def _gather(x: np.ndarray) -> np.ndarray:
    """[processes, ...]: what each process gave."""
    if jax.process_count() == 1:
        return x[None]
    return np.asarray(multihost_utils.process_allgather(x))


def gather_bytes(x: np.ndarray) -> np.ndarray:
    """[processes, ...]: what each process gave, of any dtype to the bit."""
    own = np.ascontiguousarray(x)
    gathered = _gather(own.reshape(-1).view(np.uint8))
    return np.ascontiguousarray(gathered).view(x.dtype).reshape(-1, *x.shape)


def _listed(indices) -> str:
    return ", ".join(map(str, indices))


def _me() -> str:
    return f"process {jax.process_index()} ({socket.gethostname()})"
