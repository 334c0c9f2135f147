"""Plain Python splits texts as the `tokenizers` package does."""

import random
import string

from unit_jax.data.text import Tokenizer
from unit_jax.wordpiece import WordPiece

VOCABULARY = [
    *("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "the", "red", "square", "un", "##able"),
    *string.ascii_lowercase,
    *(f"##{c}" for c in string.ascii_lowercase),
    *string.punctuation,
    *("漢", "字", "ß", "œ"),
]
ODD = ["[SEP]", "[MASK]", "é", "漢字", "ΟΔΟΣ", "İ", "a" * 101, "ﬁ", "\u200b", "\u2028", "\x1c", "ß"]


def test_the_same_ids_for_any_text():
    draw = random.Random(0)

    def piece() -> str:
        kind = draw.random()
        if kind < 0.4:
            return draw.choice(VOCABULARY)
        if kind < 0.6:
            return "".join(draw.choice(string.printable) for _ in range(5))
        if kind < 0.8:
            return draw.choice(ODD)
        c = chr(draw.randrange(0x600))
        return c  # of later Unicode versions the two may know different ones

    def text() -> str:
        return "".join(piece() + draw.choice(["", " "]) for _ in range(draw.randrange(9)))

    theirs, ours = Tokenizer(VOCABULARY), WordPiece(VOCABULARY)
    for _ in range(3000):
        first, second, longest = text(), text(), draw.randrange(5, 40)
        ids, count = theirs.encode([first], [second], longest)[0]
        assert ours.encode(first, second, longest) == (ids.tolist(), count), (first, second)
