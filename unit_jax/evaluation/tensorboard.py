"""What TensorBoard shows of an evaluation during training, beside the metrics' curves.

Each evaluation writes one small file below WORKDIR/tensorboard/examples, named after its step, so
that a step which is evaluated again after a crash is there once. The curves are the training log's.
"""

import tempfile

import numpy as np
from etils import epath
from tensorboardX import SummaryWriter

from unit_jax import run as run_lib
from unit_jax.evaluation import details, pictures
from unit_jax.evaluation.evaluate import Evaluation

FOLDER = "tensorboard/examples"


def write(
    run: run_lib.Run, workdir: epath.Path, step: int, evaluation: Evaluation, split: str = "val"
) -> None:
    """Adds the same examples of each task every time, the table of metrics, and a histogram of how
    bad classes are: 1 - AP (objects) or 1 - recall (labels) of each class that occurs."""
    with tempfile.TemporaryDirectory() as folder:
        with SummaryWriter(folder) as writer:
            _add(writer, run, split, evaluation, step)
        (made,) = epath.Path(folder).iterdir()
        to = workdir / FOLDER
        to.mkdir(parents=True, exist_ok=True)
        made.copy(to / f"events.out.tfevents.{step:010d}", overwrite=True)


def _add(
    writer: SummaryWriter, run: run_lib.Run, split: str, evaluation: Evaluation, step: int
) -> None:
    for task, predictions in evaluation.predictions.items():
        rows = pictures.fixed_rows(run.settings.tasks[task], len(run.data.split(task, split)))
        panel = pictures.panel(run, task, split, predictions, rows)
        pixels = pictures.pixels_of(pictures.figure_of([panel], f"{task} ({split})"))
        writer.add_image(f"examples/{task}", pixels, step, dataformats="HWC")
    lines = ["| task | metric | value |", "|---|---|---:|"]
    for name, value in evaluation.metrics.items():
        task, metric = name.split("/")
        lines.append(f"| {task} | {metric} | {'–' if np.isnan(value) else f'{value:.4f}'} |")
    writer.add_text("evaluation/table", "\n".join(lines), step)
    for task, analysis in details.analyse(run, split, evaluation).items():
        errors = 1 - analysis.values[~np.isnan(analysis.values)]
        if len(errors):
            writer.add_histogram(f"evaluation/{task}/class_errors", errors, step)
