"""The demo world's texts about pictures: questions with answers, hypotheses with labels, captions.

Labels follow from the scene, and wordings are drawn regardless of labels.
"""

import dataclasses
from collections.abc import Callable, Mapping

from unit_jax.demo.scenes import SHAPES, Chooser, Scene, Thing

# What else an annotator may say instead of the answer.
SYNONYMS: Mapping[str, str] = {
    "red": "dark red",
    "green": "dark green",
    "blue": "dark blue",
    "yellow": "gold",
    "purple": "violet",
    "black": "dark",
    "circle": "disk",
    "square": "box",
    "triangle": "tent",
    "star": "starfish",
    "cross": "plus",
    "ring": "donut",
    "small": "little",
    "big": "large",
    "plain": "none",
    "striped": "stripes",
    "dotted": "dots",
    "yes": "no",
    "no": "yes",
}

QUESTIONS: Mapping[str, tuple[str, ...]] = {
    "color": ("what color is the {shape}", "which color does the {shape} have"),
    "size": ("what size is the {shape}", "which size does the {shape} have"),
    "pattern": ("what pattern is on the {shape}", "which pattern does the {shape} have"),
}


@dataclasses.dataclass(frozen=True)
class Question:
    """A VQA question about a scene; `type` is its first words, `answer_type` as in VQAv2."""

    text: str
    answer: str
    type: str
    answer_type: str


def sentence(text: str, end: str = ".") -> str:
    """Capital letter and full stop (or `end`)."""
    return text[0].upper() + text[1:] + end


# ---- questions about scenes (VQAv2) -------------------------------------------------------------


def _unique(scene: Scene, attribute: str) -> list[Thing]:
    values = [getattr(thing, attribute) for thing in scene.things]
    return [thing for thing in scene.things if values.count(getattr(thing, attribute)) == 1]


def _ask_property(chooser: Chooser, scene: Scene, name: str) -> Question | None:
    things = _unique(scene, "shape")
    if not things:
        return None
    thing = chooser.choice(things)
    text = chooser.choice(QUESTIONS[name]).format(shape=thing.shape)
    answer = {"color": thing.color, "size": thing.size, "pattern": thing.texture}[name]
    return Question(text, answer, " ".join(text.split()[:2]), "other")


def _ask_shape(chooser: Chooser, scene: Scene) -> Question | None:
    things = _unique(scene, "color")
    if not things:
        return None
    thing = chooser.choice(things)
    text = chooser.choice(("what shape is {color}", "what is the {color} thing"))
    return Question(text.format(color=thing.color), thing.shape, "what", "other")


def _ask_whether_there(chooser: Chooser, scene: Scene) -> Question | None:
    answer = chooser.choice(("yes", "no"))
    thing = describe(chooser, scene, present=answer == "yes")
    if thing is None:
        return None
    text = chooser.choice(("is there {}", "can you see {}")).format(thing)
    return Question(text, answer, " ".join(text.split()[:2]), "yes/no")


def _ask_whether_color(chooser: Chooser, scene: Scene) -> Question | None:
    things = _unique(scene, "shape")
    if not things:
        return None
    thing = chooser.choice(things)
    answer = chooser.choice(("yes", "no"))
    color = thing.color if answer == "yes" else chooser.color(thing.shape, exclude=[thing.color])
    return Question(f"is the {thing.shape} {color}", answer, "is the", "yes/no")


def _ask_number(chooser: Chooser, scene: Scene) -> Question | None:
    shapes = [thing.shape for thing in scene.things]
    count = chooser.choice(sorted({shapes.count(shape) for shape in SHAPES}))
    shape = chooser.choice([shape for shape in SHAPES if shapes.count(shape) == count])
    plural = shape + ("es" if shape.endswith("s") else "s")
    return Question(f"how many {plural} are there", str(count), "how many", "number")


