"""Maps between another library's tensors and our parameters, written as a table of rules.

A rule is one line: their module, our module, and how its tensors are laid out.

    Rule("transformer.encoder.layers.#.norm#", "image_encoder.layers.#.norm#", NORM)

`#` stands for a number, in the same order on both sides. The layout says which tensors the module
has, how they are called on either side and how an array turns into the other's:

    LINEAR   weight [out, in]                   <-> kernel [in, out];  bias
    CONV     weight [out, in, h, w]             <-> kernel [h, w, in, out]
    ATTENTION  in_proj_weight [3 width, width]  <-> query.kernel, key.kernel, value.kernel; ...

`RuleTable(rules).to_ours(state)` and `.to_theirs(arrays)` apply it to whole dicts. Both return
(what was translated, the names no rule knows); turning a dict there and back gives the same bits.
Arrays come out as views where they can.
"""

import dataclasses
import re
from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np

Arrays = dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Tensor:
    """One tensor of theirs: its name in the module, ours (one or several), and the two ways."""

    theirs: str
    ours: tuple[str, ...]
    split: Callable[[np.ndarray], Sequence[np.ndarray]]
    join: Callable[[Sequence[np.ndarray]], np.ndarray]


def _one(theirs: str, ours: str, to_ours=lambda x: x, to_theirs=lambda x: x) -> Tensor:
    return Tensor(theirs, (ours,), lambda x: (to_ours(x),), lambda parts: to_theirs(parts[0]))


def _thirds(x: np.ndarray) -> list[np.ndarray]:
    if x.shape[0] % 3:
        raise ValueError(f"shape {x.shape} does not hold queries, keys and values")
    return np.split(x, 3)


def _transpose(x: np.ndarray) -> np.ndarray:
    return x.transpose(1, 0)


Layout = tuple[Tensor, ...]

_BIAS = _one("bias", "bias")
LINEAR: Layout = (_one("weight", "kernel", _transpose, _transpose), _BIAS)
CONV: Layout = (
    _one("weight", "kernel", lambda x: x.transpose(2, 3, 1, 0), lambda x: x.transpose(3, 2, 0, 1)),
)
POINTWISE: Layout = (  # a 1x1 convolution there, a linear layer here
    _one("weight", "kernel", lambda x: x.reshape(x.shape[:2]).T, lambda x: x.T[..., None, None]),
    _BIAS,
)
NORM: Layout = (_one("weight", "scale"), _BIAS)
FROZEN_NORM: Layout = (*NORM, _one("running_mean", "mean"), _one("running_var", "var"))
TABLE: Layout = (_one("weight", ""),)  # an embedding; ours is a parameter, not a module
ATTENTION: Layout = (  # torch.nn.MultiheadAttention
    Tensor(
        "in_proj_weight",
        ("query.kernel", "key.kernel", "value.kernel"),
        lambda x: [part.T for part in _thirds(x)],
        lambda parts: np.concatenate([part.T for part in parts]),
    ),
    Tensor(
        "in_proj_bias",
        ("query.bias", "key.bias", "value.bias"),
        _thirds,
        lambda p: np.concatenate(p),
    ),
    _one("out_proj.weight", "out.kernel", _transpose, _transpose),
    _one("out_proj.bias", "out.bias"),
)


@dataclasses.dataclass(frozen=True)
class Rule:
    """Their module, our module, and the tensors in it."""

    theirs: str
    ours: str
    layout: Layout


@dataclasses.dataclass(frozen=True)
class _Line:
    """A rule for one tensor, names complete."""

    theirs: str
    ours: tuple[str, ...]
    tensor: Tensor


class RuleTable:
    """Applies rules to dicts of arrays."""

    def __init__(self, rules: Iterable[Rule]):
        self._lines = [
            _Line(
                _join(rule.theirs, tensor.theirs),
                tuple(_join(rule.ours, ours) for ours in tensor.ours),
                tensor,
            )
            for rule in rules
            for tensor in rule.layout
        ]
        self._from_theirs = [(_pattern(line.theirs), line) for line in self._lines]
        self._from_ours = [(_pattern(ours), line) for line in self._lines for ours in line.ours]

    def paths(self, theirs: str) -> tuple[str, ...]:
        """Our parameters that one tensor of theirs becomes; () where no rule knows it."""
        for pattern, line in self._from_theirs:
            if found := pattern.fullmatch(theirs):
                return tuple(_fill(ours, found.groups()) for ours in line.ours)
        return ()

    def name(self, ours: str) -> str | None:
        """Their tensor that a parameter of ours is (a part of); None where no rule knows it."""
        for pattern, line in self._from_ours:
            if found := pattern.fullmatch(ours):
                return _fill(line.theirs, found.groups())
        return None

    def to_ours(self, state: Mapping[str, np.ndarray]) -> tuple[Arrays, list[str]]:
        """Their arrays by name to ours by path, and the names no rule knows.

        Raises:
          ValueError: tensors whose number of axes, or whose fused parts, no layout can be; lists
            them all.
        """
        arrays, unknown, problems = {}, [], []
        for name, array in state.items():
            for pattern, line in self._from_theirs:
                if found := pattern.fullmatch(name):
                    paths = [_fill(ours, found.groups()) for ours in line.ours]
                    try:
                        arrays.update(zip(paths, line.tensor.split(array), strict=True))
                    except (ValueError, IndexError) as error:
                        problems.append(f"{name}: {np.shape(array)} has a wrong shape ({error})")
                    break
            else:
                unknown.append(name)
        if problems:
            raise ValueError("weights that do not fit:\n  " + "\n  ".join(problems))
        return arrays, unknown

    def to_theirs(self, arrays: Mapping[str, np.ndarray]) -> tuple[Arrays, list[str]]:
        """Our arrays by path to theirs by name, and the paths no rule knows.

        Raises:
          ValueError: parts of a fused tensor are missing; lists them all.
        """
        state, unknown, missing = {}, [], []
        for path in arrays:
            for pattern, line in self._from_ours:
                if found := pattern.fullmatch(path):
                    name = _fill(line.theirs, found.groups())
                    paths = [_fill(ours, found.groups()) for ours in line.ours]
                    lacking = [path for path in paths if path not in arrays]
                    missing += lacking
                    if name not in state and not lacking:
                        state[name] = line.tensor.join([np.asarray(arrays[path]) for path in paths])
                    break
            else:
                unknown.append(path)
        if missing:
            raise ValueError(f"missing parts of fused tensors: {', '.join(sorted(set(missing)))}")
        return state, unknown


def _join(module: str, tensor: str) -> str:
    return f"{module}.{tensor}" if tensor else module


def _pattern(template: str) -> re.Pattern:
    return re.compile(re.escape(template).replace(r"\#", r"(\d+)"))


def _fill(template: str, numbers: Sequence[str]) -> str:
    parts = template.split("#")
    return "".join(part + number for part, number in zip(parts, (*numbers, ""), strict=True))
