"""Predictions of a split, and the metrics of all tasks."""

from collections.abc import Iterable, Iterator
from typing import NamedTuple

import jax
import numpy as np
from jaxtyping import Int
from tqdm import tqdm

from unit_jax import outputs
from unit_jax import run as run_lib
from unit_jax.data import loader
from unit_jax.evaluation.step import Predictor
from unit_jax.outputs.base import Predictions
from unit_jax.runtime import distributed, partitioning


class Evaluation(NamedTuple):
    """What a model says of a split, and how good that is.

    Attributes:
      predictions: by task.
      metrics: {"task/metric": value} in [0, 1], in the table's order.
    """

    predictions: dict[str, Predictions]
    metrics: dict[str, float]


def predict_split(
    run: run_lib.Run,
    predictor: Predictor,
    task: str,
    split: str = "val",
    exchange_images: bool = False,
) -> Predictions:
    """Predictions for every example of a split, each once.

    Args:
      exchange_images: give each example the image of another one of its batch, drawn at random
        from a fixed seed among those that show another picture.
    """
    gathered: dict[str, np.ndarray] = {}
    examples = run.data.split(task, split)
    count = len(examples)
    random = np.random.default_rng(0)
    own = partitioning.rows_of_process(run.mesh, run.settings.train.eval_batch_size)
    places = None if exchange_images else own  # images are exchanged within the global batch
    with loader.eval_batches(run.settings, run.data, task, split, places) as batches:
        for batch in batches:
            batch = batch.replace(targets=None)
            if exchange_images:
                others = _other_images(examples.places[np.asarray(batch.index)], random)
                images, sizes = map(np.asarray, (batch.images, batch.image_sizes))
                batch = batch.replace(images=images[others], image_sizes=sizes[others])
                batch = jax.tree.map(lambda x: x[own], batch)
            answers = jax.device_get(predictor(partitioning.to_devices(batch, run.mesh)))
            index = answers.pop("index")
            for name, values in answers.items():
                rows = gathered.setdefault(name, np.zeros((count, *values.shape[1:]), values.dtype))
                rows[index[index >= 0]] = values[index >= 0]
    return gathered


def _other_images(
    image_row: Int[np.ndarray, "batch"], random: np.random.Generator
) -> Int[np.ndarray, "batch"]:
    """For each example another one with another image; itself if there is none."""
    others = np.arange(len(image_row))
    for i, row in enumerate(image_row):
        different = np.flatnonzero(image_row != row)
        if len(different):
            others[i] = random.choice(different)
    return others


def score(run: run_lib.Run, task: str, split: str, predictions: Predictions) -> dict[str, float]:
    """Metrics of one task, the headline first."""
    room = outputs.room(run.settings.tasks[task])
    return room.metrics(predictions, run.data.split(task, split), run.data.names(task))


def evaluate(
    run: run_lib.Run,
    predictor: Predictor,
    split: str = "val",
    tasks: tuple[str, ...] | None = None,
) -> Evaluation:
    """Predictions and metrics of the tasks (default: all)."""
    predictions = {
        task: predict_split(run, predictor, task, split)
        for task in _progress(run.settings.tasks if tasks is None else tasks, "evaluating")
    }
    metrics = {
        f"{task}/{name}": value
        for task, answers in predictions.items()
        for name, value in score(run, task, split, answers).items()
    }
    return Evaluation(predictions, metrics)


class Selection(NamedTuple):
    """Which tasks can be evaluated (or predicted) on a split.

    Attributes:
      tasks: those that can.
      left_out: why another one cannot, by task.
    """

    tasks: tuple[str, ...]
    left_out: dict[str, str]


def select(run: run_lib.Run, splits: str, labelled: bool) -> dict[str, Selection]:
    """The run's tasks that have each split.

    Args:
      splits: names, joined by commas.
      labelled: with labels.

    Raises:
      ValueError: no task has any of the splits (with labels).
    """
    selections = {}
    for split in filter(None, splits.split(",")):
        tasks, left_out = [], {}
        for task in run.settings.tasks:
            if split not in run.data.splits(task):
                left_out[task] = f"it has no split {split} ({', '.join(run.data.splits(task))})"
            elif labelled and not run.data.split(task, split).labelled:
                left_out[task] = f"its {split} has no labels to compare with"
            else:
                tasks.append(task)
        selections[split] = Selection(tuple(tasks), left_out)
    if not any(selection.tasks for selection in selections.values()):
        told = "; ".join(
            f"{task}: {why}"
            for selection in selections.values()
            for task, why in selection.left_out.items()
        )
        remedy = "; --mode=predict writes files for servers" if labelled else ""
        raise ValueError(f"nothing to do in {run.data.data_dir}: {told}{remedy}")
    return selections


def _progress(items: Iterable[str], what: str) -> Iterator[str]:
    """The items, with a progress bar that leaves nothing behind."""
    shown = dict(leave=False, dynamic_ncols=True, disable=not distributed.is_first())
    yield from tqdm(list(items), desc=what, unit="task", **shown)
