"""Writes the demo's eight data sets in the official file layouts and schemas.

The same settings give the same bytes: every picture and every text draws from a generator of its
own, seeded with the seed, the data set, the split and its number. Nothing is dated.
"""

import dataclasses
import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path

import numpy as np
from jaxtyping import Bool
from tqdm import tqdm

from unit_jax.demo import glue
from unit_jax.demo import texts as demo_text
from unit_jax.demo.base import (
    SPLITS,
    DemoSettings,
    as_json,
    chooser_of,
    write,
    write_image,
    write_json,
)
from unit_jax.demo.scenes import (
    COLORS,
    HELD_OUT,
    SHAPES,
    SIZES,
    TEXTURES,
    UNSEEN_SHARE,
    Scene,
    Thing,
    draw_scene,
    outline,
    render,
    thing_mask,
)

# Ids with gaps, as COCO's 80 classes have among 1..90.
COCO_CATEGORIES = dict(zip((1, 2, 4, 7, 8, 11), SHAPES, strict=True))
# Visual Genome's nouns for the same shapes, ids from 1 without gaps.
VG_CATEGORIES = dict(enumerate(("ball", "box", "tent", "star", "plus", "donut"), start=1))
VG_ATTRIBUTES = dict(enumerate((*COLORS, *SIZES, *TEXTURES), start=1))
VG_WITHOUT_ATTRIBUTES = 0.05
MAX_ATTRIBUTES = 16

CROWD_EVERY = 40  # every 40th COCO picture has a crowd region
EMPTY_EVERY = 50  # every 50th COCO picture has no annotation
DONE = "demo.json"
UNKNOWN_ANSWER = "<unk>"
MIN_ANSWERS = 9  # the answer list leaves out what annotators said less often (as the real one)


def generate(output: Path, settings: DemoSettings) -> bool:
    """Writes all data sets under `output`.

    Returns:
      False where `output` already holds exactly this demo, which then stays as it is.

    Raises:
      ValueError: `output` holds a demo made with other settings, or the scale is not positive.
    """
    if settings.scale <= 0:
        raise ValueError(f"scale must be greater than 0, not {settings.scale}")
    output = Path(output)
    facts = _facts(settings)
    if (output / DONE).exists():
        if (output / DONE).read_text() == as_json(facts):
            return False
        raise ValueError(
            f"{output} holds a demo made with other settings (see {output / DONE}): "
            "remove that folder or give another one"
        )
    pictures = sum(
        settings.count(name, split)
        for name in ("coco", "visual_genome", "flickr30k")
        for split in range(len(getattr(settings, name)))
    )
    texts: list[str] = []
    with tqdm(total=pictures, desc="demo pictures", unit="picture") as progress:
        texts += write_coco_and_vqa2(output, settings, progress.update)
        write_visual_genome(output, settings, progress.update)
        texts += write_snli_ve(output, settings, progress.update)
    texts += glue.write_glue(output, settings)
    # Rare words that a small demo may lack, so that demos of all sizes have one vocabulary.
    texts += map(demo_text.plural, SHAPES)
    glue.write_vocabulary(output / "vocab.txt", texts)
    write(output / DONE, as_json(facts))
    return True


def _facts(settings: DemoSettings) -> dict:
    return {
        "settings": dataclasses.asdict(settings),
        "held_out": [f"{color} {shape}" for color, shape in HELD_OUT],
        "unseen_share": UNSEEN_SHARE,
        "coco_categories": COCO_CATEGORIES,
        "visual_genome_categories": VG_CATEGORIES,
        "visual_genome_attributes": VG_ATTRIBUTES,
    }


# ---- COCO and VQAv2 -----------------------------------------------------------------------------


def coco_scenes(settings: DemoSettings, split: str) -> Iterator[tuple[int, Scene]]:
    """The (image id, scene) pairs of COCO's "train", "val" or "test"."""
    for number in range(settings.count("coco", SPLITS.index(split))):
        crowd = number % CROWD_EVERY == CROWD_EVERY // 2
        empty = number % EMPTY_EVERY == EMPTY_EVERY // 3
        scene = draw_scene(chooser_of(settings, "coco", split, number), crowd=crowd, empty=empty)
        # Ids are spread as COCO's are; no two splits share one.
        yield 74 * number + {"train": 200, "val": 201, "test": 237}[split], scene


def vqa2_questions(
    settings: DemoSettings, split: str
) -> Iterator[tuple[int, demo_text.Question, list[str]]]:
    """(image id, question, ten answers) over COCO's pictures but the empty and crowded ones."""
    for number, (image_id, scene) in enumerate(coco_scenes(settings, split)):
        if scene.things and not scene.crowd:
            chooser = chooser_of(settings, "vqa2", split, number)
            for question in demo_text.ask(chooser, scene, settings.questions):
                yield image_id, question, demo_text.annotate(chooser, question.answer)


