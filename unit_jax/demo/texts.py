"""The demo world's language: questions, hypotheses and sentences whose labels follow from content.

Pairs are built so that the second text alone says nothing about the label: it is drawn first, and
only then, for a given label, the first one. Called with choosers of the same key, a maker gives the
same second text with every label. What is compared differs in as little as one word, and wordings
are drawn regardless of labels, so that neither length nor single words answer anything.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence

from unit_jax.demo.scenes import COLORS, SHAPES, SIZES, TEXTURES, Chooser, Scene, Thing

PROPERTIES: Mapping[str, tuple[str, ...]] = {
    "color": tuple(COLORS),
    "size": tuple(SIZES),
    "pattern": TEXTURES,
}

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

FACTS = ("the {shape} is {value}", "the {shape} looks {value}")


@dataclasses.dataclass(frozen=True)
class Question:
    """A VQA question about a scene; `type` is its first words, `answer_type` as in VQAv2."""

    text: str
    answer: str
    type: str
    answer_type: str


@dataclasses.dataclass(frozen=True)
class Pair:
    """One example of a language task; `second` is "" for single sentences, `genre` for MNLI."""

    first: str
    second: str
    label: str
    genre: str = ""


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
    found = describe(chooser, scene, present=answer == "yes")
    if found is None:
        return None
    text = chooser.choice(("is there {}", "can you see {}")).format(found)
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
        found = describe(chooser, scene, present=present)
        if found is None:
            continue
        text = sentence(chooser.choice(_NEGATIVE if negated else _POSITIVE).format(found))
        if text in pairs:
            continue
        if scene.curtain and not present:
            label = "neutral"
        else:
            label = "entailment" if present != negated else "contradiction"
        pairs[text] = label
        turn += 1
    return list(pairs.items())


# ---- language only (GLUE) -----------------------------------------------------------------------

LABELS: Mapping[str, tuple[str, ...]] = {
    "qnli": ("entailment", "not_entailment"),
    "mnli": ("entailment", "neutral", "contradiction"),
    "qqp": ("0", "1"),
    "sst2": ("0", "1"),
}

Fact = tuple[str, str, str]  # shape, property, value
# How many of the pairs that do not belong together are about other things altogether, not close.
FAR_SHARE = 0.7


def _value(chooser: Chooser, shape: str, name: str, exclude: Sequence[str] = ()) -> str:
    if name == "color":
        return chooser.color(shape, exclude)
    return chooser.choice([value for value in PROPERTIES[name] if value not in exclude])


def _property(chooser: Chooser, exclude: Sequence[str] = ()) -> str:
    # Equally likely ones, so that a swapped property is as likely as the one it replaces.
    return chooser.choice([name for name in PROPERTIES if name not in exclude])


def _state(chooser: Chooser, fact: Fact) -> str:
    shape, _, value = fact
    return chooser.choice(FACTS).format(shape=shape, value=value)


def _state_all(chooser: Chooser, facts: Sequence[Fact], frames: Sequence[str]) -> str:
    joined = chooser.choice((" and ", " while ")).join([_state(chooser, fact) for fact in facts])
    return sentence(chooser.choice(frames).format(joined))


QNLI_FRAMES = ("{}", "{} here")


def qnli(chooser: Chooser, label: str) -> Pair:
    """A question and a sentence with one or two facts: does the sentence answer the question?

    A question that is not answered is about something else altogether, or close: it asks for
    another shape, for another property, or (two facts) for one shape's property of the other.
    """
    names = ("color", "color", "color", "size", "pattern")
    shapes = chooser.sample(SHAPES, 2 if chooser.chance(0.1) else 1)
    facts = [(shape, chooser.choice(names)) for shape in shapes]
    text = _state_all(
        chooser, [(s, name, _value(chooser, s, name)) for s, name in facts], QNLI_FRAMES
    )
    shape, name = chooser.choice(facts)
    if label == "not_entailment" and chooser.chance(FAR_SHARE):
        shape = chooser.choice([s for s in SHAPES if s not in dict(facts)])
        name = chooser.choice(names)
    while label == "not_entailment" and (shape, name) in facts:
        shape, name = chooser.choice(facts)
        # "color" is given up for one of the others as often as they are for it, so that what is
        # asked for says nothing: 3/5 * 1/3 = 2/5 * 1/2.
        if not chooser.chance(1 / 3 if name == "color" else 1 / 2):
            shape = chooser.choice([s for s in SHAPES if s != shape])
        else:
            name = chooser.choice(("size", "pattern")) if name == "color" else "color"
    return Pair(_request(chooser, chooser.choice(QUESTIONS[name]).format(shape=shape)), text, label)


_REQUESTS = ("{}", "{} here", "{} now")


def _request(chooser: Chooser, question: str) -> str:
    return sentence(chooser.choice(_REQUESTS).format(question), "?")


MNLI_FRAMES = {
    "caption": ("{}", "{} here"),
    "note": ("see, {}", "so {}"),
}
MNLI_MISMATCHED_FRAMES = {
    "report": ("we see that {}", "we see {}"),
    "story": ("look, {}", "look here, {}"),
}
_CLAIMS = ("{}", "so {}", "{} here")


def mnli(chooser: Chooser, label: str, *, mismatched: bool = False) -> Pair:
    """A premise with one to three facts and a hypothesis that it states, denies or leaves open.

    The premise has the same fact, another value for it, or only others: about another shape,
    another property, or both.
    """
    shape = chooser.choice(SHAPES)
    name = _property(chooser)
    value = _value(chooser, shape, name)
    hypothesis = sentence(chooser.choice(_CLAIMS).format(_state(chooser, (shape, name, value))))
    if label == "entailment":
        key = (shape, name, value)
    elif label == "contradiction":
        key = (shape, name, _value(chooser, shape, name, exclude=[value]))
    elif chooser.chance(FAR_SHARE):
        other = chooser.choice([s for s in SHAPES if s != shape])
        other_name = _property(chooser)
        key = (other, other_name, _value(chooser, other, other_name))
    elif chooser.chance(0.6):
        other = chooser.choice([s for s in SHAPES if s != shape])
        same_value = chooser.chance(0.5) and not (name == "color" and value != chooser.color(other))
        key = (other, name, value if same_value else _value(chooser, other, name))
    else:
        other = _property(chooser, exclude=[name])
        key = (shape, other, _value(chooser, shape, other))
    facts = [key]
    for _ in range(chooser.choice((0, 0, 0, 0, 0, 0, 0, 1))):
        others = [s for s in SHAPES if s != shape and s not in {fact[0] for fact in facts}]
        other, other_name = chooser.choice(others), _property(chooser)
        facts.append((other, other_name, _value(chooser, other, other_name)))
    chooser.shuffle(facts)
    frames = MNLI_MISMATCHED_FRAMES if mismatched else MNLI_FRAMES
    genre = chooser.choice(tuple(frames))
    return Pair(_state_all(chooser, facts, frames[genre]), hypothesis, label, genre)


_PARAPHRASES: Mapping[str, tuple[str, ...]] = {
    **{
        name: tuple(
            text.replace("{shape}", "{extra}{shape}")
            for text in (*questions, f"what is the {name} of the {{shape}}")
        )
        for name, questions in QUESTIONS.items()
    },
    "there": (
        "is there a {extra}{color} {shape}",
        "can you see a {extra}{color} {shape}",
        "does it show a {extra}{color} {shape}",
    ),
    "number": (
        "how many {extra}{color} {shape} pieces are there",
        "what is the number of {extra}{color} {shape} pieces",
        "can you count the {extra}{color} {shape} pieces",
    ),
}
_PLACES = ("left", "right", "upper", "lower")


def _kind(chooser: Chooser) -> str:
    return chooser.choices(tuple(_PARAPHRASES), (2, 2, 2, 3, 1))[0]


def _extra(chooser: Chooser, kind: str) -> str:
    words = (*SIZES, *TEXTURES) if kind in ("there", "number") else _PLACES
    return chooser.choice(words) + " "


def qqp(chooser: Chooser, label: str) -> Pair:
    """Two questions: the same one in other words, or another one; some of those are close, with
    a single slot that differs."""
    kind = _kind(chooser)
    color, shape = chooser.pair()
    # A further word that both questions have, or none.
    extra = _extra(chooser, kind) if chooser.chance(0.3) else ""
    words = chooser.choice(_PARAPHRASES[kind])
    second = _request(chooser, words.format(extra=extra, color=color, shape=shape))

    slot = ""
    if label == "0" and chooser.chance(FAR_SHARE):
        shape = chooser.choice([s for s in SHAPES if s != shape])
        color = chooser.color(shape, exclude=[color])
        kind = _kind(chooser)
        extra = _extra(chooser, kind) if extra else ""
    elif label == "0":
        slots = ("color", "shape") if kind in ("there", "number") else ("shape", "shape", "kind")
        slot = chooser.choice(slots)
    if slot == "color":
        color = chooser.color(shape, exclude=[color])
    elif slot == "shape":
        shape = chooser.shape(color, exclude=[shape])
    elif slot == "kind":
        kind = _property(chooser, exclude=[kind])
    other_words = chooser.choice([text for text in _PARAPHRASES[kind] if text != words])
    first = _request(chooser, other_words.format(extra=extra, color=color, shape=shape))
    return Pair(first, second, label)


ADJECTIVES: Mapping[str, tuple[str, ...]] = {
    "1": ("nice", "lovely", "great", "pretty", "bright"),
    "0": ("bad", "ugly", "dull", "boring", "poor"),
}
_VERDICTS = {
    False: (
        "the {noun} is {adjective}",
        "this is a {adjective} {noun}",
        "what a {adjective} {noun}",
    ),
    True: (
        "the {noun} is not {adjective}",
        "this is not a {adjective} {noun}",
        "not a {adjective} {noun}",
        "the {noun} is never {adjective}",
    ),
}
_ADVERBS = ("", "very ", "really ", "quite ", "so ")
NEGATED_VERDICTS = 0.4


def _verdict(chooser: Chooser, label: str) -> str:
    negated = chooser.chance(NEGATED_VERDICTS)
    polarity = {"0": "1", "1": "0"}[label] if negated else label
    adjective = chooser.choice(_ADVERBS) + chooser.choice(ADJECTIVES[polarity])
    color, shape = chooser.pair()
    noun = chooser.choice((f"{color} {shape}", f"{shape}", "picture", f"picture of the {shape}"))
    text = chooser.choice(_VERDICTS[negated]).format(noun=noun, adjective=adjective)
    return text.replace(" a ugly", " an ugly")


def sst2(chooser: Chooser, label: str) -> Pair:
    """A verdict whose adjective may be negated; after "but" comes the part that counts."""
    text = _verdict(chooser, label)
    if chooser.chance(0.25):
        text = _verdict(chooser, chooser.choice(("0", "1"))) + " but " + text
    return Pair(text + " .", "", label)
