"""Which task, which examples and which augmentation make the global batch of a step.

All of it is a pure function of (seed, step): nothing depends on what was drawn before, on the
length of the run, or on processes and workers. Any step can be planned at any time; tables that
make it cheap are only caches.

How well it shuffles. Tasks are drawn independently at every step. In a task, every epoch is a new
uniformly random order of all examples, with new augmentation. Examples are then grouped by bucket
in that order (images by shape, texts of language tasks by length) and cut into batches, and the
batches of all buckets are put in random order. So which examples of a bucket meet in a batch is
uniformly random and changes with every epoch, shapes alternate as random draws without replacement
do, and every example is seen every epoch. What bucketing costs is that the examples of one batch
are alike in shape or length; under training augmentation an image changes its bucket between
epochs. Examples that do not fill a batch of their bucket join a larger bucket in use; where none
is left, the batch is filled with the first examples of the same bucket, which are then seen twice
in that epoch.

Examples that show rare classes can be repeated (`Examples.times`, from `sampling`): how often an
epoch has one is drawn anew for every epoch, and each copy is augmented on its own.

Why texts are grouped, and not each batch padded to the bucket of its longest: the longest of 64
texts is nearly always long, so that would save little (tools/choose_buckets.py prints both), and a
process that reads only its slice of a batch would not know it. Lengths come from the index of the
prepared data, as image sizes do. Texts of vision-language tasks are short and all padded to the
task's length: their batches are grouped by image.
"""

import dataclasses
import itertools
import threading
from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Float, Int, UInt64

from unit_jax.data import batching, counters, transforms
from unit_jax.data.batching import Bucket
from unit_jax.settings import DataSettings, Settings
from unit_jax.tasks import TaskSpec

_BLOCK = 4096  # steps whose tasks are drawn at once


@dataclasses.dataclass(frozen=True)
class Examples:
    """What planning needs to know about the examples of a task's split.

    Attributes:
      count: how many there are.
      height, width: of their images as stored, in pixels; None without images.
      tokens: lengths of their texts (language tasks), None = unknown: the task's maximum.
      times: how often an epoch shows each in the mean, at least 1; None = once.
    """

    count: int
    height: Int[np.ndarray, "examples"] | None = None
    width: Int[np.ndarray, "examples"] | None = None
    tokens: Int[np.ndarray, "examples"] | None = None
    times: Float[np.ndarray, "examples"] | None = None

    @property
    def sizes(self) -> tuple[Int[np.ndarray, "examples"], Int[np.ndarray, "examples"]]:
        """(heights, widths) of the images.

        Raises:
          ValueError: there are none.
        """
        if self.height is None or self.width is None:
            raise ValueError("these examples have no images")
        return self.height, self.width

    def take(self, rows: Int[np.ndarray, "rows"]) -> "Examples":
        """Some of them, in another order or repeated."""
        arrays = (self.height, self.width, self.tokens, self.times)
        return Examples(len(rows), *(None if a is None else a[rows] for a in arrays))


@dataclasses.dataclass(frozen=True)
class StepPlan:
    """One global batch.

    Attributes:
      task: name of its task.
      bucket: what its examples are padded to: (height, width) of images, or (tokens,) of the
        texts of a language task.
      rows: examples, as positions in the split; -1 = filler (evaluation only).
      seeds: of each example's augmentation; None in evaluation.
    """

    task: str
    bucket: Bucket
    rows: Int[np.ndarray, "batch"]
    seeds: UInt64[np.ndarray, "batch"] | None

    def part(self, places: Int[np.ndarray, "places"] | None) -> "StepPlan":
        """The examples at some places of the global batch, as one process prepares them."""
        if places is None:
            return self
        seeds = None if self.seeds is None else self.seeds[places]
        return dataclasses.replace(self, rows=self.rows[places], seeds=seeds)


