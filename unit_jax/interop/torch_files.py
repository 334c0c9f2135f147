"""Reads and writes PyTorch checkpoints and .safetensors files as NumPy arrays, without PyTorch.

A pickle can name any function of any module and have it called. Here no pickle machinery runs at
all: `_Machine` interprets the pickle's opcodes itself, and the only "functions" it knows are the
entries of `_CALLS`, which build plain containers and NumPy arrays. Any other name is refused.

Formats: PyTorch's zip format (1.6 and later), the stacked pickles before it, safetensors, and a tar
(compressed or not) that holds one of these.
"""

import contextlib
import io
import json
import math
import os
import pickletools
import re
import shutil
import struct
import tarfile
import tempfile
import zipfile
from collections.abc import Callable, Container, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import ml_dtypes
import numpy as np
import safetensors.numpy
from etils import epath

from unit_jax import paths

_DTYPES = {
    "float64": np.float64,
    "float32": np.float32,
    "float16": np.float16,
    "bfloat16": ml_dtypes.bfloat16,
    "float8_e4m3fn": ml_dtypes.float8_e4m3fn,
    "float8_e5m2": ml_dtypes.float8_e5m2,
    "int64": np.int64,
    "int32": np.int32,
    "int16": np.int16,
    "int8": np.int8,
    "uint64": np.uint64,
    "uint32": np.uint32,
    "uint16": np.uint16,
    "uint8": np.uint8,
    "bool": np.bool_,
    "complex64": np.complex64,
    "complex128": np.complex128,
}
_STORAGES = {
    "DoubleStorage": "float64",
    "FloatStorage": "float32",
    "HalfStorage": "float16",
    "BFloat16Storage": "bfloat16",
    "LongStorage": "int64",
    "IntStorage": "int32",
    "ShortStorage": "int16",
    "CharStorage": "int8",
    "ByteStorage": "uint8",
    "BoolStorage": "bool",
    "ComplexFloatStorage": "complex64",
    "ComplexDoubleStorage": "complex128",
}
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
_SUFFIXES = (".pth", ".pt", ".ckpt", ".bin", ".safetensors")


def load_state_dict(path: str | os.PathLike) -> dict[str, np.ndarray]:
    """The weights in a checkpoint file, by name.

    Takes the entry "model" of a file that holds one (as MMF and DETR write beside optimiser state
    and arguments), else the file's own dict.

    Args:
      path: .pth, .pt, .bin or .safetensors file, or a tar that holds one.
    Returns:
      Names and arrays as stored (any dtype; bfloat16 as ml_dtypes.bfloat16). Arrays may be
      read-only, strided views, and share memory where the file's tensors share a storage.
    Raises:
      ValueError: damaged file, unknown format, refused object, or entries that are no tensors;
        the message names the file.
    """
    content = read(path)
    if isinstance(content, Mapping) and isinstance(content.get("model"), Mapping):
        content = content["model"]
    if not isinstance(content, Mapping):
        raise ValueError(f"{path}: holds a {type(content).__name__}, expected a dict of tensors")
    others = [str(key) for key, value in content.items() if not isinstance(value, np.ndarray)]
    if others or not content:
        listed = ", ".join(others[:8]) + (", ..." if len(others) > 8 else "")
        raise ValueError(
            f"{path}: not a state dict: "
            + (f"these entries are no tensors: {listed}" if others else "it is empty")
        )
    return {str(key): value for key, value in content.items()}


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
        raise ValueError(
            f"{path}: damaged or not a checkpoint: {reason or type(error).__name__}"
        ) from error


class Refused(ValueError):
    """A pickle names an object that is not on the allow-list; nothing of it was executed."""


