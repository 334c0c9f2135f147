"""Dropout whose random bits are a hash of (key, position): nothing is stored, all is drawn again.

A generator that fills an array first has to write it. Here an element's bits depend on the key, on
its row (all dimensions but the last, counted over the global array) and on its column, by some ten
integer operations, which the compiler puts into the loop that uses them, forward and backward. They
are the same on every mesh, and for every number of examples and of columns beside it.

Rows are hashed to 64 bits and columns to 32, with the key; an element mixes these with two
multiplications. Rows and columns are counted apart because one 32-bit number does not count the
attention weights of a batch: 64 x 8 x 3351 x 3351 = 5.7e9. The mixing steps (xor with a shifted
copy, multiplication by an odd constant) are those of the known 32-bit finalisers; tests/models/
test_dropout.py tests what comes out. They serve dropout and no other need.
"""

import functools
import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, UInt32

from unit_jax.models import lean
from unit_jax.precision import at_least_float32

_GOLDEN = 0x9E3779B9  # 2^32 / golden ratio: multiples of it are spread evenly


def seed_of(key: Array) -> UInt32[Array, "2"]:
    """Two words of a JAX key (any generator's)."""
    words = jax.random.key_data(key) if jnp.issubdtype(key.dtype, jax.dtypes.prng_key) else key
    return jnp.stack([words[0], words[-1]])


def _shift_xor(x: UInt32[Array, "..."], bits: int) -> UInt32[Array, "..."]:
    return x ^ (x >> jnp.uint32(bits))


def _mix(x: UInt32[Array, "..."]) -> UInt32[Array, "..."]:
    """A bijection of 32-bit words in which every input bit moves about half of the output's."""
    x = _shift_xor(x, 16) * jnp.uint32(0x21F0AAAD)
    x = _shift_xor(x, 15) * jnp.uint32(0xD35A2D97)
    return _shift_xor(x, 15)


def bits(
    seed: UInt32[Array, "2"], rows: UInt32[Array, "*rows"], columns: UInt32[Array, "*columns"]
) -> UInt32[Array, "..."]:
    """Random words for rows and columns (broadcast against each other); the upper 16 bits of a
    word are the better ones."""
    first, second = seed[0], seed[1]
    row1 = _mix(_mix(rows + first) ^ second)
    row2 = _mix(_mix(rows ^ second) + first + jnp.uint32(_GOLDEN))
    column = _mix(columns * jnp.uint32(_GOLDEN) + (first ^ (second << jnp.uint32(1))))
    x = _shift_xor(row1 + column, 16) * jnp.uint32(0x7FEB352D)
    x = _shift_xor(x ^ row2, 15) * jnp.uint32(0x846CA68B)
    return _shift_xor(x, 16)


def kept(random: UInt32[Array, "..."], rate: float) -> Bool[Array, "..."]:
    """True with probability 1 - rate, to within 2^-32."""
    return random >= jnp.uint32(min(round(rate * 2**32), 2**32 - 1))


def dropout(x: Float[Array, "... width"], rate: float, key: Array | None) -> Float[Array, "..."]:
    """Zeroes elements with probability `rate`, scales the rest to the same mean.

    Args:
      x: at least one dimension; less than 2^32 rows, less than 2^32 columns.
      key: of `jax.random`; None = x as it is.
    """
    return x if key is None or rate == 0 else _dropout(x, seed_of(key), rate)


def relu_dropout(
    x: Float[Array, "... width"], rate: float, key: Array | None
) -> Float[Array, "..."]:
    """dropout(relu(x)); where the result is not zero, x was positive and kept, so that the result
    is all that the derivative needs."""
    if key is None or rate == 0:
        rate, seed = 0.0, jnp.zeros(2, jnp.uint32)
    else:
        seed = seed_of(key)
    return _relu_dropout(lean.relu_input(x), seed, rate)


def _masked(x: Float[Array, "... width"], seed: UInt32[Array, "2"], rate: float):
    """x / (1 - rate) or 0, by the bits of its position."""
    if rate == 0:
        return x
    *batch, width = x.shape
    strides = [math.prod(batch[i + 1 :]) for i in range(len(batch))]
    rows = jnp.zeros((*batch, 1), jnp.uint32)
    for axis, stride in enumerate(strides):
        rows += jax.lax.broadcasted_iota(jnp.uint32, rows.shape, axis) * jnp.uint32(stride)
    keep = kept(bits(seed, rows, jnp.arange(width, dtype=jnp.uint32)), rate)
    return jnp.where(keep, at_least_float32(x) * (1 / (1 - rate)), 0).astype(x.dtype)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _dropout(x, seed, rate):
    return _masked(x, seed, rate)


def _dropout_forward(x, seed, rate):
    return _masked(x, seed, rate), seed


def _dropout_backward(rate, seed, cotangent):
    return _masked(cotangent, seed, rate), None


_dropout.defvjp(_dropout_forward, _dropout_backward)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _relu_dropout(x, seed, rate):
    return _masked(jnp.maximum(x, 0), seed, rate)


def _relu_dropout_forward(x, seed, rate):
    y = _masked(jnp.maximum(x, 0), seed, rate)
    return y, y


def _relu_dropout_backward(rate, y, cotangent):
    scaled = (at_least_float32(cotangent) * (1 / (1 - rate))).astype(cotangent.dtype)
    return jnp.where(y > 0, scaled, 0), None


_relu_dropout.defvjp(_relu_dropout_forward, _relu_dropout_backward)
