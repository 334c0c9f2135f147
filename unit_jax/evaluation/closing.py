"""What a run ends with: the report, its table, and a picture of what the model says."""

from collections.abc import Mapping

import numpy as np
from etils import epath

from unit_jax import outputs
from unit_jax import run as run_lib
from unit_jax.data import transforms
from unit_jax.evaluation import pictures, report
from unit_jax.evaluation.baselines import baselines, blind_scores
from unit_jax.evaluation.evaluate import Evaluation, evaluate
from unit_jax.evaluation.step import Predictor
from unit_jax.outputs.base import Predictions
from unit_jax.runtime import distributed


def report_rows(
    run: run_lib.Run, predictor: Predictor, split: str, metrics: Mapping[str, float]
) -> list[report.Row]:
    """All metrics beside their baselines and the paper's figures, and the blind checks
    (`report.blind_check`); see `baselines`."""
    base = baselines(run, predictor, split)
    paper = run.settings.report.paper
    rows = []
    for task, spec in run.settings.tasks.items():
        names = [name for name in metrics if name.startswith(f"{task}/")]
        rows += [
            report.Row(task, name.split("/")[1], metrics[name], base[name], paper.get(name))
            for name in names
        ]
        if run.settings.report.blind_check:
            headline = outputs.room(spec).headline
            rows += [
                report.Row(task, f"{headline}_{how}", value, base[f"{task}/{headline}"], None)
                for how, value in blind_scores(run, predictor, spec, split).items()
            ]
    return rows


def write_report(
    run: run_lib.Run,
    predictor: Predictor,
    workdir: epath.Path,
    split: str = "val",
    evaluation: Evaluation | None = None,
) -> None:
    """Writes report.md, report.json and predictions.png to `workdir` and prints the table.

    Args:
      evaluation: of this model on the split, if it is there already.
    """
    evaluation = evaluation or evaluate(run, predictor, split)
    rows = report_rows(run, predictor, split, evaluation.metrics)
    if distributed.is_first():
        panels = [_panel(run, task, split, of) for task, of in evaluation.predictions.items()]
        pictures.draw(panels, workdir / "predictions.png")
        report.write(rows, workdir)
        report.show(workdir)


def evaluate_checkpoint(
    run: run_lib.Run, checkpoint: epath.PathLike, workdir: epath.Path, split: str = "val"
) -> None:
    """`--mode=eval`: restores a checkpoint's model and reports on it.

    Raises:
      ValueError: there is none at that place, it does not fit the config or the data, or the
        split has no labels.
    """
    unlabelled = [t for t in run.settings.tasks if not run.data.split(t, split).labelled]
    if unlabelled:
        raise ValueError(
            f"the split {split} of {', '.join(unlabelled)} has no labels to compare with; "
            "--mode=predict writes files for their servers"
        )
    predictor = Predictor.of_run(run, run.restored_model(checkpoint))
    write_report(run, predictor, workdir, split)


def _panel(run: run_lib.Run, task: str, split: str, predictions: Predictions) -> pictures.Panel:
    """A few examples with what the model says of them."""
    examples, spec = run.data.split(task, split), run.settings.tasks[task]
    count = pictures.examples_of(spec)
    rows = np.linspace(0, len(examples) - 1, count).astype(int).tolist()
    return pictures.Panel(
        spec,
        [examples[row] for row in rows],
        [transforms.decode(examples.image(row)) if spec.has_image else None for row in rows],
        [{name: values[row] for name, values in predictions.items()} for row in rows],
        run.data.names(task),
    )
