"""Losses of label logits, summed over the decoder layers that have some.

Both are plain means over examples, so the settings' normalisations agree. The terms are called
loss_0, loss_1, ..., one per layer.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from unit_jax.batch import AnyArray
from unit_jax.precision import at_least_float32

Terms = dict[str, Float[Array, ""]]


def cross_entropy(
    logits: Float[Array, "layers batch labels"], labels: Int[AnyArray, "batch"]
) -> tuple[Float[Array, ""], Terms]:
    """Mean cross-entropy: (total, its terms)."""
    log_probabilities = jax.nn.log_softmax(at_least_float32(logits))
    losses = -jnp.take_along_axis(log_probabilities, labels[None, :, None], axis=-1)
    return _total(losses[..., 0])


def binary_cross_entropy(
    logits: Float[Array, "layers batch answers"],
    answer_scores: Float[AnyArray, "batch _"],
    task: str,
) -> tuple[Float[Array, ""], Terms]:
    """Binary cross-entropy of every answer against its score, summed over answers (the reference's
    mean times the number of answers), averaged over examples: (total, its terms).

    Raises:
      ValueError: there are not as many scores as logits.
    """
    if answer_scores.shape != logits.shape[1:]:
        raise ValueError(
            f"{task}: answer scores of shape {answer_scores.shape} do not fit logits of "
            f"{logits.shape[1:]}; was the data prepared with another answer list?"
        )
    logits = at_least_float32(logits)
    # softplus(x) - score * x is the cross-entropy of sigmoid(x), stable for large x.
    return _total((jax.nn.softplus(logits) - answer_scores * logits).sum(-1))


def _total(losses: Float[Array, "layers batch"]) -> tuple[Float[Array, ""], Terms]:
    terms = {f"loss_{layer}": value for layer, value in enumerate(losses.mean(-1))}
    return sum(terms.values()), terms
