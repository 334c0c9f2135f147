"""Settings as dataclass fields, and reading values into them.

A setting stands in one place: a field of a frozen dataclass, declared with `setting(...)`, which
holds its default, a sentence about it and what values it may have. `Reader` turns a nested mapping
into such dataclasses and collects everything that is wrong with it.
"""

import ast
import dataclasses
import difflib
import functools
import math
import numbers
import typing
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal

KEY = "unit_jax"  # of our part of a field's metadata


@dataclasses.dataclass(frozen=True)
class About:
    """What a field knows beside its type and default.

    Attributes:
      text: what the setting does.
      low, high: inclusive limits of a number, or of each number in a tuple; None = no limit.
      above, below: exclusive limits.
      items: the least number of entries of a tuple.
      free: of model settings: may differ from those that a checkpoint was made with.
      local: may differ from one process of a run to the next.
    """

    text: str = ""
    low: float | None = None
    high: float | None = None
    above: float | None = None
    below: float | None = None
    items: int = 0
    free: bool = False
    local: bool = False

    def allows(self, number: float) -> bool:
        """Whether a number lies within the limits; NaN never does."""
        return not math.isnan(number) and not (
            (self.low is not None and number < self.low)
            or (self.high is not None and number > self.high)
            or (self.above is not None and number <= self.above)
            or (self.below is not None and number >= self.below)
        )

    @property
    def range(self) -> str:
        """The limits in words; "" = none."""
        limits = [
            f"{word} {limit:g}"
            for word, limit in (
                ("at least", self.low),
                ("above", self.above),
                ("at most", self.high),
                ("below", self.below),
            )
            if limit is not None
        ]
        return " and ".join(limits)


def setting(default: Any, text: str, **about: Any) -> Any:
    """A field with a default and a sentence about it; `about` are other attributes of `About`."""
    return dataclasses.field(default=default, metadata={KEY: About(text, **about)})


def required(text: str, **about: Any) -> Any:
    """A field without a default."""
    return dataclasses.field(metadata={KEY: About(text, **about)})


def group(cls: Callable[[], Any], text: str, **about: Any) -> Any:
    """A field that holds further fields, or a dict; `cls()` makes its default."""
    return dataclasses.field(default_factory=cls, metadata={KEY: About(text, **about)})


def about(field: dataclasses.Field) -> About:
    """What `setting` said of a field."""
    return field.metadata.get(KEY, About())


def nearest(value: object, names: Iterable[str]) -> str | None:
    """The name that was most likely meant, if one is near. The end may be left out."""
    word = str(value).lower()

    def likeness(name: str) -> float:
        whole, start = (
            difflib.SequenceMatcher(None, word, part).ratio()
            for part in (name.lower(), name.lower()[: len(word) + 1])
        )
        return max(whole, 0.99 * start)

    best = max(names, key=likeness, default="")
    return best if best and likeness(best) > 0.65 else None


def did_you_mean(value: object, names: Iterable[str]) -> str:
    """ "; did you mean NAME?", or nothing."""
    name = nearest(value, names)
    return f"; did you mean {name}?" if name else ""


def fields_of(cls: Any) -> tuple[dataclasses.Field, ...]:
    """The fields of a dataclass that is known by a type alone."""
    return dataclasses.fields(cls)


def leaves(cls: type, where: str = "") -> dict[str, tuple[Any, dataclasses.Field]]:
    """All settings below a dataclass: (type, field) by dotted name, in the order of the file."""
    settings = {}
    hints = typing.get_type_hints(cls)
    for field in fields_of(cls):
        name = f"{where}.{field.name}" if where else field.name
        if dataclasses.is_dataclass(hints[field.name]):
            settings.update(leaves(hints[field.name], name))
        else:
            settings[name] = (hints[field.name], field)
    return settings


def plain(config: Any) -> Any:
    """Nested mappings (ml_collections.ConfigDict too) as plain dicts (copies), lists as tuples."""
    if isinstance(config, Mapping) or hasattr(config, "items"):
        return {key: plain(value) for key, value in config.items()}
    return config


def known(cls: type, values: Mapping[str, Any]) -> dict[str, Any]:
    """The values without keys that a dataclass, or a group in it, does not have."""
    hints = typing.get_type_hints(cls)
    return {
        key: known(hints[key], value)
        if dataclasses.is_dataclass(hints[key]) and isinstance(value, Mapping)
        else value
        for key, value in values.items()
        if key in hints
    }


