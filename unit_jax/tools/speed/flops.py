"""What the model must compute, by formula, and the share of a device's peak that this makes."""

from collections.abc import Iterator

import jax

from unit_jax import outputs as rooms
from unit_jax.batch import Batch
from unit_jax.models import resnet
from unit_jax.settings import BackboneSettings, Settings
from unit_jax.tasks import TaskSpec

# Dense peaks in FLOP/s of one device, by a part of its `device_kind`: (bfloat16, float32). TPUs
# have no float32 peak of their own; None = MFU is not told.
PEAKS = {
    "H100": (989e12, 67e12),
    "H200": (989e12, 67e12),
    "A100": (312e12, 19.5e12),
    "TPU v4": (275e12, None),
    "TPU v5 lite": (197e12, None),
    "TPU v5e": (197e12, None),
    "TPU v5": (459e12, None),  # v5p calls itself "TPU v5"
    "TPU v6": (918e12, None),
}


def model_flops(spec: TaskSpec, settings: Settings, batch: Batch) -> float:
    """FLOPs of a training step: forward, and twice that backward but for what is frozen."""
    learned, frozen = forward_flops(spec, settings, batch)
    return 3 * learned + frozen


def forward_flops(spec: TaskSpec, settings: Settings, batch: Batch) -> tuple[float, float]:
    """Of the learned part and of the backbone's frozen stages; matrix products and convolutions
    only, 2 for a multiplication with its addition."""
    model, examples = settings.model, batch.size
    width, mlp = model.decoder.width, model.mlp_width
    learned = frozen = 0.0
    memory = 0
    if spec.has_image:
        stages = list(backbone_stages(model.backbone, *batch.bucket))
        prefixes = settings.optimizer.frozen
        frozen = sum(flops for name, flops, *_ in stages if f"backbone.{name}" in prefixes)
        learned += sum(flops for _, flops, *_ in stages) - frozen
        *_, tokens, channels = stages[-1]
        own = model.image_encoder
        learned += 2 * tokens * channels * own.width
        learned += own.layers * encoder_layer(tokens + own.task_embedding, own.width, mlp)
        if own.width != width:
            learned += 2 * 2 * tokens * own.width * width
        memory += tokens
    if spec.has_text:
        own = model.text_encoder
        tokens = batch.texts[0].shape[1]
        with_task = tokens + own.task_embedding
        learned += own.layers * encoder_layer(with_task, own.width, own.mlp_width)
        read = 1 if spec.cls_only else tokens
        learned += 2 * read * own.width * width
        memory += read
    queries = spec.num_queries
    self_attention = 4 * 2 * queries * width**2 + 2 * 2 * queries**2 * width
    cross_attention = (
        2 * 2 * queries * width**2 + 2 * 2 * memory * width**2 + 2 * 2 * queries * memory * width
    )
    feed_forward = 2 * 2 * queries * width * mlp
    layers = model.decoder.layers
    learned += layers * (self_attention + cross_attention + feed_forward)
    if rooms.room(spec).matches:
        heads = width * (spec.num_labels + 1) + 2 * width**2 + 4 * width
        learned += 2 * layers * queries * heads
    else:
        learned += 2 * (width**2 + width * spec.num_labels)
    return examples * learned, examples * frozen


def encoder_layer(tokens: int, width: int, mlp: int) -> float:
    """Forward FLOPs of self-attention and feed-forward."""
    return 2 * tokens * (4 * width**2 + 2 * width * mlp) + 2 * 2 * tokens**2 * width


def backbone_stages(
    backbone: BackboneSettings, height: int, width: int
) -> Iterator[tuple[str, float, int, int]]:
    """(name, forward FLOPs of an image, places and channels of the output) of stem and stages."""
    half = lambda size: (size + 1) // 2  # noqa: E731
    height, width = half(height), half(width)
    yield "conv1", 2 * height * width * 49 * 3 * backbone.width, height * width, backbone.width
    height, width = half(height), half(width)
    channels = backbone.width
    for stage, depth in enumerate(backbone.depths):
        inner, flops = backbone.width * 2**stage, 0.0
        outer = resnet.EXPANSION * inner
        for block in range(depth):
            places = height * width
            flops += 2 * places * channels * inner
            if block == 0 and stage > 0 and not (backbone.dilation and stage == 3):
                height, width = half(height), half(width)
                places = height * width
            flops += 2 * places * (9 * inner**2 + inner * outer)
            if block == 0:
                flops += 2 * places * channels * outer
            channels = outer
        yield f"layer{stage + 1}", flops, height * width, channels


def utilisation(flops: float, milliseconds: float, dtype: str) -> float | None:
    """Share of the peak of all devices; None where that is not known."""
    kind = jax.devices()[0].device_kind
    for name, peaks in PEAKS.items():
        peak = peaks[0 if dtype == "bfloat16" else 1]
        if name in kind and peak:
            return flops / (milliseconds / 1000) / (peak * jax.device_count())
    return None
