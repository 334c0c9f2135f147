"""Pickles as hostile files hold them, in every file that PyTorch writes."""

import pickle
import tarfile
import zipfile
from pathlib import Path

import numpy as np


class Call:
    """Pickles to a call of `function`."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


def write_zip(path: Path, program: bytes):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", program)
        archive.writestr("archive/data/0", np.arange(4, dtype=np.float32).tobytes())


def write_legacy(path: Path, program: bytes):
    system = {"protocol_version": 1001, "little_endian": True, "type_sizes": {}}
    head = (pickle.dumps(x, 2) for x in (0x1950A86A20F9469CFC6C, 1001, system))
    path.write_bytes(b"".join(head) + program + pickle.dumps([], 2))


def write_tar(path: Path, program: bytes):
    inner = path.with_suffix(".inner")
    write_zip(inner, program)
    with tarfile.open(path, "w:gz") as archive:
        archive.add(inner, "unit.pth")


def write_plain(path: Path, program: bytes):
    path.write_bytes(program)


def tensor_program(size: int, offset: int, shape: tuple, stride: tuple, key: str = "0") -> bytes:
    """A pickle with one tensor over a storage that claims `size` floats."""
    put = [pickle.dumps(x, 2)[2:-1] for x in ("storage", key, "cpu", size, offset, shape, stride)]
    storage = b"(" + put[0] + b"ctorch\nFloatStorage\n" + b"".join(put[1:4]) + b"tQ"
    return (
        b"\x80\x02}"
        + pickle.dumps("w", 2)[2:-1]
        + b"ctorch._utils\n_rebuild_tensor_v2\n("
        + storage
        + b"".join(put[4:])
        + b"\x89NtRs."
    )
