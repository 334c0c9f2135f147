"""The set loss of detection: classes, boxes and attributes of matched queries.

DETR's losses on every decoder layer plus UniT's attribute loss. Sums over one image are the same
however images are batched; what differs is by how much they are divided:

- "batch": by what the whole batch holds, as the reference's code reads.
- "per_image": by what N devices with one image each arrive at, which is how the reference was
  trained: class and attribute loss of an image divided by its own weights, then the mean over
  images; box losses divided by the mean number of objects of an image.
"""

from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from unit_jax.batch import AnyArray, Outputs
from unit_jax.outputs.objects import boxes
from unit_jax.outputs.objects.matching import supervised_layers
from unit_jax.outputs.objects.targets import ObjectTargets
from unit_jax.precision import at_least_float32
from unit_jax.settings import LossSettings
from unit_jax.tasks import TaskSpec

AttributeLogits = Callable[
    [Float[Array, "*dims width"], Int[Array, "*dims"]], Float[Array, "*dims attributes"]
]


def detection_loss(
    outputs: Outputs,
    targets: ObjectTargets,
    matches: Int[Array, "layers batch objects"],
    settings: LossSettings,
    spec: TaskSpec,
    attribute_logits: AttributeLogits | None = None,
) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
    """Loss of one detection batch.

    Args:
      outputs: of the model; the no-object class is the last logit.
      targets: boxes, labels and object_mask; attributes may be None.
      matches: from `matching.match`: the query of each object, -1 = none.
      settings: weights, normalisation, balanced, auxiliary.
      spec: the task; attributes only count where it has some.
      attribute_logits: ReLUed logits of the attribute head for hidden states and class ids;
        None = no attribute loss.

    Returns:
      the total, and its terms as they are summed into it: loss_ce, loss_bbox, loss_giou and
      loss_attr of the last layer, and the same with suffix _0, _1, ... of the earlier layers.
    """
    weights = {
        "loss_ce": settings.class_weight,
        "loss_bbox": settings.box_weight,
        "loss_giou": settings.giou_weight,
        "loss_attr": settings.attribute_weight,
    }
    terms = {
        name + suffix: weights[name] * settings.detection_weight * value
        for suffix, layer_terms in _by_layer(
            unweighted_losses(outputs, targets, matches, settings, spec, attribute_logits)
        )
        for name, value in layer_terms.items()
    }
    return sum(terms.values()), terms


def unweighted_losses(
    outputs: Outputs,
    targets: ObjectTargets,
    matches: Int[Array, "layers batch objects"],
    settings: LossSettings,
    spec: TaskSpec,
    attribute_logits: AttributeLogits | None = None,
) -> dict[str, Float[Array, "layers"]]:
    """loss_ce, loss_bbox, loss_giou and (with attributes) loss_attr of each layer, not weighted.

    Arguments as those of `detection_loss`.
    """
    outputs = supervised_layers(outputs, settings)
    _check(outputs, targets, matches)
    # Objects of an image on average ("per_image") or of the batch ("batch"), at least one.
    per_image = settings.normalisation == "per_image"
    images = targets.object_mask.shape[0] if per_image else 1
    num_objects = jnp.maximum(targets.object_mask.sum() / images, 1)

    losses = {}
    if settings.balanced:
        losses["loss_ce"] = _balanced_class_loss(outputs, targets, matches, settings, num_objects)
    else:
        losses["loss_ce"] = _class_loss(outputs, targets, matches, settings)
    distances, overlap_losses = _box_losses(outputs, targets, matches)
    losses["loss_bbox"] = distances / (num_objects * images)
    losses["loss_giou"] = overlap_losses / (num_objects * images)
    if attribute_logits is not None and spec.num_attributes and targets.attributes is not None:
        losses["loss_attr"] = _attribute_loss(
            outputs, targets, targets.attributes, matches, attribute_logits, per_image
        )
    return losses


def cardinality_error(
    outputs: Outputs, targets: ObjectTargets, settings: LossSettings
) -> dict[str, Float[Array, ""]]:
    """How far the number of queries that see an object is from the number of objects.

    Mean absolute difference over images; a metric, no gradient. Keys as of `detection_loss`:
    cardinality_error for the last layer, cardinality_error_0, ... for earlier ones.
    """
    outputs = supervised_layers(outputs, settings)
    no_object = outputs.logits.shape[-1] - 1
    predicted = (outputs.logits.argmax(-1) != no_object).sum(-1)
    errors = jnp.abs(predicted - targets.object_mask.sum(-1))
    errors = errors.astype(at_least_float32(outputs.logits).dtype).mean(-1)
    return {
        name + suffix: value
        for suffix, terms in _by_layer({"cardinality_error": errors})
        for name, value in terms.items()
    }


def _check(outputs: Outputs, targets: ObjectTargets, matches: Array) -> None:
    expected = (outputs.logits.shape[0], *targets.object_mask.shape)
    if matches.shape != expected:
        raise ValueError(
            f"matches have shape {matches.shape}; these outputs and targets need {expected} "
            "(layers with a loss, images, objects)"
        )


def _by_layer(losses: Mapping[str, Array]):
    """Yields (suffix, {name: value}) per layer, the last layer first and without suffix."""
    layers = len(next(iter(losses.values())))
    for layer in (layers - 1, *range(layers - 1)):
        suffix = "" if layer == layers - 1 else f"_{layer}"
        yield suffix, {name: values[layer] for name, values in losses.items()}


