"""The small model whose ResNet the demo starts from, as the paper's starts from DETR's.

Detection and questions at the demo's size, on pictures of another seed, with nothing frozen.
`make demo-backbone` runs it in two stages, `configs/demo_backbone.py:colors` and then `:shapes`:
COCO's classes alone would leave the ResNet blind to colours, which it learns from attributes and
questions.
"""

from typing import Any

from unit_jax import settings
from unit_jax.configs import demo

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
        init_from=dict(model="runs/demo-backbone/colors"),
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
    config = demo.values("coco,visual_genome,vqa2")
    settings.update(
        config,
        dict(
            model=dict(backbone=dict(calibrate=64)),
            optimizer=dict(frozen=()),
            data=dict(data_dir="runs/demo-backbone/data"),
            train=dict(eval_every=2000),
            init_from=dict(backbone=""),
        ),
    )
    settings.update(config, STAGES[stage])
    return config


def get_config(arg: str | None = None):
    """Returns an ml_collections.ConfigDict, for `--config`."""
    import ml_collections

    return ml_collections.ConfigDict(values(arg))
