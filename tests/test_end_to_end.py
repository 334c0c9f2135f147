"""Generator, preparation, training, checkpoint, resume, evaluation: as a user runs them."""

import json

import numpy as np
import pytest
from etils import epath
from PIL import Image

import unit_jax
from tests import tiny
from tests.tools.test_convert_checkpoint import convert
from unit_jax import run as run_lib
from unit_jax import settings as settings_lib
from unit_jax.evaluation import closing, submissions
from unit_jax.runtime import checkpoint_folder
from unit_jax.tools import make_demo_weights
from unit_jax.training import loop


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    return tiny.make_data(tmp_path_factory.mktemp("demo"))


def _train(config: dict, workdir) -> list[dict]:
    workdir = epath.Path(workdir)
    workdir.mkdir(exist_ok=True)
    assert loop.train(run_lib.open_run(config), workdir) == 0
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def _numbers(log: list[dict]) -> list[dict]:
    """The log without what depends on the clock or on what was compiled before."""
    volatile = (
        "time", "train/examples_per_second", "train/compilations", "train/coco/matching_ms",
        "train/host_memory",
    )  # fmt: skip
    return [{k: v for k, v in record.items() if k not in volatile} for record in log]


@pytest.fixture(scope="module")
def finished(data_dir, tmp_path_factory):
    """A run of six steps without interruption: (workdir, its log)."""
    workdir = tmp_path_factory.mktemp("runs") / "whole"
    return workdir, _train(tiny.values(data_dir), workdir)


def test_a_run_leaves_log_checkpoints_report_and_picture(finished, capsys):
    workdir, log = finished
    steps = [record for record in log if "train/examples_per_second" in record]
    assert [record["step"] for record in steps] == [1, 2, 3, 4, 5, 6]
    assert {record["train/recompilations"] for record in steps} == {0}
    assert {p.name for p in (workdir / "checkpoints").iterdir()} == {"3", "6"}
    rows = json.loads((workdir / "report.json").read_text())
    assert [list(row) for row in rows] == [["task", "metric", "value", "baseline", "paper"]] * len(
        rows
    )
    assert {(row["task"], row["metric"]) for row in rows} >= {
        ("coco", "AP"), ("coco", "AP50"), ("coco", "APl"), ("vqa2", "vqa_accuracy"),
        ("vqa2", "vqa_accuracy_images_exchanged"), ("vqa2", "vqa_accuracy_bag_of_words"),
        ("qqp", "accuracy"), ("qqp", "f1"), ("qqp", "accuracy_bag_of_words_second_text"),
    }  # fmt: skip
    for task, headline in (("coco", "AP"), ("vqa2", "vqa_accuracy"), ("qqp", "accuracy")):
        assert next(row["metric"] for row in rows if row["task"] == task) == headline
    assert "| coco | AP |" in (workdir / "report.md").read_text()
    details = workdir / "evaluation" / "val"
    for path in (workdir / "predictions.png", details / "worst.png", details / "confusion.png"):
        with Image.open(path) as picture:
            assert picture.format == "PNG" and picture.width > 1000
    metrics = json.loads((details / "metrics.json").read_text())["metrics"]
    assert metrics == {k: v for k, v in log[-1].items() if k.split("/")[0] in tiny.TASKS}
    classes = json.loads((details / "classes.json").read_text())
    assert {one["name"] for one in classes["qqp"]["classes"]} == {"duplicate", "not_duplicate"}
    (events,) = (workdir / "tensorboard" / "examples").iterdir()
    for tag in (b"examples/coco", b"evaluation/table", b"evaluation/qqp/class_errors"):
        assert tag in events.read_bytes()


def test_the_same_seed_gives_the_same_numbers_also_across_a_resume(data_dir, finished, tmp_path):
    """Stopped after three steps and continued: every logged number equals the whole run's."""
    config = tiny.values(data_dir)
    whole = _numbers(finished[1])
    workdir = epath.Path(tmp_path / "parts")
    workdir.mkdir()
    run = run_lib.open_run(config)
    original = loop.save

    def save_then_stop(saved, run, step, *rest):
        original(saved, run, step, *rest)
        saved.wait()
        raise KeyboardInterrupt  # as `kill -9` right after a checkpoint would look to the folder

    loop.save = save_then_stop
    try:
        with pytest.raises(KeyboardInterrupt):
            loop.train(run, workdir)
    finally:
        loop.save = original
    assert checkpoint_folder.locate(workdir)[1] == 3
    assert _numbers(_train(config, workdir)) == whole


def test_a_finished_run_only_prints_its_report(data_dir, finished, capsys):
    workdir, log = finished
    before = (workdir / "metrics.jsonl").read_text()
    assert _train(tiny.values(data_dir), workdir) == log
    assert (workdir / "metrics.jsonl").read_text() == before
    assert "vqa_accuracy" in capsys.readouterr().out


