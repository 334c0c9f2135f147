"""VQA accuracy as the challenge's server (EvalAI) computes it: on strings, in its normal form.

The reference's own figure, `vqa_accuracy`, is on label numbers: an answer outside the answer list
can never be right there, and spellings count as its short normal form has them.
https://visualqa.org/evaluation.html describes the server's form.
"""

import functools
import re
from collections.abc import Sequence

_PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
_ARTICLES = ("a", "an", "the")
_NUMBERS = dict(zip(
    "none zero one two three four five six seven eight nine ten".split(),
    "0 0 1 2 3 4 5 6 7 8 9 10".split(),
    strict=True,
))  # fmt: skip
_CONTRACTED = """ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't
hadn't've hasn't haven't he'd he'd've he's how'd how'll how's isn't it'd it'd've it'll ma'am
mightn't mightn't've might've mustn't must've needn't not've o'clock oughtn't 'ow's'at shan't
she'd've should've shouldn't shouldn't've somebody'd've somebody'll somebody's someone'd
someone'd've someone'll someone's something'd something'd've something'll that's there'd there'd've
there're there's they'd they'd've they'll they're they've 'twas wasn't we'd've we've weren't what'll
what're what's what've when's where'd where's where've who'd who'd've who'll who's who've why'll
why're why's won't would've wouldn't wouldn't've y'all y'all'll y'all'd've you'd you'd've you'll
you're you've""".split()
# A word that lacks one of its apostrophes gets it back (and one word loses it, as on the server).
_CONTRACTIONS = {
    word[:place] + word[place + 1 :]: word
    for word in _CONTRACTED
    for place, letter in enumerate(word)
    if letter == "'"
} | {"somebody'd": "somebodyd"}


@functools.lru_cache(maxsize=2**17)
def normalise(answer: str) -> str:
    """An answer in the server's normal form.

    Lower case; punctuation is dropped where it stands beside a space (or in an answer with a number
    like 1,000) and is a space elsewhere; full stops go unless a digit follows; number words are
    digits; articles go; contractions have their apostrophe.
    """
    text = answer.replace("\n", " ").replace("\t", " ").strip()
    grouped = re.search(r"\d,\d", text) is not None
    made = text
    for mark in _PUNCTUATION:
        beside = f"{mark} " in text or f" {mark}" in text
        made = made.replace(mark, "" if beside or grouped else " ")
    made = re.sub(r"\.(?!\d)", "", made)
    words = (_NUMBERS.get(word, word) for word in made.lower().split())
    return " ".join(_CONTRACTIONS.get(word, word) for word in words if word not in _ARTICLES)


def as_written(label: str) -> str:
    """A label of the answer list as people write it, which is what the server compares with.

    The reference sets 's apart as a word of its own; the server does not.
    """
    return label.replace(" 's", "'s")


def accuracy(answer: str, given: Sequence[str]) -> float:
    """The server's score in [0, 1] of an answer to one question.

    The mean over the annotators of min(1, agreement of the others / 3).

    Args:
      answer: as handed in.
      given: what the annotators said, at least one.
    """
    agree = sum(normalise(other) == normalise(answer) for other in given)
    others = len(given) - agree
    return (agree * min(1, (agree - 1) / 3) + others * min(1, agree / 3)) / len(given)
