"""Where answers go wrong: by class, which class for which, and in which examples."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, Int

NOTHING = "nothing"  # no object where one is, or an object where none is


@dataclasses.dataclass(frozen=True)
class Analysis:
    """What a room finds in a split's predictions.

    Attributes:
      measure: what `values` are: "AP", or "recall" (the share of a class that is right).
      names: of the classes; one more than there are `values` where "nothing" can be right or said.
      counts: examples (or objects) of each class.
      values: how good the answers are for each class; NaN where it has no example.
      confusion: counts by true class (rows) and by the one that was said (columns).
      faults: how wrong each example's answer is; 0 = right. Only their order means something.
    """

    measure: str
    names: tuple[str, ...]
    counts: Int[np.ndarray, "classes"]
    values: Float[np.ndarray, "classes"]
    confusion: Int[np.ndarray, "names names"]
    faults: Float[np.ndarray, "examples"] | Int[np.ndarray, "examples"]

    def worst(self, count: int) -> list[int]:
        """The examples that are most wrong, worst first; right ones never."""
        order = np.argsort(-self.faults, kind="stable")[:count]
        return [int(row) for row in order if self.faults[row] > 0]

    def largest(self, count: int) -> list[int]:
        """The classes with most examples, by number; of "nothing" too, where it can be said."""
        kept = np.argsort(-self.counts, kind="stable")[:count]
        kept = [int(number) for number in kept if self.counts[number] > 0]
        return kept + list(range(len(self.counts), len(self.names)))

    def as_json(self, most: int = 200) -> dict[str, Any]:
        """Classes that occur, and the commonest confusions, as JSON can hold them."""
        rows, columns = np.nonzero(self.confusion)
        wrong = rows != columns
        rows, columns = rows[wrong], columns[wrong]
        order = np.argsort(-self.confusion[rows, columns], kind="stable")[:most]
        return {
            "classes": [
                {"name": self.names[k], "count": int(self.counts[k]), self.measure: float(value)}
                for k, value in enumerate(self.values)
                if self.counts[k] > 0
            ],
            "confusions": [
                {
                    "true": self.names[rows[i]],
                    "said": self.names[columns[i]],
                    "count": int(self.confusion[rows[i], columns[i]]),
                }
                for i in order
            ],
        }


def of_labels(
    said: Int[np.ndarray, "examples"],
    true: Int[np.ndarray, "examples"],
    faults: Float[np.ndarray, "examples"] | Int[np.ndarray, "examples"],
    names: Sequence[str],
) -> Analysis:
    """The analysis of one label an example; true ones that are unknown (-1) are left out.

    Args:
      faults: how wrong each answer is.
    """
    classes = len(names)
    known = true >= 0
    confusion = np.zeros((classes, classes), np.int64)
    np.add.at(confusion, (true[known], said[known]), 1)
    counts = confusion.sum(1)
    with np.errstate(invalid="ignore"):
        values = np.where(counts > 0, np.diag(confusion) / counts, np.nan)
    return Analysis("recall", tuple(names), counts, values, confusion, faults)