def words(hint: Any) -> str:
    """A type as people say it."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is Literal:
        return "one of " + ", ".join(map(str, arguments))
    if origin is tuple:
        if arguments[-1] is Ellipsis:
            return f"a tuple of {_plural(arguments[0])}"
        return "(" + ", ".join(map(words, arguments)) + ")"
    if hint in _NAMES:
        return _NAMES[hint]
    return "a dict" if origin in (dict, Mapping, typing.get_origin(Mapping)) else str(hint)


_NAMES = {int: "int", float: "float", str: "str", bool: "True or False"}


def _plural(hint: Any) -> str:
    return f"{hint.__name__}s" if hint in _NAMES else words(hint)


class Reader:
    """Turns nested mappings into dataclasses.

    Attributes:
      problems: a line for everything that is wrong, with its place and what to do.
      wrong: the places of these lines.
      root: the class of the whole; an unknown key is looked for in all of it.
    """

    def __init__(self, root: type | None = None):
        self.problems: list[str] = []
        self.wrong: set[str] = set()
        self.root = root

    def problem(self, where: str, text: str) -> None:
        """Notes what is wrong at a place."""
        self.problems.append(f"{where}: {text}")
        self.wrong.add(where)

    def read(
        self, cls: type, values: Any, where: str, given: Mapping[str, Any] | None = None
    ) -> Any:
        """An instance of `cls`; what is wrong with the values becomes lines in `problems`.

        Args:
          values: nested mapping; keys that it leaves out take their defaults, and so do values
            that are wrong, so that the rest can still be checked.
          given: fields that are known already, and no keys.

        Returns:
          None if a field without default is missing or wrong.
        """
        if not isinstance(values, Mapping):
            self.problem(where, f"expected a group of settings, got {values!r}")
            values = {}
        given = given or {}
        hints = typing.get_type_hints(cls)
        fields = {field.name: field for field in fields_of(cls) if field.name not in given}
        for key in sorted(map(str, values)):
            if key not in fields:
                self.problem(f"{where}.{key}", self._unknown(key, fields))
        read, complete = dict(given), True
        for name, field in fields.items():
            place = f"{where}.{name}"
            if name in values:
                before = len(self.problems)
                value = self.convert(hints[name], values[name], place, about(field))
                if len(self.problems) == before or dataclasses.is_dataclass(hints[name]):
                    read[name] = value
                    continue
            elif dataclasses.MISSING is field.default is field.default_factory:
                self.problem(place, "missing")
            complete &= not (dataclasses.MISSING is field.default is field.default_factory)
        return cls(**read) if complete else None

    def convert(self, hint: Any, value: Any, where: str, limits: About | None = None) -> Any:
        """`value` as type `hint` within its limits, or a line in `problems`."""
        limits = limits or About()
        if hint is Any:  # whoever reads it checks it
            return value
        origin, arguments = typing.get_origin(hint), typing.get_args(hint)
        if dataclasses.is_dataclass(hint):
            return self.read(hint, value, where)
        if origin is Literal:
            if value not in arguments:
                options = ", ".join(map(repr, arguments))
                self.problem(
                    where, f"{value!r} is not one of {options}{did_you_mean(value, arguments)}"
                )
            return value
        if origin is tuple:
            return self._tuple(arguments, value, where, limits)
        if origin is dict or hasattr(value, "items"):
            return self._dict(arguments, value, where, limits)
        return self._scalar(hint, value, where, limits)

    def _tuple(self, arguments: tuple, value: Any, where: str, limits: About) -> tuple | None:
        if not isinstance(value, (tuple, list)):
            self.problem(where, f"expected a tuple, got {value!r}")
            return None
        hints = [arguments[0]] * len(value) if arguments[-1] is Ellipsis else list(arguments)
        if len(hints) != len(value):
            self.problem(where, f"expected {len(hints)} values, got {value!r}")
            return None
        if len(value) < limits.items:
            self.problem(where, f"expected {limits.items} or more values, got {value!r}")
        return tuple(
            self.convert(h, v, f"{where}[{i}]", limits)
            for i, (h, v) in enumerate(zip(hints, value, strict=True))
        )

    def _dict(self, arguments: tuple, value: Any, where: str, limits: About) -> dict | None:
        if not isinstance(value, Mapping) or not arguments:
            self.problem(where, f"expected a value, got {value!r}")
            return None
        return {
            key: self.convert(arguments[1], v, f"{where}.{key}", limits) for key, v in value.items()
        }

    def _scalar(self, hint: type, value: Any, where: str, limits: About) -> Any:
        kinds = {int: numbers.Integral, float: numbers.Real}
        is_bool = isinstance(value, bool) or type(value).__name__ == "bool_"
        if is_bool != (hint is bool) or not (is_bool or isinstance(value, kinds.get(hint, hint))):
            self.problem(where, f"expected {words(hint)}, got {value!r}")
            return value
        value = hint(value)
        if hint in kinds and not limits.allows(value):
            self.problem(where, f"{value:g} is out of range: {limits.range or 'a number'}")
        return value

    def _unknown(self, key: str, fields: Iterable[str]) -> str:
        near = nearest(key, fields)
        told = f"; did you mean {near}?" if near else ""
        elsewhere = [name for name in _all_names(self.root) if name.rsplit(".", 1)[-1] == key]
        if not near and elsewhere:
            told = f"; did you mean {' or '.join(f'config.{name}' for name in elsewhere)}?"
        return f"unknown key{told} (known here: {', '.join(fields)})"


@functools.cache
def _all_names(root: type | None) -> tuple[str, ...]:
    return tuple(leaves(root)) if root else ()


def from_text(hint: Any, text: str) -> Any:
    """What a word of the command line means as a value of type `hint`.

    Text that is no such value is returned as it is; `Reader` then says so.
    """
    if hint is str or (typing.get_origin(hint) is Literal and text in typing.get_args(hint)):
        return text
    if hint is bool:
        return {"true": True, "false": False, "1": True, "0": False}.get(text.lower(), text)
    try:
        value = ast.literal_eval(text)
    except (SyntaxError, ValueError):
        value = text
    if typing.get_origin(hint) is tuple and not isinstance(value, (tuple, list)):
        # A tuple of words or of one number may be written without brackets and quotes.
        value = tuple(text.split(",")) if value == text else (value,)
        value = tuple(word for word in value if word != "")
    return value
