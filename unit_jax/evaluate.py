"""Predictions of a split, the metrics of all tasks, and the report at the end of a run."""

from collections.abc import Callable, Iterable, Iterator

import jax
import numpy as np
from etils import epath
from jaxtyping import Int
from tqdm import tqdm

from unit_jax import distributed, partitioning, pictures, setup
from unit_jax.batch import Batch
from unit_jax.data import loader
from unit_jax.data.text import Tokenizer, answer_scores, normalise_answer
from unit_jax.metrics import blind, classification, detection, report
from unit_jax.models import functional
from unit_jax.models.functional import Flat
from unit_jax.tasks import TaskSpec

Predict = Callable[[Flat, Flat, Batch], dict[str, jax.Array]]
Predictions = dict[str, np.ndarray]  # rows in the order of the split


def make_predict(run: setup.Run) -> Predict:
    """Returns predict(params, statistics, batch) -> what metrics need of the last layer.

    All of it is whole on every device, so that every process sees every example: `index` of the
    batch, logits [batch, labels]; for detection logits [batch, queries, classes], boxes_cxcywh
    [batch, queries, 4] and, with attributes, attribute_logits of each query's best class.
    """

    @jax.jit
    def predict(params: Flat, statistics: Flat, batch: Batch) -> dict[str, jax.Array]:
        model = functional.merge(run.graph, params, statistics)
        with partitioning.constrain_activations(run.mesh):
            outputs = model(batch)
        answer = {"logits": outputs.logits[-1]}
        if outputs.boxes_cxcywh is not None:
            answer["boxes_cxcywh"] = outputs.boxes_cxcywh[-1]
            if run.settings.tasks[batch.task].num_attributes:
                classes = answer["logits"][..., :-1].argmax(-1)
                answer["attribute_logits"] = model.attribute_logits(
                    batch.task, outputs.hidden_states[-1], classes
                )
        return jax.lax.with_sharding_constraint(
            {"index": batch.index, **answer}, partitioning.replicated(run.mesh)
        )

    return predict


