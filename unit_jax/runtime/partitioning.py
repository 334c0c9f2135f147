"""Where arrays live: a mesh over all devices, and the tables that lay parameters out on it.

The mesh has three axes. Batches are split over `data` and `fsdp`, parameters over `fsdp` and
`tensor`. Moments, and the gradients that an update reads, are split further, over all devices:
each updates its share, and parameters are gathered once afterwards (ZeRO's first stage). The
model's code states no collectives: XLA's partitioner places them (axis type Auto).
"""

import contextlib
import math
import re
from collections.abc import Collection

import jax
import numpy as np
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec

from unit_jax.settings import MeshSettings, TrainSettings

AXES = ("data", "fsdp", "tensor")
BATCH_AXES = ("data", "fsdp")  # what examples are split over

# Which parameter has which logical axes, one per dimension; the first pattern that matches the
# whole path counts. What is not listed (biases, norms: 0.3 % of the paper's model) is whole on
# every device, as splitting it would cost more in messages than it saves in memory.
PARAMETERS = (
    (r"backbone\..*\.kernel", (None, None, "conv_in", "conv_out")),
    (r".*\.(query|key|value)\.kernel", ("embed", "heads")),
    (r".*attention\.out\.kernel", ("heads", "embed")),
    (r".*\.(labels|classes|attributes\.linear2)\.kernel", ("embed", "classes")),
    (r".*\.linear1\.kernel", ("embed", "mlp")),
    (r".*\.linear2\.kernel", ("mlp", "embed")),
    (r".*\.kernel", ("embed", "features")),
    (r".*\.(word|class)_embedding", ("vocab", "embed")),
    (r".*_embedding|queries\..*", (None, "embed")),
)
MOMENTS = ("mu", "nu")
# Which mesh axis a logical axis is split over.
MESH_AXES = dict(
    embed="fsdp",
    conv_in="fsdp",
    conv_out="tensor",
    heads="tensor",
    mlp="tensor",
    features="tensor",
    classes="tensor",
    vocab="tensor",
)


