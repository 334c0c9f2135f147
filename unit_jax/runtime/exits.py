"""How a run ends: its exit codes. The table for people is in docs/reliability.md."""

import errno

DONE = 0
ERROR = 1  # what was asked for cannot be done; one line says why
NUMBERS = 3  # too many steps in a row were not finite; a bundle tells which
DISK = 4  # something could not be written
STUCK = 5  # nothing moved for too long
TAKEN = 6  # another run holds the working folder
STOPPED = 130  # asked to stop: saved, the same command goes on
STOPPED_AT_ONCE = 143  # asked to stop before there was anything to save, or asked twice

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def of(error: BaseException) -> int:
    """The exit code of a run that an error ended; some errors have one of their own."""
    if is_full(error):
        return DISK
    if isinstance(error, FloatingPointError):
        return NUMBERS
    return getattr(error, "exit_code", ERROR)


def is_full(error: BaseException) -> bool:
    """Whether the error says that a disk, or the user's quota, is full."""
    return isinstance(error, OSError) and error.errno in _FULL
