"""VQAv2 in its official JSON, split as the reference does, with Visual Genome's questions."""

import collections
import hashlib
import pathlib
from collections.abc import Iterable, Mapping
from typing import Any

import tensorflow_datasets as tfds

from unit_jax.data.sources import base, coco
from unit_jax.outputs.labels.answers import normalise_answer

UNKNOWN = "<unk>"
ANSWER_FILE = "answers_vqa.txt"
PAIRS = "visual_genome/question_answers.json"
PAIRS_IMAGES = "visual_genome/image_data.json"
KARPATHY = "vqa2/dataset_coco.json"
# Karpathy's parts that the reference takes Visual Genome's questions from; "restval" is the part
# of COCO's val2014 that Karpathy trains on.
KARPATHY_PARTS = ("train", "restval", "test")


class Vqa2(base.RecordSource):
    """VQAv2 (open-ended).

    Files: vqa2/v2_OpenEnded_mscoco_{train,val}2014_questions.json,
    vqa2/v2_mscoco_{train,val}2014_annotations.json, test questions (may be absent), an answer
    list vqa2/answers_vqa.txt (may be absent), and coco/annotations/instances_val2017.json:
    questions about its images are the validation split, all others are training, whichever
    file they come from. Images are found by image id in COCO's store. Records keep answers as
    written; `normalise_answer` comes before comparing.

    Where visual_genome/question_answers.json is given (with image_data.json, which has each
    image's COCO id), training also has Visual Genome's question-answer pairs on COCO images
    outside val2017: with Karpathy's vqa2/dataset_coco.json those of his training and test parts,
    as the reference, without it all of them. Their one answer counts as if all annotators had
    given it; the full stop at its end, which VQAv2's answers do not have, is taken off. Their ids
    are stored negative, as the two data sets' own ids overlap.

    The answer list is the given one (one a line; <unk> is put first if absent) or built from
    training, VQAv2's questions only: normalised answers that are the question's agreed answer at
    least `min_answer_count` times, the most frequent first, ties in alphabetical order.
    """

    name = "vqa2"
    version = "1.1.0"
    image_family = "images_coco"
    origin = "https://visualqa.org/download.html"
    features = {
        "id": tfds.features.Text(),
        "text": tfds.features.Text(),
        "answers": tfds.features.Sequence(tfds.features.Text()),
    }
    published = {
        "train2014 questions": 443_757,
        "train2014 annotations": 443_757,
        "val2014 questions": 214_354,
        "val2014 annotations": 214_354,
        "test2015 questions": 447_793,
        "Visual Genome pairs": 1_445_322,
    }
    test = ("vqa2/v2_OpenEnded_mscoco_test2015_questions.json", "coco/test2015")

    def required_files(self) -> list[pathlib.Path]:
        names = [
            f"vqa2/v2_{name}.json"
            for split in ("train", "val")
            for name in (
                f"OpenEnded_mscoco_{split}2014_questions",
                f"mscoco_{split}2014_annotations",
            )
        ]
        if (self.source / PAIRS).exists():
            names.append(PAIRS_IMAGES)
        return [self.source / name for name in [*names, coco.VAL_IMAGES]]

    def read(self, store: base.ImageIndex | None, problems: base.Problems) -> base.Content:
        store = self.images_of(store)
        val_images = coco.val_image_ids(self.source, problems)
        listed, notes = {}, []
        splits: dict[str, list[base.Record]] = {"train": [], "val": []}
        agreed: collections.Counter[str] = collections.Counter()
        seen: set[int] = set()
        for part in ("train", "val"):
            questions_path = self.source / f"vqa2/v2_OpenEnded_mscoco_{part}2014_questions.json"
            annotations_path = self.source / f"vqa2/v2_mscoco_{part}2014_annotations.json"
            questions = self._entries(questions_path, "questions", problems)
            annotations = {
                base.id_number(annotation.get("question_id")): annotation
                for annotation in self._entries(annotations_path, "annotations", problems)
            }
            listed[f"{part}2014 questions"] = len(questions)
            listed[f"{part}2014 annotations"] = len(annotations)
            for question in questions:
                annotation = annotations.get(base.id_number(question.get("question_id")), {})
                place = f"{annotations_path}: question {question.get('question_id')!r:.60}"
                answers = _answers(annotation, place, problems)
                if not answers:
                    problems.add("no answers", place, "nothing to learn or to compare with")
                    continue
                record = _record(question, answers, questions_path, store, seen, problems)
                if record is None:
                    continue
                if base.id_number(question["image_id"]) in val_images:
                    splits["val"].append(record)
                else:
                    splits["train"].append(record)
                    agreed[_agreed_answer(annotation, answers)] += 1
        if (self.source / PAIRS).exists():
            pairs, count, note = self._pairs(val_images, store, seen, problems)
            splits["train"] += pairs
            listed["Visual Genome pairs"] = count
            notes.append(note)
        test_path, test_images = (self.source / path for path in self.test)
        if test_path.exists() and test_images.exists():
            questions = self._entries(test_path, "questions", problems)
            listed["test2015 questions"] = len(questions)
            records = (
                _record(question, [], test_path, store, seen, problems) for question in questions
            )
            splits["test"] = [record for record in records if record is not None]
        for records in splits.values():
            records.sort(key=lambda record: int(record["id"]))
        names = self._answer_list(agreed, problems)
        content = "".join(f"{name}\n" for name in names).encode()
        return base.Content(
            splits,
            {
                "num_labels": len(names),
                "answers": {"file": ANSWER_FILE, "sha256": hashlib.sha256(content).hexdigest()},
            },
            listed,
            files={ANSWER_FILE: content},
            unlabelled=frozenset({"test"} & splits.keys()),
            notes=tuple(notes),
        )

    def _pairs(
        self,
        val_images: set[int],
        store: base.ImageIndex,
        seen: set[int],
        problems: base.Problems,
    ) -> tuple[list[base.Record], int, str]:
        """Visual Genome's pairs for training, how many the file lists, and a note of the choice."""
        coco_ids = {
            base.id_number(image.get("image_id")): base.id_number(image.get("coco_id"))
            for image in base.read_json_list(self.source / PAIRS_IMAGES, problems)
        }
        karpathy = self.source / KARPATHY
        if karpathy.exists():
            images = self._entries(karpathy, "images", problems)
            chosen = [image for image in images if image.get("split") in KARPATHY_PARTS]
            allowed = {base.id_number(image.get("cocoid")) for image in chosen} - {None}
            choice = (
                f"those on images of Karpathy's {', '.join(KARPATHY_PARTS)} parts outside val2017"
            )
        else:
            allowed = set(coco_ids.values()) - {None}
            choice = f"all on COCO images outside val2017, as {karpathy} is not given"
        allowed -= val_images
        records, count = [], 0
        path = self.source / PAIRS
        for image in base.read_json_list(path, problems):
            place = f"{path}: image {image.get('id')!r:.60}"
            pairs = base.objects(image.get("qas"), place, problems)
            count += len(pairs)
            for pair in pairs:
                image_id = coco_ids.get(base.id_number(pair.get("image_id")))
                if image_id not in allowed:
                    continue
                number = base.id_number(pair.get("qa_id"))
                place = f"{path}: pair {pair.get('qa_id')!r:.60}"
                answer = base.clean_text(pair.get("answer"), place, problems)
                if answer is None:
                    continue
                question = {
                    "question_id": None if number is None else -number,
                    "image_id": image_id,
                    "question": pair.get("question"),
                }
                answers = [answer.strip().removesuffix(".")]
                record = _record(question, answers, path, store, seen, problems)
                if record is not None:
                    records.append(record)
        note = f"{len(records):,} of Visual Genome's {count:,} question-answer pairs are trained on"
        return records, count, f"{note}: {choice}"

    def _entries(self, path: pathlib.Path, key: str, problems: base.Problems) -> list[dict]:
        return base.entries(base.read_json(path, problems), key, path, problems)

    def _answer_list(self, agreed: Mapping[str, int], problems: base.Problems) -> list[str]:
        given = self.source / "vqa2" / ANSWER_FILE
        if given.exists():
            names = [line.rstrip("\r") for line in base.read_text(given, problems).split("\n")]
            names = [name for name in names if name.strip()]
            twice = [name for name, count in collections.Counter(names).items() if count > 1]
            if twice:
                raise ValueError(f"{given} lists answers twice: {', '.join(twice[:5])}")
            return names if UNKNOWN in names[:1] else [UNKNOWN, *_without(names, UNKNOWN)]
        frequent = [
            answer for answer, count in agreed.items() if count >= self.options.min_answer_count
        ]
        frequent.sort(key=lambda answer: (-agreed[answer], answer))
        names = [UNKNOWN, *_without(frequent, UNKNOWN)][: self.options.max_answers]
        if len(names) == 1:
            raise ValueError(
                "vqa2: no answer occurs often enough for an answer list; lower "
                f"--min_answer_count ({self.options.min_answer_count}) or give "
                f"{given}, one answer a line"
            )
        return names