def _of_matched(values: Float[Array, "layers batch queries dim"], matches: Array) -> Array:
    """Rows of the queries matched to each object: [layers, batch, objects, dim]."""
    return jnp.take_along_axis(values, jnp.maximum(matches, 0)[..., None], axis=2)


def _query_classes(logits: Array, targets: ObjectTargets, matches: Array) -> Array:
    """The class each query should answer, no-object where unmatched: [layers, batch, queries]."""
    queries, classes = logits.shape[2:]
    taken = matches[..., None] == jnp.arange(queries)  # [layers, batch, objects, queries]
    labels = jnp.where(taken, targets.labels[None, :, :, None], 0).sum(axis=2)
    return jnp.where(taken.any(axis=2), labels, classes - 1)


def _cross_entropy(logits: Float[Array, "*dims classes"], classes: Int[Array, "*dims"]) -> Array:
    log_probabilities = jax.nn.log_softmax(at_least_float32(logits))
    return -jnp.take_along_axis(log_probabilities, classes[..., None], axis=-1)[..., 0]


def _class_loss(
    outputs: Outputs, targets: ObjectTargets, matches: Array, settings: LossSettings
) -> Float[Array, "layers"]:
    """Weighted mean cross-entropy of all queries; no-object weighs `no_object_weight`."""
    classes = _query_classes(outputs.logits, targets, matches)
    losses = _cross_entropy(outputs.logits, classes)
    unmatched = classes == outputs.logits.shape[-1] - 1
    # Rounded to float32 as in the reference, whose class weights are a float32 buffer.
    weights = jnp.where(unmatched, np.float32(settings.no_object_weight), 1).astype(losses.dtype)
    over = (2,) if settings.normalisation == "per_image" else (1, 2)
    means = _mean_of_nonempty((losses * weights).sum(over), weights.sum(over))
    return means.reshape(means.shape[0], -1).mean(-1)


def _balanced_class_loss(
    outputs: Outputs,
    targets: ObjectTargets,
    matches: Array,
    settings: LossSettings,
    num_objects: Float[Array, ""],
) -> Float[Array, "layers"]:
    """Mean over matched and mean over unmatched queries, mixed by `no_object_weight`."""
    batch, queries, classes = outputs.logits.shape[1:]
    query_classes = _query_classes(outputs.logits, targets, matches)
    losses = _cross_entropy(outputs.logits, query_classes)
    unmatched = query_classes == classes - 1
    # `num_objects` and the queries are counted per image or over the batch, both alike.
    images = batch if settings.normalisation == "per_image" else 1
    num_unmatched = jnp.maximum(batch * queries / images - num_objects, 1)
    matched_mean = jnp.where(unmatched, 0, losses).sum((1, 2)) / (num_objects * images)
    unmatched_mean = jnp.where(unmatched, losses, 0).sum((1, 2)) / (num_unmatched * images)
    share = settings.no_object_weight
    return (1 - share) * matched_mean + share * unmatched_mean


def _box_losses(
    outputs: Outputs, targets: ObjectTargets, matches: Array
) -> tuple[Float[Array, "layers"], Float[Array, "layers"]]:
    """L1 distance and 1 - generalised IoU, summed over the matched pairs of a layer."""
    matched = matches >= 0
    predicted = at_least_float32(_of_matched(outputs.boxes, matches))
    # Padding gets a box of size one: a box without size could give 0/0 in the gradient.
    wanted = jnp.where(
        targets.object_mask[..., None],
        targets.boxes_cxcywh.astype(predicted.dtype),
        jnp.asarray([0.5, 0.5, 1, 1], predicted.dtype),
    )[None]
    distances = jnp.abs(predicted - wanted).sum(-1)
    overlaps = boxes.generalized_box_iou(
        boxes.cxcywh_to_xyxy(predicted), boxes.cxcywh_to_xyxy(wanted)
    )
    return (
        jnp.where(matched, distances, 0).sum((1, 2)),
        jnp.where(matched, 1 - overlaps, 0).sum((1, 2)),
    )


def _attribute_loss(
    outputs: Outputs,
    targets: ObjectTargets,
    attributes: Int[AnyArray, "batch objects 16"],
    matches: Array,
    attribute_logits: AttributeLogits,
    per_image: bool,
) -> Float[Array, "layers"]:
    """Half the cross-entropy of an object's attributes, averaged over them, then over objects.

    The head is told the object's class. As in the reference the mean runs over the matched
    objects whose loss is not zero, so objects without attributes do not count.
    """
    labels = jnp.where(targets.object_mask, targets.labels, 0)
    labels = jnp.broadcast_to(labels, matches.shape)
    logits = attribute_logits(_of_matched(outputs.hidden_states, matches), labels)
    given = attributes >= 0
    log_probabilities = jax.nn.log_softmax(at_least_float32(logits))
    losses = -jnp.take_along_axis(log_probabilities, jnp.where(given, attributes, 0)[None], axis=-1)
    losses = 0.5 * jnp.where(given, losses, 0).sum(-1) / jnp.maximum(given.sum(-1), 1)
    losses = jnp.where(matches >= 0, losses, 0)
    over = (2,) if per_image else (1, 2)
    means = _mean_of_nonempty(losses.sum(over), (losses != 0).sum(over))
    return means.reshape(means.shape[0], -1).mean(-1)


def _mean_of_nonempty(total: Array, count: Array) -> Array:
    """total / count, 0 where nothing was counted."""
    return jnp.where(count > 0, total / jnp.where(count > 0, count, 1), 0)
