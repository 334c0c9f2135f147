"""Tiny data sets in the official file layouts, for tests."""

import io
import json
import pathlib

import numpy as np
import PIL.Image

from unit_jax.data import prepare

VOCABULARY = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "is", "the", "?", "cat"]
COCO_IMAGES = {"train": {111: (40, 30), 9: (32, 48), 30: (64, 20), 25: (50, 50)}}
COCO_IMAGES["val"] = {8: (36, 24), 139: (24, 36)}
VG_IMAGES = {"train": {"VG_100K/2.jpg": (30, 20), "VG_100K_2/1159296.jpg": (20, 30)}}
VG_IMAGES["val"] = {"VG_100K/5.jpg": (22, 22)}


def settings(**changes) -> prepare.Settings:
    """Settings that take these few files for what they are, and print nothing."""
    return prepare.Settings(**{"progress": False, "allow_partial": True, **changes})


def jpeg(size: tuple[int, int], seed: int = 0, mode: str = "RGB") -> bytes:
    """An encoded image of (width, height)."""
    pixels = np.random.default_rng(seed).integers(0, 255, (3, 3, 3), np.uint8)
    buffer = io.BytesIO()
    PIL.Image.fromarray(pixels).resize(size).convert(mode).save(buffer, "JPEG")
    return buffer.getvalue()


