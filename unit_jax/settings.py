"""Every setting, typed. A config file is turned into `Settings` once, at the border.

The classes hold no defaults on purpose: `configs/unit.py` is the one place that lists the paper's
values, and other configs change some of them.
"""

import dataclasses
import os
import pathlib
import runpy
import sys
import types
import typing
from collections.abc import Mapping
from typing import Any, Literal

from unit_jax import tasks as tasks_lib


@dataclasses.dataclass(frozen=True)
class BackboneSettings:
    depths: tuple[int, ...]  # bottleneck blocks per stage
    width: int  # channels of the stem; stage s has width * 2**s, times 4 at its output
    dilation: bool  # last stage dilated instead of strided (stride 16 overall, "DC5")
    bn_eps: float  # 1e-5; 0 for checkpoints trained with torchvision 0.7 (the MMF zoo)
    calibrate: int  # training images that set the batch-norm statistics before step 0; 0 = off


@dataclasses.dataclass(frozen=True)
class ImageEncoderSettings:
    width: int
    layers: int
    residual: bool  # add the encoder's input to its output
    task_embedding: bool


@dataclasses.dataclass(frozen=True)
class TextEncoderSettings:
    vocab_size: int
    width: int
    layers: int
    heads: int
    mlp_width: int
    max_positions: int
    task_embedding: bool
    task_rows: int  # rows of the text task-embedding table


@dataclasses.dataclass(frozen=True)
class DecoderSettings:
    width: int
    layers: int
    shared: bool  # one decoder for all tasks, or one per task


@dataclasses.dataclass(frozen=True)
class ModelSettings:
    backbone: BackboneSettings
    image_encoder: ImageEncoderSettings
    text_encoder: TextEncoderSettings
    decoder: DecoderSettings
    heads: int  # attention heads of image encoder and decoder
    mlp_width: int  # feed-forward width of image encoder and decoder
    dropout: float
    attention_dropout: float  # on attention weights
    pre_norm: bool
    mask_padding: bool  # zero padded pixels between convolutions: padding never changes a result
    classify_all_layers: bool  # label logits of every decoder layer (the loss sums over them)
    # Computed again in the backward pass instead of kept: nothing; the insides of transformer
    # layers and bottleneck blocks; those of both encoders and of the decoder as well.
    rematerialise: Literal["nothing", "layers", "everything"]
    scan_layers: bool  # transformer layers as a loop: compiles faster, steps take longer
    # How attention without dropout on its weights is computed: written out, or by
    # jax.nn.dot_product_attention: on NVIDIA GPUs at 16 bits one kernel of cuDNN, which keeps no
    # weights in memory; else XLA's version, which does (softmax in float32, whatever x64 says).
    attention: Literal["plain", "fused"]
    dtype: str  # compute dtype; parameters are float32


@dataclasses.dataclass(frozen=True)
class LossSettings:
    normalisation: Literal["per_image", "batch"]
    auxiliary: bool  # set loss on every decoder layer, not only the last
    balanced: bool  # class loss balanced between matched and unmatched queries ("use_bcl")
    no_object_weight: float
    class_cost: float
    box_cost: float
    giou_cost: float
    class_weight: float
    box_weight: float
    giou_weight: float
    attribute_weight: float
    detection_weight: float
    matcher: Literal["scipy", "device"]


@dataclasses.dataclass(frozen=True)
class OptimizerSettings:
    name: Literal["adam_w", "adam_w_skip_zero_grad"]
    learning_rate: float
    backbone_learning_rate: float
    b1: float
    b2: float
    eps: float
    weight_decay: float
    clip_norm: float
    warmup_steps: int
    frozen: tuple[str, ...]  # parameter path prefixes that are never updated


