"""Predictions of a split, the metrics of all tasks, and the report at the end of a run."""

from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple

import jax
import numpy as np
import scipy.sparse
from etils import epath
from jaxtyping import Int
from tqdm import tqdm

from unit_jax import run as run_lib
from unit_jax.data import loader
from unit_jax.data.text import Tokenizer, answer_scores, normalise_answer
from unit_jax.evaluation import blind, pictures, report
from unit_jax.evaluation.step import PredictStep, best_labels
from unit_jax.models.flat import Flat
from unit_jax.outputs.labels import metrics as classification
from unit_jax.outputs.objects import metrics as detection
from unit_jax.runtime import distributed, partitioning
from unit_jax.tasks import TaskSpec

Predictions = dict[str, np.ndarray]  # rows in the order of the split


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
    predict: PredictStep,
    params: Flat,
    statistics: Flat,
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
                others = _other_images(examples.image_row[np.asarray(batch.index)], random)
                batch = batch.replace(
                    images=batch.images[others], image_sizes=batch.image_sizes[others]
                )
                batch = jax.tree.map(lambda x: x[own], batch)
            on_device = partitioning.to_devices(batch, run.mesh)
            found = jax.device_get(predict(params, statistics, on_device))
            index = found.pop("index")
            for name, values in found.items():
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


def true_scores(run: run_lib.Run, task: str, split: str) -> scipy.sparse.csr_matrix:
    """Score of each label on each example: one-hot, or VQA's soft scores; unknown rows are 0."""
    spec = run.settings.tasks[task]
    examples = run.data.split(task, split)
    numbers = {normalise_answer(a): i for i, a in enumerate(run.data.label_names(task))}
    rows, labels, scores = [], [], []
    for row in range(len(examples)):
        record = examples[row]
        if not spec.soft_targets:
            of_row = {record["label"]: 1.0} if record["label"] >= 0 else {}
        elif record["answers"]:
            soft = answer_scores(record["answers"], numbers, spec.num_labels)
            of_row = {label: soft[label] for label in np.flatnonzero(soft)}
        else:
            of_row = {}
        rows += [row] * len(of_row)
        labels += of_row
        scores += of_row.values()
    shape = (len(examples), spec.num_labels)
    return scipy.sparse.csr_matrix((np.asarray(scores, np.float32), (rows, labels)), shape)


def score(run: run_lib.Run, task: str, split: str, predictions: Predictions) -> dict[str, float]:
    """Metrics of one task in [0, 1], the headline first."""
    spec = run.settings.tasks[task]
    examples = run.data.split(task, split)
    if spec.kind == "detection":
        records = [examples[row] for row in range(len(examples))]
        sizes = np.stack([examples.height, examples.width], -1)
        found = detection.post_process(predictions, sizes)
        entries = [e for i, d in enumerate(found) for e in detection.to_coco(i, d)]
        return detection.coco_ap(detection.ground_truth(records, range(spec.num_labels)), entries)
    return label_metrics(spec, predictions["labels"], true_scores(run, task, split))


def label_metrics(
    spec: TaskSpec, predicted: Int[np.ndarray, "examples"], truth: scipy.sparse.csr_matrix
) -> dict[str, float]:
    """accuracy (and f1) or vqa_accuracy from labels and `true_scores`."""
    if spec.soft_targets:
        return {"vqa_accuracy": classification.vqa_accuracy(predicted, truth)}
    labels = np.asarray(truth.argmax(1)).ravel()
    metrics = {"accuracy": classification.accuracy(predicted, labels)}
    if spec.f1:
        metrics["f1"] = classification.f1(predicted, labels)
    return metrics


def evaluate(
    run: run_lib.Run,
    predict: PredictStep,
    params: Flat,
    statistics: Flat,
    split: str = "val",
    tasks: tuple[str, ...] | None = None,
) -> Evaluation:
    """Predictions and metrics of the tasks (default: all)."""
    predictions = {
        task: predict_split(run, predict, params, statistics, task, split)
        for task in _progress(run.settings.tasks if tasks is None else tasks, "evaluating")
    }
    metrics = {
        f"{task}/{name}": value
        for task, found in predictions.items()
        for name, value in score(run, task, split, found).items()
    }
    return Evaluation(predictions, metrics)


def report_rows(
    run: run_lib.Run,
    predict: PredictStep,
    params: Flat,
    statistics: Flat,
    split: str,
    metrics: Mapping[str, float],
) -> list[report.Row]:
    """All metrics beside their baselines and the paper's figures, and the blind checks.

    Baselines: the training set's majority answer; for detection an untrained model. A blind check
    (`report.blind_check`) is the headline metric of the same model with images exchanged between
    examples, and of a bag of words on the text alone (on the second text of pairs).
    """
    baselines = _baselines(run, predict, split)
    paper = run.settings.report.paper
    rows = []
    for task, spec in run.settings.tasks.items():
        names = [name for name in metrics if name.startswith(f"{task}/")]
        rows += [
            report.Row(task, name.split("/")[1], metrics[name], baselines[name], paper.get(name))
            for name in names
        ]
        if run.settings.report.blind_check:
            headline = spec.headline_metric
            base = baselines[f"{task}/{headline}"]
            blind_scores = _blind_scores(run, predict, params, statistics, spec, split)
            rows += [
                report.Row(task, f"{headline}_{how}", value, base, None)
                for how, value in blind_scores.items()
            ]
    return rows


