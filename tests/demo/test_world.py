"""The demo world's files: the official formats, counts, and what the seed decides."""

import csv
import dataclasses
import hashlib
import json
import os
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from tokenizers import BertWordPieceTokenizer

import unit_jax
from tests import ROOT
from unit_jax.demo import glue, pairs, world
from unit_jax.demo.scenes import (
    COLORS,
    SHAPES,
    SIZES,
    TEXTURES,
)

SMALL = world.DemoSettings(seed=3, scale=0.02)
FULL = world.DemoSettings()


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("demo")
    assert world.generate(path, SMALL)
    return path


def digest(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def test_same_seed_gives_the_same_bytes_in_another_process(folder, tmp_path):
    command = [sys.executable, "tools/make_demo_data.py", "--output", tmp_path]
    command += ["--seed", "3", "--scale", "0.02"]
    # Another hash seed too: no order may depend on a set's.
    environment = os.environ | {"PYTHONPATH": str(ROOT), "PYTHONHASHSEED": "17"}
    subprocess.run(command, check=True, capture_output=True, cwd=ROOT, env=environment)
    assert digest(tmp_path) == digest(folder)


def test_another_seed_gives_other_pictures_and_texts(folder, tmp_path):
    world.generate(tmp_path, dataclasses.replace(SMALL, seed=4))
    ours, other = digest(folder), digest(tmp_path)
    changed = [name for name in ours.keys() & other.keys() if ours[name] != other[name]]
    unchanged = ours.keys() & other.keys() - set(changed)
    assert unchanged <= {"vocab.txt", "vqa2/answers_vqa.txt"}


def test_a_finished_demo_stays_and_other_settings_are_refused(folder):
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    assert not world.generate(folder, SMALL)
    assert before == {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    with pytest.raises(ValueError, match="other settings"):
        world.generate(folder, dataclasses.replace(SMALL, seed=4))
    with pytest.raises(ValueError, match="scale"):
        world.generate(folder / "new", dataclasses.replace(SMALL, scale=0.0))


def test_counts_follow_the_settings(folder):
    for split, name in enumerate(("train2017", "val2017", "test2017")):
        assert len(list((folder / "coco" / name).glob("*.jpg"))) == SMALL.count("coco", split)
    flickr = list((folder / "flickr30k" / "flickr30k_images").glob("*.jpg"))
    assert len(flickr) == sum(SMALL.count("flickr30k", split) for split in range(3))
    assert SMALL.count("coco", 0) == 0.02 * FULL.coco[0]
    assert dataclasses.replace(SMALL, scale=1e-9).count("coco", 0) == 1


@pytest.mark.parametrize(
    "annotations, images",
    [
        ("coco/annotations/instances_train2017.json", "coco/train2017"),
        ("coco/annotations/instances_val2017.json", "coco/val2017"),
        ("visual_genome/annotations/instances_train_split_by_coco_2017.json", "visual_genome"),
        ("visual_genome/annotations/instances_val_split_by_coco_2017.json", "visual_genome"),
    ],
)
def test_detection_files_are_coco(folder, annotations, images):
    coco = COCO(folder / annotations)
    names = {category["name"] for category in coco.cats.values()}
    assert len(names) == len(SHAPES)
    for image in coco.imgs.values():
        with Image.open(folder / images / image["file_name"]) as picture:
            assert picture.size == (image["width"], image["height"])
            assert picture.mode == "RGB"
    assert coco.anns
    for annotation in coco.anns.values():
        assert annotation["category_id"] in coco.cats
        assert annotation["image_id"] in coco.imgs
        # pycocotools draws the polygon (or RLE) itself: the box and area must be that mask's.
        mask = coco.annToMask(annotation)
        assert annotation["area"] == pytest.approx(int(mask.sum()), rel=0.12, abs=8)
        box = coco_mask.toBbox(coco_mask.encode(np.asfortranarray(mask)))
        np.testing.assert_allclose(annotation["bbox"], box, atol=0 if annotation["iscrowd"] else 2)


def test_coco_has_gaps_crowds_and_empty_pictures():
    settings = world.DemoSettings(scale=0.1)
    scenes = dict(world.coco_scenes(settings, "train"))
    assert len(scenes) == settings.count("coco", 0)
    assert any(scene.crowd for scene in scenes.values())
    assert any(not scene.things and not scene.crowd for scene in scenes.values())
    assert len(world.COCO_CATEGORIES) < max(world.COCO_CATEGORIES)
    others = [dict(world.coco_scenes(settings, split)) for split in ("val", "test")]
    assert len(set(scenes).union(*others)) == len(scenes) + sum(map(len, others))


def test_coco_file_names_and_crowd_annotations(tmp_path):
    settings = world.DemoSettings(
        coco=(60, 2, 1), visual_genome=(1, 1, 1), qnli=(2, 1, 1), mnli=(3, 1, 1)
    )
    world.write_coco_and_vqa2(tmp_path, settings)
    coco = COCO(tmp_path / "coco/annotations/instances_train2017.json")
    assert all(image["file_name"] == f"{number:012d}.jpg" for number, image in coco.imgs.items())
    crowds = [annotation for annotation in coco.anns.values() if annotation["iscrowd"]]
    assert len(crowds) == 1  # one picture in forty
    assert sum(crowds[0]["segmentation"]["counts"]) == np.prod(crowds[0]["segmentation"]["size"])
    with_objects = {annotation["image_id"] for annotation in coco.anns.values()}
    assert len(coco.imgs.keys() - with_objects) == 1  # one picture in fifty


def test_visual_genome_attributes_are_what_is_drawn(folder):
    path = folder / "visual_genome/annotations/instances_train_split_by_coco_2017.json"
    content = json.loads(path.read_text())
    assert sorted(c["id"] for c in content["categories"]) == list(range(1, len(SHAPES) + 1))
    names = {entry["id"]: entry["name"] for entry in content["attCategories"]}
    groups = [set(COLORS), set(SIZES), set(TEXTURES)]
    images = {image["id"]: image["file_name"] for image in content["images"]}
    for annotation in content["annotations"]:
        ids = annotation["attribute_ids_max16"]
        assert len(ids) == 16
        real = [number for number in ids if number >= 0]
        assert ids == real + [-1] * (16 - len(real))
        given = [names[number] for number in real]
        assert not given or all(len(group & set(given)) == 1 for group in groups)
        if given and "plain" in given and not overlapped(annotation, content):
            color = next(iter(groups[0] & set(given)))
            pixels = np.asarray(
                Image.open(folder / "visual_genome" / images[annotation["image_id"]])
            )
            inside = _mask(annotation, pixels.shape) & (_erode(_mask(annotation, pixels.shape)))
            mean = np.median(pixels[inside], axis=0)
            distances = {name: np.abs(mean - rgb[0]).sum() for name, rgb in COLORS.items()}
            assert min(distances, key=distances.get) == color


def overlapped(annotation: dict, content: dict) -> bool:
    same = [a for a in content["annotations"] if a["image_id"] == annotation["image_id"]]
    return len(same) > 1


def _mask(annotation: dict, shape: tuple[int, ...]) -> np.ndarray:
    codes = coco_mask.frPyObjects(annotation["segmentation"], *shape[:2])
    return coco_mask.decode(codes).any(-1)


def _erode(mask: np.ndarray) -> np.ndarray:
    eroded = mask.copy()
    for axis in (0, 1):
        for step in (-2, 2):
            eroded &= np.roll(mask, step, axis)
    return eroded


def test_vqa2_files(folder):
    for split in ("train", "val"):
        read = folder / "vqa2"
        questions = json.loads(
            (read / f"v2_OpenEnded_mscoco_{split}2014_questions.json").read_text()
        )
        annotations = json.loads((read / f"v2_mscoco_{split}2014_annotations.json").read_text())
        assert questions["data_subtype"] == annotations["data_subtype"] == f"{split}2014"
        instances = folder / f"coco/annotations/instances_{split}2017.json"
        images = {image["id"] for image in json.loads(instances.read_text())["images"]}
        ids = [question["question_id"] for question in questions["questions"]]
        assert len(set(ids)) == len(ids) > 0
        assert ids == [annotation["question_id"] for annotation in annotations["annotations"]]
        for annotation in annotations["annotations"]:
            assert annotation["image_id"] in images
            answers = [answer["answer"] for answer in annotation["answers"]]
            assert [answer["answer_id"] for answer in annotation["answers"]] == list(range(1, 11))
            # At least seven agree, so the answer's soft score is 1.
            assert answers.count(annotation["multiple_choice_answer"]) >= 7
    assert (folder / "vqa2/answers_vqa.txt").read_text().splitlines()[0] == "<unk>"


def test_annotators_sometimes_disagree():
    asked = world.vqa2_questions(world.DemoSettings(scale=0.1), "train")
    agreement = Counter(Counter(answers).most_common(1)[0][1] for _, _, answers in asked)
    total = agreement.total()
    assert 0.6 < agreement[10] / total < 0.73
    assert all(agreement[number] / total > 0.07 for number in (7, 8, 9))


def test_snli_ve_files(folder):
    for split in ("train", "dev", "test"):
        lines = (folder / f"snli_ve/snli_ve_{split}.jsonl").read_text().splitlines()
        rows = [json.loads(line) for line in lines]
        assert len(rows) == len({row["pairID"] for row in rows}) > 0
        for row in rows:
            assert (folder / "flickr30k/flickr30k_images" / row["Flikr30kID"]).exists()
            assert row["gold_label"] in ("entailment", "neutral", "contradiction")
            assert row["sentence2"]


@pytest.mark.parametrize(
    "name, columns",
    [
        ("QNLI/train", "index question sentence label"),
        ("QNLI/dev", "index question sentence label"),
        ("QQP/train", "id qid1 qid2 question1 question2 is_duplicate"),
        ("QQP/dev", "id qid1 qid2 question1 question2 is_duplicate"),
        ("QNLI/test", "index question sentence"),
        ("QQP/test", "id question1 question2"),
        ("SST-2/test", "index sentence"),
        *(
            (
                f"MNLI/{split}",
                "index promptID pairID genre sentence1_binary_parse sentence2_binary_parse "
                "sentence1_parse sentence2_parse sentence1 sentence2",
            )
            for split in ("test_matched", "test_mismatched")
        ),
        ("SST-2/train", "sentence label"),
        ("SST-2/dev", "sentence label"),
        (
            "MNLI/train",
            "index promptID pairID genre sentence1_binary_parse sentence2_binary_parse "
            "sentence1_parse sentence2_parse sentence1 sentence2 label1 gold_label",
        ),
        *(
            (
                f"MNLI/{split}",
                "index promptID pairID genre sentence1_binary_parse sentence2_binary_parse "
                "sentence1_parse sentence2_parse sentence1 sentence2 label1 label2 label3 label4 "
                "label5 gold_label",
            )
            for split in ("dev_matched", "dev_mismatched")
        ),
    ],
)
def test_glue_files_have_the_official_columns(folder, name, columns):
    with (folder / "glue" / f"{name}.tsv").open(newline="") as file:
        rows = list(csv.reader(file, delimiter="\t", quoting=csv.QUOTE_NONE))
    assert rows[0] == columns.split()
    assert len(rows) > 1
    assert all(len(row) == len(rows[0]) and all(row) for row in rows)


def test_the_test_files_have_no_labels(folder):
    for path in (
        "coco/annotations/image_info_test-dev2017.json",
        "visual_genome/annotations/instances_test_split_by_coco_2017.json",
    ):
        content = json.loads((folder / path).read_text())
        assert content["images"] and content["categories"] and "annotations" not in content
        for image in content["images"]:
            pictures = folder / ("coco/test2017" if "coco/" in path else "visual_genome")
            assert (pictures / image["file_name"]).exists()
    questions = json.loads(
        (folder / "vqa2/v2_OpenEnded_mscoco_test2015_questions.json").read_text()
    )
    assert questions["data_subtype"] == "test2015" and questions["questions"]
    for question in questions["questions"]:
        name = f"COCO_test2015_{question['image_id']:012d}.jpg"
        assert (folder / "coco/test2015" / name).exists()
        assert set(question) == {"image_id", "question", "question_id"}
    assert not list((folder / "vqa2").glob("*test*annotations*"))


def test_more_test_examples_change_nothing_else(folder, tmp_path):
    more = {
        name: (*getattr(SMALL, name)[:2], 3 * getattr(SMALL, name)[2])
        for name in ("coco", "visual_genome", "qnli", "mnli", "qqp", "sst2")
    }
    world.generate(tmp_path, dataclasses.replace(SMALL, **more))
    before, after = digest(folder), digest(tmp_path)
    assert len(after) > len(before)
    changed = {name for name in before if after[name] != before[name]} - {world.DONE}
    assert changed and all("test" in name for name in changed)


def test_vocabulary_knows_every_training_word(folder):
    pieces = (folder / "vocab.txt").read_text().splitlines()
    assert pieces[:5] == ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    assert len(set(pieces)) == len(pieces)
    tokenizer = BertWordPieceTokenizer(str(folder / "vocab.txt"), lowercase=True)
    for task in pairs.LABELS:
        for pair in glue.glue_pairs(SMALL, task, "train"):
            for text in (pair.first, pair.second):
                words = re.findall(r"\w+|[^\w\s]", text.lower())
                assert tokenizer.encode(text, add_special_tokens=False).tokens == words


def test_a_small_demo_has_the_vocabulary_of_the_model_that_comes_with_the_package(tmp_path):
    world.generate(tmp_path, world.DemoSettings(scale=0.05))
    shipped = unit_jax.load("demo").vocabulary
    assert tuple((tmp_path / "vocab.txt").read_text().splitlines()) == shipped
