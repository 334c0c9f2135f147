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
from typing import Any, Literal, NamedTuple

import jax
import numpy as np
from tqdm import tqdm

from unit_jax.api import explain, images
from unit_jax.api.images import Source
from unit_jax.api.results import Answer, Answers, Detection, Detections
from unit_jax.batch import Batch
from unit_jax.data import batching, transforms
from unit_jax.data.text import Tokenizer
from unit_jax.models import flat
from unit_jax.models.flat import Flat
from unit_jax.outputs import room
from unit_jax.outputs.base import Names
from unit_jax.outputs.objects import metrics
from unit_jax.runtime import partitioning
from unit_jax.settings import DataSettings
from unit_jax.tasks import TaskSpec

Result = Detections | Answers
BATCH_SIZE = 8
LONG = 20  # examples from which a progress bar is shown
AHEAD = 4  # batches that are read before answers are given out in order


class Example(NamedTuple):
    """One question to the model, as it was given."""

    image: Source | None
    text: str
    text_b: str


class Ready(NamedTuple):
    """An example as the model takes it.

    Attributes:
      shape: what it is padded to: (height, width) of the picture, or (tokens,), or both in a row.
      size: (height, width) of the picture given.
    """

    shape: tuple[int, ...]
    name: str
    size: tuple[int, int] | None
    pixels: np.ndarray | None
    tokens: tuple[np.ndarray, int] | None


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
        self._tokenizer: Tokenizer | None = None
        self._once = images.Once()
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
    ) -> Detections | list[Detections] | Iterator[Detections]:
        """The objects in a picture whose score reaches `threshold`, the `top` best at most.

        Args:
          image: a picture (path, bytes, Pillow image, uint8 array), or many of any sizes.
          task: which of the model's detection tasks; None = the first.
          options: see `predict`.
        """
        task = task or self._first("objects", ("image",), "detect")
        return self.predict(task, image=image, threshold=threshold, top=top, **options)

    def answer(
        self,
        image: Source | Iterable[Source],
        question: str | Iterable[str],
        top: int = 5,
        task: str | None = None,
        **options: Any,
    ) -> Answers | list[Answers] | Iterator[Answers]:
        """The `top` most likely answers to a question about a picture (VQA).

        One picture with many questions, or many with one, is fine too.
        """
        task = task or self._first("scores", ("image", "text"), "answer")
        return self.predict(task, image=image, text=question, top=top, **options)

    def entails(
        self,
        image: Source | Iterable[Source],
        hypothesis: str | Iterable[str],
        task: str | None = None,
        **options: Any,
    ) -> Answers | list[Answers] | Iterator[Answers]:
        """Whether a picture entails a sentence, contradicts it, or neither (SNLI-VE)."""
        task = task or self._first("label", ("image", "text"), "entails")
        return self.predict(task, image=image, text=hypothesis, **options)

    def classify(
        self,
        task: str,
        text: str | Iterable[str],
        pair: str | Iterable[str] | None = None,
        **options: Any,
    ) -> Answers | list[Answers] | Iterator[Answers]:
        """The labels of a text, or of two (`pair` is the second): qnli, mnli, qqp, sst2, ..."""
        return self.predict(task, text=text, text_b=pair, **options)

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
    ) -> Result | list[Result] | Iterator[Result]:
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
        given = dict(image=image, text=text, text_b=text_b)
        self._check(spec, given)
        many = {name: value for name, value in given.items() if _is_many(name, value)}
        examples = _examples(given, many)
        make = self._maker(spec, threshold, top)
        if not many:
            return next(self._stream(spec, examples, make, 1, errors))
        size = batch_size or self.batch_size
        results = self._stream(spec, examples, make, size, errors)
        lengths = [len(value) for value in many.values() if hasattr(value, "__len__")]
        if len(lengths) < len(many):  # a generator
            return tqdm(results, desc=task, unit="") if progress else results
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
            for shape, size in itertools.product(self._shapes(spec), (1, self.batch_size)):
                pixels = np.zeros((8, 8, 3), np.uint8) if spec.has_image else None
                tokens = (np.zeros(2, np.int32), 2) if spec.has_text else None
                ready = Ready(shape, "", (8, 8), pixels, tokens)
                jax.block_until_ready(self._run(spec, [ready], size))
        return self.compilations - before

    @property
    def compilations(self) -> int:
        """How many programs were compiled so far."""
        return self._program._cache_size()

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

    def _shapes(self, spec: TaskSpec) -> list[tuple[int, ...]]:
        """The shapes that examples are padded to, but for odd pictures."""
        pictures = batching.sort_buckets(self.data.buckets)
        if spec.has_image:
            return [(*b, spec.max_tokens) if spec.has_text else tuple(b) for b in pictures]
        return [tuple(b) for b in batching.text_buckets(spec.max_tokens, self.data)]

    def _prepare(self, spec: TaskSpec, example: Example) -> Ready:
        """Reads, resizes and tokenises one example."""
        picture, pixels, tokens, shape = None, None, None, ()
        if spec.has_image:
            picture = images.read(example.image, exif=self.exif, once=self._once)
            pixels = resized(spec, picture.pixels, self.data)
            shape = bucket_for(pixels.shape[:2], self.data)
        if spec.has_text:
            tokens = self.encode(spec, [example.text], [example.text_b])[0]
            if spec.has_image:
                shape = (*shape, spec.max_tokens)
            else:
                fits = batching.text_buckets(spec.max_tokens, self.data)
                shape = next(tuple(b) for b in fits if b[0] >= len(tokens[0]))
        size = picture.size if picture else None
        return Ready(shape, picture.name if picture else "", size, pixels, tokens)

    def ready(
        self,
        task: str,
        image: Source | None = None,
        text: str | None = None,
        text_b: str | None = None,
    ) -> Ready:
        """One example as the model takes it."""
        return self._prepare(self.spec(task), Example(image, text or "", text_b or ""))

    def inside(self, batch: Batch) -> dict[str, jax.Array]:
        """Attention weights of a batch; see `explain.inside`."""
        return self._inside(self.params, self.statistics, batch)

    def encode(
        self, spec: TaskSpec, first: Sequence[str], second: Sequence[str]
    ) -> list[tuple[np.ndarray, int]]:
        """Token ids of texts and how many of each belong to the first text."""
        if self._tokenizer is None:
            self._tokenizer = Tokenizer(self._vocabulary)
        return self._tokenizer.encode(first, second, spec.max_tokens)

    def batch(self, spec: TaskSpec, ready: Sequence[Ready], size: int) -> Batch:
        """Examples of one shape as a batch of `size`; the first one fills up."""
        rows = [*ready, *[ready[0]] * (size - len(ready))]
        fields: dict[str, Any] = {}
        shape = ready[0].shape
        if spec.has_image:
            fields["images"], fields["image_sizes"] = batching.pad_images(
                [row.pixels for row in rows], shape[:2]
            )
        if spec.has_text:
            fields["input_ids"], fields["token_mask"], fields["segment_ids"] = batching.pad_texts(
                [row.tokens for row in rows], shape[-1]
            )
        index = np.where(np.arange(size) < len(ready), np.arange(size), -1).astype(np.int32)
        return Batch(task=spec.name, index=index, **fields)

    def _run(self, spec: TaskSpec, ready: Sequence[Ready], size: int) -> dict[str, jax.Array]:
        parts = self.mesh.size
        size = -(-size // parts) * parts
        on_device = partitioning.to_devices(self.batch(spec, ready, size), self.mesh)
        return self._program(self.params, self.statistics, on_device)

    def _shown(self, params: Flat, statistics: Flat, batch: Batch) -> dict[str, jax.Array]:
        model = flat.merge(self.graph, params, statistics)
        with partitioning.constrain_activations(self.mesh):
            outputs = model(batch)
        found = room(self.specs[batch.task]).shown(outputs, model.heads[batch.task])
        return jax.lax.with_sharding_constraint(found, partitioning.replicated(self.mesh))

    def _stream(
        self,
        spec: TaskSpec,
        examples: Iterator[Example],
        make: Callable[[Example, Ready, dict[str, np.ndarray]], Result],
        size: int,
        errors: str,
    ) -> Iterator[Result]:
        """Results in the order of the examples; those of one shape share a batch."""

        def prepare(example: Example) -> Ready | ValueError:
            try:
                return self._prepare(spec, example)
            except ValueError as error:
                return error

        with ThreadPoolExecutor(min(size, 4)) as threads:
            while window := list(itertools.islice(examples, size * AHEAD)):
                done = list(threads.map(prepare, window)) if size > 1 else [*map(prepare, window)]
                by_shape: dict[tuple[int, ...], list[int]] = {}
                for position, ready in enumerate(done):
                    if isinstance(ready, Ready):
                        by_shape.setdefault(ready.shape, []).append(position)
                    elif errors == "raise":
                        raise ready
                found: dict[int, dict[str, np.ndarray]] = {}
                for positions in by_shape.values():
                    for start in range(0, len(positions), size):
                        part = positions[start : start + size]
                        arrays = jax.device_get(self._run(spec, [done[p] for p in part], size))
                        for row, position in enumerate(part):
                            found[position] = {name: x[row] for name, x in arrays.items()}
                for position, example in enumerate(window):
                    ready = done[position]
                    yield make(example, ready, found[position]) if position in found else ready

    # ---- From arrays to results ------------------------------------------------------------------

    def _maker(self, spec: TaskSpec, threshold: float, top: int | None) -> Callable[..., Result]:
        names = self.names(spec.name)

        def make(example: Example, ready: Ready, found: dict[str, np.ndarray]) -> Result:
            asked = dict(
                task=spec.name,
                image=ready.name,
                text=example.text,
                text_b=example.text_b,
                source=example.image,
                exif=self.exif,
            )
            if "boxes_cxcywh" in found:
                kept = _detections(found, ready.size, names, threshold, 100 if top is None else top)
                return Detections(**asked, detections=kept, size=ready.size)
            if "scores" in found:
                return Answers(**asked, answers=_answers(found, names, top))
            said = room(spec).said(found, names)
            return Answers(**asked, answers=(Answer(said, 1.0, -1),))

        return make


def resized(spec: TaskSpec, pixels: np.ndarray, data: DataSettings) -> np.ndarray:
    """The picture at the size that the model sees, as in evaluation."""
    height, width = pixels.shape[:2]
    plan = transforms.plan(spec.transforms, np.asarray([height]), np.asarray([width]), data)
    return transforms.apply(pixels, plan, 0)[0]


def bucket_for(size: Sequence[int], data: DataSettings) -> tuple[int, int]:
    """The bucket that pads a picture least; for odd ones its sides rounded up to quarters of
    `eval_max_side`, so that few shapes arise."""
    buckets = batching.sort_buckets(data.buckets)
    number = int(batching.choose_bucket(np.asarray([size]), buckets)[0])
    if number >= 0:
        return tuple(buckets[number])
    quarter = -(-data.eval_max_side // 4)
    return tuple(-(-side // quarter) * quarter for side in size)


def _is_many(name: str, value: Any) -> bool:
    if value is None or (isinstance(value, str) or (name == "image" and images.is_source(value))):
        return False
    if not isinstance(value, Iterable):
        raise ValueError(f"{name}: {type(value).__name__} is neither one nor a list of them")
    return True


def _examples(given: Mapping[str, Any], many: Mapping[str, Iterable]) -> Iterator[Example]:
    """One example per entry of the lists; single values are repeated."""
    single = {
        name: None if name == "image" and value is None else value or ""
        for name, value in given.items()
        if name not in many and (name != "image" or value is None)
    }
    if "image" not in many and given["image"] is not None:
        single["image"] = given["image"]
    if not many:
        yield _example(single)
        return
    lengths = {name: len(value) for name, value in many.items() if hasattr(value, "__len__")}
    if len(set(lengths.values())) > 1:
        told = ", ".join(f"{length} of {name}" for name, length in lengths.items())
        raise ValueError(f"lists of different lengths: {told}")
    for values in zip(*many.values(), strict=True):
        yield _example({**single, **dict(zip(many, values, strict=True))})


def _example(values: Mapping[str, Any]) -> Example:
    for name in ("text", "text_b"):
        if not isinstance(values[name], str):
            raise ValueError(f"{name}: {type(values[name]).__name__} is no text")
    return Example(**values)


def _detections(
    found: dict[str, np.ndarray],
    size: tuple[int, int],
    names: Names,
    threshold: float,
    top: int,
) -> tuple[Detection, ...]:
    one = metrics.post_process({k: v[None] for k, v in found.items()}, np.asarray([size]))[0]
    order = np.argsort(-one["scores"], kind="stable")
    order = order[one["scores"][order] >= threshold][:top]
    attributes = one.get("attr_labels")
    return tuple(
        Detection(
            label=names.label(int(one["labels"][k])),
            score=float(one["scores"][k]),
            box_xyxy=tuple(map(float, one["boxes"][k])),
            label_id=int(one["labels"][k]),
            attribute=_attribute(names, int(attributes[k])) if attributes is not None else None,
            query=int(k),
        )
        for k in order
    )


def _attribute(names: Names, number: int) -> str | None:
    return (names.attributes[number] or None) if number < len(names.attributes) else str(number)


def _answers(found: dict[str, np.ndarray], names: Names, top: int | None) -> tuple[Answer, ...]:
    scores, best = found["scores"], int(found["labels"])
    # Equal scores: what evaluation calls the best goes first.
    order = np.lexsort((np.arange(len(scores)) != best, -scores))
    order = order[scores[order] >= 0][:top]
    return tuple(Answer(names.label(int(k)), float(scores[k]), int(k)) for k in order)
