"""Metrics against pycocotools, hand-computed cases and plain loops."""

import dataclasses
import json

import numpy as np
import pytest
import scipy.sparse
from etils import epath
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from tests import REFERENCE_FILES
from unit_jax.evaluation import blind, report
from unit_jax.outputs.labels import metrics as classification
from unit_jax.outputs.objects import average_precision
from unit_jax.outputs.objects import metrics as detection

REFERENCE = REFERENCE_FILES / "metrics" / "reference.npz"


def ap_of(truth: dict, entries: list[dict]) -> dict[str, float]:
    return average_precision.evaluate(*average_precision.from_coco(truth, entries)).named()


def test_average_precision_of_the_reference_case():
    """Twenty images with crowds, written down with the numbers that the reference computed."""
    with np.load(REFERENCE) as reference:
        case = json.loads(str(reference["case"]))
        stats = reference["stats"]
    columns = average_precision.from_coco(case["ground_truth"], case["detections"])
    result = average_precision.evaluate(*columns)
    np.testing.assert_allclose(result.stats, stats, rtol=0, atol=1e-12)
    assert list(result.named()) == ["AP", "AP50", "AP75", "APs", "APm", "APl"]
    np.testing.assert_allclose(list(result.named().values()), stats[:6], atol=1e-12)


def test_average_precision_without_detections_or_objects():
    images = [dict(id=0, width=10, height=10)]
    empty = dict(images=images, annotations=[], categories=[dict(id=1)])
    box = dict(image_id=0, category_id=1, bbox=[1, 1, 5, 5])
    truth = {**empty, "annotations": [dict(id=1, area=25, iscrowd=0, **box)]}
    assert ap_of(truth, [])["AP"] == 0
    assert np.isnan(ap_of(empty, [])["AP"])
    assert np.isnan(ap_of(empty, [dict(score=0.5, **box)])["AP"])
    assert ap_of(truth, [dict(score=0.5, **box)])["AP"] == pytest.approx(1)


def test_detections_and_records_as_columns_are_what_pycocotools_reads():
    """Outputs that say exactly what the records hold reach AP 1, crowds and all."""
    rng = np.random.default_rng(0)
    records, logits, boxes = [], np.zeros((3, 4, 6)), np.full((3, 4, 4), 0.5)
    for image in range(3):
        width, height = 80 + 10 * image, 60
        xywh = np.concatenate([rng.uniform(0, 30, (4, 2)), rng.uniform(8, 30, (4, 2))], 1)
        objects = dict(boxes_xywh=xywh, category_ids=[1, 3, 4, 2], areas=xywh[:, 2] * xywh[:, 3],
                       iscrowd=[0, 0, 0, 1])  # fmt: skip
        records.append(dict(width=width, height=height, objects=objects))
        boxes[image] = np.concatenate([xywh[:, :2] + xywh[:, 2:] / 2, xywh[:, 2:]], 1)
        boxes[image] /= [width, height, width, height]
        logits[image, range(4), [1, 3, 4, 2]] = 9
    sizes = np.asarray([[r["height"], r["width"]] for r in records])
    best = detection.best_of_queries(logits, boxes)
    found = detection.post_process(best, sizes)
    np.testing.assert_array_equal(found[0]["labels"], [1, 3, 4, 2])
    np.testing.assert_allclose(found[0]["scores"], np.exp(9) / (np.exp(9) + 5))
    entries = [e for i, d in enumerate(found) for e in detection.to_coco(i, d)]
    np.testing.assert_allclose(entries[5]["bbox"], records[1]["objects"]["boxes_xywh"][1])
    columns, truth = detection.detections(best, sizes), detection.objects(records)
    assert average_precision.evaluate(truth, columns, 5).named()["AP"] == pytest.approx(1)
    # Columns and entries are the same numbers.
    assert columns.image.tolist() == [entry["image_id"] for entry in entries]
    assert columns.boxes_xywh.tolist() == [entry["bbox"] for entry in entries]
    assert columns.labels.tolist() == [entry["category_id"] for entry in entries]
    assert columns.scores.tolist() == [entry["score"] for entry in entries]

    columns.labels[5] = 4  # one wrong class: against pycocotools called by hand
    entries[5]["category_id"] = 4
    coco = COCO()
    coco.dataset = dict(
        images=[dict(id=i) for i in range(3)],
        categories=[dict(id=i) for i in range(5)],
        annotations=[
            dict(id=1 + 4 * i + k, image_id=i, bbox=o["boxes_xywh"][k].astype(np.float32).tolist(),
                 category_id=o["category_ids"][k], area=o["areas"][k], iscrowd=o["iscrowd"][k])
            for i, o in enumerate(record["objects"] for record in records)
            for k in range(4)
        ],
    )  # fmt: skip
    coco.createIndex()
    by_hand = COCOeval(coco, coco.loadRes(entries), "bbox")
    by_hand.evaluate()
    by_hand.accumulate()
    by_hand.summarize()
    ours = average_precision.evaluate(truth, columns, 5)
    assert ours.named()["AP"] == by_hand.stats[0] < 1


