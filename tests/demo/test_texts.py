"""The demo world's texts: labels follow from content, and never from the text alone."""

import dataclasses
import re
from collections import Counter

import numpy as np
import pytest
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.linear_model import LogisticRegression

from unit_jax.demo import glue, pairs, world
from unit_jax.demo import texts as demo_text
from unit_jax.demo.scenes import (
    COLORS,
    HELD_OUT,
    SHAPES,
    SIZES,
    TEXTURES,
    Chooser,
    Scene,
    Thing,
    draw_scene,
)

FULL = world.DemoSettings()


@pytest.fixture(scope="module")
def texts() -> dict[str, list[tuple[str, str, str]]]:
    """(first, second, label) of the text tasks at the demo's size, keyed "task split"."""
    found = {}
    for task, split in (
        *((task, split) for task in pairs.LABELS for split in ("train", "dev")),
        ("mnli", "dev_mismatched"),
    ):
        made = glue.glue_pairs(FULL, task, split)
        found[f"{task} {split}"] = [(pair.first, pair.second, pair.label) for pair in made]
    for split in ("train", "dev"):
        found[f"snli_ve {split}"] = [
            ("", hypothesis, label)
            for _, _, judged in world.snli_ve_scenes(FULL, split)
            for hypothesis, label in judged
        ]
    for split, name in (("train", "train"), ("val", "dev")):
        found[f"vqa2 {name}"] = [
            ("", question.text, question.answer)
            for _, question, _ in world.vqa2_questions(FULL, split)
        ]
    return found


def test_texts_are_short(texts):
    """A demo model's text lengths (32 for language, 14 with pictures) cut nothing."""
    for name, rows in texts.items():
        for first, second, _ in rows:
            words = [len(re.findall(r"\w+|[^\w\s]", text)) for text in (first, second)]
            special = 3 if all(words) else 2
            # VQA's question mark is added when the file is written.
            limit = 13 if name.startswith("vqa2") else 14 if name.startswith("snli") else 32
            assert sum(words) + special <= limit, (first, second)


# ---- labels follow from content -----------------------------------------------------------------


def scene_of(*pairs: tuple[str, str], curtain: bool = False) -> Scene:
    made = [
        Thing(shape, color, "big", "plain", 1 + 30 * number, 1, 25, 0.0)
        for number, (color, shape) in enumerate(pairs)
    ]
    box = (90, 0, 120, 60) if curtain else None
    return Scene(120, 60, tuple(made), box, (), "flat", 0)


def visible(scene: Scene, words: str) -> bool:
    """Whether something in the scene has all the world's words that a text mentions."""
    known = [word for word in re.findall(r"\w+", words.lower()) if word in {*COLORS, *SHAPES}]
    assert known
    return any(all(w in (thing.color, thing.shape) for w in known) for thing in scene.things)


def test_answers_are_true():
    kinds = Counter()
    for number in range(300):
        scene = draw_scene(Chooser(f"asked {number}", 0.1))
        for question in demo_text.ask(Chooser(f"ask {number}", 0.1), scene, 5):
            words = question.text.split()
            kind = words[0] if words[0] != "is" else " ".join(words[:2])
            kinds[kind] += 1
            named = [t for t in scene.things if t.shape in words or t.color in words]
            if question.answer_type == "yes/no":
                assert visible(scene, question.text) == (question.answer == "yes")
            elif question.answer_type == "number":
                shape = next(s for s in SHAPES if words[2].startswith(s))
                assert int(question.answer) == sum(t.shape == shape for t in scene.things)
            else:
                assert len(named) == 1
                thing = named[0]
                asked = next((w for w in words if w in ("color", "size", "pattern")), "shape")
                value = thing.texture if asked == "pattern" else getattr(thing, asked)
                assert question.answer == value
    assert {"what", "which", "is there", "is the", "can", "how"} <= kinds.keys()


@pytest.mark.parametrize("curtain", [False, True])
def test_hypotheses_follow_from_the_scene(curtain):
    labels = Counter()
    for number in range(200):
        scene = draw_scene(Chooser(f"judged {number}"), curtain=curtain)
        for text, label in demo_text.hypotheses(Chooser(f"judge {number}"), scene, 6):
            negated = " not " in text
            labels[label, negated] += 1
            if visible(scene, text):
                assert label == ("contradiction" if negated else "entailment")
            elif curtain:
                assert label == "neutral"
            else:
                assert label == ("entailment" if negated else "contradiction")
    assert len(labels) == 4


