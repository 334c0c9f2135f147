"""Rooms of answers: one per kind of output, and the model built with their heads."""

import functools
import importlib
from collections.abc import Mapping

from flax import nnx

from unit_jax.models.unit import Unit
from unit_jax.outputs.base import Output
from unit_jax.settings import ModelSettings
from unit_jax.tasks import OUTPUTS, TaskSpec


@functools.cache
def room(spec: TaskSpec) -> Output:
    """The room that answers a task.

    Raises:
      ValueError: there is no such room.
    """
    module, colon, name = OUTPUTS.get(spec.output, spec.output).partition(":")
    try:
        cls = getattr(importlib.import_module(module), name) if colon else None
    except (ImportError, AttributeError) as error:
        raise ValueError(
            f"config.tasks.{spec.name}.output: {spec.output!r} cannot be imported ({error})"
        ) from None
    if not (isinstance(cls, type) and issubclass(cls, Output)):
        raise ValueError(
            f"config.tasks.{spec.name}.output: {spec.output!r} is no kind of answer; known: "
            f"{', '.join(OUTPUTS)}, or module:Class of your own (a subclass of "
            "unit_jax.outputs.base.Output)"
        )
    return cls(spec)


def build(settings: ModelSettings, tasks: Mapping[str, TaskSpec], *, rngs: nnx.Rngs) -> Unit:
    """The whole model with fresh parameters, each task with the head of its room."""
    return Unit(settings, tasks, lambda spec: room(spec).head(settings, rngs), rngs=rngs)
