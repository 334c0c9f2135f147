"""`--mode=predict`: a file of predictions per task, in the form its benchmark takes."""

import json
from collections.abc import Callable
from typing import Any

from etils import epath

from unit_jax import outputs
from unit_jax import run as run_lib
from unit_jax.evaluation import evaluate
from unit_jax.evaluation.step import Predictor
from unit_jax.outputs.base import Predictions
from unit_jax.runtime import distributed

Entry = dict[str, Any]


def predict_checkpoint(
    run: run_lib.Run, checkpoint: epath.PathLike, workdir: epath.Path, split: str = "val"
) -> None:
    """Writes predictions/<task>-<split>.json (COCO results; VQA: question_id and answer; SNLI-VE:
    pairID and label; else what the task's room writes) or .tsv (GLUE: index and prediction) to
    `workdir`.

    Raises:
      ValueError: no checkpoint there, it does not fit, or no task has the split.
    """
    tasks = [task for task in run.settings.tasks if split in run.data.splits(task)]
    if not tasks:
        raise ValueError(f"no task of this config has a split {split!r} in {run.data.data_dir}")
    predictor = Predictor.of_run(run, run.restored_model(checkpoint))
    folder = workdir / "predictions"
    for task in tasks:
        predictions = evaluate.predict_split(run, predictor, task, split)
        if not distributed.is_first():
            continue
        folder.mkdir(parents=True, exist_ok=True)
        entries = to_entries(run, task, split, predictions)
        tabular = run.settings.tasks[task].submission == "glue"
        path = folder / f"{task}-{split}.{'tsv' if tabular else 'json'}"
        if tabular:
            lines = ["index\tprediction", *(f"{e['index']}\t{e['prediction']}" for e in entries)]
            path.write_text("\n".join(lines) + "\n")
        else:
            path.write_text(json.dumps(entries))
        print(f"{task}: {len(entries)} predictions in {path}")


def to_entries(run: run_lib.Run, task: str, split: str, predictions: Predictions) -> list[Entry]:
    """The lines of all examples in the order of the split, in the task's format."""
    spec, examples = run.settings.tasks[task], run.data.split(task, split)
    room, names, rename = outputs.room(spec), run.data.names(task), _FORMATS[spec.submission]
    return [
        rename(entry)
        for row in range(len(examples))
        for entry in room.entries(
            examples[row], {name: values[row] for name, values in predictions.items()}, names
        )
    ]


def _number(text: str) -> int | str:
    """An official id as the number it is."""
    return int(text) if text.lstrip("-").isdigit() else text


_FORMATS: dict[str, Callable[[Entry], Entry]] = {
    "": lambda entry: entry,
    "coco": lambda entry: {**entry, "image_id": _number(entry["image_id"])},
    "vqa": lambda entry: {"question_id": _number(entry["id"]), "answer": entry["label"]},
    "snli_ve": lambda entry: {"pairID": entry["id"], "label": entry["label"]},
    "glue": lambda entry: {"index": entry["id"], "prediction": entry["label"]},
}