def test_the_same_hypothesis_has_every_label_in_some_scene():
    labels = set()
    for shown in (scene_of(("red", "star")), scene_of(("blue", "ring"))):
        for curtain in (None, (90, 0, 120, 60)):
            scene = dataclasses.replace(shown, curtain=curtain)
            for number in range(60):
                judged = dict(demo_text.hypotheses(Chooser(f"h{number}"), scene, 6))
                labels |= {judged[text] for text in judged if text == "There is a star."}
    assert labels == {"entailment", "neutral", "contradiction"}


@pytest.mark.parametrize(
    "named", ["red thing", "black thing", "circle", "ring", "red circle", "green star"]
)
def test_pictures_show_what_is_named_as_often_as_it_is_said(named):
    """Else a text that is said of half the pictures that show it would tell something by itself."""
    words = named.split()
    color = next((word for word in words if word in COLORS), None)
    something = demo_text.Named(color, next((word for word in words if word in SHAPES), None))
    assert str(something) == f"a {named}"
    choosers = [Chooser(f"shown {number}", 0.1) for number in range(3000)]
    shown = np.mean([visible(draw_scene(chooser), named) for chooser in choosers])
    expected = something.probability(choosers[0])
    spread = 4 * (expected * (1 - expected) / len(choosers)) ** 0.5
    # A little less: of several things the last may find no place.
    assert expected - spread - 0.02 < shown < expected + spread


def facts(text: str) -> dict[tuple[str, str], str]:
    """What a sentence of the demo says: (shape, property) -> value."""
    stated = {}
    for shape, value in re.findall(r"the (\w+) (?:is|looks) (\w+)", text.lower()):
        name = next(n for n, values in pairs.PROPERTIES.items() if value in values)
        stated[shape, name] = value
    return stated


def asked(question: str) -> tuple[str | None, ...]:
    """What a question of the demo asks for: kind and the words of the world in it."""
    words = re.findall(r"\w+", question.lower())
    kinds = {"color": "color", "size": "size", "pattern": "pattern"}
    kinds |= {"many": "number", "number": "number", "count": "number"}
    kind = next((kinds[word] for word in words if word in kinds), "there")
    return kind, *(word for word in words if word in {*COLORS, *SHAPES, *SIZES, *TEXTURES})


def test_qnli_labels(texts):
    for question, text, label in texts["qnli train"][:2000]:
        kind, *_, shape = asked(question)
        assert ((shape, kind) in facts(text)) == (label == "entailment")


@pytest.mark.parametrize("split", ["train", "dev", "dev_mismatched"])
def test_mnli_labels(texts, split):
    for premise, hypothesis, label in texts[f"mnli {split}"][:2000]:
        (key, value), *more = facts(hypothesis).items()
        assert not more
        said = facts(premise).get(key)
        if said is None:
            assert label == "neutral"
        else:
            assert label == ("entailment" if said == value else "contradiction")


def test_qqp_labels(texts):
    for first, second, label in texts["qqp train"][:2000]:
        assert first != second
        assert (asked(first) == asked(second)) == (label == "1")


def test_sst2_labels(texts):
    good, bad = pairs.ADJECTIVES["1"], pairs.ADJECTIVES["0"]
    for text, _, label in texts["sst2 train"][:2000]:
        words = text.split(" but ")[-1].split()
        positive = any(word in good for word in words)
        assert positive != any(word in bad for word in words)
        negated = "not" in words or "never" in words
        assert (positive != negated) == (label == "1")


# ---- unseen compositions ------------------------------------------------------------------------


def held_out_words(text: str) -> bool:
    text = text.lower()
    return any(
        re.search(rf"\b{color} (?:\w+ )?{shape}|{shape} (?:is|looks) {color}", text)
        for color, shape in HELD_OUT
    )


def test_training_never_shows_or_mentions_held_out_pairs(texts):
    assert {color for color, _ in HELD_OUT} == set(COLORS)
    assert {shape for _, shape in HELD_OUT} == set(SHAPES)
    settings = world.DemoSettings(scale=0.3)
    for split in ("train", "val"):
        shown = [
            (thing.color, thing.shape) in HELD_OUT
            for _, scene in world.coco_scenes(settings, split)
            for thing in scene.things
        ]
        assert np.mean(shown) == 0 if split == "train" else 0.04 < np.mean(shown) < 0.2
    for name, rows in texts.items():
        mentioned = np.mean([held_out_words(first + " " + second) for first, second, _ in rows])
        if name.endswith("train"):
            assert mentioned == 0, name
        else:
            # Of rare things there are few questions.
            assert mentioned > (0.005 if name.startswith("vqa2") else 0.01), name


@pytest.mark.parametrize("task", pairs.LABELS)
def test_no_dev_text_occurs_in_training(texts, task):
    train = {row[:2] for row in texts[f"{task} train"]}
    dev = [name for name in texts if name.startswith(f"{task} dev")]
    assert dev
    for name in dev:
        assert not train & {row[:2] for row in texts[name]}


