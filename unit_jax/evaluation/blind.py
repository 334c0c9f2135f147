"""Answers that do not look: a constant label, and logistic regression on a bag of words.

A model that does not beat these has not understood the picture, or the pair of texts.
"""

from collections.abc import Sequence

import numpy as np
import scipy.optimize
import scipy.sparse
from jaxtyping import Float, Int

Scores = Float[np.ndarray, "examples labels"]


def majority(train: scipy.sparse.csr_matrix, examples: int) -> Int[np.ndarray, "examples"]:
    """The label that does best on the training set, for every example.

    Args:
      train: score of each label on each training example (one-hot, or soft).
      examples: how many to answer.
    """
    return np.full(examples, np.asarray(train.sum(0)).argmax())


def bag_of_words(
    train_ids: Sequence[Sequence[int]],
    train: Scores,
    ids: Sequence[Sequence[int]],
    vocabulary_size: int,
    decay: float = 1e-4,
) -> Float[np.ndarray, "texts labels"]:
    """Logits of multinomial logistic regression on which words occur.

    Args:
      train_ids, ids: token ids of the training texts and of the texts to answer.
      train: score of each label on each training example, brought to sum 1.
      vocabulary_size: number of words.
      decay: weight of the squared norm of the weights.
    """
    features, labels = _occurrences(train_ids, vocabulary_size), train.shape[1]
    known = train.sum(1) > 0
    features = features[known]
    targets = train[known] / train[known].sum(1, keepdims=True)

    def loss(flat: np.ndarray) -> tuple[float, np.ndarray]:
        weights = flat.reshape(-1, labels)
        logits = features @ weights
        logits -= logits.max(1, keepdims=True)
        log_probabilities = logits - np.log(np.exp(logits).sum(1, keepdims=True))
        value = -np.mean((targets * log_probabilities).sum(1)) + decay * np.sum(weights**2)
        slope = features.T @ (np.exp(log_probabilities) - targets) / len(targets)
        return value, (slope + 2 * decay * weights).ravel()

    start = np.zeros((vocabulary_size + 1) * labels)
    minimum = scipy.optimize.minimize(
        loss, start, jac=True, method="L-BFGS-B", options=dict(maxiter=200)
    )
    return _occurrences(ids, vocabulary_size) @ minimum.x.reshape(-1, labels)


def _occurrences(texts: Sequence[Sequence[int]], vocabulary_size: int) -> scipy.sparse.csr_matrix:
    """1 where a word occurs in a text; the last column is always 1."""
    rows = np.concatenate([[i] * (len(set(text)) + 1) for i, text in enumerate(texts)])
    columns = np.concatenate([[*sorted(set(text)), vocabulary_size] for text in texts])
    shape = (len(texts), vocabulary_size + 1)
    return scipy.sparse.csr_matrix((np.ones(len(rows)), (rows, columns)), shape)
