"""--dry_run: told, drawn, and nothing trained."""

import numpy as np
import pytest
from etils import epath
from PIL import Image

from tests import tiny
from unit_jax import run as run_lib
from unit_jax.data import loader
from unit_jax.training import dry_run


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    data = tiny.make_data(tmp_path_factory.mktemp("demo"))
    config = tiny.values(data, steps=6)
    config["tasks"]["coco"]["ratio"] = 2.0
    return run_lib.open_run(config)


def test_it_tells_what_would_be_trained_and_leaves_a_picture_alone(run, tmp_path, capsys):
    dry_run.dry_run(run, epath.Path(tmp_path))
    told = " ".join(capsys.readouterr().out.split())
    for task in run.settings.tasks:
        for split in ("train", "val"):
            assert f" {len(run.data.split(task, split))} " in told
    assert "50%" in told and "25%" in told
    counts = dict.fromkeys(run.data.label_names("coco"), 0)
    split = run.data.split("coco", "train")
    for row in range(len(split)):
        objects = split[row]["objects"]
        for number in set(objects["category_ids"][~objects["iscrowd"]].tolist()):
            counts[run.data.label_names("coco")[number]] += 1
    most = max(counts, key=counts.__getitem__)
    assert f"{most} {counts[most]}" in told
    assert "6 steps of 8 examples" in told and "80x80" in told
    params = sum(np.prod(x.shape) for x in run.abstract_params.values())
    assert f"{params / 1e6:.2f} million parameters" in told
    assert "for 6 such steps" in told and "nothing was trained" in told
    assert [path.name for path in tmp_path.iterdir()] == ["dry_run.png"]
    with Image.open(tmp_path / "dry_run.png") as picture:
        assert picture.width > 1000 and picture.height > 500


def test_boxes_are_those_of_the_moved_image(run):
    """Against the targets themselves: corners lie in the picture, in its pixels."""
    with loader.train_batches(run.settings, run.data) as batches:
        batch = next(batch for batch in batches if batch.task == "coco")
    seen = 0
    for place in range(len(batch.index)):
        height, width = batch.image_sizes[place]
        for (x, y, w, h), label in dry_run.boxes(batch.targets, place, height, width):
            seen += 1
            assert 0 <= x - w / 2 + 1e-3 and x + w / 2 <= width + 1e-3 and 0 < w
            assert 0 <= y - h / 2 + 1e-3 and y + h / 2 <= height + 1e-3 and 0 < h
            assert label in batch.targets.labels[place]
    assert seen == batch.targets.object_mask.sum()


def test_durations_in_words():
    assert dry_run._duration(90) == "90 seconds"
    assert dry_run._duration(1800) == "30 minutes"
    assert dry_run._duration(10_800) == "3.0 hours"
