"""The programs of a run: which there are, compiling them ahead, counting and keeping them."""

import contextlib
import functools
import os
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent import futures
from typing import Any, cast

import jax
from etils import epath
from jax.experimental.compilation_cache import compilation_cache

from unit_jax.data import mixture
from unit_jax.data.batching import Bucket
from unit_jax.data.shapes import batch_shapes, input_shapes
from unit_jax.evaluation.step import PredictStep
from unit_jax.settings import Settings
from unit_jax.tasks import TaskSpec
from unit_jax.training.step import TrainState, TrainStep

Shape = tuple[TaskSpec, Bucket]
Name = tuple[str, str, Bucket]  # "train" or "predict", task, what its batches are padded to

# Tracing holds Python's lock, XLA does not; its compiler takes one or two gigabytes a program.
THREADS = min(8, os.cpu_count() or 1)
_COMPILE_EVENT = "/jax/core/compile/backend_compile_duration"


def keep_programs(folder: epath.Path) -> None:
    """Has JAX keep compiled programs in a folder and read them back in later runs.

    A folder that JAX was told of already (JAX_COMPILATION_CACHE_DIR) stays.
    """
    if not cast(Any, jax.config).jax_compilation_cache_dir:  # its attributes are made at run time
        jax.config.update("jax_compilation_cache_dir", str(folder))
        compilation_cache.reset_cache()  # else JAX remembers that it had no folder


class Counter:
    """Counts the programs that JAX compiles, or reads from its cache, until it is closed.

    Attributes:
      programs: how many.
      seconds: what that took, summed over threads.
    """

    def __init__(self):
        self.programs, self.seconds = 0, 0.0
        self._lock = threading.Lock()
        jax.monitoring.register_event_duration_secs_listener(self._on_event)

    def close(self) -> None:
        jax.monitoring.unregister_event_duration_listener(self._on_event)

    def _on_event(self, event: str, duration_secs: float, **_: Any) -> None:
        if event == _COMPILE_EVENT:
            with self._lock:
                self.programs += 1
                self.seconds += duration_secs


def all_shapes(settings: Settings) -> list[Shape]:
    """The tasks that are sampled, each with each of its buckets; data may use fewer."""
    return [
        (spec, bucket)
        for spec in settings.tasks.values()
        if settings.ratios[spec.name] > 0
        for bucket in mixture.buckets_of(spec, settings.data)
    ]


def work(
    train_step: TrainStep,
    predict: PredictStep,
    state: TrainState,
    settings: Settings,
    mesh,
    training: Iterable[Shape],
    evaluation: Iterable[Shape],
) -> list[tuple[Name, Callable[[], None]]]:
    """What is to be compiled, as (name, call that compiles it).

    Args:
      state: arrays, or shapes, dtypes and shardings of them.
      training, evaluation: what batches there are.
    """
    # Tasks with the same inputs share their update: who comes second waits, and finds it compiled.
    one_at_a_time = threading.Lock()

    def step(spec: TaskSpec, bucket: Bucket) -> None:
        batch = batch_shapes(spec, bucket, settings, mesh)
        for name, program in train_step.lower(state, batch):
            with one_at_a_time if name == "update" else contextlib.nullcontext():
                program.compile()

    def prediction(spec: TaskSpec, bucket: Bucket) -> None:
        batch = input_shapes(spec, bucket, settings.train.eval_batch_size, mesh)
        predict.lower(state.model, batch).compile()

    return [
        ((name, spec.name, bucket), functools.partial(compile_one, spec, bucket))
        for name, compile_one, shapes in (
            ("train", step, training),
            ("predict", prediction, evaluation),
        )
        for spec, bucket in shapes
    ]


def compile_all(work: list[tuple[Name, Callable[[], None]]], threads: int) -> Iterator[Name]:
    """Does the work in several threads; yields each name when it is done."""
    with futures.ThreadPoolExecutor(threads) as pool:
        names = {pool.submit(compile_one): name for name, compile_one in work}
        try:
            for done in futures.as_completed(names):
                done.result()
                yield names[done]
        finally:  # an error in one ends the others
            pool.shutdown(cancel_futures=True)