@contextlib.contextmanager
def _on_disk(path: epath.Path) -> Iterator[Path]:
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
    if head.startswith(b"PK"):
        return _read_zip(path)
    if head.startswith(b"\x80"):
        return _read_legacy(path)
    if path.suffix == ".safetensors" or head[8:9] == b"{":
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
        order = f"{folder}byteorder"
        if order in archive.namelist() and archive.read(order) != b"little":
            raise ValueError("its numbers are not little-endian")
        storages: dict[str, np.ndarray] = {}

        def storage(dtype: np.dtype, key: str, size: int) -> np.ndarray:
            if key not in storages:
                data = archive.read(f"{folder}data/{key}")
                if len(data) != size * dtype.itemsize:
                    raise ValueError(f"storage {key} has {len(data)} bytes, not {size} {dtype}")
                storages[key] = np.frombuffer(data, dtype)
            if storages[key].dtype != dtype:
                raise ValueError(f"storage {key} is used both as {storages[key].dtype} and {dtype}")
            return storages[key]

        return _Machine(storage).run(io.BytesIO(archive.read(names[0])))


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
        magic = _Machine(nothing).run(file)
        if magic != _LEGACY_MAGIC:
            raise ValueError("a pickle, but not one that PyTorch wrote")
        protocol, system = (_Machine(nothing).run(file) for _ in range(2))
        if protocol != _LEGACY_PROTOCOL or not system.get("little_endian"):
            raise ValueError(f"protocol {protocol} or its byte order is not supported")
        content = _Machine(storage).run(file)
        keys = _Machine(nothing).run(file)
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
        dtype = np.dtype(_DTYPES[_SAFETENSORS[entry["dtype"]]])
        shape, (start, stop) = tuple(entry["shape"]), entry["data_offsets"]
        if start != end or stop > data.size or stop - start != math.prod(shape) * dtype.itemsize:
            raise ValueError(f"the bytes of {name} are cut off or do not fit its shape {shape}")
        arrays[name] = np.array(data[start:stop]).view(dtype).reshape(shape)
        end = stop
    if end != data.size:
        raise ValueError("there are bytes that no tensor owns")
    return {name: arrays[name] for name in header}


@contextlib.contextmanager
def _tar_member(path: Path) -> Iterator[Path]:
    """The one checkpoint of a tar as a temporary file."""
    with tarfile.open(path) as archive, tempfile.TemporaryDirectory() as folder:
        found = []
        for member in archive:  # to the end, so that a compressed tar's checksum is verified
            if member.isfile() and member.name.endswith(_SUFFIXES):
                found.append(member.name)
                target = Path(folder, "checkpoint" + Path(member.name).suffix)
                with open(target, "wb") as file:
                    shutil.copyfileobj(archive.extractfile(member), file)
        if len(found) != 1:
            raise ValueError(f"the tar should hold one checkpoint, has: {', '.join(found) or '-'}")
        while archive.fileobj.read(1 << 20):
            pass
        yield target


# ---- pickles, interpreted


class _Name(str):
    """A module's object that a pickle names; only a name, never the object."""


class _Namespace(dict):
    """Attributes of an argparse.Namespace."""


