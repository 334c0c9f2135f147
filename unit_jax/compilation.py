"""The programs of training: which there are, compiling them ahead, counting and keeping them."""

from typing import Any

import jax
from etils import epath
from jax.experimental.compilation_cache import compilation_cache

from unit_jax.batch import Batch
from unit_jax.data import mixture
from unit_jax.data.batching import Bucket
from unit_jax.settings import Settings
from unit_jax.tasks import TaskSpec
from unit_jax.train_step import TrainState, TrainStep

_COMPILE_EVENT = "/jax/core/compile/backend_compile_duration"


def keep_programs(folder: epath.Path) -> None:
    """Has JAX keep compiled programs in a folder and read them back in later runs.

    A folder that JAX was told of already (JAX_COMPILATION_CACHE_DIR) stays.
    """
    if not jax.config.jax_compilation_cache_dir:
        compilation_cache.set_cache_dir(str(folder))
        compilation_cache.reset_cache()  # else JAX remembers that it had no folder


class Counter:
    """Counts the programs that JAX compiles, or reads from its cache, until it is closed.

    Attributes:
      programs: how many.
      seconds: what that took.
    """

    def __init__(self):
        self.programs, self.seconds = 0, 0.0
        jax.monitoring.register_event_duration_secs_listener(self._on_event)

    def close(self) -> None:
        jax.monitoring.unregister_event_duration_listener(self._on_event)

    def _on_event(self, event: str, seconds: float, **_: Any) -> None:
        if event == _COMPILE_EVENT:
            self.programs += 1
            self.seconds += seconds


def combinations(settings: Settings) -> list[tuple[TaskSpec, Bucket]]:
    """The tasks that are sampled, each with each of its shapes."""
    return [
        (spec, bucket)
        for spec in settings.tasks.values()
        if settings.ratios[spec.name] > 0
        for bucket in mixture.buckets_of(spec, settings.data)
    ]


def compile_step(train_step: TrainStep, state: TrainState, batch: Batch) -> None:
    """Compiles the programs of a step; `state` and `batch` may be shapes, dtypes and shardings."""
    for _, program in train_step.lower(state, batch):
        program.compile()
