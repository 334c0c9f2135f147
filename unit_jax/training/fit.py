"""Whether a run's programs can fit on its devices, before any is compiled."""

import dataclasses
import math

import jax
import jax.numpy as jnp

from unit_jax import outputs as rooms
from unit_jax.data.shapes import batch_shapes
from unit_jax.runtime import partitioning
from unit_jax.settings import Settings
from unit_jax.tasks import TaskSpec
from unit_jax.training import optimizer as optim
from unit_jax.training.step import Gradients, TrainState


@dataclasses.dataclass(frozen=True)
class Need:
    """Bytes of one device that a task's step cannot do without.

    Attributes:
      state: parameters, statistics and the optimiser's share.
      gradients: of all that the task learns, before each device keeps its share.
      activations: what the backward pass is handed, for `examples` at once.
    """

    task: str
    bucket: tuple[int, ...]
    examples: int
    state: int
    gradients: int
    activations: int

    @property
    def total(self) -> int:
        return self.state + self.gradients + self.activations


def device_memory(mesh) -> int | None:
    """Bytes that programs may have on a device of the mesh; None where it does not tell (CPU)."""
    device = next(iter(mesh.local_devices), None)
    if device is None or device.platform == "cpu":
        return None
    return (device.memory_stats() or {}).get("bytes_limit")


def check(graph, settings: Settings, mesh, state: TrainState) -> None:
    """Looks at each kind of task at its largest shape. What is counted are parameters, moments,
    gradients and kept activations; scratch space and code come on top, so what passes may still be
    too large, and what does not pass cannot fit.

    Args:
      state: arrays, or shapes, dtypes and shardings of them.

    Raises:
      ValueError: a task cannot fit; names the setting to change.
    """
    memory = device_memory(mesh)
    if memory is None:
        return
    for spec, bucket in largest(settings):
        need = estimate(graph, settings, mesh, state, spec, bucket)
        if need.total > memory:
            raise ValueError(_told(need, memory, settings, mesh))


def largest(settings: Settings) -> list[tuple[TaskSpec, tuple[int, ...]]]:
    """A task of each kind (the one with the most queries), with its largest shape."""
    specs: dict[tuple, TaskSpec] = {}
    for name, spec in settings.tasks.items():
        if settings.ratios[name] > 0:
            kind = (spec.inputs, rooms.room(spec).matches)
            best = specs.setdefault(kind, spec)
            if (spec.num_queries, spec.max_tokens) > (best.num_queries, best.max_tokens):
                specs[kind] = spec
    return [
        (spec, max(settings.data.buckets, key=math.prod) if spec.has_image else (spec.max_tokens,))
        for spec in specs.values()
    ]


def estimate(
    graph, settings: Settings, mesh, state: TrainState, spec: TaskSpec, bucket: tuple[int, ...]
) -> Need:
    """What a step of the task needs; traces the model, compiles nothing."""
    parts = settings.train.accumulate_steps
    examples = settings.train.batch_size // parts
    train = dataclasses.replace(settings.train, batch_size=examples)
    batch = batch_shapes(spec, bucket, dataclasses.replace(settings, train=train), mesh)
    optimizer = optim.Optimizer(settings.optimizer, settings.train.steps)
    gradients = Gradients(graph, settings, optimizer, mesh)
    kept = jax.eval_shape(gradients.kept, state, batch)
    learned = gradients.learned_by(state, spec.name)
    devices = math.prod(mesh.shape[axis] for axis in partitioning.BATCH_AXES)
    return Need(
        spec.name,
        bucket,
        examples // devices,
        state=sum(map(_on_a_device, jax.tree.leaves(state))),
        gradients=sum(map(_on_a_device, learned.values())),
        activations=sum(x.size * jnp.dtype(x.dtype).itemsize for x in kept) // devices,
    )


def _on_a_device(leaf: jax.Array | jax.ShapeDtypeStruct) -> int:
    return math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize


def _told(need: Need, memory: int, settings: Settings, mesh) -> str:
    gigabytes = lambda number: f"{number / 1e9:.1f} GB"  # noqa: E731
    shape = "x".join(map(str, need.bucket))
    told = (
        f"{need.task} at {shape} needs at least {gigabytes(need.total)} on each device (parameters "
        f"and optimiser {gigabytes(need.state)}, gradients {gigabytes(need.gradients)}, "
        f"activations of {need.examples} examples {gigabytes(need.activations)}) and there are "
        f"{gigabytes(memory)}; "
    )
    left = memory - need.state - need.gradients
    each = need.activations / need.examples
    parts = settings.train.accumulate_steps
    fitting = [
        number
        for number in range(2, need.examples + 1)
        if need.examples % number == 0 and need.examples / number * each <= left
    ]
    if fitting:
        return told + (
            f"set --config.train.accumulate_steps={parts * fitting[0]}, take more devices, or a "
            "smaller --config.train.batch_size"
        )
    if settings.model.dtype == "float32" and each / 2 <= left:
        return told + "set --config.model.dtype=bfloat16"
    if mesh.shape["fsdp"] == 1 and mesh.size > 1:
        return told + (
            f"split the parameters too: --config.mesh.data=1 --config.mesh.fsdp={mesh.size}"
        )
    return told + 'set --config.model.rematerialise="layers", or lower data.buckets'
