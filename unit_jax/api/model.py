"""`Model`: a trained UniT that answers about anybody's pictures and texts.

One example alone is a batch of one, several are batches of `batch_size`; with the few shapes that
pictures and texts are padded to, that is how many programs there can be, whatever comes. An answer
does not depend on what else is in its batch.
"""

import dataclasses
import functools
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Literal, TypeVar, cast

import jax
import numpy as np
from tqdm import tqdm

from unit_jax.api import explain, images, inputs
from unit_jax.api.images import Source
from unit_jax.api.inputs import Example, Inputs, Ready
from unit_jax.api.reading import reader
from unit_jax.api.results import Answers, Detections, Result
from unit_jax.batch import Batch
from unit_jax.models import flat
from unit_jax.models.flat import Flat
from unit_jax.outputs import room
from unit_jax.outputs.base import Names
from unit_jax.runtime import partitioning
from unit_jax.settings import DataSettings
from unit_jax.tasks import TaskSpec

T = TypeVar("T")
Many = T | list[T] | Iterator[T]  # for one example, a list, a generator
BATCH_SIZE = 8
LONG = 20  # examples from which a progress bar is shown
AHEAD = 4  # batches that are read before answers are given out in order


class Model:
    """A trained model; `unit_jax.load` makes it.

    Attributes:
      specs: its tasks by name.
      metadata: what the checkpoint tells: settings, names, vocabulary, figures if there are any.
      source: where it came from.
    """

    def __init__(
        self,
        graph: Any,
        params: Flat,
        statistics: Flat,
        specs: Mapping[str, TaskSpec],
        data: DataSettings,
        names: Mapping[str, Names],
        vocabulary: Sequence[str],
        metadata: Mapping[str, Any],
        source: str,
        mesh: jax.sharding.Mesh,
        batch_size: int = BATCH_SIZE,
        exif: bool = True,
    ):
        self.specs, self.metadata, self.source = dict(specs), dict(metadata), source
        self.batch_size, self.exif = batch_size, exif
        self.data, self.mesh = data, mesh
        self.graph, self.params, self.statistics = graph, params, statistics
        self._names, self._vocabulary = dict(names), tuple(vocabulary)
        self._once = images.Once()
        self._inputs = Inputs(data, self._vocabulary, exif, self._once)
        self._program = jax.jit(self._shown)
        self._inside = jax.jit(functools.partial(explain.inside, graph))

    def __repr__(self) -> str:
        count = sum(x.size for x in self.params.values())
        lines = [f"UniT with {count:,} parameters from {self.source}"]
        for name, spec in self.specs.items():
            takes = " and ".join(spec.inputs)
            lines.append(f"  {name}: {takes} to {spec.output}, {spec.num_labels} labels")
        return "\n".join(lines)

    @property
    def tasks(self) -> tuple[str, ...]:
        """The names of its tasks."""
        return tuple(self.specs)

    @property
    def vocabulary(self) -> tuple[str, ...]:
        """The WordPiece tokens that it knows."""
        return self._vocabulary

    def names(self, task: str) -> Names:
        """Names of a task's labels and attributes; numbers where the weights came without."""
        spec, found = self.spec(task), self._names.get(task, Names())
        if not any(found.labels):
            self._once(
                f"{task}: the weights came without the names of its labels, they are shown as "
                "numbers; load(..., data_dir=DIR) takes them from prepared data"
            )
        labels = found.labels or ("",) * spec.num_labels
        shown = tuple(name or str(number) for number, name in enumerate(labels))
        return dataclasses.replace(found, labels=shown)

    def labels(self, task: str) -> tuple[str, ...]:
        """Names of a task's labels, classes or answers, by number."""
        return self.names(task).labels

    def spec(self, task: str) -> TaskSpec:
        """The task's entry.

        Raises:
          ValueError: the model has no such task.
        """
        if task not in self.specs:
            raise ValueError(f"this model has no task {task!r}; it has {', '.join(self.specs)}")
        return self.specs[task]

    # ---- Asking ----------------------------------------------------------------------------------

    def detect(
        self,
        image: Source | Iterable[Source],
        threshold: float = 0.5,
        top: int = 100,
        task: str | None = None,
        **options: Any,
    ) -> Many[Detections]:
        """The objects in a picture whose score reaches `threshold`, the `top` best at most.

        Args:
          image: a picture (path, bytes, Pillow image, uint8 array), or many of any sizes.
          task: which of the model's detection tasks; None = the first.
          options: see `predict`.
        """
        task = task or self._first("objects", ("image",), "detect")
        results = self.predict(task, image=image, threshold=threshold, top=top, **options)
        return cast(Many[Detections], results)

    def answer(
        self,
        image: Source | Iterable[Source],
        question: str | Iterable[str],
        top: int = 5,
        task: str | None = None,
        **options: Any,
    ) -> Many[Answers]:
        """The `top` most likely answers to a question about a picture (VQA).

        One picture with many questions, or many with one, is fine too.
        """
        task = task or self._first("scores", ("image", "text"), "answer")
        return cast(
            Many[Answers], self.predict(task, image=image, text=question, top=top, **options)
        )

    def entails(
        self,
        image: Source | Iterable[Source],
        hypothesis: str | Iterable[str],
        task: str | None = None,
        **options: Any,
    ) -> Many[Answers]:
        """Whether a picture entails a sentence, contradicts it, or neither (SNLI-VE)."""
        task = task or self._first("label", ("image", "text"), "entails")
        return cast(Many[Answers], self.predict(task, image=image, text=hypothesis, **options))

    def classify(
        self,
        task: str,
        text: str | Iterable[str],
        pair: str | Iterable[str] | None = None,
        **options: Any,
    ) -> Many[Answers]:
        """The labels of a text, or of two (`pair` is the second): qnli, mnli, qqp, sst2, ..."""
        return cast(Many[Answers], self.predict(task, text=text, text_b=pair, **options))

    def predict(
        self,
        task: str,
        image: Source | Iterable[Source] | None = None,
        text: str | Iterable[str] | None = None,
        text_b: str | Iterable[str] | None = None,
        *,
        threshold: float = 0.5,
        top: int | None = None,
        batch_size: int | None = None,
        progress: bool | None = None,
        errors: Literal["raise", "return"] = "raise",
    ) -> Many[Result | ValueError]:
        """Any task of the model.

        Args:
          image, text, text_b: what the task takes. Each is one, or a list, or a generator; ones
            are repeated beside lists.
          threshold: least score of detections.
          top: at most so many detections or answers; None = 100 detections, all labels.
          batch_size: examples that go through the model at once where there are many.
          progress: a bar on the terminal; None = where 20 or more are asked for in a list.
          errors: what a broken picture does: raise, or stand as ValueError in its place.

        Returns:
          One result for one example, a list for lists, a generator for a generator: it reads on
          as results are taken.

        Raises:
          ValueError: no such task, or an input that is missing, too much, or broken.
        """
        spec = self.spec(task)
        given: dict[str, Any] = dict(image=image, text=text, text_b=text_b)
        self._check(spec, given)
        many = {name: value for name, value in given.items() if inputs.is_many(name, value)}
        examples = inputs.examples(given, many)
        read = reader(spec, self.names(task), self.exif, threshold, top)
        if not many:
            return next(self._stream(spec, examples, read, 1, errors))
        size = batch_size or self.batch_size
        results = self._stream(spec, examples, read, size, errors)
        lengths = [len(value) for value in many.values() if hasattr(value, "__len__")]
        if len(lengths) < len(many):  # a generator
            return iter(tqdm(results, desc=task, unit="")) if progress else results
        if progress or (progress is None and max(lengths) >= LONG):
            results = tqdm(results, desc=task, total=max(lengths), unit="")
        return list(results)

    def explain(
        self,
        task: str,
        image: Source | None = None,
        text: str | None = None,
        text_b: str | None = None,
        **options: Any,
    ) -> explain.Explanation:
        """What went into one answer: attention over picture and words, and what each word did.

        Args:
          options: `threshold` and `top`, see `predict`; which detections are shown.
        """
        return explain.explain(self, task, image, text, text_b, **options)

    def warm_up(self, tasks: Iterable[str] | None = None) -> int:
        """Compiles the programs of tasks (all of them) ahead; returns how many there are.

        Afterwards nothing is compiled for examples alone or in batches of `batch_size`, but for
        pictures so long and narrow that they fit none of the usual shapes.
        """
        before = self.compilations
        for task in tasks or self.tasks:
            spec = self.spec(task)
            for shape, size in itertools.product(self._inputs.shapes(spec), (1, self.batch_size)):
                pixels = np.zeros((8, 8, 3), np.uint8) if spec.has_image else None
                tokens = (np.zeros(2, np.int32), 2) if spec.has_text else None
                ready = Ready(shape, "", (8, 8), pixels, tokens)
                jax.block_until_ready(self._run(spec, [ready], size))
        return self.compilations - before

    @property
    def compilations(self) -> int:
        """How many programs were compiled so far."""
        return cast(Any, self._program)._cache_size()

    # ---- From examples to batches ----------------------------------------------------------------

    def _first(self, output: str, inputs: tuple[str, ...], method: str) -> str:
        for name, spec in self.specs.items():
            if spec.output == output and spec.inputs == inputs:
                return name
        told = ", ".join(f"{name} ({' and '.join(s.inputs)})" for name, s in self.specs.items())
        raise ValueError(f"{method}: this model has no such task; it has {told}; see predict")

    def _check(self, spec: TaskSpec, given: Mapping[str, Any]) -> None:
        wants = dict(image=spec.has_image, text=spec.has_text)
        for name, wanted in wants.items():
            if wanted and given[name] is None:
                raise ValueError(f"{spec.name} needs {name}: predict({spec.name!r}, {name}=...)")
            if not wanted and given[name] is not None:
                raise ValueError(f"{spec.name} takes no {name}, only {' and '.join(spec.inputs)}")
        if given["text_b"] is not None and not spec.has_text:
            raise ValueError(f"{spec.name} takes no second text")
        if spec.has_text and not self._vocabulary:
            raise ValueError(
                f"{spec.name}: the weights came without their vocabulary; "
                "load(..., data_dir=DIR) takes it from prepared data"
            )

    def ready(
        self,
        task: str,
        image: Source | None = None,
        text: str | None = None,
        text_b: str | None = None,
    ) -> Ready:
        """One example as the model takes it."""
        return self._inputs.prepare(self.spec(task), Example(image, text or "", text_b or ""))

    def inside(self, task: str, ready: Ready) -> dict[str, jax.Array]:
        """Attention weights of one example; see `explain.inside`."""
        batch = self._inputs.batch(self.spec(task), [ready], self.mesh.size)
        return self._inside(self.params, self.statistics, batch)

    def _run(self, spec: TaskSpec, ready: Sequence[Ready], size: int) -> dict[str, jax.Array]:
        parts = self.mesh.size
        size = -(-size // parts) * parts
        on_device = partitioning.to_devices(self._inputs.batch(spec, ready, size), self.mesh)
        return self._program(self.params, self.statistics, on_device)

    def _shown(self, params: Flat, statistics: Flat, batch: Batch) -> dict[str, jax.Array]:
        model = flat.merge(self.graph, params, statistics)
        with partitioning.constrain_activations(self.mesh):
            outputs = model(batch)
        arrays = room(self.specs[batch.task]).shown(outputs, model.heads[batch.task])
        return jax.lax.with_sharding_constraint(arrays, partitioning.replicated(self.mesh))

    def _stream(
        self,
        spec: TaskSpec,
        examples: Iterator[Example],
        read: Callable[[Example, Ready, dict[str, np.ndarray]], Result],
        size: int,
        errors: str,
    ) -> Iterator[Result | ValueError]:
        """Results in the order of the examples; those of one shape share a batch."""

        def prepare(example: Example) -> Ready | ValueError:
            try:
                return self._inputs.prepare(spec, example)
            except ValueError as error:
                return error

        with ThreadPoolExecutor(min(size, 4)) as threads:
            while window := list(itertools.islice(examples, size * AHEAD)):
                done = list(threads.map(prepare, window)) if size > 1 else [*map(prepare, window)]
                by_shape: dict[tuple[int, ...], list[tuple[int, Ready]]] = {}
                results: dict[int, Result | ValueError] = {}
                for position, ready in enumerate(done):
                    if isinstance(ready, Ready):
                        by_shape.setdefault(ready.shape, []).append((position, ready))
                    elif errors == "raise":
                        raise ready
                    else:
                        results[position] = ready
                for alike in by_shape.values():
                    for start in range(0, len(alike), size):
                        part = alike[start : start + size]
                        arrays = jax.device_get(self._run(spec, [one for _, one in part], size))
                        for row, (position, ready) in enumerate(part):
                            answer = {name: x[row] for name, x in arrays.items()}
                            results[position] = read(window[position], ready, answer)
                yield from (results[position] for position in range(len(window)))
