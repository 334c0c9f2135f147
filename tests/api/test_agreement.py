"""Python, command line, exported program, page and `--mode=eval` say the same of one input."""

import dataclasses
import json
from typing import Any

import numpy as np
import pytest

import unit_jax
from tests.page import test_app as page
from unit_jax import run as run_lib
from unit_jax.api import export, load
from unit_jax.configs import demo
from unit_jax.data import prepare
from unit_jax.demo import world
from unit_jax.evaluation import evaluate
from unit_jax.evaluation.step import Predictor
from unit_jax.interop import weights
from unit_jax.tools import predict

TASKS = ("coco", "vqa2", "qqp")
COUNT = 3  # examples of each


@dataclasses.dataclass(frozen=True)
class Asked:
    """Validation examples of a task, and what `--mode=eval` computes of them."""

    run: run_lib.Run
    given: list[dict[str, Any]]  # image (a path), text, text_b
    evaluated: list[dict[str, np.ndarray]]


@pytest.fixture(scope="module")
def asked(model, tmp_path_factory) -> dict[str, Asked]:
    folder = tmp_path_factory.mktemp("agreement")
    world.generate(folder / "source", world.DemoSettings(scale=0.02))
    for name, lines in (("vocab", model.vocabulary), ("vqa2/answers_vqa", model.labels("vqa2"))):
        (folder / "source" / f"{name}.txt").write_text("\n".join(lines) + "\n")  # at full scale
    prepare.prepare(folder / "source", folder / "data", list(TASKS), prepare.Settings())
    config = demo.values(",".join(TASKS))
    config["data"].update(data_dir=str(folder / "data"), num_workers=0, num_threads=0, prefetch=1)
    config["train"]["eval_batch_size"] = 8
    run = run_lib.open_run(config)
    predictor = Predictor.of_run(run, run.restored_model("demo"))
    found = {}
    for task in TASKS:
        split, given = run.data.split(task, "val"), []
        predictions = evaluate.predict_split(run, predictor, task, "val")
        for row in range(COUNT):
            record = split[row]
            values = {name: record[name] for name in ("text", "text_b") if record.get(name)}
            if run.settings.tasks[task].has_image:
                values["image"] = str(folder / f"{task}-{row}.png")
                (folder / f"{task}-{row}.png").write_bytes(split.image(row))
            given.append(values)
        rows = [{name: values[row] for name, values in predictions.items()} for row in range(COUNT)]
        found[task] = Asked(run, given, rows)
    return found


@pytest.fixture(scope="module")
def exported(model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("exported")
    export.export(model, folder, TASKS)
    return unit_jax.load_exported(folder)


@pytest.fixture(scope="module")
def address(model):
    base, stop = page.serve(page.app.make_app(model, page.app.Limits(per_minute=6000)))
    yield base
    stop()


def on_the_command_line(task: str, given: list[dict], folder, least: float) -> list[dict]:
    lines, output = folder / "asked.jsonl", folder / "said.jsonl"
    lines.write_text("".join(json.dumps(values) + "\n" for values in given))
    words = ["--task", task, "--images", str(lines), "--output", str(output)]
    assert predict.main([*words, "--threshold", str(least)]) == 0
    return [json.loads(line) for line in output.read_text().splitlines()]


def on_the_page(base: str, task: str, values: dict) -> dict:
    fields = dict(values)
    picture = fields.pop("image", None)
    image = open(picture, "rb").read() if picture else None
    status, said = page.ask(base, "/api/predict", image, task=task, **fields)
    assert status == 200
    return said


@pytest.mark.parametrize("task", TASKS)
def test_all_ways_say_the_same(task, model, asked, exported, address, tmp_path, monkeypatch):
    monkeypatch.setattr(predict, "keep_programs", lambda: None)
    given, least = asked[task].given, page.app.LEAST_SCORE
    ours = [model.predict(task, **values, threshold=least) for values in given]
    assert task != "coco" or sum(map(len, ours)) > COUNT
    lines = on_the_command_line(task, given, tmp_path, least)
    for values, one, line, evaluated in zip(given, ours, lines, asked[task].evaluated, strict=True):
        theirs = exported.predict(task, **values, threshold=least)
        for said in (line, theirs, on_the_page(address, task, values)):
            same(one.to_dict(), said)
        if task == "coco":  # `--mode=eval` keeps every query, in the decoder's order
            kept = {d.query: d for d in one}
            scores = evaluated["scores"]
            assert {q for q, score in enumerate(scores) if score >= least} == set(kept)
            for query, d in kept.items():
                assert evaluated["labels"][query] == d.label_id
                assert abs(scores[query] - d.score) < 1e-4
        else:
            assert evaluated["labels"] == one[0].label_id
            assert abs(evaluated["scores"] - one.score) < 1e-4  # of the best label


def same(ours: dict, theirs: dict) -> None:
    key = "detections" if "detections" in ours else "answers"
    mine, other = ours[key], theirs[key]
    other = other if key == "detections" else other[: len(mine)]
    assert [x["label"] for x in other] == [x["label"] for x in mine[: len(other)]] and other
    for a, b in zip(mine, other, strict=False):
        assert abs(a["score"] - b["score"]) < 1e-4
        if key == "detections":
            assert np.allclose(a["box_xyxy"], b["box_xyxy"], atol=1e-2)


def test_evaluation_refuses_weights_of_another_model(asked, tmp_path):
    """A file of ours whose arrays are not those that the config's model has."""
    run, found = asked["coco"].run, load.read("demo")
    name = "backbone.bn1.bias"
    path = tmp_path / "other.safetensors"
    arrays = {**found.arrays, name: found.arrays[name][:1]}
    weights.write_safetensors(path, arrays, found.metadata)
    with pytest.raises(ValueError, match=f"other.safetensors: .*another shape: {name}"):
        run.restored_model(path)
    weights.write_safetensors(path, found.arrays, found.metadata)
    restored, shipped = run.restored_model(path), run.restored_model("demo")
    assert all(np.array_equal(shipped.params[k], v) for k, v in restored.params.items())
