"""Processing of images, texts and metrics."""

import dataclasses
import json
import pathlib
import re
from collections.abc import Mapping

import jax.numpy as jnp
import numpy as np

from unit_jax import settings as settings_lib
from unit_jax.configs import unit as paper
from unit_jax.data import batching, text, transforms
from unit_jax.models import unit as unit_lib
from unit_jax.outputs.labels import answers as answer_lib
from unit_jax.outputs.labels import metrics as classification
from unit_jax.outputs.objects import average_precision
from unit_jax.outputs.objects import targets as object_targets
from unit_jax.tools.parity.report import Table


def check_processing(path: pathlib.Path, data: Mapping[str, np.ndarray]) -> Table:
    """Transforms, soft scores, token rows and metrics of recorded inputs."""
    doc = json.loads(str(data["doc"]))
    table = Table(path.stem, "float32")
    for which in ("detection", "vqa"):
        for width, height, short, longest, *size in data[f"sizes/{which}"].tolist():
            ours = transforms.resized_size(height, width, short, longest, floor=which == "vqa")
            table.equal(f"processing/sizes_{which}", ours, size, f"at {width} x {height}")
    check_transforms(table, data, doc["coco/annotations"])
    vocabulary = {answer: i for i, answer in enumerate(doc["vqa/vocab"])}
    for answers, scores in zip(doc["vqa/answers"], data["vqa/scores"], strict=True):
        ours = answer_lib.answer_scores(answers, vocabulary, len(vocabulary))
        table.close("processing/vqa_scores", ours, scores)
    check_texts(table, data, doc)
    logits, labels = data["metric/vqa_scores"], data["metric/labels"]
    classes = labels.max() + 1  # accuracy was taken over the first columns of the same numbers
    answers = classification.best_answers(logits)
    best = classification.best_labels(logits[:, :classes])
    for name, ours in (
        ("vqa_accuracy", classification.vqa_accuracy(answers, data["metric/vqa_targets"])),
        ("accuracy", classification.accuracy(best, labels)),
    ):
        table.close(f"processing/{name}", ours, data[f"metric/{name}"])
    case = average_precision.from_coco(doc["map/ground_truth"], doc["map/detections"])
    stats = average_precision.evaluate(*case).stats
    table.close("processing/average_precision", stats, data["map/stats"])
    return table


def check_transforms(table: Table, data: Mapping[str, np.ndarray], annotations: list) -> None:
    """The recorded transforms of one image and its objects; their names hold their arguments."""
    image = data["coco/image"]
    height, width = image.shape[:2]
    fields = dict(
        boxes_xywh="bbox",
        category_ids="category_id",
        iscrowd="iscrowd",
        attributes="attribute_ids_max16",
    )
    objects = object_targets.load(
        {
            field: np.asarray([annotation.get(key, 0) for annotation in annotations])
            for field, key in fields.items()
        },
        height,
        width,
    )
    whole, nothing = (height, width), (0, 0, 0, 0)

    def planned(flip=False, first=(0, 0), crop=nothing, size=whole):
        return transforms.Plan(*(np.asarray([value]) for value in (flip, first, crop, size)))

    for case in sorted({key.split("/")[1] for key in data if re.match("coco/.*/boxes", key)}):
        numbers = [int(number) for number in re.findall(r"[0-9]+", case)]
        normalised = case.startswith(("normalize", "inference"))
        if case.startswith("hflip"):
            plan = planned(flip=True)
        elif case.startswith("resize"):
            plan = planned(size=transforms.resized_size(height, width, *numbers))
        elif case.startswith("crop"):
            plan = planned(first=whole, crop=numbers, size=numbers[2:])
        elif case.startswith("inference"):
            settings = settings_lib.build(settings_lib.DataSettings, paper.values()["data"])
            settings = dataclasses.replace(
                settings, eval_short_side=numbers[0], eval_max_side=numbers[1]
            )
            sides = np.asarray([height]), np.asarray([width])
            plan = transforms.plan("detr", *sides, settings)
        else:
            plan = planned()
        pixels, moves = transforms.apply(image, plan, 0)
        seen = object_targets.move(objects, moves)
        boxes = seen.boxes_xyxy
        if normalised:
            boxes = object_targets.normalise_boxes(boxes, *pixels.shape[:2])
        table.equal("processing/boxes", boxes, data[f"coco/{case}/boxes"], case)
        for name in ("labels", "attributes"):
            table.equal(
                f"processing/{name}", getattr(seen, name), data[f"coco/{case}/{name}"], case
            )
        table.equal("processing/size", pixels.shape[:2], data[f"coco/{case}/size"], case)
        if f"coco/{case}/image_out" in data:
            reference = data[f"coco/{case}/image_out"]
            if normalised:  # and channels first; back to steps of 1 in 255
                step = 1 / 255 / unit_lib.PIXEL_STD[:, None, None]
                pixels = (
                    np.moveaxis(np.asarray(unit_lib.normalise(jnp.asarray(pixels))), -1, 0) / step
                )
                reference = reference / step
            table.close("processing/pixels", pixels, reference)


def check_texts(table: Table, data: Mapping[str, np.ndarray], doc: Mapping) -> None:
    """Token rows of texts and pairs; the ids of the words are given by a rule."""

    def ids(words: str | None) -> list[int]:
        return [1000 + 26 * len(w) + ord(w[0]) - ord("a") for w in (words or "").split()]

    longest = doc["text/max_seq_length"]
    rows = [text.join(ids(a), ids(b), longest, 101, 102) for a, b in doc["text/inputs"]]
    ours = batching.pad_texts(rows, longest)
    for name, array in zip(("input_ids", "input_mask", "segment_ids"), ours, strict=True):
        table.equal("processing/tokens", array, data[f"text/{name}"], name)
