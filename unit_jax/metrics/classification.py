"""Accuracy, F1 and VQA accuracy, from logits on the host."""

import numpy as np
from jaxtyping import Float, Int

UNKNOWN = 0  # index of the answer that stands for all that are not in the list


def accuracy(
    logits: Float[np.ndarray, "examples labels"], labels: Int[np.ndarray, "examples"]
) -> float:
    """Share of examples whose highest logit is the label's."""
    return float(np.mean(logits.argmax(-1) == labels))


def f1(logits: Float[np.ndarray, "examples labels"], labels: Int[np.ndarray, "examples"]) -> float:
    """F1 of label 1 (GLUE's for QQP); 0 where nothing is or is called 1."""
    predicted, true = logits.argmax(-1) == 1, np.asarray(labels) == 1
    both = np.sum(predicted & true)
    return float(2 * both / max(1, np.sum(predicted) + np.sum(true)))


def best_answers(logits: Float[np.ndarray, "examples answers"]) -> Int[np.ndarray, "examples"]:
    """The most likely answer of each example that is not the unknown one."""
    return logits[:, UNKNOWN + 1 :].argmax(-1) + UNKNOWN + 1


def vqa_accuracy(
    logits: Float[np.ndarray, "examples answers"], scores: Float[np.ndarray, "examples answers"]
) -> float:
    """Mean soft score of the most likely answer; the unknown answer is never chosen (MMF)."""
    return float(np.mean(np.take_along_axis(scores, best_answers(logits)[:, None], 1)))
