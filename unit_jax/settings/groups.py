"""Every setting: its type, its default (the paper's value), its limits and what it does."""

import dataclasses
import math
from typing import Any, Literal

from unit_jax import tasks as tasks_lib
from unit_jax.fields import group, setting

BY_SIZE = math.inf  # a task's ratio "size"; the data turn it into a number


@dataclasses.dataclass(frozen=True)
class BackboneSettings:
    """The ResNet."""

    depths: tuple[int, ...] = setting(
        (3, 4, 6, 3), "bottleneck blocks of the four stages", low=1, items=4
    )
    width: int = setting(
        64, "channels of the stem; stage s has width * 2**s, times 4 at its output", low=1
    )
    dilation: bool = setting(
        True, 'last stage dilated instead of strided: stride 16 overall, "DC5"'
    )
    bn_eps: float = setting(
        1e-5,
        "epsilon of the frozen batch norms; 0 for weights trained with torchvision 0.7 (the files "
        "of MMF's model zoo)",
        low=0,
    )
    calibrate: int = setting(
        0,
        "training images that set the batch-norm statistics before step 0, for runs without a "
        "trained backbone; 0 = none",
        low=0,
        free=True,
    )


@dataclasses.dataclass(frozen=True)
class ImageEncoderSettings:
    """The transformer over the backbone's features."""

    width: int = setting(256, "of its hidden states", low=1)
    layers: int = setting(6, "transformer layers", low=1)
    residual: bool = setting(True, "its input is added to its output")
    task_embedding: bool = setting(True, "a learned token of the task goes in front")
    task_rows: int = setting(256, "rows of its task-embedding table", low=1)


@dataclasses.dataclass(frozen=True)
class TextEncoderSettings:
    """BERT."""

    vocab_size: int = setting(
        30522, "rows of the word embedding; 0 = as many as the prepared data's vocabulary", low=0
    )
    width: int = setting(768, "of its hidden states", low=1)
    layers: int = setting(12, "transformer layers", low=1)
    heads: int = setting(12, "attention heads; they divide `width`", low=1)
    mlp_width: int = setting(3072, "width of the feed-forward layers", low=1)
    max_positions: int = setting(512, "rows of the position embedding: the longest text", low=1)
    task_embedding: bool = setting(True, "a learned token of the task goes in front")
    task_rows: int = setting(256, "rows of its task-embedding table", low=1)
    tied_fresh_keys: bool = setting(
        False,
        "fresh attention keys start as copies of the queries, so that equal words attend to each "
        "other from the first step; for training without a trained BERT",
        free=True,
    )


@dataclasses.dataclass(frozen=True)
class DecoderSettings:
    """The decoder that reads the memory of image and text."""

    width: int = setting(768, "of its hidden states", low=1)
    layers: int = setting(6, "transformer layers", low=1)
    shared: bool = setting(True, "one decoder for all tasks; False = one per task")


@dataclasses.dataclass(frozen=True)
class ModelSettings:
    """The network."""

    backbone: BackboneSettings = group(BackboneSettings, "the ResNet")
    image_encoder: ImageEncoderSettings = group(ImageEncoderSettings, "the image encoder")
    text_encoder: TextEncoderSettings = group(TextEncoderSettings, "the text encoder")
    decoder: DecoderSettings = group(DecoderSettings, "the decoder")
    heads: int = setting(
        8, "attention heads of image encoder and decoder; they divide both widths", low=1
    )
    mlp_width: int = setting(2048, "feed-forward width of image encoder and decoder", low=1)
    dropout: float = setting(0.1, "after each part of a layer", low=0, below=1, free=True)
    attention_dropout: float = setting(0.1, "on attention weights", low=0, below=1, free=True)
    pre_norm: bool = setting(False, "layer norms before the parts of a layer, not after them")
    mask_padding: bool = setting(
        True,
        "padded pixels are zero between convolutions, so that padding never changes a result; "
        "False = as the reference",
        free=True,
    )
    classify_all_layers: bool = setting(
        False, "label logits of every decoder layer; the loss sums over them", free=True
    )
    rematerialise: Literal["nothing", "layers", "everything"] = setting(
        "nothing",
        "what is computed again in the backward pass instead of kept: nothing; the insides of "
        "transformer layers and bottleneck blocks; those of both encoders and the decoder as well",
        free=True,
    )
    scan_layers: bool = setting(
        False, "transformer layers as a loop: compiles faster, steps take longer", free=True
    )
    attention: Literal["plain", "fused"] = setting(
        "plain",
        "how attention without dropout on its weights is computed: by chunks of queries, as with "
        "dropout, or on NVIDIA GPUs at 16 bits by one kernel of cuDNN; neither keeps weights",
        free=True,
    )
    dtype: Literal["float32", "bfloat16", "float16", "float64"] = setting(
        "float32",
        "compute dtype; parameters are float32. bfloat16 suits accelerators; float64 needs "
        "JAX_ENABLE_X64",
        free=True,
    )


