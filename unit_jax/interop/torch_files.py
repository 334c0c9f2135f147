"""Reads and writes PyTorch checkpoints and .safetensors files as NumPy arrays, without PyTorch.

What a pickle names is never run, see `torch_pickle.py`.

Formats: PyTorch's zip format (1.6 and later), the stacked pickles before it, safetensors, and a tar
(compressed or not) that holds one of these.
"""

import contextlib
import dataclasses
import io
import json
import math
import os
import re
import shutil
import struct
import tarfile
import tempfile
import zipfile
from collections.abc import Container, Generator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import safetensors.numpy
from etils import epath

from unit_jax import paths
from unit_jax.interop.torch_pickle import DTYPES, STORAGES, Machine, Refused

_SAFETENSORS = {
    "F64": "float64",
    "F32": "float32",
    "F16": "float16",
    "BF16": "bfloat16",
    "F8_E4M3": "float8_e4m3fn",
    "F8_E5M2": "float8_e5m2",
    "I64": "int64",
    "I32": "int32",
    "I16": "int16",
    "I8": "int8",
    "U64": "uint64",
    "U32": "uint32",
    "U16": "uint16",
    "U8": "uint8",
    "BOOL": "bool",
    "C64": "complex64",
}
_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
_LEGACY_PROTOCOL = 1001
_LONGEST_REASON = 300
# A file may unfold to so many times its size, and to so much in any case: PyTorch packs nothing,
# and weights that gzip packs shrink by a tenth.
_MOST_UNFOLDED, _ALWAYS_UNFOLDED = 20, 64 * 2**20
_SUFFIXES = (".pth", ".pt", ".ckpt", ".bin", ".safetensors")


@dataclasses.dataclass(frozen=True)
class StateDict:
    """The weights in a checkpoint file, by name, and what a user should know of the rest."""

    arrays: dict[str, np.ndarray]
    notes: tuple[str, ...] = ()


def load_state_dict(path: str | os.PathLike) -> dict[str, np.ndarray]:
    """The weights in a checkpoint file, by name; see `open_state_dict`."""
    return open_state_dict(path).arrays


def open_state_dict(path: str | os.PathLike) -> StateDict:
    """The weights in a checkpoint file, by name.

    Takes the entry "model" of a file that holds one (as MMF and DETR write beside optimiser state
    and arguments), or "state_dict" (PyTorch Lightning, whose modules call the network `model`, so
    that prefix is dropped), else the file's own dict. An averaged copy of the weights that stands
    beside them ("ema") is not taken; a note says so.

    Args:
      path: .pth, .pt, .ckpt, .bin or .safetensors file, or a tar that holds one.

    Returns:
      Names and arrays as stored (any dtype; bfloat16 as ml_dtypes.bfloat16). Arrays may be
      read-only, strided views, and share memory where the file's tensors share a storage.

    Raises:
      ValueError: damaged file, unknown format, refused object, or entries that are no tensors;
        the message names the file.
    """
    content, notes = read(path), []
    if isinstance(content, Mapping):
        nested = [key for key in _NESTED if isinstance(content.get(key), Mapping)]
        averaged = [key for key, value in content.items() if _is_averaged(key, value)]
        if nested:
            notes = [f"its averaged weights ({key!r}) were left aside" for key in averaged]
            content = content[nested[0]]
            if nested[0] == "state_dict":
                content = {str(key).removeprefix("model."): x for key, x in content.items()}
    if not isinstance(content, Mapping):
        raise ValueError(f"{path}: holds a {type(content).__name__}, expected a dict of tensors")
    others = [str(key)[:60] for key, value in content.items() if not isinstance(value, np.ndarray)]
    if others or not content:
        listed = ", ".join(others[:8]) + (", ..." if len(others) > 8 else "")
        raise ValueError(
            f"{path}: not a state dict: "
            + (f"these entries are no tensors: {listed}" if others else "it is empty")
        )
    return StateDict({str(key): value for key, value in content.items()}, tuple(notes))