# ---- nothing is answered by the text alone ------------------------------------------------------


def majority(labels: list[str]) -> float:
    return Counter(labels).most_common(1)[0][1] / len(labels)


def bag_of_words(train: list[tuple[str, str]], dev: list[tuple[str, str]]) -> float:
    """Accuracy on dev of logistic regression on word counts."""
    vectorizer = CountVectorizer(token_pattern=r"\w+")
    features = vectorizer.fit_transform([text for text, _ in train])
    model = LogisticRegression(max_iter=300).fit(features, [label for _, label in train])
    return model.score(vectorizer.transform([t for t, _ in dev]), [label for _, label in dev])


def by_key(train: list[tuple[object, str]], dev: list[tuple[object, str]]) -> float:
    """Accuracy on dev of the label that is most frequent for a key in training."""
    counts: dict[object, Counter] = {}
    for key, label in train:
        counts.setdefault(key, Counter())[label] += 1
    default = Counter(label for _, label in train).most_common(1)[0][0]
    guess = {key: counter.most_common(1)[0][0] for key, counter in counts.items()}
    return np.mean([guess.get(key, default) == label for key, label in dev])


PAIR_TASKS = ("qnli dev", "mnli dev", "mnli dev_mismatched", "qqp dev")
ALL_TEXTS = (*PAIR_TASKS, "sst2 dev", "snli_ve dev", "vqa2 dev")


@pytest.mark.parametrize("name", PAIR_TASKS)
@pytest.mark.parametrize("side", [0, 1])
def test_one_text_alone_is_within_five_points_of_majority(texts, name, side):
    train = [(row[side], row[2]) for row in texts[f"{name.split()[0]} train"]]
    dev = [(row[side], row[2]) for row in texts[name]]
    assert abs(bag_of_words(train, dev) - majority([label for _, label in dev])) < 0.05


@pytest.mark.parametrize(
    "name, points",
    # VQA's questions tell yes/no from colours from shapes: half of nothing, for no picture.
    # SST-2 has no picture: seven of ten adjectives mean what they say.
    [("snli_ve dev", 0.05), ("sst2 dev", 0.23), ("vqa2 dev", 0.18)],
)
def test_the_text_without_the_picture_says_little(texts, name, points):
    train = [(first + second, label) for first, second, label in texts[f"{name.split()[0]} train"]]
    dev = [(first + second, label) for first, second, label in texts[name]]
    assert bag_of_words(train, dev) < majority([label for _, label in dev]) + points


@pytest.mark.parametrize("name", ALL_TEXTS)
def test_length_answers_nothing(texts, name):
    def keyed(rows):
        return [((len(a.split()), len(b.split())), label) for a, b, label in rows]

    train, dev = keyed(texts[f"{name.split()[0]} train"]), keyed(texts[name])
    allowed = 0.1 if name.startswith("vqa2") else 0.06
    assert by_key(train, dev) < majority([label for _, label in dev]) + allowed


@pytest.mark.parametrize("task", ["qnli", "mnli", "qqp", "sst2", "snli_ve"])
def test_no_word_gives_the_label_away(texts, task):
    """Among the training texts with a word, no label is much more frequent than it should be."""
    rows = texts[f"{task} train"]
    labels = Counter(label for _, _, label in rows)
    with_word: dict[tuple[int, str], Counter] = {}
    for first, second, label in rows:
        for side, text in enumerate((first, second)):
            for word in set(re.findall(r"\w+", text.lower())):
                with_word.setdefault((side, word), Counter())[label] += 1
    # A verdict's adjective is negated in three of ten cases: the best any word can do.
    allowed = 0.25 if task == "sst2" else 0.1
    for key, counter in with_word.items():
        if counter.total() >= 200:
            for label, count in counter.items():
                share = labels[label] / len(rows)
                assert count / counter.total() < share + allowed, (key, label)


@pytest.mark.parametrize("name", ALL_TEXTS)
def test_labels_are_balanced(texts, name):
    labels = [label for _, _, label in texts[name]]
    if name.startswith("vqa2"):
        assert majority(labels) < 0.28
    else:
        assert majority(labels) < 1 / len(set(labels)) + 0.03


def test_majority_of_the_vqa_answers_is_neither_yes_nor_no_by_far(texts):
    counts = Counter(label for _, _, label in texts["vqa2 train"])
    assert 0.8 < counts["yes"] / counts["no"] < 1.25
    colors = [counts[color] for color in COLORS]
    assert max(colors) < 1.5 * min(colors)
