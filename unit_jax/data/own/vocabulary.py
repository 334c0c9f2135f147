"""The vocabulary for texts of one's own: the one asked for, else one made of the training texts."""

import os
import pathlib
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence

import tokenizers

from unit_jax.data import integrity
from unit_jax.data.own.declared import Declared
from unit_jax.data.writer import Writer

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
SIZE = 8000  # tokens of a vocabulary that is made here, at most
LETTERS = 2000  # different ones; rarer ones are unknown


def ensure(
    writer: Writer, asked: str, others: Sequence[str], texts: Sequence[Declared]
) -> str | None:
    """Sees to it that the data folder has a vocabulary; returns a sentence if one was made.

    What the folder has stays: prepared data and checkpoints rest on it.

    Raises:
      ValueError: a file or folder was asked for and is not there, or the folder has another one.
    """
    known = writer.manifest.get("vocabulary")
    is_file = bool(asked) and (os.path.exists(asked) or asked.endswith(".txt"))
    if known and (writer.data_dir / "vocab.txt").is_file():
        if is_file and integrity.fingerprint(integrity.read_vocabulary(asked)) != known["sha256"]:
            raise ValueError(
                f"{writer.data_dir} was prepared with the vocabulary {known['name']}, "
                f"config.data.vocabulary is {asked}; use another data.data_dir"
            )
        return None
    reason = "data.vocabulary is ''"
    if asked:
        try:
            writer.add_vocabulary(asked, integrity.read_vocabulary(asked))
            return None
        except ValueError:
            if is_file:
                raise
            reason = f"{asked} cannot be had from the hub"
    for other in others:
        if other and os.path.exists(pathlib.Path(other) / "vocab.txt"):
            writer.add_vocabulary(other, integrity.read_vocabulary(other), instead_of=asked)
            return f"vocabulary: {other}/vocab.txt, as {reason}"
    content = build(_sentences(texts))
    names = ", ".join(declared.name for declared in texts)
    writer.add_vocabulary(f"made of the training texts of {names}", content, instead_of=asked)
    size = len(content.decode().splitlines())
    return f"vocabulary: {size:,} word pieces made of the training texts of {names}, as {reason}"


def _sentences(texts: Sequence[Declared]) -> Iterator[str]:
    for declared in texts:
        for example in declared.splits["train"]:
            yield example.text
            if example.text_b:
                yield example.text_b


def build(sentences: Iterable[str], size: int = SIZE) -> bytes:
    """A WordPiece vocabulary of some texts, one token a line; the same texts give the same."""
    sentences = list(sentences)
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = tokenizers.normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.BertPreTokenizer()
    letters: Counter[str] = Counter()
    for sentence in sentences:
        letters.update("".join(tokenizer.normalizer.normalize_str(sentence).split()))
    frequent = sorted(letters, key=lambda letter: (-letters[letter], letter))[:LETTERS]
    frequent.sort()
    trainer = tokenizers.trainers.WordPieceTrainer(
        vocab_size=max(size, len(SPECIAL) + 2 * len(frequent)),
        min_frequency=1,
        # Given, as the trainer's own order of single letters is another one each time.
        special_tokens=[*SPECIAL, *frequent, *(f"##{letter}" for letter in frequent)],
        show_progress=False,
    )
    tokenizer.train_from_iterator(sentences, trainer)
    tokens = sorted(tokenizer.get_vocab().items(), key=lambda item: item[1])
    return "".join(f"{token}\n" for token, _ in tokens).encode()