def test_the_no_object_class_is_never_predicted_and_attributes_are_plain_maxima():
    logits = np.asarray([[[0.0, 1.0, 5.0]]])
    attributes = np.asarray([[[0.0, 2.5, 1.0]]])
    best = detection.best_of_queries(logits, np.asarray([[[0.5, 0.5, 1.0, 0.5]]]), attributes)
    (found,) = detection.post_process(best, np.asarray([[10, 20]]))
    assert found["labels"] == [1]
    np.testing.assert_allclose(found["scores"], np.exp(1) / (1 + np.exp(1) + np.exp(5)))
    np.testing.assert_allclose(found["boxes"], [[0, 2.5, 20, 7.5]])
    assert found["attr_labels"] == [1] and found["attr_scores"] == [2.5]


def test_accuracy_f1_and_vqa_accuracy_by_hand():
    logits = np.asarray([[2.0, 1.0], [0.0, 1.0], [0.0, 3.0], [1.0, 0.0]])
    predicted, labels = classification.best_labels(logits), np.asarray([0, 1, 0, 1])
    np.testing.assert_array_equal(predicted, [0, 1, 1, 0])
    assert classification.accuracy(predicted, labels) == 0.5
    assert classification.f1(predicted, labels) == pytest.approx(2 * 1 / (2 + 2))
    assert classification.f1(np.asarray([0]), np.asarray([0])) == 0
    answers = np.asarray([[9.0, 1.0, 0.0], [0.0, 0.0, 1.0], [5.0, 0.0, 2.0]])
    scores = np.asarray([[0.0, 0.6, 1.0], [0.0, 1.0, 0.3], [0.0, 1.0, 0.0]])
    predicted = classification.best_answers(answers)
    np.testing.assert_array_equal(predicted, [1, 2, 2])
    for given in (scores, scipy.sparse.csr_matrix(scores)):
        assert classification.vqa_accuracy(predicted, given) == pytest.approx((0.6 + 0.3 + 0) / 3)


def test_majority_takes_the_best_constant_answer_of_the_training_set():
    train = np.asarray([[0, 1, 0], [0, 0.9, 0.3], [0, 0, 1.0], [0, 0, 0.3]])
    np.testing.assert_array_equal(blind.majority(scipy.sparse.csr_matrix(train), 2), [1, 1])


def test_bag_of_words_equals_scikit_learns_regression():
    from sklearn.linear_model import LogisticRegression

    rng = np.random.default_rng(1)
    texts = [rng.integers(0, 12, 6).tolist() for _ in range(200)]
    labels = np.asarray([(3 in t) + (7 in t) for t in texts])
    decay = 1e-3
    found = blind.bag_of_words(texts, np.eye(3)[labels], texts[:50], 12, decay)
    features = np.asarray([[w in t for w in range(12)] + [True] for t in texts], float)
    # its penalty is half the squared norm, and its loss a sum over examples
    by_sklearn = LogisticRegression(
        C=1 / (2 * decay * len(texts)), fit_intercept=False, tol=1e-8, max_iter=1000
    )
    by_sklearn.fit(features, labels)
    probabilities = np.exp(found) / np.exp(found).sum(1, keepdims=True)
    np.testing.assert_allclose(probabilities, by_sklearn.predict_proba(features[:50]), atol=2e-3)
    assert classification.accuracy(found.argmax(-1), labels[:50]) > 0.95
    # word order is all that tells these apart, so nothing is learned
    order = [[1, 2], [2, 1]] * 20
    blank = blind.bag_of_words(order, np.eye(2)[[0, 1] * 20], order, 3)
    np.testing.assert_allclose(blank[:, 0], blank[:, 1], atol=1e-4)


def test_the_report_is_written_as_table_and_as_data(tmp_path, capsys):
    rows = [
        report.Row("coco", "AP", 0.25, 0.0, 0.3899),
        report.Row("coco", "APl", float("nan"), None, None),
        report.Row("sst2", "accuracy", 0.9, 0.5, 0.8922),
    ]
    folder = epath.Path(tmp_path)
    assert not report.show(folder)
    report.write(rows, folder)
    assert json.loads((folder / "report.json").read_text())[1] == dict(
        task="coco", metric="APl", value=None, baseline=None, paper=None
    )
    assert (folder / "report.md").read_text().splitlines()[2:] == [
        "| coco | AP | 0.250 | 0.000 | 0.390 |",
        "| coco | APl | – | – | – |",
        "| sst2 | accuracy | 0.900 | 0.500 | 0.892 |",
    ]
    assert report.show(folder) and "paper" in capsys.readouterr().out
    report.write([dataclasses.replace(row, paper=None) for row in rows], folder)
    assert report.show(folder)
    shown = capsys.readouterr().out
    assert "baseline" in shown and "paper" not in shown
    assert (folder / "report.md").read_text().splitlines()[2] == "| coco | AP | 0.250 | 0.000 |"
    assert json.loads((folder / "report.json").read_text())[0]["paper"] is None
