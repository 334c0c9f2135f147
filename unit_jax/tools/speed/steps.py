"""What a measured step is: a config with changes and a batch of noise, by command-line options."""

import argparse
import dataclasses
from typing import Any

import jax
import numpy as np

from unit_jax import config_files, fields
from unit_jax import outputs as rooms
from unit_jax.batch import Batch
from unit_jax.data.shapes import batch_shapes
from unit_jax.runtime import partitioning
from unit_jax.settings import Settings
from unit_jax.tasks import TaskSpec


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options that `load_settings` and `made_up_batch` read."""
    add = parser.add_argument
    add("--config", default="configs/unit.py", help="FILE.py[:variants] (%(default)s)")
    add("--tasks", default="", help="names, joined by commas; default: all of the config")
    add("--image", default="320x320", help="height x width of padded images (%(default)s)")
    add("--tokens", type=int, default=64, help="of padded texts, at most (%(default)s)")
    add("--objects", type=int, default=8, help="real objects of an image (%(default)s)")
    add("--batch", type=int, default=2, help="examples of a step, all devices (%(default)s)")
    add(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="a setting, such as model.dtype=bfloat16, loss.matcher=device, mesh.fsdp=2",
    )


def load_settings(options: argparse.Namespace) -> Settings:
    """The config with the command line's changes; label counts are the published ones."""
    changes: dict[str, Any] = {"train.batch_size": options.batch}
    for change in options.set:
        key, _, value = change.partition("=")
        changes[key] = value
    try:
        settings = config_files.read(options.config, changes)
        if not settings.model.text_encoder.vocab_size:  # that of data, and there are none
            changes["model.text_encoder.vocab_size"] = 1000
            settings = config_files.read(options.config, changes)
        settings = only_tasks(settings, [name for name in options.tasks.split(",") if name])
    except ValueError as error:
        raise SystemExit(f"error: {error}") from None
    queries = [spec.num_queries for spec in settings.tasks.values() if rooms.room(spec).matches]
    most = min([settings.data.max_objects, *queries])
    if options.objects > most:
        raise SystemExit(f"error: --objects {options.objects}: the config has room for {most}")
    return settings


def only_tasks(settings: Settings, names: list[str]) -> Settings:
    """The settings with these tasks alone, at their ratios in the config; with none named, all."""
    for name in names:
        if name not in settings.tasks:
            raise ValueError(
                f"--tasks: {name!r} is no task of the config"
                f"{fields.did_you_mean(name, settings.tasks)} ({', '.join(settings.tasks)})"
            )
    chosen = [name for name in settings.tasks if not names or name in names]
    return dataclasses.replace(
        settings,
        tasks={name: settings.tasks[name] for name in chosen},
        ratios={name: settings.ratios[name] for name in chosen},
    )


def made_up_batch(spec: TaskSpec, settings: Settings, options: argparse.Namespace) -> Batch:
    """A batch of noise: full images and texts, `--objects` objects each; NumPy arrays."""
    rng = np.random.default_rng(spec.index)
    bucket = tuple(map(int, options.image.split("x")))
    tokens = min(options.tokens, spec.max_tokens)
    spec = dataclasses.replace(spec, max_tokens=tokens)
    mesh = partitioning.make_mesh(settings.mesh)
    shapes = batch_shapes(spec, bucket if spec.has_image else (tokens,), settings, mesh)
    vocabulary = settings.model.text_encoder.vocab_size
    make = dict(
        index=lambda shape: np.arange(*shape),
        images=lambda shape: rng.integers(0, 256, shape),
        image_sizes=lambda shape: np.broadcast_to(bucket, shape),
        input_ids=lambda shape: rng.integers(1, vocabulary, shape),
        token_mask=np.ones,
        segment_ids=lambda shape: np.broadcast_to(np.arange(tokens) >= tokens // 2, shape),
        boxes_cxcywh=lambda shape: rng.uniform(0.25, 0.5, shape),
        labels=lambda shape: rng.integers(0, spec.num_labels, shape),
        # Two real ones, 14 unused slots.
        attributes=lambda shape: np.where(
            np.arange(shape[-1]) < 2, rng.integers(0, spec.num_attributes, shape), -1
        ),
        object_mask=lambda shape: np.broadcast_to(np.arange(shape[1]) < options.objects, shape),
        answer_scores=lambda shape: rng.uniform(size=shape) < 3 / spec.num_labels,
    )
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: make[path[-1].name](leaf.shape).astype(leaf.dtype), shapes
    )
