"""What people ask a model, one or many, as batches of few shapes."""

import functools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from unit_jax.api import images
from unit_jax.api.images import Source
from unit_jax.batch import Batch
from unit_jax.data import batching, transforms
from unit_jax.data.text import Tokenizer
from unit_jax.settings import DataSettings
from unit_jax.tasks import TaskSpec


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


class Inputs:
    """Turns examples into batches.

    Args:
      data: sizes and buckets.
      vocabulary: WordPiece tokens; may be empty where no task takes text.
      exif: turn pictures as their EXIF orientation says.
      once: says what happened to pictures.
    """

    def __init__(
        self, data: DataSettings, vocabulary: Sequence[str], exif: bool, once: images.Once
    ):
        self.data, self.exif = data, exif
        self._vocabulary, self._once = vocabulary, once

    def shapes(self, spec: TaskSpec) -> list[tuple[int, ...]]:
        """The shapes that examples are padded to, but for odd pictures."""
        pictures = batching.sort_buckets(self.data.buckets)
        if spec.has_image:
            return [(*b, spec.max_tokens) if spec.has_text else tuple(b) for b in pictures]
        return [tuple(b) for b in batching.text_buckets(spec.max_tokens, self.data)]

    def prepare(self, spec: TaskSpec, example: Example) -> Ready:
        """Reads, resizes and tokenises one example."""
        pixels, tokens, shape, name, size = None, None, (), "", None
        if spec.has_image:
            if example.image is None:
                raise ValueError(f"{spec.name} needs a picture")
            picture = images.read(example.image, exif=self.exif, once=self._once)
            name, size = picture.name, picture.size
            pixels = resized(spec, picture.pixels, self.data)
            shape = bucket_for(pixels.shape[:2], self.data)
        if spec.has_text:
            tokens = self.encode(spec, [example.text], [example.text_b])[0]
            if spec.has_image:
                shape = (*shape, spec.max_tokens)
            else:
                fits = batching.text_buckets(spec.max_tokens, self.data)
                shape = next(tuple(b) for b in fits if b[0] >= len(tokens[0]))
        return Ready(shape, name, size, pixels, tokens)

    def encode(
        self, spec: TaskSpec, first: Sequence[str], second: Sequence[str]
    ) -> list[tuple[np.ndarray, int]]:
        """Token ids of texts and how many of each belong to the first text."""
        return self._tokenizer.encode(first, second, spec.max_tokens)

    @functools.cached_property
    def _tokenizer(self) -> Tokenizer:
        return Tokenizer(self._vocabulary)

    def batch(self, spec: TaskSpec, ready: Sequence[Ready], size: int) -> Batch:
        """Examples of one shape as a batch of `size`; the first one fills up."""
        rows = [*ready, *[ready[0]] * (size - len(ready))]
        fields: dict[str, Any] = {}
        shape = ready[0].shape
        if spec.has_image:
            fields["images"], fields["image_sizes"] = batching.pad_images(
                [row.pixels for row in rows if row.pixels is not None], shape[:2]
            )
        if spec.has_text:
            fields["input_ids"], fields["token_mask"], fields["segment_ids"] = batching.pad_texts(
                [row.tokens for row in rows if row.tokens is not None], shape[-1]
            )
        index = np.where(np.arange(size) < len(ready), np.arange(size), -1).astype(np.int32)
        return Batch(task=spec.name, index=index, **fields)


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
        height, width = buckets[number]
        return height, width
    quarter = -(-data.eval_max_side // 4)
    height, width = (-(-side // quarter) * quarter for side in size)
    return height, width


def is_many(name: str, value: Any) -> bool:
    """Whether the input `name` was given as several, not as one.

    Raises:
      ValueError: it is neither.
    """
    if value is None or (isinstance(value, str) or (name == "image" and images.is_source(value))):
        return False
    if not isinstance(value, Iterable):
        raise ValueError(f"{name}: {type(value).__name__} is neither one nor a list of them")
    return True


def examples(given: Mapping[str, Any], many: Mapping[str, Any]) -> Iterator[Example]:
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
