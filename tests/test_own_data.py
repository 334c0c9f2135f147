"""examples/own_data: every format from a user's files to a report; what the config may declare."""

import json
import shutil

import numpy as np
import pytest
from etils import epath

from tests import ROOT, tiny
from unit_jax import config_files, outputs, own_data
from unit_jax import run as run_lib
from unit_jax import settings as settings_lib
from unit_jax.data import loader
from unit_jax.evaluation import formats, submissions
from unit_jax.tools import prepare_data
from unit_jax.training import loop

EXAMPLES = ROOT / "examples" / "own_data"
ALL = {
    "signs": {"format": "coco", "train": "signs/train.json", "val": "signs/val.json"},
    "corners": {"format": "voc", "train": "voc/train", "val": "voc/val"},
    "crossings": {"format": "yolo", "data": "yolo/data.yaml"},
    "reviews": {"format": "table", "train": "reviews.csv", "text": "review", "label": "stars"},
    "captions": {
        "format": "table", "train": "captions_train.csv", "val": "captions_val.csv",
        "image": "image", "text": "sentence", "label": "holds",
    },
    "asked": {
        "format": "questions", "train": "questions_train.jsonl", "val": "questions_val.jsonl",
    },
}  # fmt: skip
LABELS = {
    "signs": ["stop", "yield", "go"],
    "corners": ["go", "stop", "yield"],
    "crossings": ["stop", "yield", "go"],
    "reviews": ["bad", "good"],
    "captions": ["no", "yes"],
    "asked": ["<unk>", "2", "1", "blue", "red", "yellow"],
}


def values(data_dir, own) -> dict:
    """The smallest config, without tasks of its own."""
    config = tiny.values(data_dir)
    config["tasks"] = {}
    config["data"]["own"] = own_data.with_absolute_paths(own, EXAMPLES)
    config["data"].update(buckets=((96, 96),), train_max_side=96, eval_max_side=96)
    return config


@pytest.fixture(scope="module")
def prepared_dir(tmp_path_factory):
    return tmp_path_factory.mktemp("own")


def test_every_format_gives_batches(prepared_dir, capsys):
    """Prepared by opening the run; tasks, classes and examples are what the files say."""
    run = run_lib.open_run(values(prepared_dir, ALL))
    told = capsys.readouterr().out
    assert "signs (train): 12 examples, 18 objects, 12 images; faults: none" in told
    assert {name: run.data.label_names(name) for name in ALL}.items() >= {
        name: names for name, names in LABELS.items() if name != "asked"
    }.items()
    assert set(run.data.label_names("asked")) == set(LABELS["asked"])
    specs = run.settings.tasks
    assert len({spec.index for spec in specs.values()}) == len(ALL)
    for name, inputs, output, queries in (
        ("signs", ("image",), "objects", 100),
        ("reviews", ("text",), "label", 25),
        ("captions", ("image", "text"), "label", 25),
        ("asked", ("image", "text"), "scores", 25),
    ):
        spec = specs[name]
        assert (spec.inputs, spec.output, spec.num_queries) == (inputs, output, queries)
        assert spec.num_labels == len(LABELS[name])
        with loader.eval_batches(run.settings, run.data, name, "val") as batches:
            rows = np.concatenate([batch.index for batch in batches])
        assert sorted(rows[rows >= 0]) == list(range(len(run.data.split(name, "val"))))
    run_lib.open_run(values(prepared_dir, ALL))
    assert "examples" not in capsys.readouterr().out  # nothing is done twice
    report = (prepared_dir / "data_report.md").read_text()
    assert all(f"## {name}\n" in report for name in ALL)
    for name in ALL:
        assert (prepared_dir / "data_report" / f"{name}.png").stat().st_size > 5000


def test_predictions_speak_of_images_and_classes_as_the_files_do(prepared_dir, tmp_path):
    content = json.loads((EXAMPLES / "signs/val.json").read_text())
    for entry in content["categories"]:
        entry["id"] *= 11
    for entry in content["annotations"]:
        entry["category_id"] *= 11
    (tmp_path / "signs").mkdir()
    (tmp_path / "signs/val.json").write_text(json.dumps(content))
    images = str(EXAMPLES / "signs")
    path = str(tmp_path / "signs/val.json")
    own = {"signs": {"format": "coco", "train": path, "val": path, "images": images}}
    run = run_lib.open_run(values(tmp_path / "data", own))
    record = run.data.split("signs", "val")[3]
    prediction = {
        "labels": np.array([2, 0]), "scores": np.array([0.9, 0.1], np.float32),
        "boxes_cxcywh": np.full((2, 4), 0.5, np.float32),
    }  # fmt: skip
    names = run.data.names("signs")
    found = outputs.room(run.settings.tasks["signs"]).entries(record, prediction, names)
    kept = formats.FORMATS["coco"].entries(found)
    assert [(e["image_id"], e["category_id"]) for e in kept] == [(103, 33), (103, 11)]
    predictions = {name: np.stack([value] * 6) for name, value in prediction.items()}
    assert submissions.write(run, epath.Path(tmp_path), "signs", "val", predictions) == []
    expected = formats.expected_of(run.data, "signs", "val")
    assert [expected.labels[n] for n in (11, 22, 33)] == ["stop", "yield", "go"]


