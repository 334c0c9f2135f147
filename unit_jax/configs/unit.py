"""The paper's run: eight datasets, one shared decoder (MMF all_8_datasets/shared_dec).

Variants are arguments, joined by commas: `--config=configs/unit.py:separate_decoders`. Names of
tasks select these tasks, with the reference's number of updates, sampling and optimiser for as
many tasks. The reference's thirteen configurations are

    1-3    coco | visual_genome | vqa2
    4, 5   coco,vqa2 | coco,vqa2,separate_decoders
    6, 7   visual_genome,vqa2 | visual_genome,vqa2,separate_decoders
    8, 9   coco,visual_genome,vqa2 | coco,visual_genome,vqa2,separate_decoders
    10, 11 (nothing) | separate_decoders
    12     coco,no_task_embedding
    13     no_task_embedding

and a run "with COCO init" adds `--config.init_from.model=RUN`, a run of 1 (of 12 for 13).

What is not said here is at its default: docs/configuration.md, `unit_jax/settings.py`.
"""

from typing import Any

from unit_jax import fields, settings

RATIOS = dict(
    coco=0.20,
    visual_genome=0.07,
    vqa2=0.26,
    snli_ve=0.12,
    qnli=0.10,
    mnli=0.10,
    qqp=0.10,
    sst2=0.05,
)
FEW = 3  # tasks that the reference trains with equal ratios, each adding UPDATES
UPDATES = 150_000

# Validation figures of the released models (COCO init where there are several tasks), from the
# reference's model zoo; shown beside ours for orientation.
ALL_TASKS = {
    "coco/AP": 0.3899,
    "visual_genome/AP": 0.0329,
    "vqa2/vqa_accuracy": 0.6696,
    "snli_ve/accuracy": 0.7316,
    "qnli/accuracy": 0.8790,
    "mnli/accuracy": 0.8090,
    "qqp/accuracy": 0.9065,
    "sst2/accuracy": 0.8922,
}
ALL_TASKS_WITHOUT_EMBEDDING = {
    "coco/AP": 0.3847,
    "visual_genome/AP": 0.0331,
    "vqa2/vqa_accuracy": 0.6825,
    "snli_ve/accuracy": 0.7407,
    "qnli/accuracy": 0.8815,
    "mnli/accuracy": 0.8061,
    "qqp/accuracy": 0.9061,
    "sst2/accuracy": 0.8850,
}
VARIANTS = ("separate_decoders", "no_task_embedding")


def values(arg: str | None = None) -> dict[str, Any]:
    """All settings as a nested dict (what `unit_jax.settings.from_config` reads).

    Args:
      arg: variants and names of tasks, joined by commas.

    Raises:
      ValueError: one of them is unknown.
    """
    words = [word for word in (arg or "").split(",") if word]
    for word in words:
        if word not in VARIANTS and word not in RATIOS:
            raise ValueError(
                f"unknown variant {word!r}{fields.did_you_mean(word, [*VARIANTS, *RATIOS])} "
                f"(known: {', '.join(VARIANTS)}, and the tasks {', '.join(RATIOS)})"
            )
    chosen = [name for name in RATIOS if name in words] or list(RATIOS)
    separate, no_embedding = (variant in words for variant in VARIANTS)
    few = len(chosen) <= FEW

    config = settings.defaults()
    settings.update(
        config,
        dict(
            tasks={name: dict(ratio=1.0 if few else RATIOS[name]) for name in chosen},
            model=dict(
                image_encoder=dict(task_embedding=not no_embedding),
                text_encoder=dict(task_embedding=not no_embedding),
                decoder=dict(shared=not separate),
            ),
            optimizer=dict(
                name="adam_w_skip_zero_grad"
                if few and len(chosen) > 1 and not separate
                else "adam_w",
                learning_rate=5e-5,
                backbone_learning_rate=1e-5,
            ),
            data=dict(data_dir="data", vocabulary="bert-base-uncased"),
            train=dict(steps=UPDATES * len(chosen) if few else 500_000, batch_size=64),
            init_from=dict(
                backbone="weights/detr-r50-dc5-f0fb7ef5.pth",
                text_encoder="weights/bert-base-uncased",
            ),
            report=dict(paper=_published(chosen, separate, no_embedding)),
        ),
    )
    return config


def _published(chosen: list[str], separate: bool, no_embedding: bool) -> dict[str, float]:
    """The released models' figures of a variant, where there is such a model."""
    if chosen == ["coco"]:  # one task's decoder is its own, either way
        return {"coco/AP": 0.4015 if no_embedding else 0.4054}
    if len(chosen) < len(RATIOS) or separate:
        return {}
    return dict(ALL_TASKS_WITHOUT_EMBEDDING if no_embedding else ALL_TASKS)


def get_config(arg: str | None = None):
    """Returns an ml_collections.ConfigDict, for `--config`."""
    import ml_collections  # not needed by users of `values`

    return ml_collections.ConfigDict(values(arg))
