"""The embedded demo: the paper's architecture and code path, small enough for two CPU cores.

Differs from configs/unit.py in sizes, rates, ratios, image shapes and in `backbone.calibrate`.
"""

from configs import unit


def values(arg: str | None = None) -> dict:
    """The settings as a nested dict."""
    config = unit.values(arg)
    tasks = config["tasks"]
    for name, ratio, num_queries in (
        ("coco", 0.24, 8),
        ("visual_genome", 0.12, 8),
        ("vqa2", 0.14, 4),
        ("snli_ve", 0.09, 4),
        ("qnli", 0.11, 4),
        ("mnli", 0.15, 4),
        ("qqp", 0.09, 4),
        ("sst2", 0.06, 4),
    ):
        if name in tasks:
            tasks[name].update(ratio=ratio, num_queries=num_queries)
            if name not in ("coco", "visual_genome"):
                tasks[name].update(max_tokens=14 if name in ("vqa2", "snli_ve") else 24)
    config["model"].update(
        backbone=dict(depths=(1, 1, 1, 1), width=16, dilation=True, bn_eps=1e-5, calibrate=64),
        image_encoder=dict(width=64, layers=2, residual=True, task_embedding=True),
        text_encoder=dict(
            vocab_size=0,  # that of the prepared vocabulary
            width=96,
            layers=2,
            heads=4,
            mlp_width=384,
            max_positions=32,
            task_embedding=True,
            task_rows=16,
        ),
        decoder=dict(width=96, layers=3, shared=True),
        heads=4,
        mlp_width=256,
        dropout=0.0,
        attention_dropout=0.0,
    )
    config["optimizer"].update(
        learning_rate=2.5e-4,
        backbone_learning_rate=8e-4,
        warmup_steps=500,
    )
    config["data"].update(
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
        buckets=((80, 80),),
        max_objects=8,
        num_workers=0,
        num_threads=2,
        prefetch=4,
    )
    config["train"].update(
        steps=11_000,
        batch_size=32,
        eval_batch_size=50,
        eval_every=5500,
        checkpoint_every=500,
        log_every=50,
        max_to_keep=2,
    )
    config["report"]["blind_check"] = True
    config["init_from"] = dict(model="", backbone="", text_encoder="")
    return config


def get_config(arg: str | None = None):
    """Returns an ml_collections.ConfigDict, for `--config`."""
    import ml_collections

    return ml_collections.ConfigDict(values(arg))