@dataclasses.dataclass(frozen=True)
class DataSettings:
    data_dir: str
    vocabulary: str  # hub name, folder or vocab.txt; "" = the vocab.txt of data_dir
    train_short_sides: tuple[int, ...]
    train_max_side: int
    crop_short_sides: tuple[int, ...]
    crop_min: int
    crop_max: int
    crop_probability: float
    flip_probability: float
    eval_short_side: int  # also the training size of vision-language tasks
    eval_max_side: int
    buckets: tuple[tuple[int, int], ...]  # (height, width) of the padded images
    text_buckets: tuple[int, ...]  # tokens of padded texts of language tasks, beside max_tokens
    max_objects: int
    truncate_objects: bool
    num_workers: int  # worker processes that prepare batches; 0 = threads of this process
    num_threads: int
    prefetch: int  # batches prepared ahead


@dataclasses.dataclass(frozen=True)
class TrainSettings:
    steps: int
    batch_size: int  # examples of one step over all devices
    accumulate_steps: int  # parts that a batch goes through the model in
    max_bad_steps: int  # in a row, before the run ends; a loss or gradient was not finite
    compile_ahead: bool  # all programs before the first step
    eval_batch_size: int
    eval_every: int
    checkpoint_every: int
    log_every: int
    max_to_keep: int
    best_metric: str  # "task/metric"; "" = vqa2/vqa_accuracy, else the first task's headline


@dataclasses.dataclass(frozen=True)
class InitSettings:
    """Files whose weights a fresh run starts from; "" = none."""

    model: str  # a whole UniT (MMF file, or a checkpoint of ours)
    backbone: str  # DETR checkpoint: its ResNet
    text_encoder: str  # BERT: file, folder or hub name


@dataclasses.dataclass(frozen=True)
class MeshSettings:
    """Sizes of the device mesh's axes; one of them may be -1 and takes what remains."""

    data: int  # examples are split over it, parameters are copied
    fsdp: int  # examples and parameters are split over it
    tensor: int  # parameters are split over it, examples are copied


@dataclasses.dataclass(frozen=True)
class DistributedSettings:
    """Which processes make up a run, where no cluster tells; see docs/scaling.md."""

    coordinator: str  # HOST:PORT of process 0; "" = the cluster tells, or there is one process
    processes: int
    process: int  # number of this one, from 0


@dataclasses.dataclass(frozen=True)
class Settings:
    seed: int
    tasks: dict[str, tasks_lib.TaskSpec]
    ratios: dict[str, float]
    model: ModelSettings
    loss: LossSettings
    optimizer: OptimizerSettings
    data: DataSettings
    train: TrainSettings
    mesh: MeshSettings
    distributed: DistributedSettings
    init_from: InitSettings
    report: dict[str, Any]  # figures shown beside the results


def from_config(config: Mapping) -> Settings:
    """Turns a nested config (ml_collections.ConfigDict or dict) into Settings.

    `config.tasks` maps a task name to its sampling `ratio` and to overrides of its TaskSpec.

    Raises:
      ValueError: one message that lists every unknown, missing or mistyped key with its place.
    """
    config = _plain(config)
    problems: list[str] = []
    specs, ratios = {}, {}
    selected = config.pop("tasks", None) or {}
    # ConfigDict sorts its keys; the table's order is the one that reports are read in.
    for name in sorted(selected, key=list(dict.fromkeys([*tasks_lib.PUBLISHED, *selected])).index):
        overrides = dict(selected[name])
        ratios[name] = float(overrides.pop("ratio", 1.0))
        if ratios[name] < 0:
            problems.append(f"config.tasks.{name}.ratio: {ratios[name]} is negative")
        try:
            specs[name] = tasks_lib.resolve(name, overrides)
        except ValueError as error:
            problems.append(str(error))
    if not specs and not problems:
        problems.append("config.tasks: no task is selected")
    rest = [
        field for field in dataclasses.fields(Settings) if field.name not in ("tasks", "ratios")
    ]
    values = _fields(rest, typing.get_type_hints(Settings), config, "config", problems)
    if problems:
        raise ValueError("the config has problems:\n  " + "\n  ".join(problems))
    return Settings(tasks=specs, ratios=ratios, **values)


