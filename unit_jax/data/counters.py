"""Random numbers as a function of counters: nothing to store, nothing to replay.

`mix(seed, "order", epoch, rows)` gives the same 64 bits for the same keys on every machine and
NumPy version, for one number or for arrays of them.
"""

import zlib

import numpy as np
from jaxtyping import Float, Int, UInt64

_INCREMENT = np.uint64(0x9E3779B97F4A7C15)


def mix(*keys: int | str | np.ndarray) -> UInt64[np.ndarray, "..."]:
    """64 well-mixed bits for a sequence of keys, which broadcast against each other.

    Each key is folded in with the finaliser of SplitMix64 (Steele, Lea and Flood, 2014). Strings
    count by their CRC-32.
    """
    state = np.zeros((), np.uint64)
    with np.errstate(over="ignore"):  # arithmetic is modulo 2**64 on purpose
        for key in keys:
            if isinstance(key, str):
                key = zlib.crc32(key.encode())
            if isinstance(key, int):
                key %= 2**64
            state = _finalise(state + _INCREMENT + _finalise(np.asarray(key).astype(np.uint64)))
    return state


def _finalise(z: UInt64[np.ndarray, "..."] | np.uint64) -> UInt64[np.ndarray, "..."]:
    z = z + _INCREMENT
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return np.asarray(z ^ (z >> np.uint64(31)))  # of one number NumPy would make a scalar


def uniform(bits: UInt64[np.ndarray, "..."]) -> Float[np.ndarray, "..."]:
    """float64 in [0, 1) from the upper 53 bits."""
    return np.asarray((bits >> np.uint64(11)) * 2.0**-53)


def integers(
    bits: UInt64[np.ndarray, "..."], low: int | np.ndarray, high: int | np.ndarray
) -> Int[np.ndarray, "..."]:
    """int64 in [low, high], both included."""
    low = np.asarray(low, np.int64)
    above = uniform(bits) * (np.asarray(high, np.int64) - low + 1)
    return np.asarray(low + above.astype(np.int64))