# Where checkpoints keep their weights beside other things.
_NESTED = ("model", "state_dict", "model_state_dict")


def _is_averaged(key: Any, value: Any) -> bool:
    return isinstance(value, Mapping) and "ema" in re.split(r"[^a-z]+", str(key).lower())


def read(path: str | os.PathLike) -> Any:
    """The whole content of a checkpoint file: containers, numbers and strings, tensors as arrays.

    An argparse.Namespace becomes a dict. See `load_state_dict` for formats and errors.
    """
    path = epath.Path(path)
    if not path.is_file():
        raise ValueError(f"{path}: {'a folder, not a file' if path.is_dir() else 'no such file'}")
    try:
        with _on_disk(path) as file:
            return _read(file)
    except Refused as error:
        raise Refused(f"{path}: {error}") from None
    except Exception as error:  # a damaged file can make any of the readers stumble anywhere
        reason = f"lacks {error}" if isinstance(error, KeyError) else str(error)
        reason = " ".join(reason.split()) or type(error).__name__
        if len(reason) > _LONGEST_REASON:  # it may quote the file
            reason = reason[:_LONGEST_REASON] + "..."
        raise ValueError(f"{path}: damaged or not a checkpoint: {reason}") from error


@contextlib.contextmanager
def _on_disk(path: epath.Path) -> Generator[Path]:
    """The file itself, or a temporary copy of one in a bucket."""
    if not paths.is_remote(path):
        yield Path(path)
        return
    with tempfile.TemporaryDirectory() as folder:
        yield Path(path.copy(Path(folder, path.name)))


# ---- zip, stacked pickles, safetensors, tar


def _read(path: Path) -> Any:
    with open(path, "rb") as file:
        head = file.read(9)
    if head[8:9] == b"{":  # first: the length before it may begin with the others' marks
        return _read_safetensors(path)
    if head.startswith(b"PK"):
        return _read_zip(path)
    if head.startswith(b"\x80"):
        return _read_legacy(path)
    if path.suffix == ".safetensors":
        return _read_safetensors(path)
    if tarfile.is_tarfile(path):
        with _tar_member(path) as member:
            return _read(member)
    raise ValueError(
        "neither a PyTorch checkpoint, nor safetensors, nor a tar" if head else "it is empty"
    )


def _read_zip(path: Path) -> Any:
    with zipfile.ZipFile(path) as archive:  # its reads check every entry's CRC
        names = [name for name in archive.namelist() if re.fullmatch(r"[^/]*/data\.pkl", name)]
        if len(names) != 1:
            raise ValueError("the zip holds no data.pkl, so PyTorch did not write it")
        folder = names[0].removesuffix("data.pkl")
        limit = _limit(path)

        def unpack(name: str) -> bytes:
            nonlocal limit
            limit -= archive.getinfo(name).file_size
            if limit < 0:
                raise Refused("refused: it unfolds to many times its size")
            return archive.read(name)

        order = f"{folder}byteorder"
        if order in archive.namelist() and unpack(order) != b"little":
            raise ValueError("its numbers are not little-endian")
        storages: dict[str, np.ndarray] = {}

        def storage(dtype: np.dtype, key: str, size: int) -> np.ndarray:
            if key not in storages:
                data = unpack(f"{folder}data/{key}")
                if len(data) != size * dtype.itemsize:
                    raise ValueError(f"storage {key} has {len(data)} bytes, not {size} {dtype}")
                storages[key] = np.frombuffer(data, dtype)
            if storages[key].dtype != dtype:
                raise ValueError(f"storage {key} is used both as {storages[key].dtype} and {dtype}")
            return storages[key]

        return Machine(storage).run(io.BytesIO(unpack(names[0])))