def write_coco_and_vqa2(
    output: Path, settings: DemoSettings, progress: Callable[[int], object] = lambda _: None
) -> list[str]:
    """Writes `coco/` and `vqa2/`; returns the training questions."""
    texts: list[str] = []
    answers: Counter[str] = Counter()
    for split in ("train", "val"):
        images, annotations = [], []
        for image_id, scene in coco_scenes(settings, split):
            file_name = f"{image_id:012d}.jpg"
            write_image(output / "coco" / f"{split}2017" / file_name, render(scene))
            images.append(_coco_image(image_id, file_name, scene))
            for thing in scene.things:
                annotations.append(_coco_object(thing, scene, COCO_CATEGORIES))
            if scene.crowd:
                annotations.append(_coco_crowd(scene))
            for annotation in annotations[
                len(annotations) - len(scene.things) - bool(scene.crowd) :
            ]:
                annotation["image_id"] = image_id
            progress(1)
        _write_coco_json(
            output / "coco" / "annotations" / f"instances_{split}2017.json",
            images,
            annotations,
            COCO_CATEGORIES,
        )
        asked = list(vqa2_questions(settings, split))
        _write_vqa2(output / "vqa2", split, asked)
        if split == "train":
            texts += [question.text + "?" for _, question, _ in asked]
            for _, _, given in asked:
                answers.update(given)
    write_coco_and_vqa2_test(output, settings, progress)
    common = sorted(
        (answer for answer, count in answers.items() if count >= MIN_ANSWERS),
        key=lambda answer: (-answers[answer], answer),
    )
    write(output / "vqa2" / "answers_vqa.txt", "\n".join([UNKNOWN_ANSWER, *common]) + "\n")
    return texts


def write_coco_and_vqa2_test(
    output: Path, settings: DemoSettings, progress: Callable[[int], object] = lambda _: None
):
    """Writes the test files of COCO and VQAv2, which have no labels.

    As in the releases, COCO's test2017 pictures are also VQAv2's test2015 pictures.
    """
    images = []
    for image_id, scene in coco_scenes(settings, "test"):
        file_name = f"{image_id:012d}.jpg"
        pixels = render(scene)
        write_image(output / "coco" / "test2017" / file_name, pixels)
        write_image(output / "coco" / "test2015" / f"COCO_test2015_{file_name}", pixels)
        images.append(_coco_image(image_id, file_name, scene))
        progress(1)
    _write_coco_json(
        output / "coco" / "annotations" / "image_info_test-dev2017.json",
        images,
        None,
        COCO_CATEGORIES,
    )
    _write_vqa2(output / "vqa2", "test", vqa2_questions(settings, "test"))


def _coco_image(image_id: int, file_name: str, scene: Scene) -> dict:
    return {
        "license": 1,
        "file_name": file_name,
        "height": scene.height,
        "width": scene.width,
        "id": image_id,
    }


def _coco_object(thing: Thing, scene: Scene, categories: Mapping[int, str]) -> dict:
    """An annotation without its ids: box and area are the mask's, as if nothing lay in front."""
    mask = thing_mask(thing, scene.height, scene.width)
    return {
        "segmentation": [np.round(outline(thing), 2).flatten().tolist()],
        "area": int(mask.sum()),
        "iscrowd": 0,
        "bbox": _box(mask),
        "category_id": tuple(categories)[SHAPES.index(thing.shape)],
    }


def _coco_crowd(scene: Scene) -> dict:
    mask = np.zeros((scene.height, scene.width), bool)
    for thing in scene.crowd:
        mask |= thing_mask(thing, scene.height, scene.width)
    return {
        "segmentation": {"counts": _run_lengths(mask), "size": [scene.height, scene.width]},
        "area": int(mask.sum()),
        "iscrowd": 1,
        "bbox": _box(mask),
        "category_id": tuple(COCO_CATEGORIES)[SHAPES.index(scene.crowd[0].shape)],
    }


def _box(mask: Bool[np.ndarray, "height width"]) -> list[float]:
    """The tight box (x, y, width, height) of a mask in pixels."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    x, y = columns[0], rows[0]
    return [float(x), float(y), float(columns[-1] + 1 - x), float(rows[-1] + 1 - y)]


def _run_lengths(mask: Bool[np.ndarray, "height width"]) -> list[int]:
    """COCO's uncompressed RLE: runs of zeros and ones in turn, down the columns, zeros first."""
    flat = np.concatenate([[False], mask.flatten(order="F")])
    starts = np.flatnonzero(np.diff(flat)) if flat.any() else np.array([], int)
    return np.diff(np.concatenate([[0], starts, [mask.size]])).tolist()


def _write_coco_json(
    path: Path,
    images: list[dict],
    annotations: list[dict] | None,
    categories: Mapping[int, str],
    **more,
):
    """COCO's JSON; without annotations it is a test split's."""
    for number, annotation in enumerate(annotations or (), start=1):
        annotation["id"] = number
    write_json(
        path,
        {
            "info": {"description": "UniT demo world", "version": "1.0"},
            "licenses": [{"id": 1, "name": "generated"}],
            "images": images,
            **({} if annotations is None else {"annotations": annotations}),
            "categories": [
                {"supercategory": "shape", "id": number, "name": name}
                for number, name in categories.items()
            ],
            **more,
        },
    )


