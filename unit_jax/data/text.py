"""Texts to token ids."""

import os
import pathlib
from collections.abc import Sequence

import numpy as np
import tokenizers
from jaxtyping import Int

Encoded = tuple[Int[np.ndarray, "tokens"], int]  # ids, and how many belong to the first text


class Tokenizer:
    """WordPiece as BERT uncased has it: lower case, accents stripped, punctuation split off.

    Args:
      vocabulary: path of a vocab.txt, one token a line, or the tokens themselves.

    Raises:
      ValueError: the file lacks a special token, or [PAD] is not its first line (the model takes
        id 0 for padding).
    """

    def __init__(self, vocabulary: str | os.PathLike | Sequence[str]):
        # Not splitlines: a token may be one of Unicode's other line separators.
        if isinstance(vocabulary, (str, os.PathLike)):
            text = pathlib.Path(vocabulary).read_bytes().decode().replace("\r\n", "\n")
            lines = text.removesuffix("\n").split("\n")
        else:
            lines, vocabulary = list(vocabulary), "the vocabulary"
        ids = {token: i for i, token in enumerate(lines)}
        special = ("[PAD]", "[UNK]", "[CLS]", "[SEP]")
        missing = [token for token in special if token not in ids]
        if missing or ids["[PAD]"] != 0:
            problem = f"lacks {', '.join(missing)}" if missing else "does not start with [PAD]"
            raise ValueError(
                f"{vocabulary} {problem}; give a BERT WordPiece vocabulary (data.vocabulary)"
            )
        self.size = len(lines)
        self._cls, self._sep = ids["[CLS]"], ids["[SEP]"]
        model = tokenizers.models.WordPiece(ids, unk_token="[UNK]", max_input_chars_per_word=100)
        self._tokenizer = tokenizers.Tokenizer(model)
        self._tokenizer.normalizer = tokenizers.normalizers.BertNormalizer(lowercase=True)
        self._tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.BertPreTokenizer()
        # As in BERT's own tokenizers, a special token spelled out in a text is that token.
        self._tokenizer.add_special_tokens([t for t in (*special, "[MASK]") if t in ids])

    def encode(
        self, first: Sequence[str], second: Sequence[str] | None, max_tokens: int
    ) -> list[Encoded]:
        """Ids of texts or pairs of texts, cut to `max_tokens`; see `join`."""
        both = list(first) + list(second or ())
        encoded = [e.ids for e in self._tokenizer.encode_batch_fast(both, add_special_tokens=False)]
        n = len(first)
        pairs = zip(encoded[:n], encoded[n:] if second else [[]] * n, strict=True)
        return [join(a, b, max_tokens, self._cls, self._sep) for a, b in pairs]


def join(first: list[int], second: list[int], max_tokens: int, cls: int, sep: int) -> Encoded:
    """[CLS] first [SEP] (second [SEP]), at most `max_tokens` ids.

    While they are too many, the last token of the longer text is dropped (of the second on a tie),
    as in the reference. An empty second text counts as none.

    Returns:
      int32 ids, and how many of them are of segment 0.
    """
    a, b = len(first), len(second)
    surplus = max(a + b + (3 if b else 2) - max_tokens, 0)
    # First the longer text shrinks to the shorter one's length, then both in turn.
    longer = min(surplus, abs(a - b))
    a, b = (a - longer, b) if a > b else (a, b - longer)
    turns = surplus - longer
    a, b = a - turns // 2, b - (turns + 1) // 2
    ids = [cls, *first[:a], sep]
    if second:
        return np.asarray([*ids, *second[:b], sep], np.int32), len(ids)
    return np.asarray(ids, np.int32), len(ids)
