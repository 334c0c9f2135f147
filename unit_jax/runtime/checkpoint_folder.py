"""The checkpoints that a working folder has: whole ones, the newest, the best.

They lie in `<workdir>/checkpoints/<step>`; nothing here opens one.
"""

import contextlib
import json
import math
from collections.abc import Mapping

from etils import epath

from unit_jax import paths

FOLDER = "checkpoints"
COMMITTED = "commit_success.txt"  # orbax's, in step folders of a bucket
REMEDY = "give a working folder, its checkpoints folder or one of the step folders in it"


def locate(path: epath.PathLike) -> tuple[epath.Path, int]:
    """The (checkpoints folder, step) that `path` means: newest step unless it names one.

    Raises:
      ValueError: there is no checkpoint at `path`.
    """
    path = epath.Path(path)
    for folder in (path / FOLDER, path):
        if steps := whole_steps(folder):
            return folder, max(steps)
    if path.name.isdigit() and _is_finished(path):
        return path.parent, int(path.name)
    raise ValueError(f"no checkpoint at {path}; {REMEDY}")


def best_step(path: epath.PathLike, metric: str) -> int:
    """The step of a working folder whose checkpoint was saved with the highest value of a metric.

    Raises:
      ValueError: no checkpoint was saved with it.
    """
    folder = epath.Path(path) / FOLDER
    steps, values = whole_steps(folder), {}
    for step in steps:
        file = folder / str(step) / "metrics" / "metrics"
        with contextlib.suppress(OSError, ValueError):
            values[step] = rank(json.loads(file.read_text()), metric)
    values = {step: value for step, value in values.items() if value > -math.inf}
    if not values:
        has = f"it has steps {', '.join(map(str, steps))}" if steps else "it has none"
        raise ValueError(
            f"--checkpoint=best: no checkpoint of {path} was saved with a value of {metric} "
            f"({has}); give one of its step folders, or see config.train.best_metric"
        )
    return max(values, key=values.__getitem__)


def rank(metrics: Mapping[str, float], name: str) -> float:
    """How good a checkpoint is; one without the value is worse than all."""
    value = metrics.get(name)
    return value if value is not None and math.isfinite(value) else -math.inf


def exist(workdir: epath.Path) -> bool:
    """Whether a working folder has a checkpoint."""
    return bool(whole_steps(workdir / FOLDER))


def what_is_safe(workdir: epath.Path) -> str:
    """A few words on the newest checkpoint of a working folder."""
    try:
        steps = whole_steps(workdir / FOLDER)
    except Exception as error:  # file systems and clouds raise many kinds
        return f"its checkpoints are out of reach ({type(error).__name__})"
    if not steps:
        return "there is no checkpoint yet; the same command starts again"
    return f"{workdir / FOLDER / str(steps[-1])} is safe; the same command goes on from there"


def whole_steps(folder: epath.Path) -> list[int]:
    """The steps with a whole checkpoint."""
    if not folder.is_dir():
        return []
    folders = [path for path in folder.iterdir() if path.name.isdigit()]
    return sorted(int(path.name) for path in folders if _is_finished(path))


def _is_finished(step: epath.Path) -> bool:
    """On disk a checkpoint is renamed when it is whole; in a bucket it gets a file that says so."""
    return (step / (COMMITTED if paths.is_remote(step) else "metadata")).exists()
