"""The training loss on a split, without dropout and augmentation (`report.validation_loss`)."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from unit_jax import outputs as rooms
from unit_jax import run as run_lib
from unit_jax.batch import Batch, Outputs
from unit_jax.data import loader
from unit_jax.models import flat
from unit_jax.models.flat import Model
from unit_jax.models.unit import Unit
from unit_jax.outputs.objects import matching
from unit_jax.runtime import partitioning


class LossStep:
    """loss(model, batch) -> the batch's loss, a scalar on every device.

    Where the task's room matches, each process solves its own examples on the host, between two
    programs. Programs are compiled once per task and batch shape.
    """

    def __init__(self, run: run_lib.Run):
        self._run = run
        self._forward, self._loss = jax.jit(self._outputs), jax.jit(self._total)

    def __call__(self, model: Model, batch: Batch) -> Array:
        outputs, costs = self._forward(model, batch)
        matches = None
        if costs is not None:
            own = partitioning.to_host(costs, axis=1)
            mask = partitioning.to_host(batch.targets.object_mask)
            try:
                matches = matching.match(own, mask)
            except matching.BadCosts:
                matches = np.full((len(own), *mask.shape), matching.UNUSABLE, np.int32)
            matches = partitioning.to_devices(matches, self._run.mesh, axis=1)
        return self._loss(model, batch, outputs, matches)

    def _unit(self, model: Model) -> Unit:
        dtype = self._run.settings.model.dtype
        params = partitioning.gathered(model.params, self._run.mesh, dtype)
        return flat.merge(self._run.graph, params, model.statistics)

    def _outputs(self, model: Model, batch: Batch) -> tuple[Outputs, Array | None]:
        with partitioning.constrain_activations(self._run.mesh):
            outputs = self._unit(model)(batch)
        settings, room = self._run.settings, rooms.room(self._run.settings.tasks[batch.task])
        if not room.matches:
            return outputs, None
        costs = room.costs(outputs, batch.targets, settings.loss)
        over_batch = partitioning.split_over_batch(self._run.mesh, axis=1)
        return outputs, jax.lax.with_sharding_constraint(costs, over_batch)

    def _total(self, model: Model, batch: Batch, outputs: Outputs, matches: Array | None) -> Array:
        settings, room = self._run.settings, rooms.room(self._run.settings.tasks[batch.task])
        head = self._unit(model).heads[batch.task]
        total, _ = room.loss(outputs, batch.targets, head, settings.loss, matches)
        if matches is not None:
            total = jnp.where((matches == matching.UNUSABLE).any(), jnp.nan, total)
        whole = partitioning.replicated(self._run.mesh)
        return jax.lax.with_sharding_constraint(total, whole)


def losses(run: run_lib.Run, step: LossStep, model: Model, split: str = "val") -> dict[str, float]:
    """{"task/loss": mean over the batches} of the tasks with labels.

    Last batches that fillers complete count only where there are no others. NaN where matching
    costs were not finite.
    """
    means = {}
    places = partitioning.rows_of_process(run.mesh, run.settings.train.eval_batch_size)
    for task in run.settings.tasks:
        if split not in run.data.splits(task) or not run.data.split(task, split).labelled:
            continue
        whole, filled = [], []
        with loader.eval_batches(run.settings, run.data, task, split, places) as batches:
            for batch in batches:
                # Every process must see the same batches as whole.
                full = bool(jax.device_get(_all_real(run, batch)))
                value = step(model, partitioning.to_devices(batch, run.mesh))
                (whole if full else filled).append(float(value))
        means[f"{task}/loss"] = float(np.mean(whole or filled))
    return means


def _all_real(run: run_lib.Run, batch: Batch) -> Array:
    """Whether no example of the global batch is a filler."""
    index = partitioning.to_devices(np.asarray(batch.index), run.mesh)
    return _least(index) >= 0


@jax.jit
def _least(index: Array) -> Array:
    return index.min()
