"""The embedded demo: the paper's architecture and code path, small enough for two CPU cores.

Differs from configs/unit.py in sizes, rates, ratios, image shapes, in `loss.class_weight`, in
`text_encoder.tied_fresh_keys`, in that SNLI-VE reads all words, and in that all of the ResNet is
frozen. ResNet and text encoder are small trained ones (configs/demo_start.py), as the paper's are
DETR's and BERT's. Its variants are those of configs/unit.py.
"""

from typing import Any

from unit_jax.configs import unit

TASKS = dict(
    coco=dict(ratio=0.12, num_queries=8),
    visual_genome=dict(ratio=0.075, num_queries=8),
    vqa2=dict(ratio=0.325, num_queries=4, max_tokens=14),
    snli_ve=dict(ratio=0.375, num_queries=4, max_tokens=14, cls_only=False),
    qnli=dict(ratio=0.03, num_queries=4, max_tokens=24),
    mnli=dict(ratio=0.045, num_queries=4, max_tokens=24),
    qqp=dict(ratio=0.02, num_queries=4, max_tokens=24),
    sst2=dict(ratio=0.01, num_queries=4, max_tokens=24),
)

CHANGES = dict(
    tasks=TASKS,
    model=dict(
        backbone=dict(depths=(1, 1, 1, 1), width=16),
        image_encoder=dict(width=96, layers=2),
        text_encoder=dict(
            vocab_size=0,  # that of the prepared vocabulary
            width=96,
            layers=2,
            heads=4,
            mlp_width=384,
            max_positions=32,
            task_rows=16,
            tied_fresh_keys=True,  # where it starts from nothing
        ),
        decoder=dict(width=128, layers=3),
        heads=4,
        mlp_width=384,
        dropout=0.0,
        attention_dropout=0.0,
    ),
    loss=dict(class_weight=4.0),  # boxes are learned early, shapes are not
    optimizer=dict(
        learning_rate=3e-4,
        backbone_learning_rate=5e-4,
        warmup_steps=500,
        frozen=("backbone",),  # nearly halves a step with images
    ),
    data=dict(
        data_dir="runs/demo/data",
        vocabulary="",
        train_short_sides=(56, 60, 64),
        train_max_side=80,
        crop_short_sides=(64, 72),
        crop_min=48,
        crop_max=72,
        crop_probability=0.3,
        eval_short_side=64,
        eval_max_side=80,
        buckets=((64, 80), (80, 64)),
        max_objects=8,
        num_workers=1,  # the second core has time left over
        num_threads=2,
        prefetch=4,
    ),
    train=dict(
        steps=9200,
        batch_size=32,
        eval_batch_size=50,
        eval_every=4600,
        checkpoint_every=500,
        log_every=50,
        max_to_keep=2,
    ),
    init_from=dict(model="", backbone="demo-backbone", text_encoder="demo-text-encoder"),
    report=dict(blind_check=True, paper={}),  # nothing is published about the demo's data
)


def values(arg: str | None = None) -> dict[str, Any]:
    """The settings as a nested dict."""
    return unit.values(arg, CHANGES)


def get_config(arg: str | None = None):
    """Returns an ml_collections.ConfigDict, for `--config`."""
    import ml_collections

    return ml_collections.ConfigDict(values(arg))
