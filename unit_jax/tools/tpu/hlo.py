"""Reads optimised HLO, the text of a compiled TPU program, for what XLA's own summary leaves out.

The compiler's cost analysis counts a loop's body once, whatever its number of turns, and says
nothing of time and collectives. Here everything inside a loop counts as often as it runs.
"""

import collections
import dataclasses
import functools
import math
import re
from collections.abc import Iterator

import numpy as np

COLLECTIVES = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")

_BITS = {"pred": 8, "s4": 4, "u4": 4, "token": 0}
_ARRAY = re.compile(r"\b(pred|token|[a-z]+\d+\w*)\[([\d,]*)\](?:\{([^}]*)\})?")
_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\{$")
_INSTRUCTION = re.compile(r"^\s+(ROOT )?%?([\w.\-]+) = ")
_CYCLES = re.compile(r'"estimated_cycles":"(\d+)"')
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"')
_CALLED = re.compile(
    r"\b(calls|to_apply|body|condition|true_computation|false_computation)=%?([\w.\-]+)"
)
_BRANCHES = re.compile(r"\bbranch_computations=\{([^}]*)\}")
_FREE = frozenset(
    "parameter constant tuple get-tuple-element bitcast after-all partition-id replica-id iota "
    "while conditional call custom-call copy-done".split()
)


@dataclasses.dataclass(frozen=True)
class Shape:
    """An array of a program: dtype, dimensions, and whether it lies in the chip's main memory."""

    dtype: str
    dims: tuple[int, ...]
    in_hbm: bool

    @property
    def bytes(self) -> float:
        bits = _BITS.get(self.dtype)
        if bits is None:
            bits = int(re.findall(r"\d+", self.dtype)[0])
        return math.prod(self.dims) * bits / 8


@dataclasses.dataclass(frozen=True)
class Instruction:
    """A line of a computation; `rest` is what follows the operands."""

    name: str
    opcode: str
    shapes: tuple[Shape, ...]
    operands: tuple[str, ...]
    rest: str
    root: bool
    inside: str  # the brackets' text: a constant's value, a parameter's number

    @property
    def called(self) -> dict[str, str]:
        return dict(_CALLED.findall(self.rest))

    @property
    def branches(self) -> list[str]:
        listed = _BRANCHES.search(self.rest)
        names = [name.strip().lstrip("%") for name in listed.group(1).split(",")] if listed else []
        return names + [
            name for key, name in _CALLED.findall(self.rest) if key.startswith(("t", "f"))
        ]


class Module:
    """A program: `computations` by name, each a dict of instructions by name, and the `entry`."""

    def __init__(self, text: str):
        self.computations: dict[str, dict[str, Instruction]] = {}
        self.entry = ""
        inside = None
        for line in text.splitlines():
            if inside is None:
                head = _COMPUTATION.match(line)
                if head:
                    inside = self.computations.setdefault(head.group(2), {})
                    self.entry = head.group(2) if head.group(1) else self.entry
            elif line.startswith("}"):  # what runs on a core of its own says so behind the brace
                inside = None
            elif _INSTRUCTION.match(line):
                instruction = _read(line)
                inside[instruction.name] = instruction
        if not self.entry:
            raise ValueError("this is not the text of a compiled program: it has no ENTRY")

    def trips(self, loop: Instruction) -> int | None:
        """How often a `while` runs its body; None where that is not known beforehand."""
        told = _TRIPS.search(loop.rest)
        if told:
            return int(told.group(1))
        condition = self.computations[loop.called["condition"]]
        root = next(instruction for instruction in condition.values() if instruction.root)
        if root.opcode == "fusion":  # the comparison, wrapped
            constants = [condition[name] for name in root.operands if name in condition]
            inner = self.computations[root.called["calls"]]
            constants += [one for one in inner.values() if one.opcode == "constant"]
            compares = [one for one in inner.values() if one.opcode == "compare"]
        else:
            constants = [condition[name] for name in root.operands if name in condition]
            compares = [root]
        limits = [one for one in constants if one.opcode == "constant"]
        if len(limits) != 1 or len(compares) != 1 or "direction=LT" not in compares[0].rest:
            return None
        return int(limits[0].inside) if limits[0].inside.isdigit() else None

    def walk(self) -> Iterator[tuple[dict[str, Instruction], Instruction, int]]:
        """(computation, instruction, how often it runs) of all that is outside fusions. Of the
        branches of a conditional every one counts once."""
        yield from self._walk(self.entry, 1)

    def _walk(self, name: str, times: int):
        computation = self.computations[name]
        for instruction in computation.values():
            yield computation, instruction, times
            called = instruction.called
            if instruction.opcode == "while":
                turns = times * (self.trips(instruction) or 1)
                yield from self._walk(called["body"], turns)
            elif instruction.opcode == "conditional":
                for branch in instruction.branches:
                    yield from self._walk(branch, times)
            elif instruction.opcode == "call":
                yield from self._walk(called["to_apply"], times)
            elif instruction.opcode == "async-start" and "calls" in called:
                yield from self._walk(called["calls"], times)

    def unknown_loops(self) -> int:
        """Loops that were counted once for want of a number."""
        return sum(
            instruction.opcode == "while" and self.trips(instruction) is None
            for _, instruction, _ in self.walk()
        )

    def cycles(self) -> int:
        """The compiler's estimates of all instructions that have one, summed. Communication,
        custom kernels and what overlaps are not in it."""
        total = 0
        for _, instruction, times in self.walk():
            match = _CYCLES.search(instruction.rest)
            total += times * int(match.group(1)) if match else 0
        return total

    def collectives(self) -> dict[str, dict[str, float]]:
        """By kind: how many run, and the bytes of their results on one chip."""
        kinds = collections.defaultdict(lambda: {"count": 0, "bytes": 0.0})
        seen = set()
        for instruction, times in self._with_fusions():
            kind = instruction.opcode.removesuffix("-start")
            if kind not in COLLECTIVES:
                continue
            channel = re.search(r"channel_id=(\d+)", instruction.rest)
            if channel and (kind, channel.group(1)) in seen:
                continue  # a part of one that was split up to run beside other work
            seen.add((kind, channel and channel.group(1)))
            shapes = instruction.shapes
            if instruction.opcode in ("all-gather-start", "collective-permute-start"):
                operands = len(instruction.operands)
                shapes = shapes[operands : 2 * operands]  # operands, results, signals
            kinds[kind]["count"] += times
            kinds[kind]["bytes"] += times * sum(shape.bytes for shape in shapes)
        return dict(kinds)

    def _with_fusions(self) -> Iterator[tuple[Instruction, int]]:
        for _, instruction, times in self.walk():
            yield instruction, times
            if instruction.opcode == "fusion":
                for _, inner in self._inside(instruction.called["calls"]):
                    yield inner, times

    def bytes_moved(self) -> float:
        """Bytes read from and written to main memory: operands and results of everything outside
        fusions that lie there; of what is only sliced or updated in part, the part."""
        total = 0.0
        for computation, instruction, times in self.walk():
            total += times * self._bytes(computation, instruction)
        return total

    def _bytes(self, computation: dict[str, Instruction], instruction: Instruction) -> float:
        opcode = instruction.opcode
        if opcode in _FREE or opcode.endswith("-done"):
            return 0.0
        operands = [computation[name] for name in instruction.operands if name in computation]
        if opcode in ("copy-start", "slice-start"):  # operand, result and signals in one tuple
            source, result = instruction.shapes[:2]
            return result.bytes * (source.in_hbm + result.in_hbm)
        if opcode == "async-start":
            return 0.0  # what it starts is walked by itself
        if opcode == "fusion":
            return self._bytes_of_fusion(operands, instruction)
        written = _in_hbm(instruction.shapes)
        if opcode in ("all-gather-start", "collective-permute-start"):
            return written  # its results name its operands too
        if opcode in ("dynamic-slice", "slice", "gather"):
            return 2 * written if operands and _in_hbm(operands[0].shapes) else written
        if opcode == "dynamic-update-slice":
            return 2 * _in_hbm(operands[1].shapes)
        return written + sum(_in_hbm(operand.shapes) for operand in operands)

    def _bytes_of_fusion(self, operands: list[Instruction], fusion: Instruction) -> float:
        inner = self.computations[fusion.called["calls"]]
        users = collections.defaultdict(list)
        for instruction in inner.values():
            for name in instruction.operands:
                users[name].append(instruction)
        parameters = {
            int(one.inside): one.name for one in inner.values() if one.opcode == "parameter"
        }

        def read(name: str, shape: Shape) -> float:
            """Bytes that are read of an operand."""
            parts = 0.0
            for user in users[name]:
                if user.opcode == "bitcast":
                    parts += read(user.name, shape)
                elif user.opcode in ("dynamic-slice", "slice"):
                    parts += user.shapes[0].bytes
                elif user.opcode == "dynamic-update-slice" and user.operands[0] == name:
                    continue  # updated in place
                elif user.opcode == "fusion":
                    deeper = self.computations[user.called["calls"]]
                    number = user.operands.index(name)
                    sliced = [
                        one.shapes[0].bytes
                        for one in deeper.values()
                        if one.opcode in ("dynamic-slice", "slice")
                        and any(
                            deeper[source].inside == str(number)
                            for source in one.operands[:1]
                            if source in deeper and deeper[source].opcode == "parameter"
                        )
                    ]
                    parts += sliced[0] if sliced else shape.bytes
                else:
                    return shape.bytes
            return min(parts, shape.bytes)

        total = 0.0
        for number, operand in enumerate(operands):
            if number in parameters and len(operand.shapes) == 1 and operand.shapes[0].in_hbm:
                total += read(parameters[number], operand.shapes[0])
        root = next(one for one in inner.values() if one.root)
        results = [inner[name] for name in root.operands] if root.opcode == "tuple" else [root]
        for result, shape in zip(results, fusion.shapes, strict=False):
            if not shape.in_hbm:
                continue
            while result.opcode == "bitcast" and result.operands[0] in inner:
                result = inner[result.operands[0]]
            updates = result.opcode == "dynamic-update-slice"
            total += inner[result.operands[1]].shapes[0].bytes if updates else shape.bytes
        return total

    def flops_in_loops(self) -> float:
        """FLOPs of products and convolutions that run more than once, their first run left out."""
        total = 0.0
        for computation, instruction, times in self.walk():
            if times > 1:
                inside = [(computation, instruction)]
                if instruction.opcode == "fusion":
                    inside = list(self._inside(instruction.called["calls"]))
                total += (times - 1) * sum(product_flops(*one) for one in inside)
        return total

    def _inside(self, name: str):
        """(computation, instruction) of all that a fusion computes, fusions in it included."""
        computation = self.computations[name]
        for instruction in computation.values():
            if instruction.opcode == "fusion":
                yield from self._inside(instruction.called["calls"])
            else:
                yield computation, instruction

    def arguments(self) -> list[tuple[str, float]]:
        """(name, bytes) of the program's arguments that it reads."""
        sizes = []
        for instruction in self.computations[self.entry].values():
            if instruction.opcode == "parameter":
                name = re.search(r'op_name="((?:[^"\\]|\\.)*)"', instruction.rest)
                size = sum(shape.bytes for shape in instruction.shapes)
                sizes.append((name.group(1) if name else instruction.name, size))
        return sizes


def product_flops(computation: dict[str, Instruction], instruction: Instruction) -> float:
    """FLOPs of a `dot` or a `convolution` (what products are on a TPU); 0 of all else."""
    if instruction.opcode == "dot":
        left = computation[instruction.operands[0]].shapes[0]
        over = re.findall(r"lhs_contracting_dims=\{([\d,]*)\}", instruction.rest)[0]
        depth = math.prod(left.dims[int(axis)] for axis in over.split(",") if axis)
        return 2.0 * math.prod(instruction.shapes[0].dims) * depth
    if instruction.opcode != "convolution":
        return 0.0
    labels = re.findall(r"dim_labels=(\w+)_(\w+)->(\w+)", instruction.rest)[0]
    left, right = (computation[name].shapes[0].dims for name in instruction.operands[:2])
    out = instruction.shapes[0].dims
    inputs, outputs = right[labels[1].index("i")], out[labels[2].index("f")]
    total = 2.0 * out[labels[2].index("b")] * outputs * inputs
    window = dict(
        entry
        for inside in re.findall(r"window=\{([^}]*)\}", instruction.rest)[:1]
        for entry in re.findall(r"(\w+)=(\S+)", inside)
    )
    for number in range(len(out) - 2):
        axis = str(number)
        total *= _places(
            left[labels[0].index(axis)],
            right[labels[1].index(axis)],
            out[labels[2].index(axis)],
            *(_part(window, key, number, neutral) for key, neutral in _WINDOW),
        )
    batches = re.search(r"batch_group_count=(\d+)", instruction.rest)
    return total / int(batches.group(1)) if batches else total


_WINDOW = (("pad", "0_0"), ("stride", "1"), ("lhs_dilate", "1"), ("rhs_dilate", "1"))


def _part(window: dict[str, str], key: str, number: int, neutral: str) -> int:
    """A window's entry of one dimension; of padding that before."""
    return int(window[key].split("x")[number].split("_")[0] if key in window else neutral[0])


@functools.cache
def _places(size, kernel, out, pad, stride, dilate, kernel_dilate) -> int:
    """Pairs of output place and kernel place that fall on an input."""
    places = np.arange(out)[:, None] * stride - pad + np.arange(kernel) * kernel_dilate
    inside = (places >= 0) & (places <= (size - 1) * dilate) & (places % dilate == 0)
    return int(inside.sum())


def _in_hbm(shapes: tuple[Shape, ...]) -> float:
    return sum(shape.bytes for shape in shapes if shape.in_hbm)


def _shapes(text: str) -> tuple[Shape, ...]:
    return tuple(
        Shape(
            dtype,
            tuple(int(size) for size in dims.split(",") if size),
            not re.search(r"S\([1-9]", layout or ""),
        )
        for dtype, dims, layout in _ARRAY.findall(text)
    )


def _read(line: str) -> Instruction:
    head = _INSTRUCTION.match(line)
    assert head is not None  # only such lines are read
    end = _shape_end(line, head.end())
    opcode, _, rest = line[end:].lstrip().partition("(")
    close = _closing(rest)
    inside = rest[:close]
    return Instruction(
        head.group(2),
        opcode,
        _shapes(line[head.end() : end]),
        tuple(re.findall(r"%([\w.\-]+)", inside)),
        rest[close:],
        bool(head.group(1)),
        inside,
    )


def _shape_end(line: str, start: int) -> int:
    """Where the result's shape ends: at the first blank outside brackets."""
    depth = 0
    for place in range(start, len(line)):
        depth += (line[place] in "([{") - (line[place] in ")]}")
        if line[place] == " " and depth == 0:
            return place
    return len(line)


def _closing(text: str) -> int:
    depth = 1
    for place, letter in enumerate(text):
        depth += (letter == "(") - (letter == ")")
        if depth == 0:
            return place
    return len(text)
