"""`unit-jax predict`: lines, COCO files, pictures; broken inputs are counted and gone past."""

import json

import numpy as np
import pytest
from PIL import Image

import unit_jax
from unit_jax.demo import scenes, world
from unit_jax.tools import card, predict

QUESTION = "what color is the square?"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("photos")
    for number, scene in [*world.coco_scenes(world.DemoSettings(), "val")][:3]:
        Image.fromarray(scenes.render(scene)).save(folder / f"{number:012d}.png")
    return folder


def lines(path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_folder_with_a_broken_picture(folder, tmp_path, capsys):
    photos = tmp_path / "photos"
    photos.mkdir()
    for path in folder.iterdir():
        (photos / path.name).write_bytes(path.read_bytes())
    (photos / "broken.jpg").write_bytes(b"no picture")
    output, drawn = tmp_path / "found.jsonl", tmp_path / "drawn"
    status = predict.main(
        ["--model", "demo", "--task", "coco", "--images", str(photos), "--threshold", "0.2",
         "--output", str(output), "--draw", str(drawn)]
    )  # fmt: skip
    told = capsys.readouterr()
    assert status == predict.SOME_FAILED
    assert "3 answered, 1 failed" in told.out and "broken.jpg: no picture" in told.err
    found = {line["image"]: line for line in lines(output)}
    assert set(found) == {str(path) for path in photos.iterdir()}
    assert "broken.jpg" in found[str(photos / "broken.jpg")]["error"]
    model = unit_jax.load("demo")
    for path in folder.iterdir():
        line = found[str(photos / path.name)]
        assert set(line) == {"image", "detections"}
        ours = model.detect(path, threshold=0.2)
        assert len(ours) == len(line["detections"])
        for a, b in zip(ours, line["detections"], strict=True):
            assert set(b) == {"label", "score", "box_xyxy"} and a.label == b["label"]
            assert abs(a.score - b["score"]) < 1e-4
            assert np.allclose(a.box_xyxy, b["box_xyxy"], atol=1e-2)
    assert {p.name for p in drawn.iterdir()} == {p.name for p in folder.iterdir()}


def test_coco_results_and_lines_of_questions(folder, tmp_path):
    output = tmp_path / "found.json"
    options = ["--task", "coco", "--images", f"{folder}/*.png", "--threshold", "0.2"]
    assert predict.main([*options, "--output", str(output)]) == 0
    entries = json.loads(output.read_text())
    assert entries and {e["image_id"] for e in entries} <= {int(p.stem) for p in folder.iterdir()}
    asked, said = tmp_path / "asked.jsonl", tmp_path / "said.jsonl"
    picture = str(sorted(folder.iterdir())[0])
    asked.write_text(
        json.dumps({"image": picture, "text": QUESTION}) + "\n{broken\n"
        + json.dumps({"image": picture}) + "\n" + json.dumps({"text": "and now?"}) + "\n"
    )  # fmt: skip
    options = ["--task", "vqa2", "--images", str(asked), "--output", str(said), "--top", "2"]
    assert predict.main(options) == predict.SOME_FAILED
    first, broken, lacking, no_image = lines(said)
    assert (first["image"], first["text"]) == (picture, QUESTION) and len(first["answers"]) == 2
    assert first["answers"][0]["score"] >= first["answers"][1]["score"]
    assert "line 2" in broken["error"]
    assert "vqa2 needs text" in lacking["error"] and "vqa2 needs image" in no_image["error"]


def test_texts_and_one_picture(folder, tmp_path, capsys):
    output = tmp_path / "a.jsonl"
    asked = ["--task", "qqp", "--text", "is it red?", "--text_b", "is it blue?"]
    assert predict.main([*asked, "--output", str(output)]) == 0
    (line,) = lines(output)
    assert line["text"] == "is it red?" and line["text_b"] == "is it blue?"
    assert len(line["answers"]) == 2 and "is it red?" in capsys.readouterr().out


@pytest.mark.parametrize(
    "options, told",
    [
        (["--task", "coco"], "--task coco needs --image or --images"),
        (["--task", "qqp"], "--task qqp needs --text"),
        (["--task", "nothing"], "no task 'nothing'; it has coco"),
        (["--task", "coco", "--image", "none.jpg"], "none.jpg: no such file"),
        (["--task", "coco", "--images", "none/"], "no pictures there"),
        (["--model", "nowhere", "--task", "coco", "--image", "x"], "nowhere: no such file"),
    ],
)
def test_what_cannot_be_done_is_one_line(options, told, tmp_path, capsys):
    assert predict.main([*options, "--output", str(tmp_path / "a.jsonl")]) == 1
    assert told in capsys.readouterr().err


def test_a_card_tells_figures_tasks_and_parameters(tmp_path, capsys):
    assert card.main(["--model", "demo"]) == 0
    text = capsys.readouterr().out
    model = unit_jax.load("demo")
    count = sum(x.size for x in (*model.params.values(), *model.statistics.values()))
    assert "| coco | AP |" in text and "| vqa2 | image and text |" in text
    assert f"| in all | {count:,} |" in text
    assert "/tmp" not in text