class Mixture:
    """Plans training steps: `mixture.plan(step)`. Threads may share it; it can be pickled.

    Args:
      settings: seed, tasks with sampling ratios, batch size, transforms and buckets.
      examples: the training split of every task.

    Raises:
      ValueError: no task has a positive ratio, or one that has, has no examples.
    """

    def __init__(self, settings: Settings, examples: Mapping[str, Examples]):
        # Sorted: the order in which a config lists its tasks changes nothing.
        names = sorted(name for name in settings.tasks if settings.ratios[name] > 0)
        if not names:
            raise ValueError("config.tasks: no task has a ratio above 0")
        for name in names:
            if not examples[name].count:
                raise ValueError(f"{name}: its training split is empty; set its ratio to 0")
        self._seed = settings.seed
        self._skip = settings.data.skip
        self._names = names
        ratios = np.asarray([settings.ratios[name] for name in names])
        self._upper = np.cumsum(ratios / ratios.sum())[:-1]
        self._orders = [
            _Order(
                settings.tasks[name],
                examples[name],
                settings.seed,
                settings.train.batch_size,
                settings.data,
            )
            for name in names
        ]
        self._blocks: list[tuple[np.ndarray, np.ndarray]] = []
        self._lock = threading.Lock()

    def __getstate__(self):
        return {**self.__dict__, "_lock": None}

    def __setstate__(self, state):
        self.__dict__.update(state, _lock=threading.Lock())

    def plan(self, step: int) -> StepPlan:
        """The global batch of a step (the first is 0)."""
        with self._lock:
            task, number = self._locate(self._place(step))
            return self._orders[task].batch(number)

    def task(self, step: int) -> str:
        """Name of the task at a step."""
        with self._lock:
            return self._names[self._locate(self._place(step))[0]]

    def _place(self, step: int) -> int:
        """Which batch a step gets when those of `data.skip` are left out."""
        for first, last in self._skip:  # of steps as the log counts them, from 1
            if step + 1 >= first:
                step += last - first + 1
        return step

    def _locate(self, step: int) -> tuple[int, int]:
        """Number of the step's task, and how many steps that task had before."""
        block, offset = divmod(step, _BLOCK)
        while len(self._blocks) <= block:
            first = len(self._blocks) * _BLOCK
            steps = np.arange(first, first + _BLOCK)
            draws = counters.uniform(counters.mix(self._seed, "task", steps))
            tasks = np.searchsorted(self._upper, draws, side="right")
            before = np.zeros(len(self._names), np.int64)
            if self._blocks:
                last_tasks, last_before = self._blocks[-1]
                before = last_before + np.bincount(last_tasks, minlength=len(self._names))
            self._blocks.append((tasks, before))
        tasks, before = self._blocks[block]
        task = tasks[offset]
        return int(task), int(before[task] + np.count_nonzero(tasks[:offset] == task))


def buckets_of(spec: TaskSpec, settings: DataSettings) -> tuple[Bucket, ...]:
    """The buckets of a task, in the order of their numbers."""
    if spec.has_image:
        return batching.sort_buckets(settings.buckets)
    return batching.text_buckets(spec.max_tokens, settings)


def padded_sizes(
    spec: TaskSpec,
    examples: Examples,
    settings: DataSettings,
    seeds: UInt64[np.ndarray, "examples"] | None = None,
) -> Int[np.ndarray, "examples dims"]:
    """What a bucket must hold of each example: (height, width) after the transforms, or (tokens,).

    Args:
      seeds: of the augmentation; None = evaluation.
    """
    if spec.has_image:
        return transforms.plan(spec.transforms, *examples.sizes, settings, seeds).size
    if examples.tokens is None:
        return np.full((examples.count, 1), spec.max_tokens)
    return np.minimum(examples.tokens, spec.max_tokens)[:, None]


def possible_sizes(
    spec: TaskSpec, examples: Examples, settings: DataSettings, training: bool
) -> Int[np.ndarray, "sizes dims"]:
    """All that buckets must hold of these examples, under any augmentation."""
    if not spec.has_image:
        return padded_sizes(spec, examples, settings)
    return transforms.possible_sizes(spec.transforms, *examples.sizes, settings, training)


def possible_buckets(
    spec: TaskSpec, examples: Examples, settings: DataSettings, training: bool
) -> tuple[Bucket, ...]:
    """The buckets that the batches of these examples can have, under any augmentation."""
    sizes = possible_sizes(spec, examples, settings, training)
    buckets = buckets_of(spec, settings)
    return tuple(buckets[number] for number in np.unique(batching.choose_bucket(sizes, buckets)))


