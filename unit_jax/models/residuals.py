"""What a backward pass is handed by the forward pass, where it is not computed again.

Left to `jax.vjp`, a forward program hands on 46 GB an image of the paper's model: constants, masks
and the same numbers in two dtypes. Here it is chosen: what convolutions and matrix products give
(one array each, split over examples), and what the model names with `keep`. All between them
(norms, activations, dropout, masks, casts) is cheap and computed again.
"""

from collections.abc import Callable

import jax
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float

KEPT, LAYER, PART = "kept", "layer", "part"

_products = jax.checkpoint_policies.dots_with_no_batch_dims_saveable
_names = jax.checkpoint_policies.save_only_these_names
_named = _names(KEPT, LAYER)


def keep(x: Float[Array, "..."], name: str = KEPT) -> Float[Array, "..."]:
    """x, which a backward pass gets instead of computing it again.

    Args:
      name: LAYER: what a layer or block gives; PART: what an encoder or the decoder gives; KEPT:
        what lies inside a layer.
    """
    return checkpoint_name(x, name)


def policy(rematerialise: str) -> Callable[..., bool]:
    """What is kept, for `jax.checkpoint`. Insides of a `jax.checkpoint` below it obey it too."""
    return {"nothing": chosen, "layers": _names(LAYER, PART), "everything": _names(PART)}[
        rematerialise
    ]


def chosen(primitive, *inputs, **params) -> bool:
    """Convolutions, products of activations with weights, and what is named; not products of two
    activations, which are attention's."""
    return (
        primitive.name == "conv_general_dilated"
        or _products(primitive, *inputs, **params)
        or _named(primitive, *inputs, **params)
    )
