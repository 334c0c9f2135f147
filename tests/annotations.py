"""Checks shapes while tests run: `UNIT_JAX_CHECK_TYPES=1 pytest ...`, or `make check-types`.

Every function of the package then checks the arrays that it is given and returns against its
annotations. What is no array is left to the type checker: tests put stand-ins in its place.
"""

import pathlib
import typing
from collections.abc import Callable
from typing import Any

import jax
import jaxtyping
import numpy as np
from beartype import beartype

PACKAGE = pathlib.Path(__file__).parent.parent / "unit_jax"


def install() -> None:
    """Call it before anything of the package is imported."""
    # The type checker tells JAX's arrays and NumPy's apart; tests hand over either.
    jaxtyping.Array = jax.Array | np.ndarray
    jaxtyping.install_import_hook(modules(), f"{__name__}.check")


def modules() -> list[str]:
    """All of the package but readers of foreign files: they take no arrays, call small functions
    millions of times, and tests hold them to seconds."""
    paths = [*PACKAGE.glob("*"), *PACKAGE.glob("interop/*")]
    names = {".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts) for path in paths}
    return sorted(name for name in names - {"unit_jax.interop"} if ".torch_" not in name)


def check(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function with checks around it."""
    hints = {k: hint if _has_shape(hint) else Any for k, hint in function.__annotations__.items()}
    if all(hint is Any for hint in hints.values()):
        return function
    function.__annotations__ = hints
    checked = beartype(function)
    if function.__name__ != "__init__":
        return checked

    def init(self, *args, **kwargs):
        # JAX makes pytrees anew with shapes, flags and placeholders in the place of arrays.
        is_pytree = hasattr(self, "_flax_dataclass")
        return (function if is_pytree else checked)(self, *args, **kwargs)

    return init


def _has_shape(hint: Any) -> bool:
    if isinstance(hint, type) and issubclass(hint, jaxtyping.AbstractArray):
        return True
    return any(map(_has_shape, typing.get_args(hint)))
