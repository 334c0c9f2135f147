"""Fine-tuning on your own data: copy this file, change the lines marked <--, and run it.

    unit-jax train --config=fine_tune.py --workdir=runs/mine --dry_run
    unit-jax train --config=fine_tune.py --workdir=runs/mine

The first command shows what would be trained, the second trains, stops when nothing gets better,
reports the best, and writes its predictions. What is 0, () or -1 here is chosen by the data and the
devices, and told.
docs/fine_tuning.md says why the numbers are these.
"""

from typing import Any

from unit_jax import settings
from unit_jax.configs import demo, unit

# What to start from. "demo" comes with unit_jax: a small model, for small pictures and any CPU.
# The paper's model starts from a checkpoint of UniT or DETR, or from "" (the files of
# `unit.py`: a DETR backbone and BERT). All but "demo" want a GPU or TPU.
START = "demo"  # <--

# Your data, by name; docs/own_data.md has a section per format. Paths are relative to this file.
DATA = dict(  # <--
    signs=dict(format="coco", train="signs/train.json", val="signs/val.json"),
)

EPOCHS = 30  # passes over the data; few examples get more of them, see `steps` <--


def recipe(start: str, data: dict[str, Any], epochs: float) -> dict[str, Any]:
    """All settings of a fine-tuning run as a nested dict."""
    small = start == "demo"
    config = (demo if small else unit).values()
    detecting = [name for name in data if data[name]["format"] in ("coco", "voc", "yolo")]
    config["tasks"] = {name: dict(num_queries=20 if small else 100) for name in detecting}
    settings.update(
        config,
        dict(
            init_from=dict(model=start, **(dict(backbone="", text_encoder="") if start else {})),
            # Short of overwriting what was learnt: a tenth of the steps to warm up, then a cosine.
            optimizer=dict(
                learning_rate=3e-4 if small else 5e-5,
                backbone_learning_rate=3e-4 if small else 1e-5,
                warmup_steps=-1,
                frozen=("backbone.conv1", "backbone.layer1"),
            ),
            data=dict(
                own=data,
                data_dir="prepared",
                vocabulary="" if small else "bert-base-uncased",
                buckets=(),
                max_objects=0,
                repeat_rare=0.0,  # 0.1: classes that fewer than a tenth of the examples show
                **(
                    dict(eval_max_side=112, train_max_side=112, num_workers=0)
                    if small
                    else dict(eval_short_side=0)
                ),
            ),
            train=dict(
                epochs=epochs,
                steps=400 if small else 1000,  # at least
                batch_size=0,
                eval_batch_size=0,
                eval_every=0,
                checkpoint_every=0,
                log_every=20,
                max_to_keep=2,
                stop_after=6,
                best_metric="",
            ),
            report=dict(predictions=True, blind_check=False, paper={}),
        ),
    )
    # Batch norms keep the statistics of the start.
    config["model"]["backbone"]["calibrate"] = 0
    return config


def get_config(arg: str | None = None) -> dict[str, Any]:
    """The settings, for `--config`."""
    return recipe(START, DATA, EPOCHS)