@dataclasses.dataclass(frozen=True)
class LossSettings:
    """Losses; those of objects are DETR's."""

    normalisation: Literal["per_image", "batch"] = setting(
        "per_image", "box losses are divided by the objects of an image, or of the whole batch"
    )
    auxiliary: bool = setting(True, "set loss on every decoder layer, not only the last")
    balanced: bool = setting(
        False, 'class loss balanced between matched and unmatched queries ("use_bcl")'
    )
    no_object_weight: float = setting(0.1, "of the no-object class in the class loss", low=0)
    class_cost: float = setting(1.0, "weight of the class probability in matching", low=0)
    box_cost: float = setting(5.0, "weight of the L1 distance in matching", low=0)
    giou_cost: float = setting(2.0, "weight of the generalised IoU in matching", low=0)
    class_weight: float = setting(1.0, "of the class loss", low=0)
    box_weight: float = setting(5.0, "of the L1 loss", low=0)
    giou_weight: float = setting(2.0, "of the generalised-IoU loss", low=0)
    attribute_weight: float = setting(1.0, "of the attribute loss", low=0)
    detection_weight: float = setting(1.0, "of all losses of objects beside other tasks'", low=0)
    matcher: Literal["scipy", "device"] = setting(
        "scipy", "where queries and objects are matched: SciPy on the host, or on the device"
    )


@dataclasses.dataclass(frozen=True)
class OptimizerSettings:
    """AdamW with warm-up from 0 and half a cosine to 0."""

    name: Literal["adam_w", "adam_w_skip_zero_grad"] = setting(
        "adam_w",
        "whether a parameter that once had a gradient takes part in every update after it, or only "
        "where its gradient is not all zeros",
    )
    learning_rate: float = setting(5e-5, "of everything but the backbone", low=0)
    backbone_learning_rate: float = setting(1e-5, "of the backbone", low=0)
    b1: float = setting(0.9, "decay of the first moments", low=0, below=1)
    b2: float = setting(0.999, "decay of the second moments", low=0, below=1)
    eps: float = setting(1e-8, "added to the root of the second moments", low=0)
    weight_decay: float = setting(1e-4, "of every parameter, times the learning rate", low=0)
    clip_norm: float = setting(0.1, "largest L2 norm of all gradients together", above=0)
    warmup_steps: int = setting(
        2000, "updates in which the rates rise from 0; -1 = a tenth of them all", low=-1
    )
    frozen: tuple[str, ...] = setting(
        ("backbone.conv1", "backbone.layer1"),
        "parameters that are never updated: paths, or the modules that they lie in",
    )


