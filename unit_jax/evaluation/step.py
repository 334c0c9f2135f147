"""The prediction step: what metrics, files and people need of the model's answer to one batch."""

import dataclasses
import typing

import jax

from unit_jax import outputs
from unit_jax.batch import Batch
from unit_jax.models import flat
from unit_jax.models.flat import Model
from unit_jax.runtime import partitioning
from unit_jax.settings import Settings

if typing.TYPE_CHECKING:  # it reads data; programs need not
    from unit_jax.run import Run


class PredictStep:
    """predict(model, batch) -> what the task's room says of each example, and the batch's `index`.

    Logits stay on the device: those of a whole split would be gigabytes. The results are whole on
    every device, so that every process sees every example. The batch has no targets; programs are
    compiled once per task and batch shape.
    """

    def __init__(self, graph, settings: Settings, mesh):
        self._graph, self._settings, self._mesh = graph, settings, mesh
        self._program = jax.jit(self._predict)

    def __call__(self, model: Model, batch: Batch) -> dict[str, jax.Array]:
        return self._program(model, batch)

    def lower(self, model: Model, batch: Batch) -> jax.stages.Lowered:
        """The program of a call with arguments of these shapes, dtypes and shardings."""
        return self._program.lower(model, batch)

    def _predict(self, model: Model, batch: Batch) -> dict[str, jax.Array]:
        params = partitioning.gathered(model.params, self._mesh, self._settings.model.dtype)
        unit = flat.merge(self._graph, params, model.statistics)
        with partitioning.constrain_activations(self._mesh):
            answers = unit(batch)
        room = outputs.room(self._settings.tasks[batch.task])
        predictions = room.predict(answers, unit.heads[batch.task])
        return jax.lax.with_sharding_constraint(
            {"index": batch.index, **predictions}, partitioning.replicated(self._mesh)
        )


@dataclasses.dataclass(frozen=True)
class Predictor:
    """A model in use: predictor(batch) -> as PredictStep's.

    Attributes:
      step: compiled programs, shared by all models of one architecture.
      model: parameters and statistics.
    """

    step: PredictStep
    model: Model

    def __call__(self, batch: Batch) -> dict[str, jax.Array]:
        return self.step(self.model, batch)

    @classmethod
    def of_run(cls, run: "Run", model: Model) -> "Predictor":
        """The predictor of a run's architecture."""
        return cls(PredictStep(run.graph, run.settings, run.mesh), model)

    def of(self, model: Model) -> "Predictor":
        """The same programs with other parameters."""
        return dataclasses.replace(self, model=model)