_ASK: Mapping[str, Callable[[Chooser, Scene], Question | None]] = {
    "color": lambda chooser, scene: _ask_property(chooser, scene, "color"),
    "size": lambda chooser, scene: _ask_property(chooser, scene, "size"),
    "pattern": lambda chooser, scene: _ask_property(chooser, scene, "pattern"),
    "shape": _ask_shape,
    "there": _ask_whether_there,
    "is color": _ask_whether_color,
    "number": _ask_number,
}
# How often each kind is asked; no answer reaches a quarter of the questions.
QUESTION_SHARES: Mapping[str, float] = {
    "color": 0.38,
    "shape": 0.16,
    "there": 0.26,
    "is color": 0.10,
    "number": 0.04,
    "size": 0.03,
    "pattern": 0.03,
}


def ask(chooser: Chooser, scene: Scene, number: int) -> list[Question]:
    """Up to `number` different questions that the scene answers without doubt."""
    questions: dict[str, Question] = {}
    for _ in range(4 * number):
        kind = chooser.choices(tuple(QUESTION_SHARES), tuple(QUESTION_SHARES.values()))[0]
        question = _ASK[kind](chooser, scene)
        if question is not None and len(questions) < number:
            questions.setdefault(question.text, question)
    return list(questions.values())


def annotate(chooser: Chooser, answer: str) -> list[str]:
    """Ten annotators' answers: in a third of the cases one to three of them say something else."""
    others = chooser.randint(1, 3) if chooser.chance(1 / 3) else 0
    other = str(int(answer) + 1) if answer.isdigit() else SYNONYMS[answer]
    answers = [answer] * (10 - others) + [other] * others
    chooser.shuffle(answers)
    return answers


# ---- what a scene shows, and what it does not ---------------------------------------------------


def describe(chooser: Chooser, scene: Scene, *, present: bool) -> str | None:
    """Names something visible or absent: "a red star", "a star" or "a red thing".

    An absent one shares a word with a visible thing as often as chance has it, or more: then the
    picture shows a star and something red, but no red star.
    """
    visible = [(thing.color, thing.shape) for thing in scene.things]
    slots = chooser.choice(("color and shape", "color and shape", "color", "shape"))
    for _ in range(20):
        if present:
            color, shape = chooser.choice(visible)
        elif chooser.chance(0.4):
            color, shape = chooser.choice(visible)
            if chooser.chance(0.5):
                color = chooser.color(shape, exclude=[color])
            else:
                shape = chooser.shape(color, exclude=[shape])
        else:
            color, shape = chooser.pair()
        there = {
            "color and shape": (color, shape) in visible,
            "color": any(color == c for c, _ in visible),
            "shape": any(shape == s for _, s in visible),
        }[slots]
        if there == present:
            return {
                "color and shape": f"a {color} {shape}",
                "color": f"a {color} thing",
                "shape": f"a {shape}",
            }[slots]
    return None


def caption(scene: Scene) -> str:
    """One sentence that names everything in the picture."""
    names = [f"a {thing.size} {thing.color} {thing.shape}" for thing in scene.things]
    if scene.curtain:
        names.append("a curtain")
    return sentence(" and ".join(names))


# ---- visual entailment (SNLI-VE) ----------------------------------------------------------------

_POSITIVE = ("there is {}", "{} is in the picture", "the picture shows {}", "we can see {}")
_NEGATIVE = (
    "there is not {}",
    "{} is not in the picture",
    "the picture does not show {}",
    "we can not see {}",
)
NEGATED_SHARE = 0.2


def hypotheses(chooser: Chooser, scene: Scene, number: int) -> list[tuple[str, str]]:
    """`number` pairs (hypothesis, label) about the scene, a third of them about visible things.

    What is visible makes a statement true and its negation false. What is not visible makes it
    false (its negation true), unless a curtain hangs in the picture: then it stays open, because
    the thing may be behind it. All three labels come from the same sentences.
    """
    pairs: dict[str, str] = {}
    turn = 0
    for _ in range(20 * number):
        if len(pairs) == number:
            break
        present = turn % 3 == 0
        negated = chooser.chance(NEGATED_SHARE)
        thing = describe(chooser, scene, present=present)
        if thing is None:
            continue
        text = sentence(chooser.choice(_NEGATIVE if negated else _POSITIVE).format(thing))
        if text in pairs:
            continue
        if scene.curtain and not present:
            label = "neutral"
        else:
            label = "entailment" if present != negated else "contradiction"
        pairs[text] = label
        turn += 1
    return list(pairs.items())