class _Machine:
    """Interprets one pickle; every opcode that it does not list is refused.

    Args:
      storage: (dtype, key, number of elements) -> one-dimensional array.
    """

    def __init__(self, storage: Callable[[np.dtype, str, int], np.ndarray]):
        self._storage = storage

    def run(self, file: BinaryIO) -> Any:
        """The object of the pickle that starts where `file` stands."""
        stack: list = []
        marks: list[list] = []
        memo: dict[int, Any] = {}

        def since_mark() -> list:
            nonlocal stack
            items, stack = stack, marks.pop()
            return items

        for opcode, value, _ in pickletools.genops(file):
            match opcode.name:
                case "PROTO" | "FRAME":
                    pass
                case "STOP":
                    (result,) = stack
                    return result
                case "MARK":
                    marks.append(stack)
                    stack = []
                case "POP":
                    stack.pop()
                case "POP_MARK":
                    since_mark()
                case "DUP":
                    stack.append(stack[-1])
                case "NONE" | "NEWTRUE" | "NEWFALSE":
                    stack.append({"NONE": None, "NEWTRUE": True, "NEWFALSE": False}[opcode.name])
                case name if name in _LITERALS:
                    stack.append(value)
                case "EMPTY_TUPLE":
                    stack.append(())
                case "TUPLE1" | "TUPLE2" | "TUPLE3":
                    items = [stack.pop() for _ in range(int(opcode.name[-1]))]
                    stack.append(tuple(reversed(items)))
                case "TUPLE":
                    items = since_mark()
                    stack.append(tuple(items))
                case "EMPTY_LIST":
                    stack.append([])
                case "LIST":
                    items = since_mark()
                    stack.append(items)
                case "APPEND":
                    item = stack.pop()
                    _expect(stack[-1], list).append(item)
                case "APPENDS":
                    items = since_mark()
                    _expect(stack[-1], list).extend(items)
                case "EMPTY_SET":
                    stack.append(set())
                case "ADDITEMS":
                    items = since_mark()
                    _expect(stack[-1], set).update(items)
                case "FROZENSET":
                    items = since_mark()
                    stack.append(frozenset(items))
                case "EMPTY_DICT":
                    stack.append({})
                case "DICT":
                    items = since_mark()
                    stack.append(dict(zip(items[::2], items[1::2], strict=True)))
                case "SETITEM":
                    item, key = stack.pop(), stack.pop()
                    _expect(stack[-1], dict)[key] = item
                case "SETITEMS":
                    items = since_mark()
                    pairs = zip(items[::2], items[1::2], strict=True)
                    _expect(stack[-1], dict).update(pairs)
                case "PUT" | "BINPUT" | "LONG_BINPUT":
                    memo[value] = stack[-1]
                case "MEMOIZE":
                    memo[len(memo)] = stack[-1]
                case "GET" | "BINGET" | "LONG_BINGET":
                    stack.append(memo[value])
                case "GLOBAL":
                    stack.append(_allowed(*value.split(" ", 1)))
                case "STACK_GLOBAL":
                    name, module = stack.pop(), stack.pop()
                    stack.append(_allowed(module, name))
                case "BINPERSID":
                    stack.append(self._persistent(stack.pop()))
                case "REDUCE" | "NEWOBJ":
                    arguments, function = stack.pop(), stack.pop()
                    stack.append(_call(function, arguments))
                case "BUILD":
                    state = stack.pop()
                    _set_state(stack[-1], state)
                case name:
                    raise Refused(f"refused: the pickle operation {name}")
        raise ValueError("the pickle has no end")

    def _persistent(self, identity: tuple) -> np.ndarray:
        kind, storage_type, key, _, size, *view = identity  # _ is the device it came from
        module, _, name = str(_expect(storage_type, _Name)).rpartition(".")
        if kind != "storage" or not isinstance(size, int) or size < 0 or any(view):
            raise ValueError(f"an unknown kind of reference: {identity!r}")
        if name == "UntypedStorage":
            dtype = np.dtype(np.uint8)
        else:
            dtype = np.dtype(_DTYPES[_STORAGES[name]])
        return self._storage(dtype, str(key), size)


_LITERALS = frozenset(
    "INT BININT BININT1 BININT2 LONG LONG1 LONG4 FLOAT BINFLOAT STRING BINSTRING SHORT_BINSTRING "
    "UNICODE BINUNICODE SHORT_BINUNICODE BINUNICODE8 BINBYTES SHORT_BINBYTES BINBYTES8 "
    "BYTEARRAY8".split()
)


def _expect(value: Any, kind: type) -> Any:
    if not isinstance(value, kind):
        raise ValueError(f"expected a {kind.__name__}, found a {type(value).__name__}")
    return value


def _allowed(module: str, name: str) -> _Name:
    full = f"{module}.{name}"
    if full not in _CALLS and full not in _NAMES:
        module = {"posix": "os", "nt": "os", "__builtin__": "builtins"}.get(module, module)
        raise Refused(
            f"refused: the file asks for {module}.{name}, which no checkpoint of weights needs; "
            "nothing was executed"
        )
    return _Name(full)


def _call(function: _Name, arguments: tuple) -> Any:
    if _expect(function, _Name) not in _CALLS:
        raise Refused(f"refused: the file calls {function}; nothing was executed")
    return _CALLS[function](*_expect(arguments, tuple))


def _set_state(target: Any, state: Any) -> None:
    """The pickle operation BUILD: gives an object its attributes."""
    if isinstance(target, _Namespace):
        target.update(_expect(state, dict))
    elif isinstance(target, np.dtype):
        version, order, *rest = state
        if order not in ("<", "|", "=") or version != 3 or rest[:3] != [None, None, None]:
            raise ValueError(f"an unusual NumPy dtype: {state!r}")
    elif isinstance(target, np.ndarray):
        version, shape, dtype, fortran, data = state
        if version != 1 or not isinstance(dtype, np.dtype) or not isinstance(data, bytes):
            raise ValueError("an unusual NumPy array")
        target.__setstate__((1, shape, dtype, fortran, data))  # checks the number of bytes
    elif not isinstance(target, dict):  # an OrderedDict's attributes (`_metadata`) are not needed
        raise Refused(f"refused: attributes for a {type(target).__name__}")


