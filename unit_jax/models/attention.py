"""Attention with dropout on its weights that never keeps the weights for the backward pass.

The queries go through in chunks; a chunk's scores [batch, heads, chunk, keys] live as long as the
chunk is worked on. The derivative keeps queries, keys, values, output, two numbers per query (the
softmax's maximum and sum) and the dropout's seed, and computes the weights again, chunk by chunk
(Rabe & Staats 2021, Dao et al. 2022); dropout's bits are a hash of their position (dropout.py).
"""

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from unit_jax.models.dropout import bits, kept, seed_of
from unit_jax.models.residuals import keep as kept_for_backward
from unit_jax.precision import divide

WHOLE = 512  # up to so many queries are worked on at once
CHUNK = 128  # of more, so many
ALIGN = 8  # long sequences are padded to multiples of it


def attend(
    q: Float[Array, "batch queries heads head_width"],
    k: Float[Array, "batch keys heads head_width"],
    v: Float[Array, "batch keys heads head_width"],
    mask: Bool[Array, "batch keys"] | None,
    rate: float = 0.0,
    key: Array | None = None,
    *,
    whole: int = WHOLE,
    chunk: int = CHUNK,
) -> Float[Array, "batch queries heads head_width"]:
    """softmax(q k / sqrt(head_width)), with dropout, times v; softmax and sums in at least float32.

    Args:
      mask: True where a key is real; None = all are. Where none is, all count alike.
      rate, key: of dropout on the weights; key None = no dropout. The bits of the weight of query i
        for key j depend on i, j, the example's number in the global batch and the head.
      whole, chunk: up to `whole` queries are worked on at once, of more `chunk`.
    """
    rate, seed = (0.0, jnp.zeros(2, jnp.uint32)) if key is None else (rate, seed_of(key))
    wide = jnp.promote_types(q.dtype, jnp.float32)
    queries, keys = q.shape[1], k.shape[1]
    bias = None
    if mask is not None:
        bias = jnp.where(mask, 0, jnp.finfo(wide).min).astype(wide)
    if queries <= whole:
        chunk = queries
    elif keys % ALIGN:
        more = -keys % ALIGN
        bias = jnp.zeros((k.shape[0], keys), wide) if bias is None else bias
        bias = jnp.pad(bias, ((0, 0), (0, more)), constant_values=-jnp.inf)
        k, v = (jnp.pad(x, ((0, 0), (0, more), (0, 0), (0, 0))) for x in (k, v))
    return _attend(q, k, v, bias, seed, rate, chunk).reshape(q.shape)


def fused_attention(
    q: Float[Array, "batch queries heads head_width"],
    k: Float[Array, "batch keys heads head_width"],
    v: Float[Array, "batch keys heads head_width"],
    mask: Bool[Array, "batch keys"] | None,
) -> Float[Array, "batch queries heads head_width"]:
    """Attention by one kernel where there is one for these arrays, else as `attend`.

    The kernel is cuDNN's, for NVIDIA GPUs and 16-bit numbers. It wants even numbers of queries and
    keys, which a task token makes odd, so both are padded; and a mask with an axis for the queries.
    """
    queries, keys, head_width = q.shape[1], k.shape[1], q.shape[3]
    has_kernel = q.dtype.itemsize == 2 and head_width % 8 == 0 and head_width <= 128
    if jax.default_backend() != "gpu" or not has_kernel:
        return attend(q, k, v, mask)
    if mask is None and keys % 2:
        mask = jnp.ones((len(k), keys), bool)
    even = lambda x: jnp.pad(x, [(0, 0), (0, x.shape[1] % 2)] + [(0, 0)] * (x.ndim - 2))  # noqa: E731
    q, k, v = map(even, (q, k, v))
    if mask is not None:
        mask = even(mask)[:, None, None, :]
        mask = jnp.broadcast_to(mask, (len(q), 1, q.shape[1], k.shape[1]))
    out = jax.nn.dot_product_attention(q, k, v, mask=mask, implementation="cudnn")
    return out[:, :queries]


def _chunks(x: Array, chunk: int) -> Array:
    """[batch, queries, ...] to [chunks, batch, chunk, ...]; what is missing is zero."""
    x = jnp.pad(x, [(0, 0), (0, -x.shape[1] % chunk)] + [(0, 0)] * (x.ndim - 2))
    return jnp.moveaxis(x.reshape(x.shape[0], -1, chunk, *x.shape[2:]), 1, 0)


def _joined(x: Array, queries: int) -> Array:
    """The inverse of `_chunks`."""
    x = jnp.moveaxis(x, 0, 1)
    return x.reshape(x.shape[0], -1, *x.shape[3:])[:, :queries]


