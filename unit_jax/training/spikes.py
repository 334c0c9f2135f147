"""Losses that are far above what is usual of a task."""

import collections
import math

_WARMUP = 20  # losses of a task before one can be a spike
_MEMORY = 0.98  # share of the past in the mean and the spread
_SPREADS = 8.0  # so many above the mean


class Spikes:
    """Keeps each task's mean and spread as an average that forgets."""

    def __init__(self):
        self._seen: dict[str, int] = collections.defaultdict(int)
        self._mean: dict[str, float] = {}
        self._square: dict[str, float] = {}

    def of(self, task: str, loss: float) -> float | None:
        """The usual loss if this one is a spike; a spike does not change what is usual by more
        than the largest loss that is none."""
        count = self._seen[task]
        mean, square = self._mean.get(task, loss), self._square.get(task, 0.0)
        limit = mean + _SPREADS * math.sqrt(square) + 0.1 * abs(mean)
        is_spike = count >= _WARMUP and loss > limit
        self._seen[task] += 1
        memory = min(_MEMORY, count / (count + 1))
        gap = (min(loss, limit) if count >= _WARMUP else loss) - mean
        self._mean[task] = mean + (1 - memory) * gap
        self._square[task] = memory * (square + (1 - memory) * gap * gap)
        return mean if is_spike else None