def mesh_shape(settings: MeshSettings, devices: int) -> tuple[int, int, int]:
    """Sizes of the mesh's axes on that many devices; the one that is -1 takes what remains.

    Raises:
      ValueError: the sizes do not fit the number of devices.
    """
    sizes = [getattr(settings, axis) for axis in AXES]
    told = ", ".join(f"{axis}={size}" for axis, size in zip(AXES, sizes, strict=True))
    if sizes.count(-1) > 1 or any(size < 1 and size != -1 for size in sizes):
        raise ValueError(f"config.mesh: {told}; give numbers from 1 on, and -1 (the rest) once")
    given = math.prod(size for size in sizes if size != -1)
    if devices % given or (-1 not in sizes and given != devices):
        times = "a multiple of " * (-1 in sizes)
        raise ValueError(
            f"config.mesh: {told} is for {times}{given} devices, there are {devices}; change "
            "config.mesh, such as --config.mesh.data=-1 --config.mesh.fsdp=1 --config.mesh.tensor=1"
        )
    return tuple(devices // given if size == -1 else size for size in sizes)


def make_mesh(settings: MeshSettings, devices: list[jax.Device] | None = None) -> Mesh:
    """The mesh over all devices of all processes, neighbours on `tensor` closest.

    Raises:
      ValueError: see `mesh_shape`.
    """
    devices = jax.devices() if devices is None else devices
    types = (AxisType.Auto,) * len(AXES)
    shape = mesh_shape(settings, len(devices))
    return jax.make_mesh(shape, AXES, axis_types=types, devices=devices)


def abstract_mesh(settings: MeshSettings, devices: int) -> AbstractMesh:
    """The mesh of that many devices that need not be there: for shapes only."""
    return AbstractMesh(mesh_shape(settings, devices), AXES)


def replicated(mesh: Mesh) -> NamedSharding:
    """Every device holds the whole array."""
    return NamedSharding(mesh, PartitionSpec())


def split_over_batch(mesh: Mesh, axis: int = 0) -> NamedSharding:
    """Dimension `axis` holds the examples: split over `data` and `fsdp`."""
    return NamedSharding(mesh, _batch_spec(axis))


def parameter_spec(path: str, shape: tuple[int, ...], mesh: Mesh | AbstractMesh) -> PartitionSpec:
    """How a parameter (its gradient, its moments) is split.

    Where a mesh axis does not divide its dimension, another dimension of the parameter takes it;
    where it divides none, the parameter is whole along that mesh axis.
    """
    names = next((names for pattern, names in PARAMETERS if re.fullmatch(pattern, path)), ())
    if len(names) != len(shape):  # no pattern, or a scalar that is kept per parameter
        return PartitionSpec()
    parts: list[tuple[str, ...]] = [() for _ in shape]
    named = {dimension: name for dimension, name in enumerate(names) if name}
    for own, name in named.items():
        axis = MESH_AXES[name]
        for dimension in (own, *(other for other in named if other != own)):
            pieces = math.prod(mesh.shape[other] for other in (*parts[dimension], axis))
            if mesh.shape[axis] > 1 and shape[dimension] % pieces == 0:
                parts[dimension] += (axis,)
                break
    while parts and not parts[-1]:
        parts.pop()
    return PartitionSpec(*(part[0] if len(part) == 1 else part or None for part in parts))


def share_spec(path: str, shape: tuple[int, ...], mesh: Mesh | AbstractMesh) -> PartitionSpec:
    """How a parameter's moments, and its gradient at an update, are split: as the parameter, and
    over the mesh axes that this leaves, so that every device updates a share of its own.

    A dimension takes an axis where at least eight rows a device remain (a TPU's tile), or else
    where it can be divided at all. What `parameter_spec` does not know stays whole.
    """
    names = next((names for pattern, names in PARAMETERS if re.fullmatch(pattern, path)), ())
    spec = parameter_spec(path, shape, mesh)
    if len(names) != len(shape):
        return spec
    parts = [
        (part,) if isinstance(part, str) else tuple(part or ())
        for part in (*spec, *[None] * (len(shape) - len(spec)))
    ]
    named = [dimension for dimension, name in enumerate(names) if name]
    for axis in AXES:
        if mesh.shape[axis] == 1 or any(axis in part for part in parts):
            continue
        pieces = {
            dimension: mesh.shape[axis] * math.prod(mesh.shape[own] for own in parts[dimension])
            for dimension in named
        }
        for rows in (8, 1):
            fitting = [own for own in named if shape[own] % (rows * pieces[own]) == 0]
            if fitting:
                parts[fitting[0]] += (axis,)
                break
    while parts and not parts[-1]:
        parts.pop()
    return PartitionSpec(*(part[0] if len(part) == 1 else part or None for part in parts))


def shardings(tree, mesh: Mesh | AbstractMesh):
    """The sharding of every leaf of a tree whose dicts map parameter paths to arrays (parameters,
    statistics, optimiser state); what lies in no such dict is replicated. What lies in a dict
    called `mu` or `nu` are moments (see `share_spec`)."""

    def one(keys, leaf):
        path = keys[-1].key if isinstance(keys[-1], jax.tree_util.DictKey) else ""
        owner = getattr(keys[-2], "name", getattr(keys[-2], "key", "")) if len(keys) > 1 else ""
        spec = share_spec if owner in MOMENTS else parameter_spec
        return NamedSharding(mesh, spec(path, leaf.shape, mesh))

    return jax.tree.map_with_path(one, tree)


def gradient_shardings(grads, mesh: Mesh | AbstractMesh):
    """The sharding of gradients, by parameter path, as an update reads them (see `share_spec`)."""
    return {path: NamedSharding(mesh, share_spec(path, x.shape, mesh)) for path, x in grads.items()}


def abstract(tree, mesh: Mesh | AbstractMesh):
    """Shapes, dtypes and `shardings` of a tree, as the target of a checkpoint."""
    return jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        tree,
        shardings(tree, mesh),
    )


def place(tree, mesh: Mesh):
    """Puts a tree that every process holds whole on the mesh, by `shardings`."""
    return jax.tree.map(_put, tree, shardings(tree, mesh))


def zeros_like(x: jax.Array) -> jax.Array:
    """Zeros of the same shape, dtype and sharding."""
    return _put(np.zeros(x.shape, x.dtype), x.sharding)


def constrain(tree, mesh: Mesh):
    """Under jit: keeps a tree in its `shardings`."""
    return jax.lax.with_sharding_constraint(tree, shardings(tree, mesh))


def constrain_gradients(grads: dict[str, jax.Array], mesh: Mesh) -> dict[str, jax.Array]:
    """Under jit: sums gradients over the batch, then keeps of each sum a device's share.

    In two steps, so that the partitioner adds up where it has the whole and only then cuts: it
    would else be free to move activations. TPUs make one reduce-scatter of the two.
    """
    grads = constrain(grads, mesh)
    return jax.lax.with_sharding_constraint(grads, gradient_shardings(grads, mesh))


