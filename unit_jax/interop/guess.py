"""The settings of a model, told from the shapes of its arrays: for MMF's files, which hold none."""

import dataclasses
import re
from collections.abc import Mapping

import numpy as np

from unit_jax.settings import ModelSettings
from unit_jax.tasks import PUBLISHED, TaskSpec

Arrays = Mapping[str, np.ndarray]
HEAD_WIDTH = 64  # of BERT's attention heads, at every published size


def model_of(arrays: Arrays, paper: ModelSettings = ModelSettings()) -> ModelSettings:  # noqa: B008
    """The settings of a UniT.

    What shapes do not tell (attention heads outside BERT, dilation, epsilons) is as in `paper`.

    Raises:
      ValueError: some part of a UniT is missing.
    """
    lacking = [part for part in _PARTS if part not in arrays]
    if lacking:
        raise ValueError(f"not a whole UniT: it lacks {', '.join(lacking)}")
    words, first = arrays["text_encoder.word_embedding"], arrays[_PARTS[0]]
    linear1 = "layers.0.feed_forward.linear1.kernel"
    shared = any(path.startswith("decoder.") for path in arrays)
    decoder = "decoder" if shared else r"decoders\.[^.]+"
    image_rows = arrays.get("image_encoder.task_embedding")
    text_rows = arrays.get("text_encoder.task_embedding")
    depths = tuple(_count(rf"backbone\.layer{stage}\.(\d+)\.", arrays) for stage in range(1, 5))
    return dataclasses.replace(
        paper,
        backbone=dataclasses.replace(
            paper.backbone, depths=depths, width=first.shape[-1], calibrate=0
        ),
        image_encoder=dataclasses.replace(
            paper.image_encoder,
            width=arrays["image_encoder.input_projection.kernel"].shape[1],
            layers=_count(r"image_encoder\.layers\.(\d+)\.", arrays),
            task_embedding=image_rows is not None,
            task_rows=paper.image_encoder.task_rows if image_rows is None else len(image_rows),
        ),
        text_encoder=dataclasses.replace(
            paper.text_encoder,
            vocab_size=words.shape[0],
            width=words.shape[1],
            layers=_count(r"text_encoder\.layers\.(\d+)\.", arrays),
            heads=max(1, words.shape[1] // HEAD_WIDTH),
            mlp_width=arrays[f"text_encoder.{linear1}"].shape[1],
            max_positions=arrays["text_encoder.position_embedding"].shape[0],
            task_embedding=text_rows is not None,
            task_rows=paper.text_encoder.task_rows if text_rows is None else len(text_rows),
        ),
        decoder=dataclasses.replace(
            paper.decoder,
            width=arrays["text_encoder.memory_projection.kernel"].shape[1],
            layers=_count(rf"{decoder}\.layers\.(\d+)\.", arrays),
            shared=shared,
        ),
        mlp_width=arrays[f"image_encoder.{linear1}"].shape[1],
        pre_norm="image_encoder.norm.scale" in arrays,
    )


def with_counts(tasks: Mapping[str, TaskSpec], arrays: Arrays) -> dict[str, TaskSpec]:
    """Tasks with the numbers of queries, labels and attributes that the arrays have."""
    counted = {}
    for name, spec in tasks.items():
        head = f"heads.{name}"
        classes, labels = (arrays.get(f"{head}.{k}.bias") for k in ("classes", "labels"))
        attributes = arrays.get(f"{head}.attributes.linear2.bias")
        changes = {"num_attributes": 0 if attributes is None else len(attributes)}
        if f"queries.{name}" in arrays:
            changes["num_queries"] = len(arrays[f"queries.{name}"])
        if classes is not None:
            changes["num_labels"] = len(classes) - 1  # without the no-object class
        elif labels is not None:
            changes["num_labels"] = len(labels)
        counted[name] = dataclasses.replace(spec, **changes)
    return counted


def published(names: Mapping[str, object], arrays: Arrays) -> dict[str, TaskSpec]:
    """The published tasks of these names, counted."""
    return with_counts({name: PUBLISHED[name] for name in PUBLISHED if name in names}, arrays)


_PARTS = (
    "backbone.conv1.kernel",
    "image_encoder.input_projection.kernel",
    "text_encoder.word_embedding",
    "text_encoder.memory_projection.kernel",
    "image_encoder.layers.0.feed_forward.linear1.kernel",
    "text_encoder.layers.0.feed_forward.linear1.kernel",
)


def _count(pattern: str, arrays: Arrays) -> int:
    """How many numbers, counted from 0, some path has at the pattern's group."""
    numbers = {int(match.group(1)) for path in arrays if (match := re.match(pattern, path))}
    return len(numbers)
