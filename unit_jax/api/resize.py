"""Pillow's bilinear resize inside a program, to the last bit, with 32-bit integers alone.

Pillow (8 bits a channel) filters rows, rounds to 8 bits, then filters columns; from version 13 on
columns come first where the height shrinks by more than twice the pixels that the width does. A
filter's weights are triangles over max(scale, 1) pixels, divided by their sum and rounded to 22
fractional bits.
Here a weight is a fraction of two integers, n / N, whose 22 bits come from a long division: no
float64 is needed, and TPUs get what CPUs get. (Where float64 would round n / N * 2^22 to exactly a
half it might differ; with sides below 30,000 pixels no such fraction exists.)

Sizes are values, not shapes, so that pictures of all sizes share one program.
"""

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Int, UInt8

BITS = 22  # of a weight's fraction
_STEPS = (6, 6, 5, 5)  # of the long division; a remainder times 2^6 must fit in 31 bits


def target_sizes(
    sizes: Int[Array, "batch 2"], short_side: int, max_side: int, floor: bool
) -> Int[Array, "batch 2"]:
    """`data.transforms.resized_size` of (height, width) pairs, as a program."""
    short, long = sizes.min(1), sizes.max(1)
    size = jnp.full_like(short, short_side)
    if max_side:
        numerator = max_side * short
        if floor:
            limited = lax.div(numerator, long)
        else:  # rounded, halves to even
            limited = lax.div(2 * numerator + long, 2 * long)
            half = lax.rem(2 * numerator + long, 2 * long) == 0
            limited = limited - (half & (limited % 2 == 1))
        too_long = long * short_side > max_side * short
        size = jnp.where(too_long, jnp.maximum(limited, 1), size)
    other = lax.div(size * long, short)
    portrait = sizes[:, 0] > sizes[:, 1]
    return jnp.stack([jnp.where(portrait, other, size), jnp.where(portrait, size, other)], 1)


def resize(
    pictures: UInt8[Array, "batch height width 3"],
    old: Int[Array, "batch 2"],
    new: Int[Array, "batch 2"],
    canvas: tuple[int, int],
    tall_first: bool = True,
) -> UInt8[Array, "batch canvas_height canvas_width 3"]:
    """Pictures in the top-left corners of zeros, resized.

    Args:
      old: (height, width) of each picture in its corner; the rest is not read.
      new: (height, width) to give it, at most `canvas`.
      tall_first: columns come first where Pillow 13 has it so; False = as before it.
    """

    def rows_first(pictures: Array) -> Array:
        return _along(_along(pictures, 2, old, new, canvas), 1, old, new, canvas)

    if not tall_first:
        return rows_first(pictures)
    shrinks = old - new
    tall = shrinks[:, 0] > jnp.maximum(2 * shrinks[:, 1], 0)

    def both(pictures: Array) -> Array:
        columns_first = _along(_along(pictures, 1, old, new, canvas), 2, old, new, canvas)
        return jnp.where(tall[:, None, None, None], columns_first, rows_first(pictures))

    return lax.cond(jnp.any(tall), both, rows_first, pictures)


def _along(
    pictures: UInt8[Array, "batch height width 3"],
    axis: int,
    old: Int[Array, "batch 2"],
    new: Int[Array, "batch 2"],
    canvas: tuple[int, int],
) -> UInt8[Array, "batch new_height new_width 3"]:
    """Pictures resized along axis 1 or 2."""
    lines = pictures if axis == 1 else pictures.transpose(0, 2, 1, 3)
    other = lines.shape[2:]
    count = canvas[axis - 1]
    flat = lines.reshape(*lines.shape[:2], other[0] * other[1])
    done = _resample(flat, old[:, axis - 1], new[:, axis - 1], count)
    done = done.reshape(lines.shape[0], count, *other)
    return done if axis == 1 else done.transpose(0, 2, 1, 3)


def _resample(
    lines: UInt8[Array, "batch lines values"],
    old: Int[Array, "batch"],
    new: Int[Array, "batch"],
    count: int,
) -> UInt8[Array, "batch count values"]:
    """Every new line (row or column) as a weighted sum of old ones; 0 from `new` on."""
    old, new = old[:, None], new[:, None]
    place = jnp.arange(count, dtype=jnp.int32)[None]
    widest = jnp.maximum(old, new)
    # In units of half a new pixel: a new pixel's centre, and how far from it weights end.
    centre = (2 * place + 1) * old
    start = centre - 2 * widest - new
    first = jnp.where(start < 0, 0, lax.div(jnp.maximum(start, 0), 2 * new) + 1)
    taps = jnp.max(lax.div(2 * widest, new)) + 2

    def weight(tap: Array) -> Int[Array, "batch count"]:
        distance = jnp.abs((2 * (first + tap) + 1) * new - centre)
        inside = first + tap < old
        return jnp.where(inside, jnp.maximum(2 * widest - distance, 0), 0)

    zero = jnp.zeros_like(first)
    total = lax.fori_loop(0, taps, lambda tap, total: total + weight(tap), zero)
    total = jnp.maximum(total, 1)  # lines that will be 0

    def fraction(n: Int[Array, "batch count"]) -> Int[Array, "batch count"]:
        quotient, rest = lax.div(n, total), lax.rem(n, total)
        for bits in _STEPS:
            rest = rest << bits
            quotient = (quotient << bits) + lax.div(rest, total)
            rest = lax.rem(rest, total)
        return quotient + (2 * rest >= total)

    def add(tap: Array, summed: Int[Array, "batch count values"]) -> Array:
        chosen = jnp.minimum(first + tap, lines.shape[1] - 1)
        taken = jax.vmap(lambda line, index: line[index])(lines, chosen)
        return summed + fraction(weight(tap))[..., None] * taken.astype(jnp.int32)

    half = jnp.full((lines.shape[0], count, lines.shape[2]), 1 << (BITS - 1), jnp.int32)
    summed = lax.fori_loop(0, taps, add, half)
    values = jnp.clip(summed >> BITS, 0, 255).astype(jnp.uint8)
    return jnp.where((place < new)[..., None], values, 0)
