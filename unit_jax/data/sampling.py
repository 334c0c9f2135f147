"""How often training shows an example or a task: rare classes more often, tasks by their size."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from unit_jax.settings import BY_SIZE


def repeat_times(
    classes: Sequence[Iterable[Any]], threshold: float
) -> Float[np.ndarray, "examples"]:
    """How often an epoch shows each example, so that rare classes are seen more often.

    Repeat-factor sampling (Gupta, Dollar and Girshick 2019, LVIS): a class that a share f of the
    examples show is repeated max(1, sqrt(threshold / f)) times, an example as often as the rarest
    of its classes. Examples without any are shown once.

    Args:
      classes: of each example.
      threshold: share of the examples below which a class is rare.
    """
    sets = [set(of_one) for of_one in classes]
    counts: dict[Any, int] = {}
    for of_one in sets:
        for name in of_one:
            counts[name] = counts.get(name, 0) + 1
    times = {name: max(1.0, (threshold * len(sets) / n) ** 0.5) for name, n in counts.items()}
    return np.asarray([max((times[name] for name in of_one), default=1.0) for of_one in sets])


def classes_of(record: Mapping[str, Any]) -> set[Any]:
    """The classes that a record shows: of its objects, its label, or its answers."""
    if "objects" in record:
        objects = record["objects"]
        return set(np.asarray(objects["category_ids"])[~np.asarray(objects["iscrowd"])].tolist())
    if "answers" in record:
        return set(record["answers"])
    return {record["label"]} if record.get("label", -1) >= 0 else set()


def ratios(asked: Mapping[str, float], sizes: Mapping[str, int]) -> dict[str, float]:
    """Sampling ratios as numbers.

    Tasks whose ratio is "size" (BY_SIZE) share what the others leave of 1, by their numbers of
    training examples.

    Raises:
      ValueError: the others leave nothing.
    """
    by_size = [name for name, ratio in asked.items() if ratio == BY_SIZE]
    numbers = {name: ratio for name, ratio in asked.items() if ratio != BY_SIZE}
    if not by_size:
        return numbers
    rest = 1 - sum(numbers.values())
    if rest <= 0:
        raise ValueError(
            f'config.tasks: {", ".join(by_size)} have the ratio "size" and share what the others '
            f"leave of 1, which is nothing: theirs sum to {1 - rest:g}; lower them"
        )
    total = sum(sizes[name] for name in by_size)
    return {
        name: rest * sizes[name] / total if name in by_size else numbers[name] for name in asked
    }
