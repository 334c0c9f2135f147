"""Digests of arrays that do not depend on how these lie on devices, processes or disks.

The digest of an array is the sum over its elements of (bits of the element) x (an odd number that
belongs to its place), modulo 2**64. Two arrays that differ in one element differ in it for certain
(an odd number times a difference below 2**64 is not zero); those that differ in more, but for one
chance in 2**64. As it is a sum, each process adds up what it holds, in any layout.

The odd number of a place is the product of one for each axis, so that a digest is a product of an
integer matrix and a vector: one to three GB a second on one core.
"""

from typing import Any

import jax
import numpy as np
from jaxtyping import UInt64

from unit_jax.runtime import distributed

_CHUNK = 2**20  # elements that are widened to 64 bits at a time


def of_tree(tree: Any) -> dict[str, str]:
    """{path of a leaf: "dtype:digest"} of arrays on any mesh; every process must ask.

    Reads the process's own part of each array to the host.
    """
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    parts = np.array([_of_own_shards(leaf) for _, leaf in leaves], np.uint64)
    with np.errstate(over="ignore"):
        sums = distributed.gather_bytes(parts).sum(0, dtype=np.uint64)
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): f"{leaf.dtype}:{value:016x}"
        for (path, leaf), value in zip(leaves, sums, strict=True)
    }


def differences(saved: dict[str, str], found: dict[str, str]) -> list[str]:
    """The names in both whose bits differ; those of another dtype cannot be compared."""
    return [
        name
        for name, digest in found.items()
        if name in saved
        and saved[name] != digest
        and saved[name].partition(":")[0] == digest.partition(":")[0]
    ]


def of_array(
    array: np.ndarray, start: tuple[int, ...] = (), shape: tuple[int, ...] | None = None
) -> int:
    """The digest of the part of an array of `shape` that begins at `start` (default: all of it)."""
    shape = array.shape if shape is None else shape
    start = start or (0,) * array.ndim
    if not array.size:
        return 0
    with np.errstate(over="ignore"):
        words = np.ascontiguousarray(array).reshape(array.shape).view(f"u{array.dtype.itemsize}")
        for axis in reversed(range(array.ndim)):
            factors = _odd(axis, shape[axis])[start[axis] : start[axis] + words.shape[axis]]
            words = _dot(words.reshape(-1, words.shape[axis]), factors).reshape(words.shape[:-1])
        return int(words.sum(dtype=np.uint64))


def _of_own_shards(leaf: Any) -> np.uint64:
    """Of several copies of a part the first one counts."""
    if not isinstance(leaf, jax.Array):
        return np.uint64(of_array(np.asarray(leaf)) if distributed.is_first() else 0)
    total = 0
    for shard in leaf.addressable_shards:
        if shard.replica_id == 0:
            start = tuple(piece.start or 0 for piece in shard.index)
            total += of_array(np.asarray(shard.data), start, leaf.shape)
    return np.uint64(total % 2**64)


def _dot(rows: np.ndarray, factors: UInt64[np.ndarray, "columns"]) -> UInt64[np.ndarray, "rows"]:
    """rows @ factors modulo 2**64, widened a part at a time."""
    step = max(_CHUNK // max(rows.shape[1], 1), 1)
    parts = [
        rows[begin : begin + step].astype(np.uint64) @ factors
        for begin in range(0, len(rows), step)
    ]
    return np.concatenate(parts)


def _odd(axis: int, count: int) -> UInt64[np.ndarray, "count"]:
    """Odd numbers, always the same: bits of Philox, a counter-based generator."""
    return np.random.Philox(key=axis).random_raw(count) | np.uint64(1)