def read(name: str, changes: Mapping[str, Any] | None = None) -> Settings:
    """The settings of a config file FILE.py[:ARGUMENT], named as on the command line.

    Args:
      changes: values by dotted key, such as {"model.dropout": 0.0}, put in place of the file's.

    Raises:
      ValueError: there is no such file, or it or a change has problems.
    """
    path, _, argument = name.partition(":")
    if not pathlib.Path(path).is_file():
        raise ValueError(f"--config: {path}: no such file")
    if "" not in sys.path and os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())  # as `python -m` does: a config may import its neighbours
    module = runpy.run_path(path)
    # `values` gives the same as `get_config` and needs no ml_collections.
    config = _plain(module.get("values", module.get("get_config"))(argument or None))
    for key, value in (changes or {}).items():
        *groups, last = key.split(".")
        group = config
        for part in groups:
            group = group.get(part)
            if not isinstance(group, dict):
                raise ValueError(f"{key}: {path} has no group of settings {part!r}")
        group[last] = value
    return from_config(config)


def build(cls: type, values: Mapping, where: str = "config") -> Any:
    """Builds one of the settings classes from a nested mapping.

    Raises:
      ValueError: unknown, missing or mistyped keys, all in one message.
    """
    problems: list[str] = []
    fields = _fields(
        dataclasses.fields(cls), typing.get_type_hints(cls), _plain(values), where, problems
    )
    if problems:
        raise ValueError("the config has problems:\n  " + "\n  ".join(problems))
    return cls(**fields)


def _plain(config: Any) -> Any:
    if isinstance(config, Mapping) or hasattr(config, "items"):
        return {key: _plain(value) for key, value in config.items()}
    return config


def _fields(fields, hints, values: Mapping, where: str, problems: list[str]) -> dict:
    known = [field.name for field in fields]
    for key in sorted(set(values) - set(known)):
        problems.append(f"{where}.{key}: unknown key; known here: {', '.join(known)}")
    for key in known:
        if key not in values:
            problems.append(f"{where}.{key}: missing")
    return {
        key: _convert(hints[key], values[key], f"{where}.{key}", problems)
        for key in known
        if key in values
    }


def _convert(hint: Any, value: Any, where: str, problems: list[str]) -> Any:
    """`value` as type `hint`, or a line in `problems`."""
    origin = typing.get_origin(hint)
    if dataclasses.is_dataclass(hint):
        if not isinstance(value, Mapping):
            problems.append(f"{where}: expected a group of settings, got {value!r}")
            return None
        inner = _fields(
            dataclasses.fields(hint), typing.get_type_hints(hint), value, where, problems
        )
        try:
            return hint(**inner)
        except TypeError:  # a missing key, already listed
            return None
    if origin is Literal:
        if value not in typing.get_args(hint):
            options = ", ".join(map(repr, typing.get_args(hint)))
            problems.append(f"{where}: {value!r} is not one of {options}")
        return value
    if origin is tuple:
        arguments = typing.get_args(hint)
        if not isinstance(value, (tuple, list)):
            problems.append(f"{where}: expected a tuple, got {value!r}")
            return None
        inner_hints = [arguments[0]] * len(value) if arguments[-1] is Ellipsis else list(arguments)
        if len(inner_hints) != len(value):
            problems.append(f"{where}: expected {len(inner_hints)} values, got {value!r}")
            return None
        return tuple(
            _convert(h, v, f"{where}[{i}]", problems)
            for i, (h, v) in enumerate(zip(inner_hints, value, strict=True))
        )
    if origin in (dict, types.UnionType):
        return value
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, hint) or (hint is int and isinstance(value, bool)):
        problems.append(f"{where}: expected {hint.__name__}, got {value!r}")
    return value
