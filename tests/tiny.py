"""The smallest run that goes through everything: a config and its data, for tests."""

import pathlib

from configs import demo
from unit_jax.data import prepare
from unit_jax.demo import world as demo_data

TASKS = ("coco", "vqa2", "qqp")


def values(data_dir: pathlib.Path, tasks=TASKS, steps: int = 6) -> dict:
    """The demo's config with everything at its smallest."""
    config = demo.values()
    config["tasks"] = {name: config["tasks"][name] for name in tasks}
    for task in config["tasks"].values():
        task.update(ratio=1.0, num_queries=4)
    config["model"].update(heads=2, mlp_width=16)
    config["model"]["backbone"].update(width=4, calibrate=8)
    config["model"]["image_encoder"].update(width=16, layers=1)
    config["model"]["text_encoder"].update(width=16, layers=1, heads=2, mlp_width=16)
    config["model"]["decoder"].update(width=16, layers=2)
    config["model"].update(dropout=0.1, attention_dropout=0.1)
    config["init_from"].update(backbone="", text_encoder="")
    config["loss"].update(class_weight=1.0)  # losses and frozen layers as in the paper's config
    config["optimizer"].update(frozen=("backbone.conv1", "backbone.layer1"))
    config["data"].update(
        data_dir=str(data_dir), num_workers=0, num_threads=0, prefetch=1, buckets=((80, 80),)
    )
    config["train"].update(
        steps=steps,
        batch_size=8,
        eval_batch_size=16,
        eval_every=steps,
        checkpoint_every=3,
        log_every=1,
        max_to_keep=2,
    )
    return config


def make_data(folder: pathlib.Path, tasks=TASKS) -> pathlib.Path:
    """Generates and prepares a small demo world; returns the data folder."""
    demo_data.generate(folder / "source", demo_data.DemoSettings(seed=0, scale=0.02))
    prepare.prepare(folder / "source", folder / "data", list(tasks), prepare.Settings())
    return folder / "data"