def _read_legacy(path: Path) -> Any:
    limit = path.stat().st_size
    storages: dict[str, np.ndarray] = {}

    def storage(dtype: np.dtype, key: str, size: int) -> np.ndarray:
        # The numbers follow the pickle, so an empty array stands in until they are read.
        nonlocal limit
        if key not in storages:
            limit -= size * dtype.itemsize
            if limit < 0:
                raise ValueError(f"storage {key} of {size} {dtype} does not fit into the file")
            storages[key] = np.empty(size, dtype)
        return storages[key]

    def nothing(*_):
        raise ValueError("a storage where none belongs")

    with open(path, "rb") as file:
        magic = Machine(nothing).run(file)
        if magic != _LEGACY_MAGIC:
            raise ValueError("a pickle, but not one that PyTorch wrote")
        protocol, system = (Machine(nothing).run(file) for _ in range(2))
        if protocol != _LEGACY_PROTOCOL or not system.get("little_endian"):
            raise ValueError(f"protocol {protocol} or its byte order is not supported")
        content = Machine(storage).run(file)
        keys = Machine(nothing).run(file)
        if sorted(keys) != sorted(storages):
            raise ValueError("its list of storages does not fit its tensors")
        for key in keys:
            (size,) = struct.unpack("<q", file.read(8))
            data = file.read(storages[key].nbytes)
            if size != storages[key].size or len(data) != storages[key].nbytes:
                raise ValueError(f"storage {key} is cut off or has another size than announced")
            storages[key].view(np.uint8)[:] = np.frombuffer(data, np.uint8)
        if file.read(1):
            raise ValueError("there are bytes after its last storage")
    return content


def _read_safetensors(path: Path) -> dict[str, np.ndarray]:
    data = np.memmap(path, np.uint8, "r") if path.stat().st_size > 8 else np.empty(0, np.uint8)
    (length,) = struct.unpack("<Q", bytes(data[:8]))
    if length > data.size - 8:
        raise ValueError("its header is cut off")
    header = json.loads(bytes(data[8 : 8 + length]))
    header.pop("__metadata__", None)
    data, arrays, end = data[8 + length :], {}, 0
    for name, entry in sorted(header.items(), key=lambda item: item[1]["data_offsets"]):
        dtype = np.dtype(DTYPES[_SAFETENSORS[entry["dtype"]]])
        shape, (start, stop) = tuple(entry["shape"]), entry["data_offsets"]
        if start != end or stop > data.size or stop - start != math.prod(shape) * dtype.itemsize:
            raise ValueError(f"the bytes of {name} are cut off or do not fit its shape {shape}")
        arrays[name] = np.array(data[start:stop]).view(dtype).reshape(shape)
        end = stop
    if end != data.size:
        raise ValueError("there are bytes that no tensor owns")
    return {name: arrays[name] for name in header}


@contextlib.contextmanager
def _tar_member(path: Path) -> Generator[Path]:
    """The one checkpoint of a tar as a temporary file."""
    with tarfile.open(path) as archive, tempfile.TemporaryDirectory() as folder:
        members, limit = [], _limit(path)
        for member in archive:  # to the end, so that a compressed tar's checksum is verified
            if member.offset_data + member.size > limit:
                raise Refused("refused: it unfolds to many times its size")
            if member.isfile() and member.name.endswith(_SUFFIXES):
                members.append(member.name)
                target = Path(folder, "checkpoint" + Path(member.name).suffix)
                content = archive.extractfile(member)
                assert content is not None  # a file has some
                with open(target, "wb") as file:
                    shutil.copyfileobj(content, file)
        if len(members) != 1:
            raise ValueError(
                f"the tar should hold one checkpoint, has: {', '.join(members) or '-'}"
            )
        while read := len(archive.fileobj.read(1 << 20)):
            limit -= read
            if limit < 0:
                raise Refused("refused: it unfolds to many times its size")
        yield target


def _limit(path: Path) -> int:
    """How many bytes the file may unfold to."""
    return max(_ALWAYS_UNFOLDED, _MOST_UNFOLDED * path.stat().st_size)


# ---- writing


