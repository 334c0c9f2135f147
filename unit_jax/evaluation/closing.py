"""What a run ends with, and `--mode=eval`: the report, pictures, and where answers go wrong."""

from collections.abc import Mapping
from typing import Any

from etils import epath

from unit_jax import outputs
from unit_jax import run as run_lib
from unit_jax.evaluation import details, pictures, report
from unit_jax.evaluation.baselines import baselines, blind_scores
from unit_jax.evaluation.evaluate import Evaluation, evaluate, select
from unit_jax.evaluation.step import Predictor
from unit_jax.interop import weights
from unit_jax.runtime import checkpoint_folder, distributed


def report_rows(
    run: run_lib.Run, predictor: Predictor, split: str, metrics: Mapping[str, float]
) -> list[report.Row]:
    """All metrics beside their baselines and the paper's figures, and the blind checks
    (`report.blind_check`); see `baselines`.

    Args:
      metrics: of some of the run's tasks.
    """
    tasks = [t for t in run.settings.tasks if any(n.startswith(f"{t}/") for n in metrics)]
    base = baselines(run, predictor, split, tasks)
    # The reference's figures are on validation data.
    paper = run.settings.report.paper if split == "val" else {}
    rows = []
    for task in tasks:
        spec = run.settings.tasks[task]
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
    extra: Mapping[str, Any] | None = None,
) -> None:
    """Writes report.md, report.json, predictions.png and the files of `details` to `workdir` and
    prints the table.

    Args:
      evaluation: of this model on the split, if it is there already.
      extra: further entries of the split's metrics.json.
    """
    evaluation = evaluation or evaluate(run, predictor, split)
    rows = report_rows(run, predictor, split, evaluation.metrics)
    if not distributed.is_first():
        return
    panels = []
    for task, predictions in evaluation.predictions.items():
        spec, count = run.settings.tasks[task], len(run.data.split(task, split))
        shown = pictures.fixed_rows(spec, count)
        panels.append(pictures.panel(run, task, split, predictions, shown))
    pictures.draw(panels, workdir / report.file_name(split, "png", "predictions"))
    details.write(run, workdir, split, evaluation, extra or {})
    report.write(rows, workdir, split)
    report.show(workdir, split)


def evaluate_checkpoint(
    run: run_lib.Run,
    checkpoint: epath.PathLike,
    workdir: epath.Path,
    splits: str = "val",
) -> None:
    """`--mode=eval`: restores a checkpoint's model and reports on it.

    Tasks without a split, or without its labels, are left out and named.

    Args:
      splits: names, joined by commas.

    Raises:
      ValueError: there is none at that place, it does not fit the config or the data, or no task
        is left.
    """
    selections = select(run, splits, labelled=True)
    predictor = Predictor.of_run(run, run.restored_model(checkpoint))
    source = str(checkpoint)
    if not weights.file_at(checkpoint):
        source = "{}/{}".format(*checkpoint_folder.locate(checkpoint))
    for split, selection in selections.items():
        tell_left_out(split, selection.left_out)
        if selection.tasks:
            evaluation = evaluate(run, predictor, split, selection.tasks)
            extra = {"checkpoint": source, "left_out": selection.left_out}
            write_report(run, predictor, workdir, split, evaluation, extra)


def tell_left_out(split: str, left_out: Mapping[str, str]) -> None:
    """Names the tasks that a split is not evaluated (or predicted) on."""
    if distributed.is_first():
        for task, why in left_out.items():
            print(f"{split}: {task} is left out, {why}")
