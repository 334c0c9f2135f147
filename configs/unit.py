"""The paper's run: eight datasets, one shared decoder (MMF all_8_datasets/shared_dec).

Every hyper-parameter is here; other configs change some of them. Variants are arguments, joined
by commas: `--config=configs/unit.py:separate_decoders,no_task_embedding`. Names of tasks select
these tasks: `configs/unit.py:coco,separate_decoders` is the single-task run on COCO.
"""


def values(arg: str | None = None) -> dict:
    """The settings as a nested dict (what `unit_jax.settings.from_config` reads)."""
    config = dict(
        seed=0,
        tasks=dict(
            coco=dict(ratio=0.20),
            visual_genome=dict(ratio=0.07),
            vqa2=dict(ratio=0.26),
            snli_ve=dict(ratio=0.12),
            qnli=dict(ratio=0.10),
            mnli=dict(ratio=0.10),
            qqp=dict(ratio=0.10),
            sst2=dict(ratio=0.05),
        ),
        model=dict(
            backbone=dict(depths=(3, 4, 6, 3), width=64, dilation=True, bn_eps=1e-5, calibrate=0),
            image_encoder=dict(width=256, layers=6, residual=True, task_embedding=True),
            text_encoder=dict(
                vocab_size=30522,
                width=768,
                layers=12,
                heads=12,
                mlp_width=3072,
                max_positions=512,
                task_embedding=True,
                task_rows=256,
            ),
            decoder=dict(width=768, layers=6, shared=True),
            heads=8,
            mlp_width=2048,
            dropout=0.1,
            attention_dropout=0.1,
            pre_norm=False,
            mask_padding=True,
            classify_all_layers=False,
            rematerialise="nothing",
            scan_layers=False,
            attention="plain",
            dtype="float32",
        ),
        loss=dict(
            normalisation="per_image",
            auxiliary=True,
            balanced=False,
            no_object_weight=0.1,
            class_cost=1.0,
            box_cost=5.0,
            giou_cost=2.0,
            class_weight=1.0,
            box_weight=5.0,
            giou_weight=2.0,
            attribute_weight=1.0,
            detection_weight=1.0,
            matcher="scipy",
        ),
        optimizer=dict(
            name="adam_w",
            learning_rate=5e-5,
            backbone_learning_rate=1e-5,
            b1=0.9,
            b2=0.999,
            eps=1e-8,
            weight_decay=1e-4,
            clip_norm=0.1,
            warmup_steps=2000,
            frozen=("backbone.conv1", "backbone.layer1"),
        ),
        data=dict(
            data_dir="data",
            vocabulary="bert-base-uncased",
            train_short_sides=tuple(range(480, 801, 32)),
            train_max_side=1333,
            crop_short_sides=(400, 500, 600),
            crop_min=384,
            crop_max=600,
            crop_probability=0.5,
            flip_probability=0.5,
            eval_short_side=800,
            eval_max_side=1333,
            # `python tools/choose_buckets.py` prints these, and what padding costs with them.
            buckets=(
                (576, 768),
                (672, 912),
                (816, 800),
                (800, 1072),
                (1072, 800),
                (800, 1216),
                (800, 1344),
                (1344, 800),
            ),
            text_buckets=(32, 64),
            max_objects=100,
            truncate_objects=False,
            num_workers=4,
            num_threads=8,
            prefetch=8,
        ),
        train=dict(
            steps=500_000,
            batch_size=64,
            accumulate_steps=1,
            max_bad_steps=10,
            compile_ahead=True,
            eval_batch_size=64,
            eval_every=10_000,
            checkpoint_every=10_000,
            log_every=50,
            max_to_keep=5,
            best_metric="",
        ),
        # -1 takes the devices that remain; `python tools/show_sharding.py` prints what lies where.
        mesh=dict(data=-1, fsdp=1, tensor=1),
        # TPU pods and Slurm need no entry here.
        distributed=dict(coordinator="", processes=0, process=-1),
        init_from=dict(
            model="",
            backbone="weights/detr-r50-dc5-f0fb7ef5.pth",
            text_encoder="weights/bert-base-uncased",
        ),
        report=dict(
            blind_check=False,  # also score with images exchanged and by a bag of words
            # Released joint model's validation figures (shared decoder, COCO init), from the
            # reference's model zoo; shown beside ours for orientation.
            paper={
                "coco/AP": 0.3899,
                "visual_genome/AP": 0.0329,
                "vqa2/vqa_accuracy": 0.6696,
                "snli_ve/accuracy": 0.7316,
                "qnli/accuracy": 0.8790,
                "mnli/accuracy": 0.8090,
                "qqp/accuracy": 0.9065,
                "sst2/accuracy": 0.8922,
            },
        ),
    )
    variants = list(filter(None, (arg or "").split(",")))
    tasks = [variant for variant in variants if variant in config["tasks"]]
    for variant in variants:
        if variant not in VARIANTS and variant not in tasks:
            raise ValueError(
                f"configs/unit.py: unknown variant {variant!r}; known: {', '.join(VARIANTS)}, "
                f"and the tasks {', '.join(config['tasks'])}"
            )
        if variant in VARIANTS:
            VARIANTS[variant](config)
    if tasks:
        config["tasks"] = {name: config["tasks"][name] for name in tasks}
    return config


def _separate_decoders(config: dict) -> None:
    config["model"]["decoder"]["shared"] = False


def _no_task_embedding(config: dict) -> None:
    config["model"]["image_encoder"]["task_embedding"] = False
    config["model"]["text_encoder"]["task_embedding"] = False


VARIANTS = dict(separate_decoders=_separate_decoders, no_task_embedding=_no_task_embedding)


def get_config(arg: str | None = None):
    """Returns an ml_collections.ConfigDict, for `--config`."""
    import ml_collections  # not needed by users of `values`

    return ml_collections.ConfigDict(values(arg))
