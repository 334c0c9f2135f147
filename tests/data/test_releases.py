"""The releases' other forms, and how much of a release there must be."""

import dataclasses
import json
import struct

import numpy as np
import pytest
import tensorflow_datasets as tfds
from tqdm import tqdm

from tests import official_files as official
from tests.data.test_sources import noted, prepared
from unit_jax.data import prepare
from unit_jax.data.sources import base, coco, glue, images
from unit_jax.data.sources import visual_genome as vg

# ---- Visual Genome as published -----------------------------------------------------------------


def described(number: int, name: str, *attributes: str, box=(1, 2, 5, 6)) -> dict:
    entry = {"object_id": number, **dict(zip("xywh", box, strict=True)), "names": [name]}
    return {**entry, "attributes": list(attributes)} if attributes else entry


RAW_OBJECTS = [
    {
        "image_id": 2,
        "objects": [
            described(20, "Trees.", "very tall", "Red and white ", "unknown"),
            described(21, "white car", "red"),
            described(22, "spaceship"),
            described(23, "sky", "black and white"),
            described(24, "tall ship"),
        ],
    },
    {"image_id": 1159296, "objects": []},
    {"image_id": 5, "objects": [described(50, "white", "red"), described(51, "car")]},
]
RAW_IMAGES = [
    {"image_id": 2, "width": 30, "height": 20, "coco_id": None},
    {"image_id": 1159296, "width": 20, "height": 30, "coco_id": 111},
    {"image_id": 5, "width": 22, "height": 22, "coco_id": 139},  # COCO 2017 validates on 139
]


@pytest.fixture
def raw(tmp_path):
    root = tmp_path / "source"
    official.write_coco(root)
    official.write_raw_visual_genome(root, RAW_OBJECTS, RAW_IMAGES)
    return root


def test_visual_genome_from_its_release(raw, tmp_path):
    data = prepared(raw, tmp_path / "data", "visual_genome")
    assert [int(r["id"]) for r in data.split("visual_genome", "train")] == [2, 1159296]
    assert [int(r["id"]) for r in data.split("visual_genome", "val")] == [5]
    first, second = data.split("visual_genome", "train")
    assert first["objects"]["category_ids"].tolist() == [1, 3, 2]
    assert first["objects"]["boxes_xywh"].tolist() == [[1, 2, 5, 6]] * 3
    assert [[n for n in slots if n >= 0] for slots in first["objects"]["attributes"].tolist()] == [
        [4, 1, 2],
        [2, 1],
        [3],
    ]
    assert len(second["objects"]["boxes_xywh"]) == 0
    assert data.split("visual_genome", "val")[0]["objects"]["category_ids"].tolist() == [3]
    assert data.label_names("visual_genome") == ["", "tree", "sky", "car"]
    assert data.attribute_names("visual_genome") == ["", "red", "white", "black and white", "tall"]
    assert (data.num_labels("visual_genome"), data.num_attributes("visual_genome")) == (4, 5)
    assert noted(data) == {}


def test_an_object_keeps_sixteen_attributes(tmp_path):
    names = "".join(f"a{n}\n" for n in range(20))
    root = tmp_path / "source"
    official.write_coco(root)
    objects = [{"image_id": 2, "objects": [described(1, "car", *(f"A{n}" for n in range(20)))]}]
    objects.append({"image_id": 5, "objects": [described(2, "car", "a3", "A3", "a1")]})
    official.write_raw_visual_genome(root, objects, RAW_IMAGES)
    official.write(root / vg.ATTRIBUTE_NAMES, names)
    data = prepared(root, tmp_path / "data", "visual_genome")
    assert data.split("visual_genome", "train")[0]["objects"]["attributes"].tolist() == [
        [*range(1, 17)]
    ]
    assert data.split("visual_genome", "val")[0]["objects"]["attributes"].tolist() == [
        [4, 2] + [-1] * 14
    ]


def test_faults_in_the_release_of_visual_genome(raw, tmp_path):
    objects = json.loads((raw / vg.OBJECTS).read_text())
    objects += ["no object", {"image_id": 2, "objects": 3}]
    objects += [{"image_id": 77, "objects": [described(70, "car")]}]
    objects[0]["objects"] += [described(25, "car", box=(1, 1, -4, 4)), described(20, "car"), 8]
    objects[0]["objects"] += [{"object_id": 26, "names": "car"}, {"object_id": 27, "names": [7]}]
    official.write(raw / vg.OBJECTS, json.dumps(objects))
    described_too = json.loads((raw / vg.ATTRIBUTES).read_text())
    described_too[0]["attributes"][0]["attributes"] = 9
    official.write(raw / vg.ATTRIBUTES, json.dumps(described_too))
    data = prepared(raw, tmp_path / "data", "visual_genome")
    assert noted(data) == {
        ("bad entry", "skipped"): 3,
        ("bad box", "skipped"): 1,
        ("unknown image", "skipped"): 1,
        ("duplicate id", "skipped"): 1,
    }
    assert data.split("visual_genome", "train")[0]["objects"]["category_ids"].tolist() == [1, 3, 2]


