"""Settings of the run that two processes share, for `--config`."""

import ml_collections

from tests import tiny

STEPS = 6


def get_config(data_dir: str):
    config = tiny.values(data_dir, ("coco", "qqp"), steps=STEPS)
    config["train"].update(checkpoint_every=STEPS, eval_every=STEPS)
    # Steps that matter, and that are a smooth function of the gradient: a large epsilon.
    config["optimizer"].update(
        warmup_steps=0, learning_rate=0.1, backbone_learning_rate=0.1, eps=1e-2, clip_norm=1.0
    )
    return ml_collections.ConfigDict(config)
