"""The fine-tuning recipe: valid for every start, and ten images are learnt by heart."""

import json
import os
import pathlib
import shutil
import subprocess
import sys

import numpy as np
import pytest

from tests import ROOT, tiny
from unit_jax import run as run_lib
from unit_jax import settings as settings_lib
from unit_jax.configs import fine_tune
from unit_jax.interop import sources, torch_files

NAMES = {"circle": "round", "ring": "round", "cross": "cross"}  # the rest: "pointed"


def data_of(folder: pathlib.Path, images: int = 10) -> dict:
    """A COCO export of pictures of the demo world with three classes, val = train."""
    made = tiny.make_data(folder, ("coco",)).parent / "source" / "coco"
    world = json.loads((made / "annotations" / "instances_train2017.json").read_text())
    shown = world["images"][:images]
    (folder / "signs").mkdir()
    for number, image in enumerate(shown):
        name = f"shot-{number}.jpg"
        shutil.copy(made / "train2017" / image["file_name"], folder / "signs" / name)
        image["file_name"] = name
    classes = ["round", "pointed", "cross"]
    number = {c["id"]: classes.index(NAMES.get(c["name"], "pointed")) for c in world["categories"]}
    kept = {image["id"] for image in shown}
    export = dict(
        images=shown,
        categories=[dict(id=i, name=name) for i, name in enumerate(classes)],
        annotations=[
            dict(a, category_id=number[a["category_id"]])
            for a in world["annotations"]
            if a["image_id"] in kept
        ],
    )
    path = folder / "signs" / "all.json"
    path.write_text(json.dumps(export))
    return dict(signs=dict(format="coco", train=str(path), val=str(path)))


@pytest.mark.parametrize("start", ["demo", "", "unit.pth"])
def test_the_recipe_is_valid_for_every_start(start, tmp_path):
    data = dict(signs=dict(format="coco", train=str(tmp_path / "a.json")))
    data["reviews"] = dict(format="table", train="a.csv", text="review", label="stars")
    settings = settings_lib.from_config(fine_tune.recipe(start, data, 30))
    assert list(settings.tasks) == ["signs", "reviews"]
    assert settings.tasks["signs"].num_queries == (20 if start == "demo" else 100)
    assert settings.init_from.model == start
    assert bool(settings.init_from.backbone) == (start == "")
    assert settings.train.stop_after and settings.data.buckets == ()
    assert settings_lib.from_config(fine_tune.get_config())


def test_own_data_start_from_the_weights_that_come_with_the_package(tmp_path, capsys):
    config = fine_tune.recipe("demo", data_of(tmp_path, 4), 30)
    config["data"]["data_dir"] = str(tmp_path / "prepared")
    config["train"].update(batch_size=8, eval_batch_size=16)  # eight simulated devices
    run = run_lib.open_run(config, needs_initial_weights=True)
    told = capsys.readouterr().out
    assert "train.steps = 400 (800 passes over 4 examples)" in told
    assert len(run.settings.data.buckets) == 1
    model = run.initial_model()
    told = capsys.readouterr().out
    assert "model from demo (a checkpoint of ours): " in told
    assert "signs starts from coco: 1 of 3 classes by name (cross)" in told
    shipped = torch_files.load_state_dict(sources.demo_file())
    path = "backbone.layer3.0.conv2.kernel"
    np.testing.assert_array_equal(np.asarray(model.params[path]), shipped[path])
    queries = np.asarray(model.params["queries.signs"])
    np.testing.assert_array_equal(queries[:8], shipped["queries.coco"])


@pytest.mark.slow
def test_ten_images_are_learnt_by_heart(tmp_path):
    """As a user runs it, from the demo's weights; docs/fine_tuning.md has the figures."""
    data = data_of(tmp_path)
    text = "from unit_jax.configs import fine_tune\n\n\ndef get_config():\n"
    text += f"    return fine_tune.recipe('demo', {data!r}, 30)\n"
    (tmp_path / "mine.py").write_text(text)
    command = [sys.executable, "-m", "unit_jax.main", "--config=mine.py", "--workdir=run"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    del environment["XLA_FLAGS"]  # of the suite: programs that compile fast and run slowly
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    rows = json.loads((tmp_path / "run" / "report.json").read_text())
    found = {row["metric"]: row for row in rows}
    assert found["AP50"]["value"] >= 0.9 > 0.5 > found["AP50"]["baseline"]