@dataclasses.dataclass(frozen=True)
class DataSettings:
    """Prepared data and how batches are made of them."""

    data_dir: str = setting("data", "folder of the prepared data", local=True)
    own: dict[str, Any] = group(
        dict,
        'data sets of one\'s own, by name: {"format": ..., "train": PATH, ...}; see '
        "docs/own_data.md. Paths are relative to the config file's folder",
        local=True,
    )
    vocabulary: str = setting(
        "bert-base-uncased",
        'hub name, folder or vocab.txt; "" = the vocab.txt of data_dir',
        local=True,
    )
    train_short_sides: tuple[int, ...] = setting(
        tuple(range(480, 801, 32)), "short sides of training images, one drawn", low=1, items=1
    )
    train_max_side: int = setting(1333, "longest side of training images", low=1)
    crop_short_sides: tuple[int, ...] = setting(
        (400, 500, 600), "short sides before a crop, one drawn", low=1, items=1
    )
    crop_min: int = setting(384, "least side of a crop", low=1)
    crop_max: int = setting(600, "largest side of a crop", low=1)
    crop_probability: float = setting(0.5, "of a crop", low=0, high=1)
    flip_probability: float = setting(0.5, "of a mirror image", low=0, high=1)
    eval_short_side: int = setting(
        800,
        "short side in evaluation, and in training of tasks that do not augment; 0 = all sizes by "
        "the median training image, with the proportions of these defaults",
        low=0,
    )
    eval_max_side: int = setting(1333, "longest side of the same", low=1)
    # `unit-jax choose-buckets` prints these, and what padding costs with them.
    buckets: tuple[tuple[int, int], ...] = setting(
        (
            (576, 768),
            (672, 912),
            (816, 800),
            (800, 1072),
            (1072, 800),
            (800, 1216),
            (800, 1344),
            (1344, 800),
        ),
        "(height, width) of the padded images; an image takes the smallest that it fits; () = "
        "those that pad least, few for few images",
        low=1,
    )
    text_buckets: tuple[int, ...] = setting(
        (32, 64), "tokens of padded texts of tasks without images, beside max_tokens", low=1
    )
    max_objects: int = setting(
        100, "most objects of an image; 0 = as many as one has in the training data", low=0
    )
    truncate_objects: bool = setting(
        False, "images with more objects lose the last ones; False = that is an error"
    )
    repeat_rare: float = setting(
        0.0,
        "classes that fewer than this share of a task's training examples show are shown more "
        "often, sqrt(repeat_rare / their share) times an epoch; 0 = all examples once",
        low=0,
        high=1,
    )
    skip: tuple[tuple[int, int], ...] = setting(
        (),
        "(first, last) steps whose batches are left out, numbered as the log does; later ones move "
        "up: for data that hurt",
        low=1,
    )
    num_workers: int = setting(
        4, "worker processes that prepare batches; 0 = threads of this process", low=0, local=True
    )
    num_threads: int = setting(8, "threads of each of them", low=0, local=True)
    prefetch: int = setting(8, "batches prepared ahead", low=0, local=True)


@dataclasses.dataclass(frozen=True)
class TrainSettings:
    """The training loop."""

    steps: int = setting(500_000, "updates of the whole run", low=1)
    epochs: float = setting(
        0.0, "passes over the training data that `steps` is raised to, where it is less", low=0
    )
    batch_size: int = setting(
        64, "examples of a step over all devices; 0 = by their number and the size of images", low=0
    )
    accumulate_steps: int = setting(
        1, "parts that a batch goes through the model in; they divide batch_size", low=1
    )
    max_bad_steps: int = setting(
        10, "steps in a row with a loss or gradient that is not finite, before the run ends", low=1
    )
    compile_ahead: bool = setting(True, "all programs are compiled before the first step")
    stuck_report: float = setting(
        600.0, "seconds without a step after which all threads' stacks are shown; 0 = never", low=0
    )
    stuck_limit: float = setting(
        3600.0, "seconds without a step after which the run ends; 0 = never", low=0
    )
    profile_at: int = setting(
        0, "ten steps from this one on are traced for TensorBoard; 0 = none (SIGUSR1 asks)", low=0
    )
    eval_batch_size: int = setting(
        64, "examples of a batch in evaluation; 0 = as batch_size = 0", low=0
    )
    eval_every: int = setting(
        10_000, "steps between evaluations; 0 = a twentieth of the steps", low=0
    )
    checkpoint_every: int = setting(
        10_000, "steps between checkpoints; 0 = as many as between evaluations", low=0
    )
    log_every: int = setting(50, "steps between lines of the log", low=1)
    max_to_keep: int = setting(5, "newest checkpoints that stay, beside the best", low=1)
    best_metric: str = setting(
        "",
        'which checkpoint is the best, "task/metric"; "" = vqa2/vqa_accuracy, else the first '
        "task's first metric",
    )
    stop_after: int = setting(
        0,
        "evaluations in a row without a better best_metric after which training ends, and the "
        "report is the best checkpoint's; 0 = it goes on to the last step",
        low=0,
    )
    report_best: bool = setting(
        False, "the report at the end is the best checkpoint's, not the last one's"
    )


