"""The room of objects: classes, boxes, maybe attributes, matched to the queries that see them."""

from collections.abc import Sequence

import numpy as np
from flax import nnx
from jaxtyping import Array

from unit_jax.batch import Outputs
from unit_jax.models.heads import DetectionHead
from unit_jax.outputs.analysis import NOTHING, Analysis
from unit_jax.outputs.base import (
    Described,
    Examples,
    Move,
    Names,
    Output,
    Predictions,
    Record,
    shape_of,
)
from unit_jax.outputs.objects import average_precision, matching, metrics
from unit_jax.outputs.objects import loss as set_loss
from unit_jax.outputs.objects import targets as object_targets
from unit_jax.settings import DataSettings, LossSettings, ModelSettings

MIN_SCORE = 0.5  # of a drawn detection


class Objects(Output):
    """Detection as in DETR, with UniT's attributes where the task has some."""

    matches = True
    loss_parts = ("attributes",)  # the loss tells the attribute head the matched objects' classes

    def is_labelled(self, record: Record) -> bool:
        return len(record["objects"]["category_ids"]) > 0

    def target(self, record: Record, names: Names) -> object_targets.Objects:
        objects = object_targets.load(record["objects"], record["height"], record["width"])
        if len(objects.labels):
            self._check_labels(objects.labels)
        return objects

    def _check_labels(self, labels: np.ndarray) -> None:
        if not 0 <= labels.min() <= labels.max() < self.spec.num_labels:
            raise ValueError(
                f"label {labels.min()} or {labels.max()}, known are 0 to {self.spec.num_labels - 1}"
            )

    def move(self, target: object_targets.Objects, moves: Sequence[Move]) -> object_targets.Objects:
        return object_targets.move(target, moves)

    def collate(
        self,
        targets: Sequence[object_targets.Objects],
        sizes: Sequence[tuple[int, int]] | None,
        settings: DataSettings,
    ) -> object_targets.ObjectTargets:
        with_attributes = self.spec.num_attributes > 0
        return object_targets.pad(targets, sizes, settings.max_objects, with_attributes)

    def target_shapes(self, settings: DataSettings) -> object_targets.ObjectTargets:
        n, slots = settings.max_objects, None
        if self.spec.num_attributes:
            slots = shape_of(n, object_targets.ATTRIBUTE_SLOTS, dtype=np.int32)
        return object_targets.ObjectTargets(
            boxes_cxcywh=shape_of(n, 4, dtype=np.float32),
            labels=shape_of(n, dtype=np.int32),
            object_mask=shape_of(n, dtype=np.bool_),
            attributes=slots,
        )

    def check(self, examples: Examples, settings: DataSettings) -> str | None:
        """More objects on an image than the shapes hold, unless they may be truncated."""
        counts = examples.num_objects
        if counts is None:
            return "it counts no objects; its index needs num_objects"
        above = np.flatnonzero(counts > settings.max_objects)
        if settings.truncate_objects or not len(above):
            return None
        most = int(above[np.argmax(counts[above])])
        return (
            f"{len(above)} images have more than data.max_objects = {settings.max_objects} "
            f"objects, example {most} has {counts[most]}; raise data.max_objects, or set "
            "data.truncate_objects=True to keep the first ones of each"
        )

    def head(self, settings: ModelSettings, rngs: nnx.Rngs) -> DetectionHead:
        return DetectionHead(self.spec, settings.decoder.width, rngs=rngs)

    def costs(
        self, outputs: Outputs, targets: object_targets.ObjectTargets, settings: LossSettings
    ) -> Array:
        return matching.cost_matrix(outputs, targets, settings)

    def loss(
        self,
        outputs: Outputs,
        targets: object_targets.ObjectTargets,
        head: DetectionHead,
        settings: LossSettings,
        matches: Array | None = None,
    ) -> tuple[Array, dict[str, Array]]:
        attributes = head.attributes if self.spec.num_attributes else None
        if matches is None:
            raise ValueError(f"{self.spec.name}: the loss of objects needs their matches")
        return set_loss.detection_loss(outputs, targets, matches, settings, self.spec, attributes)

    def predict(self, outputs: Outputs, head: DetectionHead) -> dict[str, Array]:
        """What `metrics.best_of_queries` gives of the last layer."""
        logits, attribute_logits = outputs.logits[-1], None
        if head.attributes is not None:
            classes = logits[..., :-1].argmax(-1)
            attribute_logits = head.attributes(outputs.hidden_states[-1], classes)
        return metrics.best_of_queries(logits, outputs.boxes[-1], attribute_logits)

    def all_metrics(self) -> tuple[str, ...]:
        return average_precision.NAMES

    def measure(
        self, predictions: Predictions, examples: Examples, names: Names
    ) -> dict[str, float]:
        columns = self._columns(predictions, examples)
        return average_precision.evaluate(*columns, self.spec.num_labels).named()

    def analyse(self, predictions: Predictions, examples: Examples, names: Names) -> Analysis:
        """AP by class, and which class is taken for which; faults are counted by image."""
        objects, detections = self._columns(predictions, examples)
        result = average_precision.evaluate(objects, detections, self.spec.num_labels)
        confusion, faults = average_precision.confusion(
            objects, detections, self.spec.num_labels, MIN_SCORE
        )
        counts = np.bincount(objects.labels[~objects.iscrowd], minlength=self.spec.num_labels)
        labels = (*map(names.label, range(self.spec.num_labels)), NOTHING)
        return Analysis("AP", labels, counts, result.per_class(), confusion, faults)

    def _columns(
        self, predictions: Predictions, examples: Examples
    ) -> tuple[average_precision.Objects, average_precision.Detections]:
        records = (examples[row] for row in range(len(examples)))
        sizes = np.stack(examples.sizes, -1)
        return metrics.objects(records), metrics.detections(predictions, sizes)

    def detections(self, record: Record, prediction: Predictions) -> Predictions:
        """One image's queries with boxes_xyxy in pixels of the original image."""
        rows = {name: values[None] for name, values in prediction.items()}
        return metrics.post_process(rows, np.asarray([[record["height"], record["width"]]]))[0]

    def entries(self, record: Record, prediction: Predictions, names: Names) -> list[dict]:
        """COCO results: image_id, category_id, bbox (x, y, width, height), score; with attributes
        attr_score and attr_label too."""
        entries = metrics.to_coco(record["id"], self.detections(record, prediction))
        # A number that no class has can never be right, and a server knows none of it.
        entries = [e for e in entries if not names.labels or names.labels[e["category_id"]]]
        if names.submitted:  # ids that the data set's own files have
            for entry in entries:
                entry["category_id"] = int(names.submitted[entry["category_id"]])
        return entries

    def describe(self, record: Record, prediction: Predictions, names: Names) -> Described:
        labels = prediction["labels"][prediction["scores"] >= MIN_SCORE]
        true = record["objects"]["category_ids"]
        said, truth = ([names.label(int(n)) for n in sorted(x)] for x in (labels, true))
        return Described(", ".join(said) or "nothing", ", ".join(truth) or "nothing", said == truth)

    def draw(
        self, axes, record: Record, image: np.ndarray | None, prediction: Predictions, names: Names
    ) -> None:
        from unit_jax.outputs.objects import drawing  # matplotlib: for people only

        drawing.draw(axes, record, image, self.detections(record, prediction), names, MIN_SCORE)