def _record(
    question: Mapping[str, Any],
    answers: list[str],
    path: pathlib.Path,
    store: base.ImageIndex,
    seen: set[int],
    problems: base.Problems,
) -> base.Record | None:
    """The record of a question; None (and a problem) where it cannot be used."""
    number = base.id_number(question.get("question_id"))
    place = f"{path}: question {question.get('question_id')!r:.60}"
    if number is None or number in seen:
        problems.add("duplicate id" if number in seen else "bad id", place, "question_id")
        return None
    text = base.clean_text(question.get("question"), place, problems)
    if text is None:
        return None
    located = store.locate(base.id_number(question.get("image_id")))
    if located is None:
        problems.add("missing image", place, f"image {question.get('image_id')!r:.60} of COCO")
        return None
    seen.add(number)
    return {"id": str(number), "text": text, "answers": answers, **located}


def _answers(annotation: Mapping[str, Any], place: str, problems: base.Problems) -> list[str]:
    """The annotators' answers, those that are texts."""
    entries = annotation.get("answers")
    entries = entries if isinstance(entries, list) else []
    answers = [entry.get("answer") if isinstance(entry, dict) else entry for entry in entries]
    return [
        base.encodable(answer[: base.MAX_TEXT], place, problems)
        for answer in answers
        if isinstance(answer, str)
    ]


def _agreed_answer(annotation: Mapping[str, Any], answers: list[str]) -> str:
    """The answer that the data set counts as the question's, normalised."""
    if isinstance(annotation.get("multiple_choice_answer"), str):
        return normalise_answer(annotation["multiple_choice_answer"])
    counts = collections.Counter(map(normalise_answer, answers))
    return min(counts, key=lambda answer: (-counts[answer], answer))


def _without(names: Iterable[str], name: str) -> list[str]:
    return [other for other in names if other != name]
