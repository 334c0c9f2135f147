"""Which query answers for which object: bipartite matching of predictions to targets.

The matching of UniT is DETR's: the one-to-one assignment of queries to objects that costs least,
found for every decoder layer and image on its own. It comes in three steps, so that a train step
may run the middle one on the host between two device programs: `cost_matrix` (device), `match`
(host, scipy) or `match_on_device`, and then `detection.detection_loss` with the result.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import scipy.optimize
from jaxtyping import Array, Bool, Float, Int

from unit_jax.batch import Outputs
from unit_jax.outputs.objects import boxes
from unit_jax.outputs.objects.targets import ObjectTargets
from unit_jax.precision import at_least_float32
from unit_jax.settings import LossSettings

UNUSABLE = -2  # in place of a query: the costs of this layer and image are NaN or infinite


class BadCosts(ValueError):
    """A matching cost of a real object is NaN or infinite."""


def cost_matrix(
    outputs: Outputs, targets: ObjectTargets, settings: LossSettings
) -> Float[Array, "layers batch queries objects"]:
    """What it would cost to match each query to each object; no gradient flows through it.

    class_cost * (-probability of the object's class) + box_cost * L1 distance of the cxcywh boxes
    + giou_cost * (-generalised IoU). The balanced loss puts -log probability in the place of
    -probability. Columns of padding (`targets.object_mask` False) cost 0.

    Returns:
      float32 (wider where the outputs are). Layers are the decoder's, last one last; without
      auxiliary losses only the last layer is there.
    """
    outputs = jax.lax.stop_gradient(supervised_layers(outputs, settings))
    log_probabilities = jax.nn.log_softmax(at_least_float32(outputs.logits))
    labels = jnp.where(targets.object_mask, targets.labels, 0)
    class_costs = -jnp.take_along_axis(
        log_probabilities if settings.balanced else jnp.exp(log_probabilities),
        labels[None, :, None, :],
        axis=-1,
    )
    predicted = at_least_float32(outputs.boxes)
    wanted = jnp.asarray(targets.boxes_cxcywh, predicted.dtype)
    distances = jnp.abs(predicted[..., :, None, :] - wanted[:, None, :, :]).sum(-1)
    overlaps = boxes.pairwise_generalized_box_iou(
        boxes.cxcywh_to_xyxy(predicted), boxes.cxcywh_to_xyxy(wanted)
    )
    costs = (
        settings.class_cost * class_costs
        + settings.box_cost * distances
        - settings.giou_cost * overlaps
    )
    return jnp.where(targets.object_mask[:, None, :], costs, 0)


def supervised_layers(outputs: Outputs, settings: LossSettings) -> Outputs:
    """The decoder layers that get a loss: all with auxiliary losses, else the last one."""
    if settings.auxiliary:
        return outputs
    return jax.tree.map(lambda x: x[-1:], outputs)


def match(
    costs: Float[np.ndarray, "layers batch queries objects"],
    object_mask: Bool[np.ndarray, "batch objects"],
) -> Int[np.ndarray, "layers batch objects"]:
    """Optimal matching on the host, by scipy; NumPy in, NumPy out.

    Returns:
      int32, the query matched to each object; -1 for padding and, where an image has more
      objects than there are queries, for the objects that stay without one.

    Raises:
      BadCosts: a cost of a real object is NaN or infinite; names layer and image.
    """
    costs, object_mask = np.asarray(costs), np.asarray(object_mask)
    usable = np.isfinite(costs) | ~object_mask[None, :, None, :]
    if not usable.all():
        layer, image = np.argwhere(~usable.all(axis=(2, 3)))[0]
        raise BadCosts(
            f"matching costs of decoder layer {layer}, image {image} of the batch are NaN or "
            "infinite: the predicted logits or boxes (or the target boxes) are; lower the "
            "learning rate or look for a broken example"
        )
    matches = np.full((costs.shape[0], *object_mask.shape), -1, np.int32)
    real = [np.flatnonzero(mask) for mask in object_mask]
    for layer in range(costs.shape[0]):
        for image, objects in enumerate(real):
            queries, chosen = scipy.optimize.linear_sum_assignment(costs[layer, image][:, objects])
            matches[layer, image, objects[chosen]] = queries
    return matches


def match_on_device(
    costs: Float[Array, "layers batch queries objects"],
    object_mask: Bool[Array, "batch objects"],
) -> Int[Array, "layers batch objects"]:
    """The same matching as `match`, as a JAX program that can be jitted.

    Where several matchings cost the same, it may choose another one than scipy. It cannot raise:
    where a cost of a real object is NaN or infinite, all real objects get UNUSABLE. Images are
    independent, so with a batch that is split over devices call it under `jax.shard_map`: else
    the solver's loops end together on all devices, which costs a round of communication a turn.
    """
    return jax.vmap(jax.vmap(_match_one), in_axes=(0, None))(costs, object_mask)


def _match_one(
    costs: Float[Array, "queries objects"], object_mask: Bool[Array, "objects"]
) -> Int[Array, "objects"]:
    usable = (jnp.isfinite(costs) | ~object_mask[None, :]).all()
    costs = jnp.where(usable, costs, 0)  # the solver would not end
    # Real objects below zero, padding at zero: a query that could take a real object never gains
    # by taking padding, and padding takes whatever is left without changing the rest.
    highest = jnp.max(costs, initial=-1e6, where=object_mask[None, :])
    shifted = jnp.where(object_mask[None, :], costs - highest - 1, 0)
    queries, objects = optax.assignment.hungarian_algorithm(shifted)
    matches = jnp.full(object_mask.shape, -1, jnp.int32).at[objects].set(queries.astype(jnp.int32))
    return jnp.where(object_mask, jnp.where(usable, matches, UNUSABLE), -1)