def gathered(params: dict[str, jax.Array], mesh: Mesh, dtype: str) -> dict[str, jax.Array]:
    """Under jit: parameters as the model reads them, whole along `fsdp`.

    What is split over `fsdp` is put together before it is used, in the dtype that the model casts
    it to anyway: at 16 bits half as many bytes travel. Left to itself XLA's partitioner gathers
    float32, or moves activations instead; and what it made of products with matrices split over
    `fsdp` and `tensor` was wrong on meshes that split over all three axes, with an example per
    device (jax 0.10.2, CPU; tests/training/test_sharding.py).
    """
    if mesh.shape["fsdp"] == 1:
        return params

    def without_fsdp(axes: str | tuple[str, ...] | None) -> tuple[str, ...]:
        axes = (axes,) if isinstance(axes, str) else axes or ()
        return tuple(axis for axis in axes if axis != "fsdp")

    def one(path: str, x: jax.Array) -> jax.Array:
        spec = parameter_spec(path, x.shape, mesh)
        if path.endswith(".kernel") and not path.startswith("heads."):
            # Cast where it lies, or the partitioner would gather first.
            x = jax.lax.with_sharding_constraint(x.astype(dtype), NamedSharding(mesh, spec))
        wanted = PartitionSpec(*map(without_fsdp, spec))
        return jax.lax.with_sharding_constraint(x, NamedSharding(mesh, wanted))

    return {path: one(path, x) for path, x in params.items()}


def constrain_activations(mesh: Mesh) -> contextlib.AbstractContextManager:
    """Code traced in this context keeps what it gives to `split_examples` on its devices."""
    if mesh.size == 1:
        return contextlib.nullcontext()
    return jax.sharding.use_abstract_mesh(mesh.abstract_mesh)


def split_examples(x: jax.Array, axis: int = 0) -> jax.Array:
    """Under `constrain_activations`: examples (dimension `axis`) split over the batch's mesh axes,
    all else whole. Elsewhere x as it is. It keeps the partitioner from moving activations where
    moving a weight is cheaper."""
    if jax.sharding.get_abstract_mesh().empty:
        return x
    return jax.lax.with_sharding_constraint(x, _batch_spec(axis))


def replicate(x: jax.Array) -> jax.Array:
    """Under `constrain_activations`: x whole on every device. Elsewhere x as it is."""
    if jax.sharding.get_abstract_mesh().empty:
        return x
    return jax.lax.with_sharding_constraint(x, PartitionSpec())


def check_batch_size(name: str, size: int, mesh: Mesh | AbstractMesh) -> None:
    """Raises ValueError unless the mesh divides a global batch of `size`."""
    parts = math.prod(mesh.shape[axis] for axis in BATCH_AXES)
    if size % parts:
        above = -(-size // parts) * parts
        raise ValueError(
            f"{name} = {size} cannot be split over {parts} devices "
            f"(mesh data {mesh.shape['data']} x fsdp {mesh.shape['fsdp']}); "
            f"use a multiple of {parts}, such as {above}"
        )


def check_batch_sizes(settings: TrainSettings, mesh) -> None:
    """Raises ValueError unless the mesh divides the batches of training, the parts that these are
    split into, and those of evaluation."""
    for name in ("batch_size", "eval_batch_size"):
        check_batch_size(f"train.{name}", getattr(settings, name), mesh)
    parts = settings.accumulate_steps
    if parts < 1 or settings.batch_size % parts:
        raise ValueError(
            f"train.batch_size = {settings.batch_size} cannot be split into "
            f"train.accumulate_steps = {parts} parts; use a divisor of the batch size"
        )
    name = "train.batch_size / train.accumulate_steps"
    check_batch_size(name, settings.batch_size // parts, mesh)


def rows_of_process(
    mesh: Mesh, size: int, devices: Collection[jax.Device] | None = None
) -> np.ndarray:
    """Which rows of a global batch of `size` lie on this process's (or other) devices, in order."""
    devices = jax.local_devices() if devices is None else devices
    indices = split_over_batch(mesh).devices_indices_map((size,))
    parts = {index[0].indices(size) for device, index in indices.items() if device in devices}
    return np.concatenate([np.arange(*part) for part in sorted(parts)])


def to_devices(tree, mesh: Mesh, axis: int = 0):
    """Puts global arrays, given as this process's rows of dimension `axis`, on the mesh."""
    sharding = split_over_batch(mesh, axis)
    return jax.tree.map(lambda x: jax.make_array_from_process_local_data(sharding, x), tree)


def to_host(x: jax.Array, axis: int = 0) -> np.ndarray:
    """This process's rows of an array split over dimension `axis`, in order, each row once."""
    if x.is_fully_addressable:
        return np.asarray(x)
    shards = {shard.index[axis].start or 0: shard.data for shard in x.addressable_shards}
    return np.concatenate([np.asarray(shards[start]) for start in sorted(shards)], axis)


def _batch_spec(axis: int) -> PartitionSpec:
    return PartitionSpec(*[None] * axis, BATCH_AXES)


def _put(x, sharding: jax.sharding.Sharding) -> jax.Array:
    if sharding.is_fully_addressable:
        return jax.device_put(x, sharding)
    x = np.asarray(x)
    return jax.make_array_from_callback(x.shape, sharding, x.__getitem__)
