"""Where arrays live: one mesh over all devices, batches split along its data axis."""

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec


def make_mesh(devices: list[jax.Device] | None = None) -> Mesh:
    """One axis, `data`, over all devices of all processes.

    The axis type is Auto: XLA's partitioner places the collectives, the model code states none.
    """
    devices = jax.devices() if devices is None else devices
    return Mesh(np.asarray(devices), ("data",), axis_types=(AxisType.Auto,))


def replicated(mesh: Mesh) -> NamedSharding:
    return NamedSharding(mesh, PartitionSpec())


def split_over_data(mesh: Mesh, axis: int = 0) -> NamedSharding:
    """Dimension `axis` split over the data axis."""
    return NamedSharding(mesh, PartitionSpec(*[None] * axis, "data"))


def check_batch_size(name: str, size: int, mesh: Mesh) -> None:
    """Raises ValueError unless the devices divide a global batch of `size`."""
    devices = mesh.shape["data"]
    if size % devices:
        above = -(-size // devices) * devices
        raise ValueError(
            f"{name} = {size} cannot be split over {devices} devices; "
            f"use a multiple of {devices}, such as {above}"
        )


def to_devices(tree, mesh: Mesh, axis: int = 0):
    """Puts global arrays, given as this process's slice of dimension `axis`, on the mesh."""
    sharding = split_over_data(mesh, axis)
    return jax.tree.map(lambda x: jax.make_array_from_process_local_data(sharding, x), tree)


def to_host(x: jax.Array, axis: int = 0) -> np.ndarray:
    """This process's slice of an array split over dimension `axis`, in order, each part once."""
    if x.is_fully_addressable:
        return np.asarray(x)
    shards = {shard.index[axis].start or 0: shard.data for shard in x.addressable_shards}
    return np.concatenate([np.asarray(shards[start]) for start in sorted(shards)], axis)