@pytest.mark.slow
def test_every_format_trains_and_evaluates_in_one_mixture(prepared_dir, tmp_path):
    config = values(prepared_dir, ALL)
    config["train"].update(steps=12, eval_every=12, checkpoint_every=12)
    workdir = epath.Path(tmp_path)
    assert loop.train(run_lib.open_run(config), workdir) == 0
    rows = json.loads((workdir / "report.json").read_text())
    assert {row["task"] for row in rows} == set(ALL)
    log = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    losses = [value for line in log for key, value in line.items() if key.endswith("/loss")]
    assert losses and np.isfinite(losses).all()


def test_the_example_of_the_page_is_as_short_as_it_says_and_paths_start_at_its_folder(
    tmp_path, monkeypatch
):
    lines = (EXAMPLES / "config.py").read_text().splitlines()
    code = [line for line in lines if line.strip() and not line.startswith('"""')]
    assert len(code) <= 12
    shutil.copytree(EXAMPLES, tmp_path / "mine")
    monkeypatch.chdir(tmp_path)
    settings = config_files.read("mine/config.py")
    assert settings.data.own["signs"]["train"] == str(tmp_path / "mine/signs/train.json")
    assert list(settings.tasks) == ["signs", "reviews"]
    status = prepare_data.main(
        ["--config", "mine/config.py", "--data_dir", "out", "--summary", "sum.json"]
    )
    assert status == 0
    summary = json.loads((tmp_path / "sum.json").read_text())
    assert summary["signs"] == {
        "train": {"examples": 12, "objects": 18, "images": 12, "faults": {}},
        "val": {"examples": 6, "objects": 9, "images": 6, "faults": {}},
    }
    assert summary["reviews"]["train"] == {
        "examples": 26, "objects": 0, "images": 0, "faults": {},
    }  # fmt: skip


def test_prepare_data_tells_mistakes_in_a_line(tmp_path, capsys):
    def error(*words):
        assert prepare_data.main(list(words)) == 1
        return capsys.readouterr().err

    assert "give --config FILE.py, or --source DIR and --data_dir DIR" in error()
    path = tmp_path / "config.py"
    path.write_text("def get_config():\n    return {'data': {'own': {'a': {'format': 'coco'}}}}\n")
    assert "config.data.own.a.train: missing" in error("--config", str(path))
    path.write_text("def get_config():\n    return {'tasks': {'coco': {}}}\n")
    assert "declares no data set in data.own" in error("--config", str(path))


def test_tasks_of_own_data_may_be_overridden_and_must_fit(prepared_dir):
    own = {"signs": ALL["signs"], "reviews": ALL["reviews"]}
    config = values(prepared_dir, own)
    config["tasks"] = {"signs": {"num_queries": 7, "ratio": 3.0}}
    settings = settings_lib.from_config(config)
    assert settings.tasks["signs"].num_queries == 7
    assert settings.ratios == {"signs": 3.0, "reviews": 1.0}
    assert settings.tasks["reviews"].max_tokens == 32  # as far as the model's positions go
    rows = {name: spec.index for name, spec in settings.tasks.items()}
    for tasks in ({}, {"reviews": {}}, {"reviews": {}, "signs": {}, "coco": {}}):
        specs = settings_lib.from_config({**config, "tasks": tasks}).tasks
        assert {name: specs[name].index for name in rows} == rows

    run = run_lib.open_run(config)
    metadata = run.metadata()
    run.check_metadata(metadata, "checkpoint 6")
    metadata["settings"]["tasks"]["signs"]["index"] = 14
    with pytest.raises(ValueError, match="signs in row 14 .* use --config.tasks.signs.index=14"):
        run.check_metadata(metadata, "checkpoint 6")

    config["tasks"]["signs"]["num_labels"] = 4
    with pytest.raises(ValueError) as error:
        run_lib.open_run(config)
    assert str(error.value) == (
        "config.tasks.signs.num_labels: 4, but signs has 3 classes (stop, yield, go); take the "
        "setting away, or correct the files"
    )
    config["data"]["own"] = {"coco": config["data"]["own"]["signs"]}
    with pytest.raises(ValueError, match="config.data.own.coco: a published data set has this"):
        settings_lib.from_config(config)
