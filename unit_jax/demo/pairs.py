"""The demo world's sentences and pairs of texts, with labels that follow from what they say.

Pairs are built so that the second text alone says nothing about the label: it is drawn first, and
only then, for a given label, the first one. Called with choosers of the same key, a maker gives the
same second text with every label. What is compared differs in as little as one word, and wordings
are drawn regardless of labels, so that neither length nor single words answer anything.
"""

import dataclasses
from collections.abc import Mapping, Sequence

from unit_jax.demo.scenes import COLORS, SHAPES, SIZES, TEXTURES, Chooser
from unit_jax.demo.texts import QUESTIONS, sentence

PROPERTIES: Mapping[str, tuple[str, ...]] = {
    "color": tuple(COLORS),
    "size": tuple(SIZES),
    "pattern": TEXTURES,
}

FACTS = ("the {shape} is {value}", "the {shape} looks {value}")


@dataclasses.dataclass(frozen=True)
class Pair:
    """One example of a language task; `second` is "" for single sentences, `genre` for MNLI."""

    first: str
    second: str
    label: str
    genre: str = ""


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
    "caption": ("{}", "{} here", "now here, {}"),
    "note": ("see, {}", "so {}", "so now, {}"),
}
# Genres that training does not show. Their words it does, elsewhere: a BERT that starts from
# nothing could not know others.
MNLI_MISMATCHED_FRAMES = {
    "report": ("we see {}", "here we see {}"),
    "story": ("see here, {}", "so here, {}"),
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
NEGATED_VERDICTS = 0.3


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
