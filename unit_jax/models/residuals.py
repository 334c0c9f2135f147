"""What a backward pass is handed by the forward pass, where it is not computed again.

Left to `jax.vjp`, a forward program hands on 46 GB an image of the paper's model: constants, masks
and the same numbers in two dtypes. Here it is chosen: what convolutions and matrix products give
(one array each, split over examples), and what the model names with `keep`. All between them
(norms, activations, dropout, masks, casts) is cheap and computed again.
"""

import jax
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float

KEPT = "kept"

_products = jax.checkpoint_policies.dots_with_no_batch_dims_saveable
_named = jax.checkpoint_policies.save_only_these_names(KEPT)


def keep(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """x, which a backward pass of `chosen` gets instead of computing it again."""
    return checkpoint_name(x, KEPT)


def chosen(primitive, *inputs, **params) -> bool:
    """The policy, for `jax.checkpoint`: convolutions, products of activations with weights, and
    what is named; not products of two activations, which are attention's."""
    return (
        primitive.name == "conv_general_dilated"
        or _products(primitive, *inputs, **params)
        or _named(primitive, *inputs, **params)
    )