def _chunk_size(queries: int, chunk: int) -> int:
    """Chunks of about the same size, a multiple of ALIGN."""
    count = -(-queries // chunk)
    return -(-queries // count // ALIGN) * ALIGN if count > 1 else queries


def _scores(q, k, bias):
    """Scores of scaled queries, in at least float32."""
    wide = jnp.promote_types(q.dtype, jnp.float32)
    scores = jnp.einsum("bqhd,bkhd->bhqk", q, k, preferred_element_type=wide)
    return scores if bias is None else scores + bias[:, None, None, :]


def _keep(shape, seed, rate: float, start, queries: int):
    """Which weights [batch, heads, chunk, keys] are kept; the chunk starts at query `start`."""
    if rate == 0:
        return None
    batch, heads, chunk, keys = shape
    iota = lambda axis: jax.lax.broadcasted_iota(jnp.uint32, (batch, heads, chunk, 1), axis)  # noqa: E731
    rows = (iota(0) * jnp.uint32(heads) + iota(1)) * jnp.uint32(queries)
    rows += iota(2) + start.astype(jnp.uint32)
    return kept(bits(seed, rows, jnp.arange(keys, dtype=jnp.uint32)), rate)


def _sum(weights, dtype):
    """The sum over keys as a matrix product, which XLA for TPU fuses with the exponential; its sum
    over the last axis takes as long as all the rest of the forward pass."""
    ones = jnp.ones((weights.shape[-1], 8), dtype)  # of one column it would make a sum again
    weights = weights.astype(dtype)
    return jnp.matmul(weights, ones, preferred_element_type=jnp.promote_types(dtype, jnp.float32))[
        ..., 0
    ]


def _each(function, queries: int, chunk: int, *arrays):
    """function(number of the first query, *chunks of arrays) for every chunk, joined again."""
    if queries <= chunk:
        return function(jnp.uint32(0), *arrays)
    size = _chunk_size(queries, chunk)
    stacked = tuple(_chunks(x, size) for x in arrays)
    starts = jnp.arange(stacked[0].shape[0], dtype=jnp.uint32) * jnp.uint32(size)
    results = jax.lax.map(lambda xs: function(*xs), (starts, *stacked))
    return jax.tree.map(lambda x: _joined(x, queries), results)


@functools.partial(jax.custom_vjp, nondiff_argnums=(5, 6))
def _attend(q, k, v, bias, seed, rate, chunk):
    return _forward(q, k, v, bias, seed, rate, chunk)[0]


def _forward(q, k, v, bias, seed, rate, chunk):
    queries = q.shape[1]

    def one(start, q):
        scores = _scores(q, k, bias)
        maximum = scores.max(-1)
        weights = jnp.exp(scores - maximum[..., None])
        total = _sum(weights, v.dtype) if queries > chunk else weights.sum(-1)
        keep = _keep(weights.shape, seed, rate, start, queries)
        if keep is not None:
            weights = jnp.where(keep, weights, 0)
        out = jnp.einsum(
            "bhqk,bkhd->bqhd",
            weights.astype(v.dtype),
            v,
            preferred_element_type=scores.dtype,
        )
        maximum, total = jnp.moveaxis(maximum, 1, 2), jnp.moveaxis(total, 1, 2)
        out = (out / ((1 - rate) * total[..., None])).astype(q.dtype)
        return out, maximum, total

    out, maximum, total = _each(one, queries, chunk, divide(q, q.shape[-1] ** 0.5))
    out = out.reshape(*out.shape[:2], -1)  # as the product that follows keeps it
    out, maximum, total = map(kept_for_backward, (out, maximum, total))
    return out, (q, k, v, bias, seed, out, maximum, total)


def _backward(rate, chunk, residuals, cotangent):
    q, k, v, bias, seed, out, maximum, total = residuals
    queries = q.shape[1]
    wide = maximum.dtype
    cotangent, out = cotangent.reshape(q.shape), out.reshape(q.shape)
    # Of softmax's derivative: the mean of the weights' cotangents, weighted.
    mean = (cotangent.astype(wide) * out.astype(wide)).sum(-1)

    def one(start, q, cotangent, mean, maximum, total):
        mean, maximum, total = (jnp.moveaxis(x, 2, 1)[..., None] for x in (mean, maximum, total))
        weights = jnp.exp(_scores(q, k, bias) - maximum) * (1 / total)
        keep = _keep(weights.shape, seed, rate, start, queries)
        for_weights = jnp.einsum("bqhd,bkhd->bhqk", cotangent, v, preferred_element_type=wide)
        dropped = weights
        if keep is not None:
            dropped = jnp.where(keep, weights * (1 / (1 - rate)), 0)
            for_weights = jnp.where(keep, for_weights * (1 / (1 - rate)), 0)
        for_scores = (weights * (for_weights - mean)).astype(q.dtype)
        dropped = dropped.astype(v.dtype)
        for_q = jnp.einsum("bhqk,bkhd->bqhd", for_scores, k, preferred_element_type=wide)
        for_k = jnp.einsum("bhqk,bqhd->bkhd", for_scores, q, preferred_element_type=wide)
        for_v = jnp.einsum("bhqk,bqhd->bkhd", dropped, cotangent, preferred_element_type=wide)
        return for_q, for_k, for_v

    arrays = divide(q, q.shape[-1] ** 0.5), cotangent, mean, maximum, total
    if queries <= chunk:
        for_q, for_k, for_v = one(jnp.uint32(0), *arrays)
    else:
        size = _chunk_size(queries, chunk)
        stacked = tuple(_chunks(x, size) for x in arrays)
        # What was padded: queries and cotangents of 0, weights of exp(score) / 1; nothing comes
        # of it, but 0 / 0 must not.
        real = _chunks(jnp.ones((1, queries, 1), bool), size)
        stacked = (*stacked[:-1], jnp.where(real, stacked[-1], 1))
        starts = jnp.arange(stacked[0].shape[0], dtype=jnp.uint32) * jnp.uint32(size)

        def add(sums, chunk):
            for_q, *more = one(*chunk)
            return tuple(x + y for x, y in zip(sums, more, strict=True)), for_q

        zeros = tuple(jnp.zeros(x.shape, wide) for x in (k, v))
        (for_k, for_v), for_q = jax.lax.scan(add, zeros, (starts, *stacked))
        for_q = _joined(for_q, queries)
    for_q = (for_q / q.shape[-1] ** 0.5).astype(q.dtype)
    return for_q, for_k.astype(k.dtype), for_v.astype(v.dtype), None, None


_attend.defvjp(_forward, _backward)
