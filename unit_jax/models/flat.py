"""Modules as data: a model is a static graph plus flat dicts from parameter path to array.

Paths are dot-joined ("decoder.layers.0.norm1.scale"); they are the names in checkpoints,
optimiser rules, sharding rules and weight conversion.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
from flax import nnx
from jaxtyping import Array

Flat = dict[str, Array]


class Model(NamedTuple):
    """The arrays of a model.

    Attributes:
      params: trained.
      statistics: frozen (batch norm).
    """

    params: Flat
    statistics: Flat


def split(model: nnx.Module) -> tuple[nnx.GraphDef, Flat, Flat]:
    """Returns (graph, parameters, everything else that is stored: frozen statistics)."""
    graph, params, rest = nnx.split(model, nnx.Param, ...)
    return graph, _flatten(params), _flatten(rest)


def merge(graph: nnx.GraphDef, params: Mapping[str, Any], rest: Mapping[str, Any]):
    """The module again; pure, so it may be called under jit."""
    leaves: dict[tuple[Any, ...], nnx.Variable]
    leaves = {_path(name): nnx.Param(value) for name, value in params.items()}
    leaves |= {_path(name): nnx.Variable(value) for name, value in rest.items()}
    return nnx.merge(graph, nnx.from_flat_state(leaves))


def abstract(build: Callable[[], nnx.Module]) -> tuple[nnx.GraphDef, Flat, Flat]:
    """`split(build())` with shapes and dtypes in place of arrays; allocates nothing."""
    graphs = []

    def arrays() -> tuple[Flat, Flat]:
        graph, params, rest = split(build())
        graphs.append(graph)
        return params, rest

    params, rest = jax.eval_shape(arrays)
    return graphs[0], params, rest


def task_of(path: str) -> str:
    """The task that a parameter belongs to; "" = to all."""
    part, _, rest = path.partition(".")
    return rest.partition(".")[0] if part in ("heads", "queries", "decoders") else ""


def _flatten(state: nnx.State) -> Flat:
    return {".".join(map(str, path)): leaf[...] for path, leaf in nnx.to_flat_state(state)}


def _path(name: str) -> tuple[str | int, ...]:
    return tuple(int(part) if part.isdigit() else part for part in name.split("."))
