"""Which evaluation was the best, and whether training may stop early."""

import json
import math

from etils import epath

from unit_jax.training import run_log


class Best:
    """The best value of a metric so far, over the evaluations of a run.

    Args:
      metric: "task/metric"; higher is better, NaN is worse than all.
      patience: evaluations in a row without a better value after which `exhausted` is true; 0 =
        never.
    """

    def __init__(self, metric: str, patience: int = 0):
        self.metric, self._patience = metric, patience
        self.value, self.step, self._worse = -math.inf, None, 0

    def add(self, step: int, metrics: dict[str, float]) -> bool:
        """Takes an evaluation; whether it is the best so far (the first always is)."""
        value = metrics.get(self.metric)
        value = -math.inf if value is None or math.isnan(value) else value
        better = self.step is None or value > self.value
        if better:
            self.value, self.step, self._worse = value, step, 0
        else:
            self._worse += 1
        return better

    @property
    def exhausted(self) -> bool:
        """Nothing better in the last `patience` evaluations."""
        return 0 < self._patience <= self._worse

    def __str__(self) -> str:
        return f"{self.metric} = {self.value:.3f} at step {self.step}"


def recall(best: Best, workdir: epath.Path, step: int) -> None:
    """Adds the evaluations up to `step` that a run's log has, as a run that goes on must."""
    path = workdir / run_log.FILE
    if not path.exists():
        return
    for line in path.read_text().splitlines():
        try:
            record = json.loads(line)
        except ValueError:  # cut off by a crash
            continue
        if best.metric in record and record["step"] <= step:
            best.add(record["step"], record)