@dataclasses.dataclass(frozen=True)
class InitSettings:
    """Files whose weights a fresh run starts from; "" = none."""

    model: str = setting(
        "",
        'any checkpoint, of which what fits is taken: of ours, "demo" (comes with the package), or '
        "a file of the UniT of MMF or of DETR",
    )
    backbone: str = setting(
        "weights/detr-r50-dc5-f0fb7ef5.pth",
        'a DETR checkpoint, or one of ours ("demo-backbone" comes with the package): its ResNet',
    )
    text_encoder: str = setting(
        "weights/bert-base-uncased",
        'a BERT: file, folder or hub name, or a checkpoint of ours ("demo-text-encoder" comes with '
        "the package): its text encoder",
    )
    tasks: dict[str, str] = group(
        dict,
        "of some tasks the task of `model`'s checkpoint whose queries, head and decoder they start "
        'from, "" = none; else one of the same name, for tasks of your own the most similar one',
    )


@dataclasses.dataclass(frozen=True)
class MeshSettings:
    """Sizes of the device mesh's axes; one of them may be -1 and takes what remains.

    `unit-jax show-sharding` prints what lies where.
    """

    data: int = setting(-1, "examples are split over it, parameters are copied", low=-1)
    fsdp: int = setting(1, "examples and parameters are split over it", low=-1)
    tensor: int = setting(1, "parameters are split over it, examples are copied", low=-1)


@dataclasses.dataclass(frozen=True)
class DistributedSettings:
    """Which processes make up a run, where no cluster tells (TPU pods and Slurm do).

    See docs/scaling.md.
    """

    coordinator: str = setting(
        "", 'HOST:PORT of process 0; "" = the cluster tells, or there is one process', local=True
    )
    processes: int = setting(0, "of the run", low=0, local=True)
    process: int = setting(-1, "number of this one, from 0", low=-1, local=True)


@dataclasses.dataclass(frozen=True)
class ReportSettings:
    """The table at the end of a run."""

    blind_check: bool = setting(
        False, "also score with images exchanged between examples, and by a bag of words"
    )
    validation_loss: bool = setting(
        False, "also log the loss on validation data at every evaluation, as task/loss"
    )
    predictions: bool = setting(
        False, "also write files of predictions for val, as --mode=predict does"
    )
    paper: dict[str, float] = group(
        dict, 'published figures shown beside the results, by "task/metric"'
    )


@dataclasses.dataclass(frozen=True)
class Settings:
    """All settings of a run; `from_config` makes them.

    Attributes:
      tasks: the selected tasks, in the order of the published table.
      ratios: how often a training step takes each task, relative to the others; BY_SIZE = by its
        number of training examples.
    """

    seed: int = setting(0, "of parameters, dropout, the mixture and augmentation", low=0)
    tasks: dict[str, tasks_lib.TaskSpec] = group(dict, "selected tasks")
    ratios: dict[str, float] = group(dict, "sampling ratios")
    model: ModelSettings = group(ModelSettings, "the network")
    loss: LossSettings = group(LossSettings, "losses and matching")
    optimizer: OptimizerSettings = group(OptimizerSettings, "the optimiser")
    data: DataSettings = group(DataSettings, "prepared data and batches")
    train: TrainSettings = group(TrainSettings, "the training loop")
    mesh: MeshSettings = group(MeshSettings, "the device mesh")
    distributed: DistributedSettings = group(DistributedSettings, "the processes of a run")
    init_from: InitSettings = group(InitSettings, "weights to start from")
    report: ReportSettings = group(ReportSettings, "the closing report")
