"""The demo world's texts about pictures: questions with answers, hypotheses with labels, captions.

Labels follow from the scene, and wordings are drawn regardless of labels.
"""

import dataclasses
from collections.abc import Callable, Mapping

from unit_jax.demo.scenes import COLORS, NUM_THINGS, SHAPES, Chooser, Scene, Thing

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


def _drawn_once(scene: Scene, what: str, probability: float) -> bool:
    """A random choice that is the same whenever it is asked for again about this picture."""
    return Chooser(f"{scene.seed}/{what}").chance(probability)


def _evened(chooser: Chooser, scene: Scene, thing: Thing, name: str) -> bool:
    """Whether to ask for the color or shape ("name") of `thing`, such that every answer to the
    question is as frequent as its rarest."""
    other = {"color": "shape", "shape": "color"}[name]
    known = getattr(thing, other)
    alike = [share for pair, share in chooser.shares.items() if known in pair and share]
    share = min(alike) / chooser.shares[thing.color, thing.shape]
    return _drawn_once(scene, f"{name} of the {known}", share)


def _balanced(scene: Scene, what: str, shown: bool, probability: float, share: float = 0.5) -> bool:
    """Whether to say of this picture what was drawn regardless of it, such that a share `share`
    of the pictures that it is said of shows it: then the text alone tells nothing.

    Args:
      shown: whether this picture shows it.
      probability: that a picture does.
    """
    if not 0 < probability < 1:
        return False
    odds = probability * (1 - share) / ((1 - probability) * share)
    return _drawn_once(scene, what, min(1.0, 1 / odds if shown else odds))


def _ask_property(chooser: Chooser, scene: Scene, name: str) -> Question | None:
    things = _unique(scene, "shape")
    if not things:
        return None
    thing = chooser.choice(things)
    if name == "color" and not _evened(chooser, scene, thing, "color"):
        return None
    text = chooser.choice(QUESTIONS[name]).format(shape=thing.shape)
    answer = {"color": thing.color, "size": thing.size, "pattern": thing.texture}[name]
    return Question(text, answer, " ".join(text.split()[:2]), "other")


def _ask_shape(chooser: Chooser, scene: Scene) -> Question | None:
    things = _unique(scene, "color")
    if not things:
        return None
    thing = chooser.choice(things)
    if not _evened(chooser, scene, thing, "shape"):
        return None
    text = chooser.choice(("what shape is {color}", "what is the {color} thing"))
    return Question(text.format(color=thing.color), thing.shape, "what", "other")


def _ask_whether_there(chooser: Chooser, scene: Scene) -> Question | None:
    named = name_something(chooser)
    shown = named.is_shown(scene)
    if not _balanced(scene, str(named), shown, named.probability(chooser)):
        return None
    text = chooser.choice(("is there {}", "can you see {}")).format(named)
    return Question(text, "yes" if shown else "no", " ".join(text.split()[:2]), "yes/no")


def _ask_whether_color(chooser: Chooser, scene: Scene) -> Question | None:
    things = _unique(scene, "shape")
    if not things:
        return None
    thing = chooser.choice(things)
    shares = {color: chooser.shares[color, thing.shape] for color in COLORS}
    color = chooser.choices(tuple(shares), tuple(shares.values()))[0]
    shown = color == thing.color
    text = f"is the {thing.shape} {color}"
    if not _balanced(scene, text, shown, shares[color] / sum(shares.values())):
        return None
    return Question(text, "yes" if shown else "no", "is the", "yes/no")


def plural(shape: str) -> str:
    """Several of them: "crosses"."""
    return shape + ("es" if shape.endswith("s") else "s")


def _ask_number(chooser: Chooser, scene: Scene) -> Question | None:
    shapes = [thing.shape for thing in scene.things]
    count = chooser.choice(sorted({shapes.count(shape) for shape in SHAPES}))
    shape = chooser.choice([shape for shape in SHAPES if shapes.count(shape) == count])
    return Question(f"how many {plural(shape)} are there", str(count), "how many", "number")


_ASK: Mapping[str, Callable[[Chooser, Scene], Question | None]] = {
    "color": lambda chooser, scene: _ask_property(chooser, scene, "color"),
    "size": lambda chooser, scene: _ask_property(chooser, scene, "size"),
    "pattern": lambda chooser, scene: _ask_property(chooser, scene, "pattern"),
    "shape": _ask_shape,
    "there": _ask_whether_there,
    "is color": _ask_whether_color,
    "number": _ask_number,
}
# How often each kind is tried; those that are evened or balanced are often given up. Of what is
# asked, no answer reaches a quarter.
QUESTION_SHARES: Mapping[str, float] = {
    "color": 0.6,
    "shape": 0.4,
    "there": 0.15,
    "is color": 0.03,
    "number": 0.004,
    "size": 0.004,
    "pattern": 0.004,
}


def ask(chooser: Chooser, scene: Scene, number: int) -> list[Question]:
    """Up to `number` different questions that the scene answers without doubt."""
    questions: dict[str, Question] = {}
    for _ in range(12 * number):
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


@dataclasses.dataclass(frozen=True)
class Named:
    """Something that a picture may show: "a red star", "a red thing" or "a star"."""

    color: str | None
    shape: str | None

    def __str__(self) -> str:
        return " ".join(("a", *([self.color] if self.color else []), self.shape or "thing"))

    def fits(self, color: str, shape: str) -> bool:
        return self.color in (None, color) and self.shape in (None, shape)

    def is_shown(self, scene: Scene) -> bool:
        return any(self.fits(thing.color, thing.shape) for thing in scene.things)

    def probability(self, chooser: Chooser) -> float:
        """That a picture shows it, whose things are as likely as `chooser.shares` says."""
        share = sum(share for pair, share in chooser.shares.items() if self.fits(*pair))
        return 1 - sum((1 - share) ** number for number in NUM_THINGS) / len(NUM_THINGS)


def name_something(chooser: Chooser) -> Named:
    """Draws what to name, regardless of any picture.

    Pairs come up more often as fewer of them are kept, see `_balanced`.
    """
    color, shape = chooser.pair()
    slots = chooser.choices(("both", "color", "shape"), (6, 1, 1))[0]
    return Named(None if slots == "shape" else color, None if slots == "color" else shape)


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
    for _ in range(40 * number):
        if len(pairs) == number:
            break
        named = name_something(chooser)
        present = named.is_shown(scene)
        if not _balanced(scene, str(named), present, named.probability(chooser), 1 / 3):
            continue
        negated = chooser.chance(NEGATED_SHARE)
        text = sentence(chooser.choice(_NEGATIVE if negated else _POSITIVE).format(named))
        if scene.curtain and not present:
            label = "neutral"
        else:
            label = "entailment" if present != negated else "contradiction"
        pairs[text] = label
    return list(pairs.items())
