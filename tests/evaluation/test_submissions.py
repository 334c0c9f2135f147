"""Written files against the official annotations: valid, and the same metrics as evaluation's."""

import collections
import csv
import json

import numpy as np
import pytest
from etils import epath
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from tests import tiny
from unit_jax import run as run_lib
from unit_jax.evaluation import evaluate, submissions
from unit_jax.outputs.labels import vqa_server
from unit_jax.tools import validate

TASKS = ("coco", "visual_genome", "vqa2", "snli_ve", "qnli", "mnli", "qqp", "sst2")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    data_dir = tiny.make_data(tmp_path_factory.mktemp("all"), TASKS)
    return run_lib.open_run(tiny.values(data_dir, TASKS))


def invented(run, task: str, split: str) -> dict[str, np.ndarray]:
    """Predictions as a fair model might make them: mostly right, some wrong, some missing."""
    rng = np.random.default_rng(len(task) + len(split))
    spec, examples = run.settings.tasks[task], run.data.split(task, split)
    count, queries = len(examples), spec.num_queries
    if spec.output != "objects":
        labels = rng.integers(spec.output == "scores", spec.num_labels, count)
        names = run.data.label_names(task)
        for row in range(count):
            record = examples[row]
            if rng.random() < 0.6:
                if record.get("answers") and record["answers"][0] in names[1:]:
                    labels[row] = names.index(record["answers"][0])
                elif record.get("label", -1) >= 0:
                    labels[row] = record["label"]
        return {"labels": labels, "scores": rng.random(count).astype(np.float32)}
    boxes = rng.uniform(0.1, 0.9, (count, queries, 4)).astype(np.float32)
    known = [k for k, name in enumerate(run.data.label_names(task)) if name]
    labels = rng.choice([0, *known], (count, queries))  # 0 is no category of the data set
    for row in range(count):
        record = examples[row]
        size = np.asarray([record["width"], record["height"]], np.float32)
        objects = record["objects"]
        for k, (x, y, w, h) in enumerate(objects["boxes_xywh"][:queries]):
            box = np.asarray([x + w / 2, y + h / 2, w, h]) + rng.normal(0, 1.5, 4)
            boxes[row, k] = box / [*size, *size]
            if rng.random() < 0.8:
                labels[row, k] = objects["category_ids"][k]
    found = dict(
        scores=rng.random((count, queries)).astype(np.float32), labels=labels, boxes_cxcywh=boxes
    )
    if spec.num_attributes:
        found["attr_scores"] = rng.random((count, queries)).astype(np.float32)
        found["attr_labels"] = rng.integers(0, spec.num_attributes, (count, queries))
    return found


@pytest.fixture(scope="module")
def written(run, tmp_path_factory):
    """(folder with files of val, metrics that evaluation reports of the same predictions)."""
    folder, metrics = epath.Path(tmp_path_factory.mktemp("predictions")), {}
    for task in TASKS:
        predictions = invented(run, task, "val")
        assert submissions.write(run, folder, task, "val", predictions) == []
        metrics[task] = evaluate.score(run, task, "val", predictions)
    return folder, metrics


@pytest.mark.parametrize(
    "task, annotations",
    [
        ("coco", "coco/annotations/instances_val2017.json"),
        ("visual_genome", "visual_genome/annotations/instances_val_split_by_coco_2017.json"),
    ],
)
def test_detections_score_the_same_by_pycocotools(run, written, task, annotations):
    folder, metrics = written
    truth = COCO(str(run.data.data_dir.parent / "source" / annotations))
    results = json.loads((folder / f"{task}-val.json").read_text())
    assert {e["image_id"] for e in results} == set(truth.imgs)
    assert {e["category_id"] for e in results} <= set(truth.cats)  # none of number 0
    judge = COCOeval(truth, truth.loadRes(results), "bbox")
    judge.evaluate()
    judge.accumulate()
    judge.summarize()
    expected = [value if value >= 0 else np.nan for value in judge.stats[:6]]
    np.testing.assert_allclose(list(metrics[task].values()), expected, atol=1e-9)
    assert 0.1 < metrics[task]["AP"] < 0.9
    assert all(("attr_label" in e) == (task == "visual_genome") for e in results)


