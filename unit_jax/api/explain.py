"""Looking inside: what queries attend to, what a place of the picture attends to, and which words
moved the answer.

Attention weights are computed again from a layer's inputs, whatever way the model itself takes
(fused kernels keep none). They show where information came from, not why; leaving a word out shows
what it did.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float
from PIL import Image

from unit_jax.api import drawing
from unit_jax.api.results import SHOWN, Answers, Detections
from unit_jax.batch import Batch
from unit_jax.models import flat
from unit_jax.models.image_encoder import sine_positions
from unit_jax.models.transformer import Attention, Keys, prepend
from unit_jax.models.unit import Unit
from unit_jax.precision import at_least_float32

NO_KEYS = Keys(None)


@dataclasses.dataclass(frozen=True, repr=False)
class Explanation:
    """What went into one answer. All weights are means over attention heads.

    Attributes:
      result: the answer itself.
      queries: the decoder queries that are shown; those of the detections, or the one that labels
        are read from.
      image_attention: of these queries in each decoder layer, over the places of the picture
        (rows and columns of the backbone's features); None without picture.
      word_attention: the same over `tokens`; None without text.
      encoder_attention: of each place in each layer of the image encoder, over all places.
      tokens: the text's pieces as the decoder reads them ([CLS] alone where it reads no more).
      words: the words of the text.
      word_effects: by how much the answer's score falls when a word is left out.
    """

    result: Detections | Answers
    queries: tuple[int, ...]
    image_attention: Float[np.ndarray, "layers queries rows columns"] | None
    word_attention: Float[np.ndarray, "layers queries tokens"] | None
    encoder_attention: Float[np.ndarray, "encoder_layers rows columns rows columns"] | None
    tokens: tuple[str, ...]
    words: tuple[str, ...]
    word_effects: Float[np.ndarray, "words"] | None

    def __repr__(self) -> str:
        lines = [repr(self.result)]
        if self.image_attention is not None and self.word_attention is not None:
            share = self.looked().sum((1, 2)).mean()
            lines.append(f"  attention: {share:.0%} to the picture, {1 - share:.0%} to the text")
        if self.word_effects is not None:
            order = np.argsort(-np.abs(self.word_effects))[:5]
            told = ", ".join(f"{self.words[i]} {self.word_effects[i]:+.2f}" for i in order)
            lines.append(f"  score that words brought: {told}")
        return "\n".join(lines)

    def at(self, x: float, y: float, layer: int = -1) -> Float[np.ndarray, "rows columns"]:
        """What a point of the picture, in pixels, attends to in the image encoder.

        Raises:
          ValueError: there is no picture, or the point lies outside it.
        """
        if self.encoder_attention is None:
            raise ValueError(f"{self.result.task} has no picture")
        height, width = self._size()
        if not (0 <= x < width and 0 <= y < height):
            raise ValueError(f"({x}, {y}) lies outside the picture of {width} x {height} pixels")
        rows, columns = self.encoder_attention.shape[1:3]
        return self.encoder_attention[layer, int(y / height * rows), int(x / width * columns)]

    def looked(self, layer: int | None = None) -> Float[np.ndarray, "queries rows columns"]:
        """Attention over the picture in one decoder layer, or the mean of all: a layer may read the
        text alone once an earlier one has read the picture.

        Raises:
          ValueError: there is no picture.
        """
        if self.image_attention is None:
            raise ValueError(f"{self.result.task} has no picture")
        return self.image_attention.mean(0) if layer is None else self.image_attention[layer]

    def draw(self, layer: int | None = None, most: int = 4, width: int = 0) -> Image.Image:
        """The answer, what each query (`most` of them) looked at, and the words; `layer` is one of
        the decoder's, None the mean of all."""
        parts = self._looks(layer, most, width)
        wide = parts[0].width if parts else width or drawing.LEAST_WIDTH
        if isinstance(self.result, Answers):
            bars = [(one.label, one.score) for one in self.result[:SHOWN]]
            texts = [text for text in (self.result.text, self.result.text_b) if text]
            parts.append(drawing.answers(None, texts, bars, wide))
        if self.word_effects is not None and len(self.words):
            parts.append(drawing.caption("what each word brought to the score", wide))
            parts.append(drawing.words(self.words, list(map(float, self.word_effects)), wide))
        return drawing.stacked(parts or [self.result.draw(width)])

    def _looks(self, layer: int | None, most: int, width: int) -> list[Image.Image]:
        """A row per query: the picture (with the query's box), and where the query looked."""
        pixels = self.result.picture()
        if pixels is None or self.image_attention is None:
            return []
        told = "where it looked"
        if layer is not None:
            told += f", decoder layer {layer % len(self.image_attention) + 1}"
        looked, rows = self.looked(layer), []
        for number, query in list(enumerate(self.queries))[:most]:
            shown = drawing.enlarged(pixels, width)
            if isinstance(self.result, Detections):
                found = tuple(one for one in self.result if one.query == query)
                shown = dataclasses.replace(self.result, detections=found).draw(width)
            heated = drawing.heat(pixels, looked[number], width)
            rows.append(drawing.beside([shown, drawing.caption(told, heated.width, heated)]))
        return rows

    def draw_at(self, x: float, y: float, layer: int = -1, width: int = 0) -> Image.Image:
        """The picture, lit where a point of it attends to."""
        return drawing.heat(self.result.needed_picture(), self.at(x, y, layer), width)

    def _size(self) -> tuple[int, int]:
        height, width = self.result.needed_picture().shape[:2]
        return height, width


def explain(
    model: Any, task: str, image: Any, text: str | None, text_b: str | None, **options: Any
) -> Explanation:
    """See `Model.explain`."""
    spec = model.spec(task)
    result = model.predict(task, image=image, text=text, text_b=text_b, **options)
    is_detection = isinstance(result, Detections)
    queries = tuple(one.query for one in result) if is_detection else (0,)
    ready = model.ready(task, image, text, text_b)
    attention = jax.device_get(model.inside(task, ready))
    cross, image_attention, word_attention, encoder = attention["cross"][:, 0], None, None, None
    cross = cross[:, np.minimum(queries, cross.shape[1] - 1).astype(int)]  # one query for all
    places = 0
    if spec.has_image:
        mask = attention["grid"][0]
        rows, columns = int(mask.any(1).sum()), int(mask.any(0).sum())
        places = mask.size
        of_image = cross[..., :places].reshape(*cross.shape[:2], *mask.shape)
        image_attention = of_image[..., :rows, :columns]
        encoder = attention["encoder"][:, 0].reshape(-1, *mask.shape, *mask.shape)
        encoder = encoder[:, :rows, :columns, :rows, :columns]
    tokens: tuple[str, ...] = ()
    if spec.has_text:
        ids = ready.tokens[0]
        count = min(len(ids), cross.shape[2] - places)
        tokens = tuple(model.vocabulary[number] for number in ids[:count])
        word_attention = cross[..., places : places + count]
    words, effects = (), None
    if spec.has_text and not is_detection:
        words, effects = word_effects(model, result, image, text or "", text_b)
    return Explanation(
        result, queries, image_attention, word_attention, encoder, tokens, words, effects
    )


def word_effects(
    model: Any, result: Answers, image: Any, text: str, text_b: str | None
) -> tuple[tuple[str, ...], np.ndarray]:
    """The words of both texts, and what the best answer's score loses without each."""
    first, second = text.split(), (text_b or "").split()
    without = [(_without(first, i), text_b or "") for i in range(len(first))]
    without += [(text, _without(second, i)) for i in range(len(second))]
    if not without:
        return (), np.zeros(0)
    others = model.predict(
        result.task,
        image=image,
        text=[a for a, _ in without],
        text_b=[b for _, b in without],
        progress=False,
    )
    left = [next((o.score for o in one if o.label_id == result[0].label_id), 0.0) for one in others]
    return (*first, *second), result.score - np.asarray(left)


def _without(words: Sequence[str], position: int) -> str:
    return " ".join([*words[:position], *words[position + 1 :]])


def inside(graph: Any, params: Any, statistics: Any, batch: Batch) -> dict[str, Array]:
    """Attention weights of one batch, means over heads.

    Returns:
      cross: [decoder layers, batch, queries, memory]; with images also encoder: [encoder layers,
      batch, places, places], and grid: [batch, rows, columns], True where a place is real.
    """
    unit: Unit = flat.merge(graph, params, statistics)
    spec = dict(unit.tasks)[batch.task]
    attention = {}
    if spec.has_image:
        features, mask = unit.features(*batch.pictures)
        attention["grid"] = mask
        attention["encoder"] = _through_encoder(unit, features, mask, spec.index)
    memory = unit.memory(batch, NO_KEYS)
    shared = unit.settings.decoder.shared
    decoder = unit.decoder if shared else unit.decoders[spec.name]
    queries = jnp.broadcast_to(
        unit.queries[spec.name][...].astype(memory.tokens.dtype),
        (memory.tokens.shape[0], spec.num_queries, memory.tokens.shape[2]),
    )
    x, cross = jnp.zeros_like(queries), []
    for layer in decoder.layers:
        y = layer.norm1(x) if layer.pre_norm else x
        y = x + layer.self_attention(y + queries, y + queries, y, None, NO_KEYS)
        y = layer.norm2(y) if layer.pre_norm else layer.norm1(y)
        keys = memory.tokens + memory.positions
        cross.append(weights(layer.cross_attention, y + queries, keys, memory.mask))
        x = layer(x, queries, memory, NO_KEYS)
    return {**attention, "cross": jnp.stack(cross)}


def _through_encoder(unit: Unit, features: Array, mask: Array, index: int) -> Array:
    """Weights of every layer of the image encoder, without the task token's row and column."""
    encoder = unit.image_encoder
    projected = encoder.input_projection(features)
    tokens = lambda x: x.reshape(x.shape[0], -1, x.shape[-1])  # noqa: E731
    x, positions = tokens(projected), tokens(sine_positions(mask, encoder.width))
    positions, mask = positions.astype(x.dtype), mask.reshape(mask.shape[0], -1)
    first = 0
    if encoder.task_embedding is not None:
        x, first = prepend(encoder.task_embedding[index], x), 1
        positions = jnp.pad(positions, ((0, 0), (1, 0), (0, 0)))
        mask = jnp.pad(mask, ((0, 0), (1, 0)), constant_values=True)
    layers = []
    for layer in encoder.layers:
        y = (layer.norm1(x) if layer.pre_norm else x) + positions
        layers.append(weights(layer.attention, y, y, mask)[:, first:, first:])
        x = layer(x, positions, mask, NO_KEYS)
    return jnp.stack(layers)


def weights(
    attention: Attention,
    query: Float[Array, "batch queries width"],
    key: Float[Array, "batch keys width"],
    mask: Bool[Array, "batch keys"],
) -> Float[Array, "batch queries keys"]:
    """The softmax weights of an attention, mean over its heads."""
    q, k = (
        at_least_float32(x.reshape(*x.shape[:2], attention.heads, -1))
        for x in (attention.query(query), attention.key(key))
    )
    logits = jnp.einsum("bqhd,bkhd->bhqk", q, k) / np.sqrt(q.shape[-1])
    logits = jnp.where(mask[:, None, None, :], logits, jnp.finfo(logits.dtype).min)
    return jax.nn.softmax(logits).mean(1)