def write(path: pathlib.Path, content: str | bytes | dict):
    """Writes a text, bytes, or a dict as JSON."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(content, dict):
        content = json.dumps(content)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())


def write_world(root: pathlib.Path) -> pathlib.Path:
    """All eight data sets and a vocabulary."""
    write(root / "vocab.txt", "\n".join(VOCABULARY) + "\n")
    write_coco(root)
    write_visual_genome(root)
    write_vqa2(root)
    write_snli_ve(root)
    write_glue(root)
    return root


def write_coco(root: pathlib.Path):
    categories = [(1, "person"), (3, "car"), (90, "toothbrush")]
    objects = {
        111: [([1.5, 2, 10, 12.25], 90, 0), ([30, 20, 25, 25], 1, 0), ([0, 0, 40, 30], 3, 1)],
        9: [([2, 2, 8, 8], 3, 0)],
        25: [([10, 10, 0, 5], 1, 0), ([0, 0, 50, 50], 1, 0)],
        8: [([4, 4, 6, 6], 1, 0), ([0, 0, 30, 20], 1, 1)],
        139: [([3.25, 1, 7, 7], 90, 0)],
    }
    for split, sizes in COCO_IMAGES.items():
        images, annotations = [], []
        for number, (image_id, size) in enumerate(sizes.items()):
            name = f"{image_id:012d}.jpg"
            write(root / f"coco/{split}2017" / name, jpeg(size, image_id))
            images.append({"id": image_id, "file_name": name, "width": size[0], "height": size[1]})
            for box, category, crowd in objects.get(image_id, ()):
                annotations.append(
                    {
                        "id": 1000 * (number + 1) + len(annotations),
                        "image_id": image_id,
                        "bbox": box,
                        "category_id": category,
                        "iscrowd": crowd,
                        "area": 0.5 * box[2] * box[3],
                        "segmentation": [],
                    }
                )
        write(
            root / f"coco/annotations/instances_{split}2017.json",
            {
                "images": images,
                "annotations": annotations[::-1],
                "categories": [{"id": number, "name": name} for number, name in categories],
            },
        )


def write_visual_genome(root: pathlib.Path):
    slots = {"train": [[4, 2] + [-1] * 14, [-1] * 16], "val": [[1] + [-1] * 15]}
    for split, sizes in VG_IMAGES.items():
        images, annotations = [], []
        for number, (name, size) in enumerate(sizes.items()):
            image_id = int(pathlib.Path(name).stem)
            write(root / "visual_genome" / name, jpeg(size, number))
            images.append({"id": image_id, "file_name": name, "width": size[0], "height": size[1]})
            annotations.append(
                {
                    "id": number,
                    "image_id": image_id,
                    "bbox": [1, 2, 5, 6],
                    "area": 30,
                    "category_id": 1 + number,
                    "attribute_ids_max16": slots[split][number],
                }
            )
        write(
            root / f"visual_genome/annotations/instances_{split}_split_by_coco_2017.json",
            {
                "images": images,
                "annotations": annotations,
                "categories": [{"id": 1, "name": "tree"}, {"id": 2, "name": "sky"}],
                "attCategories": [{"id": 1, "name": "red"}, {"id": 6, "name": "tall"}],
            },
        )


def vqa2_questions() -> dict[str, list[tuple[int, int, str, list[str]]]]:
    """(question id, image id, question, answers) by file; train2014 also asks about image 8,
    which COCO 2017 has in val, and val2014 about 9, which it has in train."""
    red = ["Red"] * 6 + ["dark red,"] * 4
    return {
        "train": [
            (111001, 111, "What colour?", red),
            (111000, 111, "Is it red?", ["yes"] * 10),
            (8000, 8, "Whose is it?", ["Tom's"] * 7 + ["who knows?"] * 3),
            (25000, 25, "Is it a cat?", ["yes"] * 9 + ["no"]),
        ],
        "val": [
            (9000, 9, "What is “this”?", ["cat"] * 10),
            (139000, 139, "How many?", [str(n) for n in range(10)]),
        ],
    }


def write_vqa2(root: pathlib.Path, answers: str | None = "yes\nred\ncat\n"):
    for split, questions in vqa2_questions().items():
        write(
            root / f"vqa2/v2_OpenEnded_mscoco_{split}2014_questions.json",
            {
                "questions": [
                    {"question_id": number, "image_id": image, "question": text}
                    for number, image, text, _ in questions
                ]
            },
        )
        write(
            root / f"vqa2/v2_mscoco_{split}2014_annotations.json",
            {
                "annotations": [
                    {
                        "question_id": number,
                        "image_id": image,
                        "multiple_choice_answer": given[0].lower(),
                        "answers": [
                            {"answer": answer, "answer_id": i + 1, "answer_confidence": "yes"}
                            for i, answer in enumerate(given)
                        ],
                    }
                    for number, image, _, given in questions
                ]
            },
        )
    if answers is not None:
        write(root / "vqa2/answers_vqa.txt", answers)


def snli_ve_lines() -> dict[str, list[dict]]:
    def line(image: int, number: int, label: str) -> dict:
        return {
            "Flikr30kID": f"{image}.jpg",
            "pairID": f"{image}.jpg#{number}",
            "sentence1": "not used",
            "sentence2": f"Hypothesis {number} of {image}.",
            "gold_label": label,
        }

    return {
        "train": [line(77, 0, "neutral"), line(78, 0, "entailment"), line(77, 1, "contradiction")],
        "dev": [line(79, 0, "entailment")],
        "test": [line(79, 1, "contradiction")],
    }


def write_snli_ve(root: pathlib.Path):
    for image in (77, 78, 79):
        write(root / f"flickr30k/flickr30k_images/{image}.jpg", jpeg((20 + image % 7, 25), image))
    for split, lines in snli_ve_lines().items():
        text = "".join(json.dumps(line) + "\n" for line in lines)
        write(root / f"snli_ve/snli_ve_{split}.jsonl", text)


GLUE_FILES = {
    "QNLI/train.tsv": [
        ["index", "question", "sentence", "label"],
        ["0", 'Who said "no?', "The king.", "entailment"],
        ["1", "When?", 'In "1900', "not_entailment"],
    ],
    "QNLI/dev.tsv": [["index", "question", "sentence", "label"], ["7", "a", "b", "entailment"]],
    "QNLI/test.tsv": [["index", "question", "sentence"], ["3", "a", "b"], ["4", "c", "d"]],
    "MNLI/train.tsv": [
        ["index", "genre", "sentence1", "sentence2", "label1", "gold_label"],
        ["0", "x", "p0", "h0", "neutral", "contradiction"],
        ["1", "x", "p1", "h1", "neutral", "neutral"],
    ],
    "MNLI/dev_matched.tsv": [
        ["index", "sentence1", "sentence2", "label1", "gold_label"],
        ["0", "matched", "h", "neutral", "entailment"],
    ],
    "MNLI/dev_mismatched.tsv": [
        ["index", "sentence1", "sentence2", "label1", "gold_label"],
        ["0", "mismatched", "h", "neutral", "neutral"],
    ],
    "QQP/train.tsv": [
        ["id", "qid1", "qid2", "question1", "question2", "is_duplicate"],
        ["133273", "1", "2", "How?", "How so?", "1"],
        ["402555", "3", "4", "Where?", "", "0"],
    ],
    "QQP/dev.tsv": [
        ["id", "qid1", "qid2", "question1", "question2", "is_duplicate"],
        ["5", "1", "2", "a", "b", "0"],
    ],
    "SST-2/train.tsv": [["sentence", "label"], ["dull ", "0"], ["' quite good '", "1"]],
    "SST-2/dev.tsv": [["sentence", "label"], ["fine", "1"]],
}


def write_glue(root: pathlib.Path):
    for name, rows in GLUE_FILES.items():
        write(root / "glue" / name, "".join("\t".join(row) + "\n" for row in rows))


def write_raw_visual_genome(root: pathlib.Path, objects: list[dict], images: list[dict]):
    """Release 1.2's files about the images of VG_IMAGES, and vocabularies of three and four lines.

    Args:
      objects: per image image_id and objects, each with object_id, x, y, w, h, names and, if it
        has any, attributes.
      images: what image_data.json lists.
    """
    for sizes in VG_IMAGES.values():
        for name, size in sizes.items():
            write(root / "visual_genome" / name, jpeg(size))
    folder = root / "visual_genome"
    plain = [
        {
            "image_id": image["image_id"],
            "objects": [
                {key: value for key, value in entry.items() if key != "attributes"}
                for entry in image["objects"]
            ],
        }
        for image in objects
    ]
    described = [
        {"image_id": image["image_id"], "attributes": image["objects"]} for image in objects
    ]
    write(folder / "objects.json", json.dumps(plain))
    write(folder / "attributes.json", json.dumps(described))
    write(folder / "image_data.json", json.dumps(images))
    write(folder / "objects_vocab.txt", "tree,trees\nsky\ncar\n")
    write(folder / "attributes_vocab.txt", "red\nwhite\nblack and white\ntall,very tall\n")
