"""The decoder: task queries read the memory."""

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from unit_jax.models.transformer import (
    DecoderLayer,
    Keys,
    LayerNorm,
    Memory,
    through_layers,
    torch_default,
    xavier,
)
from unit_jax.precision import broadcast_as
from unit_jax.settings import ModelSettings


class Decoder(nnx.Module):
    """DETR's decoder; one layer norm is applied to every layer's output.

    A decoder of one task starts as the reference's do: torch's default values, the same in every
    layer. The shared one starts from Xavier-uniform matrices.
    """

    def __init__(self, settings: ModelSettings, *, rngs: nnx.Rngs):
        shared = settings.decoder.shared

        def layer() -> DecoderLayer:
            return DecoderLayer(
                settings.decoder.width,
                settings.heads,
                settings.mlp_width,
                settings.dropout,
                settings.attention_dropout,
                rngs=rngs,
                pre_norm=settings.pre_norm,
                fused=settings.attention == "fused",
                matrix_init=xavier if shared else torch_default,
            )

        first = layer()
        self.layers = nnx.List(
            [
                first,
                *(
                    layer() if shared else nnx.clone(first)
                    for _ in range(settings.decoder.layers - 1)
                ),
            ]
        )
        self.norm = LayerNorm(settings.decoder.width)
        self.recompute_layers = settings.rematerialise != "nothing"
        self.scan_layers = settings.scan_layers

    def __call__(
        self, queries: Float[Array, "queries width"], memory: Memory, keys: Keys
    ) -> Float[Array, "layers batch queries width"]:
        """Normed output of every layer; `queries` are the task's embeddings, the target is 0."""
        batch = memory.tokens.shape[0]
        queries = broadcast_as(queries, (batch, *queries.shape), memory.tokens.dtype)
        # The target is zeros; a loop over layers must start from an array.
        x = jnp.zeros_like(queries) if self.scan_layers else None
        _, outputs = through_layers(
            self.layers,
            x,
            lambda layer, x, keys: layer(x, queries, memory, keys),
            keys,
            recompute=self.recompute_layers,
            scan=self.scan_layers,
        )
        return self.norm(outputs)
