"""Where 16 bits are not enough: what is computed wider than `model.dtype`, in one place each."""

import jax.numpy as jnp
from jaxtyping import Array, Float


def at_least_float32(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """x, widened where its numbers have 16 bits; never narrowed, so that float64 checks work."""
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def divide(x: Float[Array, "..."], divisor: float) -> Float[Array, "..."]:
    """x / divisor in the dtype of x; a divisor of 16 bits could be off by tenths of a percent."""
    return (at_least_float32(x) / divisor).astype(x.dtype)


def broadcast_as(
    x: Float[Array, "..."], shape: tuple[int, ...], dtype: jnp.dtype
) -> Float[Array, "..."]:
    """A parameter broadcast to a shape and cast, in this order: its gradient, a sum over examples
    and tokens, is then added up in the parameter's dtype, not in 16 bits."""
    return jnp.broadcast_to(x, shape).astype(dtype)