class _Order:
    """The batches of one task in order, epoch after epoch."""

    def __init__(
        self, spec: TaskSpec, examples: Examples, seed: int, batch_size: int, settings: DataSettings
    ):
        self._spec = spec
        self._examples = examples
        self._key = counters.mix(seed, spec.name)
        self._batch_size = batch_size
        self._settings = settings
        self._buckets = buckets_of(spec, settings)
        self._starts = [0]  # number of the first batch of each epoch
        self._epochs: dict[int, list[StepPlan]] = {}

    def __getstate__(self):
        return {**self.__dict__, "_epochs": {}}

    def batch(self, number: int) -> StepPlan:
        while self._starts[-1] <= number:
            _, _, numbers = self._draw(len(self._starts) - 1)
            groups = group(numbers, self._batch_size, self._buckets)
            batches = sum(-(-len(rows) // self._batch_size) for rows in groups)
            self._starts.append(self._starts[-1] + batches)
        epoch = int(np.searchsorted(self._starts, number, side="right")) - 1
        if epoch not in self._epochs:
            # Threads that prepare batches ahead need two epochs at a border.
            self._epochs = {e: p for e, p in self._epochs.items() if e == epoch - 1}
            self._epochs[epoch] = self._plan_epoch(epoch)
        return self._epochs[epoch][number - self._starts[epoch]]

    def _draw(
        self, epoch: int
    ) -> tuple[Int[np.ndarray, "n"], UInt64[np.ndarray, "n"], Int[np.ndarray, "n"]]:
        """The examples of an epoch as rows, and augmentation seed and bucket number of each."""
        rows = np.arange(self._examples.count)
        seeds = counters.mix(self._key, "augmentation", epoch, rows)
        examples = self._examples
        if examples.times is not None:
            whole = np.floor(examples.times).astype(np.int64)
            draws = counters.uniform(counters.mix(self._key, "repeat", epoch, rows))
            counts = whole + (draws < examples.times - whole)
            copy = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
            rows = np.repeat(rows, counts)
            seeds = np.where(copy > 0, counters.mix(seeds[rows], "copy", copy), seeds[rows])
            examples = examples.take(rows)
        sizes = padded_sizes(self._spec, examples, self._settings, seeds)
        numbers = batching.choose_bucket(sizes, self._buckets)
        if numbers.min() < 0:
            height, width = sizes[np.argmin(numbers)]
            raise ValueError(
                f"{self._spec.name}: no bucket of data.buckets holds {height} x {width}"
            )
        return rows, seeds, numbers

    def _plan_epoch(self, epoch: int) -> list[StepPlan]:
        rows, seeds, numbers = self._draw(epoch)
        shuffled = np.argsort(
            counters.mix(self._key, "order", epoch, np.arange(len(seeds))), kind="stable"
        )
        groups = group(numbers[shuffled], self._batch_size, self._buckets)
        plans = []
        for bucket, members in zip(self._buckets, groups, strict=True):
            batches = -(-len(members) // self._batch_size)
            drawn = np.resize(
                shuffled[members], (batches, self._batch_size)
            )  # repeats from the start
            plans += [StepPlan(self._spec.name, bucket, rows[d], seeds[d]) for d in drawn]
        order = np.argsort(
            counters.mix(self._key, "batches", epoch, np.arange(len(plans))), kind="stable"
        )
        return [plans[i] for i in order]


def group(
    numbers: Int[np.ndarray, "examples"], batch_size: int, buckets: Sequence[Bucket]
) -> list[Int[np.ndarray, "members"]]:
    """Positions of the examples of each bucket, in order.

    What does not fill a bucket's last batch moves to the next bucket that has examples and is at
    least as large on every side, so that few batches must be filled up.

    Args:
      numbers: bucket number of each example.
      batch_size: examples of a full batch.
      buckets: sorted by area.
    """
    groups = [np.flatnonzero(numbers == number) for number in range(len(buckets))]
    for i, j in itertools.combinations(range(len(buckets)), 2):
        rest = len(groups[i]) % batch_size
        holds = all(small <= large for small, large in zip(buckets[i], buckets[j], strict=True))
        if rest and len(groups[j]) and holds:
            groups[j] = np.concatenate([groups[j], groups[i][-rest:]])
            groups[i] = groups[i][:-rest]
    return groups


def evaluation_plans(
    spec: TaskSpec, examples: Examples, batch_size: int, settings: DataSettings
) -> list[StepPlan]:
    """Every example once, in batches grouped by bucket; rows -1 fill up the last ones."""
    buckets = buckets_of(spec, settings)
    numbers = batching.choose_bucket(padded_sizes(spec, examples, settings), buckets)
    plans = []
    for bucket, members in zip(buckets, group(numbers, batch_size, buckets), strict=True):
        members = np.concatenate([members, np.full(-len(members) % batch_size, -1)])
        plans += [StepPlan(spec.name, bucket, r, None) for r in members.reshape(-1, batch_size)]
    return plans
