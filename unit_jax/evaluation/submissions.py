"""`--mode=predict`: a file of predictions per task, in the form its benchmark takes."""

import json
from typing import Any

import numpy as np
from etils import epath

from unit_jax import run as run_lib
from unit_jax.evaluation import evaluate
from unit_jax.evaluation.step import PredictStep
from unit_jax.outputs.objects import metrics as detection
from unit_jax.runtime import distributed


def predict_checkpoint(
    run: run_lib.Run, checkpoint: epath.PathLike, workdir: epath.Path, split: str = "val"
) -> None:
    """Writes predictions/<task>-<split>.json (detection: COCO results; VQA: question_id and
    answer; SNLI-VE: pairID and label) or .tsv (GLUE: index and prediction) to `workdir`.

    Raises:
      ValueError: no checkpoint there, it does not fit, or no task has the split.
    """
    tasks = [task for task in run.settings.tasks if split in run.data.splits(task)]
    if not tasks:
        raise ValueError(f"no task of this config has a split {split!r} in {run.data.data_dir}")
    model = run.restored_model(checkpoint)
    predict = PredictStep(run.graph, run.settings, run.mesh)
    folder = workdir / "predictions"
    for task in tasks:
        found = evaluate.predict_split(
            run, predict, model["params"], model["statistics"], task, split
        )
        if not distributed.is_first():
            continue
        folder.mkdir(parents=True, exist_ok=True)
        entries = to_entries(run, task, split, found)
        path = folder / f"{task}-{split}.{'tsv' if 'index' in entries[0] else 'json'}"
        if path.suffix == ".tsv":
            lines = ["index\tprediction", *(f"{e['index']}\t{e['prediction']}" for e in entries)]
            path.write_text("\n".join(lines) + "\n")
        else:
            path.write_text(json.dumps(entries))
        print(f"{task}: {len(entries)} predictions in {path}")


def to_entries(
    run: run_lib.Run, task: str, split: str, found: evaluate.Predictions
) -> list[dict[str, Any]]:
    """One entry per example (detection: per query), in the order of the split."""
    spec = run.settings.tasks[task]
    examples = run.data.split(task, split)
    records = [examples[row] for row in range(len(examples))]
    if spec.kind == "detection":
        sizes = np.stack([examples.height, examples.width], -1)
        detections = detection.post_process(found, sizes)
        return [
            entry
            for record, of_image in zip(records, detections, strict=True)
            for entry in detection.to_coco(int(record["image_id"]), of_image)
        ]
    names = run.data.label_names(task)
    if spec.soft_targets:
        return [
            dict(question_id=int(record["question_id"]), answer=names[label])
            for record, label in zip(records, found["labels"], strict=True)
        ]
    if spec.has_image:
        return [
            dict(pairID=record["example_id"], label=names[label])
            for record, label in zip(records, found["labels"], strict=True)
        ]
    names = run.data.submitted_labels(task)
    return [
        dict(index=record["example_id"], prediction=names[label])
        for record, label in zip(records, found["labels"], strict=True)
    ]
