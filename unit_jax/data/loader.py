"""Prepared data to batches: a grain pipeline over steps, with nothing stateful in it.

The source maps a step to a finished batch of NumPy arrays, so a run that resumes at step k reads
step k, and any number of threads, worker processes or training processes gives the same batches.
"""

import functools
import multiprocessing
import os
import re
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any, SupportsIndex

import grain
import jax
import numpy as np
from absl import flags

from unit_jax import outputs
from unit_jax.batch import Batch
from unit_jax.data import batching, mixture, sampling, text
from unit_jax.data.batching import Bucket
from unit_jax.data.mixture import Examples, StepPlan
from unit_jax.data.prepared import PreparedData, Split
from unit_jax.data.reader import Reader
from unit_jax.runtime import stopping, watchdog
from unit_jax.settings import DataSettings, Settings
from unit_jax.tasks import TaskSpec

# Smaller arrays reach the parent of a worker faster through its pipe than through shared memory.
_SHARED_BYTES = 64 * 2**10
_WORTH_WORKERS = 1000  # examples with pictures that an evaluation starts worker processes for


def train_batches(
    settings: Settings,
    data: PreparedData,
    start_step: int = 0,
    places: np.ndarray | None = None,
) -> "Batches":
    """The batches of steps start_step, start_step + 1, ... up to `train.steps`.

    Use it in a `with` statement. The leaves are NumPy arrays: the examples at `places` (what this
    process's devices hold; None = all) of the global batch, which depends on (seed, step) alone.
    `index` holds the position in the split.

    Raises:
      ValueError: data and settings do not fit each other, see `check`.
    """
    names = [name for name in settings.tasks if settings.ratios[name] > 0]
    check(settings, data, [(name, "train") for name in names])
    splits = {name: data.split(name, "train") for name in names}
    rare = settings.data.repeat_rare
    plans = mixture.Mixture(settings, {n: _examples(split, rare) for n, split in splits.items()})
    tokenizer = _tokenizer(settings, data, names)
    readers = {
        name: Reader(settings.tasks[name], split, settings.data, tokenizer, data, training=True)
        for name, split in splits.items()
    }
    source = _Source(plans.plan, range(start_step, settings.train.steps), readers, places)
    return Batches(source, settings.data, settings.data.num_workers)


def eval_batches(
    settings: Settings,
    data: PreparedData,
    task: str,
    split: str = "val",
    places: np.ndarray | None = None,
) -> "Batches":
    """Every example of a split exactly once, without augmentation, grouped by bucket.

    Use it in a `with` statement. `places` as for training. `index` holds the position in the
    split; -1 marks the fillers of last batches, which repeat a real example. Targets are None
    where the split has no labels; their objects are those that training would see (no crowd
    regions), so metrics that follow COCO's rules read the records instead.

    Raises:
      ValueError: data and settings do not fit each other, see `check`.
    """
    check(settings, data, [(task, split)])
    spec, examples = settings.tasks[task], data.split(task, split)
    plans = mixture.evaluation_plans(
        spec, _examples(examples), settings.train.eval_batch_size, settings.data
    )
    tokenizer = _tokenizer(settings, data, [task])
    reader = Reader(spec, examples, settings.data, tokenizer, data, training=False)
    source = _Source(plans.__getitem__, range(len(plans)), {task: reader}, places)
    # Worker processes take seconds to start, few pictures or texts less than that to read.
    worth_it = spec.has_image and len(examples) >= _WORTH_WORKERS
    workers = settings.data.num_workers if worth_it else 0
    return Batches(source, settings.data, workers, evaluates=True)


def shapes(settings: Settings, data: PreparedData, split: str) -> list[tuple[TaskSpec, Bucket]]:
    """The tasks, each with the buckets that its batches of a split can have; of the split train
    the tasks that are sampled."""
    training = split == "train"
    return [
        (spec, bucket)
        for name, spec in settings.tasks.items()
        if settings.ratios[name] > 0 or not training
        for bucket in mixture.possible_buckets(
            spec, _examples(data.split(name, split)), settings.data, training
        )
    ]


def check(settings: Settings, data: PreparedData, splits: Sequence[tuple[str, str]]) -> None:
    """Checks (task, split) pairs before any work: sizes fit buckets, counts fit shapes.

    Raises:
      ValueError: one message that lists every misfit with its remedy.
    """
    problems = []
    for name, split_name in splits:
        spec, split = settings.tasks[name], data.split(name, split_name)
        where, training = f"{name} ({split_name})", split_name == "train"
        if spec.has_image:
            sizes = split.sizes
            checks = [
                functools.partial(
                    batching.check_buckets, where, spec.transforms, *sizes, settings.data, training
                )
            ]
            problems += filter(None, map(_message, checks))
        if problem := outputs.room(spec).check(split, settings.data):
            problems.append(f"{where}: {problem}")
    problems += filter(
        None, [_message(lambda: _tokenizer(settings, data, [name for name, _ in splits]))]
    )
    if problems:
        raise ValueError("data and config do not fit:\n  " + "\n  ".join(problems))


def _message(run: Callable[[], Any]) -> str | None:
    try:
        run()
    except ValueError as error:
        return str(error)
    return None


