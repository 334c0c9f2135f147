"""`--mode=predict`: a file per task in the form that its benchmark takes, checked."""

from collections.abc import Iterator, Mapping

from etils import epath

from unit_jax import outputs
from unit_jax import run as run_lib
from unit_jax.evaluation import evaluate
from unit_jax.evaluation.closing import tell_left_out
from unit_jax.evaluation.formats import FORMATS, NAMES, Expected, labels_said
from unit_jax.evaluation.step import Predictor
from unit_jax.outputs.base import Predictions, Record
from unit_jax.runtime import distributed

FOLDER = "predictions"


def predict_checkpoint(
    run: run_lib.Run,
    checkpoint: epath.PathLike,
    workdir: epath.Path,
    splits: str = "val",
) -> None:
    """Writes a file per task and split to `workdir`/predictions; `formats` says which.

    Splits that a server wants together with one that is asked for (MNLI's test_matched with test)
    are written too. Tasks without a split are left out and named.

    Args:
      splits: names, joined by commas.

    Raises:
      ValueError: no checkpoint there, it does not fit, no task has a split, or a file that was
        written cannot be handed in.
    """
    selections = evaluate.select(run, splits, labelled=False)
    predictor = Predictor.of_run(run, run.restored_model(checkpoint))
    folder, problems = workdir / FOLDER, []
    for split, selection in selections.items():
        tell_left_out(split, selection.left_out)
        for task in selection.tasks:
            for part in dict.fromkeys([split, *together(run, task, split)]):
                predictions = evaluate.predict_split(run, predictor, task, part)
                if distributed.is_first():
                    folder.mkdir(parents=True, exist_ok=True)
                    problems += write(run, folder, task, part, predictions)
    if problems:
        raise ValueError("files that cannot be handed in:\n  " + "\n  ".join(problems))


def write_all(
    run: run_lib.Run, workdir: epath.Path, split: str, predictions: Mapping[str, Predictions]
) -> None:
    """Writes the files of a split that has been predicted already; faults are told.

    Args:
      predictions: by task.
    """
    if not distributed.is_first():
        return
    folder = workdir / FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    for task, of_task in predictions.items():
        for problem in write(run, folder, task, split, of_task):
            print(problem)


def together(run: run_lib.Run, task: str, split: str) -> list[str]:
    """Splits of the task that go to a server together with this one."""
    return [
        other
        for other in run.data.splits(task)
        if other.startswith(f"{split}_") and (task, other) in NAMES
    ]


def write(
    run: run_lib.Run, folder: epath.Path, task: str, split: str, predictions: Predictions
) -> list[str]:
    """Writes one file and prints what is in it.

    Returns:
      what is wrong with it, a sentence each.
    """
    spec = run.settings.tasks[task]
    room, names, form = outputs.room(spec), run.data.names(task), FORMATS[spec.submission]
    path, ids = folder / form.file_name(task, split), []
    rows = run.data.split(task, split)
    examples = _rows(rows, predictions)

    def entries() -> Iterator[list[dict]]:
        for record, prediction in examples:
            ids.append(str(record["id"]))
            yield room.entries(record, prediction, names)

    count = form.write(path, entries())
    labels = labels_said(rows, names)
    problems = form.problems(path, Expected(tuple(ids), labels, len(names.attributes)))
    verdict = f"{len(problems)} kinds of faults" if problems else "valid"
    print(f"{task}: {count:,} predictions in {path} ({verdict})")
    return [f"{path}: {problem}" for problem in problems]


def _rows(examples, predictions: Predictions) -> Iterator[tuple[Record, Predictions]]:
    """Each record of a split with its row of the predictions."""
    for row in range(len(examples)):
        yield examples[row], {name: values[row] for name, values in predictions.items()}