def write_report(
    run: run_lib.Run,
    predict: PredictStep,
    params: Flat,
    statistics: Flat,
    workdir: epath.Path,
    split: str = "val",
    found: Evaluation | None = None,
) -> None:
    """Writes report.md, report.json and predictions.png to `workdir` and prints the table.

    Args:
      found: these parameters' evaluation on the split, if it is there already.
    """
    found = found or evaluate(run, predict, params, statistics, split)
    rows = report_rows(run, predict, params, statistics, split, found.metrics)
    if distributed.is_first():
        panels = [_panel(run, task, split, of_task) for task, of_task in found.predictions.items()]
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
    model = run.restored_model(checkpoint)
    predict = PredictStep(run.graph, run.settings, run.mesh)
    write_report(run, predict, model["params"], model["statistics"], workdir, split)


def _baselines(run: run_lib.Run, predict: PredictStep, split: str) -> dict[str, float]:
    baselines = {}
    detecting = tuple(n for n, spec in run.settings.tasks.items() if spec.kind == "detection")
    if detecting:
        untrained = run.fresh_model()
        baselines = evaluate(
            run, predict, untrained["params"], untrained["statistics"], split, detecting
        ).metrics
    for task, spec in run.settings.tasks.items():
        if spec.kind != "detection":
            truth = true_scores(run, task, split)
            constant = blind.majority(true_scores(run, task, "train"), truth.shape[0])
            for name, value in label_metrics(spec, constant, truth).items():
                baselines[f"{task}/{name}"] = value
    return baselines


def _blind_scores(
    run: run_lib.Run,
    predict: PredictStep,
    params: Flat,
    statistics: Flat,
    spec: TaskSpec,
    split: str,
) -> dict[str, float]:
    """The headline metric without the picture, or with one text of two."""
    if spec.kind == "detection":
        return {}
    truth = true_scores(run, spec.name, split)
    found = {}
    if spec.has_image:
        swapped = predict_split(
            run, predict, params, statistics, spec.name, split, exchange_images=True
        )
        found["images_exchanged"] = swapped["labels"]
    tokenizer = Tokenizer(run.data.vocabulary_path)
    words = [_words(run, tokenizer, spec, name) for name in ("train", split)]
    if all(len(text) for text in words[0]):  # one text only has no second
        name = "bag_of_words" if spec.has_image else "bag_of_words_second_text"
        train = true_scores(run, spec.name, "train").toarray()
        logits = blind.bag_of_words(words[0], train, words[1], tokenizer.size)
        found[name] = best_labels(spec)(logits)
    return {
        name: label_metrics(spec, labels, truth)[spec.headline_metric]
        for name, labels in found.items()
    }


def _words(run: run_lib.Run, tokenizer: Tokenizer, spec: TaskSpec, split: str) -> list[list[int]]:
    """Token ids of the text that a blind check reads."""
    examples = run.data.split(spec.name, split)
    fields = ("question", "hypothesis") if spec.has_image else ("text_b",)
    records = [examples[row] for row in range(len(examples))]
    texts = [next(record[f] for f in fields if f in record) for record in records]
    encoded = tokenizer.encode(texts, None, run.settings.model.text_encoder.max_positions)
    return [ids.tolist() if text else [] for (ids, _), text in zip(encoded, texts, strict=True)]


def _panel(run: run_lib.Run, task: str, split: str, predictions: Predictions) -> pictures.Panel:
    """A few examples with what the model says of them."""
    examples = run.data.split(task, split)
    spec = run.settings.tasks[task]
    shown = np.linspace(0, len(examples) - 1, pictures.EXAMPLES[spec.kind]).astype(int)
    of_shown = {name: values[shown] for name, values in predictions.items()}
    if spec.kind == "detection":
        sizes = np.stack([examples.height[shown], examples.width[shown]], -1)
        answers = detection.post_process(of_shown, sizes)
    else:
        answers = of_shown["labels"].tolist()
    return pictures.Panel(
        spec,
        [examples[int(row)] for row in shown],
        [examples.image(int(row)) if spec.has_image else None for row in shown],
        answers,
        run.data.label_names(task),
        run.data.attribute_names(task),
    )


def _progress(items: Iterable[str], what: str) -> Iterator[str]:
    """The items, with a progress bar that leaves nothing behind."""
    shown = dict(leave=False, dynamic_ncols=True, disable=not distributed.is_first())
    yield from tqdm(list(items), desc=what, unit="task", **shown)
