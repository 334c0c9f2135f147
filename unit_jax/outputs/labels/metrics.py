"""Accuracy, F1 and VQA accuracy of predicted labels."""

import numpy as np
import scipy.sparse
from jaxtyping import Float, Int

from unit_jax.batch import AnyArray

UNKNOWN = 0  # index of the answer that stands for all that are not in the list


def best_labels(logits: Float[AnyArray, "examples labels"]) -> Int[AnyArray, "examples"]:
    """The label with the highest logit; JAX or NumPy arrays."""
    return logits.argmax(-1)


def best_answers(logits: Float[AnyArray, "examples answers"]) -> Int[AnyArray, "examples"]:
    """The most likely answer that is not the unknown one, which is never chosen (MMF)."""
    return logits[:, UNKNOWN + 1 :].argmax(-1) + UNKNOWN + 1


def probabilities(
    logits: Float[AnyArray, "examples labels"],
) -> Float[AnyArray, "examples labels"]:
    """Softmax; JAX or NumPy arrays."""
    xp = logits.__array_namespace__()
    exponentials = xp.exp(logits - xp.max(logits, axis=-1, keepdims=True))
    return exponentials / xp.sum(exponentials, axis=-1, keepdims=True)


def sigmoid(logits: Float[AnyArray, "*dims"]) -> Float[AnyArray, "*dims"]:
    """1 / (1 + exp(-logit)); JAX or NumPy arrays."""
    xp = logits.__array_namespace__()
    return (1 + xp.tanh(logits / 2)) / 2


def accuracy(predicted: Int[AnyArray, "examples"], labels: Int[np.ndarray, "examples"]) -> float:
    """Share of examples whose predicted label is the true one."""
    return float(np.mean(predicted == labels))


def f1(predicted: Int[np.ndarray, "examples"], labels: Int[np.ndarray, "examples"]) -> float:
    """F1 of label 1 (GLUE's for QQP); 0 where nothing is or is called 1."""
    positive, true = predicted == 1, labels == 1
    both = np.sum(positive & true)
    return float(2 * both / max(1, np.sum(positive) + np.sum(true)))


def vqa_accuracy(
    predicted: Int[AnyArray, "examples"],
    scores: Float[np.ndarray, "examples answers"] | scipy.sparse.csr_matrix,
) -> float:
    """Mean soft score of the predicted answers."""
    return float(np.mean(scores[np.arange(len(predicted)), predicted]))