def test_the_references_annotations_come_first(raw, tmp_path):
    official.write_visual_genome(raw)
    data = prepared(raw, tmp_path / "data", "visual_genome")
    assert data.num_attributes("visual_genome") == 7


# ---- Visual Genome's questions ------------------------------------------------------------------


def write_pairs(root, karpathy: dict[int, str] | None):
    def pair(number, image, question="What?", answer="A cat."):
        return {"qa_id": number, "image_id": image, "question": question, "answer": answer}

    pairs = [
        {"id": 1, "qas": [pair(111000, 1), pair(11, 1, "Who?", "Tom."), pair(12, 1, "", "No.")]},
        {"id": 2, "qas": [pair(21, 2), pair(11, 2, "Twice?")]},
        {"id": 3, "qas": [pair(31, 3)]},
        {"id": 4, "qas": [pair(41, 4)]},
        {"id": 5, "qas": [pair(51, 5, answer=None)]},
    ]
    coco_ids = {1: 111, 2: 9, 3: 8, 4: None, 5: 25}  # 8 is in val2017
    official.write(root / "visual_genome/question_answers.json", json.dumps(pairs))
    listed = [{"image_id": k, "coco_id": v, "width": 9, "height": 9} for k, v in coco_ids.items()]
    official.write(root / "visual_genome/image_data.json", json.dumps(listed))
    if karpathy is not None:
        entries = [{"cocoid": image, "split": part} for image, part in karpathy.items()]
        official.write(root / "vqa2/dataset_coco.json", {"images": entries})


def prepare_pairs(tmp_path, karpathy):
    root = official.write_world(tmp_path / "source")
    write_pairs(root, karpathy)
    data = prepared(root, tmp_path / "data", "vqa2")
    records = [r for r in data.split("vqa2", "train") if int(r["id"]) < 0]
    (note,) = data.manifest["datasets"]["vqa2"]["notes"]
    return data, [(int(r["id"]), r["text"], r["answers"]) for r in records], note


def test_visual_genome_questions_of_karpathys_parts(tmp_path):
    parts = {111: "restval", 9: "val", 8: "train", 25: "test"}
    data, records, note = prepare_pairs(tmp_path, parts)
    assert records == [(-111000, "What?", ["A cat"]), (-11, "Who?", ["Tom"])]
    assert note.startswith("2 of Visual Genome's 8 question-answer pairs are trained on: those on")
    assert [int(r["id"]) for r in data.split("vqa2", "val")] == [8000, 139000]
    assert noted(data)["empty text", "skipped"] == 2  # a question and an answer
    row = [int(r["id"]) for r in data.split("vqa2", "train")].index(-11)
    assert data.split("vqa2", "train").image(row) == official.jpeg((40, 30), 111)


def test_visual_genome_questions_without_karpathys_file(tmp_path):
    data, records, note = prepare_pairs(tmp_path, None)
    assert [r[0] for r in records] == [-111000, -21, -11]
    assert "all on COCO images outside val2017" in note and "dataset_coco.json is not given" in note
    assert noted(data)["duplicate id", "skipped"] == 1


def test_pairs_need_the_images_coco_ids(tmp_path):
    root = official.write_world(tmp_path / "source")
    write_pairs(root, None)
    (root / "visual_genome/image_data.json").unlink()
    with pytest.raises(ValueError, match="vqa2: .*image_data.json"):
        prepared(root, tmp_path / "data", "vqa2")


# ---- GLUE as TFDS prepares it -------------------------------------------------------------------


def write_copy(root, source):
    """What tfds.load("glue/...") leaves on disk, of another content."""
    features = {name: tfds.features.Text() for name in source.tfds_texts if name}
    features |= {"label": tfds.features.ClassLabel(num_classes=3), "idx": np.int32}

    def example(split, n):
        texts = dict.fromkeys(source.tfds_texts, "b") | {source.tfds_texts[0]: f"{split} {n} é"}
        label = -1 if split.startswith("test") else n % 2
        return {name: texts[name] for name in features if name in texts} | {
            "label": label,
            "idx": n,
        }

    splits = {
        name: base.Items([example(name, n) for n in range(3)], tqdm(disable=True))
        for _, name in source.parts.values()
    }
    folder = root / "glue"
    base.RecordBuilder(source.tfds_config, "2.0.0", folder, features, splits, shard_size=2).write()
    return folder / source.tfds_config / "2.0.0"


