"""Working folders and checkpoints, on this machine or in a bucket (gs://)."""

import contextlib
import os
from collections.abc import Generator

from etils import epath


def is_remote(path: epath.PathLike) -> bool:
    """Whether the path lies in a bucket (gs://...)."""
    return "://" in os.fspath(path)


def absolute(path: epath.PathLike) -> epath.Path:
    """The path from the root; epath's `resolve` takes gs://BUCKET for a folder's name."""
    path = epath.Path(path)
    return path if is_remote(path) else path.resolve()


def from_flag(flag: str, value: str) -> epath.Path:
    """The value of a flag.

    Raises:
      ValueError: it lies where nothing of ours can be written.
    """
    if is_remote(value) and not value.startswith("gs://"):
        raise ValueError(
            f"{flag}={value}: only gs:// and folders of this machine are known; mount it, and give "
            "the folder"
        )
    return epath.Path(value)


def replace_text(path: epath.Path, text: str) -> None:
    """Writes a file whole or not at all, also if the process is killed meanwhile."""
    if is_remote(path):  # objects are replaced whole anyway
        path.write_text(text)
        return
    new = path.with_name(f".{path.name}.new")
    new.write_text(text)
    new.replace(path)


def check_local(flag: str, value: epath.PathLike) -> None:
    """For commands that read and write files of this machine.

    Raises:
      ValueError: the value is a bucket's.
    """
    if is_remote(value):
        raise ValueError(
            f"{flag}={value}: this command works on files of this machine; mount the bucket "
            "(gcsfuse --implicit-dirs BUCKET /mnt/BUCKET), or copy (gcloud storage cp -r)"
        )


@contextlib.contextmanager
def reaching(flag: str, path: epath.Path) -> Generator[None]:
    """Whatever a file system or a cloud raises becomes one error that names the flag.

    Raises:
      ValueError: this one, or that of the block.
    """
    try:
        yield
    except ValueError:
        raise
    except Exception as error:  # file systems and clouds raise many kinds
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        remedy = "may this user read and write there?"
        if is_remote(path):
            remedy = (
                "gs:// needs `pip install -e .[gcs]`, a bucket that exists, and credentials for it "
                "(gcloud auth application-default login)"
            )
        raise ValueError(f"{flag}: {path} cannot be reached ({reason}); {remedy}") from error
