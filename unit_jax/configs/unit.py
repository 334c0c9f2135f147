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

The paper's ablations are `coco,snli_ve,mnli` with one of the other VARIANTS.

What is not said here is at its default: docs/configuration.md, `unit_jax/settings/groups.py`.
"""

from collections.abc import Mapping
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
# Changes of the settings, by the word that asks for them; N is the number after "=".
VARIANTS: dict[str, dict[str, Any]] = {
    "separate_decoders": {"model.decoder.shared": False},
    "no_task_embedding": {
        "model.image_encoder.task_embedding": False,
        "model.text_encoder.task_embedding": False,
    },
    # The paper's ablations.
    "decoder_layers=N": {"model.decoder.layers": int},
    "decoder_width=N": {"model.decoder.width": int},
    "batch_size=N": {"train.batch_size": int},
    "all_bert_states": {},  # the decoder reads all tokens of every text, not [CLS] alone
    "loss_on_all_layers": {"model.classify_all_layers": True},
}
# What the paper's batch of 64 takes on accelerators: docs/scaling.md.
CHIPS: dict[str, dict[str, Any]] = {
    "v5e": {"model.dtype": "bfloat16"},
    "v5p": {"model.dtype": "bfloat16"},
    "v6e": {"model.dtype": "bfloat16"},
    "h100": {"model.dtype": "bfloat16"},
}
VARIANTS |= CHIPS


def values(arg: str | None = None, changes: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """All settings as a nested dict (what `unit_jax.settings.from_config` reads).

    Args:
      arg: variants and names of tasks, joined by commas.
      changes: nested settings in place of the paper's. Variants change what they give.

    Raises:
      ValueError: one of them is unknown.
    """
    words = [word for word in (arg or "").split(",") if word]
    chosen = [name for name in RATIOS if name in words] or list(RATIOS)
    variants = [_variant(word) for word in words if word not in RATIOS]
    few = len(chosen) <= FEW
    skip_zeros = few and len(chosen) > 1 and "separate_decoders" not in words

    config = settings.defaults()
    settings.update(
        config,
        dict(
            tasks={name: dict(ratio=1.0 if few else RATIOS[name]) for name in chosen},
            optimizer=dict(
                name="adam_w_skip_zero_grad" if skip_zeros else "adam_w",
                learning_rate=5e-5,
                backbone_learning_rate=1e-5,
            ),
            data=dict(data_dir="data", vocabulary="bert-base-uncased"),
            train=dict(steps=UPDATES * len(chosen) if few else 500_000, batch_size=64),
            init_from=dict(
                backbone="weights/detr-r50-dc5-f0fb7ef5.pth",
                text_encoder="weights/bert-base-uncased",
            ),
            report=dict(
                paper=_published(chosen, [w for w in words if w not in {**RATIOS, **CHIPS}])
            ),
        ),
    )
    for change in [changes or {}, *variants]:
        settings.update(config, change)
    config["tasks"] = {name: config["tasks"][name] for name in chosen}
    if "all_bert_states" in words:
        for task in config["tasks"].values():
            task["cls_only"] = False
    return config


def _variant(word: str) -> dict[str, Any]:
    """The changes that a word of the argument asks for.

    Raises:
      ValueError: it is unknown.
    """
    name, equals, number = word.partition("=")
    known = name + "=N" * bool(equals)
    if known not in VARIANTS or (equals and not number.isdigit()):
        raise ValueError(
            f"unknown variant {word!r}{fields.did_you_mean(name, [*VARIANTS, *RATIOS])} "
            f"(known: {', '.join(VARIANTS)}, and the tasks {', '.join(RATIOS)})"
        )
    changes: dict[str, Any] = {}
    for key, value in VARIANTS[known].items():
        *groups, last = key.split(".")
        node = changes
        for group in groups:
            node = node.setdefault(group, {})
        node[last] = value(number) if equals else value
    return changes


def _published(chosen: list[str], variants: list[str]) -> dict[str, float]:
    """The released models' figures of a variant, where there is such a model."""
    if chosen == ["coco"]:  # one task's decoder is its own, either way
        variants = [word for word in variants if word != "separate_decoders"]
    if variants not in ([], ["no_task_embedding"]):
        return {}
    if chosen == ["coco"]:
        return {"coco/AP": 0.4015 if variants else 0.4054}
    if len(chosen) < len(RATIOS):
        return {}
    return dict(ALL_TASKS_WITHOUT_EMBEDDING if variants else ALL_TASKS)


def get_config(arg: str | None = None):
    """Returns an ml_collections.ConfigDict, for `--config`."""
    import ml_collections  # not needed by users of `values`

    return ml_collections.ConfigDict(values(arg))