def predict_split(
    run: setup.Run,
    predict: Predict,
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


def true_scores(run: setup.Run, task: str, split: str) -> np.ndarray:
    """Score of each label on each example: one-hot, or VQA's soft scores; unknown rows are 0."""
    spec = run.settings.tasks[task]
    examples = run.data.split(task, split)
    scores = np.zeros((len(examples), spec.num_labels), np.float32)
    numbers = {normalise_answer(a): i for i, a in enumerate(run.data.label_names(task))}
    for row in range(len(examples)):
        record = examples[row]
        if spec.soft_targets:
            if record["answers"]:
                scores[row] = answer_scores(record["answers"], numbers, spec.num_labels)
        elif record["label"] >= 0:
            scores[row, record["label"]] = 1
    return scores


def score(run: setup.Run, task: str, split: str, predictions: Predictions) -> dict[str, float]:
    """Metrics of one task in [0, 1], the headline first."""
    spec = run.settings.tasks[task]
    examples = run.data.split(task, split)
    if spec.kind == "detection":
        records = [examples[row] for row in range(len(examples))]
        sizes = np.stack([examples.height, examples.width], -1)
        found = detection.post_process(predictions["logits"], predictions["boxes_cxcywh"], sizes)
        entries = [e for i, d in enumerate(found) for e in detection.to_coco(i, d)]
        return detection.coco_ap(detection.ground_truth(records, range(spec.num_labels)), entries)
    return label_metrics(spec, predictions["logits"], true_scores(run, task, split))


def label_metrics(spec: TaskSpec, logits: np.ndarray, truth: np.ndarray) -> dict[str, float]:
    """accuracy (and f1) or vqa_accuracy from logits and `true_scores`."""
    if spec.soft_targets:
        return {"vqa_accuracy": classification.vqa_accuracy(logits, truth)}
    labels = truth.argmax(-1)
    metrics = {"accuracy": classification.accuracy(logits, labels)}
    if spec.f1:
        metrics["f1"] = classification.f1(logits, labels)
    return metrics


def evaluate(
    run: setup.Run,
    predict: Predict,
    params: Flat,
    statistics: Flat,
    split: str = "val",
    tasks: tuple[str, ...] | None = None,
) -> dict[str, float]:
    """{"task/metric": value} of the tasks (default: all), in the table's order."""
    metrics = {}
    for task in _progress(run.settings.tasks if tasks is None else tasks, "evaluating"):
        predictions = predict_split(run, predict, params, statistics, task, split)
        for name, value in score(run, task, split, predictions).items():
            metrics[f"{task}/{name}"] = value
    return metrics


def report_rows(
    run: setup.Run, predict: Predict, params: Flat, statistics: Flat, split: str = "val"
) -> list[report.Row]:
    """All metrics beside their baselines and the paper's figures, and the blind checks.

    Baselines: the training set's majority answer; for detection an untrained model. A blind check
    (`report.blind_check`) is the headline metric of the same model with images exchanged between
    examples, and of a bag of words on the text alone (on the second text of pairs).
    """
    metrics = evaluate(run, predict, params, statistics, split)
    baselines = _baselines(run, predict, split)
    paper = run.settings.report.get("paper", {})
    rows = []
    for task, spec in run.settings.tasks.items():
        names = [name for name in metrics if name.startswith(f"{task}/")]
        rows += [
            report.Row(task, name.split("/")[1], metrics[name], baselines[name], paper.get(name))
            for name in names
        ]
        if run.settings.report.get("blind_check"):
            headline = spec.headline_metric
            base = baselines[f"{task}/{headline}"]
            blind_scores = _blind_scores(run, predict, params, statistics, spec, split)
            rows += [
                report.Row(task, f"{headline}_{how}", value, base, None)
                for how, value in blind_scores.items()
            ]
    return rows


def write_report(
    run: setup.Run,
    predict: Predict,
    params: Flat,
    statistics: Flat,
    workdir: epath.Path,
    split: str = "val",
) -> None:
    """Writes report.md, report.json and predictions.png to `workdir` and prints the table."""
    rows = report_rows(run, predict, params, statistics, split)
    panels = [_panel(run, predict, params, statistics, task, split) for task in run.settings.tasks]
    if distributed.is_first():
        pictures.draw(panels, workdir / "predictions.png")
        report.write(rows, workdir)
        report.show(workdir)


def evaluate_checkpoint(
    run: setup.Run, checkpoint: epath.PathLike, workdir: epath.Path, split: str = "val"
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
    write_report(run, make_predict(run), model["params"], model["statistics"], workdir, split)


def _baselines(run: setup.Run, predict: Predict, split: str) -> dict[str, float]:
    baselines = {}
    detecting = tuple(n for n, spec in run.settings.tasks.items() if spec.kind == "detection")
    if detecting:
        untrained = run.fresh_model()
        baselines = evaluate(
            run, predict, untrained["params"], untrained["statistics"], split, detecting
        )
    for task, spec in run.settings.tasks.items():
        if spec.kind != "detection":
            truth = true_scores(run, task, split)
            constant = blind.majority(true_scores(run, task, "train"), len(truth))
            for name, value in label_metrics(spec, constant, truth).items():
                baselines[f"{task}/{name}"] = value
    return baselines


def _blind_scores(
    run: setup.Run, predict: Predict, params: Flat, statistics: Flat, spec: TaskSpec, split: str
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
        found["images_exchanged"] = swapped["logits"]
    tokenizer = Tokenizer(run.data.vocabulary_path)
    words = [_words(run, tokenizer, spec, name) for name in ("train", split)]
    if all(len(text) for text in words[0]):  # one text only has no second
        name = "bag_of_words" if spec.has_image else "bag_of_words_second_text"
        train = true_scores(run, spec.name, "train")
        found[name] = blind.bag_of_words(words[0], train, words[1], tokenizer.size)
    return {
        name: label_metrics(spec, logits, truth)[spec.headline_metric]
        for name, logits in found.items()
    }


def _words(run: setup.Run, tokenizer: Tokenizer, spec: TaskSpec, split: str) -> list[list[int]]:
    """Token ids of the text that a blind check reads."""
    examples = run.data.split(spec.name, split)
    fields = ("question", "hypothesis") if spec.has_image else ("text_b",)
    records = [examples[row] for row in range(len(examples))]
    texts = [next(record[f] for f in fields if f in record) for record in records]
    encoded = tokenizer.encode(texts, None, run.settings.model.text_encoder.max_positions)
    return [ids.tolist() if text else [] for (ids, _), text in zip(encoded, texts, strict=True)]


def _panel(
    run: setup.Run, predict: Predict, params: Flat, statistics: Flat, task: str, split: str
) -> pictures.Panel:
    """A few examples with what the model says of them."""
    predictions = predict_split(run, predict, params, statistics, task, split)
    examples = run.data.split(task, split)
    spec = run.settings.tasks[task]
    shown = np.linspace(0, len(examples) - 1, pictures.EXAMPLES[spec.kind]).astype(int)
    if spec.kind == "detection":
        found = detection.post_process(
            predictions["logits"],
            predictions["boxes_cxcywh"],
            np.stack([examples.height, examples.width], -1),
            predictions.get("attribute_logits"),
        )
        answers = [found[row] for row in shown]
    else:
        logits = predictions["logits"]
        best = classification.best_answers(logits) if spec.soft_targets else logits.argmax(-1)
        answers = [int(best[row]) for row in shown]
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
