"""Official files against what is read back: independent parsing, and files with faults."""

import collections
import json
import warnings

import numpy as np
import PIL.Image
import pytest
import tensorflow_datasets as tfds

from tests import official_files as official
from unit_jax.data import prepare
from unit_jax.data.prepared import PreparedData, Records
from unit_jax.data.sources import base

QUIET = official.settings()


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return official.write_world(tmp_path_factory.mktemp("official"))


@pytest.fixture(scope="module")
def data(source, tmp_path_factory):
    data_dir = tmp_path_factory.mktemp("prepared")
    prepare.prepare(source, data_dir, settings=QUIET)
    return PreparedData(data_dir, prepare.SOURCES)


def prepared(source, data_dir, *names, **settings):
    """Prepares some data sets and opens them."""
    prepare.prepare(source, data_dir, names, official.settings(**settings))
    return PreparedData(data_dir, names)


def noted(data):
    """(kind, action) of every problem of a data folder, with their number."""
    lines = (data.data_dir / "problems.jsonl").read_text().splitlines()
    return collections.Counter((p["kind"], p["action"]) for p in map(json.loads, lines))


# ---- Each family against independent parsing ----------------------------------------------------


@pytest.mark.parametrize("split", ["train", "val"])
def test_coco_records_are_what_pycocotools_reads(data, source, split, capsys):
    import pycocotools.coco

    truth = pycocotools.coco.COCO(source / f"coco/annotations/instances_{split}2017.json")
    records = data.split("coco", split)
    assert [int(r["id"]) for r in records] == sorted(truth.getImgIds())
    for row, record in enumerate(records):
        annotations = truth.loadAnns(truth.getAnnIds([int(record["id"])]))
        boxes = np.array([a["bbox"] for a in annotations], np.float32).reshape(-1, 4)
        order, true_order = np.lexsort(record["objects"]["boxes_xywh"].T), np.lexsort(boxes.T)
        np.testing.assert_array_equal(record["objects"]["boxes_xywh"][order], boxes[true_order])
        for key, name in (("category_ids", "category_id"), ("iscrowd", "iscrowd")):
            values = np.array([a[name] for a in annotations]).reshape(-1)
            np.testing.assert_array_equal(record["objects"][key][order], values[true_order])
        areas = np.array([a["area"] for a in annotations], np.float32)
        np.testing.assert_array_equal(record["objects"]["areas"][order], areas[true_order])
        assert record["objects"]["attributes"].shape == (len(boxes), 16)
        assert (record["objects"]["attributes"] == -1).all()
        file = source / f"coco/{split}2017" / f"{int(record['id']):012d}.jpg"
        assert records.image(row) == file.read_bytes()
        assert PIL.Image.open(file).size == (record["width"], record["height"])


def test_coco_labels_are_raw_category_ids(data):
    assert data.num_labels("coco") == 91
    names = data.label_names("coco")
    assert (names[1], names[2], names[3], names[90]) == ("person", "", "car", "toothbrush")
    assert data.num_attributes("coco") == 0


def test_objects_that_training_keeps(data):
    split = data.split("coco", "train")
    # Images 9, 25, 30, 111: one object; one of two (the other has no width); none; two and a crowd.
    assert split.num_objects.tolist() == [1, 1, 0, 2]
    assert data.max_objects("coco") == 2


def test_visual_genome_with_attributes(data, source):
    split = data.split("visual_genome", "train")
    first, second = split
    assert (int(first["id"]), int(second["id"])) == (2, 1159296)
    assert first["objects"]["attributes"].tolist() == [[4, 2] + [-1] * 14]
    assert (second["objects"]["attributes"] == -1).all()
    folder = source / "visual_genome"
    assert split.image(1) == (folder / "VG_100K_2/1159296.jpg").read_bytes()
    assert data.num_labels("visual_genome") == 3
    assert data.num_attributes("visual_genome") == 7  # the largest id in the list is 6
    assert data.attribute_names("visual_genome") == ["", "red", "", "", "", "", "tall"]


