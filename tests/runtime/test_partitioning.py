"""The mesh and what lies on it."""

import jax
import numpy as np
import pytest

from unit_jax.runtime import partitioning
from unit_jax.settings import MeshSettings


def test_batches_are_split_and_come_back_in_order():
    mesh = partitioning.make_mesh(MeshSettings(data=-1, fsdp=2, tensor=1))
    assert mesh.shape == {"data": 4, "fsdp": 2, "tensor": 1}
    x = np.arange(48).reshape(16, 3)
    placed = partitioning.to_devices(x, mesh)
    assert {shard.data.shape for shard in placed.addressable_shards} == {(2, 3)}
    np.testing.assert_array_equal(partitioning.to_host(placed), x)
    matches = np.arange(2 * 16 * 3).reshape(2, 16, 3)
    placed = partitioning.to_devices(matches, mesh, axis=1)
    assert {shard.data.shape for shard in placed.addressable_shards} == {(2, 2, 3)}
    np.testing.assert_array_equal(partitioning.to_host(placed, axis=1), matches)


def test_a_batch_that_the_devices_do_not_divide():
    mesh = partitioning.make_mesh(MeshSettings(-1, 1, 1), jax.devices()[:3])
    partitioning.check_batch_size("train.batch_size", 9, mesh)
    with pytest.raises(ValueError, match="train.batch_size = 16 .* 3 devices .* multiple of 3"):
        partitioning.check_batch_size("train.batch_size", 16, mesh)


def test_rows_of_a_process_follow_its_devices():
    """A process reads what its devices hold, whatever their order in the mesh."""
    devices = jax.devices()
    for sizes, order, own, rows in (
        ((4, 1, 1), (0, 1, 2, 3), (2, 3), [4, 5, 6, 7]),
        ((2, 2, 1), (0, 2, 1, 3), (0, 1), [0, 1, 4, 5]),
        ((2, 1, 2), (0, 1, 2, 3), (2, 3), [4, 5, 6, 7]),
        ((1, 2, 2), (0, 1, 2, 3), (0, 2), [0, 1, 2, 3, 4, 5, 6, 7]),  # `tensor` shares rows
    ):
        mesh = jax.sharding.Mesh(np.asarray(devices)[list(order)].reshape(sizes), partitioning.AXES)
        found = partitioning.rows_of_process(mesh, 8, [devices[i] for i in own])
        assert found.tolist() == rows