def _rebuild_tensor(storage, offset, size, stride, *_) -> np.ndarray:
    _expect(storage, np.ndarray)
    numbers = (offset, *size, *stride)
    if len(size) != len(stride) or not all(isinstance(n, int) and n >= 0 for n in numbers):
        raise ValueError(f"a tensor of impossible shape {size}, strides {stride}")
    last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
    if 0 not in size and last >= storage.size:
        raise ValueError(f"a tensor of shape {size} reaches beyond its storage")
    strides = [step * storage.itemsize for step in stride]
    start = 0 if 0 in size else offset
    return np.lib.stride_tricks.as_strided(storage[start:], size, strides)


def _rebuild_tensor_v3(storage, offset, size, stride, grad, hooks, dtype, *_) -> np.ndarray:
    dtype = np.dtype(_DTYPES[_expect(dtype, _Name).removeprefix("torch.")])
    return _rebuild_tensor(storage.view(dtype), offset, size, stride)


def _numpy_dtype(code: str, *_) -> np.dtype:
    if not re.fullmatch(r"[biufc]\d+", code):  # no objects, no records
        raise Refused(f"refused: a NumPy array of dtype {code!r}")
    return np.dtype(code)


def _numpy_scalar(dtype: np.dtype, data: bytes) -> np.generic:
    return np.frombuffer(_expect(data, bytes), _expect(dtype, np.dtype), count=1)[0]


def _encode(text: str, codec: str) -> bytes:
    if codec != "latin1":  # how pickles of protocol 2 hold bytes; other codecs could be programs
        raise Refused(f"refused: the codec {codec!r}")
    return text.encode(codec)


# Everything a pickle may call, and what happens instead.
_CALLS: dict[str, Callable] = {
    "collections.OrderedDict": lambda items=(): dict(items),
    "collections.defaultdict": lambda factory=None, items=(): dict(items),
    "collections.Counter": lambda items=(): dict(items),
    "argparse.Namespace": lambda: _Namespace(),
    "torch.Size": lambda sizes=(): tuple(sizes),
    "torch.device": lambda *parts: ":".join(map(str, parts)),
    "torch._utils._rebuild_tensor": _rebuild_tensor,
    "torch._utils._rebuild_tensor_v2": _rebuild_tensor,
    "torch._utils._rebuild_tensor_v3": _rebuild_tensor_v3,
    "torch._utils._rebuild_parameter": lambda data, *_: data,
    "torch._utils._rebuild_parameter_with_state": lambda data, *_: data,
    "torch._tensor._rebuild_from_type_v2": lambda function, kind, args, _: _call(function, args),
    "numpy.dtype": _numpy_dtype,
    "_codecs.encode": _encode,
}
for _module in ("numpy.core.multiarray", "numpy._core.multiarray"):
    _CALLS[f"{_module}.scalar"] = _numpy_scalar
    _CALLS[f"{_module}._reconstruct"] = lambda *_: np.empty(0, np.int8)
_BUILTINS = ("builtins", "__builtin__")  # the second is Python 2's name, used up to protocol 2
for _module in _BUILTINS:
    _CALLS[f"{_module}.set"] = lambda items=(): set(items)
    _CALLS[f"{_module}.frozenset"] = lambda items=(): frozenset(items)

# Names that a pickle may hand to those calls as arguments.
_NAMES = {
    "numpy.ndarray",
    "torch.Tensor",
    "torch.nn.parameter.Parameter",
    "torch.storage.UntypedStorage",
    *(f"{module}.{name}" for module in _BUILTINS for name in ("dict", "list", "int", "float")),
    *(f"torch.{name}" for name in (*_STORAGES, *_DTYPES)),
}


# ---- writing


def save_safetensors(
    path: str | os.PathLike, arrays: Mapping[str, np.ndarray], metadata: Mapping[str, str] = ()
) -> None:
    """Writes arrays to a .safetensors file, all of it or nothing.

    Args:
      path: file to write; its folder must exist.
      arrays: any shapes and strides, the dtypes of `_SAFETENSORS`.
      metadata: text to store beside them.
    Raises:
      ValueError: another dtype.
    """
    _check_dtypes(path, arrays, {np.dtype(_DTYPES[name]) for name in _SAFETENSORS.values()})
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
    storages = {np.dtype(_DTYPES[dtype]): name for name, dtype in _STORAGES.items()}
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
def _whole_file(path: str | os.PathLike) -> Iterator[str]:
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