def test_vqa2_is_split_by_coco_2017(data):
    val_images = official.COCO_IMAGES["val"]
    asked = [row for rows in official.vqa2_questions().values() for row in rows]
    for name in ("train", "val"):
        expected = sorted(row for row in asked if (row[1] in val_images) == (name == "val"))
        records = list(data.split("vqa2", name))
        assert [int(r["id"]) for r in records] == [row[0] for row in expected]
        assert [r["text"] for r in records] == [row[2] for row in expected]
        assert [r["answers"] for r in records] == [row[3] for row in expected]
        for record, row in zip(records, expected, strict=True):
            size = {**official.COCO_IMAGES["train"], **val_images}[row[1]]
            assert (record["width"], record["height"]) == size


def test_vqa2_and_coco_share_one_image_store(data):
    vqa2, train = data.split("vqa2", "train"), data.split("coco", "train")
    assert vqa2.images is train.images
    rows = {int(record["id"]): record["image_row"] for record in train}
    assert [r["image_row"] for r in vqa2] == [rows[9], rows[25], rows[111], rows[111]]
    assert vqa2.image(0) == train.image(0)


def test_given_answer_list_gets_the_unknown_answer_in_front(data):
    assert data.label_names("vqa2") == ["<unk>", "yes", "red", "cat"]
    assert data.num_labels("vqa2") == 4


@pytest.mark.parametrize(
    ("options", "expected"),
    [  # in training yes is the answer of two questions, red and cat of one each
        (base.Options(min_answer_count=1), ["<unk>", "yes", "cat", "red"]),
        (base.Options(min_answer_count=2), ["<unk>", "yes"]),
        (base.Options(min_answer_count=1, max_answers=3), ["<unk>", "yes", "cat"]),
    ],
)
def test_built_answer_list(tmp_path, options, expected):
    root = official.write_world(tmp_path / "source")
    (root / "vqa2/answers_vqa.txt").unlink()
    data = prepared(root, tmp_path / "data", "vqa2", options=options)
    assert data.label_names("vqa2") == expected


def test_no_answer_is_frequent_enough(tmp_path):
    root = official.write_world(tmp_path / "source")
    (root / "vqa2/answers_vqa.txt").unlink()
    with pytest.raises(ValueError, match=r"--min_answer_count \(9\)"):
        prepared(root, tmp_path / "data", "vqa2")


def test_vqa2_images_under_their_names_of_2014(source, tmp_path):
    official.write_coco(tmp_path / "2017")
    root = tmp_path / "2014"
    official.write_vqa2(root)
    official.write(root / "vocab.txt", (source / "vocab.txt").read_bytes())
    name = "coco/annotations/instances_val2017.json"
    official.write(root / name, (tmp_path / "2017" / name).read_bytes())
    for image_id in (111, 25, 8):
        content = official.jpeg((50, 40), image_id)
        official.write(root / f"coco/train2014/COCO_train2014_{image_id:012d}.jpg", content)
    for image_id in (9, 139):
        content = official.jpeg((60, 40), image_id)
        official.write(root / f"coco/val2014/COCO_val2014_{image_id:012d}.jpg", content)
    data = prepared(root, tmp_path / "data", "vqa2")
    split = data.split("vqa2", "train")
    assert [int(r["id"]) for r in split] == [9000, 25000, 111000, 111001]
    assert split.image(0) == official.jpeg((60, 40), 9)
    assert split.width.tolist() == [60, 50, 50, 50]


def test_snli_ve(data):
    labels = {"entailment": 0, "neutral": 1, "contradiction": 2}
    for name, part in (("train", "train"), ("val", "dev"), ("test", "test")):
        lines = official.snli_ve_lines()[part]
        split = data.split("snli_ve", name)
        assert [r["text"] for r in split] == [line["sentence2"] for line in lines]
        assert [r["label"] for r in split] == [labels[line["gold_label"]] for line in lines]
        assert [r["id"] for r in split] == [line["pairID"] for line in lines]
        for row, line in enumerate(lines):
            image = int(line["Flikr30kID"].removesuffix(".jpg"))
            assert split.image(row) == official.jpeg((20 + image % 7, 25), image)


