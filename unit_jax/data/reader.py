"""Reads the examples of one split of one task and puts them together as batches."""

import functools
from collections.abc import Callable
from typing import Any

import numpy as np

from unit_jax import outputs
from unit_jax.batch import Batch
from unit_jax.data import batching, text, transforms
from unit_jax.data.mixture import StepPlan
from unit_jax.data.prepared import PreparedData, Split
from unit_jax.settings import DataSettings
from unit_jax.tasks import TaskSpec

# What fits stays in memory, in each process that prepares batches: small data sets (the demo) are
# then read and decoded once. Of larger ones nothing is kept, as they would only push out memory.
_KEPT_PIXELS = 256 * 2**20  # bytes of decoded images of a split
_KEPT_RECORDS = 50_000


class Reader:
    """Builds the batches of one split of one task."""

    def __init__(
        self,
        spec: TaskSpec,
        split: Split,
        settings: DataSettings,
        tokenizer: text.Tokenizer | None,
        data: PreparedData,
        training: bool,
    ):
        self._spec = spec
        self._split = split
        self._settings = settings
        self._tokenizer = tokenizer
        self._training = training
        self._room = outputs.room(spec)
        self._names = data.names(spec.name)
        self._examples = _Memory(len(split) <= _KEPT_RECORDS)
        self._pixels = _Memory(spec.has_image and _decoded_bytes(split) <= _KEPT_PIXELS)
        self._labelled = training or self._has_labels()

    def batch(self, plan: StepPlan, fallback: int) -> Batch:
        """The batch of a plan; fillers show example `fallback`."""
        rows = np.where(plan.rows < 0, fallback, plan.rows)
        examples = self._read(rows.tolist())
        fields, sizes = {}, None
        targets = [example["target"] for example in examples] if self._labelled else None
        if self._spec.has_image:
            images, targets = self._images(rows, plan.seeds, targets)
            fields["images"], fields["image_sizes"] = batching.pad_images(images, plan.bucket)
            sizes = [image.shape[:2] for image in images]
        if self._spec.has_text:
            (tokens,) = (self._spec.max_tokens,) if self._spec.has_image else plan.bucket
            fields["input_ids"], fields["token_mask"], fields["segment_ids"] = batching.pad_texts(
                [example["text"] for example in examples], tokens
            )
        if targets is not None:
            targets = self._room.collate(targets, sizes, self._settings)
        return Batch(
            task=self._spec.name, **fields, targets=targets, index=plan.rows.astype(np.int32)
        )

    def _images(
        self, rows: np.ndarray, seeds: np.ndarray | None, targets: list[Any] | None
    ) -> tuple[list[np.ndarray], list[Any] | None]:
        """The images of examples, transformed, and their targets, moved with them."""
        split = self._split
        plan = transforms.plan(
            self._spec.transforms, *(sides[rows] for sides in split.sizes), self._settings, seeds
        )
        images, moved = [], []
        for i, row in enumerate(rows):
            key = int(split.places[row])
            pixels = self._pixels.get_or(key, functools.partial(self._decode, int(row)))
            image, moves = transforms.apply(pixels, plan, i)
            images.append(image)
            if targets is not None:
                moved.append(self._room.move(targets[i], moves))
        return images, None if targets is None else moved

    def _decode(self, row: int) -> np.ndarray:
        expected = tuple(int(sides[row]) for sides in self._split.sizes)
        try:
            pixels = transforms.decode(self._split.image(row))
            if pixels.shape[:2] != expected:
                raise ValueError(f"it is {pixels.shape[:2]} pixels, the index says {expected}")
        except Exception as error:  # Pillow raises many kinds
            raise ValueError(
                f"the image of {self._where(row)} cannot be used ({error}); prepare the data again"
            ) from error
        return pixels

    def _read(self, rows: list[int]) -> list[dict[str, Any]]:
        """Text and target of examples, ready to be put together."""
        missing = [row for row in dict.fromkeys(rows) if row not in self._examples]
        if not missing:
            return [self._examples[row] for row in rows]
        records = [self._split[row] for row in missing]
        fresh = {
            row: self._answer(row, record) for row, record in zip(missing, records, strict=True)
        }
        if self._tokenizer is not None and self._spec.has_text:
            first = [record["text"] for record in records]
            second = [record["text_b"] for record in records]
            encoded = self._tokenizer.encode(first, second, self._spec.max_tokens)
            for row, tokens in zip(missing, encoded, strict=True):
                fresh[row]["text"] = tokens
        kept = {row: self._examples.get_or(row, lambda row=row: fresh[row]) for row in rows}
        return [kept[row] for row in rows]

    def _answer(self, row: int, record: dict[str, Any]) -> dict[str, Any]:
        if not self._labelled:
            return {}
        try:
            return {"target": self._room.target(record, self._names)}
        except ValueError as error:
            raise ValueError(f"{self._where(row)} has {error}; prepare the data again") from None

    def _has_labels(self) -> bool:
        """Whether a split has labels: any of its examples does, or none does (a test split)."""
        if not self._split.labelled:
            return False
        return any(self._room.is_labelled(self._split[row]) for row in range(len(self._split)))

    def _where(self, row: int) -> str:
        return f"example {row} of {self._spec.name} ({self._split.name})"


class _Memory(dict):
    """Values computed once and kept, if it is switched on. Not pickled along."""

    def __init__(self, on: bool):
        super().__init__()
        self._on = on

    def __reduce__(self):
        return _Memory, (self._on,)

    def get_or(self, key: Any, compute: Callable[[], Any]) -> Any:
        value = self.get(key)
        if value is None:
            value = compute()
            if self._on:
                self[key] = value
        return value


def _decoded_bytes(split: Split) -> int:
    _, first = np.unique(split.places, return_index=True)
    height, width = split.sizes
    return 3 * int((height[first].astype(np.int64) * width[first]).sum())