def test_answers_score_the_same_by_hand(run, written):
    folder, metrics = written
    source = run.data.data_dir.parent / "source" / "vqa2"
    annotations = json.loads((source / "v2_mscoco_val2014_annotations.json").read_text())
    given = {
        a["question_id"]: [one["answer"] for one in a["answers"]]
        for a in annotations["annotations"]
    }
    known = set((source / "answers_vqa.txt").read_text().split("\n")) - {"<unk>", ""}
    soft, on_server = [], []
    for entry in json.loads((folder / "vqa2-val.json").read_text()):
        answers = given[entry["question_id"]]
        same = answers.count(entry["answer"]) if entry["answer"] in known else 0
        soft.append({0: 0.0, 1: 0.3, 2: 0.6, 3: 0.9}.get(same, 1.0))
        scores = []
        for left_out in range(len(answers)):
            others = collections.Counter(
                vqa_server.normalise(a) for i, a in enumerate(answers) if i != left_out
            )
            scores.append(min(1, others[vqa_server.normalise(entry["answer"])] / 3))
        on_server.append(np.mean(scores))
    assert len(soft) == len(given)
    assert metrics["vqa2"]["vqa_accuracy"] == pytest.approx(np.mean(soft), abs=1e-6)
    assert metrics["vqa2"]["vqa_evalai_accuracy"] == pytest.approx(np.mean(on_server))
    assert 0.3 < np.mean(soft) < 1


def test_labels_score_the_same_by_hand(run, written):
    folder, metrics = written
    source = run.data.data_dir.parent / "source"
    lines = (source / "snli_ve/snli_ve_dev.jsonl").read_text().splitlines()
    gold = {line["pairID"]: line["gold_label"] for line in map(json.loads, lines)}
    said = json.loads((folder / "snli_ve-val.json").read_text())
    right = [gold[entry["pairID"]] == entry["label"] for entry in said]
    assert metrics["snli_ve"]["accuracy"] == pytest.approx(np.mean(right))
    for task, file, column in (
        ("qnli", "QNLI/dev", "label"), ("mnli", "MNLI/dev_mismatched", "gold_label"),
        ("qqp", "QQP/dev", "is_duplicate"), ("sst2", "SST-2/dev", "label"),
    ):  # fmt: skip
        rows = list(csv.DictReader((source / f"glue/{file}.tsv").open(), delimiter="\t"))
        said = list(csv.DictReader((folder / f"{task}-val.tsv").open(), delimiter="\t"))
        right = [a[column] == b["prediction"] for a, b in zip(rows, said, strict=True)]
        assert metrics[task]["accuracy"] == pytest.approx(np.mean(right)), task


def test_files_of_the_test_splits_are_what_servers_take(run, tmp_path, capsys):
    names = {}
    for task in TASKS:
        for split in ("test", *submissions.together(run, task, "test")):
            folder = epath.Path(tmp_path)
            before = set(tmp_path.iterdir())
            assert submissions.write(run, folder, task, split, invented(run, task, split)) == []
            (path,) = set(tmp_path.iterdir()) - before
            names[path.name] = (task, split)
    assert set(names) == {
        "detections_test-dev2017_unit_results.json", "visual_genome-test.json", "vqa2-test.json",
        "snli_ve-test.json", "QNLI.tsv", "MNLI-m.tsv", "MNLI-mm.tsv", "QQP.tsv", "SST-2.tsv",
    }  # fmt: skip
    for name, (task, split) in names.items():
        words = [str(tmp_path / name), "--task", task, "--split", split]
        assert validate.main([*words, "--data_dir", str(run.data.data_dir)]) == 0
        assert validate.main(words) == 0
    path = tmp_path / "vqa2-test.json"
    path.write_text(json.dumps(json.loads(path.read_text())[1:]))
    words = [str(path), "--task", "vqa2", "--split", "test"]
    assert validate.main([*words, "--data_dir", str(run.data.data_dir)]) == 1
    assert "an example of the split is missing" in capsys.readouterr().out
    assert validate.main([*words, "--data_dir", str(tmp_path)]) == 2


def test_tasks_without_a_split_are_left_out_and_named(run):
    (selection,) = evaluate.select(run, "test", labelled=True).values()
    assert selection.tasks == ("snli_ve",)
    assert selection.left_out["qqp"] == "its test has no labels to compare with"
    both = evaluate.select(run, "val,test_matched", labelled=False)
    assert both["val"].tasks == TASKS and both["test_matched"].tasks == ("mnli",)
    assert both["test_matched"].left_out["coco"] == (
        "it has no split test_matched (train, val, test)"
    )
    with pytest.raises(ValueError, match="nothing to do in .*coco: it has no split dev"):
        evaluate.select(run, "dev", labelled=False)
