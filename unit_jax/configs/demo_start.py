"""The small ResNet and BERT that the demo starts from, as the paper's start from DETR's and BERT's.

Trained at the demo's size on data of another seed by `make demo-start`. The stages
`configs/demo_start.py:colors` and then `:shapes` train the ResNet by detection and questions, as
COCO's classes alone would leave it blind to colours; `:textures` trains it on by detection alone,
with a large weight on attributes, until it tells patterns apart too. `:texts` and then `:pairs`
train the text encoder by questions and texts, then with statements too and longer, until it
compares two texts.
"""

from typing import Any

from unit_jax import settings
from unit_jax.configs import demo

FOLDER = "runs/demo-start"
STAGES: dict[str, dict[str, Any]] = {
    "colors": dict(
        tasks=dict(coco=dict(ratio=0.2), visual_genome=dict(ratio=0.4), vqa2=dict(ratio=0.4)),
        loss=dict(attribute_weight=8.0),
        train=dict(steps=8000),
    ),
    "shapes": dict(
        tasks=dict(coco=dict(ratio=0.45), visual_genome=dict(ratio=0.3), vqa2=dict(ratio=0.25)),
        loss=dict(attribute_weight=2.0),
        train=dict(steps=4000),
        init_from=dict(model=f"{FOLDER}/colors"),
    ),
    "textures": dict(
        tasks=dict(coco=dict(ratio=0.35), visual_genome=dict(ratio=0.65)),
        loss=dict(attribute_weight=8.0),
        train=dict(steps=5000),
        init_from=dict(backbone=f"{FOLDER}/shapes"),
    ),
    "texts": dict(
        tasks=dict(
            vqa2=dict(ratio=0.3),  # without pictures comparing texts is learned late, if at all
            qnli=dict(ratio=0.2),
            mnli=dict(ratio=0.27),
            qqp=dict(ratio=0.15),
            sst2=dict(ratio=0.08),
        ),
        optimizer=dict(frozen=("backbone",)),
        train=dict(steps=6000),
        init_from=dict(backbone=f"{FOLDER}/shapes"),
    ),
    "pairs": dict(
        tasks=dict(
            vqa2=dict(ratio=0.18),  # with texts alone it forgets how to read questions
            snli_ve=dict(ratio=0.15),
            qnli=dict(ratio=0.26),
            mnli=dict(ratio=0.23),
            qqp=dict(ratio=0.13),
            sst2=dict(ratio=0.05),
        ),
        optimizer=dict(frozen=("backbone",), learning_rate=5e-4),
        train=dict(steps=9000),
        init_from=dict(backbone=f"{FOLDER}/shapes", text_encoder=f"{FOLDER}/texts"),
    ),
}


def values(arg: str | None = None) -> dict[str, Any]:
    """The settings of a stage as a nested dict.

    Raises:
      ValueError: there is no such stage.
    """
    stage = arg or "colors"
    if stage not in STAGES:
        raise ValueError(f"there is no stage {stage!r}, only {', '.join(STAGES)}")
    config = demo.values(",".join(STAGES[stage]["tasks"]))
    settings.update(
        config,
        dict(
            model=dict(backbone=dict(calibrate=64)),
            optimizer=dict(frozen=()),
            data=dict(data_dir=f"{FOLDER}/data"),
            train=dict(eval_every=2000),
            init_from=dict(backbone="", text_encoder=""),
        ),
    )
    settings.update(config, STAGES[stage])
    return config


def get_config(arg: str | None = None):
    """Returns an ml_collections.ConfigDict, for `--config`."""
    import ml_collections

    return ml_collections.ConfigDict(values(arg))
