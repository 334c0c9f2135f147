"""Digests: one flipped bit changes them, the layout on devices does not."""

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from unit_jax.runtime import digests, partitioning
from unit_jax.settings import MeshSettings

DTYPES = (np.float32, ml_dtypes.bfloat16, np.int32, np.uint8, np.bool_, np.float64)


def by_hand(array: np.ndarray) -> int:
    """The definition, one element after the other, in Python's integers."""
    odd = [np.random.Philox(key=a).random_raw(n) | np.uint64(1) for a, n in enumerate(array.shape)]
    bits = array.view(f"u{array.dtype.itemsize}")
    total = 0
    for place in np.ndindex(array.shape):
        product = int(bits[place])
        for axis, i in enumerate(place):
            product *= int(odd[axis][i])
        total += product
    return total % 2**64


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(), (5,), (3, 4), (2, 3, 2, 5), (0, 3)])
def test_it_is_the_sum_that_it_says(dtype, shape):
    array = np.asarray(100 * np.random.default_rng(0).standard_normal(shape)).astype(dtype)
    assert digests.of_array(array) == by_hand(array)
    assert digests.of_array(np.array(array, order="F")) == by_hand(array)


def test_rows_are_widened_a_part_at_a_time(monkeypatch):
    array = np.random.default_rng(0).standard_normal((7, 5)).astype(np.float32)
    whole = digests.of_array(array)
    monkeypatch.setattr(digests, "_CHUNK", 11)
    assert digests.of_array(array) == whole


def test_every_flipped_bit_and_every_exchange_is_seen():
    array = np.random.default_rng(0).standard_normal((4, 3)).astype(np.float32)
    seen = {digests.of_array(array)}
    for place in np.ndindex(array.shape):
        for bit in range(32):
            changed = array.copy()
            changed.view(np.uint32)[place] ^= np.uint32(1 << bit)
            seen.add(digests.of_array(changed))
    assert len(seen) == 1 + 12 * 32
    seen |= {digests.of_array(x) for x in (array[::-1], array[:, ::-1], array[[0, 2, 1, 3]])}
    assert len(seen) == 4 + 12 * 32
    assert digests.of_array(array.T) != digests.of_array(array)


def test_no_layout_on_devices_changes_it():
    mesh = partitioning.make_mesh(MeshSettings(data=2, fsdp=2, tensor=2))
    array = np.random.default_rng(0).standard_normal((8, 4, 6)).astype(np.float32)
    layouts = [(), ("data",), ("fsdp", "tensor"), (None, "tensor", "fsdp"), (("data", "fsdp"),)]
    found = [
        digests.of_tree({"x": jax.device_put(array, NamedSharding(mesh, PartitionSpec(*layout)))})
        for layout in layouts
    ]
    assert found == [{"x": f"float32:{by_hand(array):016x}"}] * len(layouts)


def test_what_is_compared():
    found = digests.of_tree({"a": {"b": jnp.ones(3)}, "c": jnp.zeros(2, jnp.int32)})
    assert set(found) == {"a/b", "c"}
    changed = digests.of_tree({"a": {"b": 2 * jnp.ones(3)}, "c": jnp.zeros(2, jnp.int32)})
    assert digests.differences(found, changed) == ["a/b"]
    assert digests.differences({}, changed) == [] == digests.differences(found, found)
    # Read in another dtype (moments kept narrower), bits cannot be compared.
    narrow = digests.of_tree({"a": {"b": jnp.ones(3, jnp.bfloat16)}})
    assert digests.differences(found, narrow) == []
