"""Open answers: how they are compared, and VQA's soft scores."""

import functools
from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Float

UNKNOWN_ANSWER = 0  # index of <unk> in an answer list
ANNOTATORS = 10


def normalise_answer(answer: str) -> str:
    """The form under which an answer is looked up in the answer list."""
    return answer.lower().replace(",", "").replace("?", "").replace("'s", " 's").strip()


def answer_scores(
    answers: Sequence[str], numbers: Mapping[str, int], num_answers: int
) -> Float[np.ndarray, "answers"]:
    """VQA's soft score in [0, 1] of every answer, given what the annotators said.

    With ten annotators (fewer are repeated up to ten), an answer's score is the mean over the
    annotators of min(1, matches among the other nine / 3): 0.3, 0.6, 0.9, 1 for one, two, three,
    four or more matches. Answers outside the list score nothing.

    Args:
      answers: as annotated, at least one.
      numbers: position of each normalised answer in the answer list; 0 = unknown.
      num_answers: length of the list.
    """
    scores = np.zeros(num_answers, np.float32)
    said = [numbers.get(normalise_answer(answer), UNKNOWN_ANSWER) for answer in answers]
    said = [said[i % len(said)] for i in range(max(len(said), ANNOTATORS))]
    for number in set(said) - {UNKNOWN_ANSWER}:
        n, total = said.count(number), len(said)
        scores[number] = (n * min(1, (n - 1) / 3) + (total - n) * min(1, n / 3)) / total
    return scores


@functools.cache
def numbers_of(names: tuple[str, ...]) -> Mapping[str, int]:
    """Position of each normalised answer in an answer list, the first where it is there twice."""
    return {normalise_answer(name): number for number, name in reversed([*enumerate(names)])}
