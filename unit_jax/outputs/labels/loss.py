"""Losses of tasks that are answered with labels: cross-entropy, or soft scores per answer."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from unit_jax.batch import Outputs, Targets
from unit_jax.precision import at_least_float32
from unit_jax.settings import LossSettings
from unit_jax.tasks import TaskSpec


def classification_loss(
    outputs: Outputs, targets: Targets, spec: TaskSpec, settings: LossSettings
) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
    """Loss of one batch, summed over the layers of `outputs.logits`.

    Tasks with soft targets (VQA): binary cross-entropy of every answer against its score, summed
    over answers (the reference's mean times the number of answers). Others: cross-entropy. Both
    are plain means over examples, so the settings' normalisations agree.

    Returns:
      the total, and its terms loss_0, loss_1, ... one per layer.
    """
    logits = at_least_float32(outputs.logits)
    if spec.soft_targets:
        scores = targets.answer_scores
        if scores.shape != logits.shape[1:]:
            raise ValueError(
                f"{spec.name}: answer scores of shape {scores.shape} do not fit logits of "
                f"{logits.shape[1:]}; was the data prepared with another answer list?"
            )
        # softplus(x) - score * x is the cross-entropy of sigmoid(x), stable for large x.
        losses = (jax.nn.softplus(logits) - scores * logits).sum(-1)
    else:
        log_probabilities = jax.nn.log_softmax(logits)
        losses = -jnp.take_along_axis(log_probabilities, targets.labels[None, :, None], axis=-1)
        losses = losses[..., 0]
    terms = {f"loss_{layer}": value for layer, value in enumerate(losses.mean(-1))}
    return sum(terms.values()), terms
