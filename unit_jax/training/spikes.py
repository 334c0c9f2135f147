"""Losses that are far above what is usual for their task."""

import collections
import math

_WARMUP = 20  # losses of a task before one can be a spike
_MEMORY = 0.98  # share of the past in the averages
_DEVIATIONS = 8.0  # standard deviations above the mean


class Spikes:
    """Keeps running averages of each task's losses and of their squared deviations."""

    def __init__(self):
        self._seen: dict[str, int] = collections.defaultdict(int)
        self._mean: dict[str, float] = {}
        self._square: dict[str, float] = {}

    def of(self, task: str, loss: float) -> float | None:
        """The task's usual loss if this one is a spike, else None.

        A spike counts in the averages as the largest loss that would not be one.
        """
        count = self._seen[task]
        mean, square = self._mean.get(task, loss), self._square.get(task, 0.0)
        limit = mean + _DEVIATIONS * math.sqrt(square) + 0.1 * abs(mean)
        is_spike = count >= _WARMUP and loss > limit
        self._seen[task] += 1
        memory = min(_MEMORY, count / (count + 1))
        gap = (min(loss, limit) if count >= _WARMUP else loss) - mean
        self._mean[task] = mean + (1 - memory) * gap
        self._square[task] = memory * (square + (1 - memory) * gap * gap)
        return mean if is_spike else None