def test_eval_mode_prints_the_same_numbers(data_dir, finished, tmp_path):
    workdir, _ = finished
    run = run_lib.open_run(tiny.values(data_dir))
    closing.evaluate_checkpoint(run, workdir, epath.Path(tmp_path))
    assert (tmp_path / "report.json").read_text() == (workdir / "report.json").read_text()

    other_ways = tiny.values(data_dir)
    other_ways["model"].update(scan_layers=True, attention="fused", rematerialise="layers")
    run = run_lib.open_run(other_ways)  # of computing the same model
    submissions.predict_checkpoint(run, workdir / "checkpoints" / "6", epath.Path(tmp_path))
    answers = json.loads((tmp_path / "predictions" / "vqa2-val.json").read_text())
    assert len(answers) == len(run.data.split("vqa2", "val"))
    assert set(answers[0]) == {"question_id", "answer"}
    lines = (tmp_path / "predictions" / "qqp-val.tsv").read_text().splitlines()
    assert lines[0] == "index\tprediction" and len(lines) == 1 + len(run.data.split("qqp", "val"))


def test_some_tasks_of_a_joint_checkpoint_on_the_splits_that_they_have(
    data_dir, finished, tmp_path, capsys
):
    settings = settings_lib.from_config(tiny.values(data_dir))
    run = run_lib.open_run(settings_lib.only(settings, "qqp"))
    closing.evaluate_checkpoint(run, finished[0], epath.Path(tmp_path), "val,test")
    assert "test: qqp is left out, its test has no labels" in capsys.readouterr().out
    rows, of_all = (
        json.loads((folder / "report.json").read_text()) for folder in (tmp_path, finished[0])
    )
    assert rows == [row for row in of_all if row["task"] == "qqp"]
    facts = json.loads((tmp_path / "evaluation" / "val" / "metrics.json").read_text())
    assert facts["checkpoint"].endswith("checkpoints/6") and facts["left_out"] == {}
    assert not (tmp_path / "evaluation" / "test").exists()


def test_training_stops_early_and_reports_the_best(data_dir, tmp_path, capsys):
    """Without a learning rate nothing gets better than the first evaluation."""
    config = tiny.values(data_dir, ("qqp",))
    config["train"].update(eval_every=1, checkpoint_every=10, stop_after=2)
    config["optimizer"].update(learning_rate=1e-12, backbone_learning_rate=1e-12)
    log = _train(config, tmp_path / "run")
    assert max(record["step"] for record in log) == 3
    told = capsys.readouterr().out
    assert "ended after step 3: 2 evaluations without better qqp/accuracy" in told
    assert "the report is the best checkpoint's: qqp/accuracy" in told
    assert {p.name for p in (tmp_path / "run/checkpoints").iterdir()} == {"1", "3"}
    assert _train(config, tmp_path / "run") == log  # again: only its report
    assert "continuing" not in capsys.readouterr().out
    workdir, settings = epath.Path(tmp_path / "run"), run_lib.open_run(config).settings
    best = workdir / "checkpoints" / "1"
    assert run_lib.located(epath.Path("best"), workdir, settings) == best
    assert run_lib.located(workdir / "best", epath.Path("elsewhere"), settings) == best
    assert run_lib.located(best, workdir, settings) == best


def test_predictions_for_test_splits(data_dir, finished, tmp_path, capsys):
    """What servers take of the demo's test splits; none of these three has labels there."""
    run = run_lib.open_run(tiny.values(data_dir))
    submissions.predict_checkpoint(run, finished[0], epath.Path(tmp_path), "test")
    assert capsys.readouterr().out.count("(valid)") == 3
    folder, source = tmp_path / "predictions", data_dir.parent / "source"
    boxes = json.loads((folder / "detections_test-dev2017_unit_results.json").read_text())
    listed = json.loads((source / "coco/annotations/image_info_test-dev2017.json").read_text())
    assert {box["image_id"] for box in boxes} <= {image["id"] for image in listed["images"]}
    assert all(set(box) == {"image_id", "category_id", "bbox", "score"} for box in boxes)
    answers = json.loads((folder / "vqa2-test.json").read_text())
    path = source / "vqa2/v2_OpenEnded_mscoco_test2015_questions.json"
    questions = json.loads(path.read_text())["questions"]
    assert [a["question_id"] for a in answers] == [q["question_id"] for q in questions]
    assert {a["answer"] for a in answers} <= set(run.data.label_names("vqa2")[1:])
    header, *lines = (folder / "QQP.tsv").read_text().splitlines()
    assert header == "index\tprediction"
    assert [line.split("\t")[0] for line in lines] == ["0", "1"]
    assert {line.split("\t")[1] for line in lines} <= {"0", "1"}

    with pytest.raises(ValueError, match="qqp: its test has no labels.*--mode=predict"):
        closing.evaluate_checkpoint(run, finished[0], epath.Path(tmp_path), "test")


