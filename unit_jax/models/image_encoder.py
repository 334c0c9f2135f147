"""The image encoder: backbone features to memory for the decoder."""

import functools
import math

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float

from unit_jax.models.transformer import (
    EncoderLayer,
    Keys,
    LayerNorm,
    Linear,
    Memory,
    normal,
    prepend,
    through_layers,
    xavier,
)
from unit_jax.runtime.partitioning import split_examples
from unit_jax.settings import ModelSettings


class ImageEncoder(nnx.Module):
    """1x1 projection, transformer encoder with a task token, projection to decoder width.

    The task token comes first, without position, and is dropped from the output. The projections
    exist where encoder and decoder differ in width.
    """

    def __init__(self, settings: ModelSettings, channels: int, *, rngs: nnx.Rngs):
        own = settings.image_encoder
        self.input_projection = Linear(channels, own.width, rngs=rngs)
        self.layers = nnx.List(
            EncoderLayer(
                own.width,
                settings.heads,
                settings.mlp_width,
                settings.dropout,
                settings.attention_dropout,
                rngs=rngs,
                pre_norm=settings.pre_norm,
                fused=settings.attention == "fused",
            )
            for _ in range(own.layers)
        )
        self.norm = LayerNorm(own.width) if settings.pre_norm else None
        self.task_embedding = normal(rngs, own.task_rows, own.width) if own.task_embedding else None
        projects = own.width != settings.decoder.width
        projection = functools.partial(
            Linear, own.width, settings.decoder.width, rngs=rngs, kernel_init=xavier
        )
        self.memory_projection = projection() if projects else None
        self.position_projection = projection() if projects else None
        self.width = own.width
        self.residual = own.residual
        self.recompute_layers = settings.rematerialise != "nothing"
        self.scan_layers = settings.scan_layers

    def __call__(
        self,
        features: Float[Array, "batch height width channels"],
        mask: Bool[Array, "batch height width"],
        task_index: int,
        keys: Keys,
    ) -> Memory:
        """Memory of height x width tokens, row by row; `mask` is True where a feature is real."""
        x = _tokens(self.input_projection(features))
        positions = _tokens(sine_positions(mask, self.width).astype(x.dtype))
        mask = mask.reshape(mask.shape[0], -1)
        y = self.encode(x, positions, mask, task_index, keys)
        y = split_examples(y[:, y.shape[1] - x.shape[1] :])  # without the task token
        if self.residual:
            y = x + y
        if self.memory_projection is not None and self.position_projection is not None:
            y, positions = self.memory_projection(y), self.position_projection(positions)
        return Memory(y, positions, mask)

    def encode(
        self,
        x: Float[Array, "batch tokens width"],
        positions: Float[Array, "batch tokens width"],
        mask: Bool[Array, "batch tokens"],
        task_index: int,
        keys: Keys,
    ) -> Float[Array, "batch task_and_tokens width"]:
        """The transformer's output, the task token (if there is one) still in front."""
        if self.task_embedding is not None:
            x = prepend(self.task_embedding[task_index], x)
            positions = jnp.pad(positions, ((0, 0), (1, 0), (0, 0)))
            mask = jnp.pad(mask, ((0, 0), (1, 0)), constant_values=True)
        x, _ = through_layers(
            self.layers,
            x,
            lambda layer, x, keys: layer(x, positions, mask, keys),
            keys,
            recompute=self.recompute_layers,
            scan=self.scan_layers,
        )
        return x if self.norm is None else self.norm(x)


def sine_positions(
    mask: Bool[Array, "batch height width"], features: int, temperature: float = 10000.0
) -> Float[Array, "batch height width features"]:
    """DETR's position encoding: half the features for y, then half for x; sines and cosines take
    turns.

    A position is the count of real places so far, scaled so that the valid extent is 2 pi.
    """
    dtype = jnp.promote_types(jnp.float32, jnp.zeros(()).dtype)  # float64 with x64
    frequency = temperature ** (
        2 * (jnp.arange(features // 2) // 2).astype(dtype) / (features // 2)
    )
    encoded = []
    for axis in (1, 2):
        place = jnp.cumsum(mask, axis, dtype=dtype)
        extent = jax.lax.slice_in_dim(place, mask.shape[axis] - 1, None, axis=axis)
        angle = (place / (extent + 1e-6) * (2 * math.pi))[..., None] / frequency
        pairs = jnp.stack([jnp.sin(angle[..., 0::2]), jnp.cos(angle[..., 1::2])], axis=-1)
        encoded.append(pairs.reshape(angle.shape))
    return jnp.concatenate(encoded, axis=-1)


def _tokens(
    x: Float[Array, "batch height width features"],
) -> Float[Array, "batch tokens features"]:
    return x.reshape(x.shape[0], -1, x.shape[-1])