@pytest.mark.parametrize("file_format", ["array_record", "tfrecord"])
@pytest.mark.parametrize("source", [glue.Mnli, glue.Sst2])
def test_glue_from_the_copy_of_tfds(tmp_path, source, file_format):
    root = tmp_path / "source"
    official.write(root / "vocab.txt", "\n".join(official.VOCABULARY))
    copy = write_copy(root, source)
    if file_format == "tfrecord":
        to_tfrecord(copy)
    data = prepared(root, tmp_path / "data", source.name)
    assert set(data.splits(source.name)) == set(source.parts)
    for split, (_, name) in source.parts.items():
        rows = {r["id"]: (r["text"], r["label"]) for r in data.split(source.name, split)}
        test = split.startswith("test")
        assert rows == {str(n): (f"{name} {n} é", -1 if test else n % 2) for n in range(3)}
        assert data.split(source.name, split).labelled != test


def to_tfrecord(copy):
    """Rewrites a prepared folder in TFDS's default format (writing that needs TensorFlow)."""
    from array_record.python import array_record_module

    for path in copy.glob("*.array_record*"):
        reader = array_record_module.ArrayRecordReader(str(path))
        content = b"".join(
            struct.pack("<Q", len(record)) + b"sum!" + record + b"sum!"
            for record in (reader.read([n])[0] for n in range(reader.num_records()))
        )
        path.with_name(path.name.replace("array_record", "tfrecord")).write_bytes(content)
        path.unlink()
    info = copy / "dataset_info.json"
    info.write_text(info.read_text().replace("array_record", "tfrecord"))


# ---- How much there must be ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("coco", r"images_coco .*images in coco/train2017: 4 of 118,287; .*val2017: 2 of 5,000"),
        ("snli_ve", r"images_flickr30k .*flickr30k_images: 3 of 31,783"),
        ("visual_genome", r"images_visual_genome .*VG_100K and .*VG_100K_2: 3 of 108,249"),
        ("mnli", r"mnli .*train: 2 of 392,702; val: 1 of 9,832; val_matched: 1 of 9,815"),
        ("sst2", r"sst2 is not what was published .*train: 2 of 67,349.*--allow_partial"),
    ],
)
def test_another_number_than_was_published_is_an_error(tmp_path, name, message):
    root = official.write_world(tmp_path / "source")
    with pytest.raises(ValueError, match=message):
        prepared(root, tmp_path / "data", name, allow_partial=False)


def test_annotations_are_counted_too(tmp_path, monkeypatch):
    """With all the images there, what the annotation files list is compared."""
    root = official.write_world(tmp_path / "source")
    write_pairs(root, None)
    official.write_raw_visual_genome(root, RAW_OBJECTS, RAW_IMAGES)
    for split in ("train", "val"):
        (root / vg.VisualGenome.annotations[split]).unlink()
    for name, family in images.FAMILIES.items():
        monkeypatch.setitem(images.FAMILIES, name, dataclasses.replace(family, published=()))
    for name, message in {
        "coco": "train images: 4 of 118,287; train objects: 6 of 860,001; val images: 2 of 5,000",
        "vqa2": "train2014 questions: 4 of 443,757; .*Visual Genome pairs: 8 of 1,445,322",
        "snli_ve": "train: 3 of 529,527; val: 1 of 17,858; test: 1 of 17,901",
        "visual_genome": "described images: 3 of 108,077; class names: 3 of 1,600; attribute names",
    }.items():
        with pytest.raises(ValueError, match=message):
            prepared(root, tmp_path / "data", name, allow_partial=False)


def test_a_part_is_marked(tmp_path, monkeypatch):
    root = tmp_path / "source"
    official.write_coco(root)
    data = prepared(root, tmp_path / "data", "coco")
    assert data.manifest["datasets"]["images_coco"]["partial"] == [
        "images in coco/train2017: 4 of 118,287",
        "images in coco/val2017: 2 of 5,000",
    ]
    assert "train images: 4 of 118,287" in data.manifest["datasets"]["coco"]["partial"]
    monkeypatch.setattr(coco.Coco, "published", {"train images": 4, "test images": 7})
    rows = prepare.prepare(root, tmp_path / "data", ["coco"], official.settings(overwrite=True))
    assert [len(row.partial) for row in rows] == [2, 0]  # there is no test file to compare


def test_the_demo_is_whole(tmp_path):
    root = official.write_world(tmp_path / "source")
    official.write(root / "demo.json", {})
    data = prepared(root, tmp_path / "data", "coco", "sst2", allow_partial=False)
    assert not any(entry["partial"] for entry in data.manifest["datasets"].values())