@pytest.mark.parametrize(
    ("task", "split", "file", "columns"),
    [
        ("qnli", "train", "QNLI/train.tsv", ("index", "question", "sentence", "label")),
        ("mnli", "train", "MNLI/train.tsv", ("index", "sentence1", "sentence2", "gold_label")),
        (
            "mnli",
            "val",
            "MNLI/dev_mismatched.tsv",
            ("index", "sentence1", "sentence2", "gold_label"),
        ),
        (
            "mnli",
            "val_matched",
            "MNLI/dev_matched.tsv",
            ("index", "sentence1", "sentence2", "gold_label"),
        ),
        ("qqp", "train", "QQP/train.tsv", ("id", "question1", "question2", "is_duplicate")),
        ("sst2", "train", "SST-2/train.tsv", (None, "sentence", None, "label")),
        ("sst2", "val", "SST-2/dev.tsv", (None, "sentence", None, "label")),
    ],
)
def test_glue_against_splitting_at_tabs(data, task, split, file, columns):
    numbers = {
        "qnli": {"entailment": 0, "not_entailment": 1},
        "mnli": {"entailment": 0, "neutral": 1, "contradiction": 2},
        "qqp": {"0": 0, "1": 1},
        "sst2": {"0": 0, "1": 1},
    }[task]
    header, *rows = official.GLUE_FILES[file]
    records = list(data.split(task, split))
    assert len(records) == len(rows)
    for number, (record, row) in enumerate(zip(records, rows, strict=True)):
        values = [row[header.index(name)] if name else "" for name in columns]
        assert record["id"] == (values[0] or str(number))
        assert (record["text"], record["text_b"]) == (values[1], values[2])
        assert record["label"] == numbers[values[3]]


def test_test_split_without_labels(data):
    split = data.split("qnli", "test")
    assert not split.labelled
    assert [(r["id"], r["text"], r["label"]) for r in split] == [
        ("3", "a", -1),
        ("4", "c", -1),
    ]
    assert data.split("qnli", "val").labelled


def test_coco_test_images_come_after_all_others(data, source, tmp_path):
    """A folder that is added later changes no row of the store."""
    root = tmp_path / "source"
    official.write_coco(root)
    official.write(root / "coco/test2017/000000000001.jpg", official.jpeg((33, 44)))
    entry = {"id": 1, "file_name": "000000000001.jpg", "width": 33, "height": 44}
    categories = [{"id": 1, "name": "person"}]
    path = root / "coco/annotations/image_info_test-dev2017.json"
    official.write(path, {"images": [entry], "categories": categories})
    more = prepared(root, tmp_path / "data", "coco")
    test = more.split("coco", "test")
    assert not test.labelled
    assert (test[0]["image_row"], test[0]["width"], len(test[0]["objects"]["boxes_xywh"])) == (
        6,
        33,
        0,
    )
    for name in ("train", "val"):
        np.testing.assert_array_equal(
            more.split("coco", name).image_row, data.split("coco", name).image_row
        )


# ---- Files that are something else ---------------------------------------------------------------


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("coco/annotations/instances_val2017.json", '{"images": [', "no complete JSON file"),
        ("coco/annotations/instances_val2017.json", "[]", "holds a list"),
        ("coco/annotations/instances_val2017.json", "{}", "no list 'images'"),
        ("glue/QNLI/dev.tsv", "question\tlabel\n", "has no column sentence"),
        ("vqa2/answers_vqa.txt", "yes\nno\nyes\n", "lists answers twice: yes"),
    ],
)
def test_files_that_are_something_else(tmp_path, file, content, message):
    root = official.write_world(tmp_path / "source")
    official.write(root / file, content)
    name = {"coco": "coco", "glue": "qnli", "vqa2": "vqa2"}[file.split("/")[0]]
    with pytest.raises(ValueError, match=message):
        prepared(root, tmp_path / "data", name)


# ---- The builder --------------------------------------------------------------------------------


def test_order_survives_many_shards_and_left_out_items(tmp_path):
    class Odd(base.Items):
        def __init__(self, count):
            super().__init__(list(range(count)), _NoBar(), self._records)

        def _records(self, items):
            return ({"number": n, "text": str(n)} for n in items if n % 2 or n > 20)

    features = {"number": np.int64, "text": tfds.features.Text()}
    builder = base.RecordBuilder("odd", "2.0.1", tmp_path, features, {"train": Odd(25)}, 5)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        builder.write()
    expected = [n for n in range(25) if n % 2 or n > 20]
    records = Records(tmp_path / "odd/2.0.1", "train", len(expected))
    assert records.stored_count() == len(expected)
    assert [r["number"] for r in records] == expected
    assert [r["text"].decode() for r in records] == [str(n) for n in expected]
    assert len(list((tmp_path / "odd/2.0.1").glob("*array_record*"))) == 5


class _NoBar:
    def update(self):
        pass