class Batches(Iterator[Batch]):
    """Iterator of batches prepared ahead, by threads of this process or by worker processes.

    Close it, or use it in a `with` statement: worker processes end and shared memory is freed.
    """

    def __init__(
        self, source: "_Source", settings: DataSettings, num_workers: int, evaluates: bool = False
    ):
        self._source, self._settings = source, settings
        # Of several processes one cannot give an evaluation up while the others go on.
        self._can_be_given_up = evaluates and jax.process_count() == 1
        self._workers = min(num_workers, len(source))
        self._given, self._made_again = 0, -1
        if not flags.FLAGS.is_parsed():  # grain reads flags; in notebooks and tests nobody parses
            flags.FLAGS.mark_as_parsed()
        self._iterator = self._open()

    def _open(self) -> grain.DatasetIterator[Batch]:
        """The batches that were not given yet."""
        settings, workers = self._settings, self._workers
        threads = min(settings.num_threads, settings.prefetch)
        per_worker = max(settings.prefetch // max(workers, 1), 1)
        dataset = grain.MapDataset.source(self._source)[self._given :].to_iter_dataset(
            # A worker process prepares one batch after the other: parallelism is its number.
            grain.ReadOptions(num_threads=0, prefetch_buffer_size=0)
            if workers
            else grain.ReadOptions(num_threads=threads, prefetch_buffer_size=settings.prefetch)
        )
        if workers:
            options = grain.experimental.DatasetOptions(min_shm_size=_SHARED_BYTES)
            dataset = grain.experimental.WithOptionsIterDataset(dataset, options).mp_prefetch(
                grain.MultiprocessingOptions(
                    num_workers=workers, per_worker_buffer_size=per_worker
                ),
                worker_init_fn=_start_worker,
            )
        return iter(dataset)

    def __len__(self) -> int:
        """How many batches there are in all."""
        return len(self._source)

    def __next__(self) -> Batch:
        """The next batch. Where a worker process died (killed, out of memory) it is made again,
        once.

        Raises:
          ValueError: a worker died twice over one batch, or data cannot be read.
          stopping.Interrupted: a stop was asked for in the middle of an evaluation.
        """
        if self._can_be_given_up:
            stopping.check()
        try:
            batch = next(self._iterator)
        except RuntimeError as error:
            if _DIED not in str(error):
                raise
            died = f"a worker process that prepares batches died ({_reason(error)})"
            what = f"batch {self._given} ({self._source.name(self._given)})"
            if self._made_again == self._given:
                raise ValueError(
                    f"{died} a second time over {what}; is there memory for "
                    f"data.num_workers={self._workers} processes?"
                ) from error
            print(f"{died}; {what} is made again", file=sys.stderr)
            self._made_again = self._given
            self._iterator.close()
            self._iterator = self._open()
            return next(self)
        self._given += 1
        watchdog.alive(f"batch {self._given} of {batch.task} is there")
        return batch

    def __enter__(self) -> "Batches":
        return self

    def __exit__(self, *_) -> None:
        self.close()

    def close(self) -> None:
        """Ends worker processes; the iterator is of no use afterwards."""
        self._iterator.close()


_DIED = "Worker process was terminated"  # grain's words


def _reason(error: RuntimeError) -> str:
    """How the worker ended: its exit code or signal, read from grain's message."""
    match = re.search(r"exit code -?\d+", str(error))
    code = int(match[0].split()[-1]) if match else 0
    return f"killed by {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"


def _start_worker(index: int, count: int) -> None:
    """Runs first in a worker process.

    A worker must never take hold of an accelerator, and where processors are few it yields them to
    the train step, which others wait for. It leaves Ctrl-C and SIGTERM, which a cluster
    sends to all of a job's processes, to its parent, which closes it, and ends by itself where the
    parent was killed and cannot.
    """
    del index, count
    jax.config.update("jax_platforms", "cpu")
    os.nice(10)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    assert parent is not None  # a worker has one

    def end_with_parent():
        parent.join()
        os._exit(1)

    threading.Thread(target=end_with_parent, daemon=True).start()


class _Source:
    """Random access from a step's position to its batch: what grain reads from."""

    def __init__(
        self,
        plan: Callable[[int], StepPlan],
        steps: range,
        readers: dict[str, Reader],
        places: np.ndarray | None,
    ):
        self._plan = plan
        self._steps = steps
        self._readers = readers
        self._places = places

    def __len__(self) -> int:
        return len(self._steps)

    def name(self, position: int) -> str:
        """The task and the first rows of the batch at a position, for messages."""
        plan = self._plan(self._steps[position])
        return f"{plan.task}, rows {', '.join(map(str, plan.rows[:8]))}, ..."

    def __getitem__(self, index: SupportsIndex) -> Batch:
        plan = self._plan(self._steps[index])
        return self._readers[plan.task].batch(plan.part(self._places), fallback=plan.rows[0])


def _examples(split: Split, repeat_rare: float = 0.0) -> Examples:
    """What planning needs; where rare classes are repeated all records are read for it."""
    times = None
    if repeat_rare:
        classes = [sampling.classes_of(split[row]) for row in range(len(split))]
        times = sampling.repeat_times(classes, repeat_rare)
    return Examples(len(split), split.height, split.width, split.num_tokens, times)


def _tokenizer(
    settings: Settings, data: PreparedData, names: Sequence[str]
) -> text.Tokenizer | None:
    if not any(settings.tasks[name].has_text for name in names):
        return None
    tokenizer = text.Tokenizer(data.vocabulary_path)
    rows = settings.model.text_encoder.vocab_size
    if tokenizer.size > rows:
        raise ValueError(
            f"the vocabulary {data.vocabulary_path} has {tokenizer.size} tokens, "
            f"model.text_encoder.vocab_size is {rows}; set it to {tokenizer.size}"
        )
    return tokenizer
