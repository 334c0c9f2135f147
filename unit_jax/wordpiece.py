"""WordPiece as BERT uncased has it, in plain Python: for programs that run with JAX alone.

`data/text.py` does the same faster with the `tokenizers` package; a test holds them equal.
"""

import unicodedata
from collections.abc import Sequence

SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
LONGEST_WORD = 100  # characters; a longer word is unknown


class WordPiece:
    """Token ids of texts.

    Args:
      vocabulary: the tokens by id.
    """

    def __init__(self, vocabulary: Sequence[str]):
        self._ids = {token: number for number, token in enumerate(vocabulary)}
        self._special = [token for token in SPECIAL if token in self._ids]

    def encode(self, first: str, second: str, max_tokens: int) -> tuple[list[int], int]:
        """[CLS] first [SEP] (second [SEP]) and how many ids belong to the first text."""
        cls, sep = self._ids["[CLS]"], self._ids["[SEP]"]
        return join(self.ids(first), self.ids(second), max_tokens, cls, sep)

    def ids(self, text: str) -> list[int]:
        """Ids of a text, without [CLS] and [SEP]."""
        numbers: list[int] = []
        for part in self._around_special(text):
            if part in self._special:
                numbers.append(self._ids[part])
                continue
            for word in _words(_normalised(part)):
                numbers += self._pieces(word)
        return numbers

    def _around_special(self, text: str) -> list[str]:
        """The text cut at special tokens spelled out in it, which are those tokens."""
        parts, rest = [], text
        while rest:
            places = [(rest.find(token), token) for token in self._special if token in rest]
            if not places:
                return [*parts, rest]
            start, token = min(places)
            parts += [rest[:start], token]
            rest = rest[start + len(token) :]
        return parts

    def _pieces(self, word: str) -> list[int]:
        """The longest pieces from left to right; [UNK] where some rest is none."""
        unknown = [self._ids["[UNK]"]]
        if len(word) > LONGEST_WORD:
            return unknown
        pieces, start = [], 0
        while start < len(word):
            for end in range(len(word), start, -1):
                piece = self._ids.get("##" * (start > 0) + word[start:end])
                if piece is not None:
                    break
            else:
                return unknown
            pieces.append(piece)
            start = end
        return pieces


def join(
    first: Sequence[int], second: Sequence[int], max_tokens: int, cls: int, sep: int
) -> tuple[list[int], int]:
    """[CLS] first [SEP] (second [SEP]), at most `max_tokens` ids.

    While they are too many, the last token of the longer text is dropped (of the second on a tie),
    as in the reference. An empty second text counts as none.

    Returns:
      the ids, and how many of them are of segment 0.
    """
    a, b = len(first), len(second)
    surplus = max(a + b + (3 if b else 2) - max_tokens, 0)
    # First the longer text shrinks to the shorter one's length, then both in turn.
    longer = min(surplus, abs(a - b))
    a, b = (a - longer, b) if a > b else (a, b - longer)
    turns = surplus - longer
    a, b = a - turns // 2, b - (turns + 1) // 2
    ids = [cls, *first[:a], sep]
    return ([*ids, *second[:b], sep] if second else ids), len(ids)


def _normalised(text: str) -> str:
    """Control characters dropped, white space made blanks, accents stripped, lower case."""
    kept = []
    for c in text:
        if c in "\t\n\r":
            kept.append(" ")
        elif c in "\0\ufffd" or unicodedata.category(c) in ("Cc", "Cf", "Co"):
            continue
        elif c.isspace():
            kept.append(" ")
        elif _is_chinese(ord(c)):
            kept.append(f" {c} ")
        else:
            kept.append(c)
    decomposed = unicodedata.normalize("NFD", "".join(kept))
    return "".join(c.lower() for c in decomposed if unicodedata.category(c) != "Mn")


def _words(text: str) -> list[str]:
    """Split at white space and around every punctuation mark."""
    words, word = [], ""
    for c in text:
        if c.isspace() or _is_punctuation(c):
            words += [word] if word else []
            word = ""
            words += [c] if not c.isspace() else []
        else:
            word += c
    return words + ([word] if word else [])


def _is_punctuation(c: str) -> bool:
    code = ord(c)
    ascii_mark = 33 <= code <= 47 or 58 <= code <= 64 or 91 <= code <= 96 or 123 <= code <= 126
    return ascii_mark or unicodedata.category(c)[0] == "P"


def _is_chinese(code: int) -> bool:
    return any(
        low <= code <= high
        for low, high in (
            (0x4E00, 0x9FFF),
            (0x3400, 0x4DBF),
            (0x20000, 0x2A6DF),
            (0x2A700, 0x2B73F),
            (0x2B740, 0x2B81F),
            (0x2B920, 0x2CEAF),
            (0xF900, 0xFAFF),
            (0x2F800, 0x2FA1F),
        )
    )