def save_safetensors(
    path: str | os.PathLike,
    arrays: Mapping[str, np.ndarray],
    metadata: Mapping[str, str] = MappingProxyType({}),
) -> None:
    """Writes arrays to a .safetensors file, all of it or nothing.

    Args:
      path: file to write; its folder must exist.
      arrays: any shapes and strides, the dtypes of `_SAFETENSORS`.
      metadata: text to store beside them.

    Raises:
      ValueError: another dtype.
    """
    _check_dtypes(path, arrays, {np.dtype(DTYPES[name]) for name in _SAFETENSORS.values()})
    contiguous = {name: _contiguous(array) for name, array in arrays.items()}
    with _whole_file(path) as temporary:
        safetensors.numpy.save_file(contiguous, temporary, metadata=dict(metadata) or None)


def save_pth(path: str | os.PathLike, arrays: Mapping[str, np.ndarray]) -> None:
    """Writes a state dict in PyTorch's zip format, all of it or nothing.

    `torch.load(path, weights_only=True)` gives an OrderedDict of CPU tensors. An array object that
    stands under several names is stored once and shared, as PyTorch does.

    Raises:
      ValueError: a dtype that PyTorch's classic storages do not have.
    """
    storages = {np.dtype(DTYPES[dtype]): name for name, dtype in STORAGES.items()}
    _check_dtypes(path, arrays, storages)
    keys: dict[int, int] = {}  # id of an array -> its storage's number
    unique: list[np.ndarray] = []
    entries = []
    for name, array in arrays.items():
        if id(array) not in keys:
            keys[id(array)] = len(unique)
            unique.append(array)
        entries.append(
            _pickled(name) + _pickled_tensor(array, storages[array.dtype], keys[id(array)])
        )
    # An OrderedDict, then its items set in one go.
    program = b"\x80\x02ccollections\nOrderedDict\n)R(" + b"".join(entries) + b"u."
    with _whole_file(path) as temporary, zipfile.ZipFile(temporary, "w") as archive:
        folder = re.sub(r"\W", "_", Path(path).stem)
        archive.writestr(f"{folder}/data.pkl", program)
        archive.writestr(f"{folder}/byteorder", "little")
        for key, array in enumerate(unique):
            archive.writestr(f"{folder}/data/{key}", _contiguous(array).tobytes())
        archive.writestr(f"{folder}/version", "3\n")


def _pickled(value: str | int | tuple[int, ...]) -> bytes:
    """Opcodes (protocol 2) that push a text, a number or a tuple of numbers."""
    if isinstance(value, str):
        data = value.encode()
        return b"X" + struct.pack("<I", len(data)) + data
    if isinstance(value, int):
        return b"\x8a\x08" + struct.pack("<q", value)
    return b"(" + b"".join(map(_pickled, value)) + b"t"


def _pickled_tensor(array: np.ndarray, storage: str, key: int) -> bytes:
    """Opcodes that call `torch._utils._rebuild_tensor_v2` on a storage of its own."""
    strides = tuple(math.prod(array.shape[i + 1 :]) for i in range(array.ndim))
    reference = (
        b"("
        + _pickled("storage")
        + f"ctorch\n{storage}\n".encode()
        + _pickled(str(key))
        + _pickled("cpu")
        + _pickled(array.size)
        + b"tQ"
    )
    arguments = reference + _pickled(0) + _pickled(array.shape) + _pickled(strides)
    hooks = b"ccollections\nOrderedDict\n)R"
    return b"ctorch._utils\n_rebuild_tensor_v2\n(" + arguments + b"\x89" + hooks + b"tR"


def _check_dtypes(path: Any, arrays: Mapping[str, np.ndarray], known: Container) -> None:
    wrong = [
        f"{name} ({array.dtype})" for name, array in arrays.items() if array.dtype not in known
    ]
    if wrong:
        raise ValueError(f"{path}: the format has no such dtype: {', '.join(wrong)}")


def _contiguous(array: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(array).reshape(array.shape)  # which would give a scalar one axis


@contextlib.contextmanager
def _whole_file(path: str | os.PathLike) -> Generator[str]:
    """A temporary path beside `path` that takes its place when everything went well."""
    path = Path(path)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    os.close(handle)
    try:
        yield temporary
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise
