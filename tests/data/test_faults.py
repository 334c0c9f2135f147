"""One fault at a time in otherwise good files: noted, left out or repaired; training goes on."""

import io
import json

import numpy as np
import PIL.Image
import pytest

from configs import unit
from tests import official_files as official
from tests.data.test_sources import noted, prepared
from unit_jax import run as run_lib
from unit_jax import settings as settings_lib
from unit_jax.data import loader
from unit_jax.outputs.objects.targets import ObjectTargets

NAN = float("nan")


def train_on(data, task: str):
    """Reads training batches of a task until every example was seen; returns them."""
    values = unit.values()
    values["tasks"] = {task: {**values["tasks"][task], "ratio": 1.0}}
    examples = len(data.split(task, "train"))
    values["train"].update(batch_size=1, eval_batch_size=1, steps=2 * examples)
    values["data"].update(
        train_short_sides=(24, 32), train_max_side=96, eval_short_side=32, eval_max_side=96,
        crop_short_sides=(30, 36), crop_min=16, crop_max=30, buckets=((96, 96),),
        num_workers=0, num_threads=1,
    )  # fmt: skip
    settings = run_lib.with_label_counts(settings_lib.from_config(values), data)
    with loader.train_batches(settings, data) as batches:
        found = list(batches)
    assert {int(batch.index[0]) for batch in found} == set(range(examples))
    return found


def check(tmp_path, root, task: str, expected: dict, usual: dict | None = None):
    """Prepares a task; what was noted beyond the usual is `expected`; training on it works."""
    data = prepared(root, tmp_path / "data", task)
    assert noted(data) == {**(usual or {}), **expected}
    for line in (data.data_dir / "problems.jsonl").read_text().splitlines():
        problem = json.loads(line)
        assert problem["place"] and problem["detail"] and len(line) < 1000
    for batch in train_on(data, task):
        if isinstance(batch.targets, ObjectTargets):
            boxes = batch.targets.boxes_cxcywh
            assert np.isfinite(boxes).all() and (0 <= boxes).all() and (boxes <= 1).all()
    return data


# ---- Images -------------------------------------------------------------------------------------

# The small COCO of official_files has two oddities of its own: an object that leaves the image,
# and one without width.
USUAL_IN_COCO = {("box outside", "kept"): 1, ("empty box", "kept"): 1}
WHOLE = official.jpeg((32, 48), 9)


def encoded(image: PIL.Image.Image, kind: str = "JPEG", **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def rotated() -> bytes:
    exif = PIL.Image.Exif()
    exif[PIL.ExifTags.Base.Orientation] = 6  # to be turned by 90 degrees
    return encoded(PIL.Image.open(io.BytesIO(WHOLE)), exif=exif)


def deep() -> PIL.Image.Image:
    return PIL.Image.fromarray(np.linspace(0, 65535, 48 * 32).reshape(48, 32).astype(np.uint16))


HUGE = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR\0\0\x7f\xff\0\0\x7f\xff\x08\x02\0\0\0" + b"\0" * 64
LEFT_OUT = {("broken image", "skipped"): 1, ("missing image", "skipped"): 1}


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        pytest.param(WHOLE[: len(WHOLE) // 2], LEFT_OUT, id="truncated"),
        pytest.param(b"", LEFT_OUT, id="empty"),
        pytest.param(b"<html>404</html>", LEFT_OUT, id="a web page"),
        pytest.param(WHOLE[:200] + b"\0" * 9, LEFT_OUT, id="broken header"),
        pytest.param(HUGE, LEFT_OUT, id="of a billion pixels"),
        pytest.param(None, {("missing image", "skipped"): 1}, id="missing"),
        pytest.param(
            official.jpeg((32, 48), mode="L"), {("colour mode", "kept"): 1}, id="greyscale"
        ),
        pytest.param(official.jpeg((32, 48), mode="CMYK"), {("colour mode", "kept"): 1}, id="CMYK"),
        pytest.param(encoded(deep(), "PNG"), {("bit depth", "repaired"): 1}, id="16 bits"),
        pytest.param(rotated(), {("EXIF orientation", "kept"): 1}, id="EXIF-rotated"),
        pytest.param(
            official.jpeg((33, 47)), {("image size", "repaired"): 1}, id="of another size"
        ),
    ],
)
def test_image(tmp_path, content, expected):
    root = tmp_path / "source"
    official.write_coco(root)
    file = root / "coco/train2017/000000000009.jpg"
    file.unlink()
    if content is not None:
        official.write(file, content)
    data = check(tmp_path, root, "coco", expected, USUAL_IN_COCO)
    ids = [int(record["id"]) for record in data.split("coco", "train")]
    assert ids == ([25, 30, 111] if ("missing image", "skipped") in expected else [9, 25, 30, 111])


def test_a_rotated_images_pixels_count_as_stored(tmp_path):
    root = tmp_path / "source"
    official.write_coco(root)
    official.write(root / "coco/train2017/000000000009.jpg", rotated())
    split = prepared(root, tmp_path / "data", "coco").split("coco", "train")
    assert (split.width[0], split.height[0]) == (32, 48)
    assert split.image(0) == rotated()


def test_sixteen_bits_become_eight_by_their_high_byte(tmp_path):
    root = tmp_path / "source"
    official.write_coco(root)
    official.write(root / "coco/train2017/000000000009.jpg", encoded(deep(), "PNG"))
    split = prepared(root, tmp_path / "data", "coco").split("coco", "train")
    pixels = np.asarray(PIL.Image.open(io.BytesIO(split.image(0))))
    np.testing.assert_array_equal(pixels, np.round(np.asarray(deep()) / 257).astype(np.uint8))


# ---- Objects ------------------------------------------------------------------------------------

GOOD = {"id": 7, "image_id": 9, "bbox": [1, 1, 2, 2], "category_id": 1, "iscrowd": 0, "area": 4}
KEPT = [[2, 2, 8, 8], [1, 1, 2, 2]]  # image 9's own object, and a good one more
ALONE = [[2, 2, 8, 8]]


@pytest.mark.parametrize(
    ("entry", "expected", "boxes"),
    [
        ({**GOOD, "bbox": [1, 1, NAN, 2]}, ("bad box", "skipped"), ALONE),
        ({**GOOD, "bbox": [NAN, 1, 2, 2]}, ("bad box", "skipped"), ALONE),
        ({**GOOD, "bbox": [1, 1, 2, float("inf")]}, ("bad box", "skipped"), ALONE),
        ({**GOOD, "bbox": [10**400, 1, 2, 2]}, ("bad box", "skipped"), ALONE),
        ({**GOOD, "bbox": [1, 1, -3, 2]}, ("bad box", "skipped"), ALONE),
        ({**GOOD, "bbox": [1, 1, 3]}, ("bad box", "skipped"), ALONE),
        ({**GOOD, "bbox": "1113"}, ("bad box", "skipped"), ALONE),
        ({**GOOD, "bbox": None}, ("bad box", "skipped"), ALONE),
        ({**GOOD, "bbox": [1, 1, 0, 2]}, ("empty box", "kept"), [*ALONE, [1, 1, 0, 2]]),
        ({**GOOD, "bbox": [-5, 1, 20, 4]}, ("box outside", "kept"), [*ALONE, [-5, 1, 20, 4]]),
        ({**GOOD, "bbox": [90, 90, 5, 5]}, ("box outside", "kept"), [*ALONE, [90, 90, 5, 5]]),
        ({**GOOD, "category_id": 2}, ("unknown category", "skipped"), ALONE),
        ({**GOOD, "category_id": "cat"}, ("unknown category", "skipped"), ALONE),
        ({**GOOD, "image_id": 12345}, ("unknown image", "skipped"), ALONE),
        ({**GOOD, "id": None}, ("bad id", "skipped"), ALONE),
        ({**GOOD, "area": NAN}, None, KEPT),
        ("no object", ("bad entry", "skipped"), ALONE),
    ],
)
def test_object(tmp_path, entry, expected, boxes):
    root = tmp_path / "source"
    official.write_coco(root)
    path = root / "coco/annotations/instances_train2017.json"
    content = json.loads(path.read_text())
    content["annotations"].append(entry)
    official.write(path, content)
    usual = dict(USUAL_IN_COCO)
    if expected is not None:
        usual[expected] = usual.get(expected, 0) + 1
    data = check(tmp_path, root, "coco", usual)
    record = data.split("coco", "train")[0]
    assert record["objects"]["boxes_xywh"].tolist() == boxes
    assert np.isfinite(record["objects"]["areas"]).all()


@pytest.mark.parametrize("key", ["images", "annotations"])
def test_duplicate_ids(tmp_path, key):
    root = tmp_path / "source"
    official.write_coco(root)
    path = root / "coco/annotations/instances_train2017.json"
    content = json.loads(path.read_text())
    content[key].append(content[key][0])
    official.write(path, content)
    data = check(tmp_path, root, "coco", {("duplicate id", "skipped"): 1}, USUAL_IN_COCO)
    assert [len(r["objects"]["boxes_xywh"]) for r in data.split("coco", "train")] == [1, 2, 0, 3]


@pytest.mark.parametrize("ids", [[1] * 17, "red", [1.5], [2**40], [-2]])
def test_attributes(tmp_path, ids):
    root = tmp_path / "source"
    official.write_visual_genome(root)
    path = root / "visual_genome/annotations/instances_train_split_by_coco_2017.json"
    content = json.loads(path.read_text())
    content["annotations"][0]["attribute_ids_max16"] = ids
    official.write(path, content)
    data = check(tmp_path, root, "visual_genome", {("bad attributes", "skipped"): 1})
    assert data.num_attributes("visual_genome") == 7


# ---- Questions ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "expected", "left"),
    [
        ({"question": "  "}, ("empty text", "skipped"), 3),
        ({"question": None}, ("empty text", "skipped"), 3),
        ({"question": "x" * 10_000_000}, ("long text", "repaired"), 4),
        ({"question": "half \ud83d a face"}, ("not UTF-8", "repaired"), 4),
        ({"image_id": 5}, ("missing image", "skipped"), 3),
        ({"image_id": [5]}, ("missing image", "skipped"), 3),
        ({"question_id": 111000}, ("duplicate id", "skipped"), 3),
        ({"question_id": 404}, ("no answers", "skipped"), 3),
    ],
)
def test_question(tmp_path, change, expected, left):
    root = official.write_world(tmp_path / "source")
    path = root / "vqa2/v2_OpenEnded_mscoco_train2014_questions.json"
    questions = json.loads(path.read_text())["questions"]
    questions[0] |= change
    official.write(path, {"questions": questions})
    data = check(tmp_path, root, "vqa2", {expected: 1})
    split = data.split("vqa2", "train")
    assert len(split) == left and max(len(record["text"]) for record in split) <= 10_000


@pytest.mark.parametrize(
    ("answers", "expected"),
    [
        (None, {("no answers", "skipped"): 1}),
        (3, {("no answers", "skipped"): 1}),
        ([{"answer": None}, 5], {("no answers", "skipped"): 1}),
        ([{"answer": "y" * 10_000_000}], {}),
        (["half \ud83d"], {("not UTF-8", "repaired"): 1}),
    ],
)
def test_answers(tmp_path, answers, expected):
    root = official.write_world(tmp_path / "source")
    path = root / "vqa2/v2_mscoco_train2014_annotations.json"
    annotations = json.loads(path.read_text())["annotations"]
    annotations[0] |= {"answers": answers}
    official.write(path, {"annotations": annotations})
    check(tmp_path, root, "vqa2", expected)


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ('{"Flikr30kID": "77.jpg", "sentence2": "a", "gold_label": "-"}', "unknown label"),
        ('{"Flikr30kID": "77.jpg", "sentence2": "a", "gold_label": [1]}', "unknown label"),
        ('{"Flikr30kID": "99.jpg", "sentence2": "a", "gold_label": "neutral"}', "missing image"),
        ('{"Flikr30kID": "77.jpg", "sentence2": "", "gold_label": "neutral"}', "empty text"),
        ("{", "bad entry"),
        ("[]", "bad entry"),
    ],
)
def test_hypothesis(tmp_path, line, expected):
    root = official.write_world(tmp_path / "source")
    with open(root / "snli_ve/snli_ve_train.jsonl", "a") as file:
        file.write(line + "\n")
    data = check(tmp_path, root, "snli_ve", {(expected, "skipped"): 1})
    assert len(data.split("snli_ve", "train")) == 3


@pytest.mark.parametrize(
    ("line", "expected", "left"),
    [
        (b"1\t2\t3\tincomplete", ("incomplete row", "skipped"), 2),
        (b"2\t2\t3\ta\tb\tmaybe", ("unknown label", "skipped"), 2),
        (b"3\t2\t3\tcaf\xe9\tb\t1\r", ("not UTF-8", "repaired"), 3),
        (b"4\t2\t3\t" + b"x" * 10_000_000 + b"\tb\t1", ("long text", "repaired"), 3),
    ],
)
def test_pair_of_texts(tmp_path, line, expected, left):
    root = official.write_world(tmp_path / "source")
    with open(root / "glue/QQP/train.tsv", "ab") as file:
        file.write(line + b"\n")
    usual = {("empty text", "kept"): 1}  # as Hugging Face's reader keeps it
    data = check(tmp_path, root, "qqp", {expected: 1}, usual)
    assert len(data.split("qqp", "train")) == left


# ---- Too many -----------------------------------------------------------------------------------


def test_too_many_faults_are_an_error(tmp_path):
    root = tmp_path / "source"
    official.write_coco(root)
    for file in (root / "coco/train2017").iterdir():
        file.write_bytes(b"")
    with pytest.raises(ValueError, match=r"more than 3 faults .*4 x broken image.*--max_problems"):
        prepared(root, tmp_path / "data", "coco", max_problems=3)
    assert (tmp_path / "data/problems.jsonl").read_text().count("broken image") == 4
    with pytest.raises(ValueError, match="coco: no usable example in train"):
        prepared(root, tmp_path / "data", "coco", max_problems=100)