def _write_vqa2(
    folder: Path, split: str, asked: Iterable[tuple[int, demo_text.Question, list[str]]]
):
    questions, annotations = [], []
    seen: Counter[int] = Counter()
    for image_id, question, answers in asked:
        question_id = image_id * 1000 + seen[image_id]
        seen[image_id] += 1
        questions.append(
            {
                "image_id": image_id,
                "question": demo_text.sentence(question.text, "?"),
                "question_id": question_id,
            }
        )
        annotations.append(
            {
                "question_type": question.type,
                "multiple_choice_answer": question.answer,
                "answers": [
                    {
                        "answer": answer,
                        "answer_confidence": "yes" if answer == question.answer else "maybe",
                        "answer_id": number,
                    }
                    for number, answer in enumerate(answers, start=1)
                ],
                "image_id": image_id,
                "answer_type": question.answer_type,
                "question_id": question_id,
            }
        )
    part = f"{split}{2015 if split == 'test' else 2014}"
    head = {
        "info": {"description": "UniT demo world", "version": "2.0"},
        "license": {"name": "generated"},
        "data_type": "mscoco",
        "data_subtype": part,
    }
    write_json(
        folder / f"v2_OpenEnded_mscoco_{part}_questions.json",
        {**head, "task_type": "Open-Ended", "questions": questions},
    )
    if split != "test":
        write_json(
            folder / f"v2_mscoco_{part}_annotations.json", {**head, "annotations": annotations}
        )


# ---- Visual Genome ------------------------------------------------------------------------------


def write_visual_genome(
    output: Path, settings: DemoSettings, progress: Callable[[int], object] = lambda _: None
):
    """Writes `visual_genome/`: COCO-style JSON whose objects also have `attribute_ids_max16`."""
    ids = {name: number for number, name in VG_ATTRIBUTES.items()}
    # Ids of train and val interleave, test comes after both.
    after = 2 * (sum(settings.count("visual_genome", part) for part in range(2)) + 1)
    for part, split in enumerate(SPLITS):
        images, annotations = [], []
        for number in range(settings.count("visual_genome", part)):
            chooser = chooser_of(settings, "visual_genome", split, number)
            scene = draw_scene(chooser)
            image_id = after + number if split == "test" else 2 * (number + 1) + part
            file_name = f"VG_100K/{image_id}.jpg"
            write_image(output / "visual_genome" / file_name, render(scene))
            images.append(_coco_image(image_id, file_name, scene))
            for thing in scene.things:
                names = [thing.color, thing.size, thing.texture]
                if chooser.chance(VG_WITHOUT_ATTRIBUTES):
                    names = []
                chooser.shuffle(names)
                attributes = [ids[name] for name in names]
                annotation = _coco_object(thing, scene, VG_CATEGORIES)
                annotation["image_id"] = image_id
                annotation["attribute_ids_max16"] = attributes + [-1] * (
                    MAX_ATTRIBUTES - len(attributes)
                )
                annotations.append(annotation)
            progress(1)
        _write_coco_json(
            output / "visual_genome" / "annotations" / f"instances_{split}_split_by_coco_2017.json",
            images,
            None if split == "test" else annotations,
            VG_CATEGORIES,
            attCategories=[{"id": number, "name": name} for number, name in VG_ATTRIBUTES.items()],
        )


# ---- SNLI-VE ------------------------------------------------------------------------------------


def snli_ve_scenes(settings: DemoSettings, split: str) -> Iterator[tuple[str, Scene, list]]:
    """(image file name, scene, [(hypothesis, label), ...]) of "train", "dev" or "test"."""
    which = ("train", "dev", "test").index(split)
    for number in range(settings.count("flickr30k", which)):
        chooser = chooser_of(settings, "snli_ve", split, number)
        scene = draw_scene(chooser, curtain=number % 2 == 1)
        pairs = demo_text.hypotheses(chooser, scene, settings.hypotheses)
        yield f"{1000003 + 3 * (7 * number) + which}.jpg", scene, pairs


def write_snli_ve(
    output: Path, settings: DemoSettings, progress: Callable[[int], object] = lambda _: None
) -> list[str]:
    """Writes `snli_ve/` and `flickr30k/`; returns the training hypotheses."""
    texts: list[str] = []
    for split in ("train", "dev", "test"):
        lines = []
        for file_name, scene, pairs in snli_ve_scenes(settings, split):
            write_image(output / "flickr30k" / "flickr30k_images" / file_name, render(scene))
            premise = demo_text.caption(scene)
            for number, (hypothesis, label) in enumerate(pairs):
                lines.append(
                    {
                        "annotator_labels": [label],
                        "captionID": f"{file_name}#0",
                        "gold_label": label,
                        "pairID": f"{file_name}#0r{number}{label[0]}",
                        "sentence1": premise,
                        "sentence2": hypothesis,
                        "Flikr30kID": file_name,
                    }
                )
                if split == "train":
                    texts.append(hypothesis)
            progress(1)
        write(
            output / "snli_ve" / f"snli_ve_{split}.jsonl",
            "".join(json.dumps(line) + "\n" for line in lines),
        )
    return texts
