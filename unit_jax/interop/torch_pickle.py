"""Interprets the pickles in PyTorch's files; nothing that they name is ever imported or called.

A pickle can name any function of any module and have it called. Here no pickle machinery runs at
all: `Machine` interprets the pickle's opcodes itself, and the only "functions" it knows are the
entries of `_CALLS`, which build plain containers and NumPy arrays. Any other name is refused.

Nor can a small pickle ask for endless work: containers that hold each other are counted as often
as they are reached, keys are plain values, and the operations are counted.
"""

import math
import pickletools
import re
import reprlib
from collections.abc import Callable
from typing import Any, BinaryIO, cast

import ml_dtypes
import numpy as np

# torch's names of number types, and those of its typed storages.
DTYPES = {
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
STORAGES = {
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


MOST_WORK = 2_000_000  # operations, and items looked at or copied; weights take some 100,000
MOST_ITEMS = 2_000_000  # in one object, those of shared containers counted each time
DEEPEST = 64  # containers in containers


class Refused(ValueError):
    """A pickle names an object that is not on the allow-list, or asks for endless work; nothing of
    it was executed."""


class _Name(str):
    """A module's object that a pickle names; only a name, never the object."""


class _Namespace(dict):
    """Attributes of an argparse.Namespace."""


class Machine:
    """Interprets one pickle; every opcode that it does not list is refused.

    Args:
      storage: (dtype, key, number of elements) -> one-dimensional array.
    """

    def __init__(self, storage: Callable[[np.dtype, str, int], np.ndarray]):
        self._storage = storage

    def run(self, file: BinaryIO) -> Any:
        """The object of the pickle that starts where `file` stands.

        Raises:
          Refused: it names what is not allowed, or is too much: see MOST_WORK and its neighbours.
        """
        budget = _Budget()
        stack: list = []
        marks: list[list] = []
        memo: dict[int, Any] = {}

        def since_mark() -> list:
            nonlocal stack
            items, stack = stack, marks.pop()
            return items

        for opcode, argument, _ in pickletools.genops(file):
            value = cast(Any, argument)  # its type goes with the opcode
            budget.spend(1)
            match opcode.name:
                case "PROTO" | "FRAME":
                    pass
                case "STOP":
                    (result,) = stack
                    budget.weigh(result)
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
                    _expect(stack[-1], set).update(map(_key, items))
                case "FROZENSET":
                    items = since_mark()
                    stack.append(frozenset(map(_key, items)))
                case "EMPTY_DICT":
                    stack.append({})
                case "DICT":
                    items = since_mark()
                    stack.append(_dict(zip(items[::2], items[1::2], strict=True)))
                case "SETITEM":
                    item, key = stack.pop(), stack.pop()
                    _expect(stack[-1], dict)[_key(key)] = item
                case "SETITEMS":
                    items = since_mark()
                    pairs = zip(items[::2], items[1::2], strict=True)
                    _expect(stack[-1], dict).update(_dict(pairs))
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
                    identity = stack.pop()
                    budget.weigh(identity)
                    stack.append(self._persistent(_expect(identity, tuple)))
                case "REDUCE" | "NEWOBJ":
                    arguments, function = stack.pop(), stack.pop()
                    budget.weigh(arguments)
                    stack.append(_call(function, arguments))
                case "BUILD":
                    state = stack.pop()
                    budget.weigh(state)
                    _set_state(stack[-1], state)
                case name:
                    raise Refused(f"refused: the pickle operation {name}")
        raise ValueError("the pickle has no end")

    def _persistent(self, identity: tuple) -> np.ndarray:
        tag, storage_type, key, _, size, *view = identity  # _ is the device it came from
        module, _, name = str(_expect(storage_type, _Name)).rpartition(".")
        if tag != "storage" or not isinstance(size, int) or size < 0 or any(view):
            raise ValueError(f"an unknown kind of reference: {_short(identity)}")
        if name == "UntypedStorage":
            dtype = np.dtype(np.uint8)
        else:
            dtype = np.dtype(DTYPES[STORAGES[name]])
        return self._storage(dtype, str(key), size)


_LITERALS = frozenset(
    "INT BININT BININT1 BININT2 LONG LONG1 LONG4 FLOAT BINFLOAT STRING BINSTRING SHORT_BINSTRING "
    "UNICODE BINUNICODE SHORT_BINUNICODE BINUNICODE8 BINBYTES SHORT_BINBYTES BINBYTES8 "
    "BYTEARRAY8".split()
)


class _Budget:
    """What one pickle may still ask for."""

    def __init__(self):
        self._left = MOST_WORK

    def spend(self, work: int) -> None:
        self._left -= work
        if self._left < 0:
            raise Refused(f"refused: the pickle asks for more than {MOST_WORK:,} operations")

    def weigh(self, value: Any) -> None:
        """Refuses an object that is too deep, holds itself, or unfolds to too many items.

        Each container is looked at once, however often it is held: the count of a container that
        another one holds twice is added twice.
        """
        if not isinstance(value, _CONTAINERS):
            return
        weights: dict[int, tuple[int, int]] = {}  # id -> items, depth
        open_: set[int] = set()
        # A container comes twice, the second time with the containers that it holds, weighed.
        stack: list[tuple[Any, list | None]] = [(value, None)]
        while stack:
            item, held = stack.pop()
            if id(item) in weights:
                continue
            if held is not None:
                items = 1 + len(item) + sum(weights[id(x)][0] for x in held)
                depth = 1 + max((weights[id(x)][1] for x in held), default=0)
                if items > MOST_ITEMS or depth > DEEPEST:
                    raise Refused(
                        f"refused: its containers hold each other {depth} deep, {items:,} items in "
                        f"all; at most {DEEPEST} and {MOST_ITEMS:,} are read"
                    )
                weights[id(item)] = items, depth
                open_.remove(id(item))
                continue
            if id(item) in open_:
                raise Refused("refused: one of its containers holds itself")
            open_.add(id(item))
            held = [x for x in _held(item) if isinstance(x, _CONTAINERS)]
            texts = sum(len(x) for x in _held(item) if isinstance(x, _TEXTS))
            self.spend(1 + len(item) + texts // 16)
            stack.append((item, held))
            stack += [(x, None) for x in held if id(x) not in weights]


_CONTAINERS = (list, tuple, dict, set, frozenset)
_TEXTS = (str, bytes, bytearray)
_REPR = reprlib.Repr()  # at most six items of each container
_REPR.maxlevel = 2


def _short(value: Any) -> str:
    """The value in at most so many words."""
    return _REPR.repr(value)


def _held(container: Any) -> Any:
    return container.values() if isinstance(container, dict) else container


def _key(value: Any) -> Any:
    """The value, if it may be a key: hashing containers in containers could take for ever."""
    if isinstance(value, _KEYS):  # nearly all are
        return value
    if not isinstance(value, tuple) or not all(isinstance(part, _KEYS) for part in value):
        raise Refused(f"refused: a key that is a {type(value).__name__} of containers")
    return value


_KEYS = (str, bytes, int, float, bool, type(None), np.generic)


def _dict(pairs: Any) -> dict:
    return {_key(key): value for key, value in pairs}


def _expect(value: Any, kind: type) -> Any:
    if not isinstance(value, kind):
        raise ValueError(f"expected a {kind.__name__}, found a {type(value).__name__}")
    return value


def _allowed(module: str, name: str) -> _Name:
    module, name = _expect(module, str), _expect(name, str)
    full = f"{module}.{name}"
    if full not in _CALLS and full not in _NAMES:
        module = {"posix": "os", "nt": "os", "__builtin__": "builtins"}.get(module, module)
        raise Refused(
            f"refused: the file asks for {module[:80]}.{name[:80]}, which no checkpoint of weights "
            "needs; nothing was executed"
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
            raise ValueError(f"an unusual NumPy dtype: {_short(state)}")
    elif isinstance(target, np.ndarray):
        version, shape, dtype, fortran, data = state
        if version != 1 or not isinstance(dtype, np.dtype) or not isinstance(data, bytes):
            raise ValueError("an unusual NumPy array")
        target.__setstate__((1, shape, dtype, fortran, data))  # checks the number of bytes
    elif not isinstance(target, dict):  # an OrderedDict's attributes (`_metadata`) are not needed
        raise Refused(f"refused: attributes for a {type(target).__name__}")


_MOST_AXES = 32
_MOST_EXPANDED = 2**24  # items of a tensor that repeats its storage's


def _rebuild_tensor(storage, offset, size, stride, *_) -> np.ndarray:
    _expect(storage, np.ndarray)
    numbers = (offset, *_expect(size, tuple), *_expect(stride, tuple))
    if len(size) > _MOST_AXES:
        raise ValueError(f"a tensor of {len(size)} axes")
    if len(size) != len(stride) or not all(isinstance(n, int) and n >= 0 for n in numbers):
        raise ValueError(f"a tensor of impossible shape {_short(size)}, strides {_short(stride)}")
    last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
    if 0 not in size and last >= storage.size:
        raise ValueError(f"a tensor of shape {size} reaches beyond its storage")
    if (items := math.prod(size)) > max(_MOST_EXPANDED, storage.size):
        raise Refused(f"refused: a tensor of {items:,} items on a storage of {storage.size:,}")
    strides = [step * storage.itemsize for step in stride]
    start = 0 if 0 in size else offset
    return np.lib.stride_tricks.as_strided(storage[start:], size, strides)


def _rebuild_tensor_v3(storage, offset, size, stride, grad, hooks, dtype, *_) -> np.ndarray:
    dtype = np.dtype(DTYPES[_expect(dtype, _Name).removeprefix("torch.")])
    return _rebuild_tensor(storage.view(dtype), offset, size, stride)


def _numpy_dtype(code: str, *_) -> np.dtype:
    if not re.fullmatch(r"[biufc]\d{1,2}", _expect(code, str)):  # no objects, no records
        raise Refused(f"refused: a NumPy array of dtype {_short(code)}")
    return np.dtype(code)


def _numpy_scalar(dtype: np.dtype, data: bytes) -> np.generic:
    return np.frombuffer(_expect(data, bytes), _expect(dtype, np.dtype), count=1)[0]


def _encode(text: str, codec: str) -> bytes:
    if codec != "latin1":  # how pickles of protocol 2 hold bytes; other codecs could be programs
        raise Refused(f"refused: the codec {_short(codec)}")
    return _expect(text, str).encode(codec)


def _device(*parts: Any) -> str:
    return ":".join(str(part)[:20] for part in parts if isinstance(part, str | int))


def _pairs(items: Any) -> Any:
    return items.items() if isinstance(items, dict) else items


# Everything a pickle may call, and what happens instead.
_CALLS: dict[str, Callable] = {
    "collections.OrderedDict": lambda items=(): _dict(_pairs(items)),
    "collections.defaultdict": lambda factory=None, items=(): _dict(_pairs(items)),
    "collections.Counter": lambda items=(): _dict(_pairs(items)),
    "argparse.Namespace": lambda: _Namespace(),
    "torch.Size": lambda sizes=(): tuple(sizes),
    "torch.device": _device,
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
for _module in (  # what Lightning keeps hyper-parameters in
    "pytorch_lightning.utilities.parsing",
    "lightning.fabric.utilities.data",
    "lightning_fabric.utilities.data",
):
    _CALLS[f"{_module}.AttributeDict"] = lambda items=(): dict(items)
_BUILTINS = ("builtins", "__builtin__")  # the second is Python 2's name, used up to protocol 2
for _module in _BUILTINS:
    _CALLS[f"{_module}.set"] = lambda items=(): set(map(_key, items))
    _CALLS[f"{_module}.frozenset"] = lambda items=(): frozenset(map(_key, items))

# Names that a pickle may hand to those calls as arguments.
_NAMES = {
    "numpy.ndarray",
    "torch.Tensor",
    "torch.nn.parameter.Parameter",
    "torch.storage.UntypedStorage",
    *(f"{module}.{name}" for module in _BUILTINS for name in ("dict", "list", "int", "float")),
    *(f"torch.{name}" for name in (*STORAGES, *DTYPES)),
}
