"""Writes the demo's four sets of texts in the files of GLUE, and the vocabulary."""

import functools
import re
from collections.abc import Callable
from pathlib import Path

from tokenizers import BertWordPieceTokenizer

from unit_jax.demo import pairs as pairs_lib
from unit_jax.demo.base import DemoSettings, chooser_of, write


def glue_pairs(settings: DemoSettings, task: str, split: str) -> list[pairs_lib.Pair]:
    """The examples of "qnli", "mnli", "qqp" or "sst2" in "train", "dev" or "test" (MNLI also in
    "dev_mismatched" and "test_mismatched").

    They come in groups, one for each label, with the same second text (or, for sentences, made of
    the same random choices). No dev example occurs in train, which makes way: what is left of dev
    without the pairs of a large train would be the unusual ones.
    """
    make = getattr(pairs_lib, task)
    if split.endswith("_mismatched"):
        make = functools.partial(pairs_lib.mnli, mismatched=True)
    taken: set[tuple[str, str]] = set()
    if split == "train":
        taken = {(pair.first, pair.second) for pair in glue_pairs(settings, task, "dev")}
    wanted = settings.count(task, ("train", "dev", "test").index(split.split("_")[0]))
    pairs: list[pairs_lib.Pair] = []
    number = 0
    while len(pairs) < wanted:
        group = [
            make(chooser_of(settings, task, split, number), label)
            for label in pairs_lib.LABELS[task]
        ]
        number += 1
        if not any((pair.first, pair.second) in taken for pair in group):
            pairs += group
    return pairs[:wanted]


def _qnli_row(number: int, pair: pairs_lib.Pair) -> dict:
    return {
        "index": number,
        "question": pair.first,
        "sentence": pair.second,
        "label": pair.label,
    }


def _mnli_row(number: int, pair: pairs_lib.Pair) -> dict:
    def parse(text: str) -> str:
        return "( " + " ".join(re.findall(r"\w+|[^\w\s]", text)) + " )"

    return {
        "index": number,
        "promptID": number,
        "pairID": f"{number}{pair.label[0]}",
        "genre": pair.genre,
        "sentence1_binary_parse": parse(pair.first),
        "sentence2_binary_parse": parse(pair.second),
        "sentence1_parse": parse(pair.first),
        "sentence2_parse": parse(pair.second),
        "sentence1": pair.first,
        "sentence2": pair.second,
        "label1": pair.label,
        "gold_label": pair.label,
    }


def _mnli_dev_row(number: int, pair: pairs_lib.Pair) -> dict:
    row = _mnli_row(number, pair)
    del row["gold_label"]
    return row | {f"label{n}": pair.label for n in range(1, 6)} | {"gold_label": pair.label}


def _qqp_row(number: int, pair: pairs_lib.Pair) -> dict:
    return {
        "id": number,
        "qid1": 2 * number + 1,
        "qid2": 2 * number + 2,
        "question1": pair.first,
        "question2": pair.second,
        "is_duplicate": pair.label,
    }


def _sst2_row(number: int, pair: pairs_lib.Pair) -> dict:
    return {"sentence": pair.first, "label": pair.label}


def _unlabelled(row: Callable[[int, pairs_lib.Pair], dict], *first: str) -> Callable:
    """A row of a test file: no label, and nothing that tells it; `first` columns come first."""
    told = {"label", "label1", "gold_label", "is_duplicate", "qid1", "qid2"}

    def test_row(number: int, pair: pairs_lib.Pair) -> dict:
        made = {key: value for key, value in row(number, pair).items() if key not in told}
        if "pairID" in made:  # elsewhere it ends in the label's first letter
            made["pairID"] = number
        return {**dict.fromkeys(first, number), **made}

    return test_row


_GLUE_FILES = (
    ("qnli", "train", "QNLI/train.tsv", _qnli_row),
    ("qnli", "dev", "QNLI/dev.tsv", _qnli_row),
    ("mnli", "train", "MNLI/train.tsv", _mnli_row),
    ("mnli", "dev", "MNLI/dev_matched.tsv", _mnli_dev_row),
    ("mnli", "dev_mismatched", "MNLI/dev_mismatched.tsv", _mnli_dev_row),
    ("qqp", "train", "QQP/train.tsv", _qqp_row),
    ("qqp", "dev", "QQP/dev.tsv", _qqp_row),
    ("sst2", "train", "SST-2/train.tsv", _sst2_row),
    ("sst2", "dev", "SST-2/dev.tsv", _sst2_row),
    ("qnli", "test", "QNLI/test.tsv", _unlabelled(_qnli_row)),
    ("mnli", "test", "MNLI/test_matched.tsv", _unlabelled(_mnli_row)),
    ("mnli", "test_mismatched", "MNLI/test_mismatched.tsv", _unlabelled(_mnli_row)),
    ("qqp", "test", "QQP/test.tsv", _unlabelled(_qqp_row)),
    ("sst2", "test", "SST-2/test.tsv", _unlabelled(_sst2_row, "index")),
)


def write_glue(output: Path, settings: DemoSettings) -> list[str]:
    """Writes `glue/`; returns the training texts."""
    texts: list[str] = []
    for task, split, name, row in _GLUE_FILES:
        pairs = glue_pairs(settings, task, split)
        rows = [row(number, pair) for number, pair in enumerate(pairs)]
        lines = [list(rows[0]), *([str(value) for value in r.values()] for r in rows)]
        write(output / "glue" / name, "".join("\t".join(line) + "\n" for line in lines))
        if split == "train":
            texts += [text for pair in pairs for text in (pair.first, pair.second) if text]
    return texts


def write_vocabulary(path: Path, texts: list[str]):
    """Trains a lower-case WordPiece vocabulary on the texts and writes the pieces they need.

    [PAD] is 0 and BERT's other special tokens follow, then single characters (so that no word is
    unknown as long as its letters are not), then the pieces that the texts are cut into.
    """
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    tokenizer = BertWordPieceTokenizer(lowercase=True)
    tokenizer.train_from_iterator(
        texts, vocab_size=4000, min_frequency=1, special_tokens=special, show_progress=False
    )
    used = {token for code in tokenizer.encode_batch(texts) for token in code.tokens}
    letters = {t for t in tokenizer.get_vocab() if len(t.removeprefix("##")) == 1}
    # The trainer's order of equally frequent pieces is its own affair; sorted is always the same.
    pieces = [*special, *sorted(letters - set(special)), *sorted(used - letters - set(special))]
    write(path, "\n".join(pieces) + "\n")