def test_bad_input_is_one_error_before_training(data_dir, finished, tmp_path):
    config = tiny.values(data_dir)
    config["train"]["batch_size"] = 12
    with pytest.raises(ValueError, match="train.batch_size = 12 cannot be split over 8 devices"):
        run_lib.open_run(config)

    config = tiny.values(data_dir, tasks=("coco", "snli_ve"))
    with pytest.raises(ValueError, match="snli_ve: not prepared; run: unit-jax prepare"):
        run_lib.open_run(config)

    config = tiny.values(data_dir)
    config["init_from"]["backbone"] = "nowhere/detr.pth"
    with pytest.raises(ValueError, match="init_from.backbone = 'nowhere/detr.pth' does not exist"):
        run_lib.open_run(config, needs_initial_weights=True)

    config = tiny.values(data_dir)
    config["model"]["decoder"]["layers"] = 1
    with pytest.raises(ValueError, match="model.decoder.layers = 2 there, 1 in this") as error:
        loop.train(run_lib.open_run(config), epath.Path(finished[0]))
    assert "another --workdir" in str(error.value)

    run = run_lib.open_run(tiny.values(data_dir))
    metadata = run.metadata()
    metadata["data"]["vocabulary"] = "0" * 64
    with pytest.raises(ValueError, match="made with another vocabulary"):
        run.check_metadata(metadata, "checkpoint 6")


def test_a_finished_run_becomes_the_weights_of_the_package(data_dir, finished, tmp_path, capsys):
    workdir, output = str(finished[0]), tmp_path / "weights"
    arguments = ["--workdir", workdir, "--output", str(output)]
    assert make_demo_weights.main([*arguments, "--data_dir", str(data_dir)]) == 0
    for part in ("backbone", "text_encoder"):
        assert make_demo_weights.main([*arguments, "--part", part]) == 0
    assert "demo.safetensors" in capsys.readouterr().out
    made, trained = unit_jax.load(output / "demo.safetensors"), unit_jax.load(workdir)
    picture = np.asarray(Image.open(next((tmp_path / "pictures").iterdir())))
    answers = [m.answer(picture, "what shape is red?", top=3).answers for m in (made, trained)]
    scores = [[answer.score for answer in found] for found in answers]
    np.testing.assert_allclose(*scores, atol=2e-3)  # 16 bits
    card = (output / "README.md").read_text()
    assert "demo && make demo-weights" in card and "trained from random weights" in card

    config = tiny.values(data_dir)
    parts = {"backbone": "demo-backbone", "text_encoder": "demo-text-encoder"}
    for part, name in parts.items():
        config["init_from"][part] = str(output / f"{name}.safetensors")
    started = run_lib.open_run(config, needs_initial_weights=True).initial_model()
    original = run_lib.open_run(tiny.values(data_dir)).restored_model(epath.Path(workdir))
    for name, array in started.params.items():
        same = np.allclose(array, original.params[name], atol=1e-3)
        assert same or not name.startswith(tuple(f"{part}." for part in parts)), name

    assert make_demo_weights.main(["--workdir", str(tmp_path), "--part", "backbone"]) == 1
    assert str(tmp_path) in capsys.readouterr().err


def test_a_checkpoint_from_mmf_evaluates_predicts_and_trains(data_dir, finished, tmp_path, capsys):
    """Out to MMF's names and back: the same report, and something to go on from."""
    workdir, converted = epath.Path(finished[0]), tmp_path / "converted"
    convert.export_checkpoint("mmf", workdir, tmp_path / "unit.pth")
    config = tiny.values(data_dir)
    run = run_lib.open_run(config)
    convert.import_checkpoint("mmf", str(tmp_path / "unit.pth"), run.settings, str(converted))
    closing.evaluate_checkpoint(run, converted, epath.Path(tmp_path))
    assert (tmp_path / "report.json").read_text() == (workdir / "report.json").read_text()
    submissions.predict_checkpoint(run, converted, epath.Path(tmp_path))
    assert (tmp_path / "predictions" / "coco-val.json").exists()

    with pytest.raises(ValueError, match="no state of training.*config.init_from.model="):
        loop.train(run, epath.Path(converted))
    config["init_from"]["model"] = str(converted)
    capsys.readouterr()
    started = run_lib.open_run(config, needs_initial_weights=True).initial_model()
    told = capsys.readouterr().out
    assert told.startswith(f"model from {converted} (a checkpoint of ours): ")
    assert "fresh" not in told and "in part" not in told and "left aside" not in told
    original = run.restored_model(workdir)
    for group, leaves in original._asdict().items():
        for path, array in leaves.items():
            assert (np.asarray(getattr(started, group)[path]) == np.asarray(array)).all(), path

    config["model"]["backbone"]["bn_eps"] = 0.0
    with pytest.raises(ValueError, match=r"--config\.model\.backbone\.bn_eps=1e-05"):
        run_lib.open_run(config).restored_model(converted)
