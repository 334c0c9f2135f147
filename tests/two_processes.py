"""Settings of the run that two processes share, for `--config`."""

import ml_collections

from tests import tiny


def get_config(data_dir: str):
    config = tiny.values(data_dir, ("coco",), steps=3)
    config["train"].update(checkpoint_every=3, eval_every=3)
    return ml_collections.ConfigDict(config)
