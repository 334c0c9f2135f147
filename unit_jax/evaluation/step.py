"""The prediction step: what metrics and submissions need of the model's answer to one batch."""

from collections.abc import Callable

import jax

from unit_jax.batch import Batch
from unit_jax.models import flat
from unit_jax.models.flat import Flat
from unit_jax.outputs.labels import metrics as classification
from unit_jax.outputs.objects import metrics as detection
from unit_jax.runtime import partitioning
from unit_jax.settings import Settings
from unit_jax.tasks import TaskSpec


class PredictStep:
    """predict(params, statistics, batch) -> labels, or detections, and the batch's `index`.

    Labels are [batch]; of detection it is what `metrics.detection.best_of_queries` gives. Logits
    stay on the device: those of a whole split would be gigabytes. The results are whole on every
    device, so that every process sees every example. The batch has no targets; programs are
    compiled once per task and batch shape.
    """

    def __init__(self, graph, settings: Settings, mesh):
        self._graph, self._settings, self._mesh = graph, settings, mesh
        self._program = jax.jit(self._predict)

    def __call__(self, params: Flat, statistics: Flat, batch: Batch) -> dict[str, jax.Array]:
        return self._program(params, statistics, batch)

    def lower(self, params: Flat, statistics: Flat, batch: Batch) -> jax.stages.Lowered:
        """The program of a call with arguments of these shapes, dtypes and shardings."""
        return self._program.lower(params, statistics, batch)

    def _predict(self, params: Flat, statistics: Flat, batch: Batch) -> dict[str, jax.Array]:
        params = partitioning.for_use(params, self._mesh)
        model = flat.merge(self._graph, params, statistics)
        with partitioning.constrain_activations(self._mesh):
            outputs = model(batch)
        spec, logits = self._settings.tasks[batch.task], outputs.logits[-1]
        if spec.kind == "detection":
            attribute_logits = None
            if spec.num_attributes:
                classes = logits[..., :-1].argmax(-1)
                attribute_logits = model.attribute_logits(
                    batch.task, outputs.hidden_states[-1], classes
                )
            boxes_cxcywh = outputs.boxes_cxcywh[-1]
            answer = detection.best_of_queries(logits, boxes_cxcywh, attribute_logits)
        else:
            answer = {"labels": best_labels(spec)(logits)}
        return jax.lax.with_sharding_constraint(
            {"index": batch.index, **answer}, partitioning.replicated(self._mesh)
        )


def best_labels(spec: TaskSpec) -> Callable:
    """What turns a task's logits into labels."""
    return classification.best_answers if spec.soft_targets else classification.best_labels
