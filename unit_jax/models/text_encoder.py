"""The text encoder: BERT with a task token, and its hidden states as memory for the decoder."""

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from unit_jax.models.dropout import dropout
from unit_jax.models.lean import from_inputs
from unit_jax.models.transformer import (
    EncoderLayer,
    Keys,
    LayerNorm,
    Linear,
    Memory,
    bert_std,
    normal,
    prepend,
    through_layers,
)
from unit_jax.precision import at_least_float32, broadcast_as
from unit_jax.settings import ModelSettings

EPS = 1e-12  # of BERT's layer norms
PAD_ID = 0


class TextEncoder(nnx.Module):
    """BERT (always post-norm), then linear layers for hidden states and for positions.

    The task token is put in front after the embedding's layer norm and dropout, without position
    or segment, and dropped from the output. The pooler is BERT's and unused; it is here because
    checkpoints have it.
    """

    def __init__(self, settings: ModelSettings, *, rngs: nnx.Rngs):
        own = settings.text_encoder
        if own.width % own.heads:
            raise ValueError(
                f"model.text_encoder: width {own.width} does not split into {own.heads} heads"
            )
        std = bert_std(own.width)
        words = normal(rngs, own.vocab_size, own.width, std=std)
        self.word_embedding = nnx.Param(words[...].at[PAD_ID].set(0))
        self.position_embedding = normal(rngs, own.max_positions, own.width, std=std)
        self.segment_embedding = normal(rngs, 2, own.width, std=std)
        self.embedding_norm = LayerNorm(own.width, EPS)
        self.task_embedding = normal(rngs, own.task_rows, own.width) if own.task_embedding else None
        self.layers = nnx.List(
            EncoderLayer(
                own.width,
                own.heads,
                own.mlp_width,
                settings.dropout,
                settings.attention_dropout,
                rngs=rngs,
                text=True,
                fused=settings.attention == "fused",
            )
            for _ in range(own.layers)
        )
        if own.tied_fresh_keys:
            # Without that, and without trained weights, comparing texts is learned late.
            for layer in self.layers:
                layer.attention.key.kernel = nnx.Param(jnp.copy(layer.attention.query.kernel[...]))
        matrix = nnx.initializers.normal(std)
        self.pooler = Linear(own.width, own.width, rngs=rngs, kernel_init=matrix, zero_bias=True)
        self.memory_projection = Linear(own.width, settings.decoder.width, rngs=rngs)
        self.position_projection = Linear(own.width, settings.decoder.width, rngs=rngs)
        self.dropout = settings.dropout
        self.recompute_layers = settings.rematerialise != "nothing"
        self.scan_layers = settings.scan_layers
        self.dtype = jnp.dtype(settings.dtype)

    def __call__(
        self,
        input_ids: Int[Array, "batch tokens"],
        token_mask: Bool[Array, "batch tokens"],
        segment_ids: Int[Array, "batch tokens"],
        task_index: int,
        cls_only: bool,
        keys: Keys,
    ) -> Memory:
        """Memory of all tokens, or of [CLS] alone."""
        x = self.embed(input_ids, segment_ids, keys)
        y = self.encode(x, token_mask, task_index, keys)
        y = y[:, y.shape[1] - x.shape[1] :]  # without the task token
        count = 1 if cls_only else y.shape[1]
        positions = self.position_projection(self.position_embedding[:count].astype(self.dtype))
        return Memory(
            self.memory_projection(y[:, :count]),
            broadcast_as(
                at_least_float32(positions), (y.shape[0], *positions.shape), positions.dtype
            ),
            token_mask[:, :count],
        )

    def embed(
        self,
        input_ids: Int[Array, "batch tokens"],
        segment_ids: Int[Array, "batch tokens"],
        keys: Keys,
    ) -> Float[Array, "batch tokens width"]:
        """Word, segment and position embeddings, summed and normalised."""
        tokens = input_ids.shape[1]
        if tokens > self.position_embedding.shape[0]:
            raise ValueError(
                f"text of {tokens} tokens, but model.text_encoder.max_positions is "
                f"{self.position_embedding.shape[0]}"
            )
        words = from_inputs(look_up)(self.word_embedding[...], input_ids)
        x = words + self.segment_embedding[...][segment_ids] + self.position_embedding[:tokens]
        return dropout(self.embedding_norm(x), self.dropout, keys()).astype(self.dtype)

    def encode(
        self,
        x: Float[Array, "batch tokens width"],
        mask: Bool[Array, "batch tokens"],
        task_index: int,
        keys: Keys,
    ) -> Float[Array, "batch task_and_tokens width"]:
        """BERT's last hidden states, the task token (if there is one) still in front."""
        if self.task_embedding is not None:
            x = prepend(self.task_embedding[task_index], x)
            mask = jnp.pad(mask, ((0, 0), (1, 0)), constant_values=True)
        x, _ = through_layers(
            self.layers,
            x,
            lambda layer, x, keys: layer(x, None, mask, keys),
            keys,
            recompute=self.recompute_layers,
            scan=self.scan_layers,
        )
        return x


def look_up(
    table: Float[Array, "rows width"], ids: Int[Array, "batch tokens"]
) -> Float[Array, "batch tokens width"]:
    """Rows of a table; that of [PAD] is not learned (the reference's padding_idx)."""
    rows = table[ids]
    return jnp.where((ids == PAD_ID)[..., None], jax.lax.stop_gradient(rows), rows)
